"""The native core: what csrc/bindings.cpp exposes. Arrays are addresses that the caller owns."""

from typing import Any

class MapView:
    """A batch of maps in memory that `owner` keeps alive; strides count elements."""

    def __init__(
        self,
        owner: Any,
        data: int,
        dtype: str,
        count: int,
        grid_h: int,
        grid_w: int,
        stride_map: int,
        stride_row: int,
        stride_column: int,
    ) -> None: ...

def head_stats(
    maps: MapView, weight: str, cut: str, empty: str, sums: int, entropies: int
) -> None: ...
def binarize(maps: MapView, cut: str, mask: int) -> None: ...
def label(maps: MapView, cut: str, labels: int) -> None: ...
def combine(maps: MapView, heads: int, taps: list[float], border: str, combined: int) -> None: ...
def boxes(
    combined: MapView,
    valid: MapView,
    region: str,
    xyxy: int,
    area: int,
    mass: int,
    score: int,
    found: int,
) -> None: ...
def build_info() -> dict[str, str]: ...
