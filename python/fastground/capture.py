"""One forward of any transformers LVLM, and what its asking tokens see of the image.

transformers lets a model call a registered attention function instead of its own. Inside the
`with` block the language model calls `_attend`, which hands on to the model's own implementation
with the very same arguments, so that the model's output is the same bit for bit, and beside it

    q of the asking tokens, cached K of the layer
      -> softmax over all visible keys (ops.attention_rows), chosen heads only
      -> what of it falls on the image: a map and its sum

Nothing of size tokens x tokens is kept. A mask function must be registered under the same name, or
transformers silently passes no mask; a mask that is lost on its way is an error here.

Stopping after a layer: the last needed layer raises `_Stop` before its own attention runs. The
exception ends the model's forward and then the `with` block, whose exit swallows it; statements
after the model's call inside the block are skipped. The next forward is not affected.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from fastground import ops
from fastground.types import AttentionMaps, HeadId, ImageLayout

_NAME = "fastground"
_active: dict[int, Capture] = {}
"""The running captures by the id of the text configuration, which both seams are given."""


def capture(
    model: Any,
    heads: Sequence[HeadId | tuple[int, int]] | None = None,
    rows: str | torch.Tensor = "last",
    stop_after: int | None = None,
    layouts: ImageLayout | Sequence[ImageLayout] | None = None,
) -> Capture:
    """Capture the attention maps of one forward: `with capture(model) as captured: model(...)`.

    Args:
        model: a transformers LVLM with sdpa or eager attention; call it once inside the block.
            The input is read on the host once a forward, which synchronises a GPU.
        heads: the (layer, head) pairs to keep, in this order; all unless given.
        rows: the asking tokens: "last", one a sequence, its last token that is not padding; or
            (N, 2) int64, batch index and sequence position, each a row of the result.
        stop_after: end the forward after this layer's maps. The model then returns nothing, and
            the block is left at that call.
        layouts: where the image's tokens are among the keys, one for all sequences or one each;
            read off the input (image token ids and pixel values) unless given.

    Returns:
        The context; after the block `.maps` (AttentionMaps; its layout is the first row's) and
        `.sums` (N, heads) float32.

    Raises:
        ValueError: heads, rows or stop_after that the model does not have; attention that is
            neither sdpa nor eager. At the forward: no image is found, or an asking token is
            padding.
        RuntimeError: the model is being captured already, is called twice, or does not hand its
            attention and masks on.
    """
    return Capture(model, heads, rows, stop_after, layouts)


class Capture:
    """The capture of one forward, running or finished; made by `capture`."""

    def __init__(
        self,
        model: Any,
        heads: Sequence[HeadId | tuple[int, int]] | None,
        rows: str | torch.Tensor,
        stop_after: int | None,
        layouts: ImageLayout | Sequence[ImageLayout] | None,
    ) -> None:
        self._model = model
        self._text = model.config.get_text_config(decoder=True)
        self._stop_after = stop_after
        self._rows = _checked_rows(rows)
        self._layouts = layouts
        self.heads = _checked_heads(heads, stop_after, self._text)
        self._by_layer: dict[int, list[int]] = {}
        for layer, head in sorted(set(self.heads)):
            self._by_layer.setdefault(layer, []).append(head)
        self._asking: _Asking | None = None
        self._seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def maps(self) -> AttentionMaps:
        """What the asking tokens see of the image: (N, heads, grid_h, grid_w) and more.

        Raises:
            RuntimeError: no forward ran, or the images have different grids; see `each`.
        """
        asking, maps, sums = self._found()
        first = asking.layouts[int(asking.elements[0])]
        grids = {asking.layouts[n].grid for n in asking.elements.tolist()}
        if len(grids) > 1:
            raise RuntimeError(
                "captured.maps needs images of one grid, but the batch has "
                f"{', '.join(map(str, sorted(grids)))}; read captured.each, one a sequence"
            )
        return AttentionMaps(maps.unflatten(-1, first.grid), sums, self.heads, first)

    @property
    def sums(self) -> torch.Tensor:
        """(N, heads) float32: the attention on all of the image's tokens."""
        return self._found()[2]

    @property
    def each(self) -> list[AttentionMaps]:
        """One AttentionMaps a sequence of the batch, each with its own layout, grid and rows.

        Raises:
            RuntimeError: no forward ran.
        """
        asking, maps, sums = self._found()
        each = []
        for n, layout in enumerate(asking.layouts):
            mine = (asking.elements == n).to(maps.device)
            own = maps[mine][..., : len(layout.tokens)].unflatten(-1, layout.grid)
            each.append(AttentionMaps(own, sums[mine], self.heads, layout))
        return each

    def _found(self) -> tuple[_Asking, torch.Tensor, torch.Tensor]:
        """(N, heads, most cells of an image) maps and (N, heads) sums, the heads as asked for."""
        if self._asking is None or len(self._seen) < len(self._by_layer):
            raise RuntimeError("captured has no maps; call the model once inside the with block")
        found = [HeadId(n, head) for n in self._by_layer for head in self._by_layer[n]]
        device = self._seen[found[0].layer][0].device
        maps, sums = (
            torch.cat([self._seen[layer][part].to(device) for layer in self._by_layer], dim=1)
            for part in (0, 1)
        )
        if found != list(self.heads):
            order = [found.index(head) for head in self.heads]
            maps, sums = maps[:, order], sums[:, order]
        return self._asking, maps, sums

    def __enter__(self) -> Capture:
        _register()
        if id(self._text) in _active:
            raise RuntimeError(
                "model must not be captured twice at a time; leave the first with block, or ask it "
                "for all heads and rows at once"
            )
        self._base = self._text._attn_implementation
        if self._base not in ("sdpa", "eager"):
            raise ValueError(
                f"model must use sdpa or eager attention, but uses {self._base!r}; call "
                "model.set_attn_implementation('sdpa') first"
            )
        self._hook = self._model.register_forward_pre_hook(self._begin, with_kwargs=True)
        _active[id(self._text)] = self
        try:
            self._switch(_NAME)
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        self._leave()
        if error is None and self._asking is not None and len(self._seen) < len(self._by_layer):
            raise RuntimeError(
                "model must call its attention through transformers' AttentionInterface in every "
                f"layer, but only layers {sorted(self._seen)} of {sorted(self._by_layer)} did"
            )
        return isinstance(error, _Stop) and error.owner is self

    def _leave(self) -> None:
        try:
            self._switch(self._base)
        finally:
            _active.pop(id(self._text), None)
            self._hook.remove()

    def _switch(self, implementation: str) -> None:
        config = self._model.config
        parts = [name for name in config.sub_configs if getattr(config, name) is self._text]
        self._model.set_attn_implementation({parts[0] if parts else "": implementation})

    def _begin(self, model: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if self._asking is not None:
            raise RuntimeError(
                "capture holds one forward, but the model was called again; open a new with block "
                "for each call, and call model(**inputs), not generate"
            )
        given = inspect.signature(model.forward).bind_partial(*args, **keywords).arguments
        given |= given.pop("kwargs", {})
        self._asking = _Asking(model.config, given, self._rows, self._layouts)

    @torch.no_grad()
    def record(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, mask: Any, keywords: Any
    ) -> None:
        """Take the asking rows of one layer; called by the registered attention function."""
        asking, layer = self._asking, module.layer_idx
        if asking is None:
            raise RuntimeError(
                "model must be called itself inside the with block (not a part of it), so that "
                "capture sees its input; capture the part, or call the model"
            )
        if self._base == "eager" and mask is not None and mask.dtype == torch.bool:
            raise ValueError(
                "attention_mask must be additive (0 and the least number) for a model with eager "
                "attention, which adds it; call model.set_attn_implementation('sdpa')"
            )
        heads = self._by_layer.get(layer)
        if heads is not None:
            rows = ops.attention_rows(
                asking.select(query),
                key,
                heads=None if len(heads) == query.shape[1] else heads,
                visible=asking.visible(mask, query, key, _is_causal(module, keywords)),
                scale=keywords.get("scaling"),
                softcap=keywords.get("softcap"),
            )
            self._seen[layer] = asking.on_image(rows, layer)
        if layer == self._stop_after:
            raise _Stop(self)

    def base(self, module: Any) -> Callable[..., Any]:
        """The attention function that the model would have called."""
        if self._base == "eager":
            return sys.modules[type(module).__module__].eager_attention_forward
        from transformers import AttentionInterface

        return AttentionInterface()[self._base]

    def mask(self, *args: Any, **keywords: Any) -> Any:
        """The mask that the model would have made."""
        from transformers import AttentionMaskInterface

        return AttentionMaskInterface()[self._base](*args, **keywords)


class _Stop(Exception):
    """Ends a forward whose needed layers are done."""

    def __init__(self, owner: Capture) -> None:
        super().__init__("the forward ended after its last needed layer")
        self.owner = owner


class _Asking:
    """Which tokens ask and where the image is, in the input of one forward."""

    def __init__(self, config: Any, given: dict[str, Any], rows: Any, layouts: Any) -> None:
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        source = ids if ids is not None else given.get("inputs_embeds")
        if source is None or 0 in source.shape:
            raise ValueError("model must be called with input_ids or inputs_embeds of some tokens")
        batch, length = source.shape[:2]
        padding = None if mask is None or mask.ndim != 2 else mask[:, -length:].cpu().bool()
        past = given.get("past_key_values")
        cached = past is not None and past.get_seq_length() > 0
        self.needs_mask = (cached and length > 1) or (
            mask is not None and (mask.ndim == 4 or not bool(mask.all()))
        )
        if isinstance(rows, str):
            if mask is not None and mask.ndim == 4:
                raise ValueError(
                    "rows must be given with a 4-D attention_mask, which names no last token; pass "
                    "rows=(N, 2), batch index and sequence position"
                )
            last = torch.full((batch,), length - 1)
            if padding is not None:
                last = (padding * torch.arange(length)).amax(1)
            rows = torch.stack([torch.arange(batch), last], dim=1)
        rows = rows.cpu().long()
        elements, positions = rows.unbind(1)
        inside = (rows >= 0).all(1) & (elements < batch) & (positions < length)
        if not inside.all():
            raise ValueError(
                f"rows must lie in the batch of {batch} and its {length} positions, but got "
                f"{rows[~inside][0].tolist()}"
            )
        if padding is not None and not padding[elements, positions].all():
            wrong = rows[~padding[elements, positions]][0].tolist()
            raise ValueError(f"rows must be tokens, but {wrong} is padding")

        # Rows as a rectangle (batch, R): row n is cell (elements[n], slots[n]); spare cells repeat
        # the sequence's position 0 and are never read.
        earlier = torch.nn.functional.one_hot(elements, batch).cumsum(0) - 1
        self.elements, self.slots = elements, earlier[torch.arange(len(rows)), elements]
        self.positions = torch.zeros(batch, int(self.slots.max()) + 1, dtype=torch.long)
        self.positions[elements, self.slots] = positions

        if layouts is None:
            layouts = _find_image(config, given, batch)
        layouts = [layouts] * batch if isinstance(layouts, ImageLayout) else list(layouts)
        if len(layouts) != batch:
            raise ValueError(
                f"layouts must be one a sequence ({batch}), but got {len(layouts)} of them"
            )
        self.layouts: list[ImageLayout] = layouts
        asked = [layouts[b] for b in elements.tolist()]
        self.cells = _Places([a.tokens for a in asked])
        whole = any(a.all_tokens is not None for a in asked)
        self.image = _Places([a.all_tokens or a.tokens for a in asked]) if whole else self.cells
        self.reach = max(max(a.all_tokens or a.tokens) for a in asked) + 1

    def select(self, query: torch.Tensor) -> torch.Tensor:
        """(batch, R, heads, head_dim): the asking rows of (batch, heads, tokens, head_dim)."""
        positions = self.positions.to(query.device)
        return query[torch.arange(len(positions), device=query.device)[:, None], :, positions]

    def visible(
        self, mask: Any, query: torch.Tensor, key: torch.Tensor, causal: bool
    ) -> torch.Tensor | None:
        """The keys that the asking rows see: None (all) or (batch, R, tokens) bool or additive."""
        positions, tokens = self.positions.to(key.device), key.shape[2]
        if mask is None:
            if self.needs_mask:
                raise RuntimeError(
                    "model lost its attention_mask on the way to its attention, so that padding "
                    "would be seen; capture needs a model that asks transformers for its masks"
                )
            if query.shape[2] == 1 or not causal:
                return None
            return torch.arange(tokens, device=key.device) <= positions[..., None]
        if mask.ndim != 4 or mask.shape[1] != 1:
            raise RuntimeError(
                "attention masks must be (batch, 1, queries, keys) to be captured, but got shape "
                f"{tuple(mask.shape)}"
            )
        mask = mask[:, 0, :, :tokens].expand(len(positions), -1, -1)
        return mask[torch.arange(len(positions), device=mask.device)[:, None], positions]

    def on_image(self, rows: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, heads, cells) and (N, heads) of rows (batch, R, heads, tokens)."""
        if rows.shape[-1] < self.reach:
            raise RuntimeError(
                f"layer {layer} must see the whole image, but it sees only {rows.shape[-1]} keys "
                f"of at least {self.reach} (a sliding window?); choose heads of other layers"
            )
        device = rows.device
        rows = rows[self.elements.to(device), self.slots.to(device)]
        maps = self.cells.take(rows)
        return maps, (maps if self.image is self.cells else self.image.take(rows)).sum(-1)


class _Places:
    """Key positions, some for every row; rows with fewer than others are filled with zeros."""

    def __init__(self, places: list[tuple[int, ...]]) -> None:
        counts = torch.tensor([len(own) for own in places])
        most = int(counts.max())
        self.index = torch.tensor([[*own, *[0] * (most - len(own))] for own in places])
        self.real = None if (counts == most).all() else torch.arange(most) < counts[:, None]

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """(N, heads, most places) of rows (N, heads, tokens)."""
        index = self.index.to(rows.device)
        taken = rows.gather(-1, index[:, None].expand(-1, rows.shape[1], -1))
        return taken if self.real is None else taken * self.real.to(rows.device)[:, None]


def _find_image(config: Any, given: dict[str, Any], batch: int) -> list[ImageLayout]:
    """One layout a sequence from image token ids, pixel values and the vision tower's patches."""
    way_out = "pass layouts=, from fastground.models.wrap(model, processor).encode(...).layout"
    ids, pixels, past = (given.get(n) for n in ("input_ids", "pixel_values", "past_key_values"))
    image_id = getattr(config, "image_token_id", None)
    patch = getattr(getattr(config, "vision_config", None), "patch_size", None)
    if past is not None and past.get_seq_length():
        raise ValueError(f"layouts must be given where keys are cached already; {way_out}")
    if ids is None or image_id is None or not isinstance(patch, int) or pixels is None:
        raise ValueError(
            "layouts must be given where the model's input does not hold input_ids with image "
            f"tokens and pixel_values; {way_out}"
        )
    grid = (pixels.shape[-2] // patch, pixels.shape[-1] // patch)
    cells = grid[0] * grid[1]
    class_tokens = int(getattr(config, "vision_feature_select_strategy", None) == "full")
    layouts = []
    for row in (ids == image_id).cpu():
        run = tuple(row.nonzero()[:, 0].tolist())
        spare = len(run) - cells
        if pixels.ndim != 4 or len(pixels) != batch or spare not in {0, class_tokens}:
            raise ValueError(
                f"layouts must be given where a sequence does not hold one image of one token a "
                f"patch: {len(run)} image tokens for {tuple(pixels.shape)} pixel values and "
                f"patches of {patch}; {way_out}"
            )
        layouts.append(ImageLayout(grid, run[spare:], all_tokens=run if spare else None))
    return layouts


def _checked_heads(heads: Any, stop_after: int | None, text: Any) -> tuple[HeadId, ...]:
    layers, width = text.num_hidden_layers, text.num_attention_heads
    if stop_after is not None and not 0 <= stop_after < layers:
        raise ValueError(f"stop_after must be a layer 0 to {layers - 1}, but got {stop_after}")
    last = layers - 1 if stop_after is None else stop_after
    if heads is None:
        return tuple(HeadId(layer, head) for layer in range(last + 1) for head in range(width))
    try:
        heads = tuple(HeadId(int(layer), int(head)) for layer, head in heads)
    except TypeError as error:
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
    return heads


def _checked_rows(rows: Any) -> Any:
    if isinstance(rows, torch.Tensor) and rows.ndim == 2 and rows.shape[1] == 2 and len(rows):
        return rows
    if isinstance(rows, str) and rows == "last":
        return rows
    got = f"shape {tuple(rows.shape)}" if isinstance(rows, torch.Tensor) else repr(rows)
    raise ValueError(
        f"rows must be 'last' or an (N, 2) tensor of batch index and position, but got {got}"
    )


def _is_causal(module: Any, keywords: dict[str, Any]) -> bool:
    given = keywords.get("is_causal")
    return bool(getattr(module, "is_causal", True) if given is None else given)


def _attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **keywords: Any
) -> Any:
    owner = _active.get(id(module.config))
    if owner is None:
        raise RuntimeError(
            f"attention {_NAME!r} works only inside fastground.capture; call "
            "model.set_attn_implementation('sdpa')"
        )
    owner.record(module, query, key, attention_mask, keywords)
    return owner.base(module)(module, query, key, value, attention_mask, **keywords)


def _make_mask(*args: Any, config: Any, **keywords: Any) -> Any:
    return _active[id(config)].mask(*args, config=config, **keywords)


@cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, _make_mask)
