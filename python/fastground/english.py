"""English words by what they do in a sentence: what `chunks` knows of the language.

Closed classes are whole, but for rare members; verbs and adjectives are those that captions and
referring expressions use most.
"""

from __future__ import annotations


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


DETERMINERS = _words(
    "the a an this these those my your his her its their our some any each every both all another "
    "no several many few two three four five six seven eight nine ten"
)
ONE = _words("a an this each every another")
"""Determiners of one thing alone."""
NOUNS_IN_S = _words(
    "lens news clothes gas glasses sunglasses pants jeans shorts scissors series species canvas"
)
"""What ends in -s where there is one of it."""
PRONOUNS = _words("it them him me us you itself themselves himself herself each-other")
SUBJECTS = _words("he she they i we you it")
PREPOSITIONS = _words(
    "of in on at by with without near beside besides behind under underneath beneath below above "
    "over between among inside outside within around against along across from to toward towards "
    "through into onto upon off out past opposite beyond than for like after before "
    "during about via"
)
RELATIVES = _words("that who which whose whom where")
JOINTS = _words("and or but & plus nor")
AUXILIARIES = _words(
    "is are was were be been being am has have had do does did can could will would should may "
    "might must isn't aren't wasn't weren't there's"
)
VERBS = _words(
    "sits sit stands stand holds hold wears wear rides ride looks look walks walk plays play eats "
    "eat runs run lies lay shows show sees see rests rest leans lean hangs hang flies fly carries "
    "carry pulls pull throws throw hits hit watches watch contains contain faces covers touches "
    "find locate point segment detect ground mark highlight select identify give tell describe "
    "chases chase reads drinks sleeps swims jumps smiles seems appears belongs "
    "blows talks talk wants want waits wait swings makes uses takes turns drives"
)
SKIPPED = _words(
    "there here please then also too while as so if because not only just me now when what how why "
    "let let's away together"
)
"""Words outside of phrases."""
PLACES = _words(
    "left right top bottom front back middle center centre rear side corner edge leftmost "
    "rightmost topmost far upper lower very most hand foreground background distance"
)
ADJECTIVES = _words(
    "red orange yellow green blue purple violet pink brown black white grey gray gold golden "
    "silver beige tan dark light bright pale big small large little tiny huge tall short long "
    "wide narrow thin thick fat old young new round square empty full open closed wet dry dirty "
    "clean blurry visible wooden metal plastic striped plain dotted spotted checkered first "
    "second third last next closest nearest farthest furthest biggest smallest largest tallest "
    "shortest more less colourful colorful happy sad cute nice good bad hot cold"
)
PICTURES = _words("image picture photo photograph scene")
"""What is shown as a whole: "in this picture" names no thing in it."""
NOUNS_IN_ING = _words(
    "building ceiling thing something anything nothing everything king ring wing string swing "
    "spring painting clothing evening morning awning railing sibling duckling pudding earring "
    "frosting topping icing"
)
