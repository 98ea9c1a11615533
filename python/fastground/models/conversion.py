"""From a checkpoint in LLaVA's original layout to one that transformers reads, shard by shard.

Half of the paper's models were published in the layout of LLaVA's own code, which transformers does
not load: one flat config.json with `mm_...` entries, the vision tower in another checkpoint, and

    original                                  here, in a LlavaForConditionalGeneration
    model.embed_tokens, .layers, .norm        model.language_model.*
    lm_head                                   lm_head
    model.mm_projector                        model.multi_modal_projector.linear_1, then 1 x
    model.mm_projector.0, .2                  ....linear_1, linear_2
    model.mm_projector.0, .1, .3, .4          ....linear_1, norm_1, linear_2, norm_2  (Yi-VL)
    model.vision_tower.vision_tower.*         model.vision_tower.*
    the tower's own checkpoint                the same, unless the model's checkpoint holds it

Names change, numbers do not, but for three things that leave the model's output as it is: LLaVA
v1's single linear layer gets the identity behind it, InternViT's joint q, k, v are cut in three,
and the image's token gets a row of the vocabulary, where it lacks one, equal to the unknown
token's: it is never embedded, and never likelier than that. Yi-VL's projector has norms, which no
transformers class has: see `yi_vl`.

The original code of LLaVA v1 cropped images to their middle; here all models see them whole, padded
to a square with the mean colour, as LLaVA-1.5: what is cropped away could never be found.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastground.models import towers, yi_vl
from fastground.models.llava import SYSTEM
from fastground.models.mini_gemini import MiniGemini
from fastground.models.weights import names, opened, read_json, tensor_of, weight_files
from fastground.strict_json import dumps

if TYPE_CHECKING:
    import torch

Renamed = Iterator[tuple[str, "torch.Tensor"]]

NEWER = {
    "molmo": "Molmo 2, such as allenai/Molmo2-8B, with transformers 5.20 or newer",
    "molmo2": "transformers 5.20 or newer",
}
"""What to take instead of a checkpoint that brings its own code, by its model_type."""

MODEL_TYPES = ("llava", "llava_llama", "share4v")
"""What original configurations call themselves; the first is also that of converted ones."""

PROJECTORS = {
    "linear": {"": "linear_1"},
    "mlp2x_gelu": {"0": "linear_1", "2": "linear_2"},
    "mlp2x_gelu_Norm": {"0": "linear_1", "1": "norm_1", "3": "linear_2", "4": "norm_2"},
}
"""By `mm_projector_type`: the original's layers and their names here."""

PORTED_PROJECTOR = {"1": "linear_1", "2": "norm_1", "3": "linear_2", "4": "norm_2"}
"""Yi-VL's projector in its community port: linear_1 to linear_4, two of which are norms."""

TOWER = "model.vision_tower.vision_tower."
"""Where a checkpoint keeps its tower's weights, if it was trained along."""

IMAGE = "<image>"
VICUNA = SYSTEM + " USER: {words} ASSISTANT:"
"""Vicuna v1's conversation, in which all but Yi-VL are asked."""

LEAST_NORM = 0.1
"""Mean weight of a LLaMA's last norm, at the least; that of two models' difference is near 0."""


def convert(folder: str | Path, out: str | Path, *, vision_tower: str | Path | None = None) -> Path:
    """The folder of a converted model, for `fastground.models.load`.

    Its weights keep their dtype. At most one shard of the original is in memory at a time.

    Args:
        folder: a checkpoint of LLaVA v1 or 1.5, ShareGPT4V, Yi-VL or InternVL-Chat-ViT-6B-Vicuna,
            as its authors published it, or Yi-VL's community port: config.json, the tokenizer, and
            weights in .safetensors or .bin files.
        out: where to write; made if it is not there.
        vision_tower: the folder of the tower's own checkpoint; unless given, the one that the
            configuration names, in `folder`, or on the hub.

    Raises:
        ValueError: `folder` is no such checkpoint, holds differences to another model only, or
            lacks a tensor; `out` holds a model already.
        FileNotFoundError: a folder or its config.json is missing.
    """
    source, out = Path(folder), Path(out)
    given = read_json(source / "config.json")
    if (out / "config.json").exists():
        raise ValueError(f"out must be a new folder, but {str(out)!r} holds a model already")
    if given.get("is_yi_vl_derived_model"):
        parts = _ported(source, given)
    else:
        parts = _original(source, given, vision_tower)
    out.mkdir(parents=True, exist_ok=True)
    _write_processor(parts, out)
    _write_weights(parts, out)
    return out


