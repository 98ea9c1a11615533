"""What `boxes` answers with: one array, and a view of it for each thing that is asked.

    x1 y1 x2 y2 | area | mass | score        a row of seven numbers a region
       xyxy       found: area > 0, for a region has one cell at least

Torch takes half a microsecond to make a tensor, a tenth of a call on one map, so that a view is
made when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


_CORNERS = ..., slice(0, 4)


def _as_it_is(array: Any) -> Any:
    return array


class Boxes:
    """One region a group of k maps; unpacked it is xyxy, area, mass, score, found."""

    __slots__ = ("_give", "_rows")

    def __init__(self, rows: Any, give: Callable[[Any], Any] = _as_it_is) -> None:
        """
        Args:
            rows: (..., 7) float32, a tensor or a NumPy array.
            give: makes the kind of array that was asked for of rows, or of a view of them.
        """
        self._rows, self._give = rows, give

    @property
    def rows(self) -> torch.Tensor:
        """(..., 7) float32: x1, y1, x2, y2, area, mass, score."""
        return self._give(self._rows)

    @property
    def xyxy(self) -> torch.Tensor:
        """(..., 4) float32 in grid units, half-open; zeros where nothing was found."""
        return self._give(self._rows[_CORNERS])

    @property
    def area(self) -> torch.Tensor:
        """(...) float32, in cells: of the kept convex hull, or as many as the kept region has."""
        return self._give(self._rows[..., 4])

    @property
    def mass(self) -> torch.Tensor:
        """(...) float32: the share of the combined map's sum inside the region."""
        return self._give(self._rows[..., 5])

    @property
    def score(self) -> torch.Tensor:
        """(...) float32: mean of the combined map inside the region over its mean outside; +inf if
        that is 0 or nothing lies outside."""
        return self._give(self._rows[..., 6])

    @property
    def found(self) -> torch.Tensor:
        """(...) bool: whether any cell exceeded the cut."""
        area = self._rows[..., 4]  # cast: of one number NumPy's comparison would make a scalar
        return self._give(area.astype(bool) if hasattr(area, "astype") else area.bool())

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter((self.xyxy, self.area, self.mass, self.score, self.found))

    def __repr__(self) -> str:
        names = ("xyxy", "area", "mass", "score", "found")
        return f"Boxes({', '.join(f'{n}={v!r}' for n, v in zip(names, self, strict=True))})"
