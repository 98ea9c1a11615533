"""A decoder's layers: which of them have attention heads, and how to run only the first few.

Hybrid models mix attention with layers that keep a running state instead of keys:

    layer    0        1        2        3        4        5        6        7
    kind     linear   linear   linear   full     linear   linear   linear   full
    heads    none     none     none     0 .. H   none     none     none     0 .. H

A head exists only where a layer compares queries with the keys of the tokens themselves.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import index
from typing import Any

import torch

from fastground.types import HeadId

KEEPS_PROMPT = "reference_sliding_attention"
"""A kind whose cache keeps all of a prompt, and the last so many tokens after it."""

WITH_HEADS = (
    "full_attention", "sliding_attention", "chunked_attention", "attention", "hybrid",
    "hybrid_sliding", "indexed_attention", "deepseek_sparse_attention", "qwen_sparse_attention",
    "minimax_m3_sparse", KEEPS_PROMPT,
)  # fmt: skip
"""The kinds of layers, as a configuration's `layer_types` names them, whose keys are the tokens.

In the four before the last, of which older transformers knows two by the names in the middle, an
index of the model's own chooses which of them a token sees."""


def layers_with_heads(config: Any) -> tuple[int, ...]:
    """The decoder's layers that have attention heads, ascending.

    Args:
        config: a transformers configuration, of the whole model or of its decoder.
    """
    text = config.get_text_config(decoder=True)
    kinds = getattr(text, "layer_types", None)
    if not kinds:
        crossing = getattr(text, "cross_attention_layers", None) or ()
        return tuple(n for n in range(text.num_hidden_layers) if n not in crossing)
    counts, width = _head_counts(text), num_heads(config)
    return tuple(n for n, kind in enumerate(kinds) if kind in WITH_HEADS and counts[n] == width)


def num_heads(config: Any) -> int:
    """How many heads each layer has that is read.

    Layers may differ in that, as Step 3.7's with a window do from its others: then those of full
    attention count, and only layers with as many are read.

    Args:
        config: a transformers configuration, of the whole model or of its decoder.
    """
    text = config.get_text_config(decoder=True)
    counts = _head_counts(text)
    kinds = getattr(text, "layer_types", None) or ()
    return counts[kinds.index("full_attention") if "full_attention" in kinds else 0]


def _head_counts(text: Any) -> list[int]:
    """Of each layer."""
    try:
        return [text.num_attention_heads] * text.num_hidden_layers
    except RuntimeError:  # they differ, so that transformers names no one number
        return [layer.num_attention_heads for layer in text.per_layer_config]


def checked_heads(
    heads: Sequence[HeadId | tuple[int, int]] | None, stop_after: int | None, config: Any
) -> tuple[HeadId, ...]:
    """The heads asked for, or all that run before the end.

    Args:
        heads: (layer, head) pairs, or None.
        stop_after: the last layer that runs, or None.
        config: of the model.

    Raises:
        ValueError: a layer or head that the model does not have or that does not run; a model that
            has none at all.
    """
    text = config.get_text_config(decoder=True)
    layers, width = text.num_hidden_layers, num_heads(config)
    if stop_after is not None and stop_after not in range(layers):
        raise ValueError(f"stop_after must be a layer 0 to {layers - 1}, but got {stop_after!r}")
    last = layers - 1 if stop_after is None else stop_after
    every = layers_with_heads(config)
    if not every:
        raise ValueError(
            f"model must have layers of a kind whose heads see all tokens ({', '.join(WITH_HEADS)})"
            f", but has only {', '.join(sorted(set(text.layer_types)))}; such a model cannot be "
            "captured"
        )
    having = [n for n in every if n <= last]
    if not having:
        raise ValueError(
            f"stop_after must be at least {every[0]}, the first layer with attention heads, but "
            f"got {stop_after}"
        )
    if heads is None:
        return tuple(HeadId(layer, head) for layer in having for head in range(width))
    try:
        heads = tuple(HeadId(index(layer), index(head)) for layer, head in heads)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"heads must be (layer, head) pairs, but got {heads!r}; such as [(14, 24), (14, 13)]"
        ) from error
    if not heads:
        raise ValueError("heads must name at least one head, or be None for all")
    for head in heads:
        if not (0 <= head.layer <= last and 0 <= head.head < width):
            raise ValueError(
                f"heads must be in layers 0 to {last} (stop_after={stop_after}) and heads 0 to "
                f"{width - 1}, but got {head}"
            )
        if head.layer not in having:
            raise ValueError(
                f"heads must be in layers with attention heads ({', '.join(map(str, having))}), "
                f"but got {head}, whose layer is of the kind {text.layer_types[head.layer]!r}"
            )
    return heads


def is_compiled(model: torch.nn.Module) -> bool:
    """Whether the model or a part of it was given to torch.compile."""
    if "torch._dynamo" not in sys.modules:
        return False
    return any(
        "_orig_mod" in own["_modules"]
        or own.get("_compiled_call_impl") is not None
        or "_torchdynamo_orig_callable" in getattr(own.get("forward"), "__dict__", {})
        for own in map(vars, model.modules())
    )


@contextmanager
def shortened(model: torch.nn.Module, count: int) -> Iterator[None]:
    """Inside the block the decoder has only its first `count` layers.

    Raises:
        ValueError: the decoder does not keep its layers in one list named `layers`.
    """
    decoder: Any = model.get_decoder()  # type: ignore[operator]
    length = decoder.config.num_hidden_layers
    for part in decoder.modules():
        layers = getattr(part, "layers", None)
        if isinstance(layers, torch.nn.ModuleList) and len(layers) == length:
            break
    else:
        raise ValueError(
            f"stop_after must be None for {type(decoder).__name__}, which does not keep its "
            f"{length} layers in one list"
        )
    part.layers = layers[:count]
    try:
        yield
    finally:
        part.layers = layers