def refuse_unconverted(checkpoint: str, **keywords: Any) -> None:
    """Raise the way out where a folder, or a name on the hub, is a model in its authors' layout.

    Args:
        checkpoint: the folder or name.
        keywords: as `from_pretrained` takes them.

    Raises:
        ValueError: it is, or its authors' code comes with it and transformers has none.
    """
    from transformers import CONFIG_MAPPING, PreTrainedConfig, __version__

    try:
        given, _ = PreTrainedConfig.get_config_dict(checkpoint, **keywords)
    except (OSError, ValueError):  # who loads it next says what is missing
        return
    kind = str(given.get("model_type"))
    if kind in MiniGemini.model_types:
        way = "load it with their package, and pass it to fastground.models.wrap"
    elif "mm_vision_tower" in given or given.get("is_yi_vl_derived_model"):
        way = "convert its folder once with fastground.models.convert(folder, out), then load out"
    elif given.get("auto_map") and kind not in CONFIG_MAPPING:
        way = "a newer transformers, or load it yourself and pass it to fastground.models.wrap"
        raise ValueError(
            f"checkpoint must need no code of its own, which is never run, but {checkpoint!r} is a "
            f"{kind!r}, which transformers {__version__} does not have; take {NEWER.get(kind, way)}"
        )
    else:
        return
    raise ValueError(
        f"checkpoint must be in transformers' layout, but {checkpoint!r} is in that of its "
        f"authors' code; {way}"
    )


class _Parts(NamedTuple):
    """A checkpoint taken apart, nothing of its weights read yet."""

    config: Any
    tokenizer: Any
    image_token: int
    image_settings: dict[str, Any]
    chat: str
    files: list[tuple[Path, Any]]
    """Weight files, each with the function from (name, tensor) to what it becomes."""


