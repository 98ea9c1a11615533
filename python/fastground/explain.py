"""One grounding from image to box, step by step, with the numbers: how one sees why it failed.

    captured      k maps, each with its attention sum and entropy
    cleared       only where the recipe's `sinks` changes them
    smoothed      k maps
    sum | cut | regions | hull | box | mask

`explain` grounds one expression and keeps what came between; `figure` draws it. Where the true box
is known, the remarks say at which step it was lost: heads that look elsewhere, a wrong region kept,
a region that is too large or too small, or a grid whose cells are too coarse.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastground import figures, ops, reference
from fastground.attention import attention_maps
from fastground.grounding import (
    boxes_in_pixels,
    boxes_on_grid,
    cell_coverage,
    further_objects,
    peaks,
    valid_cells,
)
from fastground.metrics import box_iou
from fastground.models.geometry import read_image
from fastground.objects import FoundRegion, found_regions
from fastground.stats import head_statistics
from fastground.types import HeadId, Recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from fastground.grounder import Grounder
    from fastground.result import Grounding

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Look:
    """What one head saw."""

    head: HeadId
    attention_sum: float
    """S_img, over all of the image's tokens."""
    entropy: float
    """H, nats; +inf for a map without foreground."""
    peak: tuple[float, float]
    """x, y in pixels: the centre of the highest cell of its smoothed map."""


@dataclass(frozen=True)
class Part:
    """One region of the sum above its mean."""

    box: Box
    """In pixels."""
    cells: int
    area: float
    """Of its convex hull, in cells; how many cells, where the recipe keeps no hull."""
    share: float
    """Of the foreground's attention."""
    kept: bool
    other: bool
    """Whether it is an object besides the kept region, as `Recipe.objects` has it."""
    iou: float
    """Of its box with the truth; nan where that is not known."""


@dataclass(frozen=True)
class Explanation:
    """A grounding with what came between image and box."""

    grounding: Grounding
    captured: torch.Tensor
    """(k, grid_h, grid_w) float32: each head's map before anything."""
    looks: tuple[Look, ...]
    tau: float
    """The attention sum that a head needs on average to be chosen, by the ranking."""
    mean: float
    """Of the sum over the cells that count: where it is cut."""
    regions: tuple[FoundRegion, ...]
    parts: tuple[Part, ...]
    """The same regions in pixels, the largest share first."""
    truth: Box | None
    iou: float
    """Of the box with the truth; nan where that is not known."""
    ceiling: float
    """IoU of the box that perfect maps would give on this grid; nan likewise."""
    recipe: Recipe

    @property
    def remarks(self) -> tuple[str, ...]:
        """What went well or wrong, a sentence each."""
        return tuple(_remarks(self))

    def to_dict(self) -> dict[str, Any]:
        """Every number by name, as JSON keeps it."""
        g = self.grounding
        return {
            "expression": str(g.expression),
            "found": g.found,
            "box": g.box.tolist(),
            "mask_area": int(g.mask.sum()),
            "score": g.score,
            "mass": g.mass,
            "heads": [asdict(look) for look in self.looks],
            "tau": self.tau,
            "mean": self.mean,
            "regions": [asdict(part) for part in self.parts],
            "truth": self.truth,
            "iou": self.iou,
            "ceiling": self.ceiling,
            "remarks": self.remarks,
        }


