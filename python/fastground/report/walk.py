"""One example from the asking token to the box: the method's steps, each on real numbers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from fastground import figures, ops
from fastground.report.examples import Example, boxed, image_of, result
from fastground.report.page import Page, figure, quoted, step

if TYPE_CHECKING:
    from fastground.types import AttentionMaps, HeadRanking, HeadStats, Recipe


class Walk(NamedTuple):
    """One example with everything that led to it."""

    example: Example
    tokens: Sequence[str]
    """The sequence as read by people; the image's tokens as one entry, IMAGE."""
    asking: int
    """The entry that asks."""
    attention: AttentionMaps
    """(1, layers * heads, grid_h, grid_w): every head's map."""
    stats: HeadStats
    """(1, layers * heads) each."""


IMAGE = "<image>"


def asking(page: Page, walk: Walk | None) -> str:
    """Step 1: the sequence, and the token that asks."""
    if walk is None:
        return ""
    example = walk.example
    grid_h, grid_w = walk.attention.layout.grid
    chips = []
    for i, token in enumerate(walk.tokens):
        if token == IMAGE:
            chips.append(f'<li class="image">image: {grid_h} &times; {grid_w} tokens</li>')
        else:
            kind = ' class="asks"' if i == walk.asking else ""
            chips.append(f"<li{kind}>{escape(token)}</li>")
    image = page.picture(
        "step1-image", figures.enlarged(image_of(example)), "The picture that is asked about"
    )
    return step(
        1,
        "The last token asks",
        "<p>Image and expression are one sequence of tokens. At the expression&rsquo;s last "
        "token the model must know what is meant, so this token looks back: each attention head "
        "spreads one unit of attention over everything before it. What falls on the image is "
        f"that head&rsquo;s <b>attention map</b>, {grid_h} &times; {grid_w} cells. (This example "
        "was chosen because it is clear; those at the end are not chosen.)</p>\n"
        '<ol class="tokens">'
        + "".join(chips)
        + f'</ol>\n<div class="row">{figure(image, quoted(example.sample.expression))}'
        "<div></div><div></div></div>",
    )


def two_numbers(page: Page, walk: Walk | None, ranking: HeadRanking) -> str:
    """Step 2: three heads that show what attention sum and spatial entropy tell apart."""
    if walk is None:
        return ""
    cards = []
    for kind, place in _telling_heads(walk, ranking):
        head = walk.attention.heads[place]
        map = walk.attention.maps[0, place].float().cpu()
        share = float(walk.stats.attention_sum[0, place])
        entropy = float(walk.stats.entropy[0, place])
        labels = ops.label(map)
        name = f"step2-l{head.layer}-h{head.head}"
        over = page.picture(
            name, figures.overlay(image_of(walk.example), map, walk.attention.layout),
            f"Attention map of {head} over the picture",
        )  # fmt: skip
        cells = page.picture(
            f"{name}-regions", figures.regions(map, labels),
            f"Its {_regions(labels)} above the mean",
        )  # fmt: skip
        cards.append(
            figure(
                f'<div class="pair">{over}{cells}</div>',
                f"<b>{head}: {kind}</b><br>attention sum {share:.2f} · entropy {entropy:.2f} "
                f"({_regions(labels)})",
            )
        )
    return step(
        2,
        "Two numbers per head",
        "<p><b>Attention sum</b>: how much of the unit falls on the image at all. "
        "<b>Spatial entropy</b>: how scattered it is. The cells above the map&rsquo;s mean form "
        "regions (coloured); one region has entropy 0, many of like size have much. A head that "
        "localizes has a large sum and a small entropy. (Each map is shown relative to its own "
        "maximum.)</p>\n"
        f'<div class="row gallery">{"".join(cards)}</div>',
    )


def _telling_heads(walk: Walk, ranking: HeadRanking) -> list[tuple[str, int]]:
    """Places of three heads that show what the two numbers tell apart."""
    heads = walk.attention.heads
    sums = walk.stats.attention_sum[0].tolist()
    entropies = walk.stats.entropy[0].tolist()
    chosen = set(ranking.top())
    others = [
        i for i, h in enumerate(heads) if h not in chosen and h.layer >= ranking.recipe.skip_layers
    ]
    telling = [("the first chosen", heads.index(ranking.top()[0]))]
    scattered = [i for i in others if sums[i] >= ranking.tau and entropies[i] < float("inf")]
    if scattered:
        telling.append(
            ("of those above τ, the most scattered", max(scattered, key=lambda i: entropies[i]))
        )
    if others:
        telling.append(("looks least", min(others, key=lambda i: sums[i])))
    return telling


def maps(page: Page, walk: Walk | None) -> str:
    """Step 4: the maps of the chosen heads, and their sum."""
    if walk is None:
        return ""
    grounding, image = walk.example.grounding, image_of(walk.example)
    cards = []
    for head, map in zip(grounding.heads, grounding.maps.float().cpu(), strict=True):
        picture = page.picture(
            f"step4-l{head.layer}-h{head.head}", figures.overlay(image, map, grounding.layout),
            f"Attention map of {head} over the picture",
        )  # fmt: skip
        cards.append(figure(picture, f"<b>{head}</b>"))
    summed = figures.overlay(image, grounding.map.float().cpu(), grounding.layout)
    picture = page.picture("step4-sum", summed, "The smoothed maps, summed, over the picture")
    cards.append(figure(picture, "<b>smoothed and summed</b>"))
    return step(
        4,
        f"{_count(len(grounding.heads))} maps" if len(grounding.heads) > 1 else "One map",
        f"<p>For {quoted(walk.example.sample.expression)} only these heads are read. Each map "
        f'is smoothed a little, then they are summed.</p>\n<div class="row">{"".join(cards)}</div>',
    )


def box(page: Page, walk: Walk | None, recipe: Recipe) -> str:
    """Step 5: regions, and the box of the one that is kept."""
    if walk is None:
        return ""
    example = walk.example
    map = example.grounding.map.float().cpu()
    foreground = _foreground(map, example.grounding.layout.valid(), recipe)
    labels = ops.label(foreground)
    kept = {
        "hull": "The region with the largest convex hull is kept",
        "component": "The region of most cells is kept",
        "mass": "The region of most attention is kept",
        "all": "All regions are kept",
    }[recipe.region]
    regions = page.picture("step5-regions", figures.regions(map, labels), "Regions above the mean")
    box = page.picture("step5-box", boxed(example, mask=True), result(example))
    return step(
        5,
        "The box",
        f"<p>The sum is cut at its mean. {kept}, and its tight box, carried from cells to "
        'pixels, is <span class="found">what was found</span>. Beside it, '
        '<span class="truth">the truth</span>, dashed, which nothing before this line has '
        'seen.</p>\n<div class="row">'
        + figure(regions, f"<b>{_regions(labels)}</b> above the mean")
        + figure(box, f"<b>the box</b>, IoU with the truth {example.iou:.2f}")
        + "<div></div></div>",
    )


def _foreground(map: Any, valid: Any, recipe: Recipe) -> Any:
    """The combined map's cells above its mean; padding is left out where the recipe says so."""
    if recipe.padding == "include":
        return ops.binarize(map)
    return (map > map[valid].mean()) & valid


def _regions(labels: Any) -> str:
    count = int(labels.max())
    return f"{count} region" if count == 1 else f"{count} regions"


def _count(number: int) -> str:
    words = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")
    return words[number] if number < len(words) else str(number)