def _original(source: Path, given: dict[str, Any], vision_tower: str | Path | None) -> _Parts:
    from transformers import LlamaConfig, LlavaConfig

    kind = given.get("mm_projector_type", "linear")
    if given.get("model_type") not in MODEL_TYPES or "mm_vision_tower" not in given:
        raise ValueError(
            f"folder must hold a model in LLaVA's original layout (model_type one of "
            f"{', '.join(MODEL_TYPES)}, with mm_vision_tower), but {str(source)!r} has model_type "
            f"{given.get('model_type')!r}; if transformers knows it, load it as it is"
        )
    if kind not in PROJECTORS or "anyres" in given.get("image_aspect_ratio", ""):
        raise ValueError(
            f"folder must hold a model with one of the projectors {', '.join(PROJECTORS)} and one "
            f"view of an image, but {str(source)!r} has {kind} and "
            f"{given.get('image_aspect_ratio')}; for LLaVA-NeXT use the llava-hf checkpoints"
        )
    if tensor_of(source, "model.norm.weight").float().abs().mean() < LEAST_NORM:
        raise ValueError(
            f"folder must hold a whole model, but {str(source)!r} holds only the differences to a "
            "LLaMA, which alone say nothing; add LLaMA's weights first, as its authors describe "
            "(apply_delta), and convert the result"
        )
    trained = any(name.startswith(TOWER) for name in names(source))
    found = towers.find(source, given["mm_vision_tower"], vision_tower, trained)
    vision = towers.config(found, given["mm_vision_tower"])
    kept = {k: v for k, v in given.items() if not k.startswith(("mm_", "architectures"))}
    text = LlamaConfig.from_dict(kept | {"model_type": "llama"})
    layers = {
        f"model.mm_projector.{old}.".replace("..", "."): f"model.multi_modal_projector.{new}."
        for old, new in PROJECTORS[kind].items()
    }

    def model(name: str, tensor: torch.Tensor) -> Renamed:
        old = next((old for old in layers if name.startswith(old)), None)
        if name.startswith(TOWER):
            yield from tower(name.removeprefix(TOWER), tensor)
        elif old is not None:
            yield name.replace(old, layers[old]), tensor
            if kind == "linear":
                yield from _identity(name, tensor)
        elif name.startswith("model.") and not name.endswith("inv_freq"):
            yield name.replace("model.", "model.language_model.", 1), tensor
        elif name.startswith("lm_head."):
            yield name, tensor

    def tower(name: str, tensor: torch.Tensor) -> Renamed:
        for new, part in towers.renamed(vision, name, tensor):
            yield f"model.vision_tower.{new}", part

    files: list[tuple[Path, Any]] = [(path, model) for path in weight_files(source)]
    if not trained and found is not None:
        files += [(path, tower) for path in weight_files(found)]
    yi = kind == "mlp2x_gelu_Norm"
    tokenizer, image_token = _tokenizer(source, text, given)
    kind_of: Any = yi_vl.classes().config if yi else LlavaConfig
    config = kind_of(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token,
        projector_hidden_act="linear" if kind == "linear" else "gelu",
        vision_feature_layer=given.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy=(
            "full" if given.get("mm_vision_select_feature") == "cls_patch" else "default"
        ),
        mm_use_im_start_end=bool(given.get("mm_use_im_start_end", False)),
    )
    seen = f"<im_start>{IMAGE}<im_end>" if config.mm_use_im_start_end else IMAGE
    chat = yi_vl.CONVERSATION if yi else VICUNA
    settings = towers.image_settings(vision, [f for f in (found, source) if f is not None])
    return _Parts(config, tokenizer, image_token, settings, _template(chat, seen), files)


def _ported(source: Path, given: dict[str, Any]) -> _Parts:
    """Yi-VL's community port: a LLaVA in transformers' older layout but for its projector."""
    from transformers import LlavaConfig

    was = LlavaConfig.from_dict(given)
    text, vision = was.text_config, was.vision_config
    tokenizer, image_token = _tokenizer(source, text, given)
    config = yi_vl.classes().config(
        vision_config=vision, text_config=text, image_token_index=image_token,
        vision_feature_layer=was.vision_feature_layer,
        vision_feature_select_strategy=was.vision_feature_select_strategy,
    )  # fmt: skip

    def rename(name: str, tensor: torch.Tensor) -> Renamed:
        name = name.replace("language_model.model.", "language_model.")
        name = name.replace("language_model.lm_head.", "lm_head.")
        before, projector, after = name.partition("multi_modal_projector.linear_")
        if projector:
            number, _, kind = after.partition(".")
            name = f"{before}multi_modal_projector.{PORTED_PROJECTOR[number]}.{kind}"
        name = name.removeprefix("model.").replace("vision_tower.vision_model.", "vision_tower.")
        if not name.endswith(("inv_freq", "position_ids")):
            yield name if name.startswith("lm_head.") else f"model.{name}", tensor

    settings = towers.image_settings(vision, [source])
    files = [(path, rename) for path in weight_files(source)]
    chat = _template(yi_vl.CONVERSATION, IMAGE)
    return _Parts(config, tokenizer, image_token, settings, chat, files)


def _identity(name: str, tensor: torch.Tensor) -> Renamed:
    """The second layer behind a projector of one: 1 x + 0."""
    import torch

    wide = len(tensor)
    second = torch.eye(wide) if tensor.ndim == 2 else torch.zeros(wide)
    name = name.replace("model.mm_projector.", "model.multi_modal_projector.linear_2.")
    yield name, second.to(tensor.dtype)


