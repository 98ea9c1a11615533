"""The input of one forward: which tokens ask, where the image is, what is padding.

attention_mask   0  0  1  1  1  1  1  1       last token: the last 1
asking rows      (batch index, position in this forward)
image tokens     positions in the whole sequence, cached tokens included
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import ref

import torch

from fastground.layers import KEEPS_PROMPT
from fastground.layouts import cache_of, find_image, moved
from fastground.types import ImageLayout
from fastground.visibility import visible_keys


class Asking:
    """Which tokens ask and where the image is, in the input of one forward."""

    def __init__(
        self, config: Any, given: dict[str, Any], rows: Any, layouts: Any, move: bool = False
    ) -> None:
        """The answers, from what a forward is called with.

        Args:
            config: of the whole model.
            given: the forward's arguments by name.
            rows: (N, 2) int64, or "last" or "steps" for the last token of every sequence; in
                "steps", where no mask names it, the last position, as generate has it.
            layouts: one for all, one each, or None: found in the input.
            move: whether layouts may be of other words before the image, and follow it; a GPU is
                then waited for.

        Raises:
            ValueError: no tokens, rows out of range or padding, no image found, or another.
        """
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        source = ids if ids is not None else given.get("inputs_embeds")
        if source is None or 0 in source.shape:
            raise ValueError("model must be called with input_ids or inputs_embeds of some tokens")
        batch, self.length = source.shape[:2]
        text = config.get_text_config(decoder=True)
        keeps = KEEPS_PROMPT in (getattr(text, "layer_types", None) or ())
        self._window: int | None = text.sliding_window if keeps else None
        past = cache_of(given)
        self.cached = 0 if past is None else int(past.get_seq_length())
        padding = None
        if isinstance(mask, torch.Tensor) and mask.ndim == 2:
            mask = mask.cpu()
            padding = mask[:, -self.length :].bool()
        self.needs_mask = (self.cached > 0 and self.length > 1) or (
            mask is not None and (padding is None or not bool(mask.all()))
        )
        places = given.get("position_ids")
        if isinstance(places, torch.Tensor) and places.ndim == 3 and len(places) == 4:
            places = places[0]  # M-RoPE's three axes come after the text's
        self.jumps = (
            isinstance(places, torch.Tensor)
            and places.ndim == 2
            and self.length > 1
            and not self.needs_mask
            and bool((places.diff(dim=1) != 1).any())
        )
        """Whether positions restart without a mask: flash attention may take it for many texts."""
        rows = _rows(rows, batch, self.length, padding, masked=mask is not None)
        self.layouts = _layouts(layouts, config, given, batch)
        if move and layouts is not None:
            self.layouts = moved(self.layouts, config, given, self.cached)
        self.elements, self._earliest = rows[:, 0], int(rows[:, 1].min())
        asked = [self.layouts[b] for b in self.elements.tolist()]
        _check_places(asked, self.cached + self.length)
        self._host = _Indices.of(rows, batch, asked)
        cells = self.elements * self._host.positions.shape[1] + self._host.slots
        every = torch.arange(self._host.positions.numel())
        self._full = torch.equal(cells, every)  # and in order
        self._there: dict[torch.device, _Indices] = {}
        self._visible: dict[Any, tuple[Any, torch.Tensor | None]] = {}

    def _on(self, device: torch.device) -> _Indices:
        """The indices on a device: moved once a forward, since every move costs a call."""
        if device not in self._there:
            self._there[device] = self._host.to(device)
        return self._there[device]

    def select(self, tokens: torch.Tensor, axis: int = 2) -> torch.Tensor:
        """(batch, R, heads, head_dim): the asking rows of (batch, heads, tokens, head_dim).

        Args:
            tokens: as above, or (batch, tokens, heads, head_dim) with axis 1.
            axis: that of the tokens.
        """
        at, tokens = self._on(tokens.device), tokens.movedim(axis, 1)
        return tokens[at.batch, self._among(tokens.shape[1], at)]

    def _among(self, queries: int, at: _Indices) -> torch.Tensor:
        """(batch, R): the asking tokens among those last ones that a layer computes.

        Raises:
            ValueError: one is not among them.
        """
        skipped = self.length - queries
        if not skipped:
            return at.positions
        if self._earliest < skipped:
            raise ValueError(
                f"rows must be among the last {queries} tokens, of which alone the model computes "
                f"its later layers, but one is at {self._earliest} of {self.length}; call it "
                "without logits_to_keep"
            )
        return (at.positions - skipped).clamp(min=0)

    def visible(
        self, mask: Any, query: torch.Tensor, key: torch.Tensor, causal: bool, window: int | None
    ) -> torch.Tensor | None:
        """The keys that the asking rows see: None (all) or (batch, R, tokens) bool or additive."""
        # Layers of a kind share their mask: read once. The mask itself is not kept alive.
        kind = mask is None, key.device, query.shape[2], key.shape[2], causal, window
        known = self._visible.get(kind)
        if known is None or (mask is not None and known[0]() is not mask):
            visible = visible_keys(
                mask, self._among(query.shape[2], self._on(key.device)), queries=query.shape[2],
                keys=key.shape[2], cached=self.cached + self.length - query.shape[2],
                causal=causal, window=window,
            )  # fmt: skip
            known = self._visible[kind] = None if mask is None else ref(mask), visible
        return known[1]

    def forget(self) -> None:
        """Keep only what says whose each row is: the forward has ended."""
        self._there.clear()
        self._visible.clear()

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """The N asking rows, in order, of (batch, R, ...)."""
        if self._full:
            return rows.flatten(0, 1)
        at = self._on(rows.device)
        return rows[at.elements, at.slots]

    def on_image(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, heads, cells) and (N, heads) of rows (batch, R, heads, keys)."""
        at = self._on(rows.device)
        rows = self.take(rows)
        gone = self._gone(rows.shape[-1])
        maps = at.cells.take(rows, gone)
        return maps, (maps if at.image is None else at.image.take(rows, gone)).sum(-1)

    def _gone(self, keys: int) -> int:
        """How many keys are gone before the image's, where a layer has so many left."""
        gone = max(0, self.cached + self.length - keys)
        if gone and self._window is not None:  # behind the prompt
            prompt = keys - self.length - (self._window - 1)
            last = max(max(a.all_tokens or a.tokens) for a in self.layouts)
            if last >= prompt:
                raise ValueError(
                    f"layouts must lie in the prompt's {prompt} tokens, all that the model keeps, "
                    f"but an image's token is at {last}; give its image with the first forward"
                )
            return 0
        return gone


