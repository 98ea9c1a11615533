"""From boxes to masks: one protocol, and who keeps it.

    segmenter(image, groundings, recipe) -> one (height, width) bool mask each

    none               the pseudo-mask: the map itself, cut at its mean inside the kept region
    Prompted           SAM, SAM-HQ, SAM 2, SAM 3, segment-anything (`fastground.sam`)
    GrabCut            colours alone, by OpenCV, where there are no weights

What a segmenter is told is `Recipe.prompt`; of several proposals `Recipe.masks` chooses. The image
comes once with all of its groundings, so that it is encoded once.

    box          the grounding's
    box+mask     with it, ln(p / (1 - p)) at every pixel, p = map / (2 * its mean), clamped to
                 +-LIMIT: 0 where the pseudo-mask is cut, -LIMIT outside the box and the image
    box+points   with it, at most `POINTS` peaks of the map: the cells above the mean that no
                 neighbour exceeds and whose centre is in the box, the highest first
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from fastground import sam
from fastground.grounding import bilinear, cell_coverage, mask_box, valid_cells
from fastground.result import Grounding
from fastground.sam import Prompt, Sam
from fastground.types import Recipe

LIMIT = 6.9
"""The largest log-odds that a map gives: p = 0.999."""
POINTS = 3
"""Most peaks of a prompt."""
NAMES = "none, grabcut, sam:FOLDER, segment-anything:FILE"
"""What `load` takes."""


class Segmenter(Protocol):
    """Makes masks of groundings."""

    def __call__(
        self, image: Image.Image, groundings: Sequence[Grounding], recipe: Recipe
    ) -> Sequence[Any]:
        """One mask a grounding.

        Args:
            image: RGB; boxes are in its pixels.
            groundings: of this image, all of them found.
            recipe: prompt and masks are read.

        Returns:
            As many (height, width) bool arrays or tensors, in order.
        """
        ...


def load(name: str, *, device: Any = None) -> Segmenter | None:
    """A segmenter by its name, as the command line has it.

    Args:
        name: "none"; "grabcut"; "sam:" and a folder or hub name of SAM, SAM-HQ, SAM 2 or SAM 3 as
            transformers reads them; "segment-anything:" and its authors' file of weights.
        device: of a model; a GPU where there is one, else the CPU.

    Returns:
        The segmenter; None for "none".

    Raises:
        ValueError: there is no such segmenter, or its weights are of something else.
        FileNotFoundError: its weights are not there; the message says where to get them.
        ModuleNotFoundError: its package is not installed.
    """
    kind, _, source = name.partition(":")
    if kind == "none" and not source:
        return None
    if kind == "grabcut" and not source:
        return GrabCut()
    if kind == "sam" and source:
        return Prompted(sam.load(source, device=device))
    if kind == "segment-anything" and source:
        return Prompted(sam.load_segment_anything(source, device=device))
    raise ValueError(f"segmenter must be one of {NAMES}, but got {name!r}")


def segmented(
    segmenter: Segmenter | None, groundings: Sequence[Grounding], recipe: Recipe
) -> list[Grounding]:
    """Groundings of one image with a segmenter's masks, and the box that the recipe wants.

    Args:
        segmenter: None keeps the pseudo-masks.
        groundings: which know their image; where nothing was found the mask stays empty. It gets
            all their objects at once.
        recipe: box_from is read, and what the segmenter reads.

    Raises:
        ValueError: the segmenter returned other than a mask of the image's size each.
    """
    every = [replace(g, others=()) for one in groundings for g in (one, *one.others)]
    found = [g for g in every if g.found]
    masks = [g.mask for g in found]
    if segmenter is not None and found:
        assert found[0].image is not None, "the grounder sets it"
        made = list(segmenter(found[0].image, found, recipe))
        if len(made) != len(found):
            raise ValueError(
                f"segmenter must return a mask for each of {len(found)} groundings, but returned "
                f"{len(made)}"
            )
        masks = [_checked(mask, g) for mask, g in zip(made, found, strict=True)]
    given = iter(masks)
    whole = iter([_with_mask(g, next(given), recipe) if g.found else g for g in every])
    return [replace(next(whole), others=tuple(islice(whole, len(g.others)))) for g in groundings]


def _checked(mask: Any, grounding: Grounding) -> torch.Tensor:
    mask = torch.as_tensor(mask, dtype=torch.bool, device=grounding.mask.device)
    if mask.shape != grounding.mask.shape:
        raise ValueError(
            f"segmenter must return a (height, width) mask {tuple(grounding.mask.shape)}, but "
            f"returned {tuple(mask.shape)}"
        )
    return mask


def _with_mask(grounding: Grounding, mask: torch.Tensor, recipe: Recipe) -> Grounding:
    box = mask_box(mask) if recipe.box_from == "mask" and mask.any() else grounding.map_box
    return replace(grounding, mask=mask, box=box)


class Prompted:
    """A segmenter that hands a SAM what a grounding knows."""

    def __init__(self, model: Sam) -> None:
        """Of a model of `fastground.sam`."""
        self.model = model

    def __repr__(self) -> str:
        return f"Prompted({type(self.model.model).__name__})"  # type: ignore[attr-defined]

    def __call__(
        self, image: Image.Image, groundings: Sequence[Grounding], recipe: Recipe
    ) -> list[torch.Tensor]:
        """As in `Segmenter`."""
        several = recipe.masks != "one"
        prompts = [prompt(g, recipe) for g in groundings]
        logits = self.model.logits(image, prompts, several=several)
        return [
            best(proposed > 0, grounding, recipe)
            for proposed, grounding in zip(logits, groundings, strict=True)
        ]


class GrabCut:
    """A segmenter by colour: Gaussian mixtures of what is in the box and what is around it.

    With "box+mask" what the pseudo-mask leaves out of the box begins as background, with
    "box+points" the cells at the peaks are surely the object. It proposes one mask only. Where the
    box leaves nothing of the image around it, nothing can be told apart: its mask is the box.

    Source: Rother et al., SIGGRAPH 2004, as OpenCV has it.
    """

    def __init__(self, iterations: int = 5) -> None:
        """Of so many rounds.

        Raises:
            ModuleNotFoundError: OpenCV is not installed.
        """
        try:
            import cv2
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "OpenCV must be installed for the segmenter grabcut, but is not; "
                "pip install 'fastground[grabcut]'"
            ) from error
        self._cv2, self.iterations = cv2, iterations

    def __repr__(self) -> str:
        return f"GrabCut(iterations={self.iterations})"

    def __call__(
        self, image: Image.Image, groundings: Sequence[Grounding], recipe: Recipe
    ) -> list[np.ndarray]:
        """As in `Segmenter`."""
        pixels = np.asarray(image)[..., ::-1].copy()
        return [self._cut(pixels, grounding, recipe) for grounding in groundings]

    def _cut(self, pixels: np.ndarray, grounding: Grounding, recipe: Recipe) -> np.ndarray:
        cv2 = self._cv2
        inside = np.zeros(pixels.shape[:2], dtype=bool)
        x1, y1, x2, y2 = grounding.map_box.tolist()
        inside[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = True
        marks = np.where(inside, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
        if recipe.prompt == "box+mask":
            marks[inside & ~grounding.mask.cpu().numpy()] = cv2.GC_PR_BGD
        if recipe.prompt == "box+points":
            for x, y in peaks_in_box(grounding, recipe).tolist():
                marks[int(y), int(x)] = cv2.GC_FGD
        background = np.isin(marks, (cv2.GC_BGD, cv2.GC_PR_BGD))
        if background.all() or not background.any():
            return inside
        cv2.setRNGSeed(0)  # its clusters begin at random: the same image, the same mask
        work = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(pixels, marks, None, *work, self.iterations, cv2.GC_INIT_WITH_MASK)
        return np.isin(marks, (cv2.GC_FGD, cv2.GC_PR_FGD))


def prompt(grounding: Grounding, recipe: Recipe) -> Prompt:
    """What a grounding tells a segmenter; the box is the map's."""
    box = grounding.map_box
    if recipe.prompt == "box+mask":
        return Prompt(box, log_odds=log_odds(grounding, recipe))
    if recipe.prompt == "box+points":
        points = peaks_in_box(grounding, recipe)
        return Prompt(box, points=points if len(points) else None)
    return Prompt(box)


