"""From an image and its expressions to attention maps, or to the model's answers.

One forward an image, packed where the model allows it, left after the deepest layer that is asked
for; where it does not, the image's keys are cached, and its expressions follow. Both discovery and
grounding look at the model through this module only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import groupby, takewhile
from typing import Any

import torch

from fastground import packing
from fastground.capture import Capture
from fastground.dispatch import in_host_memory
from fastground.layers import checked_heads
from fastground.models import LVLM
from fastground.seam import empty_cache, spread
from fastground.types import AttentionMaps, Encoded, HeadId, ImageLayout, Recipe, Sample


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

    But for words that the model says (`recipe.query`), a model's first forwards, which test the
    capture, and what transformers reads itself: whether the image's tokens are as many as what the
    model sees of it. Where images and expressions are neither packed nor cached, their mask is read
    as well.

    Args:
        images: from `lvlm.encode`; read as far as a forward has room for.
        recipe: query is read.
        max_tokens: most tokens of one forward, over all of its images.
        lvlm, heads, packed: as in `attention_maps`.

    Yields:
        One AttentionMaps an image, in order; see `check_finite`.
    """
    if packed and _follow(lvlm):
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
            batch = _with_first_words(lvlm, batch, packed, {})
        for maps in _ask(lvlm, batch, heads, packed, {}):
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
    texts = said(
        lvlm, image, expressions, recipe=recipe, max_new_tokens=max_new_tokens, packed=packed,
        special_tokens=False,
    )  # fmt: skip
    return [tuple(text.split()) for text in texts]


@torch.no_grad()
def said(
    lvlm: LVLM,
    image: Any,
    expressions: Sequence[str],
    *,
    recipe: Recipe | None = None,
    max_new_tokens: int,
    packed: bool = True,
    special_tokens: bool = True,
) -> list[str]:
    """What the model says to each expression, greedily, as text up to its end token.

    Args:
        special_tokens: whether the text holds them.
        lvlm, image, expressions, recipe, max_new_tokens, packed: as in `answers`.
    """
    encoded = lvlm.encode(image, list(expressions), recipe or Recipe())
    keys = _keys(lvlm, encoded) if packed and _follow(lvlm) else {}
    packed = packed and _packs(lvlm)
    # Prompts that are not packed go alone: recurrent layers would carry padding into the answer.
    most = packing.MAX_TOKENS if packed else 1
    tokenizer, texts = lvlm.processor.tokenizer, []
    for part in packing.split(encoded, packed=packed, max_tokens=most):
        for ids in _answer(lvlm, [part], packed, max_new_tokens, keys).tolist():
            own = list(takewhile(lambda token: token != tokenizer.eos_token_id, ids))
            texts.append(tokenizer.decode(own, skip_special_tokens=not special_tokens))
    return texts


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
    keys: dict[str, Any],
) -> list[AttentionMaps]:
    """One forward: the maps of each part, a mean where several tokens ask for an expression.

    Expressions follow the keys of their image, where there are any: see `_keys`.
    """
    inputs, rows = packing.inputs_of(batch, packed, cached=bool(keys))
    layouts = _layouts(batch, packed)
    deepest = max(head.layer for head in checked_heads(heads, None, lvlm.model.config))
    inputs = _prepared(lvlm, inputs) | spread(keys, len(inputs["input_ids"]))
    with Capture(lvlm.model, heads, rows, deepest, layouts, packed, move=False) as captured:
        lvlm.model(**inputs, use_cache=bool(keys))
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
    says = recipe.query == "first_generated"
    deepest = max(head.layer for head in checked_heads(heads, None, lvlm.model.config))
    keys = _keys(lvlm, encoded, None if says else deepest)
    found = []
    for part in packing.split(encoded, packed=False, max_tokens=max_tokens):
        batch = _with_first_words(lvlm, [part], False, keys) if says else [part]
        found += _ask(lvlm, batch, heads, False, keys)
    return _joined(found)


def _keys(lvlm: LVLM, encoded: Encoded, deepest: int | None = None) -> dict[str, Any]:
    """The cached keys of an image and what stands before it; in no layer after the deepest."""
    keys = empty_cache(lvlm.model)
    with in_host_memory():
        inputs, rows = packing.prefix(encoded)
    inputs = _prepared(lvlm, inputs) | keys
    with _heard(lvlm, rows, encoded.layout, deepest):
        lvlm.model(**inputs, use_cache=True, logits_to_keep=1)
    return keys


