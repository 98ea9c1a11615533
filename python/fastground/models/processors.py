"""Processors without videos: transformers asks for torchvision even where none is read.

    processor  =  image processor  +  tokenizer  +  video processor     as transformers makes it
                  PIL or torchvision                torchvision only

Where torchvision is missing, such a processor can neither be made nor read from a checkpoint.
Without its video part it can, and does the same to images and words.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any


@cache
def without_video(kind: Any) -> Any:
    """The same processor class without the part that reads videos.

    It is made, saved and loaded as the class itself is; a `video_processor` among its arguments or
    in a checkpoint is left out.
    """

    from transformers import ProcessorMixin

    parts_of_kind = kind.get_attributes()

    class Parts(ProcessorMixin):  # comes after `kind`, which hands its parts on by order or by name
        def __init__(self, *args: Any, **keywords: Any) -> None:
            named = dict(zip(parts_of_kind, args, strict=False)) | keywords
            named.pop("video_processor", None)
            super().__init__(**named)

    def get_attributes(cls: Any) -> list[str]:
        return [part for part in parts_of_kind if part != "video_processor"]

    def from_args_and_dict(cls: Any, parts: Any, settings: Any, **keywords: Any) -> Any:
        whole = list(parts)
        whole.insert(parts_of_kind.index("video_processor"), None)
        return kind.from_args_and_dict.__func__(cls, whole, settings, **keywords)

    named = {
        "get_attributes": classmethod(get_attributes),
        "from_args_and_dict": classmethod(from_args_and_dict),
        # SmolVLM's own asks the part that is not there how many frames it reads.
        "apply_chat_template": ProcessorMixin.apply_chat_template,
        # MiniCPM-V's and Qwen-Omni's ask it for settings that both parts have.
        "video_processor": property(lambda self: self.image_processor),
    }
    return type(kind.__name__, (kind, Parts), named)


def load(source: str, config: Any, **keywords: Any) -> Any:
    """A checkpoint's processor; where a part of it reads videos, without that.

    Args:
        source: a folder, or a model's name on the hub.
        config: the model's configuration, which says what class its processor has.
        keywords: as `from_pretrained` takes them.
    """
    from transformers import AutoProcessor, AutoTokenizer
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    kind: Any = PROCESSOR_MAPPING.get(type(config), None) or _named(source, **keywords)
    if kind is None:
        return AutoProcessor.from_pretrained(source, **keywords)
    reads_videos = "video_processor" in kind.get_attributes()
    if reads_videos:
        kind = without_video(kind)
    images = _hidden_image_processor(type(config).__module__)
    if images is not None:
        parts = [part.from_pretrained(source, **keywords) for part in (images, AutoTokenizer)]
        settings, _ = kind.get_processor_dict(source, **keywords)
        return kind.from_args_and_dict(parts, settings)
    return (kind if reads_videos else AutoProcessor).from_pretrained(source, **keywords)


def _named(source: str, **keywords: Any) -> Any:
    """The class that a checkpoint names, where its family has none of its own, as GLM-OCR.

    None where it names none, or one that hears, too: that does not do without its videos.
    """
    from transformers import ProcessorMixin
    from transformers.models.auto.processing_auto import processor_class_from_name

    settings, _ = ProcessorMixin.get_processor_dict(source, **keywords)
    kind = processor_class_from_name(settings.get("processor_class", ""))
    return None if kind is None or "feature_extractor" in kind.get_attributes() else kind


def _hidden_image_processor(configuration: str) -> Any:
    """The image processor by Pillow that transformers 5.17 hides where torchvision is not.

    Those of Idefics3, SmolVLM and Ovis2 do without it; None where it is found by its name.

    Args:
        configuration: name of the module that the family's configuration comes from.
    """
    import transformers

    family = configuration.rpartition(".")[0]
    name = f"{family}.image_processing_pil_{family.rpartition('.')[2]}"
    if not family.startswith("transformers.models.") or find_spec(name) is None:
        return None
    module = import_module(name)
    kind = module.__all__[-1]
    hidden = getattr(getattr(transformers, kind), "is_dummy", False)
    return getattr(module, kind) if hidden else None