def log_odds(
    grounding: Grounding, recipe: Recipe
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Of pixel positions (h,) y and (w,) x the (h, w) float32 log-odds of the object."""
    layout = grounding.layout
    assert layout.cell_size is not None and layout.image_size is not None
    (cell_x, cell_y), (origin_x, origin_y) = layout.cell_size, layout.origin
    cells = grounding.map.detach().cpu().double()
    valid = valid_cells(layout, recipe)
    mean = float((cells if valid is None else cells[valid]).mean())
    x1, y1, x2, y2 = grounding.map_box.tolist()

    def at(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        down = bilinear((y.double() - origin_y) / cell_y, layout.grid[0])
        across = bilinear((x.double() - origin_x) / cell_x, layout.grid[1])
        odds = torch.logit(down @ cells @ across.T / (2 * mean), eps=1e-6).clamp(-LIMIT, LIMIT)
        inside = ((y >= y1) & (y < y2))[:, None] & ((x >= x1) & (x < x2))
        return torch.where(inside, odds, -LIMIT).float()

    return at


def peaks_in_box(grounding: Grounding, recipe: Recipe) -> torch.Tensor:
    """(n, 2) float32 x, y in pixels: the map's highest local maxima in the box, at cell centres."""
    layout = grounding.layout
    assert layout.cell_size is not None
    cells = grounding.map.detach().cpu().float()
    valid = valid_cells(layout, recipe)
    if valid is not None:
        cells = cells.masked_fill(~valid, -torch.inf)
    around = functional.max_pool2d(cells[None], 3, stride=1, padding=1)[0]
    mean = cells[cells.isfinite()].mean()
    row, column = ((cells == around) & (cells > mean)).nonzero().T
    place = torch.stack([column, row], dim=1) + 0.5
    centre = place * place.new_tensor(layout.cell_size) + place.new_tensor(layout.origin)
    x1, y1, x2, y2 = grounding.map_box.cpu()
    x, y = centre.T
    kept = (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
    order = cells[row, column][kept].argsort(descending=True, stable=True)[:POINTS]
    return centre[kept][order]


def best(proposed: torch.Tensor, grounding: Grounding, recipe: Recipe) -> torch.Tensor:
    """The mask that agrees best with the map, by Pearson's correlation over its cells.

    One that covers all of them alike agrees neither way: 0.

    Args:
        proposed: (masks, height, width) bool.
        grounding: whose map is compared with how much of every cell a mask covers.
        recipe: with padding "exclude" padding cells do not count.

    Returns:
        (height, width) bool; of equals the first.
    """
    if len(proposed) == 1:
        return proposed[0]
    coverage = cell_coverage(proposed, grounding.layout).double()
    cells = grounding.map.to(coverage.device).double()[None]
    valid = valid_cells(grounding.layout, recipe, coverage.device)
    if valid is not None:
        coverage, cells = coverage[:, valid], cells[:, valid]
    a, b = (v.flatten(1) - v.flatten(1).mean(dim=1, keepdim=True) for v in (coverage, cells))
    agreement = functional.cosine_similarity(a, b, dim=1, eps=1e-12)
    return proposed[int(agreement.argmax())]
