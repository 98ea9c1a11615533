"""A grounding in the formats of others: COCO's JSON and RLE, supervision's detections.

Boxes here are half-open x1, y1, x2, y2; COCO's are x, y, width, height. A score of the method is a
ratio without upper end, so where a format wants a confidence it gets the share of the attention
inside the region, 0 to 1. The libraries are imported on use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastground.types import Grounding


def rle(grounding: Grounding) -> dict[str, Any]:
    """The mask in COCO's run-length encoding, its counts as text, which JSON can hold."""
    import numpy as np

    masks = _library("pycocotools.mask", "eval")
    encoded = masks.encode(np.asfortranarray(grounding.mask.cpu().numpy().astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}


def coco(grounding: Grounding, image_id: int, category_id: int) -> dict[str, Any]:
    """One entry of a COCO results file."""
    x1, y1, x2, y2 = (float(v) for v in grounding.box)
    return {
        "image_id": image_id,
        "category_id": category_id,
        "caption": grounding.expression,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": int(grounding.mask.sum()),
        "iscrowd": 0,
        "segmentation": rle(grounding),
        "score": grounding.mass,
    }


def supervision(grounding: Grounding) -> Any:
    """`supervision.Detections` of the box and the mask."""
    import numpy as np

    library = _library("supervision", "supervision")
    if not grounding.found:
        return library.Detections.empty()
    return library.Detections(
        xyxy=grounding.box.cpu().numpy()[None],
        mask=grounding.mask.cpu().numpy()[None],
        confidence=np.array([grounding.mass], dtype=np.float32),
        class_id=np.zeros(1, dtype=int),
        data={
            "class_name": np.array([grounding.expression]),
            "score": np.array([grounding.score], dtype=np.float32),
        },
    )


def _library(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        raise ModuleNotFoundError(
            f"{package} must be installed for this format, but is not; "
            f"pip install 'fastground[{extra}]'"
        ) from error