def _rows(
    rows: Any, batch: int, length: int, padding: torch.Tensor | None, *, masked: bool
) -> torch.Tensor:
    """(N, 2) int64 batch index and position of the asking tokens, which are in the input."""
    if isinstance(rows, str):
        if rows == "last" and masked and padding is None:
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
    return rows


def _layouts(layouts: Any, config: Any, given: dict[str, Any], batch: int) -> list[ImageLayout]:
    """Each sequence's: as given, or found in the input."""
    if layouts is None:
        layouts = find_image(config, given, batch)
    several = isinstance(layouts, Sequence) and all(isinstance(a, ImageLayout) for a in layouts)
    if not several and not isinstance(layouts, ImageLayout):
        raise ValueError(f"layouts must be an ImageLayout or one a sequence, but got {layouts!r}")
    each = list(layouts) if several else [layouts] * batch
    if len(each) != batch:
        raise ValueError(f"layouts must be one a sequence ({batch}), but got {len(each)} of them")
    return each


def _check_places(asked: list[ImageLayout], tokens: int) -> None:
    """Nothing, where the images lie in sequences of so many tokens."""
    each = {id(a): a for a in asked}.values()  # rows of a sequence share their image
    runs = [run for a in each for run in (a.tokens, a.all_tokens) if run]
    for place in (*map(max, runs), *map(min, runs)):
        if not 0 <= place < tokens:
            raise ValueError(
                f"layouts must lie in the sequence of {tokens} tokens, but an image's token is at "
                f"{place}"
            )


