"""softmax(scale * q K^T) of a few asking tokens over all cached keys, for the chosen heads only.

The values are never read: only the weights are wanted. So the work is to read K once.

    K of one key head            rows of the tile: every asking token x every chosen head that
    (T, D)                       shares this key head, M of them
    +--------+                      q (M, D)
    | tile 0 |  program (.., 0)  ->  S = q K_tile^T  (M, BLOCK_T)  -> logits, and per row
    +--------+                                                        m = max S, l = sum exp(S - m)
    | tile 1 |  program (.., 1)  ->  ...
    +--------+

`_logits` gives every tile of keys its own program, so that one short sequence still fills the GPU,
and K is read once for all asking tokens and all heads of a group (grouped-query attention). Tiles
know only their own maximum. `_normalise` joins them, M = max m and L = sum l exp(m - M), and turns
logits into exp(S - M) / L in place; logits are small (rows x heads x keys) beside K.
Accumulation is float32; float16 and bfloat16 products are exact in it. A row that sees no key gets
zeros.

Source: the split of the keys with a rescaling afterwards is Flash-Decoding's (Dao et al., 2023),
here without values. Letters: B batch, R asking rows, H heads, G heads a key head, T keys, D
head_dim, S tiles of keys.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl

NO_MASK, BOOL_MASK, ADDITIVE_MASK = 0, 1, 2


@triton.jit
def _logits(
    query_ptr,
    key_ptr,
    visible_ptr,
    heads_ptr,
    slots_ptr,
    key_heads_ptr,
    logits_ptr,
    tiles_ptr,
    scale,
    softcap,
    R,
    T,
    D,
    K,
    C,
    query_stride_b,
    query_stride_r,
    query_stride_h,
    key_stride_b,
    key_stride_h,
    key_stride_t,
    visible_stride_b,
    visible_stride_r,
    visible_stride_t,
    G: tl.constexpr,
    MASK: tl.constexpr,
    SOFTCAP: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    b = (tl.program_id(0) // K).to(tl.int64)
    k = tl.program_id(0) % K
    tile = tl.program_id(1)
    m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    t = tile * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.arange(0, BLOCK_D)

    # Row m of the tile is asking token m // G with head m % G of the key head; -1 fills the group.
    r = (m // G).to(tl.int64)
    h = tl.load(heads_ptr + k * G + m % G)
    slot = tl.load(slots_ptr + k * G + m % G)
    asks = (r < R) & (h >= 0)
    q = tl.load(
        query_ptr
        + b * query_stride_b
        + (r * query_stride_r + h.to(tl.int64) * query_stride_h)[:, None]
        + d[None, :],
        mask=asks[:, None] & (d < D)[None, :],
        other=0.0,
    )
    key_head = tl.load(key_heads_ptr + k).to(tl.int64)
    keys = tl.load(
        key_ptr
        + b * key_stride_b
        + key_head * key_stride_h
        + (t.to(tl.int64) * key_stride_t)[:, None]
        + d[None, :],
        mask=(t < T)[:, None] & (d < D)[None, :],
        other=0.0,
    )
    if UPCAST:
        q = q.to(tl.float32)
        keys = keys.to(tl.float32)
    s = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale
    if SOFTCAP:
        s = softcap * (2 * tl.sigmoid(2 * s / softcap) - 1)  # tanh

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
    s = tl.where((t < T)[None, :], s, float("-inf"))

    line = (b * R + r) * C + slot
    tl.store(logits_ptr + (line * T)[:, None] + t[None, :], s, mask=inside)
    top = tl.max(s, 1)
    total = tl.sum(tl.exp(s - tl.where(top == float("-inf"), 0.0, top)[:, None]), 1)
    S = tl.num_programs(1)
    tl.store(tiles_ptr + (line * S + tile) * 2, top, mask=asks)
    tl.store(tiles_ptr + (line * S + tile) * 2 + 1, total, mask=asks)


@triton.jit
def _normalise(logits_ptr, tiles_ptr, T, S, BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr):
    line = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, BLOCK_S)
    tops = tl.load(tiles_ptr + (line * S + s) * 2, mask=s < S, other=float("-inf"))
    totals = tl.load(tiles_ptr + (line * S + s) * 2 + 1, mask=s < S, other=0.0)
    top = tl.max(tops, 0)
    top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(totals * tl.exp(tops - top), 0)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    logits = tl.load(logits_ptr + line * T + t, mask=t < T, other=float("-inf"))
    weights = tl.exp(logits - top) / tl.where(total == 0, 1.0, total)
    tl.store(logits_ptr + line * T + t, weights, mask=t < T)


def attention_rows(query, key, *, heads, visible, scale, softcap):
    """The attention of the asking tokens; arguments are checked by `ops.attention_rows`.

    Args:
        query: (B, R, H, D) after rotary; float16, bfloat16 or float32.
        key: (B, Hkv, T, D), the same dtype, not repeated for the heads that share them.
        heads: tuple of C head indices.
        visible: None, or (B, T) or (B, R, T), bool or additive.
        scale: factor on the logits.
        softcap: None, or the logits become softcap * tanh(logits / softcap).

    Returns:
        (B, R, C, T) float32.
    """
    query, key = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key))
    B, R, H, D = query.shape
    T = key.shape[2]
    G, table = _table(heads, H // key.shape[1], query.device)
    K, C = len(table[2]), len(heads)
    mask, visible_strides = _mask(visible)
    upcast = query.dtype == torch.float32 or not isinstance(_logits, triton.JITFunction)
    plan = blocks(R * G, D, upcast)
    S = triton.cdiv(T, plan["BLOCK_T"])
    out = torch.empty(B, R, C, T, dtype=torch.float32, device=query.device)
    if out.numel() == 0:
        return out
    tiles = torch.empty(B, R, C, S, 2, dtype=torch.float32, device=query.device)
    _logits[(B * K, S, triton.cdiv(R * G, plan["BLOCK_M"]))](
        query,
        key,
        query if visible is None else visible.view(torch.uint8) if mask == BOOL_MASK else visible,
        *table,
        out,
        tiles,
        scale,
        softcap or 0.0,
        R,
        T,
        D,
        K,
        C,
        *query.stride()[:3],
        *key.stride()[:3],
        *visible_strides,
        G=G,
        MASK=mask,
        SOFTCAP=softcap is not None,
        UPCAST=upcast,
        **plan,
    )
    block = min(1024, triton.next_power_of_2(T))
    _normalise[(B * R * C, triton.cdiv(T, block))](
        out, tiles, T, S, BLOCK_S=triton.next_power_of_2(S), BLOCK_T=block
    )
    return out


def blocks(rows, head_dim, upcast):
    """Tile sizes for so many rows of one key head; `tl.dot` wants at least 16 of each.

    Chosen so that nothing spills on sm_90, which the tests check with ptxas: float32 products run
    without tensor cores and hold both operands in registers.
    """
    block_d = max(16, triton.next_power_of_2(head_dim))
    most_rows, elements = (16, 4096) if upcast else (64, 8192)
    return {
        "BLOCK_M": min(most_rows, max(16, triton.next_power_of_2(rows))),
        "BLOCK_T": min(64, max(16, elements // block_d)),
        "BLOCK_D": block_d,
    }


@lru_cache(maxsize=256)
def _table(heads, heads_a_key, device):
    """Chosen heads by key head: G, and (K, G) heads and slots (-1 fills), (K,) key heads."""
    groups = {}
    for slot, head in enumerate(heads):
        groups.setdefault(head // heads_a_key, []).append((head, slot))
    width = max(map(len, groups.values()))
    filled = [group + [(-1, 0)] * (width - len(group)) for group in groups.values()]
    both = torch.tensor(filled, dtype=torch.int32).permute(2, 0, 1).contiguous().to(device)
    return width, (both[0], both[1], torch.tensor(list(groups), dtype=torch.int32, device=device))


def _mask(visible):
    if visible is None:
        return NO_MASK, (0, 0, 0)
    kind = BOOL_MASK if visible.dtype == torch.bool else ADDITIVE_MASK
    strides = visible.stride()
    return kind, (strides[0], 0, strides[1]) if visible.ndim == 2 else strides
