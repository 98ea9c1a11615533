"""Random calls of the native core, held to fastground.reference within the documented tolerance,
attention to float64.

    python tests/fuzz_native.py [--seconds 120] [--seed SEED [--call NUMBER]]

Every call draws all it needs from (seed, number): operation, instruction set, grid, dtype, strides
(0 and negative ones too), values (any bits, NaN, infinity, sub-normal, huge, few levels), choices,
heads, taps and valid cells, or tokens and who sees whom. Arrays end where their memory ends, so
that under a sanitizer (.ci/fuzz) no byte beyond is touched unnoticed. The calls run in a child
process; if it ends at any call, the parent prints how to repeat that one.

Where a float64 sum depends on the order of its additions, cells within its error of the cut may
fall on either side; what follows from the cut is then not compared.
"""

import argparse
import collections
import math
import mmap
import os
import struct
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import fastground as fg
import numpy as np
import torch
from fastground import _core, reference
from fastground.regions import Boxes

DTYPES = ["bool", "float16", "bfloat16", "float32", "float64"]
BITS = {"bool": np.uint8, "float16": np.uint16, "bfloat16": np.uint16,
        "float32": np.uint32, "float64": np.uint64}  # fmt: skip
SIGNED = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}
EDGES = [1, 2, 15, 16, 17, 24, 31, 32, 33, 63, 64, 65, 127, 128, 129, 130, 255, 256]
VALUES = ["bits", "uniform", "levels", "huge", "sub-normal", "signed", "spoilt", "constant"]
CODES = _core.codes
_core.use_tensors(torch.Tensor)


def chosen(name, rng):
    """One of the choices, by name and by number."""
    word = str(rng.choice(sorted(CODES[name])))
    return word, CODES[name][word]


def side(rng):
    return int(rng.choice(EDGES)) if rng.integers(3) == 0 else int(256 ** rng.random() + 0.5)


def values_of(kind, dtype, shape, rng):
    """Cells of this dtype, as a torch tensor."""
    if dtype == "bool":
        return torch.from_numpy(rng.random(shape) < rng.random())
    torch_dtype = getattr(torch, dtype)
    if kind == "bits":
        raw = rng.integers(0, 256, (*shape, BITS[dtype]().itemsize), np.uint8)
        return torch.from_numpy(raw.view(SIGNED[raw.shape[-1]])[..., 0].copy()).view(torch_dtype)
    cells = rng.random(shape)
    if kind == "levels":
        cells = rng.integers(0, rng.integers(2, 5), shape) / 4
    if kind == "signed":
        cells = rng.integers(-3, 3, shape) * 0.5 if rng.integers(2) else cells - 0.5
    if kind == "constant":
        cells = np.full(shape, rng.random())
    info = torch.finfo(torch_dtype)
    scale = {"huge": info.max / 2, "sub-normal": info.smallest_normal / 8}.get(kind, 1.0)
    if kind == "spoilt" and cells.size:
        cells.flat[rng.integers(cells.size)] = rng.choice([math.nan, math.inf, -math.inf])
    return torch.from_numpy(cells * scale).to(torch_dtype)


def lay_out(cells, dtype, rng, tensor=False, together=False):
    """A view of the cells laid out at random in memory of its own, and the cells as they then are.

    Strides may overlap (0), leave gaps, take the axes in another order or, in NumPy, run backwards;
    bfloat16 is torch's. With `together` the last axis is innermost.
    """
    shape, tensor = np.array(cells.shape), tensor or dtype == "bfloat16"
    last = len(shape) - 1
    axes = list(rng.permutation(last + 1)) if rng.integers(2) else [*range(last + 1)][::-1]
    if together:
        axes.sort(key=lambda axis: axis != last)
    strides, step = np.zeros(last + 1, np.int64), 1
    for axis in axes:
        strides[axis] = step
        step *= max(shape[axis], 1)
        step += int(rng.integers(4)) if rng.integers(4) == 0 else 0
    if rng.integers(4) == 0:
        strides[rng.integers(last if together else last + 1)] = 0
    if not tensor and rng.integers(3) == 0:
        strides *= rng.choice([1, -1], last + 1)
    reach = (shape - 1).clip(min=0) * strides
    offset = int(rng.integers(5)) if rng.integers(2) else 0
    low = -reach.clip(max=0).sum() + offset
    kind = BITS[dtype]
    memory = np.zeros(int(low + reach.clip(min=0).sum() + 1), kind)
    width = kind().itemsize
    view = np.ndarray(cells.shape, kind, memory, int(low) * width, tuple(strides * width))
    view[...] = cells.view(getattr(torch, SIGNED[width].__name__)).numpy().view(kind)
    plain = torch.from_numpy(np.array(view).view(SIGNED[width])).view(cells.dtype)
    if not tensor:
        return view.view(dtype), plain
    memory = torch.from_numpy(memory.view(SIGNED[width])).view(cells.dtype)
    return memory.as_strided(cells.shape, tuple(map(int, strides)), int(low)), plain


