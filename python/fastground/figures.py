"""Pictures: a map over its image, regions, boxes, one grounding as a strip, many on a sheet.

Panels are PIL images; figures are matplotlib's, drawn without a display. Both libraries are
imported on use.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from fastground.result import Grounding
    from fastground.types import ImageLayout

BOX = (255, 122, 26)
"""The colour of what was found: orange, which stays apart from blue for every kind of sight."""
PICTURES = (".png", ".svg", ".pdf", ".jpg", ".jpeg")
"""What a figure can be written as."""
TRUTH = (64, 196, 255)
"""The colour of the truth, always dashed."""
PANEL = 384
"""Least width of a panel with lines in it, in pixels."""


def overlay(image: Image, map: Any, layout: ImageLayout) -> Image:
    """The image in grey, with the map as light over it, at the image's own size.

    Args:
        image: the original.
        map: (grid_h, grid_w), not negative; shown relative to its largest value.
        layout: where the map's cells lie in the image.
    """
    import matplotlib
    import numpy as np
    from PIL import Image as Images

    share = _on_image(map, layout)
    light = matplotlib.colormaps["inferno"](share)[..., :3]
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None] / 255
    alpha = (0.25 + 0.7 * share)[..., None]
    mixed = (1 - alpha) * (0.75 * grey) + alpha * light
    return Images.fromarray((255 * mixed).round().astype(np.uint8))


def regions(map: Any, labels: Any) -> Image:
    """The cells above the map's cut, each connected region in its own colour.

    Args:
        map: (grid_h, grid_w).
        labels: (grid_h, grid_w) int, 0 is background.
    """
    import matplotlib
    import numpy as np
    from PIL import Image as Images

    labels, share = np.asarray(labels), np.asarray(map, dtype=np.float32)
    share = share / max(float(share.max()), 1e-30)
    colours = np.array([matplotlib.colormaps["tab10"](i)[:3] for i in range(10)])
    picture = np.where(
        (labels > 0)[..., None], colours[(labels - 1) % 10], 0.1 + 0.25 * share[..., None]
    )
    cells = Images.fromarray((255 * picture).round().astype(np.uint8))
    zoom = max(1, math.ceil(PANEL / cells.width))
    return cells.resize((cells.width * zoom, cells.height * zoom), Images.Resampling.NEAREST)


def boxed(
    image: Image,
    box: Sequence[float] | None,
    truth: Sequence[float] | None = None,
    mask: Any = None,
    others: Sequence[Sequence[float]] = (),
) -> Image:
    """The image with what was found in solid orange and the truth in dashed blue.

    Args:
        image: the original.
        box: x1, y1, x2, y2 in the image's pixels; None where nothing was found.
        truth: likewise, where it is known.
        mask: (height, width) bool, tinted, where given.
        others: the boxes of further objects.
    """
    import numpy as np
    from PIL import Image as Images
    from PIL import ImageDraw

    picture = image.convert("RGB")
    if mask is not None:
        pixels = np.asarray(picture, dtype=np.float32)
        tint = np.where(np.asarray(mask)[..., None], 0.6 * pixels + 0.4 * np.array(BOX), pixels)
        picture = Images.fromarray(tint.round().astype(np.uint8))
    zoom = _zoom(image)
    picture = enlarged(picture)
    draw = ImageDraw.Draw(picture)
    width = max(3, picture.width // 110)
    if truth is not None:
        for line in _dashes([v * zoom for v in truth], 4 * width):
            draw.line(line, fill=(0, 0, 0), width=width + 2)
            draw.line(line, fill=TRUTH, width=width)
    for found in (box, *others):
        if found is None:
            continue
        corners = [v * zoom for v in found]
        draw.rectangle(corners, outline=(0, 0, 0), width=width + 2)
        inner = [corners[0] + 1, corners[1] + 1, corners[2] - 1, corners[3] - 1]
        if inner[0] < inner[2] and inner[1] < inner[3]:
            draw.rectangle(inner, outline=BOX, width=width)
    return picture


def figure(grounding: Grounding, image: Image, truth: Sequence[float] | None = None) -> Figure:
    """One grounding from left to right: the image, each head's map, their sum, the box.

    Args:
        grounding: what was found.
        image: the image it was found in.
        truth: the true box in pixels, dashed, where it is known.
    """
    panels = [("the image", enlarged(image.convert("RGB")))]
    for head, map in zip(grounding.heads, grounding.maps.float().cpu(), strict=True):
        panels.append((str(head), overlay(image, map, grounding.layout)))
    panels.append(("smoothed and summed", overlay(image, grounding.map.cpu(), grounding.layout)))
    title = f"box, score {grounding.score:.1f}" if grounding.found else "nothing found"
    if grounding.others:
        title = f"{len(grounding.objects)} objects"
    panels.append((title, _outcome(grounding, image, truth, masks=True)))
    return strips([panels], grounding.expression)


def strips(
    rows: Sequence[Sequence[tuple[str, Image] | None]], title: str, notes: str = ""
) -> Figure:
    """Rows of named pictures under a title, with notes below; None leaves a place empty."""
    columns, lines = max(map(len, rows)), notes.count("\n") + bool(notes)
    title = _wrapped(title, 2.2 * columns, 12)
    panels = [panel[1] for row in rows for panel in row if panel is not None]
    height = (
        (2.15 * _aspect(panels) + 0.3) * len(rows) + 0.25 * (1 + title.count("\n")) + 0.2 * lines
    )
    drawn, axes = canvas(2.2 * columns, height, columns=columns, rows=len(rows))
    for axis in axes:
        axis.axis("off")
        axis.set_anchor("S")  # what is left over is above, for the title
    for i, row in enumerate(rows):
        for axis, panel in zip(axes[i * columns :], row, strict=False):
            if panel is not None:
                axis.set_title(panel[0], fontsize=9)
                axis.imshow(panel[1])
    drawn.suptitle(title, fontsize=12, parse_math=False)
    if notes:
        drawn.supxlabel(notes, x=0.01, ha="left", fontsize=9, parse_math=False)
    return drawn


def contact_sheet(
    groundings: Sequence[Grounding],
    images: Sequence[Image],
    truths: Sequence[Sequence[float] | None] | None = None,
    columns: int = 4,
) -> Figure:
    """Many groundings on one sheet, each its image with box, truth and expression.

    Raises:
        ValueError: `groundings` is empty, or the lengths differ.
    """
    truths = [None] * len(groundings) if truths is None else truths
    if not groundings or not len(groundings) == len(images) == len(truths):
        raise ValueError(
            "groundings, images and truths must be as many and at least one, but got "
            f"{len(groundings)}, {len(images)} and {len(truths)}"
        )
    columns = min(columns, len(groundings))
    rows = math.ceil(len(groundings) / columns)
    titles = [_wrapped(grounding.expression, 2.3, 8) for grounding in groundings]
    lines = 1 + max(title.count("\n") for title in titles)
    height = 2.35 * _aspect(images) + 0.1 + 0.15 * lines
    drawn, axes = canvas(2.4 * columns, height * rows, columns=columns, rows=rows)
    for axis in axes:
        axis.axis("off")
        axis.set_anchor("S")  # what is left over is above, for the title
    told = zip(axes, groundings, images, truths, titles, strict=False)
    for axis, grounding, image, truth, title in told:
        axis.imshow(_outcome(grounding, image, truth))
        axis.set_title(title, fontsize=8, parse_math=False)
    return drawn


def canvas(
    width: float, height: float, *, columns: int = 1, rows: int = 1, **grid: Any
) -> tuple[Figure, list[Axes]]:
    """A figure that no display and no pyplot state knows of, and its axes in raster order.

    Args:
        width, height: in inches.
        columns, rows: of axes.
        grid: what matplotlib's `Figure.subplots` takes besides, such as height_ratios.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(drawn)
    return drawn, list(drawn.subplots(rows, columns, squeeze=False, **grid).ravel())


