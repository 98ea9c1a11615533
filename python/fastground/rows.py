"""Cached keys -> attention of the asking tokens: the door of `attention_rows`.

Triton on a GPU, else PyTorch, whose two products are native on a CPU already.

               asked for by                                   in place of
    keys       layers: a sequence, one a layer                one layer's
               block_table: pages, as serving engines keep    a sequence's, one after another
    rows       phrases: the mean of some rows each            every asking token's
    columns    tokens: those of the image, and their sum      all keys

Any of them together, always with the softmax over all visible keys.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.compiler import is_dynamo_compiling

from fastground import reference
from fastground.arguments import DTYPES, Array, dtype_name, give, holds_numbers, take, tensor
from fastground.dispatch import forced
from fastground.nodes import register

WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class TokenRows(NamedTuple):
    """What rows of attention hold of some tokens."""

    rows: torch.Tensor
    """(batch, rows, heads, tokens) float32; their softmax is that over all visible keys."""
    sums: torch.Tensor
    """(batch, rows, heads) float32: of all of these tokens."""


def attention_rows(
    query: Any,
    key: Any,
    *,
    heads: Sequence[Any] | None = None,
    visible: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    tokens: Any = None,
    phrases: Any = None,
    block_table: Any = None,
) -> Any:
    """The attention of a few asking tokens over all cached keys: softmax(scale * q K^T).

    Head h reads key head h // (num_heads / num_key_value_heads). Products are accumulated in
    float32, and nothing of size tokens x tokens is made. Triton on a GPU, else PyTorch. Indices
    that lie on a GPU are not read on the host: those out of range are as if they were not there,
    and what is otherwise an error is not seen.

    Args:
        query: (batch, rows, num_heads, head_dim), after rotary, floating; or a list of them, one a
            layer, as key is then: all layers in one launch.
        key: (batch, num_key_value_heads, tokens, head_dim), after rotary, not repeated. A GPU
            reads it where it lies, whatever its strides, in each layer its own; but float64 is
            copied to float32.
        heads: the chosen heads, in this order, of layers as (layer, head); all unless given.
        visible: None (all keys), or (batch, tokens) or (batch, rows, tokens): bool, or floating and
            added to the logits, -inf where hidden.
        scale: factor on the logits; head_dim**-0.5 unless given.
        softcap: None, or the logits become softcap * tanh(logits / softcap) before visible.
        tokens: None (all keys), or those to tell of, such as the image's: a range, or integers (n,)
            or (batch, n); -1 holds nothing, to fill shorter lists.
        phrases: None, or integers (n, 2) or (batch, n, 2), first and last row of a phrase, the last
            exclusive: each phrase has the mean of its rows; zeros of none.
        block_table: None, or integers (batch, n): key is a paged cache (blocks,
            num_key_value_heads, block_size, head_dim), and sequence b has the n * block_size keys
            of blocks block_table[b]. Keys of block -1 are hidden; hide by visible those of the last
            block that are not written yet.

    Returns:
        (batch, rows, heads, tokens) float32: each row sums to 1, or is all zeros where it sees no
        key. NaN in a query or a visible key makes its rows NaN. With phrases these are in place of
        rows. With tokens a TokenRows: rows of these tokens alone, and sums (batch, rows, heads).

    Raises:
        TypeError: an argument is no array, or not of its kind of numbers.
        ValueError: shapes, devices, dtypes or indices that do not belong together.
    """
    layers = isinstance(key, (list, tuple))
    if layers != isinstance(query, (list, tuple)) or (layers and not 0 < len(key) == len(query)):
        count = [len(x) if isinstance(x, (list, tuple)) else "no list" for x in (query, key)]
        raise ValueError(
            "query and key must both be arrays, or lists of as many, one a layer, but got "
            f"{count[0]} and {count[1]}"
        )
    if is_dynamo_compiling() and isinstance(query[0] if layers else query, torch.Tensor):
        return _in_graph(
            query, key, heads, visible=visible, scale=scale, softcap=softcap,
            tokens=tokens, phrases=phrases, block_table=block_table,
        )  # fmt: skip
    given = take(query[0] if layers else query, "query")
    queries, keys = (
        [_taken(array, name) for array in (arrays if layers else [arrays])]
        for arrays, name in ((query, "query"), (key, "key"))
    )
    _check_layers(queries, keys, paged=block_table is not None)
    query, key = queries[0], keys[0]
    batch, rows, num_heads, head_dim = query.shape
    length = key.shape[2]
    indices = {}
    if block_table is not None:
        table = _integers(block_table, "block_table", [(batch, None)], query)
        _check_range(table, "block_table", -1, len(key) - 1, f"the {len(key)} blocks of key, or -1")
        indices["block_table"] = table
        length *= table.shape[1]
    if phrases is not None:
        pairs = _integers(phrases, "phrases", [(None, 2), (batch, None, 2)], query)
        _check_range(pairs, "phrases", 0, rows, f"{rows} rows")
        indices["phrases"] = pairs if pairs.ndim == 3 else pairs.expand(batch, -1, -1)
    if tokens is not None:
        indices["tokens"] = _take_tokens(tokens, batch, length, query)
    if softcap is not None and not 0 < softcap < float("inf"):
        raise ValueError(f"softcap must be positive and finite, or None, but got {softcap!r}")
    chosen = _take_heads(heads, len(queries) if layers else None, num_heads)
    if layers and chosen:  # what is asked of no layer need not be brought together
        used = sorted({layer for layer, _ in chosen})
        queries, keys = ([of[layer] for layer in used] for of in (queries, keys))
        chosen = tuple((used.index(layer), head) for layer, head in chosen)
    keywords = {
        "heads": chosen,
        "visible": _take_visible(visible, batch, rows, length, query),
        "scale": head_dim**-0.5 if scale is None else float(scale),
        "softcap": softcap,
        **{name: _on(query.device, index) for name, index in indices.items()},
    }
    found: Any
    on_gpu = query.device.type == "cuda" and forced() != "reference"
    with torch.no_grad():
        if on_gpu and torch.float64 in (query.dtype, key.dtype):  # the only one copied to be read
            queries, keys = ([each.float() for each in of] for of in (queries, keys))
        ours = (queries, keys) if layers else (queries[0], keys[0])
        if on_gpu:
            import fastground.kernels.attention_rows as kernel

            with torch.cuda.device_of(query):
                found = kernel.attention_rows(*ours, **keywords)
        else:
            with torch.autocast(query.device.type, enabled=False):  # whose products had few bits
                found = reference.attention_rows(*ours, **keywords)
    if tokens is None:
        return give(found, given)
    return TokenRows(*(give(part, given) for part in found))


def _in_graph(query: Any, key: Any, heads: Any, **given: Any) -> Any:
    """The node in place of `attention_rows`, whose indices are tensors, or a range's three."""
    layers = isinstance(key, (list, tuple))
    tokens, given["span"] = given["tokens"], None
    if isinstance(tokens, range):
        given["tokens"], given["span"] = None, [tokens.start, tokens.stop, tokens.step]
    for name in ("tokens", "phrases", "block_table"):
        index = given[name]
        if isinstance(index, (list, tuple)):
            given[name] = torch.tensor(index, dtype=None if index else torch.int64)
    queries, keys = (
        [torch.as_tensor(each).detach() for each in (of if layers else [of])] for of in (query, key)
    )
    if layers and heads is not None:
        heads = [number for layer, head in heads for number in (layer, head)]
    found = torch.ops.fastground.attention_rows(queries, keys, layers=layers, heads=heads, **given)
    return found[0] if tokens is None else TokenRows(*found)


