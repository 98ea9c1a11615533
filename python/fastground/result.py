"""What one expression means in one image; how it is drawn and handed to other programs.

A box here is half-open x1, y1, x2, y2; COCO's is x, y, width, height. The method's score is a ratio
without upper end, so where a format wants a confidence it gets the share of the attention inside
the region, 0 to 1. What draws and what converts is imported on use.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from fastground.types import HeadId, ImageLayout


@dataclass(frozen=True, eq=False)
class Grounding:
    """What one expression means in one image."""

    expression: str
    box: torch.Tensor
    """(4,) float32 x1, y1, x2, y2 in pixels; zeros where nothing was found."""
    map_box: torch.Tensor
    """The kept region's box: `box` itself unless `Recipe.box_from` is "mask"."""
    mask: torch.Tensor
    """(height, width) bool."""
    score: float
    """Mean attention inside the region over the mean outside."""
    mass: float
    """Share of the attention inside the region."""
    found: bool
    map: torch.Tensor
    """(grid_h, grid_w) float32: the smoothed maps, summed. `layout.on_image(map)` has pixels."""
    maps: torch.Tensor
    """(k, grid_h, grid_w) float32: each head's map, as captured but for `Recipe.sinks`."""
    heads: tuple[HeadId, ...]
    layout: ImageLayout
    others: tuple[Grounding, ...] = field(default=(), repr=False)
    """Further objects, the largest share of attention first, where `Recipe.objects` asks."""
    image: Image | None = field(default=None, repr=False)
    """The image in RGB, upright, which box and mask are in; None where only maps were given."""

    def __repr__(self) -> str:
        what = "nothing found"
        if self.found:
            corners = ", ".join(f"{v:.1f}" for v in self.box.tolist())
            more = f", {len(self.others)} others" if self.others else ""
            what = f"box {corners}, score {self.score:.2f}{more}"
        heads = ", ".join(map(str, self.heads))
        return f"Grounding({str(self.expression)!r}: {what}; {heads}; {self.layout!r})"

    @property
    def objects(self) -> tuple[Grounding, ...]:
        """All objects of the expression: this one, unless nothing was found, and the others.

        Under a recipe with region "all" this one is all of them together.
        """
        return (self, *self.others) if self.found else ()

    def united(self) -> Grounding:
        """All objects as one: the union of their masks, and the box around theirs.

        Returns:
            A grounding without others; score and mass stay those of the kept region.
        """
        import torch

        if not self.others:
            return self

        def around(boxes: list[torch.Tensor]) -> torch.Tensor:
            corners = torch.stack(boxes)
            return torch.cat([corners[:, :2].amin(0), corners[:, 2:].amax(0)])

        return replace(
            self,
            box=around([each.box for each in self.objects]),
            map_box=around([each.map_box for each in self.objects]),
            mask=torch.stack([each.mask for each in self.objects]).any(0),
            others=(),
        )

    def show(self) -> None:
        """Open the picture that `save` writes, in the system's viewer.

        Raises:
            ValueError: the grounding knows no image.
        """
        from fastground import figures

        figures.rendered(figures.figure(self, self._image())).show()

    def save(self, path: str | Path) -> None:
        """Write a picture: the image, each head's map, their sum, box and mask.

        Args:
            path: ends in .png, .jpg, .jpeg, .svg or .pdf.

        Raises:
            ValueError: another ending, or the grounding knows no image.
        """
        from fastground import figures

        figures.save(figures.figure(self, self._image()), Path(path))

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows."""
        from fastground import figures

        return None if self.image is None else figures.encoded(figures.figure(self, self.image))

    def _image(self) -> Image:
        if self.image is None:
            raise ValueError(
                "grounding must know its image to be drawn, but was made from maps alone; use "
                "fastground.figures.figure(grounding, image)"
            )
        return self.image

    def to_rle(self) -> dict[str, Any]:
        """The mask in COCO's run-length encoding: `size` [height, width], `counts` as text.

        Raises:
            ModuleNotFoundError: pycocotools is not installed.
        """
        return rle(self.mask.cpu().numpy())

    def to_coco(self, image_id: int = 0, category_id: int = 1) -> dict[str, Any]:
        """One entry of a COCO results file, ready for `json.dump`.

        Args:
            image_id: of the data set.
            category_id: likewise.

        Returns:
            image_id, category_id, bbox [x, y, width, height], area (of the mask, pixels),
            iscrowd 0, segmentation (RLE), score (`mass`) and the expression as caption.

        Raises:
            ModuleNotFoundError: pycocotools is not installed.
        """
        x1, y1, x2, y2 = self.box.tolist()
        return {
            "image_id": image_id,
            "category_id": category_id,
            "caption": self.expression,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": int(self.mask.sum()),
            "iscrowd": 0,
            "segmentation": self.to_rle(),
            "score": self.mass,
        }

    def to_supervision(self) -> Any:
        """`supervision.Detections` of one box and mask, or of none where nothing was found.

        The confidence is `mass`; `data` holds the expression (as class_name, which annotators
        print) and the score. Join several with `supervision.Detections.merge`.

        Raises:
            ModuleNotFoundError: supervision is not installed.
        """
        supervision = _library("supervision", "supervision")
        if not self.found:
            return supervision.Detections.empty()
        return supervision.Detections(
            xyxy=self.box.cpu().numpy()[None],
            mask=self.mask.cpu().numpy()[None],
            confidence=np.array([self.mass], dtype=np.float32),
            class_id=np.zeros(1, dtype=int),
            data={
                "class_name": np.array([self.expression]),
                "score": np.array([self.score], dtype=np.float32),
            },
        )


def rle(mask: Any) -> dict[str, Any]:
    """A (height, width) bool array in COCO's run-length encoding, `counts` as text.

    Raises:
        ModuleNotFoundError: pycocotools is not installed.
    """
    masks = _library("pycocotools.mask", "eval")
    encoded = masks.encode(np.asfortranarray(np.asarray(mask, dtype=bool).astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}


def _library(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        raise ModuleNotFoundError(
            f"{package} must be installed for this format, but is not; "
            f"pip install 'fastground[{extra}]'"
        ) from error
