"""All expressions of an image in one sequence: the image once, each expression its own branch.

        image prefix      branch 1     branch 2
    p0 p1 p2 ... pn-1   a0 a1 a2 a3   b0 b1 b2        one sequence of T tokens
     0  1  2 ...  n-1    n n+1 ..      n n+1 ..       positions restart after the image

    visible to     prefix   branch 1   branch 2
    prefix         causal      .          .
    branch 1         all     causal       .
    branch 2         all       .        causal

Every token sees what it would see alone, at the same positions, so the numbers are the same and
the image, which is nearly all of the sequence, is computed once. Valid where image tokens see
nothing after them (`LVLM.shares_prefix`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastground.types import Encoded

if TYPE_CHECKING:
    import torch

MAX_TOKENS = 2048
"""Default length of a pack: the mask and the attention grow with its square."""


def pack(encoded: Encoded) -> tuple[dict[str, Any], torch.Tensor]:
    """Model inputs of one sequence that holds every expression.

    Returns:
        (inputs, rows): input_ids (1, T), attention_mask (1, 1, T, T) bool, position_ids (1, T) and
        the image's own; rows (N, 2) int64, batch index and sequence position of each asking token.
    """
    import torch

    prefix = encoded.prefix_length
    branches = [ids[prefix:] for ids in encoded.token_ids]
    lengths = [len(branch) for branch in branches]
    input_ids = torch.cat([encoded.token_ids[0][:prefix], *branches])
    positions = torch.cat([torch.arange(prefix), *(prefix + torch.arange(n) for n in lengths)])
    branch = torch.repeat_interleave(torch.tensor([prefix, *lengths]))
    visible = ((branch == 0) | (branch == branch[:, None])).tril_()[None, None]
    starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    rows = torch.stack([torch.zeros_like(starts), starts + torch.tensor(encoded.asking)], dim=1)
    return {
        "input_ids": input_ids[None],
        "attention_mask": visible,
        "position_ids": positions[None],
        **encoded.image_inputs,
    }, rows


def separate(encoded: Encoded) -> tuple[dict[str, Any], torch.Tensor]:
    """Model inputs of one sequence an expression, padded on the right; the image is repeated.

    Returns:
        (inputs, rows): input_ids and attention_mask (N, T) and the image's own, N times; rows
        (N, 2) int64 as in `pack`.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    count = len(encoded.token_ids)
    ones = [torch.ones_like(ids) for ids in encoded.token_ids]
    # Any token but an image's will do where nobody looks.
    fill = int(encoded.token_ids[0][-1])
    image_inputs = {
        name: value.expand(count, *value.shape[1:]) for name, value in encoded.image_inputs.items()
    }
    return {
        "input_ids": pad_sequence(list(encoded.token_ids), batch_first=True, padding_value=fill),
        "attention_mask": pad_sequence(ones, batch_first=True),
        **image_inputs,
    }, torch.stack([torch.arange(count), torch.tensor(encoded.asking)], dim=1)


def split(encoded: Encoded, *, packed: bool = True, max_tokens: int = MAX_TOKENS) -> list[Encoded]:
    """The same expressions in as many parts as the token budget asks for, in order.

    Args:
        encoded: the image and its expressions.
        packed: whether a part costs its prefix once (`pack`) or every prompt whole (`separate`).
        max_tokens: most tokens of one forward; an expression that exceeds it goes alone.
    """
    prefix = encoded.prefix_length
    cost = [len(ids) - prefix if packed else len(ids) for ids in encoded.token_ids]
    parts: list[list[int]] = [[]]
    room = max_tokens - (prefix if packed else 0)
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


def additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask that eager attention adds to its logits: 0 where visible, else the least number."""
    import torch

    hidden = torch.full(visible.shape, torch.finfo(dtype).min, dtype=dtype, device=visible.device)
    return hidden.masked_fill_(visible, 0)
