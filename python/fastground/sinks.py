"""Cells that draw attention whatever is asked, and what can be done about them before grounding.

    what a head sees  =  what is asked for  +  what it always sees ("sinks", a bias of place)

                 map                  compared with
    keep         a                    nothing: the paper's way
    relative     a / g, rescaled      g: the same head's map of a prompt that asks for nothing
    centre       max(a - m, 0)        m: the mean map of the heads of its layer, same expression
    drop         a, or 0 at sinks     m: a cell with more than `sink_share` of its sum is a sink

The generic prompt is asked in the same forward as the expressions, and a layer's other heads are
read in the forward that reads one of them. Discovery's statistics never see any of this.

Source: relative attention is that of Zhang et al., ICLR 2025 (arXiv 2502.17422); here g is kept off
zero by a thousandth of its mean, and a / g is scaled to the sum of a, so that heads still add up by
how much they see. Centre and drop are our own reading of what users of such maps ask for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from fastground.types import AttentionMaps, HeadId, Recipe

LEAST = 1e-3
"""What a generic map has at least, as a share of its mean."""


def asked(expressions: Sequence[str], recipe: Recipe) -> list[str]:
    """The expressions to ask an image: with the generic prompt behind them where it is needed."""
    return [*expressions, recipe.generic] if recipe.sinks == "relative" else list(expressions)


def read(heads: Sequence[HeadId], width: int, recipe: Recipe) -> tuple[HeadId, ...]:
    """The heads to read: with all others of their layers where their mean is needed.

    Args:
        heads: those that ground.
        width: how many heads a layer has.
        recipe: its sinks.
    """
    if recipe.sinks not in ("centre", "drop"):
        return tuple(heads)
    layers = sorted({head.layer for head in heads})
    return tuple(HeadId(layer, head) for layer in layers for head in range(width))


def cleared(attention: AttentionMaps, recipe: Recipe) -> tuple[AttentionMaps, AttentionMaps]:
    """The maps of the expressions as captured, and as they ground.

    Args:
        attention: of what `asked` gave, for at least the heads that `read` gave.
        recipe: sinks and sink_share are read.

    Returns:
        Both of the expressions alone, for all heads of `attention`; sums are as captured.
    """
    if recipe.sinks == "keep":
        return attention, attention
    if recipe.sinks == "relative":
        generic = attention.maps[-1:]
        plain = replace(attention, maps=attention.maps[:-1], sums=attention.sums[:-1])
        return plain, replace(plain, maps=_relative(plain.maps, generic))
    maps, mean = attention.maps, _layer_means(attention)
    if recipe.sinks == "centre":
        return attention, replace(attention, maps=(maps - mean).clamp(min=0))
    sink = mean > recipe.sink_share * mean.sum((-2, -1), keepdim=True)
    return attention, replace(attention, maps=maps.masked_fill(sink, 0))


def _relative(maps: torch.Tensor, generic: torch.Tensor) -> torch.Tensor:
    mean = generic.mean((-2, -1), keepdim=True)
    # A head that sees nothing of the image for the generic prompt has no sinks to divide by.
    ratio = maps / torch.where(mean > 0, generic + LEAST * mean, 1.0)
    scale = maps.sum((-2, -1), keepdim=True) / ratio.sum((-2, -1), keepdim=True)
    return ratio * scale.nan_to_num(0)


def _layer_means(attention: AttentionMaps) -> torch.Tensor:
    """(expressions, heads, grid_h, grid_w): for every head the mean map of its layer's heads."""
    means = torch.empty_like(attention.maps)
    layers = torch.tensor([head.layer for head in attention.heads], device=means.device)
    for layer in layers.unique():
        means[:, layers == layer] = attention.maps[:, layers == layer].mean(1, keepdim=True)
    return means