def out(dtype, *shape):
    """Memory for a result, with what no result is."""
    name = str(dtype).removeprefix("torch.")
    kind = np.uint8 if name == "bool" else np.dtype(name)
    return torch.from_numpy(np.full(shape, 77, kind)).view(dtype)


class Sums:
    """How far the float64 sums of maps (count, h, w) depend on the order of addition."""

    def __init__(self, cells, valid=None):
        cells = cells.double().numpy()
        keep = np.ones(cells.shape, bool) if valid is None else valid.numpy()
        cells = np.where(keep & np.isfinite(cells), cells, 0)
        self.most = np.abs(cells).sum((1, 2))
        fraction, exponent = np.frexp(cells)
        whole = np.abs(fraction * 2.0**53).astype(np.int64)
        lowest = np.where(
            cells == 0, 9999, exponent - 53 + np.log2((whole & -whole) + (whole == 0))
        )
        self.exact = np.log2(self.most + (self.most == 0)) - lowest.min((1, 2)) < 52
        self.safe = (self.most < 1e300) & ((self.most > 1e-290) | (self.most == 0))

    def clear(self, cells, valid=None):
        """Whether each map's cut is the same whatever the order."""
        cells, count = cells.double(), cells.shape[-1] * cells.shape[-2]
        mean = reference.mean(cells, valid)
        clear = np.ones(len(cells), bool)
        for level in (mean, mean + reference.EPS, 2 * mean + reference.EPS):
            gap = (cells - level).abs().amin((-2, -1)).numpy()
            clear &= gap > 4e-12 * self.most / count + 1e-18
        return self.safe & (self.exact | clear)


def hold(what, found, expected, slack=0.0):
    """Raises unless all are equal, both NaN, or within the slack."""
    found, expected = numbers(found), numbers(expected)
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    wrong = np.argwhere(~(same | (np.abs(found - expected) <= slack)))
    if len(wrong):
        at = tuple(map(int, wrong[0]))
        raise AssertionError(
            f"{what} is {found[at]!r} instead of {expected[at]!r} at {at} and {len(wrong) - 1} more"
        )


def numbers(array):
    return array.double().numpy() if isinstance(array, torch.Tensor) else array


def head_stats(view, maps, rng):
    (weight, *a), (cut, *b), (empty, *c) = (chosen(n, rng) for n in ("weight", "cut", "empty"))
    sums, entropies = out(torch.float32, len(maps)), out(torch.float32, len(maps))
    wanted = rng.integers(1, 4)
    outs = [sums.numpy() if wanted & 1 else None, entropies.numpy() if wanted & 2 else None]
    yield lambda: _core.head_stats(view, *a, *b, *c, *outs)
    order = Sums(maps)
    if wanted & 1:
        expected = numbers(reference.attention_sum(maps))
        slack = 2e-7 * np.abs(expected) + 1e-12 * order.most
        safe = order.safe
        hold("sum", sums[safe], expected[safe], slack[safe])
    if wanted & 2:
        clear = order.clear(maps)
        expected = numbers(reference.entropy(maps, weight=weight, cut=cut, empty=empty))
        slack = np.full(len(maps), 2e-6)
        if weight == "mass":  # the excess over the mean may cancel
            excess = (maps.double() - reference.mean(maps)).clamp(min=0).sum((-2, -1)).numpy()
            slack += np.nan_to_num(1e-11 * order.most / excess, nan=0)
        hold(f"entropy by {weight}", entropies[clear], expected[clear], slack[clear])


def binarize(view, maps, rng):
    cut, code = chosen("cut", rng)
    mask = out(torch.bool, *maps.shape)
    yield lambda: _core.binarize(view, code, mask.numpy())
    clear = torch.from_numpy(Sums(maps).clear(maps))
    hold("mask", mask[clear], reference.binarize(maps, cut=cut)[clear])


def label(view, maps, rng):
    cut, code = chosen("cut", rng)
    labels = out(torch.int32, *maps.shape)
    yield lambda: _core.label(view, code, labels.numpy())
    clear = torch.ones(len(maps), dtype=torch.bool)
    if maps.dtype != torch.bool:
        clear = torch.from_numpy(Sums(maps).clear(maps))
    hold("label", labels[clear], reference.label(maps, cut=cut)[clear])


def taps_and_border(rng):
    size = int(rng.choice([1, 3, 5, 7, 7, 9, 15, 2 * rng.integers(300) + 1]))
    sigma = float(rng.choice([0.3, 1.0, 1.0, 2.5, 60]))
    return reference.gaussian(size, sigma), *chosen("border", rng)


