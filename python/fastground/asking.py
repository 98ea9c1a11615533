"""The input of one forward: which tokens ask, where the image is, what is padding.

attention_mask   0  0  1  1  1  1  1  1       last token: the last 1
asking rows      (batch index, position in this forward)
image tokens     positions in the whole sequence, cached tokens included
"""

from __future__ import annotations

from typing import Any

import torch

from fastground.layouts import find_image
from fastground.types import ImageLayout
from fastground.visibility import visible_keys


class Asking:
    """Which tokens ask and where the image is, in the input of one forward."""

    def __init__(self, config: Any, given: dict[str, Any], rows: Any, layouts: Any) -> None:
        """The answers, from what a forward is called with.

        Args:
            config: of the whole model.
            given: the forward's arguments by name.
            rows: (N, 2) int64, or "last" or "steps" for the last token of every sequence; in
                "steps", where no mask names it, the last position, as generate has it.
            layouts: one for all, one each, or None: found in the input.

        Raises:
            ValueError: no tokens, rows out of range or padding, no image found.
        """
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        source = ids if ids is not None else given.get("inputs_embeds")
        if source is None or 0 in source.shape:
            raise ValueError("model must be called with input_ids or inputs_embeds of some tokens")
        batch, self.length = source.shape[:2]
        past = given.get("past_key_values")
        self.cached = 0 if past is None else int(past.get_seq_length())
        padding = None
        if isinstance(mask, torch.Tensor) and mask.ndim == 2:
            padding = mask[:, -self.length :].cpu().bool()
        self.needs_mask = (self.cached > 0 and self.length > 1) or (
            mask is not None and (padding is None or not bool(mask.all()))
        )
        places = given.get("position_ids")
        self.jumps = (
            isinstance(places, torch.Tensor)
            and places.ndim == 2
            and not self.needs_mask
            and bool((places.diff(dim=1) != 1).any())
        )
        """Whether positions restart without a mask: flash attention may take it for many texts."""
        if isinstance(rows, str):
            if rows == "last" and mask is not None and padding is None:
                raise ValueError(
                    "rows must be given with a 4-D attention_mask, which names no last token; pass "
                    "rows=(N, 2), batch index and sequence position"
                )
            last = torch.full((batch,), self.length - 1)
            if padding is not None:
                last = (padding * torch.arange(self.length)).amax(1)
            rows = torch.stack([torch.arange(batch), last], dim=1)
        rows = rows.cpu().long()
        elements, positions = rows.unbind(1)
        inside = (rows >= 0).all(1) & (elements < batch) & (positions < self.length)
        if not inside.all():
            raise ValueError(
                f"rows must lie in the batch of {batch} and its {self.length} positions, but got "
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
            layouts = find_image(config, given, batch)
        self.layouts = [layouts] * batch if isinstance(layouts, ImageLayout) else list(layouts)
        if len(self.layouts) != batch:
            raise ValueError(
                f"layouts must be one a sequence ({batch}), but got {len(self.layouts)} of them"
            )
        asked = [self.layouts[b] for b in elements.tolist()]
        last = max(max(a.all_tokens or a.tokens) for a in asked)
        if last >= self.cached + self.length:
            raise ValueError(
                f"layouts must lie in the sequence of {self.cached + self.length} tokens, but an "
                f"image's token is at {last}"
            )
        self.cells = _Places([a.tokens for a in asked])
        more = any(a.all_tokens is not None for a in asked)
        self.image = _Places([a.all_tokens or a.tokens for a in asked]) if more else self.cells

    def select(self, tokens: torch.Tensor, axis: int = 2) -> torch.Tensor:
        """(batch, R, heads, head_dim): the asking rows of (batch, heads, tokens, head_dim).

        Args:
            tokens: as above, or (batch, tokens, heads, head_dim) with axis 1.
            axis: that of the tokens.
        """
        positions = self.positions.to(tokens.device)
        batch = torch.arange(len(positions), device=tokens.device)[:, None]
        return tokens.movedim(axis, 1)[batch, positions]

    def visible(
        self, mask: Any, query: torch.Tensor, key: torch.Tensor, causal: bool, window: int | None
    ) -> torch.Tensor | None:
        """The keys that the asking rows see: None (all) or (batch, R, tokens) bool or additive."""
        return visible_keys(
            mask, self.positions.to(key.device), queries=query.shape[2], keys=key.shape[2],
            cached=self.cached, causal=causal, window=window,
        )  # fmt: skip

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """The N asking rows, in order, of (batch, R, ...)."""
        device = rows.device
        return rows[self.elements.to(device), self.slots.to(device)]

    def on_image(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, heads, cells) and (N, heads) of rows (batch, R, heads, keys)."""
        rows = self.take(rows)
        gone = max(0, self.cached + self.length - rows.shape[-1])
        maps = self.cells.take(rows, gone)
        return maps, (maps if self.image is self.cells else self.image.take(rows, gone)).sum(-1)


class _Places:
    """Sequence positions, some for every row; rows with fewer than others are filled with zeros."""

    def __init__(self, places: list[tuple[int, ...]]) -> None:
        counts = torch.tensor([len(own) for own in places])
        most = int(counts.max())
        self.index = torch.tensor([[*own, *[0] * (most - len(own))] for own in places])
        self.real = None if (counts == most).all() else torch.arange(most) < counts[:, None]

    def take(self, rows: torch.Tensor, gone: int) -> torch.Tensor:
        """(N, heads, most places) of rows (N, heads, keys), whose first `gone` keys are gone."""
        index = self.index.to(rows.device) - gone
        real = self.real if self.real is None else self.real.to(rows.device)
        if gone:
            real = (index >= 0) if real is None else real & (index >= 0)
            index = index.clamp(min=0)
        taken = rows.gather(-1, index[:, None].expand(-1, rows.shape[1], -1))
        return taken if real is None else taken * real[:, None]
