"""One forward of any transformers LVLM, and what its asking tokens see of the image.

Inside the `with` block every attention layer of the language model goes through `seam`, which hands
on to the model's own attention with the very same arguments, so that the model's output is the
same bit for bit (but for what it makes of padding, where layers go by the name of their attention),
and beside it

    q of the asking tokens, cached K of the layer
      -> softmax over all visible keys (ops.attention_rows), chosen heads only
      -> what of it falls on the image: a map and its sum

Nothing of size tokens x tokens is kept. A model's first forward is a self-test, too: in one layer
of each kind the rows times V must be what its own attention returned for the asking tokens.

The one exception is a pack's attention (`packed=True`): on a CPU the native core's takes the place
of the model's sdpa, so that little of what the mask hides is computed (`causal.py`).

Stopping after a layer: the last needed layer raises `_Stop` before its own attention runs. The
exception ends the model's forward and then the `with` block, whose exit swallows it; statements
after the model's call inside the block are skipped. The next forward is not affected. A compiled
model runs with its later layers taken out instead, and returns what then comes out.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch

from fastground import ops
from fastground.asking import Asking
from fastground.causal import CausalAttention
from fastground.dispatch import in_host_memory
from fastground.layers import checked_heads, is_compiled, layers_with_heads, num_heads, shortened
from fastground.seam import Seam, refuse_absent, refuse_searches, unwrapped
from fastground.types import AttentionMaps, HeadId, ImageLayout

_tested: WeakKeyDictionary[Any, WeakKeyDictionary[Any, set[str]]] = WeakKeyDictionary()
"""By model and attention function the kinds of layers with which it passed the self-test. Not by
the function's name: another may be registered under that."""

_TOLERANCE = {torch.bfloat16: 1.5e-2}
"""Of the self-test, relative to a head's output; 5e-3 in other dtypes. Rounding is some times less,
what is wrong more, even where attention is nearly even over hundreds of keys."""

_TAKES_FLOAT32 = ("eager", "sdpa")
"""Own attention that may be tested in float32. Eager attention rounds logits to the model's dtype,
so that in bfloat16 it could be off by as much as what is wrong."""

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def capture(
    model: Any,
    heads: Sequence[HeadId | tuple[int, int]] | None = None,
    rows: str | torch.Tensor = "last",
    stop_after: int | None = None,
    layouts: ImageLayout | Sequence[ImageLayout] | None = None,
    packed: bool = False,
) -> Capture:
    """Capture the attention maps of one forward: `with capture(model) as captured: model(...)`.

    Args:
        model: a transformers LVLM; call it once inside the block, in the same thread. A mask of two
            axes is read on the host, and of the input what `layouts` does not say; a GPU is waited
            for then.
        heads: the (layer, head) pairs to keep, in this order; all unless given.
        rows: the asking tokens. "last": one a sequence, its last token that is not padding.
            (N, 2) int64: batch index and sequence position, each a row of the result. "steps": the
            last tokens of every forward in the block, so that `model.generate(...)` may be called
            there, greedily or sampling; the first row is that of the prompt's last token, which
            says the first new one.
        stop_after: end the forward after this layer's maps. The model then returns nothing, and
            the block is left at that call; a compiled model returns, but not its answer. A cache
            given to the model has then grown in the layers up to this one only.
        layouts: where the image's tokens are among the keys, one for all sequences or one each;
            read off the input (image token ids and pixel values) unless given. One made with other
            words before the image, or without padding, is moved to the input's image tokens where
            the model's configuration names them; not one that begins among cached tokens.
        packed: whether attention_mask is that of a pack, in which no token sees a later one; on a
            CPU sdpa then leaves out what is hidden, in two thirds of its time, and the model's
            output is the same up to rounding only.

    Returns:
        The context; after the block `.maps` (AttentionMaps; its layout is the first row's), `.sums`
        (N, heads) float32 and `.each` (a list of AttentionMaps, one a sequence of the batch).

    Raises:
        ValueError: no transformers model, one without weights, with an encoder for its words, or
            with prompts that PEFT learned; heads, rows or stop_after that it does not have;
            attention that transformers has not registered with its masks, has a softcap that it
            ignores, sinks or a bias. At the forward: more tokens than a layer sees of those that it
            chooses from, no image is found, an asking token is padding,
            output_attentions is asked for; with "steps" beam search, assisted decoding, guidance,
            or several new tokens behind cached ones.
        RuntimeError: the model is being captured already, is called twice, does not hand its
            attention and masks on, runs a layer twice or with other heads than its configuration
            says, or fails the self-test.
    """
    return Capture(model, heads, rows, stop_after, layouts, packed)