def explain(
    grounder: Grounder, image: Any, expression: str, truth: Box | None = None
) -> Explanation:
    """Ground an expression and keep every step.

    Args:
        grounder: its model, heads and recipe.
        image: as a grounder takes it.
        expression: one.
        truth: x1, y1, x2, y2 in pixels of the upright image, where it is known.

    Raises:
        ValueError: what the grounder refuses; a true box outside the image or without area.
        FileNotFoundError: there is no such image file.
    """
    image = read_image(image)
    if truth is not None:
        _check(truth, image)
    found, recipe = grounder(image, expression), grounder.recipe
    captured = attention_maps(grounder.lvlm, image, [expression], recipe=recipe, heads=found.heads)
    stats = head_statistics(captured, recipe)
    layout, valid = found.layout, valid_cells(found.layout, recipe)
    smoothed = _smoothed(found.maps, recipe)
    looks = [
        Look(head, float(total), float(entropy), (peak[0], peak[1]))
        for head, total, entropy, peak in zip(
            found.heads, stats.attention_sum[0], stats.entropy[0],
            peaks(smoothed, layout, recipe).tolist(), strict=True,
        )
    ]  # fmt: skip
    ceiling = float("nan")
    if truth is not None:
        perfect = cell_coverage(_filled(truth, image), layout)[None]
        ceiling = _iou(boxes_in_pixels(boxes_on_grid(perfect, layout, recipe), layout), truth)
    regions = found_regions(found.map, recipe, valid)
    boxes = [layout.to_pixels(torch.tensor(r.box, dtype=torch.float32)) for r in regions]
    cut = ops.boxes(found.map.cpu()[None], recipe=recipe.replace(kernel_size=1), valid=valid)
    kept = cut.xyxy.tolist()
    further = [id(region) for region in further_objects(regions, kept, recipe)]
    return Explanation(
        grounding=found,
        captured=captured.maps[0].cpu(),
        looks=tuple(looks),
        tau=grounder.ranking.tau,
        mean=float(reference.mean(found.map.cpu(), valid)),
        regions=tuple(regions),
        parts=tuple(
            Part(
                box=(box[0], box[1], box[2], box[3]),
                cells=int(region.cells.sum()),
                area=region.area,
                share=region.share,
                kept=recipe.region == "all" or list(region.box) == kept,
                other=id(region) in further,
                iou=_iou(box, truth),
            )
            for region, box in zip(regions, (b.tolist() for b in boxes), strict=True)
        ),
        truth=truth,
        iou=_iou(found.box.cpu(), truth),
        ceiling=ceiling,
        recipe=recipe,
    )


def figure(explained: Explanation) -> Figure:
    """The way from the image to the box as rows of pictures, remarks below; the truth is dashed."""
    g, truth, recipe = explained.grounding, explained.truth, explained.recipe
    image, layout, total = g.image, g.layout, g.map.cpu()
    assert image is not None, "the grounder sets it"

    def over(map: torch.Tensor) -> Image:
        return figures.boxed(figures.overlay(image, map.clamp(min=0), layout), None, truth)

    labels = torch.zeros(layout.grid, dtype=torch.int32)
    for number, region in enumerate(explained.regions, start=1):
        labels[region.cells] = number
    cut = figures.regions(total, (labels > 0).int())
    shares = ", ".join(f"{100 * part.share:.0f} %" for part in explained.parts[:4])
    kept = [part for part in explained.parts if part.kept]
    rows: list[list[tuple[str, Image] | None]]
    rows = [[("the image", figures.boxed(image, None, truth))]]
    for look, seen in zip(explained.looks, explained.captured, strict=True):
        name = f"{look.head}: S_img {look.attention_sum:.2f}, H {look.entropy:.2f}"
        rows[0].append((name, over(seen)))
    if recipe.sinks != "keep":
        names = [f"{head}, {recipe.sinks}" for head in g.heads]
        rows.append([None, *zip(names, map(over, g.maps.cpu()), strict=True)])
    names, smoothed = [f"{head}, smoothed" for head in g.heads], _smoothed(g.maps.cpu(), recipe)
    rows.append([None, *zip(names, map(over, smoothed), strict=True)])
    area = f"{kept[0].area:g} cells" if kept else "none"
    several = f"{len(g.objects)} objects, " if g.others else ""
    whole = torch.stack([g.mask, *(o.mask for o in g.others)]).any(0).cpu()
    box, masked = (
        figures.boxed(image, boxes[0] if g.found else None, truth, mask, boxes[1:])
        for boxes, mask in (
            ([o.map_box.tolist() for o in g.objects], None),
            ([o.box.tolist() for o in g.objects], whole),
        )
    )
    overlap = "" if truth is None else f", IoU {explained.iou:.2f}"
    rows += [
        [
            ("sum", over(total)),
            (f"above its mean {explained.mean:.2g}", cut),
            (f"{len(explained.parts)} regions: {shares}", figures.regions(total, labels)),
            (f"kept: {recipe.region}, {area}", _outlined(explained, image)),
        ],
        [
            (f"{several}box, score {g.score:.1f}{overlap}", box),
            (f"mask, {int(whole.sum())} pixels", masked),
        ],
    ]
    return figures.strips(rows, g.expression, "\n".join(explained.remarks))


