"""The native core: what csrc/bindings.cpp exposes.

Outputs are C-contiguous NumPy arrays of the result's size and itemsize; where head_stats is given
None, that is not wanted. Every operation returns how many maps are not finite; `box_tensors` also
what the rows of `boxes` hold, as tensors of this batch in such a tuple: xyxy, area, mass, score,
found; `largest`, the largest magnitude of all cells, inf if one is not finite. Tensors are of the
class that `use_tensors` was given; `plain_shape` tells which floating maps on the CPU can be read
as they are.
"""

from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch

Source: TypeAlias = np.ndarray | torch.Tensor
"""Maps (grid_h, grid_w) or (count, grid_h, grid_w) on the CPU, strided as they come."""

Answer = TypeVar("Answer", bound=tuple[Any, ...])
"""A class of tuples."""

codes: dict[str, dict[str, int]]
"""The numbers of the dtypes and of every named choice, by the argument's name."""

def head_stats(
    maps: Source,
    weight: int,
    cut: int,
    empty: int,
    sums: np.ndarray | None,
    entropies: np.ndarray | None,
) -> int: ...
def binarize(maps: Source, cut: int, mask: np.ndarray) -> int: ...
def label(maps: Source, cut: int, labels: np.ndarray) -> int: ...
def combine(
    maps: Source, heads: int, taps: np.ndarray, border: int, combined: np.ndarray
) -> int: ...
def boxes(
    maps: Source,
    heads: int,
    taps: np.ndarray,
    border: int,
    valid: Source | None,
    region: int,
    rows: np.ndarray,
) -> int: ...
def box_tensors(
    maps: Source,
    heads: int,
    taps: np.ndarray,
    border: int,
    valid: Source | None,
    region: int,
    batch: tuple[int, ...],
    answer: type[Answer],
) -> tuple[int, Answer]: ...
def plain_shape(maps: object, least_axes: int) -> tuple[int, ...] | None: ...
def use_tensors(tensor_class: type) -> None: ...
def largest(maps: Source) -> float: ...
def mask_words(mask: torch.Tensor, words: np.ndarray) -> None: ...
def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    words: np.ndarray,
    scale: float,
    threads: int,
    out: np.ndarray,
) -> None: ...
def set_num_threads(count: int) -> None: ...
def num_threads() -> int: ...
def use(name: str) -> None: ...
def instruction_sets() -> list[str]: ...
def forced() -> str: ...
def build_info() -> dict[str, str]: ...
