"""The head-statistics table: two numbers a head for every sample, and never a map again.

    sample_ids  image_ids    sums (L, H)     entropies (L, H)    ious (L, H), where masks are
    17          5            .02 .31 ...     1.2 .4 ...          .10 .55 ...
    18          5            .02 .29 ...     1.3 .4 ...          .08 .61 ...

It is read in blocks of `ROWS` samples, from memory or from the shards of a run (`runs.py`), so that
a million samples take no more room than a thousand. The blocks are the same ones wherever the
table lies, and so is every number computed from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from fastground.types import Recipe

ROWS = 1024  # samples worked on at once: 8 MB of float64 at 1,024 heads

DECIDED_BY = (
    "weight", "cut", "empty", "bottom_row", "padding_stats", "blocks", "query", "template",
    "ensure_period",
)  # fmt: skip
"""The recipe's fields that the numbers of a table depend on; all others only read them."""

Columns = tuple[np.ndarray, ...]
"""Some columns of some samples, each (samples, ...)."""


@dataclass(frozen=True)
class HeadTable:
    """What discovery keeps of every sample; all rankings and ablations read it."""

    num_samples: int
    """N."""
    read: Callable[[tuple[str, ...]], Iterable[Columns]]
    """Pieces of any length of the columns so named, in order, from the first sample on."""
    recipe: Recipe
    checkpoint: str = ""
    revision: str = ""
    """The hub's commit; of a folder none."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """model_type, num_layers, num_heads."""
    dataset: str = ""
    split: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    has_ious: bool = False
    """Whether there is a column ious: some sample had a mask."""
    skipped: tuple[tuple[int, int, str], ...] = ()
    """(sample_id, image_id, reason) of the samples whose image could not be read."""

    @classmethod
    def of(cls, columns: dict[str, np.ndarray], **about: Any) -> HeadTable:
        """A table of arrays in memory.

        Args:
            columns: sums and entropies (N, L, H), and sample_ids, image_ids (N,) and ious, of which
                the ids are 0, 1, 2, ... unless given.
            about: the other fields.
        """
        count, layers, heads = columns["sums"].shape
        about.setdefault("architecture", {"num_layers": layers, "num_heads": heads})
        columns = dict.fromkeys(("sample_ids", "image_ids"), np.arange(count)) | columns
        return cls(
            count,
            lambda names: [tuple(columns[name] for name in names)],
            has_ious="ious" in columns,
            **about,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """The model's (layers, heads of a layer)."""
        return self.architecture["num_layers"], self.architecture["num_heads"]

    def blocks(self, *names: str) -> Iterator[Columns]:
        """These columns, `ROWS` samples at a time, the last block shorter.

        Args:
            names: of sample_ids, image_ids (n,) int64; sums in [0, 1], entropies in nats, +inf
                where a map is empty, and ious of each head's binarized map with the true mask,
                nan without one: (n, L, H) float32.
        """
        held: list[Columns] = []
        count = 0
        for piece in self.read(names):
            start, length = 0, len(piece[0])
            while count + length - start >= ROWS:
                stop = start + ROWS - count
                yield _joined([*held, tuple(column[start:stop] for column in piece)])
                held, count, start = [], 0, stop
            if start < length:
                held.append(tuple(column[start:] for column in piece))
                count += length - start
        if held:
            yield _joined(held)

    @property
    def sums(self) -> np.ndarray:
        """(N, L, H) float32 in [0, 1]: attention sums, all in memory."""
        return self._whole["sums"]

    @property
    def entropies(self) -> np.ndarray:
        """(N, L, H) float32: spatial entropies, nats, +inf where a map is empty."""
        return self._whole["entropies"]

    @property
    def ious(self) -> np.ndarray | None:
        """(N, L, H) float32: IoU of each head's binarized map with the true mask; nan without."""
        return self._whole.get("ious")

    @property
    def sample_ids(self) -> np.ndarray:
        """(N,) int64."""
        return self._whole["sample_ids"]

    @property
    def image_ids(self) -> np.ndarray:
        """(N,) int64."""
        return self._whole["image_ids"]

    @cached_property
    def _whole(self) -> dict[str, np.ndarray]:
        names = ("sample_ids", "image_ids", "sums", "entropies", *["ious"][: self.has_ious])
        pieces = list(self.read(names))
        return dict(zip(names, map(np.concatenate, zip(*pieces, strict=True)), strict=True))

    @cached_property
    def mean_sums(self) -> np.ndarray:
        """(L, H) float64: attention sums, the mean over the samples."""
        total: Any = 0.0
        for (sums,) in self.blocks("sums"):
            total = total + sums.sum(axis=0, dtype=np.float64)
        return total / self.num_samples

    @cached_property
    def mean_ious(self) -> np.ndarray | None:
        """(L, H) float64: IoUs, the mean over the samples with a mask; None where none has one."""
        if not self.has_ious:
            return None
        total: Any = 0.0
        count: Any = 0
        for (ious,) in self.blocks("ious"):
            total = total + np.nansum(ious, axis=0, dtype=np.float64)
            count = count + np.isfinite(ious).sum(axis=0)
        return np.divide(total, count, out=np.zeros(self.shape), where=count > 0)

    def check(self, recipe: Recipe) -> None:
        """Nothing where the table's numbers are what this recipe asks for.

        Raises:
            ValueError: a switch that decided the numbers has another value in `recipe`.
        """
        for name in DECIDED_BY:
            made, asked = getattr(self.recipe, name), getattr(recipe, name)
            if made != asked:
                raise ValueError(
                    f"recipe.{name} must be {made!r}, with which the table was made, but got "
                    f"{asked!r}; collect a table with the new value"
                )


def _joined(pieces: list[Columns]) -> Columns:
    if len(pieces) == 1:
        return pieces[0]
    return tuple(np.concatenate(parts) for parts in zip(*pieces, strict=True))


def installed_versions() -> dict[str, str]:
    """Versions of what the numbers depend on; a package that is not installed is left out."""
    return dict(_installed_versions())


@cache
def _installed_versions() -> dict[str, str]:
    found = {}
    for name in ("fastground", "torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
