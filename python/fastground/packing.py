"""All expressions of an image in one sequence: the image once, each expression its own branch.

        image prefix      branch 1     branch 2
    p0 p1 p2 ... pn-1   a0 a1 a2 a3   b0 b1 b2        one sequence of T tokens
     0  1  2 ...  n-1    n n+1 ..      n n+1 ..       positions restart after the image

    visible to     prefix   branch 1   branch 2
    prefix         causal      .          .
    branch 1         all     causal       .
    branch 2         all       .        causal

Every token sees what it would see alone, at the same positions, so the numbers are the same and
the image, which is nearly all of the sequence, is computed once. Valid where a token may see any
before it, whatever stands between, and no image token one after it (`LVLM.shares_prefix`).

Where layers are recurrent, see the last so many tokens only, or let the image's tokens see each
other, the image is computed once all the same (`LVLM.caches_prefix`): its prefix goes first, alone,
and each expression is a sequence of its own behind the keys that are left in the cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from fastground.types import Encoded

if TYPE_CHECKING:
    import torch

MAX_TOKENS = 2048
"""Default length of a pack: the mask and the attention grow with its square."""


def inputs_of(
    images: Sequence[Encoded], packed: bool, *, cached: bool = False
) -> tuple[dict[str, Any], torch.Tensor]:
    """What `pack`, `branches` or `separate` returns, in the host's memory.

    Args:
        images: from an adapter; one alone, where it is cached.
        packed: whether the expressions of an image share a sequence.
        cached: whether they follow the keys of the prefix.
    """
    from fastground.dispatch import in_host_memory

    with in_host_memory():
        return (pack if packed else branches if cached else separate)(*images)


def pack(*images: Encoded) -> tuple[dict[str, Any], torch.Tensor]:
    """Model inputs of one sequence an image, which holds all of its expressions.

    Returns:
        (inputs, rows): input_ids (B, T), attention_mask (B, 1, T, T) bool, position_ids (B, T), or
        (axes, B, T) where the model counts in several axes, and the images' own; rows (N, 2) int64,
        batch index and sequence position of each asking token, image by image.
    """
    import torch

    ids, spans, positions, rows = [], [], [], []
    for index, encoded in enumerate(images):
        prefix = encoded.prefix_length
        branches = [prompt[prefix:] for prompt in encoded.token_ids]
        ends = accumulate(map(len, branches), initial=prefix)
        spans.append(list(pairwise(ends)))
        ids.append(torch.cat([encoded.token_ids[0][:prefix], *branches]))
        whole = [_positions(encoded, len(prompt)) for prompt in encoded.token_ids]
        positions.append(torch.cat([whole[0][:, :prefix], *(p[:, prefix:] for p in whole)], dim=1))
        rows += [
            (index, start - prefix + i)
            for (start, _), asking in zip(spans[-1], encoded.asking, strict=True)
            for i in asking
        ]
    length = max(map(len, ids))
    visible = torch.ones(length, length, dtype=torch.bool).tril_().repeat(len(images), 1, 1, 1)
    for mask, encoded, own in zip(visible[:, 0], images, spans, strict=True):
        for start, end in own:
            mask[start:end, encoded.prefix_length : start] = False
        mask[own[-1][1] :, : own[-1][1]] = False  # padding sees none but padding
    return {
        "input_ids": _padded(ids, images),
        "attention_mask": visible,
        "position_ids": _in_batch(positions),
        **_image_inputs(images),
    }, torch.tensor(rows)


def separate(*images: Encoded) -> tuple[dict[str, Any], torch.Tensor]:
    """Model inputs of one sequence an expression, padded on the right; the image is repeated.

    Returns:
        (inputs, rows): input_ids and attention_mask (N, T), position_ids (axes, N, T) where the
        model counts in several axes, and the images' own, N times; rows (M, 2) int64 as in `pack`.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    each = [encoded for encoded in images for _ in encoded.token_ids]
    ids = [prompt for encoded in images for prompt in encoded.token_ids]
    asking = [asks for encoded in images for asks in encoded.asking]
    inputs = {
        "input_ids": _padded(ids, each),
        "attention_mask": pad_sequence([torch.ones_like(x) for x in ids], batch_first=True),
        **_image_inputs(each),
    }
    if each[0].prefix_positions is not None:
        positions = [_positions(encoded, len(x)) for encoded, x in zip(each, ids, strict=True)]
        inputs["position_ids"] = _in_batch(positions)
    return inputs, torch.tensor([(i, p) for i, asks in enumerate(asking) for p in asks])


def prefix(encoded: Encoded) -> tuple[dict[str, Any], torch.Tensor]:
    """What `separate` returns, of the image and what stands before it; the last token asks.

    Without attention_mask, as in `branches`: there is no padding.
    """
    length = encoded.prefix_length
    shared = encoded.token_ids[0][:length]
    inputs, rows = separate(replace(encoded, token_ids=(shared,), asking=((length - 1,),)))
    del inputs["attention_mask"]
    return inputs, rows


def branches(encoded: Encoded) -> tuple[dict[str, Any], torch.Tensor]:
    """Model inputs of one sequence an expression, behind the cached keys of the prefix.

    Without attention_mask: no word sees the padding after it, and masks of two axes are read on the
    host, for which a GPU is waited for.

    Returns:
        (inputs, rows): input_ids (N, T) of what comes after the prefix, position_ids (N, T) or
        (axes, N, T); rows (M, 2) int64 as in `pack`.
    """
    import torch

    inputs, rows = separate(replace(encoded, image_inputs={}))
    del inputs["attention_mask"]
    first, ids = encoded.prefix_length, inputs["input_ids"]
    if "position_ids" not in inputs:
        inputs["position_ids"] = torch.arange(ids.shape[1]).expand(len(ids), -1)
    for name in ("input_ids", "position_ids"):
        inputs[name] = inputs[name][..., first:]
    return inputs, rows - torch.tensor([0, first])


