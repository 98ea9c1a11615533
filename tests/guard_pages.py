"""Every operation of the native core on maps, masks and results that lie against forbidden pages.

    | forbidden |#### piece ....| forbidden |        begins right behind a forbidden page
    | forbidden |.... piece ####| forbidden |        ends right before one

A read or write of a single byte outside ends this process; test_native_safety.py starts it. The
results must be the bits that the portable kernels give in ordinary memory. The last line on stderr
is the call that was made last.

    python tests/guard_pages.py [SECONDS]
"""

import ctypes
import itertools
import mmap
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from fastground import _core, reference

PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

GRIDS = [
    (1, 1), (1, 2), (2, 1), (1, 24), (24, 1), (3, 5), (7, 7), (14, 14), (16, 16), (13, 17),
    (24, 24), (27, 27), (31, 32), (32, 31), (33, 33), (36, 28), (2, 63), (9, 64), (5, 65), (63, 64),
    (64, 64), (65, 3), (3, 127), (2, 128), (3, 130), (1, 255), (2, 256), (256, 1),
]  # fmt: skip
COUNTS = [1, 2, 3, 15, 16, 17, 33]
WIDTHS = {"bool": 1, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
LAYOUTS = ["contiguous", "apart", "backwards", "columns first", "one for all"]
CODES = _core.codes
_core.use_tensors(torch.Tensor)


class Arena:
    """Memory between two forbidden pages, of which pieces are given at either end."""

    def __init__(self, size):
        pages = -(-size // PAGE)
        self.map = mmap.mmap(-1, (pages + 2) * PAGE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.start, self.stop = base + PAGE, base + (pages + 1) * PAGE
        for page in (base, self.stop):
            if libc.mprotect(page, PAGE, 0):
                raise OSError(ctypes.get_errno(), "mprotect")

    def piece(self, size, at_end):
        """A NumPy array over `size` bytes."""
        address = self.stop - size if at_end else self.start
        return np.frombuffer((ctypes.c_ubyte * size).from_address(address), np.uint8)


ARENAS = [Arena(33 * 256 * 256) for _ in range(7)]


def strides_of(layout, dtype, count, h, w, rng):
    """Strides in elements, of maps, rows and columns; torch, which has bfloat16, has none < 0."""
    if layout == "apart":
        column = int(rng.integers(1, 3))
        row = w * column + int(rng.integers(4))
        return h * row + int(rng.integers(3)), row, column
    if layout == "backwards" and dtype != "bfloat16":
        return tuple(np.array([h * w, w, 1]) * rng.choice([1, -1], 3))
    if layout == "columns first":
        return 1, count, h * count
    return (0 if layout == "one for all" else h * w), w, 1


class Guarded:
    """A batch of maps in a guarded piece, and the same contiguous in ordinary memory."""

    def __init__(self, arena, values, dtype, layout, at_end, rng):
        strides = np.array(strides_of(layout, dtype, *values.shape, rng), np.int64)
        reach = (np.array(values.shape) - 1) * strides
        low, high = reach.clip(max=0).sum(), reach.clip(min=0).sum()
        width = WIDTHS[dtype]
        raw = arena.piece(int(high - low + 1) * width, at_end)
        raw[:] = 0xFF  # NaN in every dtype, true as bool
        kind = values.dtype
        self.view = np.ndarray(values.shape, kind, raw, -low * width, tuple(strides * width))
        self.view[...] = values[:1] if layout == "one for all" else values
        self.plain = np.ascontiguousarray(self.view)
        if dtype == "bfloat16":
            numbers = torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16)
            self.view = numbers.as_strided(values.shape, tuple(map(int, strides)), int(-low))
            self.plain = torch.from_numpy(self.plain.view(np.int16)).view(torch.bfloat16)


def values_of(dtype, shape, rng):
    """Cells as NumPy holds them: bfloat16 as its bits."""
    if dtype == "bool":
        return rng.random(shape) < 0.6
    cells = rng.random(shape) if rng.integers(2) else rng.integers(0, 3, shape) / 2
    if dtype == "bfloat16":
        return (cells.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return cells.astype(dtype)


def chosen(name, rng):
    """The number of one of the choices."""
    return int(rng.choice(list(CODES[name].values())))


def calls(maps, valid, dtype, rng):
    """name, dtype and size of each result, and how to call it, for every operation."""
    count, h, w = maps.plain.shape
    cut = chosen("cut", rng)
    yield "label", [("i4", count * h * w)], lambda m, v, out: _core.label(m, cut, *out)
    if dtype == "bool":
        return
    weight = chosen("weight", rng)
    yield (
        "head_stats",
        [("f4", count)] * 2,
        lambda m, v, out: _core.head_stats(m, weight, cut, 0, *out),
    )
    yield "binarize", [("?", count * h * w)], lambda m, v, out: _core.binarize(m, cut, *out)
    yield "largest", [("f8", 1)], lambda m, v, out: out[0].fill(_core.largest(m))
    heads = count // valid.plain.shape[0]
    taps = np.array(reference.gaussian(int(rng.choice([1, 3, 7, 9, 15])), 1.0))
    border = chosen("border", rng)
    cells = count // heads * h * w
    yield "combine", [("f4", cells)], lambda m, v, out: _core.combine(m, heads, taps, border, *out)
    keep = chosen("region", rng)
    yield (
        "boxes",
        [("f4", 7 * count // heads)],
        lambda m, v, out: _core.boxes(m, heads, taps, border, v, keep, *out),
    )


def typed(arrays, results):
    """The bytes as arrays of what the native core writes."""
    return [array.view(kind) for array, (kind, _) in zip(arrays, results, strict=True)]


def guarded_tensor(arena, values, together, at_end, rng):
    """The numbers in a guarded piece, the axes in any order and with gaps; the last innermost."""
    axes = [3, *rng.permutation(3)] if together else rng.permutation(4)
    strides, step = [0] * 4, 1
    for axis in map(int, axes):
        strides[axis] = step
        step = step * values.shape[axis] + int(rng.integers(3))
    reach = sum((n - 1) * stride for n, stride in zip(values.shape, strides, strict=True))
    raw = arena.piece((reach + 1) * values.itemsize, at_end)
    raw[:] = 0xFF
    tensor = torch.from_numpy(raw.view(values.dtype)).as_strided(values.shape, strides)
    return tensor.copy_(torch.from_numpy(values))


def attend(query, key, value, mask, words, out, threads):
    _core.mask_words(mask, words)
    _core.attention(query, key, value, words, 0.5, threads, out)


def check_attention(number, names):
    """Attention once, drawn from this number; the same bits as of the same set elsewhere."""
    rng = np.random.default_rng([1, number])
    batch, key_heads, groups = (int(n) for n in rng.integers(1, 4, 3))
    queries, keys = (int(n) for n in rng.choice([1, 2, 31, 32, 33, 63, 64, 65, 100], 2))
    dim, value_dim = (int(n) for n in rng.choice([1, 2, 3, 7, 8, 15, 16, 17, 33, 64], 2))
    arrays = [
        rng.standard_normal(shape).astype(np.float32)
        for shape in (
            (batch, key_heads * groups, queries, dim),
            (batch, key_heads, keys, dim),
            (batch, key_heads, keys, value_dim),
        )
    ]
    arrays.append(rng.random((batch, 1, queries, keys)) < rng.choice([0.02, 0.5, 1]))
    sizes = 4 * batch * -(-queries // 32) * keys, 4 * arrays[0].size // dim * value_dim
    at_end, threads = bool(rng.integers(4)), int(rng.integers(1, 3))
    views = [
        guarded_tensor(arena, array, array.dtype != bool, at_end, rng)
        for arena, array in zip(ARENAS, arrays, strict=False)
    ]
    for name in names:
        called = f"{number}: attention by {name}, {batch} x {key_heads} x {groups} heads, "
        called += f"{queries} x {keys} tokens of {dim} and {value_dim}"
        print(called.ljust(99), end="\r", file=sys.stderr, flush=True)
        _core.use(name)
        outs = [arena.piece(n, at_end) for arena, n in zip(ARENAS[4:], sizes, strict=False)]
        expected = [np.full(size, 0xFF, np.uint8) for size in sizes]
        attend(*map(torch.from_numpy, arrays), *(e.view("u4") for e in expected), 1)
        for array in outs:
            array[:] = 0xFF
        with ThreadPoolExecutor(1) as thread:
            thread.submit(attend, *views, *(array.view("u4") for array in outs), threads).result()
        for found, right in zip(outs, expected, strict=True):
            assert (found == right).all(), called


def check(number, names):
    """All operations on maps once, drawn from this number."""
    rng = np.random.default_rng(number)
    h, w = GRIDS[number % len(GRIDS)]
    dtype = list(WIDTHS)[number % len(WIDTHS)]
    heads = int(rng.integers(1, 4))
    count = int(rng.choice(COUNTS)) * heads
    if count * h * w > 50_000:
        count = heads
    at_end = bool(rng.integers(4))
    layout, valid_layout = rng.choice(LAYOUTS, 2)
    maps = Guarded(ARENAS[0], values_of(dtype, (count, h, w), rng), dtype, layout, at_end, rng)
    shape = (count // heads, h, w)
    valid = Guarded(ARENAS[1], values_of("bool", shape, rng), "bool", valid_layout, at_end, rng)
    for what, results, call in calls(maps, valid, dtype, rng):
        sizes = [np.dtype(kind).itemsize * size for kind, size in results]
        expected = [np.full(size, 0xFF, np.uint8) for size in sizes]
        _core.use("portable")
        call(maps.plain, valid.plain, typed(expected, results))
        for name in names:
            outs = [arena.piece(n, at_end) for arena, n in zip(ARENAS[2:], sizes, strict=False)]
            for array in outs:
                array[:] = 0xFF
            words = f"{number}: {what} by {name}, {count} x {h} x {w} {dtype}, {layout}"
            print(words.ljust(99), end="\r", file=sys.stderr, flush=True)
            _core.use(name)
            with ThreadPoolExecutor(1) as thread:  # with working memory of its own
                thread.submit(call, maps.view, valid.view, typed(outs, results)).result()
            for found, right in zip(outs, expected, strict=True):
                assert (found == right).all(), words


if __name__ == "__main__":
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5
    names = _core.instruction_sets()
    least = len(GRIDS) * len(WIDTHS)  # every grid with every dtype
    begin = time.monotonic()
    for number in itertools.count():
        if number >= least and time.monotonic() - begin > seconds:
            break
        check(number, names)
        check_attention(number, names)
    print(f"{number} batches, {' and '.join(names)}, none left its memory")
