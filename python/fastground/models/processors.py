"""Processors where torchvision is not: transformers asks for it even where no video is read."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def without_video(kind: type) -> type:
    """The same processor class, made without the part that reads videos: `video_processor=None`."""

    def check_argument_for_proper_class(self: Any, name: str, value: Any) -> Any:
        if name == "video_processor" and value is None:
            return None
        return kind.check_argument_for_proper_class(self, name, value)  # type: ignore[attr-defined]

    from transformers import ProcessorMixin

    named = {
        "check_argument_for_proper_class": check_argument_for_proper_class,
        # SmolVLM's own asks the part that is not there how many frames it reads.
        "apply_chat_template": ProcessorMixin.apply_chat_template,
    }
    return type(kind.__name__, (kind,), named)
