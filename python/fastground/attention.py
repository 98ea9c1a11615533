"""From an image and its expressions to attention maps, or to the model's answers.

One forward an image, packed where the model allows it, left after the deepest layer that is asked
for; where it does not, the image's keys are cached, and its expressions follow. Both discovery and
grounding look at the model through this module only.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch

from fastground import packing
from fastground.capture import Capture
from fastground.dispatch import in_host_memory
from fastground.layers import checked_heads
from fastground.models import LVLM
from fastground.seam import cache_name, empty_cache
from fastground.types import AttentionMaps, Encoded, HeadId, Recipe, Sample


def attention_maps(
    lvlm: LVLM,
    image: Any,
    expressions: Sequence[str],
    *,
    recipe: Recipe = Recipe(),
    heads: Sequence[HeadId | tuple[int, int]] | None = None,
    packed: bool = True,
    max_tokens: int = packing.MAX_TOKENS,
) -> AttentionMaps:
    """What each expression's asking token sees of the image, head by head.

    Args:
        lvlm: the model, from `fastground.models`.
        image: PIL image, or a path to one; or both encoded already.
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
    if not isinstance(image, Encoded):
        image = lvlm.encode(image, list(expressions), recipe)
    [found] = attention_of_encoded(
        lvlm, [image], recipe=recipe, heads=heads, packed=packed, max_tokens=max_tokens
    )
    check_finite(lvlm, found.sums)
    return found


def attention_of_encoded(
    lvlm: LVLM,
    images: Iterable[Encoded],
    *,
    recipe: Recipe,
    heads: Sequence[HeadId | tuple[int, int]] | None = None,
    packed: bool = True,
    max_tokens: int = packing.MAX_TOKENS,
) -> Iterator[AttentionMaps]:
    """The same for many images, of which several share a forward; a GPU is not waited for.

    Args:
        images: from `lvlm.encode`; read as far as a forward has room for.
        recipe: query is read.
        max_tokens: most tokens of one forward, over all of its images.
        lvlm, heads, packed: as in `attention_maps`.

    Yields:
        One AttentionMaps an image, in order; see `check_finite`.
    """
    if packed and lvlm.caches_prefix and not _packs(lvlm):
        for alone, run in groupby(images, lambda encoded: len(encoded.token_ids) == 1):
            if alone:
                yield from _attention(lvlm, run, recipe, heads, False, max_tokens)
            else:
                yield from (_behind_image(lvlm, e, recipe, heads, max_tokens) for e in run)
        return
    yield from _attention(lvlm, images, recipe, heads, packed and _packs(lvlm), max_tokens)


def _attention(
    lvlm: LVLM,
    images: Iterable[Encoded],
    recipe: Recipe,
    heads: Sequence[HeadId | tuple[int, int]] | None,
    packed: bool,
    max_tokens: int,
) -> Iterator[AttentionMaps]:
    """By forwards that hold images and expressions: a sequence an image, or one an expression."""
    left: list[int] = []  # of each image begun, how many of its parts are still to come

    def parts() -> Iterator[Encoded]:
        for encoded in images:
            encoded = replace(encoded, image_inputs=_there(encoded.image_inputs, lvlm))
            several = packing.split(encoded, packed=packed, max_tokens=max_tokens)
            left.append(len(several))
            yield from several

    whole: list[AttentionMaps] = []
    for batch in packing.batches(parts(), packed=packed, max_tokens=max_tokens):
        if recipe.query == "first_generated":
            batch = _with_first_words(lvlm, batch, packed)
        for maps in _ask(lvlm, batch, heads, packed):
            whole.append(maps)
            if len(whole) == left[0]:
                yield _joined(whole)
                whole = []
                left.pop(0)