def combined_by_reference(maps, heads, taps, border):
    """In float64: the combined maps, and the same of absolute values."""
    both = (
        reference._smooth(cells, taps, border) for cells in (maps.double(), maps.double().abs())
    )
    return [smoothed.unflatten(0, (-1, heads)).sum(1) for smoothed in both]


def combine(view, maps, rng, heads):
    taps, border, code = taps_and_border(rng)
    combined = out(torch.float32, len(maps) // heads, *maps.shape[1:])
    yield lambda: _core.combine(view, heads, np.array(taps), code, combined.numpy())
    expected, most = combined_by_reference(maps, heads, taps, border)
    finite = maps.double().isfinite().unflatten(0, (-1, heads)).all(1).all(-1).all(-1)
    safe = ~finite | (most < 3e38).all(-1).all(-1)  # beyond, float32 has no number
    bound = 4e-7 + 6e-8 * (heads - 1)  # heads are added one after the other in float32
    hold("combined", combined[safe], expected[safe], bound * numbers(most[safe]) + 2.0**-150)


def boxes(view, maps, rng, heads):
    (taps, _, code), (keep, region) = taps_and_border(rng), chosen("region", rng)
    shape = (len(maps) // heads, *maps.shape[1:])
    valid_view, valid = lay_out(values_of("uniform", "bool", shape, rng), "bool", rng)
    if rng.integers(2):
        valid_view = None
        valid = torch.ones(shape, dtype=torch.bool)
    combined = out(torch.float32, *shape)
    rows = out(torch.float32, shape[0], 7)

    def call():
        _core.boxes(view, heads, np.array(taps), code, valid_view, region, rows.numpy())
        _core.combine(view, heads, np.array(taps), code, combined.numpy())

    yield call
    order = Sums(combined, valid)
    clear = torch.from_numpy(order.exact & order.safe) & valid.any(-1).any(-1)
    expected = reference.regions(combined[clear], region=keep, valid=valid[clear])
    made = Boxes.of(rows[clear])
    for part in ("found", "xyxy", "area"):
        hold(part, getattr(made, part), getattr(expected, part))
    for part in ("mass", "score"):
        right = getattr(expected, part)
        hold(part, getattr(made, part), right, 1e-5 * np.abs(numbers(right)))


def attention(query, key, value, mask, views, rng):
    batch, heads, queries, dim = query.shape
    keys = key.shape[2]
    scale = float(np.float32(rng.choice([dim**-0.5, 1.0, -0.1])))
    threads = int(rng.integers(1, 4))
    seen = np.full((batch, -(-queries // 32), keys), 77, np.uint32)
    found = out(torch.float32, batch, queries, heads, value.shape[-1])

    def call():
        _core.mask_words(views[3], seen)
        _core.attention(*views[:3], seen, scale, threads, found.numpy())

    yield call
    bits = seen[:, :, None] >> np.arange(32, dtype=np.uint32)[:, None] & 1
    bits = torch.from_numpy(bits.astype(bool)).reshape(batch, 1, -1, keys)
    hold("words", bits[:, :, :queries], mask)
    groups = heads // key.shape[1]
    query, key, value = (
        query.double(),
        *(array.double().repeat_interleave(groups, 1) for array in (key, value)),
    )
    found = found.transpose(1, 2)
    spoilt = (mask & (~value.isfinite()).any(-1)[:, :, None]).any(-1)
    spoilt |= query.isnan().any(-1) | (mask & key.isnan().any(-1)[:, :, None]).any(-1)
    spoilt &= mask.any(-1)
    assert not found[spoilt].isfinite().all(-1).any(), "what is not finite is lost"
    size = (abs(scale) * query.abs() @ key.abs().mT).masked_fill(~mask, 0).amax(-1, keepdim=True)
    weights = (scale * query @ key.mT).masked_fill(~mask, -math.inf).softmax(-1)
    weights = weights.nan_to_num(0)  # of rows that see nothing
    most = mask.double() @ value.abs()
    slack = 2e-6 + 1.2e-7 * (keys + (dim + 4) * size)
    slack = slack * (weights @ value.abs()) + 2.0**-125 * most + 2e-45 * keys
    # Scores that are rounded by less than a tenth, and numbers within float32.
    clear = ((dim + 4) * size < 8e5) & value.isfinite().all(-1).all(-1)[..., None, None]
    clear = clear & (most < 3e38) & (abs(scale) * query.abs().amax(-1, keepdim=True) < 2e38)
    expected = weights @ value
    hold("attention", found[clear], expected[clear], slack[clear].numpy())


def drawn_attention(rng):
    """What it is, its steps, and how many scores it has."""
    batch, key_heads, groups = (int(n) for n in rng.integers(1, 4, 3))
    queries, keys = side(rng), side(rng)
    dim, value_dim = (int(rng.choice([1, 2, 3, 8, 15, 16, 17, 33, 64, 80])) for _ in range(2))
    kinds = [str(rng.choice(VALUES if rng.integers(2) else ["uniform", "signed"])) for _ in "qkv"]
    shapes = (
        (batch, key_heads * groups, queries, dim),
        (batch, key_heads, keys, dim),
        (batch, key_heads, keys, value_dim),
    )
    laid = [
        lay_out(values_of(kind, "float32", shape, rng), "float32", rng, True, True)
        for kind, shape in zip(kinds, shapes, strict=True)
    ]
    cells = values_of("", "bool", (batch, 1, queries, keys), rng)
    if rng.integers(2):
        cells = cells | True
    if rng.integers(2):
        cells = cells.tril(keys - queries)
    laid.append(lay_out(cells, "bool", rng, tensor=True))
    views, plain = zip(*laid, strict=True)
    plain = [*plain[:3], plain[3].bool()]
    text = f"{batch} x {key_heads} x {groups} heads, {queries} x {keys} tokens, "
    text += f"{dim} and {value_dim} numbers, {', '.join(kinds)}"
    return text, attention(*plain, views, rng), batch * key_heads * groups * queries * keys


OPERATIONS = {f.__name__: f for f in (head_stats, binarize, label, combine, boxes)}
COSTLY = {"head_stats": 1, "binarize": 0.1, "label": 1, "combine": 1, "boxes": 20, "attention": 0.1}


def in_a_new_thread(call):
    """There the core's working memory is made anew, not a byte larger than it asks for."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(call).result()  # raises what the call raised


def drawn_maps(what, rng):
    """What it is, its steps, and how many cells it has."""
    h, w = side(rng), side(rng)
    dtype = str(rng.choice(DTYPES if what == "label" else DTYPES[1:]))
    kind = str(rng.choice(VALUES))
    most = 17 if rng.integers(4) == 0 else 5
    heads = int(rng.integers(1, most)) if what in ("combine", "boxes") else 1
    cells = rng.choice([3_000, 20_000, 200_000], p=[0.89, 0.1, 0.01])  # few calls are for threads
    count = heads * int(rng.integers(0, max(2, min(cells // 100, cells // (h * w * heads)))))
    view, maps = lay_out(values_of(kind, dtype, (count, h, w), rng), dtype, rng)
    keywords = {"heads": heads} if what in ("combine", "boxes") else {}
    text = f"{count} x {h} x {w} {dtype} {kind}, {heads} heads"
    return text, OPERATIONS[what](view, maps, rng, **keywords), maps.numel()


def play(seed, number, names, words):
    """One call, and its comparison; words takes what it is. Returns the operation's name."""
    rng = np.random.default_rng([seed, number])
    what = str(rng.choice(list(COSTLY)))
    name = str(rng.choice(names))
    _core.use(name)
    fg.set_num_threads(int(rng.integers(1, 4)))
    text, steps, numbers = drawn_attention(rng) if what == "attention" else drawn_maps(what, rng)
    words(f"{what} by {name}, {text}")
    in_a_new_thread(next(steps))
    if numbers and rng.random() < 3000 / (1 + COSTLY[what] * numbers):
        collections.deque(steps, maxlen=0)  # the comparison
        return f"{what}, compared"
    return what


def run(seed, numbers, seconds, last):
    """The child: plays until the time is up. Returns the exit status."""
    torch.set_num_threads(1)
    np.seterr(all="ignore")
    names, made, begin = _core.instruction_sets(), collections.Counter(), time.monotonic()

    def words(text):
        text = text.encode()
        last[:] = struct.pack("qq240s", number, len(text), text)

    for number in numbers:
        if time.monotonic() - begin > seconds:
            break
        try:
            made[play(seed, number, names, words)] += 1
        except Exception:
            traceback.print_exc()
            return 1
    for what, count in sorted(made.items()):
        print(f"{count:>9,} {what}")
    total = made.total()
    print(f"{total:,} calls by {' and '.join(names)}, none differs (seed {seed})", flush=True)
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=None, help="drawn unless given")
    parser.add_argument("--call", type=int, help="only this one")
    given = parser.parse_args()
    seed = int.from_bytes(os.urandom(4), "little") if given.seed is None else given.seed
    numbers = range(2**62) if given.call is None else [given.call]
    last = mmap.mmap(-1, struct.calcsize("qq240s"))
    print(f"seed {seed}", flush=True)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = run(seed, numbers, given.seconds, last)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if status == 0:
        return 0
    number, length, text = struct.unpack("qq240s", last[:])
    print(f"failed at call {number}: {text[:length].decode()}", file=sys.stderr)
    print(f"repeat with: --seed {seed} --call {number}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
