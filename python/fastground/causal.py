"""A pack's attention on a CPU without most of what its mask hides: queries block by block.

                 keys
              0  1  2  3          No token of a pack sees a later one, but PyTorch's product on a
           0  #  .  .  .          CPU multiplies all queries with all keys and then adds the mask,
    queries 1  #  #  .  .         even where it is told that attention is causal. Here each block
           2  #  #  #  .          of queries is given the keys up to its own end (#) and that part
           3  #  #  #  #          of the mask; the rest (.) is left out.

The model's own function is called for each block, so that scale, groups of heads and the rest stay
its own. The numbers are those of one call up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

BLOCK = 96
"""Queries of a block: the fewer, the less is done for nothing, and the more calls there are. From
64 to 256 the time differs by a tenth, at heads of 16 to 128 numbers."""


class CausalAttention:
    """The attention of one forward's layers, which share a mask."""

    def __init__(self) -> None:
        self._of: tuple[Any, torch.dtype | None] = None, None
        self._parts: list[tuple[int, int, torch.Tensor]] = []

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
        """What `own` returns: (output (batch, tokens, heads, head_dim), no weights).

        Args:
            own: transformers' sdpa attention.
            module: the layer.
            query: (batch, heads, tokens, head_dim).
            key, value: (batch, key heads, tokens, head_dim) each.
            mask: a pack's, (batch, 1, tokens, tokens) bool, nowhere True above its diagonal; others
                are handed on, as is what lies on a GPU, or is no longer than a block.
            keywords: handed on.
        """
        tokens = query.shape[2]
        whole = isinstance(mask, torch.Tensor) and mask.shape[-2:] == (tokens, key.shape[2])
        if not whole or mask.dtype != torch.bool or not query.is_cpu or tokens <= BLOCK:
            return own(module, query, key, value, mask, **keywords)
        if self._of[0] is not mask or self._of[1] != query.dtype:
            self._of, self._parts = (mask, query.dtype), _parts(mask, query.dtype)
        outputs = [
            own(
                module, query[:, :, begin:end], key[:, :, :end], value[:, :, :end], part, **keywords
            )[0]
            for begin, end, part in self._parts
        ]
        return torch.cat(outputs, dim=1), None


def _parts(mask: torch.Tensor, dtype: torch.dtype) -> list[tuple[int, int, torch.Tensor]]:
    """First and last query of each block, and what of the mask is added to its products.

    PyTorch would turn bool into numbers anew in each layer.
    """
    length = mask.shape[2]
    cuts = [*range(0, length, BLOCK), length]
    if len(cuts) > 2 and cuts[-1] - cuts[-2] < BLOCK // 3:
        del cuts[-2]
    found = []
    for begin, end in pairwise(cuts):
        visible = mask[:, :, begin:end, :end]
        added = torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, -torch.inf)
        found.append((begin, end, added))
    return found