def check_finite(lvlm: LVLM, sums: torch.Tensor) -> None:
    """Nothing, where the model's attention is finite; a GPU is waited for.

    Args:
        lvlm: the model.
        sums: its attention sums, of any shape.

    Raises:
        ValueError: a sum is NaN or infinite.
    """
    if not bool(sums.isfinite().all()):
        raise ValueError(
            f"model must have finite attention, but {lvlm!r} gave NaN; if float16 overflowed, "
            "load it with dtype=torch.bfloat16 or torch.float32"
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
    ids = _said_ids(lvlm, image, expressions, recipe or Recipe(), max_new_tokens, packed)
    decode = lvlm.processor.tokenizer.decode
    return [tuple(decode(each, skip_special_tokens=True).split()) for each in ids]


@torch.no_grad()
def said(
    lvlm: LVLM,
    image: Any,
    expressions: Sequence[str],
    *,
    recipe: Recipe | None = None,
    max_new_tokens: int,
    packed: bool = True,
) -> list[str]:
    """What the model says to each expression, greedily, as text with its special tokens.

    Args:
        lvlm, image, expressions, recipe, max_new_tokens, packed: as in `answers`.
    """
    ids = _said_ids(lvlm, image, expressions, recipe or Recipe(), max_new_tokens, packed)
    decode = lvlm.processor.tokenizer.decode
    return [decode(each, skip_special_tokens=False) for each in ids]


def _said_ids(
    lvlm: LVLM,
    image: Any,
    expressions: Sequence[str],
    recipe: Recipe,
    max_new_tokens: int,
    packed: bool,
) -> Iterator[list[int]]:
    """The tokens that the model says to each expression, up to its end token."""
    packed = packed and _packs(lvlm)
    encoded = lvlm.encode(image, list(expressions), recipe)
    end = lvlm.processor.tokenizer.eos_token_id
    # Prompts that are not packed go alone: recurrent layers would carry padding into the answer.
    for part in packing.split(
        encoded, packed=packed, max_tokens=packing.MAX_TOKENS if packed else 1
    ):
        for ids in _answer(lvlm, [part], packed, max_new_tokens).tolist():
            yield ids[: ids.index(end)] if end in ids else ids


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
    batch: Sequence[Encoded],
    heads: Sequence[HeadId | tuple[int, int]] | None,
    packed: bool,
) -> list[AttentionMaps]:
    """One forward: the maps of each part, a mean where several tokens ask for an expression."""
    inputs, rows = packing.inputs_of(batch, packed)
    layouts = [part.layout for part in batch for _ in range(1 if packed else len(part.token_ids))]
    deepest = max(head.layer for head in checked_heads(heads, None, lvlm.model.config))
    inputs = _prepared(lvlm, inputs)
    with Capture(lvlm.model, heads, rows, deepest, layouts, packed, move=False) as captured:
        lvlm.model(**inputs, use_cache=False)
    sequences = iter(captured.each)
    found = []
    for part in batch:
        mine = _joined([next(sequences) for _ in range(1 if packed else len(part.token_ids))])
        found.append(_mean(mine, [len(asks) for asks in part.asking]))
    return found


@torch.no_grad()
def _behind_image(
    lvlm: LVLM,
    encoded: Encoded,
    recipe: Recipe,
    heads: Sequence[HeadId | tuple[int, int]] | None,
    max_tokens: int,
) -> AttentionMaps:
    """Of one image, whose keys are computed once, and each expression a sequence behind them."""
    deepest = max(head.layer for head in checked_heads(heads, None, lvlm.model.config))
    last = [(deepest, head) for head in range(lvlm.architecture["num_heads"])]
    name, image, layout = cache_name(lvlm.model), empty_cache(lvlm.model), encoded.layout
    with in_host_memory():
        inputs, rows = packing.prefix(encoded)
    # No layer after the deepest is needed.
    with Capture(lvlm.model, last, rows, deepest, layout, False, move=False):
        lvlm.model(**_prepared(lvlm, inputs), **{name: image}, use_cache=True)
    found = []
    for part in packing.split(encoded, packed=False, max_tokens=max_tokens):
        if recipe.query == "first_generated":
            [part] = _with_first_words(lvlm, [part], packed=False)
        with in_host_memory():
            inputs, rows = packing.branches(part)
        keys = copy.deepcopy(image)
        keys.reorder_cache(torch.zeros(len(part.token_ids), dtype=torch.long, device=lvlm.device))
        with Capture(lvlm.model, heads, rows, deepest, layout, False, move=False) as captured:
            lvlm.model(**_prepared(lvlm, inputs), **{name: keys}, use_cache=True)
        found.append(_mean(captured.maps, [len(asks) for asks in part.asking]))
    return _joined(found)


def _joined(parts: list[AttentionMaps]) -> AttentionMaps:
    """The expressions of several parts of one image."""
    if len(parts) == 1:
        return parts[0]
    return replace(
        parts[0],
        maps=torch.cat([part.maps for part in parts]),
        sums=torch.cat([part.sums for part in parts]),
    )