def _heard(lvlm: LVLM, rows: torch.Tensor, layouts: Any, deepest: int | None = None) -> Any:
    """Around a forward of which no maps are asked for, which ends after the deepest layer.

    Flash attention by itself takes one text for many where positions have several axes: a capture
    does not hand them on.
    """
    if deepest is None and "flash" not in _implementation(lvlm):
        return nullcontext()
    layer = lvlm.layers_with_heads[-1] if deepest is None else deepest
    last = [(layer, head) for head in range(lvlm.architecture["num_heads"])]
    return Capture(lvlm.model, last, rows, deepest, layouts, False, move=False)


def _layouts(batch: Sequence[Encoded], packed: bool) -> list[ImageLayout]:
    """One a sequence."""
    return [part.layout for part in batch for _ in range(1 if packed else len(part.token_ids))]


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


def _with_first_words(
    lvlm: LVLM, batch: list[Encoded], packed: bool, keys: dict[str, Any]
) -> list[Encoded]:
    """The same prompts, each with the first token that the model says, which asks."""
    ids = _answer(lvlm, batch, packed, 1, keys).cpu()
    said = ids.split([len(part.token_ids) for part in batch])
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
    lvlm: LVLM, batch: Sequence[Encoded], packed: bool, max_new_tokens: int, keys: dict[str, Any]
) -> torch.Tensor:
    """(N, max_new_tokens) token ids. Every step adds one token a branch to the cached keys."""
    batch = [
        replace(part, asking=tuple((len(ids) - 1,) for ids in part.token_ids)) for part in batch
    ]
    inputs, asking = packing.inputs_of(batch, packed, cached=bool(keys))
    rows = asking.to(lvlm.device)
    elements, places = rows.unbind(1)
    kept, where = places.unique(return_inverse=True)
    several = max_new_tokens > 1
    keys = spread(keys, len(inputs["input_ids"])) or (empty_cache(lvlm.model) if several else {})
    given = _prepared(lvlm, inputs) | keys
    with _heard(lvlm, asking, _layouts(batch, packed)):
        out = lvlm.model(**given, use_cache=bool(keys), logits_to_keep=kept)
    # Some families compute the logits of all tokens whatever they are asked to keep.
    logits = out.logits if out.logits.shape[1] == len(kept) else out.logits[:, kept]
    said = [logits[elements, where].argmax(-1)]
    if not several:
        return said[0][:, None]
    assert len(batch) == 1, "several images answer one word at a time"
    count = len(rows)
    if packed:
        visible = inputs["attention_mask"].to(rows.device)[:, :, places]
        own = torch.eye(count, dtype=torch.bool, device=rows.device)[None, None]
    positions = torch.tensor(
        [packing.next_position(batch[0], len(ids)) for ids in batch[0].token_ids],
        device=rows.device,
    )
    shape = (1, count) if packed else (count, 1)
    axes = inputs["position_ids"].shape[:-2] if "position_ids" in inputs else ()
    for step in range(max_new_tokens - 1):
        inputs = {
            "input_ids": said[-1].view(shape),
            "position_ids": (positions + step).view(shape).expand(*axes, *shape),
        }
        if packed:
            inputs["attention_mask"] = visible = torch.cat([visible, own], dim=-1)
        out = lvlm.model(**_prepared(lvlm, inputs), **keys, use_cache=True)
        said.append(out.logits.argmax(-1).view(count))
    return torch.stack(said, dim=1)


def _packs(lvlm: LVLM) -> bool:
    """Whether expressions may share a sequence: its mask must reach the model's attention."""
    return lvlm.shares_prefix and _implementation(lvlm) in ("sdpa", "eager")


def _implementation(lvlm: LVLM) -> str:
    """What transformers calls the attention of the words."""
    return str(lvlm.model.config.get_text_config(decoder=True)._attn_implementation)


def _follow(lvlm: LVLM) -> bool:
    """Whether expressions that may not share a sequence follow the image's cached keys."""
    return lvlm.caches_prefix and not _packs(lvlm)


def _prepared(lvlm: LVLM, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs on the model's device, with the kind of mask that its attention takes."""
    inputs = _there({**inputs, **lvlm.token_inputs(inputs["input_ids"])}, lvlm)
    mask = inputs.get("attention_mask")
    if _implementation(lvlm) == "eager" and mask is not None and mask.ndim == 4:
        inputs["attention_mask"] = packing.additive(mask, lvlm.model.dtype)
    return inputs


def _there(inputs: dict[str, torch.Tensor], lvlm: LVLM) -> dict[str, torch.Tensor]:
    """The tensors on the model's device; a GPU fetches them itself, out of pinned memory."""
    device = lvlm.device
    if device.type == "cuda":
        inputs = {n: x.pin_memory() if x.is_cpu else x for n, x in inputs.items()}
    return {name: value.to(device, non_blocking=True) for name, value in inputs.items()}
