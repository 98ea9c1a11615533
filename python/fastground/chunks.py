"""An English sentence -> where its noun phrases begin and end, by rules, without a tagger.

    the red star and the small circle left of it are near a cross
    |----------| ,   |-------------------------| =   -    |-----|

Each word is of a closed class (determiner, preposition, auxiliary, ...) or open. Read left to
right, a phrase runs from its first open word or determiner to what ends it:

    punctuation, "and", "or"      unless they join adjectives, or stand inside "between ... and ..."
    an auxiliary or known verb    unless in a relative clause that has none yet
    an -s before a preposition    behind one thing: "a bird perches on a branch"
    a determiner                  unless a preposition, participle or relative clause wants it; an
                                  open word right before it was a verb: "A man | throws | the ball"

So what restricts a head noun stays with it: prepositions, "-ing" participles, relative clauses; no
phrase lies in another. What names no thing ("red" in "the star is red") is dropped after a verb and
joined to the phrase before it after a comma ("man in blue, far left").

What rules cannot know, and where they fail: "the man with a hat and a beard" is two phrases, since
a determiner after "and" begins one; "left guy, blue shirt" likewise; verbs that are not listed and
stand before no determiner ("a dog devours meat") stay in the phrase; "the cat but not the dog"
names both. What fails most is a preposition that belongs to the verb ("brushes her teeth in front
of a mirror"), and verbs that are not listed.

How good they are: of the 178 noun phrases in 60 captions that the rules had never read
(tests/captions.txt) 61 % were found to the letter, and 66 % of what was found was one. Two rules
came after that, and make it 63 % and 68 % of the same captions.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from fastground.english import (
    ADJECTIVES,
    AUXILIARIES,
    DETERMINERS,
    JOINTS,
    NOUNS_IN_ING,
    NOUNS_IN_S,
    ONE,
    PICTURES,
    PLACES,
    PREPOSITIONS,
    PRONOUNS,
    RELATIVES,
    SKIPPED,
    SUBJECTS,
    VERBS,
)

_TOKEN = re.compile(
    r"\w+(?:['\u2019\-]\w+)*['\u2019]?|[.,;:!?\u2026()\"\n\u060c\u061b\u061f\u3001\u3002]|&|[^\w\s]+"
)
_BREAK = re.compile(r"[.,;:!?\u2026()\"\n\u060c\u061b\u061f\u3001\u3002]")
_COMPOUND = re.compile(
    r"\b(?:in front of|on top of|next to|close to|closest to|nearest to|adjacent to|as well as|"
    r"(?:(?:to|on|at|in) )?(?:the )?(?:(?:far|upper|lower|very|top|bottom) )*"
    r"(?:left|right|top|bottom|front|back|middle|center|centre|rear)"
    r"(?: side| corner| edge|-hand side| hand side)? of)\b",
    re.IGNORECASE,
)
"""Prepositions of several words, and a joint."""


class _Word(NamedTuple):
    text: str
    start: int
    end: int
    kind: str
    """break, comma, determiner, number, pronoun, preposition, relative, joint, auxiliary, verb,
    skipped, participle or open."""


class _Chunk:
    """A phrase that grows."""

    def __init__(self, first: _Word, after_verb: bool) -> None:
        self.words = [first]
        self.after_verb = after_verb
        self.clause = 0
        """1: in a relative clause without its verb, 2: with it."""

    @property
    def run(self) -> list[_Word]:
        """The words since the last that links: a preposition, participle or relative."""
        run: list[_Word] = []
        for word in reversed(self.words):
            if word.kind in ("preposition", "participle", "relative", "auxiliary"):
                break
            run.insert(0, word)
        return run

    @property
    def names(self) -> bool:
        """Whether any word can name a thing."""
        return any(
            w.kind in ("open", "number") and w.text not in ADJECTIVES | PLACES for w in self.words
        )


def chunk(sentence: str) -> list[tuple[int, int]]:
    """(start, end) of each noun phrase in the sentence, in order; at least one.

    A sentence without Latin letters is one phrase: nothing here knows its words.

    Raises:
        ValueError: the sentence is empty.
    """
    stripped = sentence.strip()
    if not stripped:
        raise ValueError(f"sentence must say something, but got {sentence!r}")
    begin = sentence.index(stripped)
    whole = (begin, begin + len(stripped.rstrip(".!? ")) or len(stripped))
    if not re.search("[A-Za-z]", stripped):
        return [(begin, begin + len(stripped))]
    words = _read(sentence)
    spans = [(c.words[0].start, c.words[-1].end) for c in _chunks(words)]
    if not spans:
        return [whole]
    if len(spans) == 1 and _is_headless(sentence[begin : spans[0][0]]):
        return [(begin, spans[0][1])]
    return spans


def _is_headless(before: str) -> bool:
    """Whether a lone phrase is the end of one without a noun: "on the left", "next to a tree"."""
    return all(_kind(w.lower(), False) == "preposition" or w.lower() in PLACES | ADJECTIVES
               for w in before.split())  # fmt: skip


def _read(sentence: str) -> list[_Word]:
    compounds = {m.start(): m for m in _COMPOUND.finditer(sentence)}
    words: list[_Word] = []
    end = 0
    for match in _TOKEN.finditer(sentence):
        if match.start() < end:
            continue
        found = compounds.get(match.start())
        # "the back of" is a place only behind something: "the back of the bus" may be the phrase.
        if found and found.group().lower().startswith("the ") and not (
            words and words[-1].kind in ("auxiliary", "verb")
        ):  # fmt: skip
            found = None
        match = found or match
        text, end = match.group().lower().replace("\u2019", "'"), match.end()
        kind = _kind(text, _may_be_told(words))
        if found:
            kind = "joint" if text == "as well as" else "preposition"
        words.append(_Word(text, match.start(), end, kind))
    return words


def _may_be_told(words: list[_Word]) -> bool:
    """Whether a relative clause may follow: after a noun, or after its comma."""
    last = words[-2:] if words and words[-1].kind == "comma" else words[-1:]
    return bool(last) and last[0].kind in ("open", "number")


def _kind(text: str, after_open: bool) -> str:
    if _BREAK.fullmatch(text):
        return "comma" if text in (",", "\u060c", "\u3001") else "break"
    if text in RELATIVES and after_open:
        return "relative"
    if text == "that":
        return "determiner"
    for kind, members in (
        ("determiner", DETERMINERS), ("auxiliary", AUXILIARIES), ("joint", JOINTS),
        ("preposition", PREPOSITIONS), ("pronoun", PRONOUNS | SUBJECTS), ("skipped", SKIPPED),
    ):  # fmt: skip
        if text in members:
            return kind
    if text in VERBS | RELATIVES:
        return "verb"
    if text.isdigit():
        return "open" if after_open else "number"
    if text.endswith("ing") and len(text) > 4 and text not in NOUNS_IN_ING:
        return "participle"
    return "open"


def _chunks(words: list[_Word]) -> list[_Chunk]:
    chunks: list[_Chunk] = []
    current: _Chunk | None = None
    after_verb = False
    joined = 0  # an "and" that "between" still waits for

    def close() -> None:
        nonlocal current
        if current is None:
            return
        while current.words and current.words[-1].kind not in ("open", "number", "pronoun"):
            last = current.words[-1].kind
            if last == "participle" or (last == "preposition" and current.clause == 2):
                break  # "the man standing", "the car whose lights are on"
            current.words.pop()
        if current.words and current.words[0].text == "both":
            del current.words[0]
        said = {w.text for w in current.words if w.kind in ("open", "number", "participle")}
        if said and not said <= PICTURES and (current.names or not current.after_verb):
            chunks.append(current)
        current = None

    for i, word in enumerate(words):
        before = words[i - 1] if i else None
        after = words[i + 1] if i + 1 < len(words) else None
        if word.kind == "break":
            close()
            after_verb, joined = False, 0
        elif word.kind in ("comma", "joint"):
            if word.text == "and" and joined and current is not None:
                joined -= 1
                current.words.append(word)
            elif current is not None and _goes_on(current, words, i):
                current.words.append(word)
            else:
                close()
        elif current is None:
            if word.kind in ("auxiliary", "verb"):
                after_verb = True
            elif word.kind in ("determiner", "open", "number") or (
                word.kind == "participle"
                and (before is None or _begins(before) or (after and after.kind == "open"))
                and not after_verb
            ):
                current = _Chunk(word, after_verb)
        elif word.kind == "open" and _is_verb_of_one(current, word, after):
            close()
            after_verb = True
        elif word.kind == "preposition":
            joined += word.text == "between"
            current.words.append(word)
        elif word.kind == "relative" or (
            word.text in SUBJECTS and before is not None and before.kind == "open"
        ):
            current.clause = 1
            current.words.append(word._replace(kind="relative"))
        elif word.kind in ("auxiliary", "verb"):
            if current.clause == 1 or (
                current.clause == 2
                and word.kind == "auxiliary"
                and before is not None
                and before.kind == "auxiliary"
            ):
                current.clause = 2
                current.words.append(word._replace(kind="auxiliary"))
            elif word.kind == "verb" and not current.names:
                current.words.append(word._replace(kind="open"))  # "the last stand"
            else:
                close()
                after_verb = True
        elif word.kind in ("determiner", "number") and before is not None and (
            before.kind == "open" and current.clause != 1
        ):  # fmt: skip
            _drop_verb(current)
            close()
            current = _Chunk(word, True)
        elif word.kind == "skipped":
            close()
        else:
            if word.kind == "open" and current.clause == 1 and before and before.text in SUBJECTS:
                current.clause = 2
            current.words.append(word)
    close()
    return _attached(chunks, words)


def _begins(before: _Word) -> bool:
    return before.kind in ("break", "joint", "comma")


def _goes_on(current: _Chunk, words: list[_Word], i: int) -> bool:
    """Whether a phrase goes on after this comma or joint: adjectives, bare objects, a clause."""
    after = words[i + 1] if i + 1 < len(words) else None
    if after is not None and after.text in RELATIVES - {"that"}:
        return True  # "its mother, who is asleep"
    if (
        words[i].kind == "comma"
        and after is not None
        and after.kind in ("participle", "preposition")
    ):
        return True  # "the elephant, with tusks"
    if after is None or after.kind not in ("open", "number"):
        return False
    run = current.run
    content = [w for w in run if w.kind in ("open", "number")]
    if content and all(w.text in ADJECTIVES | PLACES for w in content):
        # "the red and blue ball", not "the red and the blue"; a comma needs an adjective after it.
        return words[i].text != "," or after.text in ADJECTIVES
    linked = len(run) < len(current.words) and not any(w.kind == "determiner" for w in run)
    return words[i].text == "and" and linked and after.text not in PLACES


def _is_verb_of_one(current: _Chunk, word: _Word, after: _Word | None) -> bool:
    """Whether an -s is a verb's: "a bird perches on", since one bird is no plural."""
    run = current.run
    one = bool(run) and run[0].text in ONE and any(w.text not in ADJECTIVES for w in run[1:])
    plural = word.text.endswith("s") and not word.text.endswith(("ss", "us", "is", "'s"))
    noun = word.text in NOUNS_IN_S or any(w.text.endswith("'s") for w in run)  # whose things?
    return one and plural and not noun and after is not None and after.kind == "preposition"


def _drop_verb(current: _Chunk) -> None:
    """Take off the open word right before a determiner: it was a verb, if a noun is left."""
    rest = [w for w in current.run[:-1] if w.kind in ("open", "number")]
    last = current.run[-1].text
    if (rest and last not in ADJECTIVES) or (len(current.words) == 1 and last.endswith("s")):
        current.words.pop()


def _attached(chunks: list[_Chunk], words: list[_Word]) -> list[_Chunk]:
    """Pieces that name nothing go to the phrase right before their comma, if there is one."""
    kept: list[_Chunk] = []
    for chunk in chunks:
        gap = []
        if kept:
            gap = [w for w in words if kept[-1].words[-1].end <= w.start < chunk.words[0].start]
        only_comma = [w.kind for w in gap if w.kind != "preposition"] == ["comma"]
        if not chunk.names and only_comma and not any(w.kind == "participle" for w in chunk.words):
            kept[-1].words += gap + chunk.words
        else:
            kept.append(chunk)
    return kept
