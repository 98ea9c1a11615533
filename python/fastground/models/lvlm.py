"""What every supported model family shares: from an image and expressions to token ids.

An adapter (one small module a token layout) answers four questions and nothing else: which words
stand around an expression; which tokens an image becomes, and in which grid; how a cell lies over
the image's pixels; whether expressions may share the image's prefix.

    prompt         <s> USER: <image> the red mug. ASSISTANT:       one token marks the image
    processor                   |
                   <s> USER: # # # # # # the red mug. ASSISTANT:   its own tokens stand there
                             |---------|                           `Seen.ids`, in the order and
                                                                   with the frills of the family
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from fastground.layers import checked_heads, layers_with_heads, num_heads
from fastground.models.expressions import checked, inside, own_letters, sentence
from fastground.models.geometry import read_image
from fastground.phrases import Phrase
from fastground.seam import unwrapped
from fastground.types import Encoded, ImageLayout, Recipe

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_MARK = "\ufffc"
"""Stands for the expression while a chat template is rendered."""

_REFERRING = ("<ref>", "</ref>", "<|object_ref_start|>", "<|object_ref_end|>")
"""Special tokens that InternVL and Qwen-VL were taught around an expression: it may hold them."""

_OF_WORDS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels")
"""What processors return for the words, beside what the model reads of the image."""


class Seen(NamedTuple):
    """What a model sees of one image."""

    inputs: dict[str, torch.Tensor]
    """What the model's forward takes beside tokens; see `Encoded.image_inputs`."""
    ids: list[int]
    """The tokens that stand in the prompt where the image is marked."""
    layout: ImageLayout
    """The image's grid, its tokens counted from the first of `ids`."""
    positions: torch.Tensor | None = None
    """(axes, len(ids)) int64, counted from the first of `ids`: see `Encoded.prefix_positions`."""
    counted: dict[str, int] | None = None
    """`Encoded.counted`, where there are any."""
    axes: dict[str, int] | None = None
    """`Encoded.axes`, likewise."""


