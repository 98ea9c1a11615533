"""A sentence with several things -> its noun phrases, each to be grounded for itself.

    noun_phrases("the red star and the small circle left of it")

    the red star and the small circle left of it
    [----------]     [-------------------------]

A `Phrase` is the words, and remembers where in which sentence they stand. Handed to a grounder it
is asked in its place: the model reads the whole sentence, and the phrase's own tokens ask. Handed
over as `standalone` words it is an expression like any other, as the method was made for.

`chunks` finds the phrases by rules, and says where they fail and how often; with a spaCy pipeline
that parses, its dependencies do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from fastground.chunks import chunk

_PRONOUN = re.compile(r"\b(?:it|them|him|her)\b(?! \w)", re.IGNORECASE)
"""In an object's place: at the end of a phrase, or before its punctuation."""
_CONJUNCT = ("conj", "cc", "punct")


class Phrase(str):
    """Some words of a sentence, to be asked in its place; to all else they are a plain string."""

    sentence: str
    start: int
    """Index in the sentence of the first letter."""
    end: int
    """Index behind the last."""

    def __new__(cls, sentence: str, start: int, end: int) -> Phrase:
        """The words sentence[start:end].

        Raises:
            ValueError: there are none.
        """
        if not 0 <= start < end <= len(sentence) or not sentence[start:end].strip():
            raise ValueError(
                f"phrase must be words of its sentence, but got {start} to {end} of {sentence!r}"
            )
        phrase = super().__new__(cls, sentence[start:end])
        phrase.sentence, phrase.start, phrase.end = str(sentence), start, end
        return phrase

    def __getnewargs__(self) -> tuple[str, int, int]:  # type: ignore[override]
        return self.sentence, self.start, self.end


def noun_phrases(sentence: str, nlp: Callable[[str], Any] | None = None) -> list[Phrase]:
    """The noun phrases of a sentence, in order, none inside another.

    What restricts a noun stays with it: "the small circle left of it" is one phrase.

    Args:
        sentence: in English by the rules, in any language a pipeline parses; without Latin letters
            it is one phrase by the rules.
        nlp: a spaCy pipeline with a parser, as spacy.load gives; None: the rules.

    Returns:
        At least one; the whole sentence where no noun phrase is found.

    Raises:
        ValueError: the sentence is empty, or the pipeline does not parse.
    """
    spans = chunk(sentence)
    if nlp is not None:
        spans = _parsed(nlp(sentence)) or [(0, len(sentence))]
    return [Phrase(sentence, start, end) for start, end in spans]


def standalone(phrases: Sequence[str]) -> list[str]:
    """Phrases as expressions of their own: a final "it" or "them" is the phrase before.

    Args:
        phrases: of one sentence, in order.

    Returns:
        "the red star", "the small circle left of the red star"; a pronoun in the first stays.
    """
    said: list[str] = []
    for phrase in phrases:
        words = str(phrase)
        if said:
            named = said[-1]
            words = _PRONOUN.sub(lambda _, named=named: named, words)  # type: ignore[misc]
        said.append(words)
    return said


def _parsed(doc: Any) -> list[tuple[int, int]]:
    """The spans of a parsed spaCy document: each noun chunk with what hangs on it.

    Raises:
        ValueError: it is not parsed.
    """
    if not doc.has_annotation("DEP"):
        raise ValueError(
            "nlp must be a spaCy pipeline with a parser, but its document has no dependencies; "
            "load one with spacy.load('en_core_web_sm'), or leave nlp out"
        )
    spans: list[tuple[int, int]] = []
    end = 0
    for base in doc.noun_chunks:
        if base.start < end or base.root.pos_ == "PRON":
            continue
        inside = {base.root.i}
        for token in base.root.subtree:  # in order; a conjunct and all below it are left out
            above = [token, *token.ancestors]
            upto = above[: above.index(base.root)]
            if all(t.dep_ not in _CONJUNCT or t.head != base.root for t in upto):
                inside.add(token.i)
        end = max(inside) + 1
        last = doc[end - 1]
        spans.append((doc[min(inside)].idx, last.idx + len(last)))
    return spans
