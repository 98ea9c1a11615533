"""Expressions and what was found for each, with its maps; and the scores of many."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from fastground import figures
from fastground.datasets.images import by_image
from fastground.metrics import box_iou
from fastground.report.page import Page, figure, percent, table

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastground.comparison import Comparison
    from fastground.result import Grounding
    from fastground.types import Sample


class Example(NamedTuple):
    """One expression, what was found, and how well."""

    sample: Sample
    grounding: Grounding
    iou: float
    """Of the found box and the true one; nan where that is not known."""


def grounded(grounder: Any, samples: Iterable[Sample]) -> Iterator[Example]:
    """What is found for each sample, as they stream in.

    Args:
        grounder: as `Grounder`: from an image and its expressions to groundings.
        samples: those of an image one after another.
    """
    for group in by_image(samples):
        found = grounder(group[0].image, [sample.expression for sample in group])
        for sample, grounding in zip(group, found, strict=True):
            iou = float("nan")
            if sample.box is not None:
                iou = float(box_iou(grounding.box.cpu().numpy(), sample.box))
            yield Example(sample, grounding, iou)


def gallery(page: Page, title: str, examples: Iterable[Example]) -> str:
    """A section of examples, each with the maps of its heads; none: no section.

    Args:
        page: the page.
        title: of the section; the pictures' files begin with it.
        examples: in order.
    """
    cards, name = [], re.sub(r"\W+", "-", title.lower())
    for i, example in enumerate(examples, start=1):
        grounding, image = example.grounding, image_of(example)
        stem = f"{name}-{i:02d}"
        small = [
            page.picture(f"{stem}-l{head.layer}-h{head.head}",
                         figures.overlay(image, map, grounding.layout), f"Map of {head}")
            for head, map in zip(grounding.heads, grounding.maps.float().cpu(), strict=True)
        ]  # fmt: skip
        summed = figures.overlay(image, grounding.map.float().cpu(), grounding.layout)
        small.append(page.picture(f"{stem}-sum", summed, "The smoothed maps, summed"))
        box = page.picture(f"{stem}-box", boxed(example), result(example))
        badge = ""
        if example.iou == example.iou:
            verdict = "hit" if example.iou >= 0.5 else "miss"
            badge = f'<span class="badge {verdict}">{verdict}, IoU {example.iou:.2f}</span>'
        cards.append(
            figure(
                f'{box}<div class="trio" style="grid-template-columns:repeat({len(small)},1fr)">'
                f"{''.join(small)}</div>",
                f"{badge}<b>{escape(example.sample.expression)}</b>",
            )
        )
    if not cards:
        return ""
    return (
        f"<section>\n<h2>{escape(title)}</h2>\n"
        '<p><span class="found">Found</span> solid, <span class="truth">truth</span> dashed; '
        "below each picture the heads&rsquo; maps, and on the right their sum.</p>\n"
        f'<div class="row gallery">{"".join(cards)}</div>\n</section>'
    )


def scores(comparison: Comparison | None) -> str:
    """A section of what the method scores beside what it must beat; none, no section."""
    if comparison is None:
        return ""
    kinds = list(comparison.rows[0].scores.by_kind)
    lines = []
    for i, row in enumerate(comparison.rows):
        scored = row.scores
        heads = f" <small>({', '.join(map(str, row.heads))})</small>" if row.heads else ""
        bar = f'<div class="bar" style="--share:{100 * scored.accuracy:.1f}%">'
        cells = (
            f"{escape(row.name)}{heads}", f"{bar}{percent(scored.accuracy)}</div>",
            f"{scored.mean_iou:.3f}", percent(scored.pointing),
            *(percent(scored.by_kind[k]) for k in kinds),
        )  # fmt: skip
        lines.append((i == 0, cells))
    return (
        f"<section>\n<h2>How well it works</h2>\n<p>On {comparison.num_samples:,} held-out "
        "expressions, for the method and for what it must be compared with: the share of boxes "
        "that overlap the truth by half or more (Acc@0.5), the mean overlap (IoU), how often the "
        "map&rsquo;s peak lies on the object (pointing), and Acc@0.5 by kind of expression. The "
        "oracle knows the true masks of the training split; the ceiling is what the grid leaves "
        "of a perfect map.</p>\n"
        + table(("heads", "Acc@0.5", "mean IoU", "pointing", *kinds), lines)
        + "\n</section>"
    )


def image_of(example: Example) -> Image:
    """The image as it was grounded in, in RGB and upright."""
    image = example.grounding.image
    return example.sample.image if image is None else image


def boxed(example: Example, *, mask: bool = False) -> Image:
    """The image with the found box, and with the true one where it is known."""
    grounding = example.grounding
    box = [float(v) for v in grounding.box] if grounding.found else None
    tint = grounding.mask.cpu() if mask else None
    return figures.boxed(image_of(example), box, example.sample.box, tint)


def result(example: Example) -> str:
    """What was found, in words."""
    found = "The box found" if example.grounding.found else "No box was found"
    truth = f", IoU with the truth {example.iou:.2f}" if example.iou == example.iou else ""
    return f"{found} for “{example.sample.expression}”{truth}"