def _mean(attention: AttentionMaps, counts: list[int]) -> AttentionMaps:
    """One map an expression, the mean over as many rows as counted."""
    if all(count == 1 for count in counts):
        return attention
    return replace(
        attention,
        maps=torch.stack([rows.mean(0) for rows in attention.maps.split(counts)]),
        sums=torch.stack([rows.mean(0) for rows in attention.sums.split(counts)]),
    )


def _with_first_words(lvlm: LVLM, batch: list[Encoded], packed: bool) -> list[Encoded]:
    """The same prompts, each with the first token that the model says, which asks."""
    said = _answer(lvlm, batch, packed, 1).cpu().split([len(part.token_ids) for part in batch])
    return [
        replace(
            part,
            token_ids=tuple(torch.cat(pair) for pair in zip(part.token_ids, words, strict=True)),
            asking=tuple((len(ids),) for ids in part.token_ids),
        )
        for part, words in zip(batch, said, strict=True)
    ]


@torch.no_grad()
def _answer(
    lvlm: LVLM, batch: Sequence[Encoded], packed: bool, max_new_tokens: int
) -> torch.Tensor:
    """(N, max_new_tokens) token ids. Every step adds one token a branch to the cached keys."""
    batch = [
        replace(part, asking=tuple((len(ids) - 1,) for ids in part.token_ids)) for part in batch
    ]
    inputs, rows = packing.inputs_of(batch, packed)
    rows = rows.to(lvlm.device)
    elements, places = rows.unbind(1)
    kept, where = places.unique(return_inverse=True)
    several = max_new_tokens > 1
    keys = {cache_name(lvlm.model): empty_cache(lvlm.model)} if several else {}
    out = lvlm.model(**_prepared(lvlm, inputs), **keys, use_cache=several, logits_to_keep=kept)
    # Some families compute the logits of all tokens whatever they are asked to keep.
    logits = out.logits if out.logits.shape[1] == len(kept) else out.logits[:, kept]
    said = [logits[elements, where].argmax(-1)]
    if not several:
        return said[0][:, None]
    assert len(batch) == 1, "several images answer one word at a time"
    count = len(rows)
    mask = inputs["attention_mask"].to(rows.device)
    visible = mask[:, :, places] if packed else mask
    own = torch.eye(count, dtype=torch.bool, device=rows.device)[None, None]
    own = own if packed else mask.new_ones(count, 1)
    positions = torch.tensor(
        [packing.next_position(batch[0], len(ids)) for ids in batch[0].token_ids],
        device=rows.device,
    )
    shape = (1, count) if packed else (count, 1)
    axes = inputs["position_ids"].shape[:-2] if "position_ids" in inputs else ()
    for step in range(max_new_tokens - 1):
        visible = torch.cat([visible, own], dim=-1)
        inputs = {
            "input_ids": said[-1].view(shape),
            "position_ids": (positions + step).view(shape).expand(*axes, *shape),
            "attention_mask": visible,
        }
        out = lvlm.model(**_prepared(lvlm, inputs), **keys, use_cache=True)
        said.append(out.logits.argmax(-1).view(count))
    return torch.stack(said, dim=1)


def _packs(lvlm: LVLM) -> bool:
    """Whether expressions may share a sequence: its mask must reach the model's attention."""
    text = lvlm.model.config.get_text_config(decoder=True)
    return lvlm.shares_prefix and text._attn_implementation in ("sdpa", "eager")


def _prepared(lvlm: LVLM, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs on the model's device, with the kind of mask that its attention takes."""
    inputs = _there({**inputs, **lvlm.token_inputs(inputs["input_ids"])}, lvlm)
    eager = lvlm.model.config.get_text_config(decoder=True)._attn_implementation == "eager"
    if eager and inputs["attention_mask"].ndim == 4:
        mask = packing.additive(inputs["attention_mask"], lvlm.model.dtype)
        inputs["attention_mask"] = mask
    return inputs


def _there(inputs: dict[str, torch.Tensor], lvlm: LVLM) -> dict[str, torch.Tensor]:
    """The tensors on the model's device; a GPU fetches them itself, out of pinned memory."""
    device = lvlm.device
    if device.type == "cuda":
        inputs = {n: x.pin_memory() if x.is_cpu else x for n, x in inputs.items()}
    return {name: value.to(device, non_blocking=True) for name, value in inputs.items()}