def _remarks(e: Explanation) -> list[str]:
    g, truth = e.grounding, e.truth
    said = [
        f"{look.head} sees little of the image here: S_img {look.attention_sum:.3f} is below "
        f"tau {e.tau:.3f}"
        for look in e.looks
        if look.attention_sum < e.tau
    ]
    if not g.found:
        return [*said, "no cell of the sum exceeds its mean: nothing was found"]
    if truth is None:
        if len(e.parts) > 1:
            first, second = (100 * part.share for part in e.parts[:2])
            said.append(f"{len(e.parts)} regions; the two largest have {first:.0f} % and "
                        f"{second:.0f} % of the foreground's attention")  # fmt: skip
        return said
    said.append(f"IoU {e.iou:.2f} with the truth: {'right' if e.iou >= 0.5 else 'wrong'} at 0.5")
    if e.iou >= 0.5:
        return said
    away = [str(look.head) for look in e.looks if not _inside(look.peak, truth)]
    if away:
        said.append(f"the peak of {', '.join(away)} lies outside the true box")
    elif e.looks:
        said.append("every head peaks inside the true box")
    best = max(e.parts, key=lambda part: part.iou)
    of_map = _iou(g.map_box.cpu(), truth)
    if of_map >= 0.5:
        said.append(f"the map's box has IoU {of_map:.2f}: the mask's (box_from=mask) lost it")
    elif best.iou >= 0.5:
        other = "one of the regions alone" if best.kept else "another region"
        said.append(f"{other} has IoU {best.iou:.2f}: the choice of the region "
                    f"(region={e.recipe.region}) lost it")  # fmt: skip
    elif best.iou == 0:
        said.append("no region touches the true box: the heads look elsewhere")
    elif not best.kept:
        said.append(f"no region fits; the best, not the kept one, has IoU {best.iou:.2f}")
    else:
        ratio = _area(g.box.tolist()) / _area(truth)
        size = f"{ratio:.1f} times the true box's area" if ratio >= 1 else \
            f"{100 * ratio:.0f} % of the true box's area"  # fmt: skip
        said.append(f"the right region is kept, and its box has {size}")
    if e.ceiling < 0.5:
        said.append(f"perfect maps would give IoU {e.ceiling:.2f}: the {g.layout.grid[0]} x "
                    f"{g.layout.grid[1]} cells of the grid are too coarse")  # fmt: skip
    return said


def _smoothed(maps: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    return ops.smooth(
        maps, kernel_size=recipe.kernel_size, sigma=recipe.sigma, border=recipe.border
    )


def _outlined(e: Explanation, image: Image) -> Image:
    """The sum over the image, with the kept regions' convex hulls."""
    from PIL import ImageDraw

    layout = e.grounding.layout
    picture = figures.enlarged(figures.overlay(image, e.grounding.map.cpu(), layout))
    zoom = picture.width / image.width
    (cell_x, cell_y), (left, top) = layout.cell_size or (1.0, 1.0), layout.origin
    draw = ImageDraw.Draw(picture)
    for region, part in zip(e.regions, e.parts, strict=True):
        if part.kept:
            corners = {(int(j) + a, int(i) + b) for i, j in region.cells.nonzero()
                       for a in (0, 1) for b in (0, 1)}  # fmt: skip
            hull = reference.convex_hull(corners)
            line = [(zoom * (x * cell_x + left), zoom * (y * cell_y + top)) for x, y in hull]
            draw.line([*line, line[0]], fill=figures.BOX, width=max(3, picture.width // 110))
    return picture


def _check(truth: Box, image: Image) -> None:
    x1, y1, x2, y2 = truth
    if not (0 <= x1 < x2 <= image.width and 0 <= y1 < y2 <= image.height):
        raise ValueError(
            f"truth must be x1, y1, x2, y2 in the image of {image.width} x {image.height} pixels, "
            f"but got {truth}"
        )


def _filled(truth: Box, image: Image) -> torch.Tensor:
    x1, y1, x2, y2 = truth
    mask = torch.zeros(image.height, image.width, dtype=torch.bool)
    mask[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = True
    return mask


def _iou(box: Any, truth: Box | None) -> float:
    return float("nan") if truth is None else float(box_iou(np.asarray(box), truth))


def _area(box: Any) -> float:
    x1, y1, x2, y2 = box
    return (x2 - x1) * (y2 - y1)


def _inside(point: tuple[float, float], box: Box) -> bool:
    return box[0] <= point[0] < box[2] and box[1] <= point[1] < box[3]
