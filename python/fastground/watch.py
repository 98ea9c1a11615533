"""Samples of a run, counted as they are done, and those whose image cannot be read.

    done     11 |===========|         told to the progress, an earlier run's with the first new ones
    skipped   1 |  x        |         listed; more than `max_bad` of the samples stop the run

Discovery and evaluation skip by the same rule. A long run is stopped soon, a short one judged at
its end: until `GRACE` samples are done, the share is taken as if there were so many.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from fastground.shards import Skipped
from fastground.types import Sample

MAX_BAD = 0.01
"""The largest share of samples whose image may be unreadable, by default."""
GRACE = 1000
"""Samples after which the share of unreadable ones is judged; before, as if there were so many."""


@dataclass
class Watch:
    """How many samples are done, told to whoever asked, and how many could not be."""

    max_bad: float
    progress: Callable[[int], None] | None
    done: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    _kept: deque[tuple[int, int, list[Skipped]]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad <= 1:  # nor nan, which nothing is larger than
            raise ValueError(f"max_bad must be a share, 0 to 1, but got {self.max_bad!r}")

    def kept(self, index: int, count: int, skipped: list[Skipped]) -> None:
        """An earlier run's shard, found ahead of its turn."""
        self._kept.append((index, count, skipped))

    def begin(self, index: float) -> None:
        """A shard's turn; those kept before are told with its first samples, as a rate has them."""
        while self._kept and self._kept[0][0] < index:
            _, count, skipped = self._kept.popleft()
            self.done += count
            self.skipped += skipped

    def shard(self, read: int, skipped: list[Skipped]) -> None:
        """Another process's, whole: how many samples were read, and those that were not."""
        self.skipped += skipped
        self.count(read + len(skipped))
        self._judge(max(self.done, GRACE))

    def count(self, samples: int) -> None:
        """So many samples more are done."""
        self.done += samples
        if self.progress is not None:
            self.progress(self.done)

    def skip(self, group: list[Sample], reason: str) -> list[Skipped]:
        """An image that cannot be read.

        Args:
            group: its samples.
            reason: why not.

        Returns:
            What a shard lists of them.

        Raises:
            ValueError: they are too many by now.
        """
        skipped = [(int(s.sample_id), int(s.image_id), reason) for s in group]  # NumPy's, too
        self.skipped += skipped
        self.count(len(group))
        self._judge(max(self.done, GRACE))
        return skipped

    def end(self) -> None:
        """All samples are done: judged by their true number, and told with a warning.

        Raises:
            ValueError: there were none, too many unreadable ones, or no others.
        """
        self.begin(float("inf"))
        if not self.done:
            raise ValueError("samples must hold at least one sample, but are empty")
        self._judge(self.done)
        if len(self.skipped) == self.done:
            self._judge(0)
        if self.skipped:
            warnings.warn(
                f"images must be readable, but {self._told()}; they are left out, and listed as "
                "skipped where the others are kept",
                stacklevel=4,
            )
        if self.progress is not None:
            self.progress(self.done)

    def _judge(self, of: int) -> None:
        if len(self.skipped) > self.max_bad * of:
            raise ValueError(
                f"images must be readable but for max_bad={self.max_bad:g} of the samples, but "
                f"{self._told()}; mend the images or raise max_bad"
            )

    def _told(self) -> str:
        sample_id, image_id, reason = self.skipped[0]
        return (
            f"{len(self.skipped)} of {self.done} were not; the first is sample_id {sample_id}, "
            f"image_id {image_id}: {reason}"
        )