class Capture:
    """The capture of one forward, running or finished; made by `capture`."""

    def __init__(
        self,
        model: Any,
        heads: Sequence[HeadId | tuple[int, int]] | None,
        rows: str | torch.Tensor,
        stop_after: int | None,
        layouts: ImageLayout | Sequence[ImageLayout] | None,
        packed: bool,
        move: bool = True,
    ) -> None:
        """As `capture`; without move layouts are of this very input, and no GPU is waited for."""
        if not hasattr(getattr(model, "config", None), "get_text_config"):
            raise ValueError(
                f"model must be a transformers model, but got {type(model).__name__}; load one, "
                "or give the model that is inside"
            )
        if getattr(model.config, "is_encoder_decoder", False):
            raise ValueError(
                "model must read image and words in one sequence to be captured, but "
                f"{model.config.model_type!r} has an encoder beside its decoder"
            )
        self._compiled = stop_after is not None and is_compiled(model)
        self._given, self._model = model, unwrapped(model)
        refuse_absent(self._model)
        self._text = model.config.get_text_config(decoder=True)
        self._rows = _checked_rows(rows, stop_after)
        self._layouts, self._move = layouts, move
        self._causal = CausalAttention() if packed else None
        self.heads = checked_heads(heads, stop_after, model.config)
        self._by_layer: dict[int, list[int]] = {}
        for layer, head in sorted(set(self.heads)):
            self._by_layer.setdefault(layer, []).append(head)
        having = layers_with_heads(model.config)
        self._first, self._width = having[0], num_heads(model.config)
        self._kinds = dict(enumerate(getattr(self._text, "layer_types", None) or ()))
        self._stop = None if stop_after is None else max(n for n in having if n <= stop_after)
        self._forwards: list[tuple[Asking, dict[int, tuple[torch.Tensor, torch.Tensor]]]] = []
        self._running: set[int] | None = None

    @property
    def maps(self) -> AttentionMaps:
        """What the asking tokens see of the image: (N, heads, grid_h, grid_w) and more.

        Raises:
            RuntimeError: no forward ran, or the images have different grids; see `each`.
        """
        elements, maps, sums = self._found()
        layouts = self._forwards[0][0].layouts
        first = layouts[int(elements[0])]
        grids = {layouts[n].grid for n in elements.tolist()}
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
        elements, maps, sums = self._found()
        layouts = self._forwards[0][0].layouts
        counts = elements.bincount(minlength=len(layouts)).tolist()
        if bool((elements.diff() < 0).any()):
            order = elements.argsort(stable=True).to(maps.device, non_blocking=True)
            maps, sums = maps[order], sums[order]
        parts = zip(maps.split(counts), sums.split(counts), layouts, strict=True)
        return [
            AttentionMaps(
                own[..., : len(layout.tokens)].unflatten(-1, layout.grid), whole, self.heads, layout
            )
            for own, whole, layout in parts
        ]

    def _found(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(N,) batch indices, (N, heads, most cells) maps and (N, heads) sums, as asked for."""
        forwards = [(a, seen) for a, seen in self._forwards if len(seen) == len(self._by_layer)]
        if not forwards:
            raise RuntimeError(
                "captured has no maps; call the model once inside the with block, in its thread"
            )
        found = [HeadId(n, head) for n in self._by_layer for head in self._by_layer[n]]
        device = forwards[0][1][found[0].layer][0].device
        maps, sums = (
            _joined([
                torch.cat([seen[layer][part].to(device) for layer in self._by_layer], dim=1)
                for _, seen in forwards
            ])
            for part in (0, 1)
        )  # fmt: skip
        if found != list(self.heads):
            order = torch.tensor([found.index(head) for head in self.heads], device="cpu")
            order = order.to(device, non_blocking=True)  # by a list a GPU would be waited for
            maps, sums = maps[:, order], sums[:, order]
        return torch.cat([asking.elements for asking, _ in forwards]), maps, sums

    def __enter__(self) -> Capture:
        seam = Seam(self._given, self)
        seam.open()
        self._seam = seam
        self._ends = self._stop is not None
        with ExitStack() as stack:
            stack.callback(self._seam.close)
            if self._stop is not None and self._compiled:
                stack.enter_context(shortened(self._model, self._stop + 1))
                self._ends = False
            self._leave = stack.pop_all()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        self._leave.close()
        if error is None:
            for _, seen in self._forwards:
                if len(seen) < len(self._by_layer):
                    raise RuntimeError(
                        "model must call its attention through transformers' AttentionInterface in "
                        f"every layer, but only layers {sorted(seen)} of {sorted(self._by_layer)} "
                        "did"
                    )
        return isinstance(error, _Stop) and error.owner is self

    def begin(self, given: dict[str, Any]) -> None:
        """A forward begins; called by the seam."""
        steps = isinstance(self._rows, str) and self._rows == "steps"
        if self._forwards and not steps:
            raise RuntimeError(
                "capture holds one forward, but the model was called again; open a new with block "
                "for each call, or capture(..., rows='steps') to call generate"
            )
        config = self._model.config
        asked = given.get("output_attentions")
        if asked or (asked is None and getattr(config, "output_attentions", False)):
            raise ValueError(
                "output_attentions must not be asked for inside capture, which keeps the maps "
                "without the tokens x tokens of every layer; read captured.maps, or call the model "
                "outside"
            )
        if steps:
            refuse_searches()
        # Later forwards have no image of their own.
        first = not self._forwards
        layouts = self._layouts if first else self._forwards[0][0].layouts
        with in_host_memory():
            asking = Asking(config, given, self._rows, layouts, move=first and self._move)
        if self._forwards and asking.cached and asking.length > 1:
            raise ValueError(
                "rows='steps' needs one new token a forward after the first, but one brought "
                f"{asking.length}; open a new with block for each turn of a conversation, and call "
                "generate without prefill_chunk_size"
            )
        self._forwards.append((asking, {}))
        self._running = set()

    def end(self) -> None:
        """It has ended; called by the seam. What only its layers read is not kept."""
        self._running = None
        if self._causal is not None:
            self._causal = CausalAttention()
        for asking, _ in self._forwards[-1:]:
            asking.forget()

    def attend(
        self, own: Callable[..., Any], module: Any, query: Any, key: Any, value: Any, mask: Any,
        **keywords: Any,
    ) -> Any:  # fmt: skip
        """Take the asking rows of one layer, then what its own attention does."""
        if not self._forwards:
            raise RuntimeError(
                "model must be called itself inside the with block (not a part of it), so that "
                "capture sees its input; capture the part, or call the model"
            )
        if self._causal is not None and query.is_cpu:  # where heads lie in turns reading is slower
            key, value = key.contiguous(), value.contiguous()
        places = keywords.get("position_ids")
        if isinstance(places, torch.Tensor) and places.ndim == 3:
            # By M-RoPE's axes flash attention takes one text for many (GLM-4.5V, Ernie 4.5-VL).
            keywords = {**keywords, "position_ids": None}
        layer = getattr(module, "layer_idx", None)
        # No layer of the decoder, but a part that shares its configuration; or a part is called by
        # itself, or again for its gradients.
        if layer is None or self._running is None:
            return own(module, query, key, value, mask, **keywords)
        _refuse_left_out(module, key, keywords)
        if layer in self._running:
            raise RuntimeError(
                f"model must run each layer once a forward to be captured, but runs layer {layer} "
                "again, so that its heads would have several maps"
            )
        self._running.add(layer)
        ends = self._ends and layer == self._stop
        heads = self._by_layer.get(layer)
        kind = self._kinds.get(layer, "")
        jumps = self._forwards[-1][0].jumps
        proven = _tested.setdefault(self._model, WeakKeyDictionary()).setdefault(own, set())
        tests = jumps or kind not in proven
        rows = None
        if heads is not None or (tests and layer == self._first):
            if query.shape[1] != self._width:
                raise RuntimeError(
                    f"model must have {self._width} heads in every layer, as its configuration "
                    f"says, to be captured, but layer {layer} has {query.shape[1]}"
                )
            every = heads is None or len(heads) == query.shape[1]
            rows = self._take(own, module, query, key, mask, None if every else heads, keywords)
        if heads is not None:
            asking, seen = self._forwards[-1]
            assert rows is not None
            seen[layer] = asking.on_image(rows)
        tests = tests and rows is not None and not keywords.get("dropout")
        if ends and not tests:
            raise _Stop(self)
        if self._causal is not None and self._seam.own == "sdpa":
            own = partial(self._causal.attend, own)
        output = own(module, query, key, value, mask, **keywords)
        if tests:
            exact = output
            if self._seam.own in _TAKES_FLOAT32 and query.dtype in (torch.float16, torch.bfloat16):
                exact = self._in_float32(own, module, query, key, value, mask, keywords)
            if self._test(layer, heads, rows, value, exact[0]):
                proven.add(kind)
        if ends:
            raise _Stop(self)
        return output

    @torch.no_grad()
    def _take(
        self, own: Any, module: Any, query: Any, key: Any, mask: Any, heads: Any, keywords: Any
    ) -> torch.Tensor:
        """(batch, R, heads, keys): the attention of the asking tokens."""
        asking, _ = self._forwards[-1]
        window = keywords.get("sliding_window")
        needed = asking.needs_mask or window is not None
        if mask is None and needed and not self._seam.made_none:
            raise RuntimeError(
                "model lost its attention_mask on the way to its attention, so that padding "
                "would be seen; capture needs a model that asks transformers for its masks"
            )
        if self._seam.own == "eager" and mask is not None and mask.dtype == torch.bool:
            raise ValueError(
                "attention_mask must be additive (0 and the least number) for a model with eager "
                "attention, which adds it; call model.set_attn_implementation('sdpa')"
            )
        softcap = keywords.get("softcap")
        if softcap is not None and "softcap" not in inspect.signature(own).parameters:
            raise ValueError(
                f"model must use attention that heeds its softcap, but {self._seam.own!r} ignores "
                "it; call model.set_attn_implementation('eager')"
            )
        for name in ("s_aux", "sinks", "position_bias", "cu_seq_lens_q", "cache"):
            if keywords.get(name) is not None:
                raise ValueError(
                    f"model must attend by queries and keys alone, but its attention is given "
                    f"{name} beside them; such models cannot be captured"
                )
        causal = keywords.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        return ops.attention_rows(
            asking.select(query),
            key,
            heads=heads,
            visible=asking.visible(mask, query, key, bool(causal), window),
            scale=keywords.get("scaling"),
            softcap=softcap,
        )

    @staticmethod
    @torch.no_grad()
    def _in_float32(
        own: Any, module: Any, query: Any, key: Any, value: Any, mask: Any, keywords: Any
    ) -> Any:
        mask = mask.float() if mask is not None and mask.is_floating_point() else mask
        with torch.autocast(query.device.type, enabled=False):
            return own(module, query.float(), key.float(), value.float(), mask, **keywords)

    @torch.no_grad()
    def _test(
        self, layer: int, heads: Any, rows: Any, value: torch.Tensor, output: torch.Tensor
    ) -> bool:
        """Whether the rows times V are what the layer's own attention returned, and no NaN."""
        asking, _ = self._forwards[-1]
        group = output.shape[2] // value.shape[1]
        chosen = list(range(output.shape[2])) if heads is None else heads
        keys = value[:, [head // group for head in chosen]].float()
        with torch.autocast(rows.device.type, enabled=False):
            want = asking.take(torch.einsum("brhk,bhkd->brhd", rows, keys))
        got = asking.take(asking.select(output, axis=1))[:, chosen].float()
        least = 1e-6 * float(keys.abs().max()) + 1e-30
        off = float(((got - want).norm(dim=-1) / want.norm(dim=-1).clamp(min=least)).max())
        if off > _TOLERANCE.get(output.dtype, 5e-3):  # not for NaN, which is no fault of the seam
            raise RuntimeError(
                "model must attend by what its attention function is given, softmax(scale * Q K^T) "
                f"V under the mask, but in layer {layer} its output is off by {off:.2g} of "
                "itself; a rotation, norm, bias or mask is applied inside, so that captured "
                "maps would be wrong"
            )
        return not math.isnan(off)


def _refuse_left_out(module: Any, key: torch.Tensor, keywords: dict[str, Any]) -> None:
    """Nothing, unless a layer leaves out keys of which the mask does not tell.

    Some, as MiniMax M3's, put what their index chose into the mask of attention that is called
    eager or sdpa alone. To choose all there are is the same as to choose none.
    """
    blocks, chosen = keywords.get("block_indices"), keywords.get("indices")
    most = key.shape[2]
    if blocks is not None:
        most = blocks.shape[-1] * module.config.index_block_size
    elif chosen is not None:
        most = chosen.shape[-1]
    if key.shape[2] > most:
        raise ValueError(
            f"model must be given at most {most} tokens a sequence to be captured, beyond which "
            f"it chooses what each token sees, but got {key.shape[2]}; give fewer expressions at "
            "a time, or a smaller image"
        )


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """One after the other; one alone is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class _Stop(Exception):
    """Ends a forward whose needed layers are done."""

    def __init__(self, owner: Capture) -> None:
        super().__init__("the forward ended after its last needed layer")
        self.owner = owner


def _checked_rows(rows: Any, stop_after: int | None) -> str | torch.Tensor:
    whole = isinstance(rows, torch.Tensor) and rows.dtype in _WHOLE
    if whole and rows.ndim == 2 and rows.shape[1] == 2 and len(rows):
        return rows
    if isinstance(rows, str) and rows in ("last", "steps"):
        if rows == "steps" and stop_after is not None:
            raise ValueError(
                "stop_after must be None with rows='steps', where every forward must be whole to "
                f"say the next token, but got {stop_after}"
            )
        return rows
    got = repr(rows)
    if isinstance(rows, torch.Tensor):
        got = f"shape {tuple(rows.shape)} {str(rows.dtype).removeprefix('torch.')}"
    raise ValueError(
        "rows must be 'last', 'steps' or an (N, 2) integer tensor of batch index and position, but "
        f"got {got}"
    )
