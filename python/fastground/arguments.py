"""What the operations take and give: checked here, once, by whichever door it comes in.

An array is either a NumPy array or a torch tensor from here on; what has only `__dlpack__` becomes
a tensor. Nothing is copied unless the native core could not read it: other byte orders, packed
records, negated views, batches whose axes cannot be walked as one.

Around the native core NumPy does what else there is to do, not torch: torch's threads do not
survive a fork, so that what it shares among them would wait for ever in the child.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, from_numpy, strided
from torch.utils.dlpack import from_dlpack

from fastground.core import _core
from fastground.types import CHOICES, HeadStats

Array = ndarray | Tensor
Shape = tuple[int, ...]

MAX_GRID = 256
"""Cells a side, at most."""

DTYPES: dict[Any, str] = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
    np.dtype("float16"): "float16",
    np.dtype("float32"): "float32",
    np.dtype("float64"): "float64",
}
"""The dtypes of maps and their names."""

MASKS = (torch.bool, np.dtype("bool"))

_is_traced = torch._C._is_tracing  # by torch.jit


class Choice(dict):
    """The values that an argument may have, with what they mean to the native core."""

    def __init__(self, argument: str, meanings: dict[str, Any]) -> None:
        super().__init__(meanings)
        self.argument = argument

    def __missing__(self, value: Any) -> Any:
        raise ValueError(f"{self.argument} must be one of {', '.join(self)}, but got {value!r}")


def unhashable(**given: Any) -> TypeError:
    """The error for choices of which one cannot be looked up, being a list or the like."""
    name, value = next((n, v) for n, v in given.items() if not isinstance(v, str))
    return TypeError(f"{name} must be one str, but got {value!r}")


def _choice(argument: str) -> Choice:
    return Choice(argument, {value: _core.codes[argument][value] for value in CHOICES[argument]})


WEIGHT, CUT, EMPTY = _choice("weight"), _choice("cut"), _choice("empty")
BORDER, REGION = _choice("border"), _choice("region")
ANY = (WEIGHT["area"], CUT["mean"], EMPTY["inf"])
"""For sums, where the choices do not matter."""
NAN = Choice("nan", {"raise": True, "propagate": False})


def take(array: Any, name: str) -> Array:
    """A dense array of numbers, over the same memory where that can be."""
    if not isinstance(array, Tensor):
        if isinstance(array, ndarray):
            return _take_numpy(array, name)
        if not hasattr(array, "__dlpack__"):
            raise TypeError(
                f"{name} must be a torch tensor, a NumPy array or have __dlpack__, but got "
                f"{type(array).__name__}; give np.asarray({name})"
            )
        array = from_dlpack(array)
    if array.layout is not strided or array.is_meta:
        raise TypeError(
            f"{name} must be a dense tensor that holds data, but got layout {array.layout} on "
            f"{array.device}; call .to_dense() on a sparse one"
        )
    if not array.is_neg():
        return array
    if array.is_cpu:
        return _through_numpy(torch._neg_view(array.detach()), np.negative)
    return array.resolve_neg()


def _take_numpy(array: ndarray, name: str) -> ndarray:
    if array.dtype.kind not in "fbiuc":
        raise TypeError(f"{name} must be numbers, but got a NumPy array of {array.dtype}")
    if type(array) is not ndarray and isinstance(array, np.ma.MaskedArray):
        way_out = "maps.filled(0)" if name == "maps" else f"np.ma.filled({name}, False)"
        more = ", and the mask's inverse as valid= to boxes" if name == "maps" else ""
        raise TypeError(f"{name} must be a plain array, but got a masked one; give {way_out}{more}")
    if not (array.dtype.isnative and array.flags.aligned):
        array = array.astype(array.dtype.newbyteorder("="), order="C")
    return array


def holds_numbers(array: Tensor) -> bool:
    """Whether its numbers are in memory: torch may only follow what is done with it."""
    try:
        return not _is_traced() and (array.data_ptr() != 0 or array.numel() == 0)
    except RuntimeError:
        return False


def check_held(array: Array, name: str) -> None:
    """Refuses a tensor that torch transforms or traces: the native core reads numbers."""
    if isinstance(array, Tensor) and not holds_numbers(array):
        raise TypeError(
            f"{name} must hold numbers in memory, but has none, since torch only follows what is "
            "done (torch.func.vmap and grad, torch.jit.trace, torch.export, FakeTensorMode); "
            "call it outside of them: one call takes a batch, and results carry no gradient"
        )


def take_maps(
    maps: Any, nan: str, *, masks: bool = False, heads: bool = False
) -> tuple[Array, Shape, bool]:
    """Maps, their shape, and whether those are refused that are not finite.

    Maps are floating, with `masks` also bool; `heads` is one axis more.
    """
    shape = _core.plain_shape(maps, 2 + heads)
    if shape is None or (isinstance(maps, Tensor) and (maps.is_neg() or _is_traced())):
        maps, shape = _take_others(maps, masks, heads)
    try:
        return maps, shape, NAN[nan]
    except TypeError:
        raise unhashable(nan=nan) from None


def _take_others(maps: Any, masks: bool, heads: bool) -> tuple[Array, Shape]:
    """Maps that are refused, or that the native core for the CPU cannot read as they are."""
    maps = take(maps, "maps")
    check_held(maps, "maps")
    shape = tuple(maps.shape)
    if maps.dtype not in DTYPES and not (masks and maps.dtype in MASKS):
        kinds = [*dict.fromkeys(DTYPES.values()), *(["bool"] if masks else [])]
        numpy = isinstance(maps, ndarray)
        real = ".real" if (maps.dtype.kind == "c" if numpy else maps.is_complex()) else ""
        convert = "astype(np.float32)" if numpy else "float()"
        raise TypeError(
            f"maps must be {', '.join(kinds[:-1])} or {kinds[-1]}, but got "
            f"{dtype_name(maps.dtype)}; convert with maps{real}.{convert}"
        )
    if len(shape) < 2 + heads:
        need = "(..., k, grid_h, grid_w)" if heads else "(..., grid_h, grid_w)"
        raise ValueError(f"maps must be {need}, but got shape {shape}; reshape with layout.grid")
    if not (0 < shape[-2] <= MAX_GRID and 0 < shape[-1] <= MAX_GRID):
        raise ValueError(
            f"maps must have a grid of 1 to {MAX_GRID} cells a side, but got shape {shape}; "
            + ("resize or crop them" if min(shape[-2:]) else "leave out maps without cells")
        )
    if heads and shape[-3] == 0:
        raise ValueError(
            f"maps must hold at least one head, but got shape {shape}; the axis before the grid is "
            "that of the heads"
        )
    return maps, shape


def take_valid(valid: Any, maps: Array, shape: Shape) -> Tensor:
    """Where cells of combined maps of this shape are valid, on the device of maps."""
    valid = take(valid, "valid")
    if valid.dtype not in MASKS:
        raise TypeError(f"valid must be bool, but got {dtype_name(valid.dtype)}; give valid != 0")
    if tuple(valid.shape) not in (shape, shape[-2:]):
        raise ValueError(
            f"valid must be {shape[-2:]} or {shape} for maps of shape {tuple(maps.shape)}, "
            f"but got shape {tuple(valid.shape)}"
        )
    check_held(valid, "valid")
    return tensor(valid).to("cpu" if isinstance(maps, ndarray) else maps.device)


def check_out(out: Any, maps: Array, shape: Shape, dtype: str) -> None:
    """Refuses an `out` that cannot be the result for these maps."""
    if out is None:
        return
    kind = ndarray if isinstance(maps, ndarray) else Tensor
    if not isinstance(out, kind):
        raise TypeError(
            f"out must be of the kind of maps, {kind.__module__}.{kind.__name__}, but got "
            f"{type(out).__module__}.{type(out).__name__}"
        )
    if dtype_name(out.dtype) != dtype:
        raise TypeError(f"out must be {dtype}, but got {dtype_name(out.dtype)}")
    if tuple(out.shape) != shape:
        raise ValueError(f"out must have shape {shape}, but got shape {tuple(out.shape)}")
    if isinstance(out, ndarray):
        whole = out.flags.c_contiguous and out.flags.aligned
        overlap = np.may_share_memory(out, maps)
        if not out.flags.writeable:
            raise ValueError("out must be writable, but got a read-only array")
    else:
        whole = out.layout is strided and out.is_contiguous() and not out.is_neg()
        if out.device != maps.device:
            raise ValueError(f"out must be on the device of maps, {maps.device}: {out.device}")
        if out.requires_grad:
            raise ValueError("out must not require a gradient; give out.detach()")
        overlap = whole and _overlap(out, maps)
    if not whole:
        raise ValueError("out must be contiguous; give a new array and copy from it")
    if overlap:
        raise ValueError(
            "out must lie apart from maps in memory; give a new array and copy from it"
        )


def _overlap(a: Tensor, b: Tensor) -> bool:
    if a.numel() == 0 or b.numel() == 0:
        return False
    (a_first, a_end), (b_first, b_end) = map(_span, (a, b))
    return a_first < b_end and b_first < a_end


def _span(array: Tensor) -> tuple[int, int]:
    last = sum((n - 1) * stride for n, stride in zip(array.shape, array.stride(), strict=True))
    return array.data_ptr(), array.data_ptr() + (last + 1) * array.element_size()


def source(array: Array, shape: Shape) -> Array:
    """An array of this shape as the native core reads it: one map or one batch."""
    return array if len(shape) < 4 else _one_batch(array, shape)


def _one_batch(array: Array, shape: Shape) -> Array:
    shape = (math.prod(shape[:-2]), *shape[-2:])
    if isinstance(array, ndarray):
        return array.reshape(shape)
    try:
        return array.view(shape)
    except RuntimeError:  # the axes cannot be walked as one
        return _through_numpy(array.detach(), np.ascontiguousarray).view(shape)


def _through_numpy(array: Tensor, copy: Any) -> Tensor:
    """A copy of a tensor on the CPU."""
    if array.dtype == torch.bfloat16:  # which NumPy has not
        return from_numpy(copy(array.view(torch.int16).numpy())).view(torch.bfloat16)
    return from_numpy(copy(array.numpy()))


def room(shape: Shape, dtype: Any, out: Any, maps: Array, heads: int, strict: bool) -> Any:
    """The NumPy array that the native core writes: `out`, unless the maps may yet be refused."""
    if out is None or (strict and not _surely_finite(maps, heads)):
        return np.empty(shape, dtype)
    return out if isinstance(out, ndarray) else out.numpy()


def _surely_finite(maps: Array, heads: int) -> bool:
    """Whether the maps and their sums over heads are finite, at a glance; some yes are missed."""
    if maps.dtype in MASKS:
        return True
    return heads * _core.largest(source(maps, tuple(maps.shape))) < _SURELY


_SURELY = float(np.finfo(np.float32).max) / 2


def give(result: Array, maps: Array, out: Any = None) -> Any:
    """The result as the caller's kind of array, or in `out`."""
    if out is None:
        if isinstance(result, ndarray):
            return from_numpy(result) if isinstance(maps, Tensor) else result
        return result if isinstance(maps, Tensor) else result.numpy()
    if isinstance(result, ndarray):
        target = out if isinstance(out, ndarray) else out.numpy()
        if target.ctypes.data != result.ctypes.data:
            np.copyto(target, result)
    else:
        tensor(out).copy_(result)
    return out


