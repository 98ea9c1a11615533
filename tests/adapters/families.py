"""A tiny random model of every supported family, of the true classes, with its true processor.

Each `tiny_<layout>.py` beside this file builds the families of one adapter and lists them in
FAMILIES; test_adapters.py asks all of them the same questions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Family:
    """One row of the support table."""

    name: str
    """The family's `model_type` in transformers, or the name of a conversion."""
    build: Callable[[int], tuple[Any, Any]]
    """Makes (model, processor) from a seed; on the CPU, float32, in evaluation mode."""
    packs: bool = True
    """Whether expressions may share a sequence with the image."""
    caches: bool = True
    """Whether they may otherwise share its keys."""
    blocks: tuple[str, ...] = ("base",)
    """The values of `recipe.blocks` that mean different things here."""
    sizes: tuple[tuple[int, int], ...] = ((97, 61), (61, 97), (9, 7), (160, 24))
    """(width, height) of the images asked about: landscape, portrait, tiny, extreme."""

    loads: bool = True
    """Whether every supported transformers reads its processor without torchvision."""
    refusal: str = "torchvision"
    """What loading names where it does not."""

    positions: bool = True
    """Whether its attention goes by the positions that it is given."""

    row: str = ""
    """Its row in the support table, where this is a variant of that family."""
    left_from: tuple[int, int] = (5, 0)
    """The first transformers whose eager attention bears padding before the words."""

    def __str__(self) -> str:
        return self.name

    def bears_left_padding(self) -> bool:
        from transformers import __version__

        return tuple(map(int, __version__.split(".")[:2])) >= self.left_from


def sharpen(model: Any, seed: int = 0) -> Any:
    """The model in evaluation mode, its attention not flat, so that comparisons say something.

    What looks at the image mixes its patches little, as trained towers do, so that it can be seen
    which patch became which token.
    """
    torch.manual_seed(seed)
    decoder = {id(p) for p in model.get_decoder().parameters()}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim < 2:
                continue
            if id(weight) not in decoder or "embed_tokens_extend" in name:
                mixes = any(part in name for part in ("out_proj", "projection_layer"))
                weight.mul_(0.05 if mixes else 4)
            elif any(part in name for part in ("q_proj", "k_proj", "qkv")):
                weight.mul_(8)
            else:
                weight.mul_(3)
    return model.eval()


WORDS = ["a", "the", "red", "blue", "small", "mug", "dog", "left", "on", "of", "what", "is", "x"]


def tokenizer(special: list[str], *, newlines: bool = False, **settings: Any) -> Any:
    """A word tokenizer made in memory: <pad> <s> </s> <unk>, the special tokens, a few words.

    With newlines, a run of one, two or three of them is a token of its own, as Gemma's are.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    first = ["<pad>", "<s>", "</s>", "<unk>", *special]
    listed = [*first, ".", ":", "user", "assistant", *WORDS]
    listed += ["\n", "\n\n", "\n\n\n"] if newlines else []
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(listed)}, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if newlines:
        words.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n+|\w+|[^\w\s]+"), "removed", True)
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>", additional_special_tokens=special, **settings,
    )  # fmt: skip


def all_families() -> list[Family]:
    """Those of every module beside this one."""
    modules = sorted(path.stem for path in Path(__file__).parent.glob("tiny_*.py"))
    return [family for name in modules for family in import_module(name).FAMILIES]
