"""softmax(scale * q K^T) of a few asking tokens over all cached keys, for the chosen heads only.

The values are never read: only the weights are wanted. So the work is to read K once.

    K of one key head            rows of the tile: every asking token x every chosen head that
    (T, D)                       shares this key head, BLOCK_M of them at a time
    +--------+                      q (M, D)
    | tile 0 |                   ->  S = q K_tile^T  (M, BLOCK_T)  -> logits, and per row
    +--------+  program (.., 0)                                      m = max S, l = sum exp(S - m)
    | tile 1 |                   ->  ...
    +--------+
    | tile 2 |  program (.., 1)

`_logits` reads each tile of K once, for all asking tokens (all expressions of a packed image) and
all heads of a group (grouped-query attention). A key head of any layer has its program; where there
are too few of them to fill the GPU, its tiles are shared among several (`tiles_each`). Tiles know
only their own maximum. `_weights` joins them, M = max m and L = sum l exp(m - M), and turns logits
into exp(S - M) / L: all, in place, or those of some tokens with their sum, averaged over the rows
of a phrase. Logits are small (rows x heads x keys) beside K, which is told to leave the cache
first, so that they are still there. Accumulation is float32; float16 and bfloat16 products are
exact in it. A row that sees no key gets zeros.

    layers         keys of layer l begin layers_ptr[l, 0] elements after the first's: addresses, as
                   differences; layers_ptr[l, 1:] are its strides, where they are not the first's
    paged cache    key t of sequence b is in block_table[b, t // PAGE], at t % PAGE; elsewhere T
                   counts from the sequence's begin

Source: the split of the keys with a rescaling afterwards is Flash-Decoding's (Dao et al., 2023),
here without values. Letters: B batch, R asking rows, H heads, G heads a key head, K key heads with
chosen heads, C chosen heads, T keys, D head_dim, S tiles of keys, P phrases or rows, N tokens told.
"""

import math
from array import array
from functools import lru_cache
from itertools import chain

import torch
import triton
import triton.language as tl

NO_MASK, BOOL_MASK, ADDITIVE_MASK = 0, 1, 2

ONE_LAYER, ALIKE, STRIDED, TURNED = 0, 1, 2, 3
"""Keys of one layer; of layers with the same strides; with others, but in head_dim; there, too."""

PROGRAMS = 528
"""So many are wanted at least: four for each of an H200's multiprocessors."""

SIZES = [
    "R", "T", "H", "K", "C", "key_heads", "tiles_each", "num_blocks", "visible_stride_b",
    "visible_stride_r", "blocks_stride_b",
]  # fmt: skip
SIZES_OF_WEIGHTS = [
    "R", "P", "C", "T", "S", "N", "tokens_first", "tokens_step", "tokens_stride_b",
    "phrases_stride_b",
]  # fmt: skip
"""What is compiled once for all values: prompts differ in length, not in kind."""