def _tokenizer(source: Path, text: Any, given: dict[str, Any]) -> tuple[Any, int]:
    """The checkpoint's tokenizer with a token for the image, and that token."""
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source, config=text)
    except (ImportError, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"folder must hold a tokenizer, but that of {str(source)!r} could not be read: "
            f"{str(error).strip().splitlines()[0]}; for a tokenizer.model install sentencepiece "
            "and protobuf"
        ) from error
    known = tokenizer.get_vocab()
    if given.get("mm_use_im_start_end") and not {"<im_start>", "<im_end>"} <= set(known):
        raise ValueError(
            "folder must hold a tokenizer that knows <im_start> and <im_end>, between which this "
            f"model was taught its images, but that of {str(source)!r} does not; add its "
            "added_tokens.json"
        )
    if IMAGE not in known:
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    return tokenizer, tokenizer.convert_tokens_to_ids(IMAGE)


def _template(conversation: str, image: str) -> str:
    """A chat template of one turn: the image on a line of its own, then the words."""
    before, _, after = conversation.partition("{words}")
    return (
        f"{{{{ {before!r} }}}}{{% for m in messages %}}{{% for c in m['content'] %}}"
        f"{{% if c['type'] == 'image' %}}{image}\n{{% else %}}{{{{ c['text'] }}}}{{% endif %}}"
        f"{{% endfor %}}{{% endfor %}}{{% if add_generation_prompt %}}{{{{ {after!r} }}}}"
        "{% endif %}"
    )


def _write_processor(parts: _Parts, out: Path) -> None:
    from transformers import LlavaImageProcessorPil, LlavaProcessor

    patch = parts.config.vision_config.patch_size
    LlavaProcessor(
        image_processor=LlavaImageProcessorPil(do_pad=True, **parts.image_settings),
        tokenizer=parts.tokenizer,
        patch_size=patch if isinstance(patch, int) else patch[0],
        vision_feature_select_strategy=parts.config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        chat_template=parts.chat,
    ).save_pretrained(out)


def _write_weights(parts: _Parts, out: Path) -> None:
    """Shards as they come, their index, and last the configuration: with it `out` is whole."""
    from safetensors.torch import save_file

    where: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes, size = set(), 0
    for i, (path, rename) in enumerate(parts.files, start=1):
        shard = {}
        with opened(path) as tensors:
            for name, read in tensors.items():
                for new, made in rename(name, read()):
                    if new in where:  # the model's own tower, trained on, before the tower's
                        continue
                    if new in ("lm_head.weight", "model.language_model.embed_tokens.weight"):
                        made = _with_row(made, parts.image_token, parts.tokenizer.unk_token_id)
                        dtypes.add(made.dtype)
                    shard[new] = made.contiguous()
                    shapes[new] = tuple(made.shape)
                    size += made.nbytes
            file = f"model-{i:05}-of-{len(parts.files):05}.safetensors"
            if shard:
                save_file(shard, out / file, metadata={"format": "pt"})
            where |= dict.fromkeys(shard, file)
    rows = shapes.get("model.language_model.embed_tokens.weight", (0,))[0]
    parts.config.text_config.vocab_size = rows
    _check_whole(parts.config, shapes)
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (out / "model.safetensors.index.json").write_text(dumps(index))
    parts.config.dtype = dtypes.pop()
    parts.config.save_pretrained(out)


def _with_row(tensor: torch.Tensor, token: int, like: int | None) -> torch.Tensor:
    """A table of the vocabulary that has a row for the token, equal to another's."""
    import torch

    missing = token + 1 - len(tensor)
    return tensor if missing <= 0 else torch.cat([tensor, *[tensor[like or 0][None]] * missing])


def _check_whole(config: Any, found: dict[str, tuple[int, ...]]) -> None:
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    wanted = {
        name.replace("vision_tower.vision_model.", "vision_tower."): tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if not (name == "lm_head.weight" and config.tie_word_embeddings)
    }
    wrong = [n for n in wanted | found if wanted.get(n) != found.get(n)]
    if wrong:
        first = wrong[0]
        raise ValueError(
            f"folder must hold the weights that its configuration says, but {len(wrong)} differ, "
            f"such as {first}: {wanted.get(first)} by the configuration, {found.get(first)} found"
        )