def encoded(drawn: Figure, kind: str = "png") -> bytes:
    """A figure as a file's bytes, the same for the same figure; an SVG without background.

    Args:
        drawn: the figure.
        kind: as a path ends that is one of `PICTURES`, without the dot.
    """
    import io

    import matplotlib

    written = io.BytesIO()
    dated = {"svg": "Date", "pdf": "CreationDate"}.get(kind)
    with matplotlib.rc_context({"svg.hashsalt": "fastground"}):
        drawn.savefig(
            written, format=kind, transparent=kind == "svg", dpi=150,
            metadata={dated: None} if dated else None,
        )  # fmt: skip
    return written.getvalue()


def save(drawn: Figure, path: Path) -> None:
    """Write a figure.

    Raises:
        ValueError: the path does not end in one of `PICTURES`.
    """
    if path.suffix.lower() not in PICTURES:
        raise ValueError(
            f"path must end in one of {', '.join(PICTURES)} to be a picture, but got {str(path)!r}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(drawn, path.suffix[1:].lower()))


def rendered(drawn: Figure) -> Image:
    """A figure as an image."""
    import io

    from PIL import Image as Images

    return Images.open(io.BytesIO(encoded(drawn)))


def enlarged(image: Image) -> Image:
    """The image at a whole multiple of its size, `PANEL` pixels wide unless it is far higher."""
    from PIL import Image as Images

    zoom = _zoom(image)
    size = (image.width * zoom, image.height * zoom)
    return image.resize(size, Images.Resampling.BICUBIC) if zoom > 1 else image


def _wrapped(text: str, width: float, size: float) -> str:
    """The text in lines that fit into a width in inches, at a size in points: 0.62 em a letter."""
    return textwrap.fill(text, max(1, int(72 * width / (0.62 * size))))


def _aspect(images: Sequence[Image]) -> float:
    """Height over width of the highest of them, from a half to two."""
    return min(2.0, max(0.5, *(image.height / image.width for image in images)))


def _zoom(image: Image) -> int:
    return max(1, min(math.ceil(PANEL / image.width), 4 * PANEL // image.height))


def _outcome(
    grounding: Grounding, image: Image, truth: Sequence[float] | None, *, masks: bool = False
) -> Image:
    """The image with all objects of a grounding."""
    import numpy as np

    boxes = [[float(v) for v in o.box] for o in grounding.objects]
    mask = None
    if masks:
        mask = np.any([o.mask.cpu().numpy() for o in (grounding, *grounding.others)], axis=0)
    return boxed(image, boxes[0] if boxes else None, truth, mask, boxes[1:])


def _on_image(map: Any, layout: ImageLayout) -> Any:
    """(height, width) float32 in 0..1: the map at the image's pixels, its largest value 1."""
    import torch

    share = torch.asarray(map, dtype=torch.float32, copy=True)  # of arrays that none may write, too
    return layout.on_image(share / share.max().clamp(min=1e-30)).clamp(0, 1).cpu().numpy()


def _dashes(box: Sequence[float], step: float) -> list[tuple[float, float, float, float]]:
    """A box's outline as short lines."""
    x1, y1, x2, y2 = box
    lines = []
    for start, end, at in ((x1, x2, y1), (x1, x2, y2)):
        for a in _steps(start, end, step):
            lines.append((a, at, min(a + step / 2, end), at))
    for start, end, at in ((y1, y2, x1), (y1, y2, x2)):
        for a in _steps(start, end, step):
            lines.append((at, a, at, min(a + step / 2, end)))
    return lines


def _steps(start: float, end: float, step: float) -> list[float]:
    return [start + i * step for i in range(max(0, math.ceil((end - start) / step)))]
