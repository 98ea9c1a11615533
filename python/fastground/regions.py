"""What `boxes` answers with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch


class Boxes(NamedTuple):
    """One region a group of k maps."""

    xyxy: torch.Tensor
    """(..., 4) float32 in grid units, half-open; zeros where nothing was found."""
    area: torch.Tensor
    """(...) float32, in cells: of the kept convex hull, or as many as the kept region has."""
    mass: torch.Tensor
    """(...) float32: the share of the combined map's sum inside the region."""
    score: torch.Tensor
    """(...) float32: mean of the combined map inside the region over its mean outside; +inf if
    that is 0 or nothing lies outside."""
    found: torch.Tensor
    """(...) bool: whether any cell exceeded the cut."""

    @classmethod
    def of(cls, rows: Any) -> Boxes:
        """What rows (..., 7) float32 of x1, y1, x2, y2, area, mass, score hold, as views of them.

        A region has one cell at least, so that one is found where the area is not 0.
        """
        area = rows[..., 4]  # cast: of one number NumPy's comparison would make a scalar
        found = area.astype(bool) if hasattr(area, "astype") else area.bool()
        return cls(rows[..., :4], area, rows[..., 5], rows[..., 6], found)
