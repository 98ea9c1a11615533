"""From an image and its expressions to attention maps, or to the model's answers.

One forward an image, packed where the model allows it, left after the deepest layer that is asked
for. Both discovery and grounding look at the model through this module only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from fastground import packing
from fastground.capture import capture
from fastground.models import LVLM
from fastground.types import AttentionMaps, Encoded, HeadId, Recipe, Sample


def attention_maps(
    lvlm: LVLM,
    image: Any,
    expressions: Sequence[str],
    *,
    recipe: Recipe,
    heads: Sequence[HeadId | tuple[int, int]] | None = None,
    packed: bool = True,
    max_tokens: int = packing.MAX_TOKENS,
) -> AttentionMaps:
    """What each expression's asking token sees of the image, head by head.

    Args:
        lvlm: the model, from `fastground.models`.
        image: PIL image, or a path to one.
        expressions: N of them.
        recipe: template, query and ensure_period are read.
        heads: (layer, head) pairs, kept in this order; all heads unless given.
        packed: share the image among the expressions, where the model allows it; the numbers are
            the same.
        max_tokens: most tokens of one forward; more expressions take several.

    Returns:
        AttentionMaps of (N, heads, grid_h, grid_w) on the model's device.

    Raises:
        ValueError: a bad image, expression or head; attention that is NaN.
    """
    packed = packed and lvlm.shares_prefix
    encoded = lvlm.encode(image, list(expressions), recipe)
    parts = packing.split(encoded, packed=packed, max_tokens=max_tokens)
    found = [_ask(lvlm, part, heads, packed) for part in parts]
    if len(found) == 1:
        return found[0]
    return replace(
        found[0],
        maps=torch.cat([part.maps for part in found]),
        sums=torch.cat([part.sums for part in found]),
    )


@torch.no_grad()
def answers(
    lvlm: LVLM,
    image: Any,
    expressions: Sequence[str],
    *,
    recipe: Recipe | None = None,
    max_new_tokens: int = 3,
    packed: bool = True,
) -> list[tuple[str, ...]]:
    """The words that the model says to each expression, greedily.

    Args:
        recipe: template and ensure_period are read; the paper's unless given.
        max_new_tokens: most tokens of an answer; an end token ends it before.
        packed: as in `attention_maps`, like `lvlm`, `image` and `expressions`.

    Returns:
        Per expression its words, split at white space.
    """
    packed = packed and lvlm.shares_prefix
    encoded = lvlm.encode(image, list(expressions), recipe or Recipe())
    encoded = replace(encoded, asking=tuple(len(ids) - 1 for ids in encoded.token_ids))
    tokenizer = lvlm.processor.tokenizer
    words = []
    for part in packing.split(encoded, packed=packed):
        for ids in _answer(lvlm, part, packed, max_new_tokens).tolist():
            if tokenizer.eos_token_id in ids:
                ids = ids[: ids.index(tokenizer.eos_token_id)]
            words.append(tuple(tokenizer.decode(ids, skip_special_tokens=True).split()))
    return words


def right_answers(
    lvlm: LVLM, samples: Sequence[Sample], *, recipe: Recipe | None = None
) -> list[bool]:
    """Whether the model, asked about each expression, says the answer word for word.

    Args:
        samples: of one image, each with an answer.
        recipe: as in `answers`.
    """
    tokenizer = lvlm.processor.tokenizer
    words = [" ".join(sample.answer) for sample in samples]
    longest = max(len(ids) for ids in tokenizer(words, add_special_tokens=False)["input_ids"])
    said = answers(
        lvlm, samples[0].image, [sample.expression for sample in samples],
        recipe=recipe, max_new_tokens=longest,
    )  # fmt: skip
    return [
        mine[: len(sample.answer)] == tuple(sample.answer)
        for mine, sample in zip(said, samples, strict=True)
    ]


@torch.no_grad()
def _ask(
    lvlm: LVLM,
    encoded: Encoded,
    heads: Sequence[HeadId | tuple[int, int]] | None,
    packed: bool,
) -> AttentionMaps:
    inputs, rows = packing.pack(encoded) if packed else packing.separate(encoded)
    deepest = lvlm.architecture["num_layers"] - 1
    if heads is not None:  # capture refuses heads that the model does not have
        deepest = max(0, min(deepest, max((int(head[0]) for head in heads), default=0)))
    inputs = _prepared(lvlm, inputs)
    with capture(lvlm.model, heads, rows, deepest, encoded.layout) as captured:
        lvlm.model(**inputs, use_cache=False)
    maps = captured.maps
    if not bool(maps.sums.isfinite().all()):
        raise ValueError(
            f"model must have finite attention, but {lvlm!r} gave NaN; if float16 overflowed, load "
            "it with dtype=torch.bfloat16 or torch.float32"
        )
    return maps


def _answer(lvlm: LVLM, encoded: Encoded, packed: bool, max_new_tokens: int) -> torch.Tensor:
    """(N, max_new_tokens) token ids. Every step adds one token a branch to the cached keys."""
    inputs, rows = packing.pack(encoded) if packed else packing.separate(encoded)
    rows = rows.to(lvlm.model.device)
    count = len(rows)
    steps = torch.arange(count, device=rows.device)
    out = lvlm.model(**_prepared(lvlm, inputs), use_cache=True, logits_to_keep=rows[:, 1])
    said = [out.logits[rows[:, 0], steps].argmax(-1)]
    mask = inputs["attention_mask"].to(rows.device)
    visible = mask[:, :, rows[:, 1]] if packed else mask
    own = torch.eye(count, dtype=torch.bool, device=rows.device)[None, None]
    own = own if packed else mask.new_ones(count, 1)
    positions = torch.tensor([len(ids) for ids in encoded.token_ids], device=rows.device)
    shape = (1, count) if packed else (count, 1)
    for step in range(max_new_tokens - 1):
        visible = torch.cat([visible, own], dim=-1)
        inputs = {
            "input_ids": said[-1].view(shape),
            "position_ids": (positions + step).view(shape),
            "attention_mask": visible,
        }
        out = lvlm.model(
            **_prepared(lvlm, inputs), past_key_values=out.past_key_values, use_cache=True
        )
        said.append(out.logits.argmax(-1).view(count))
    return torch.stack(said, dim=1)


def _prepared(lvlm: LVLM, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs on the model's device, with the kind of mask that its attention takes."""
    inputs = {name: value.to(lvlm.model.device) for name, value in inputs.items()}
    eager = lvlm.model.config.get_text_config(decoder=True)._attn_implementation == "eager"
    if eager and inputs["attention_mask"].ndim == 4:
        mask = packing.additive(inputs["attention_mask"], lvlm.model.dtype)
        inputs["attention_mask"] = mask
    return inputs
