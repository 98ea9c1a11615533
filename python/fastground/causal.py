"""A pack's attention on a CPU without what its mask hides: the native core's.

                 keys
              0  1  2  3          No token of a pack sees a later one, nor another branch, but on a
           0  #  .  .  .          CPU PyTorch multiplies all queries with all keys and then adds the
    queries 1  #  #  .  .         mask, even where it is told that attention is causal. The core has
           2  #  #  #  .          a bit for each query and key that is visible (#), takes 32 queries
           3  #  #  #  #          at a time, and leaves out every key that none of them sees.

On a Zen 4, at heads of 16 to 128 numbers, that takes a half (AVX-512) to three quarters (AVX2) of
the time of PyTorch's for blocks of queries, each with the keys up to its end. Half precision is
computed in float32. What the core does not know is left to the model's own function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.autograd.forward_ad import unpack_dual

from fastground.arguments import holds_numbers
from fastground.core import _core
from fastground.dispatch import native
from fastground.seam import sdpa

_KNOWN = {
    "module", "query", "key", "value", "attention_mask", "dropout", "scaling", "is_causal",
    "kwargs",
}  # fmt: skip
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class CausalAttention:
    """The attention of one forward's layers, which share a mask."""

    def __init__(self) -> None:
        self._mask: Any = None
        self._words = np.empty(0, np.uint32)

    def attend(
        self,
        own: Callable[..., Any],
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: Any,
        **keywords: Any,
    ) -> Any:
        """What `own` returns up to rounding: (output (batch, tokens, heads, head_dim), no weights).

        Args:
            own: transformers' sdpa attention; whatever else it is, is called.
            module: the layer.
            query: (batch, heads, tokens, head_dim).
            key, value: (batch, key heads, keys, head_dim) each; a value may have another size.
            mask: a pack's, (batch or 1, 1, tokens, keys) bool. A token that sees nothing has the
                output 0, as PyTorch has it.
            keywords: as `own` takes them.
        """
        arrays = query, key, value
        if not (_is_plain(own, module, arrays, mask, keywords) and native(query)):
            return own(module, query, key, value, mask, **keywords)
        batch, heads, tokens, head_dim = query.shape
        if self._mask is not mask:
            words = np.empty((batch, -(-tokens // 32), mask.shape[-1]), np.uint32)
            _core.mask_words(mask.expand(batch, -1, -1, -1), words)
            self._mask, self._words = mask, words
        scale = keywords.get("scaling")
        scale = head_dim**-0.5 if scale is None else float(scale)
        shape = batch, tokens, heads, value.shape[-1]
        output = torch.empty(shape, dtype=torch.float32, device="cpu")
        _core.attention(
            _read(query), _read(key), _read(value),
            self._words, scale, torch.get_num_threads(), output.numpy(),
        )  # fmt: skip
        return output.to(query.dtype), None


def _is_plain(
    own: Any, module: Any, arrays: tuple[torch.Tensor, ...], mask: Any, keywords: dict[str, Any]
) -> bool:
    """Whether it is softmax(scale * Q K^T) V under a pack's mask, and no gradient is asked for."""
    query, key, value = arrays
    groups = getattr(module, "num_key_value_groups", 1)
    return (
        own is sdpa()
        and all(type(array) is torch.Tensor and array.is_cpu for array in (*arrays, mask))
        and all(holds_numbers(array) for array in (*arrays, mask))
        and mask.dtype == torch.bool
        and mask.shape[0] in (1, len(query))
        and mask.shape[1:] == (1, query.shape[2], key.shape[2])
        and query.shape[1] == key.shape[1] * groups
        and len(query) == len(key)
        and key.shape[:3] == value.shape[:3]
        and query.dtype in _DTYPES
        and query.dtype == key.dtype == value.dtype
        and all(array.numel() > 0 for array in arrays)
        and not (torch.is_grad_enabled() and any(array.requires_grad for array in arrays))
        and all(unpack_dual(array).tangent is None for array in arrays)
        and not torch.is_autocast_enabled("cpu")
        and not keywords.get("dropout")
        and all(keywords.get(name) is None for name in _others())
    )


@cache
def _others() -> frozenset[str]:
    """What else transformers' function takes or refuses, in whatever version."""
    return frozenset(inspect.signature(sdpa()).parameters) - _KNOWN | {"softcap"}


def _read(array: torch.Tensor) -> torch.Tensor:
    """In float32, the numbers of a token side by side."""
    array = array.detach().float().resolve_neg()
    return array if array.stride(-1) == 1 else array.contiguous()