@triton.jit
def _load_queries(
    query_ptr, heads_ptr, slots_ptr, b, k, m, R, H,
    query_stride_l, query_stride_b, query_stride_r, query_stride_h,
    G: tl.constexpr, D: tl.constexpr, UPCAST: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # Row m of the tile is asking token m // G with head m % G of the key head; -1 fills the group.
    r = (m // G).to(tl.int64)
    head = tl.load(heads_ptr + k * G + m % G)
    slot = tl.load(slots_ptr + k * G + m % G)
    asks = (r < R) & (head >= 0)
    d = tl.arange(0, BLOCK_D)
    at = (head // H).to(tl.int64) * query_stride_l + b * query_stride_b
    at += r * query_stride_r + (head % H).to(tl.int64) * query_stride_h
    q = tl.load(query_ptr + at[:, None] + d[None, :], asks[:, None] & (d < D)[None, :], other=0.0)
    return q.to(tl.float32) if UPCAST else q, r, slot, asks


@triton.jit
def _layer(layer_ptr, b, h, t, d, LAYERS: tl.constexpr, ALIGNED: tl.constexpr):
    # Where keys of the layer begin, and their strides; given are those of the first layer.
    begin = tl.zeros((), tl.int64)
    if LAYERS >= 1:
        begin = _read(layer_ptr, ALIGNED)
    if LAYERS >= 2:
        b = _read(layer_ptr + 1, ALIGNED)
        h = _read(layer_ptr + 2, ALIGNED)
        t = _read(layer_ptr + 3, ALIGNED)
    if LAYERS == 3:
        d = tl.load(layer_ptr + 4)
    return begin, b, h, t, d


@triton.jit
def _read(number_ptr, ALIGNED: tl.constexpr):
    number = tl.load(number_ptr)
    return tl.multiple_of(number, 16) if ALIGNED else number


@triton.jit
def _tanh(x):
    # Of small x by its series: 1 - e would have lost their digits.
    e = tl.exp(-2 * tl.abs(x))
    far = (1 - e) / (1 + e)
    y = x * x
    near = x * (1 + y * (-1 / 3 + y * (2 / 15 + y * (-17 / 315 + y * (62 / 2835)))))
    return tl.where(tl.abs(x) < 0.25, near, tl.where(x < 0, -far, far))


@triton.jit(do_not_specialize=SIZES)
def _logits(
    query_ptr, key_ptr, visible_ptr, layers_ptr, blocks_ptr, heads_ptr, slots_ptr, key_heads_ptr,
    logits_ptr, tiles_ptr, scale, softcap, R, T, H, K, C, key_heads, tiles_each, num_blocks,
    query_stride_l, query_stride_b, query_stride_r, query_stride_h,
    key_stride_b, key_stride_h, key_stride_t, key_stride_d,
    visible_stride_b, visible_stride_r, visible_stride_t, blocks_stride_b,
    G: tl.constexpr, D: tl.constexpr, MASK: tl.constexpr, SOFTCAP: tl.constexpr,
    UPCAST: tl.constexpr, LAYERS: tl.constexpr, ALIGNED: tl.constexpr, PAGE: tl.constexpr,
    MANY: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(0) // K).to(tl.int64)
    k = tl.program_id(0) % K
    S = tl.cdiv(T, BLOCK_T)
    first = tl.program_id(1) * tiles_each
    M = R * G if MANY else BLOCK_M
    d = tl.arange(0, BLOCK_D).to(tl.int64)

    key_head = tl.load(key_heads_ptr + k)
    begin, stride_b, stride_h, stride_t, stride_d = _layer(
        layers_ptr + key_head // key_heads * 5,
        key_stride_b, key_stride_h, key_stride_t, key_stride_d, LAYERS, ALIGNED,
    )  # fmt: skip
    begin += (key_head % key_heads).to(tl.int64) * stride_h
    if not MANY:
        m = tl.arange(0, BLOCK_M)
        q, r, slot, asks = _load_queries(
            query_ptr, heads_ptr, slots_ptr, b, k, m, R, H,
            query_stride_l, query_stride_b, query_stride_r, query_stride_h, G, D, UPCAST, BLOCK_D,
        )  # fmt: skip

    for tile in range(first, tl.minimum(first + tiles_each, S)):
        t = tile * BLOCK_T + tl.arange(0, BLOCK_T)
        there = t < T
        if PAGE > 0:
            block = tl.load(blocks_ptr + b * blocks_stride_b + t // PAGE, mask=there, other=-1)
            there = (block >= 0) & (block < num_blocks)
            at = block * stride_b + (t % PAGE).to(tl.int64) * stride_t
        else:
            at = b * stride_b + t.to(tl.int64) * stride_t
        keys = tl.load(
            key_ptr + begin + at[:, None] + (d * stride_d)[None, :],
            mask=there[:, None] & (d < D)[None, :],
            other=0.0,
            eviction_policy="evict_first",
        )
        if UPCAST:
            keys = keys.to(tl.float32)
        keys = tl.trans(keys)
        for m0 in range(0, M, BLOCK_M):  # once, if not MANY, and then folded away
            if MANY:
                m = m0 + tl.arange(0, BLOCK_M)
                q, r, slot, asks = _load_queries(
                    query_ptr, heads_ptr, slots_ptr, b, k, m, R, H,
                    query_stride_l, query_stride_b, query_stride_r, query_stride_h,
                    G, D, UPCAST, BLOCK_D,
                )  # fmt: skip
            s = tl.dot(q, keys, input_precision="ieee") * scale
            if SOFTCAP:
                s = softcap * _tanh(s / softcap)
            inside = asks[:, None] & (t < T)[None, :]
            if MASK != 0:
                visible = tl.load(
                    visible_ptr
                    + b * visible_stride_b
                    + (r * visible_stride_r)[:, None]
                    + (t.to(tl.int64) * visible_stride_t)[None, :],
                    mask=inside,
                    other=0,
                )
                if MASK == 1:
                    s = tl.where(visible != 0, s, float("-inf"))
                else:
                    s += visible.to(tl.float32)
            s = tl.where(there[None, :], s, float("-inf"))

            line = (b * R + r) * C + slot
            tl.store(logits_ptr + (line * T)[:, None] + t[None, :], s, mask=inside)
            top = tl.max(s, 1)
            total = tl.sum(tl.exp(s - tl.where(top == float("-inf"), 0.0, top)[:, None]), 1)
            tl.store(tiles_ptr + (line * S + tile) * 2, top, mask=asks)
            tl.store(tiles_ptr + (line * S + tile) * 2 + 1, total, mask=asks)


@triton.jit(do_not_specialize=SIZES_OF_WEIGHTS)
def _weights(
    out_ptr, sums_ptr, logits_ptr, tiles_ptr, tokens_ptr, phrases_ptr,
    R, P, C, T, S, N, tokens_first, tokens_step, tokens_stride_b, phrases_stride_b,
    LISTED: tl.constexpr, PHRASES: tl.constexpr, SUMS: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(0).to(tl.int64)
    c = line % C
    p = line // C % P
    b = line // C // P
    begin, end = p, p + 1
    if PHRASES:
        pair = phrases_ptr + b * phrases_stride_b + p * 2
        begin = tl.maximum(tl.load(pair), 0)
        end = tl.minimum(tl.load(pair + 1), R)
    s = tl.arange(0, BLOCK_S)
    lane_sums = tl.zeros((BLOCK_N,), tl.float32)
    for n0 in range(tl.program_id(1) * BLOCK_N, N, tl.num_programs(1) * BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        if LISTED:
            t = tl.load(tokens_ptr + b * tokens_stride_b + n, mask=n < N, other=-1)
        else:
            t = tokens_first + n * tokens_step
        inside = (n < N) & (t >= 0) & (t < T)
        weights = tl.zeros((BLOCK_N,), tl.float32)
        for r in range(begin, end):
            row = (b * R + r) * C + c
            tops = tl.load(tiles_ptr + (row * S + s) * 2, mask=s < S, other=float("-inf"))
            totals = tl.load(tiles_ptr + (row * S + s) * 2 + 1, mask=s < S, other=0.0)
            top = tl.max(tops, 0)
            top = tl.where(top == float("-inf"), 0.0, top)
            total = tl.sum(totals * tl.exp(tops - top), 0)
            logits = tl.load(logits_ptr + row * T + t, mask=inside, other=float("-inf"))
            weights += tl.exp(logits - top) / tl.where(total == 0, 1.0, total)
        if PHRASES:
            weights /= tl.maximum(end - begin, 1).to(tl.float32)
        weights = tl.where(inside, weights, 0.0)
        tl.store(out_ptr + line * N + n, weights, mask=n < N)
        lane_sums += weights
    if SUMS:
        tl.store(sums_ptr + line, tl.sum(lane_sums, 0))


def attention_rows(
    query, key, *, heads=None, visible=None, scale, softcap=None, tokens=None, phrases=None,
    block_table=None,
):  # fmt: skip
    """The attention of the asking tokens; arguments are checked by the door, `fastground.rows`.

    Args:
        query: (B, R, H, D) after rotary, float16, bfloat16 or float32; or a list, one a layer.
        key: (B, Hkv, T, D), of one of these dtypes and any strides, not repeated for the heads that
            share them; or a list. Read where it lies. With block_table (blocks, Hkv, PAGE, D).
        heads: tuple of C head indices, of lists (layer, head); all unless given.
        visible: None, or (B, T) or (B, R, T), bool or additive.
        scale: factor on the logits.
        softcap: None, or the logits become softcap * tanh(logits / softcap).
        tokens: None, a range, or (B, N) int64.
        phrases: None, or (B, P, 2) int64, first and last row, exclusive.
        block_table: None, or (B, n) int64.

    Returns:
        (B, R, C, T) float32, P in place of R with phrases; with tokens (B, R, C, N) and (B, R, C).
    """
    queries, keys = (list(x) if isinstance(x, (list, tuple)) else [x] for x in (query, key))
    query = queries[0][None] if len(queries) == 1 else torch.stack(queries)
    query = query if query.stride(-1) == 1 else query.contiguous()
    L, B, R, H, D = query.shape
    if heads is None:
        heads = tuple(range(L * H))
    elif isinstance(key, (list, tuple)):
        heads = tuple(layer * H + head for layer, head in heads)
    key, device = keys[0], query.device
    layers, aligned, places = _layers(keys)
    page = 0 if block_table is None else key.shape[2]
    T = key.shape[2] if block_table is None else page * block_table.shape[1]
    G, K, table = _table(heads, H // key.shape[1])
    C = len(heads)
    P = R if phrases is None else phrases.shape[1]
    told = range(T) if tokens is None else tokens
    listed = not isinstance(told, range)
    N = told.shape[1] if listed else len(told)

    logits = torch.empty(B, R, C, T, dtype=torch.float32, device=device)
    in_place = tokens is None and phrases is None
    out = logits if in_place else logits.new_empty(B, P, C, N)
    sums = out if tokens is None else logits.new_empty(B, P, C)
    if not sums.numel():
        return out if tokens is None else (out, sums)
    if not logits.numel():  # phrases of no rows
        return out.zero_() if tokens is None else (out.zero_(), sums.zero_())

    mask, visible_strides = _mask(visible)
    visible = visible.view(torch.uint8) if mask == BOOL_MASK else visible
    mixed = query.dtype != key.dtype
    upcast = mixed or query.dtype == torch.float32 or not isinstance(_logits, triton.JITFunction)
    scattered = layers == TURNED or key.stride(3) != 1
    sizes = tile_sizes(R * G, D, upcast, mixed, scattered, page > 0)
    S = _parts(T, sizes["BLOCK_T"])
    tiles_each = _parts(S, _parts(PROGRAMS, B * K))
    tiles = logits.new_empty(B, R, C, S, 2)
    _logits[(B * K, _parts(S, tiles_each))](
        query,
        key,
        query if visible is None else visible,
        query if layers == ONE_LAYER else _there(places, torch.int64, device),
        query if block_table is None else block_table,
        *(_there(part, torch.int32, device) for part in table),
        logits,
        tiles,
        scale,
        softcap or 0.0,
        R, T, H, K, C, key.shape[1], tiles_each, key.shape[0],
        *query.stride()[:4],
        *key.stride(),
        *visible_strides,
        0 if block_table is None else block_table.stride(0),
        G=G,
        D=D,
        MASK=mask,
        SOFTCAP=softcap is not None,
        UPCAST=upcast,
        LAYERS=layers,
        ALIGNED=aligned,
        PAGE=page,
        **sizes,
    )  # fmt: skip
    block = min(1024, _power_of_2(N))
    _weights[(B * P * C, 1 if tokens is not None else _parts(N, block))](
        out,
        sums,
        logits,
        tiles,
        told if listed else query,
        query if phrases is None else phrases,
        R, P, C, T, S, N,
        0 if listed else told.start,
        1 if listed else told.step,
        told.stride(0) if listed else 0,
        0 if phrases is None else phrases.stride(0),
        LISTED=listed,
        PHRASES=phrases is not None,
        SUMS=tokens is not None,
        BLOCK_S=_power_of_2(S),
        BLOCK_N=block,
    )  # fmt: skip
    return out if tokens is None else (out, sums)


def _parts(whole, size):
    return -(-whole // size)


def _power_of_2(least):
    return 1 << max(least - 1, 0).bit_length()


@lru_cache(maxsize=256)
def tile_sizes(rows, head_dim, upcast, mixed=False, scattered=False, paged=False):
    """Tile sizes for so many rows of one key head, and warps; `tl.dot` wants at least 16 of each.

    Chosen so that nothing spills on sm_80 and sm_90, and that all but MANY need at most 128
    registers, which the tests check with ptxas: float32 products run without tensor cores and hold
    both operands in registers; of many rows each thread holds what their loop needs, too. There
    ptxas would rather spill a little than take more than 72 or 96, unless it is told a bound.
    Keys of another dtype than the queries' take as many, whatever the rows, or more threads; more
    threads, too, where each holds addresses: of pages, or of keys `scattered` in head_dim.
    """
    block_d = max(16, _power_of_2(head_dim))
    many = mixed or rows > (16 if upcast else 64)
    block_m = (16 if upcast else 32) if many else max(16, _power_of_2(rows))
    block_t = max(16, (4096 if upcast else 8192) // block_d)
    few_threads = (many or block_m == 16) and not (mixed and block_d > 128)
    return {
        "MANY": many,
        "BLOCK_M": block_m,
        "BLOCK_T": 16 if many or scattered else min(block_t, 32 if block_m == 64 else 64),
        "BLOCK_D": block_d,
        "num_warps": 4 if few_threads and not (scattered or paged) else 8,
        "maxnreg": 255 if many else None,
    }


def _layers(keys):
    """In what the layers' keys differ, whether 16 divides what is read of that, and the table.

    That has of each layer its begin and its four strides, int64, as bytes: these are soon hashed.
    """
    if len(keys) == 1:
        return ONE_LAYER, True, b""
    first, size = keys[0].data_ptr(), keys[0].element_size()
    begins = [(key.data_ptr() - first) // size for key in keys]
    strides = [key.stride() for key in keys]
    *others, last = map(set, zip(*strides, strict=True))
    kind = TURNED if len(last) > 1 else STRIDED if max(map(len, others)) > 1 else ALIKE
    read = begins if kind == ALIKE else chain(begins, *others)
    table = chain.from_iterable((at, *each) for at, each in zip(begins, strides, strict=True))
    return kind, math.gcd(*read) % 16 == 0, array("q", table).tobytes()


@lru_cache(maxsize=256)
def _table(heads, heads_a_key):
    """Chosen heads by key head: G, K, and (K, G) heads and slots (-1 fills), (K,) key heads.

    The last three int32, as bytes.
    """
    groups = {}
    for slot, head in enumerate(heads):
        groups.setdefault(head // heads_a_key, []).append((head, slot))
    width = max(map(len, groups.values()))
    filled = [pair for each in groups.values() for pair in each + [(-1, 0)] * (width - len(each))]
    parts = (*zip(*filled, strict=True), groups)
    return width, len(groups), [array("i", part).tobytes() for part in parts]


def _there(numbers, dtype, device):
    """A table for the current stream of the current device, without waiting for that."""
    try:
        table, stream, done = _uploaded(numbers, dtype, device)
    except LookupError:  # a graph makes it itself: what it copied from the host would have to stay
        known = _on_host(numbers, dtype)
        table = torch.empty_like(known, device=device)
        for place, number in enumerate(known.tolist()):
            table[place].fill_(number)
        return table
    if stream is not None and torch.cuda.is_current_stream_capturing():
        _read_by_graphs.append(table)
    elif stream is not None and stream != torch.cuda.current_stream():
        done.wait(torch.cuda.current_stream())
        table.record_stream(torch.cuda.current_stream())
    return table


@lru_cache(maxsize=256)
def _uploaded(numbers, dtype, device):
    """The table, the stream that brings it and when it is there; kept: a static cache stays."""
    if device.type != "cuda":
        return _on_host(numbers, dtype), None, None
    if torch.cuda.is_current_stream_capturing():
        raise LookupError  # which is not kept
    table = _on_host(numbers, dtype).pin_memory().to(device, non_blocking=True)
    return table, torch.cuda.current_stream(), torch.cuda.current_stream().record_event()


def _on_host(numbers, dtype):
    return torch.frombuffer(bytearray(numbers), dtype=dtype)


_read_by_graphs = []
"""Tables that a captured graph reads at each replay; the cache may forget them."""


def _mask(visible):
    if visible is None:
        return NO_MASK, (0, 0, 0)
    kind = BOOL_MASK if visible.dtype == torch.bool else ADDITIVE_MASK
    strides = visible.stride()
    return kind, (strides[0], 0, strides[1]) if visible.ndim == 2 else strides