def give_stats(sums: Any, entropies: Any, maps: Array) -> HeadStats:
    """Both numbers of each map, as the caller's kind of array."""
    if isinstance(sums, ndarray):
        if isinstance(maps, Tensor):
            return HeadStats(from_numpy(sums), from_numpy(entropies))
    elif not isinstance(maps, Tensor):
        return HeadStats(sums.numpy(), entropies.numpy())
    return HeadStats(sums, entropies)


def tensor(array: Array) -> Tensor:
    """A tensor over the same memory where that can be, without gradient."""
    if isinstance(array, Tensor):
        return array.detach()
    odd = any(stride < 0 or stride % array.itemsize for stride in array.strides)
    return from_numpy(array.copy() if odd or not array.flags.writeable else array)


def dtype_name(dtype: Any) -> str:
    """A dtype as it is written in messages."""
    return str(dtype).removeprefix("torch.")


def refuse_maps(maps: Array) -> None:
    """Refuses maps whose sum in float64 is not finite."""
    if maps.dtype in MASKS:
        return
    if isinstance(maps, ndarray) or maps.is_cpu:
        sums = np.empty(maps.shape[:-2], np.float32)
        _core.head_stats(source(maps, tuple(maps.shape)), *ANY, sums, None)
        refuse(sums)
    else:
        refuse(maps.detach().sum((-2, -1), dtype=torch.float64), infinite=True)


def refuse(numbers: Array, *, infinite: bool = False) -> None:
    """Refuses maps of which a number is NaN, or is infinite where that is refused too."""
    if isinstance(numbers, Tensor):
        numbers = numbers.cpu().numpy()
    bad = ~np.isfinite(numbers) if infinite else np.isnan(numbers)
    if bad.any():
        raise ValueError(
            "maps must be finite and their sums fit the result, but "
            f"{np.count_nonzero(bad)} of {bad.size} are not, the first at "
            f'{np.flatnonzero(bad)[0]}; pass nan="propagate" to have NaN there'
        )