class _Places(NamedTuple):
    """Sequence positions, some for every row; rows with fewer than others are filled with zeros."""

    places: torch.Tensor
    real: torch.Tensor | None
    run: range | None
    """The positions, where those of all rows are the same and follow each other."""

    @classmethod
    def of(cls, places: list[tuple[int, ...]]) -> _Places:
        """From the positions of each row."""
        each = {id(own): own for own in places}  # an image's rows share them
        counts = torch.tensor([len(own) for own in places])
        most = int(counts.max())
        padded = torch.tensor([[*own, *[0] * (most - len(own))] for own in each.values()])
        lines = {own: line for line, own in enumerate(each)}
        index = padded[[lines[id(own)] for own in places]]
        real = None if (counts == most).all() else torch.arange(most) < counts[:, None]
        first = places[0]
        run = range(first[0], first[0] + most) if first else range(0)
        follow = all(own == tuple(run) for own in each.values())
        return cls(index, real, run if follow else None)

    def to(self, device: torch.device) -> _Places:
        """The same on a device, which is not waited for."""
        places = self.places.to(device, non_blocking=True)
        real = None if self.real is None else self.real.to(device, non_blocking=True)
        return _Places(places, real, self.run)

    def take(self, rows: torch.Tensor, gone: int) -> torch.Tensor:
        """(N, heads, most places) of rows (N, heads, keys), whose first `gone` keys are gone."""
        places, real, run = self
        if run and run.start >= gone:
            return rows[..., run.start - gone : run.stop - gone].clone()  # the rest is not kept
        if gone:
            places = places - gone
            real = (places >= 0) if real is None else real & (places >= 0)
            places = places.clamp(min=0)
        taken = rows.gather(-1, places[:, None].expand(-1, rows.shape[1], -1))
        return taken if real is None else taken * real[:, None]


class _Indices(NamedTuple):
    """What picks the asking rows and the image's keys, on one device."""

    batch: torch.Tensor
    positions: torch.Tensor
    elements: torch.Tensor
    slots: torch.Tensor
    cells: _Places
    image: _Places | None
    """All of the image's tokens, where they are more than the cells."""

    @classmethod
    def of(cls, rows: torch.Tensor, batch: int, asked: list[ImageLayout]) -> _Indices:
        """From (N, 2) rows of so many sequences, and each row's image.

        The rows become a rectangle (batch, R): row n is cell (elements[n], slots[n]); spare cells
        repeat the sequence's position 0 and are never read.
        """
        elements, positions = rows.unbind(1)
        earlier = torch.nn.functional.one_hot(elements, batch).cumsum(0) - 1
        slots = earlier[torch.arange(len(rows)), elements]
        rectangle = torch.zeros(batch, int(slots.max()) + 1, dtype=torch.long)
        rectangle[elements, slots] = positions
        more = any(a.all_tokens is not None for a in asked)
        return cls(
            torch.arange(batch)[:, None],
            rectangle,
            elements,
            slots,
            _Places.of([a.tokens for a in asked]),
            _Places.of([a.all_tokens or a.tokens for a in asked]) if more else None,
        )

    def to(self, device: torch.device) -> _Indices:
        """The same on a device, which is not waited for."""
        return _Indices(
            self.batch.to(device, non_blocking=True),
            self.positions.to(device, non_blocking=True),
            self.elements.to(device, non_blocking=True),
            self.slots.to(device, non_blocking=True),
            self.cells.to(device),
            None if self.image is None else self.image.to(device),
        )
