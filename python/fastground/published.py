"""Localization heads that others have published: which, of what model, and who says so.

Only the heads are public, no frequencies and no attention sums; so such a ranking grounds with its
heads and can be neither saved, reported nor asked for another selection. Where fewer heads are
known than the three that the method sums, it grounds with those that are.

Nothing here has been checked against the weights: `fastground discover` does that.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import NoReturn

from fastground.types import HeadId, HeadRanking, RankedHead, Recipe

PAPER = "Kang et al., CVPR 2025 (arXiv 2503.06287)"


@dataclass(frozen=True)
class PublishedRanking(HeadRanking):
    """Heads as others name them; every number that is not public is NaN."""

    provenance: str = ""
    """Who says so, and what is unsure."""

    def save(self, path: str | Path) -> NoReturn:
        """Refused: a file of it would pass for a measured ranking.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"ranking must be measured to be saved, but that of {self.checkpoint!r} is published "
            f"heads alone; make one with: fastground discover {self.checkpoint} --out FOLDER"
        )


def _published(
    checkpoint: str, layers: int, heads: tuple[HeadId, ...], tau: float, provenance: str
) -> PublishedRanking:
    return PublishedRanking(
        heads=tuple(RankedHead(head, nan, nan, nan, nan) for head in heads),
        tau=tau,
        curve=(),
        num_samples=1000,
        trials=(),
        recipe=Recipe(k=len(heads)),
        checkpoint=checkpoint,
        architecture={"model_type": "llava", "num_layers": layers, "num_heads": layers},
        dataset="refcoco",
        split="train",
        provenance=provenance,
    )


RANKINGS: dict[str, PublishedRanking] = {
    ranking.checkpoint: ranking
    for ranking in (
        _published(
            "llava-hf/llava-1.5-7b-hf", 32, (HeadId(14, 24),), 0.24,
            f"{PAPER} names L14 H24 as first, numbered from 0; its second and third head are not "
            "known here, so one head grounds where the paper takes three",
        ),
        _published(
            "llava-hf/llava-1.5-13b-hf", 40, (HeadId(15, 39), HeadId(16, 30), HeadId(7, 2)), nan,
            f"three heads after {PAPER}; whether they are numbered from 0 is not verified, and "
            "tau is not known here",
        ),
    )
}  # fmt: skip
"""By the checkpoint's name on the hub."""