class LVLM(ABC):
    """A frozen vision-language model with its processor, ready to be asked."""

    model_types: ClassVar[tuple[str, ...]]
    """The transformers configurations' names for the families with this token layout."""
    how: ClassVar[str] = "native"
    """How such a model is loaded: a word of `fastground.models.support.HOW`."""
    auto: ClassVar[str] = "AutoModelForImageTextToText"
    """transformers' class that loads it."""
    family: ClassVar[str] = ""
    """The name of its row in the support table, where that is not each of the model_types."""
    shares_prefix: bool = True
    """Whether image tokens see nothing after them, so that expressions may share a sequence."""
    caches_prefix: ClassVar[bool] = True
    """Whether their keys, at least, are the same before any expression, and computed once."""
    sees_tiles: ClassVar[bool] = False
    """Whether an image may be seen whole and in tiles, so that `recipe.blocks` is read."""
    needs_mask: ClassVar[bool] = False
    """Whether image tokens see what comes after them by a mask, which flash attention ignores."""
    knows_chat: ClassVar[bool] = True
    """Whether models of the family were taught to chat at all."""
    pads_images: ClassVar[bool] = True
    """Whether an image may be padded to a larger one's size, to share a forward with it."""

    def __init__(self, model: Any, processor: Any, checkpoint: str) -> None:
        _settle_cosine()
        text = model.config.get_text_config(decoder=True)
        if self.needs_mask and "flash" in text._attn_implementation:
            raise ValueError(
                f"model must use attention that takes a mask, since tokens of its image see those "
                f"after them, but uses {text._attn_implementation!r}; call "
                "model.set_attn_implementation({'text_config': 'sdpa'}) first"
            )
        checked_heads(None, None, text)
        self.model = model
        self.processor = processor
        self.checkpoint = checkpoint
        all_attend = len(self.layers_with_heads) == text.num_hidden_layers
        self.shares_prefix = self.shares_prefix and all_attend and not _has_window(text)
        self._positions: int | None = getattr(text, "max_position_embeddings", None)
        self.architecture: dict[str, Any] = {
            "model_type": model.config.model_type,
            "num_layers": text.num_hidden_layers,
            "num_heads": num_heads(text),
        }

    def __repr__(self) -> str:
        a = self.architecture
        return (
            f"{type(self).__name__}({self.checkpoint!r}, {a['num_layers']} layers x "
            f"{a['num_heads']} heads, {self.model.dtype}, {self.device})"
        )

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs and leaves its answers.

        Of a model split by `device_map` that is the one it computes on: parts that wait in the
        host's memory or on disk have no weights of their own, and their hooks move what they get.
        """
        import torch

        places = (weight.device for weight in self.model.parameters())
        return next((place for place in places if place.type != "meta"), torch.device("cpu"))

    @property
    def layers_with_heads(self) -> tuple[int, ...]:
        """The language model's layers that have attention heads; hybrid models have others."""
        return layers_with_heads(self.model.config)

    @property
    def bare(self) -> Any:
        """The model without what torch.compile or PEFT may have put around it."""
        return unwrapped(self.model)

    @property
    def revision(self) -> str:
        """The hub's commit that the model was read from; empty where it was a folder."""
        return str(getattr(self.model.config, "_commit_hash", None) or "")

    @property
    def count_positions(self) -> Any:
        """The model's own way to count positions in several axes; None where it has one axis."""
        own = getattr(self.bare, "get_rope_index", None)
        return getattr(getattr(self.bare, "model", None), "get_rope_index", own)

    @property
    def mark(self) -> str:
        """The one token that marks an image in a prompt, before the processor puts its own."""
        return str(self.processor.image_token)

    @property
    def image_token_id(self) -> int:
        """The token in whose places the model puts what it sees."""
        return int(self.model.config.image_token_id)

    @property
    def marked(self) -> str:
        """The mark with what always stands around it."""
        return self.mark

    @property
    def alone(self) -> str:
        """The text by which the processor is asked for an image's own tokens."""
        return self.mark

    def words(self, recipe: Recipe) -> tuple[str, str]:
        """The prompt before and after the expression; the mark stands once in the first.

        Raises:
            ValueError: a chat is asked for, but there is none.
        """
        return self.chat() if recipe.template == "chat" else self.plain

    @property
    def plain(self) -> tuple[str, str]:
        """The prompt without a chat: the image, a new line, the expression."""
        return f"{self.marked}\n", ""

    def spelled(self, before: str, after: str) -> tuple[str, str]:
        """`words` as the tokenizer reads them, where the processor writes more around them."""
        return before, after

    def look(self, image: Image, recipe: Recipe) -> Seen:
        """What the model sees of an image; `recipe.blocks` is read."""
        ids, inputs = self.read(image)
        return Seen(inputs, ids, self.layout(image, ids, inputs, recipe), self.positions(inputs))

    def read(self, image: Image) -> tuple[list[int], dict[str, torch.Tensor]]:
        """The image's tokens and the model's inputs beside them, as the processor makes them.

        Raises:
            ValueError: the processor cannot, as many cannot with what is 200 times as long as wide.
        """
        with self.reading(image):
            made = self.processor(
                images=[image], text=[self.alone], add_special_tokens=False, return_tensors="pt"
            )
        return made["input_ids"][0].tolist(), self.placed(made)

    @contextmanager
    def reading(self, image: Image) -> Iterator[None]:
        """Around a processor's work on an image, to say where it fails.

        Raises:
            ValueError: it does.
        """
        try:
            yield
        except (ValueError, RuntimeError, ZeroDivisionError, StopIteration) as error:
            [reason, *_] = str(error).splitlines() or [type(error).__name__]
            raise ValueError(
                f"image must be one that the processor of {self.checkpoint!r} reads, but at "
                f"{image.width} x {image.height} pixels it fails ({reason}); "
                "where an image is very thin or small, pad or enlarge it"
            ) from error

    def placed(self, made: Any) -> dict[str, torch.Tensor]:
        """What a processor made of an image, in the model's dtype and the host's memory."""
        return {
            name: value.to(self.model.dtype) if value.is_floating_point() else value
            for name, value in made.items()
            if name not in _OF_WORDS
        }

    @abstractmethod
    def layout(
        self, image: Image, ids: list[int], inputs: dict[str, torch.Tensor], recipe: Recipe
    ) -> ImageLayout:
        """Where the image's cells stand among `ids` and lie in its pixels."""

    def positions(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor | None:
        """`Seen.positions`, for models that count positions in several axes."""
        return None

    def token_inputs(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """What else the model's forward takes token by token: (batch, tokens) each."""
        return {}

    def encode(self, image: Any, expressions: list[str], recipe: Recipe = Recipe()) -> Encoded:
        """One image and its expressions as token ids, with the tokens that ask.

        No device is touched, so that processes without one may do it.

        Args:
            image: PIL image, or a path to one.
            expressions: at least one; each is put into `recipe.template`, with a final "." where
                `recipe.ensure_period` asks for it. Of a `Phrase` its whole sentence is, and its
                own last token asks, or all of its tokens.
            recipe: template, query, ensure_period and blocks are read.

        Raises:
            ValueError: `image` is no image; an expression is empty, has words that the tokenizer
                does not know, special tokens, or is longer than the model reads; the processor has
                no such template; a phrase where the prompt's end asks.
            FileNotFoundError: `image` is a path without a file.
        """
        from fastground.dispatch import in_host_memory

        with in_host_memory():
            return self._encode(read_image(image), expressions, recipe)

    def _encode(self, image: Image, expressions: list[str], recipe: Recipe) -> Encoded:
        import torch

        texts = [sentence(e, recipe) for e in checked(expressions, self.mark)]
        before, after = self.spelled(*self.words(recipe))
        seen = self.look(image, recipe)
        rows, spans = self._tokenize([before + text + after for text in texts])
        mark, start = self.processor.tokenizer.convert_tokens_to_ids(self.mark), len(rows[0])
        if mark in rows[0]:
            start = rows[0].index(mark)
        if (
            any(r[: start + 1] != rows[0][: start + 1] or r.count(mark) != 1 for r in rows)
            or spans[0][start][0] >= len(before)
            or self.image_token_id not in seen.ids
        ):
            reason = "its tokenizer and the model's configuration do not belong together"
            if recipe.template == "chat":
                reason = "if its chat template leaves the image out, or last, use template='plain'"
            raise ValueError(
                "processor must put one image token before the words, the same for all, but made "
                f"{[r.count(mark) for r in rows]} of token {mark}; {reason}"
            )
        prefix = rows[0][:start] + seen.ids
        # One token so far; the image's own number of them stand there.
        more = len(seen.ids) - 1
        asking = []
        for expression, text, row, span in zip(expressions, texts, rows, spans, strict=True):
            first, last = len(before), len(before) + len(text)
            mine = inside(span, first, last)
            own = own_letters(expression, recipe)
            if not inside(span, first + own.start, first + own.stop):
                raise ValueError(
                    f"expression must have tokens, but {expression!r} has none for this tokenizer; "
                    "say it in other words"
                )
            way = "choose other words for the prompt that asks for nothing, --recipe generic=..."
            way = way if str(expression) == recipe.generic else "say it in other words"
            self._know(text, [(row[i], span[i]) for i in mine], first, way)
            if isinstance(expression, Phrase):
                mine = inside(span, first + own.start, first + own.stop)
            elif recipe.query in ("last_prompt", "first_generated"):
                mine = inside(span, first, last + len(after))
            asks = mine if recipe.query == "phrase_mean" else mine[-1:]
            asking.append(tuple(i + more for i in asks))
            tokens = len(row) + more
            if self._positions is not None and tokens > self._positions:
                raise ValueError(
                    f"expression must be shorter, but its prompt has {tokens} tokens ({more + 1} "
                    f"of them the image's) and {self.checkpoint!r} reads {self._positions}: "
                    f"{text[:40]!r}...; say it in fewer words"
                )
        shared = torch.tensor(prefix)
        own_ids = [torch.tensor(row[start + 1 :], dtype=torch.long) for row in rows]
        layout, positions = seen.layout, seen.positions
        if positions is not None:
            words = torch.arange(start).expand(len(positions), -1)
            positions = torch.cat([words, start + positions], dim=1)
        return Encoded(
            expressions=tuple(expressions),
            token_ids=tuple(torch.cat([shared, ids]) for ids in own_ids),
            asking=tuple(asking),
            prefix_length=len(prefix),
            image_inputs=seen.inputs,
            layout=replace(
                layout,
                tokens=tuple(start + i for i in layout.tokens),
                all_tokens=layout.all_tokens and tuple(start + i for i in layout.all_tokens),
            ),
            prefix_positions=positions,
            counted=seen.counted or {},
            axes=seen.axes or {},
            pads=self.pads_images,
        )

    def chat(self) -> tuple[str, str]:
        """The processor's own chat template around an image and an expression.

        Raises:
            ValueError: the family knows no chat; the processor has no template, or one that fails
                or leaves the words out.
        """
        from jinja2 import TemplateError

        if not self.knows_chat:
            raise ValueError(
                f"recipe.template must be 'plain' for {type(self).__name__}, which knows no chat, "
                "but got 'chat'"
            )
        if not getattr(self.processor, "chat_template", None):
            raise ValueError(
                f"recipe.template 'chat' needs a processor with a chat template, but that of "
                f"{self.checkpoint!r} has none; use template='plain'"
            )
        content = [{"type": "image"}, {"type": "text", "text": _MARK}]
        try:
            prompt = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        except (TemplateError, TypeError) as error:
            raise ValueError(
                "recipe.template 'chat' needs a chat template for one message of an image and "
                f"words, but that of {self.checkpoint!r} fails ({error}); use template='plain'"
            ) from error
        if prompt.count(_MARK) != 1:
            raise ValueError(
                "recipe.template 'chat' needs a chat template that says the words of a message "
                f"once, but that of {self.checkpoint!r} says them {prompt.count(_MARK)} times; use "
                "template='plain'"
            )
        before, _, after = prompt.partition(_MARK)
        return before, after

    def _tokenize(
        self, prompts: list[str], *, special: bool = True
    ) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
        tokenizer = self.processor.tokenizer
        if not tokenizer.is_fast:
            raise ValueError(
                "processor.tokenizer must be a fast tokenizer (it says which token holds which "
                f"letters), but {type(tokenizer).__name__} is not; load it with AutoTokenizer"
            )
        begins = bool(tokenizer.bos_token) and prompts[0].startswith(tokenizer.bos_token)
        special = special and not begins
        out = tokenizer(prompts, add_special_tokens=special, return_offsets_mapping=True)
        return out["input_ids"], out["offset_mapping"]

    @cached_property
    def _special(self) -> frozenset[int]:
        """Tokens that mark what is no word, such as an answer's end or a video."""
        added = self.processor.tokenizer.added_tokens_decoder
        special = {i: token.content for i, token in added.items() if token.special}
        return frozenset(i for i, content in special.items() if content not in _REFERRING)

    def _know(
        self, text: str, tokens: list[tuple[int, tuple[int, int]]], first: int, way: str
    ) -> None:
        tokenizer = self.processor.tokenizer
        no_word = tokenizer.unk_token_id
        said = [(i, text[max(0, a - first) : b - first]) for i, (a, b) in tokens]
        unknown = [words for i, words in said if i == no_word]
        if not unknown:
            special = [words for i, words in said if i in self._special]
            if special:
                raise ValueError(
                    "expression must not hold special tokens, by which the model would read more "
                    f"than words, but {text!r} has {', '.join(map(repr, special))}; say it without"
                )
            return
        message = (
            f"expression must use words that the tokenizer knows, but {text!r} has "
            f"{', '.join(map(repr, unknown))}"
        )
        vocabulary = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
        if len(vocabulary) <= 256:
            known = sorted(w for w in vocabulary if w.isalpha())
            message += f"; {self.checkpoint} knows: {' '.join(known)}"
        raise ValueError(f"{message}; {way}")


def refuse_older(first: str, why: str) -> None:
    """Nothing, unless transformers is older than that release.

    Args:
        first: the release from which on a family works, such as "5.19".
        why: the family and what was wrong before.

    Raises:
        ValueError: it is older.
    """
    from transformers import __version__

    has, needs = (tuple(map(int, v.split(".")[:2])) for v in (__version__, first))
    if has < needs:
        raise ValueError(
            f"transformers must be {first} or newer for {why}, but is {__version__}; "
            "pip install -U transformers"
        )


def _settle_cosine() -> None:
    """Let nobody see a process's first cosine by several CPU threads: it is at times off by 2e-4.

    Seen with torch 2.13 and MKL; rotary embeddings, and so all attention, would carry it on.
    """
    import torch

    angles = torch.arange(1 << 16, dtype=torch.float32)
    angles.cos()
    angles.sin()


def _has_window(text: Any) -> bool:
    """Whether any layer sees only the last so many tokens: a pack would put others in between."""
    kinds = getattr(text, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else True
    return slides and getattr(text, "sliding_window", None) is not None
