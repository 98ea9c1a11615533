"""Cached keys -> attention of the asking tokens: the door of `attention_rows`.

Triton on a GPU, else PyTorch, whose two products are native on a CPU already.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch

from fastground import reference
from fastground.arguments import DTYPES, dtype_name, give, take, tensor
from fastground.dispatch import forced


def attention_rows(
    query: Any,
    key: Any,
    *,
    heads: Sequence[int] | None = None,
    visible: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Any:
    """The attention of a few asking tokens over all cached keys: softmax(scale * q K^T).

    Head h reads key head h // (num_heads / num_key_value_heads). Products are accumulated in
    float32, and nothing of size tokens x tokens is made. Triton on a GPU, else PyTorch.

    Args:
        query: (batch, rows, num_heads, head_dim), after rotary, floating.
        key: (batch, num_key_value_heads, tokens, head_dim), after rotary, not repeated.
        heads: the chosen heads, in this order; all unless given.
        visible: None (all keys), or (batch, tokens) or (batch, rows, tokens): bool, or floating and
            added to the logits, -inf where hidden.
        scale: factor on the logits; head_dim**-0.5 unless given.
        softcap: None, or the logits become softcap * tanh(logits / softcap) before visible.

    Returns:
        (batch, rows, len(heads), tokens) float32: each row sums to 1, or is all zeros where it sees
        no key. NaN in a query or a visible key makes its rows NaN.

    Raises:
        TypeError: an argument is no array, or not floating (visible: nor bool).
        ValueError: shapes, devices or heads that do not belong together.
    """
    given = query
    query, key = tensor(take(query, "query")), tensor(take(key, "key"))
    for name, array in (("query", query), ("key", key)):
        if array.dtype not in DTYPES:
            raise TypeError(f"{name} must be floating, but got {dtype_name(array.dtype)}")
    if query.ndim != 4 or key.ndim != 4 or 0 in (*query.shape[2:], *key.shape[1:]):
        raise ValueError(
            "query must be (batch, rows, num_heads, head_dim) and key (batch, "
            f"num_key_value_heads, tokens, head_dim), but got shapes {tuple(query.shape)} and "
            f"{tuple(key.shape)}"
        )
    batch, _, num_heads, head_dim = query.shape
    if (batch, head_dim) != (key.shape[0], key.shape[3]) or num_heads % key.shape[1]:
        raise ValueError(
            "query and key must agree in batch and head_dim, and num_heads be a multiple of "
            f"num_key_value_heads, but got shapes {tuple(query.shape)} and {tuple(key.shape)}"
        )
    heads = _take_heads(heads, num_heads)
    visible = _take_visible(visible, query, key)
    if key.device != query.device:
        raise ValueError(f"query and key must share a device: {query.device}, {key.device}")
    if softcap is not None and not 0 < softcap < float("inf"):
        raise ValueError(f"softcap must be positive and finite, or None, but got {softcap!r}")
    scale = head_dim**-0.5 if scale is None else float(scale)
    keywords = {"heads": heads, "visible": visible, "scale": scale, "softcap": softcap}
    if query.device.type != "cuda" or forced() == "reference":
        with torch.autocast(query.device.type, enabled=False):  # whose products were of few bits
            return give(reference.attention_rows(query, key, **keywords), given)
    import fastground.kernels.attention_rows as kernel

    dtype = torch.promote_types(query.dtype, key.dtype)
    dtype = torch.float32 if dtype == torch.float64 else dtype
    keywords["heads"] = tuple(range(num_heads)) if heads is None else heads
    return kernel.attention_rows(query.to(dtype), key.to(dtype), **keywords)


def _take_heads(heads: Sequence[int] | None, num_heads: int) -> tuple[int, ...] | None:
    if heads is None:
        return None
    heads = tuple(map(operator.index, heads))
    wrong = [head for head in heads if not 0 <= head < num_heads]
    if wrong or not heads:
        raise ValueError(
            f"heads must be None or at least one index 0 to {num_heads - 1}, but got "
            f"{wrong[0] if wrong else 'none'}"
        )
    return heads


def _take_visible(visible: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
    if visible is None:
        return None
    visible = tensor(take(visible, "visible"))
    if visible.dtype != torch.bool and visible.dtype not in DTYPES:
        raise TypeError(f"visible must be bool or floating, but got {dtype_name(visible.dtype)}")
    batch, rows, tokens = *query.shape[:2], key.shape[2]
    if visible.shape not in ((batch, tokens), (batch, rows, tokens)):
        raise ValueError(
            f"visible must be {(batch, tokens)} or {(batch, rows, tokens)}, but got shape "
            f"{tuple(visible.shape)}"
        )
    if visible.device != query.device:
        raise ValueError(f"query and visible must share a device: {query.device}, {visible.device}")
    return visible
