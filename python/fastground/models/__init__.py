"""From a checkpoint to an LVLM that can be asked; one small adapter a family of models.

    load(folder or name)       what transformers loads as published
    wrap(model, processor)     what is loaded already, whoever's code did
    convert(folder, out)       LLaVA's original layout, once; then load(out)

Which adapter it becomes is read off its configuration's model_type, with its vision tower's where
that decides:

    in ADAPTERS     its own
    in REFUSED      none, for the reason told
    in neither      `generic.Generic`, if the configuration names an image token

`support` makes a table of this, which `fastground info --models` prints.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastground.hub import commit, parted, reached
from fastground.models import processors, yi_vl
from fastground.models.codes import Apertus, Chameleon, Emu3
from fastground.models.conversion import NEWER, convert, refuse_unconverted
from fastground.models.fuyu import Fuyu
from fastground.models.gemma import Gemma3, Gemma3n, Gemma4, Gemma4Unified, PaliGemma
from fastground.models.generic import Generic
from fastground.models.hunyuan import HunYuan
from fastground.models.idefics import GraniteDocling, Idefics
from fastground.models.internvl import AyaVision, Chart2Table, GotOcr2, InternVL, Llama4, QianfanOCR
from fastground.models.kimi import Glm5, Kimi
from fastground.models.lfm2_vl import Lfm2Vl
from fastground.models.llava import FastVLM, Llava, VideoLlava
from fastground.models.llava_next import Granite, LlavaNext
from fastground.models.lvlm import LVLM
from fastground.models.mini_gemini import MiniGemini
from fastground.models.minicpm import MiniCPM, MiniCPM47
from fastground.models.molmo import Molmo2
from fastground.models.ovis import Ovis
from fastground.models.perception_lm import PerceptionLM
from fastground.models.phi4 import Phi4
from fastground.models.pixtral import Pixtral
from fastground.models.qwen_vl import Ernie, MiniMaxM3, Nemotron, Qwen4, Qwen35, QwenVL
from fastground.models.square import DeepseekVL, Janus
from fastground.models.step import Step
from fastground.models.unlimited import UnlimitedOcr
from fastground.models.yi_vl import YiVL
from fastground.seam import refuse_absent

if TYPE_CHECKING:
    import torch

__all__ = ["ADAPTERS", "LVLM", "REFUSED", "convert", "load", "wrap"]

ADAPTERS: dict[str, type[LVLM]] = {
    name: kind
    for kind in (
        Llava, FastVLM, VideoLlava,
        Apertus, Chameleon, Emu3, Fuyu,
        YiVL,
        MiniGemini,
        InternVL, AyaVision, GotOcr2, Chart2Table, Llama4, QianfanOCR,
        LlavaNext, Granite,
        HunYuan, Idefics, GraniteDocling, Kimi, Glm5, Lfm2Vl, MiniCPM, MiniCPM47, Molmo2, Ovis,
        PerceptionLM, Phi4, Pixtral,
        QwenVL, Qwen35, Qwen4, Ernie, MiniMaxM3, Nemotron,
        Step, UnlimitedOcr,
        DeepseekVL, Janus,
        Gemma3, Gemma3n, Gemma4, Gemma4Unified, PaliGemma,
    )
    for name in kind.model_types
}  # fmt: skip
"""The supported families by their transformers `model_type`, or by that and their vision tower's,
`model_type+model_type`, where the tower makes another layout."""

_QUERIES = "asks the image with learned queries: its image tokens have no place in the image"
_CROSS = "keeps the image out of the sequence, in cross-attention: its words see no image tokens"
_ENCODER = "has an encoder for the image and a decoder for words, which see each other's summary"
_DISTANCES = "adds learned distances to its attention, which capture does not read"
_SINKS = "weighs its keys against learned sinks, which capture does not read"
_THINKER = "keeps the model that sees in a part of its own: wrap(model.thinker, processor)"

REFUSED: dict[str, str] = {
    "aria": _QUERIES, "blip-2": _QUERIES, "deepseek_ocr2": _QUERIES, "idefics2": _QUERIES,
    "instructblip": _QUERIES, "instructblipvideo": _QUERIES, "kosmos-2": _QUERIES,
    "kosmos-2.5": _QUERIES,
    "blip": _CROSS, "idefics": _CROSS, "mllama": _CROSS,
    "florence2": _ENCODER, "pix2struct": _ENCODER, "pp_formulanet": _ENCODER,
    "t5gemma2": _ENCODER, "udop": _ENCODER, "vision-encoder-decoder": _ENCODER,
    "qwen2_5_omni": _THINKER, "qwen3_omni_moe": _THINKER,
    "evolla": "reads proteins, and no images", "mistral4": "reads no images",
    "pi0": "moves a robot, and says no words",
    "shieldgemma2": "is asked about policies alone, in words that its processor writes",
    "diffusion_gemma": "runs its layers over prompt and answer apart: a head has two maps",
    "hy_v4_vl": _SINKS, "inkling2": _DISTANCES, "inkling2_loop": _DISTANCES,
    "inkling_mm_model": _DISTANCES,
    "git": "puts the image before the sequence without tokens for it",
    "molmo": f"attends by code of its own, which nobody can listen to; take {NEWER['molmo']}",
}  # fmt: skip
"""Families that have no attention map over an image's cells, or hide it, each with the reason."""


