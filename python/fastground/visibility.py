"""From a mask, of whatever kind the model's attention takes, to the keys that a few tokens see.

    mask                                      taken by                  a row is
    None                                      sdpa, flash               keys up to the token's own
    (batch, keys)                             flash                     the same without padding
    (batch, 1, queries, keys) bool, additive  sdpa, eager, flex         that row of it
    BlockMask                                 flex                      its rule at that token

Flash attention is given a sliding window beside its mask; in all others the mask holds it. Keys may
be fewer than the tokens seen so far, where a cache keeps a window only: they are the last ones. Or
more, where a cache has room for later: the rest is empty.
"""

from __future__ import annotations

from typing import Any

import torch


def visible_keys(
    mask: Any,
    positions: torch.Tensor,
    *,
    queries: int,
    keys: int,
    cached: int = 0,
    causal: bool = True,
    window: int | None = None,
) -> torch.Tensor | None:
    """The keys that the asking tokens see.

    Args:
        mask: what the model's attention function was given.
        positions: (batch, R) int64, the asking tokens among the forward's queries.
        queries: tokens of the forward.
        keys: keys of the layer, cached ones included.
        cached: tokens before the forward's first.
        causal: whether a token sees none after it, where the mask does not say.
        window: how many last tokens flash attention sees, its own included.

    Returns:
        None (all keys), or (batch, R, keys), bool or additive.

    Raises:
        RuntimeError: a mask of another shape.
    """
    if mask is None or (isinstance(mask, torch.Tensor) and mask.ndim == 2):
        return _until_itself(mask, positions, queries, keys, cached, causal, window)
    batch = torch.arange(len(positions), device=positions.device)[:, None]
    if hasattr(mask, "mask_mod"):
        from torch.nn.attention.flex_attention import create_mask

        def rule(b: Any, h: Any, row: Any, key: Any) -> Any:
            return mask.mask_mod(b, h, positions[b, row], key)

        shape = (len(positions), 1, positions.shape[1], keys)
        return create_mask(rule, *shape, device=str(positions.device))[:, 0]
    if not isinstance(mask, torch.Tensor) or mask.ndim != 4 or mask.shape[1] != 1:
        raise RuntimeError(
            "attention masks must be (batch, 1, queries, keys), (batch, keys) or a BlockMask to be "
            f"captured, but got {tuple(mask.shape) if hasattr(mask, 'shape') else type(mask)}"
        )
    mask = mask[:, 0, :, :keys].expand(len(positions), -1, -1)
    return mask[batch.to(mask.device), positions.to(mask.device)].to(positions.device)


def _until_itself(
    real: torch.Tensor | None,
    positions: torch.Tensor,
    queries: int,
    keys: int,
    cached: int,
    causal: bool,
    window: int | None,
) -> torch.Tensor | None:
    """All keys up to the token's own, in its window, that are no padding."""
    sliding = causal and window is not None and window < keys
    if real is None and (not causal or (queries == 1 and not sliding)):
        return None
    place = torch.arange(keys, device=positions.device)
    own = (positions + min(cached, keys - queries))[..., None]
    visible = place <= own if causal else torch.ones_like(place <= own)
    if sliding:
        assert window is not None
        visible = visible & (place > own - window)
    if real is not None:
        real = real[:, -keys:].to(positions.device).bool()
        real = torch.nn.functional.pad(real, (0, keys - real.shape[1]))
        visible = visible & real[:, None]
    return visible