def next_position(encoded: Encoded, tokens: int) -> int:
    """The position of the token after a prompt of so many."""
    after = tokens - encoded.prefix_length
    if encoded.prefix_positions is None:
        return tokens
    return int(encoded.prefix_positions.max()) + 1 + after


def _positions(encoded: Encoded, tokens: int) -> torch.Tensor:
    """(axes, tokens) positions of a prompt of so many tokens."""
    import torch

    if encoded.prefix_positions is None:
        return torch.arange(tokens)[None]
    prefix = encoded.prefix_positions
    first = next_position(encoded, encoded.prefix_length)
    words = first + torch.arange(tokens - encoded.prefix_length)
    return torch.cat([prefix, words.expand(len(prefix), -1)], dim=1)


def _padded(ids: list[torch.Tensor], encoded: Sequence[Encoded]) -> torch.Tensor:
    """(B, T) on the right with any token but an image's: nobody looks there."""
    from torch.nn.utils.rnn import pad_sequence

    fill = int(encoded[0].token_ids[0][-1])
    return pad_sequence(ids, batch_first=True, padding_value=fill)


def _in_batch(positions: list[torch.Tensor]) -> torch.Tensor:
    """(B, T), or (axes, B, T) where there are several, of (axes, tokens) each."""
    from torch.nn.utils.rnn import pad_sequence

    whole = pad_sequence([p.T for p in positions], batch_first=True).movedim(-1, 0)
    return whole[0] if len(whole) == 1 else whole


def _image_inputs(images: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    """The images' inputs one after the other; smaller ones are padded with zeros at their ends.

    Some images may be without an input that others have, as those without tiles are.
    """
    joined = {}
    for name in dict.fromkeys(name for encoded in images for name in encoded.image_inputs):
        having = [encoded for encoded in images if name in encoded.image_inputs]
        axis = having[0].axes.get(name, 0)
        parts = [encoded.image_inputs[name].transpose(0, axis) for encoded in having]
        if name in having[0].counted:
            counts = [encoded.counted[name] for encoded in having]
            parts = [
                part.where(part < 0, part + sum(counts[:index])) for index, part in enumerate(parts)
            ]
        shape = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
        whole = parts[0].new_zeros(sum(map(len, parts)), *shape)
        start = 0
        for part in parts:
            here = (slice(start, start + len(part)), *map(slice, part.shape[1:]))
            whole[here] = part
            start += len(part)
        joined[name] = whole.transpose(0, axis)
    return joined


def split(encoded: Encoded, *, packed: bool = True, max_tokens: int = MAX_TOKENS) -> list[Encoded]:
    """The same expressions in as many parts as the token budget asks for, in order.

    Args:
        encoded: the image and its expressions.
        packed: whether a part costs its prefix once (`pack`) or every prompt whole (`separate`).
        max_tokens: most tokens of one forward, or half of them beside a large image; an expression
            that exceeds that goes alone.
    """
    prefix = encoded.prefix_length
    cost = [len(ids) - prefix if packed else len(ids) for ids in encoded.token_ids]
    parts: list[list[int]] = [[]]
    # Half the budget is the words' even beside an image that is larger: to share it is the point.
    room = max(max_tokens - prefix, max_tokens // 2) if packed else max_tokens
    left = room
    for i, tokens in enumerate(cost):
        if parts[-1] and tokens > left:
            parts.append([])
            left = room
        parts[-1].append(i)
        left -= tokens
    return [
        replace(
            encoded,
            expressions=tuple(encoded.expressions[i] for i in part),
            token_ids=tuple(encoded.token_ids[i] for i in part),
            asking=tuple(encoded.asking[i] for i in part),
        )
        for part in parts
    ]


def batches(
    parts: Iterable[Encoded], *, packed: bool = True, max_tokens: int = MAX_TOKENS
) -> Iterator[list[Encoded]]:
    """Parts of one image or several, in order, as many at a time as the token budget allows.

    A batch costs as many tokens as its sequences have, each padded to the longest. Images that may
    not be padded to each other's size are in batches of their own.
    """
    batch: list[Encoded] = []
    sequences = longest = 0
    for part in parts:
        lengths = [len(ids) for ids in part.token_ids]
        count = 1 if packed else len(lengths)
        length = max(lengths)
        if packed:
            length = part.prefix_length + sum(n - part.prefix_length for n in lengths)
        cost = (sequences + count) * max(longest, length)
        if batch and (cost > max_tokens or not _fit(batch[-1], part)):
            yield batch
            batch, sequences, longest = [], 0, 0
        batch.append(part)
        sequences, longest = sequences + count, max(longest, length)
    if batch:
        yield batch


def _fit(one: Encoded, other: Encoded) -> bool:
    """Whether two images may share a forward."""
    same = (x.shape == other.image_inputs[name].shape for name, x in one.image_inputs.items())
    return one.pads or all(same)


def additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask that eager attention adds to its logits: 0 where visible, else the least number."""
    import torch

    hidden = torch.full(visible.shape, torch.finfo(dtype).min, dtype=dtype, device=visible.device)
    return hidden.masked_fill_(visible, 0)
