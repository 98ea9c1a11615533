"""Processors without videos: transformers asks for torchvision even where none is read.

    processor  =  image processor  +  tokenizer  +  video processor     as transformers makes it
                  PIL or torchvision                torchvision only

Where torchvision is missing, such a processor can neither be made nor read from a checkpoint.
Without its video part it can, and does the same to images and words.
"""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def without_video(kind: Any) -> Any:
    """The same processor class without the part that reads videos.

    It is made, saved and loaded as the class itself is; a `video_processor` among its arguments or
    in a checkpoint is left out. That must be the last of the class's parts.
    """

    from transformers import ProcessorMixin

    class Parts(ProcessorMixin):  # comes after `kind`, which hands its parts on by order or by name
        def __init__(self, *args: Any, **keywords: Any) -> None:
            keywords.pop("video_processor", None)
            super().__init__(*args, **keywords)

    def get_attributes(cls: Any) -> list[str]:
        return [part for part in kind.get_attributes() if part != "video_processor"]

    def from_args_and_dict(cls: Any, args: Any, *more: Any, **keywords: Any) -> Any:
        return super(made, cls).from_args_and_dict([*args, None], *more, **keywords)

    made: Any = type(
        kind.__name__,
        (kind, Parts),
        {
            "get_attributes": classmethod(get_attributes),
            "from_args_and_dict": classmethod(from_args_and_dict),
        },
    )
    return made


def load(source: str, config: Any, **keywords: Any) -> Any:
    """A checkpoint's processor; where its last part reads videos, without that.

    Args:
        source: a folder, or a model's name on the hub.
        config: the model's configuration, which says what class its processor has.
        keywords: as `from_pretrained` takes them.
    """
    from transformers import AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    kind: Any = PROCESSOR_MAPPING.get(type(config), None)
    if kind is None or kind.get_attributes()[-1:] != ["video_processor"]:
        return AutoProcessor.from_pretrained(source, **keywords)
    return without_video(kind).from_pretrained(source, **keywords)