def _run(
    query: list[Any], key: list[Any], *, layers: bool, heads: Any, tokens: Any, span: Any,
    **given: Any,
) -> Any:  # fmt: skip
    """Rows, and sums of none where no tokens are named."""
    if layers and heads is not None:
        heads = list(zip(heads[::2], heads[1::2], strict=True))
    tokens = tokens if span is None else range(*span)
    ours = (query, key) if layers else (query[0], key[0])
    found = attention_rows(*ours, heads=heads, tokens=tokens, **given)
    return (found, found.new_empty(0)) if tokens is None else found


def _results(
    query: list[Any], key: list[Any], *, layers: bool, heads: Any, tokens: Any, span: Any,
    phrases: Any, block_table: Any, **_: Any,
) -> Any:  # fmt: skip
    batch, rows, count = query[0].shape[:3]
    count = count * len(query) if heads is None else len(heads) // (1 + layers)
    rows = rows if phrases is None else phrases.shape[-2]
    columns = key[0].shape[2] * (1 if block_table is None else block_table.shape[1])
    some = tokens if span is None else torch.arange(*span, device="meta")
    columns = columns if some is None else some.shape[-1]
    found = query[0].new_empty((batch, rows, count, columns), dtype=torch.float32)
    return found, found.new_empty(0 if some is None else (batch, rows, count))