def load(
    checkpoint: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> LVLM:
    """A model with its processor, in evaluation mode.

    Args:
        checkpoint: "tiny" (the embedded model), a folder, or a model's name on the hub, also of a
            branch, tag or commit: NAME@REVISION. Code that comes with a checkpoint is never run.
        device: a GPU where there is one, else the CPU.
        dtype: float32 on the CPU; on a GPU what the weights are stored in.

    Raises:
        ValueError: there is no such model or device, it has no processor, or its family is not
            supported.
    """
    import torch
    import transformers
    from transformers import AutoConfig

    name = named(checkpoint)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    _check_device(device)
    if dtype is None and torch.device(device).type == "cpu":
        dtype = torch.float32
    if name.startswith(("/", ".", "~")) and not Path(name).is_dir():
        raise ValueError(
            f"checkpoint must be 'tiny', a folder or a model on the hub, but there is no {name!r}"
        )
    with ExitStack() as stack:
        source, revision = parted(name)
        if name == "tiny":
            source = str(stack.enter_context(_embedded()))
            stack.enter_context(_without_progress())
        where = reached(source, **revision) | revision
        refuse_unconverted(source, **where)
        yi_vl.classes()
        config = _read(
            AutoConfig.from_pretrained, source, name, "config.json of a transformers model", **where
        )
        whole = getattr(transformers, _adapter(config).auto)
        processor = _read(
            partial(processors.load, config=config), source, name,
            "processor (processor_config.json or preprocessor_config.json, and the tokenizer's "
            "files); save it there with processor.save_pretrained", **where,
        )  # fmt: skip
        if not _is_whole(processor):
            raise ValueError(
                f"checkpoint must hold a processor with images and a tokenizer, but {name!r} has "
                f"only a {type(processor).__name__}; save one there with processor.save_pretrained"
            )
        settings: dict[str, Any] = {"dtype": dtype or "auto", **where}
        if _caps_logits(config):
            settings["attn_implementation"] = {"text_config": "eager"}
        if getattr(config, "quantization_config", None) is not None:
            settings["device_map"] = {"": str(device)}  # such weights cannot be moved later
        model = _read(whole.from_pretrained, source, name, "model's weights", **settings)
        if "device_map" not in settings:
            model = model.to(device)
        # Where transformers kept it before 5.24; it goes with the model to whoever wraps it again.
        model.config._commit_hash = commit(source, **revision) or None
    return wrap(model.eval(), processor, checkpoint=name)


def wrap(model: Any, processor: Any, *, checkpoint: str | None = None) -> LVLM:
    """A model and a processor that are loaded already.

    Args:
        model: on one device, quantised, or split over devices and disk by `device_map`, as
            transformers' from_pretrained leaves it.
        processor: the model's own.
        checkpoint: what results are labelled with; the model's own name unless given.

    Raises:
        ValueError: the model's family is not supported, the processor lacks images or words, the
            model has no weights or is in training mode, or its attention does not cap the logits as
            its configuration says, or ignores a mask that it needs.
    """
    if not hasattr(getattr(model, "config", None), "model_type"):
        raise ValueError(
            f"model must be a transformers model, but got {type(model).__name__}; give .model of "
            "what fastground.models.load gives"
        )
    config = model.config
    adapter = _adapter(config)
    if not _is_whole(processor):
        raise ValueError(
            "processor must be the model's own, of images and words, but got "
            f"{type(processor).__name__}; load it with transformers.AutoProcessor"
        )
    refuse_absent(model)
    if model.training:
        raise ValueError(
            "model must be in evaluation mode, where nothing is dropped at random; call "
            "model.eval() first"
        )
    used = config.get_text_config(decoder=True)._attn_implementation
    if _caps_logits(config) and used != "eager":
        raise ValueError(
            "model must use eager attention, the only one that caps its logits "
            f"(attn_logit_softcapping), but uses {used!r}; call "
            "model.set_attn_implementation({'text_config': 'eager'}) first"
        )
    return adapter(model, processor, checkpoint or config.name_or_path or config.model_type)


def named(checkpoint: str | Path) -> str:
    """A checkpoint's name or folder as text.

    Raises:
        ValueError: it is something else, such as a model that is loaded already.
    """
    if not isinstance(checkpoint, (str, Path)):
        raise ValueError(
            "checkpoint must be a name or a folder, but got "
            f"{type(checkpoint).__name__}; give a model that is loaded already, with its processor,"
            " to fastground.models.wrap, and what that makes to fastground.Grounder"
        )
    return str(checkpoint)


def _check_device(device: str | torch.device) -> None:
    import torch

    try:
        if torch.device(device).type != "cuda" or torch.cuda.is_available():
            return
    except RuntimeError:  # no name of a device
        pass
    raise ValueError(
        f"device must be one that torch has here, such as cpu, but got {str(device)!r}; "
        "fastground info says whether it sees a GPU"
    )


def _is_whole(processor: Any) -> bool:
    return hasattr(processor, "image_processor") and hasattr(processor, "tokenizer")


def _adapter(config: Any) -> type[LVLM]:
    name = config.model_type
    if name in REFUSED or getattr(config, "is_encoder_decoder", False):
        why = REFUSED.get(name, _ENCODER)
        raise ValueError(f"model must see an image as a grid of tokens, but {name!r} {why}")
    tower = getattr(getattr(config, "vision_config", None), "model_type", None)
    for known in (f"{name}+{tower}", name):
        if known in ADAPTERS:
            return ADAPTERS[known]
    if getattr(config, "image_token_id", None) is None:
        raise ValueError(
            f"model must be one of the supported families ({', '.join(ADAPTERS)}), or name its "
            f"image token in config.image_token_id, but its model_type is {name!r}"
        )
    return Generic


def _caps_logits(config: Any) -> bool:
    return bool(getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None))


def _embedded() -> Any:
    folder = files("fastground.tiny") / "checkpoint"
    if not folder.is_dir():
        raise ValueError(
            "checkpoint 'tiny' must be part of the installation, but its folder is missing; "
            "reinstall fastground"
        )
    return as_file(folder)


@contextmanager
def _without_progress() -> Iterator[None]:
    """No progress bar for what is loaded at once."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _read(load: Any, source: str, name: str, what: str, **keywords: Any) -> Any:
    try:
        return load(source, trust_remote_code=False, **keywords)
    except (ImportError, OSError, ValueError, KeyError, TypeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"checkpoint must be 'tiny', a folder or a model on the hub, with a {what}; "
            f"{name!r} could not be read: {first}"
        ) from error