register(
    "attention_rows",
    "(Tensor[] query, Tensor[] key, *, bool layers, int[]? heads, Tensor? visible, float? scale, "
    "float? softcap, Tensor? tokens, int[]? span, Tensor? phrases, Tensor? block_table)"
    " -> (Tensor, Tensor)",
    _results, _run,
)  # fmt: skip


def _taken(array: Any, name: str) -> torch.Tensor:
    """As a tensor; its gradient is not looked at, and there may be many of them."""
    taken = take(array, name)
    return taken if isinstance(taken, torch.Tensor) else tensor(taken)


def _check_layers(queries: list[Any], keys: list[Any], *, paged: bool) -> None:
    known = None
    for query, key in zip(queries, keys, strict=True):
        kind = (query.shape, key.shape, query.dtype, key.dtype, query.device, key.device)
        if kind == known:  # as most layers are: like the first
            continue
        known = known or kind
        for name, array in (("query", query), ("key", key)):
            if array.dtype not in DTYPES:
                raise TypeError(f"{name} must be floating, but got {dtype_name(array.dtype)}")
        first = "blocks" if paged else "batch"
        if query.ndim != 4 or key.ndim != 4 or 0 in (*query.shape[2:], *key.shape[1:]):
            raise ValueError(
                "query must be (batch, rows, num_heads, head_dim) and key "
                f"({first}, num_key_value_heads, tokens, head_dim), but got shapes "
                f"{tuple(query.shape)} and {tuple(key.shape)}"
            )
        apart = query.shape[3] != key.shape[3] or not (paged or len(query) == len(key))
        if apart or query.shape[2] % key.shape[1]:
            raise ValueError(
                "query and key must agree in batch and head_dim, and num_heads be a multiple of "
                f"num_key_value_heads, but got shapes {tuple(query.shape)} and {tuple(key.shape)}"
            )
        check_devices(query=queries[0], key=key)
        check_devices(query=queries[0], **{"the next query": query})
        for name, array, like in (("query", query, queries[0]), ("key", key, keys[0])):
            if array.shape != like.shape or array.dtype != like.dtype:
                raise ValueError(
                    f"{name} must have one shape and dtype in all layers, but got "
                    f"{tuple(like.shape)} {dtype_name(like.dtype)} and {tuple(array.shape)} "
                    f"{dtype_name(array.dtype)}; call once for each kind of layers"
                )


def check_devices(**arrays: Any) -> None:
    """Refuses arrays, by name, of different devices."""
    (first, one), *others = arrays.items()
    for name, other in others:
        if other.device != one.device:
            raise ValueError(
                f"{first} and {name} must share a device, but got {one.device} and {other.device}; "
                "move one with .to()"
            )


def _take_heads(
    heads: Sequence[Any] | None, layers: int | None, num_heads: int
) -> tuple[Any, ...] | None:
    if heads is None:
        return None
    if layers is None:
        chosen: tuple[Any, ...] = tuple(map(operator.index, heads))
        wrong: list[Any] = [head for head in chosen if not 0 <= head < num_heads]
        need = f"index 0 to {num_heads - 1}"
    else:
        single = [head for head in heads if not (isinstance(head, Sequence) and len(head) == 2)]
        if single:
            raise ValueError(
                "heads must be None or (layer, head) pairs where key is a list of layers, but got "
                f"{single[0]!r}"
            )
        chosen = tuple((operator.index(layer), operator.index(head)) for layer, head in heads)
        wrong = [(n, h) for n, h in chosen if not (0 <= n < layers and 0 <= h < num_heads)]
        need = f"(layer, head) up to ({layers - 1}, {num_heads - 1})"
    if wrong or not chosen:
        raise ValueError(
            f"heads must be None or at least one {need}, but got {wrong[0] if wrong else 'none'}"
        )
    return chosen


def _take_visible(
    visible: Any, batch: int, rows: int, tokens: int, query: torch.Tensor
) -> torch.Tensor | None:
    if visible is None:
        return None
    visible = tensor(take(visible, "visible"))
    if visible.dtype != torch.bool and visible.dtype not in DTYPES:
        raise TypeError(f"visible must be bool or floating, but got {dtype_name(visible.dtype)}")
    if visible.shape not in ((batch, tokens), (batch, rows, tokens)):
        raise ValueError(
            f"visible must be {(batch, tokens)} or {(batch, rows, tokens)}, but got shape "
            f"{tuple(visible.shape)}"
        )
    check_devices(query=query, visible=visible)
    return visible


def _take_tokens(tokens: Any, batch: int, length: int, query: torch.Tensor) -> Any:
    if isinstance(tokens, range):
        if tokens and not all(0 <= end < length for end in (tokens[0], tokens[-1])):
            raise ValueError(f"tokens must lie in the {length} keys, but got {tokens}")
        return tokens
    places = _integers(tokens, "tokens", [(None,), (batch, None)], query)
    _check_range(places, "tokens", -1, length - 1, f"the {length} keys, or -1")
    return places if places.ndim == 2 else places.expand(batch, -1)


def _integers(
    given: Any, name: str, shapes: list[tuple[int | None, ...]], query: torch.Tensor
) -> torch.Tensor:
    """Indices as int64 where they are; lists are taken, too."""
    array: Array = take(np.asarray(given) if isinstance(given, (list, tuple)) else given, name)
    empty = not array.size if isinstance(array, np.ndarray) else not array.numel()
    found = tensor(array)
    if found.dtype not in WHOLE and not (empty and isinstance(given, (list, tuple))):
        raise TypeError(f"{name} must be integers, but got {dtype_name(found.dtype)}")
    fits = any(
        found.ndim == len(shape)
        and all(need in (None, size) for need, size in zip(shape, found.shape, strict=True))
        for shape in shapes
    )
    if not fits:
        said = " or ".join(str(tuple("n" if n is None else n for n in s)) for s in shapes)
        raise ValueError(
            f"{name} must be {said}, but got shape {tuple(found.shape)}".replace("'", "")
        )
    if not found.is_cpu:
        check_devices(query=query, **{name: found})
    return found.long().contiguous()


def _check_range(index: torch.Tensor, name: str, low: int, high: int, need: str) -> None:
    """Refuses indices out of range, where they are in the host's memory to be read."""
    if not (index.is_cpu and index.numel() and holds_numbers(index)):
        return
    if not low <= int(index.min()) <= int(index.max()) <= high:
        wrong = index[(index < low) | (index > high)][0]
        raise ValueError(f"{name} must lie in {need}, but got {int(wrong)}")


def _on(device: torch.device, index: Any) -> Any:
    return index if isinstance(index, range) else index.to(device)
