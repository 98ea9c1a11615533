"""The report: one page that explains the method by what it did, with its pictures beside it.

The page needs no script and no other host. It tells the five steps, each on real numbers: the last
token asks; two numbers a head; the elbow and the election; a few maps; the box. Then the scores,
then examples, failures among them. Parts that were not given are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastground import figures, ops

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastground.comparison import Comparison
    from fastground.result import Grounding
    from fastground.types import AttentionMaps, HeadRanking, HeadStats, Recipe, Sample


class Example(NamedTuple):
    """One expression, what was found, and how well."""

    sample: Sample
    grounding: Grounding
    iou: float
    """Of the found box and the true one."""


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


def write(
    folder: str | Path,
    ranking: HeadRanking,
    *,
    comparison: Comparison | None = None,
    facts: Sequence[tuple[str, str]] = (),
    walk: Walk | None = None,
    examples: Sequence[Example] = (),
    failures: Sequence[Example] = (),
    details: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write `index.html` and its pictures into a folder.

    Args:
        folder: made where it does not exist; files of the same names are replaced.
        ranking: the heads.
        comparison: the method beside what it must beat.
        facts: name and value of the numbers that open the page.
        walk: one example from the asking token to the box.
        examples: held-out expressions as they came, not chosen.
        failures: expressions whose box missed.
        details: name and value of what belongs in small print, such as run times.

    Returns:
        The path of `index.html`.
    """
    page = _Page(Path(folder))
    sections = [
        _opening(ranking, facts),
        _asking(page, walk),
        _two_numbers(page, walk, ranking),
        _election(page, ranking),
        _maps(page, walk),
        _box(page, walk, ranking.recipe),
        _scores(comparison),
        _gallery(page, "Held-out expressions, as they came", "as they came", examples),
        _gallery(page, "Where it fails", "missed", failures),
        _small_print(ranking, details),
    ]
    style = Path(__file__).with_name("report.css").read_text()
    html = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>fastground: {escape(ranking.checkpoint)}</title>\n<style>\n{style}</style>\n"
        "</head>\n<body>\n<main>\n" + "\n".join(s for s in sections if s) + "\n</main>\n"
        "</body>\n</html>\n"
    )
    path = page.folder / "index.html"
    path.write_text(html, encoding="utf-8")
    return path


class _Page:
    """Saves pictures beside the page, and names them in it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def picture(self, name: str, image: Image, alt: str) -> str:
        image.save(self.folder / f"{name}.png", optimize=True)
        return (
            f'<img src="{name}.png" alt="{escape(alt)}" '
            f'width="{image.width}" height="{image.height}" loading="lazy">'
        )

    def chart(self, name: str, draw: Any, alt: str) -> str:
        for theme, suffix in ((figures.LIGHT, ""), (figures.DARK, "-dark")):
            figures.save(draw(theme), self.folder / f"{name}{suffix}.svg")
        return (
            f'<picture><source srcset="{name}-dark.svg" media="(prefers-color-scheme: dark)">'
            f'<img src="{name}.svg" alt="{escape(alt)}"></picture>'
        )


def _opening(ranking: HeadRanking, facts: Sequence[tuple[str, str]]) -> str:
    model = escape(ranking.checkpoint)
    tiles = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts
    )
    return (
        "<header>\n<h1>Where a vision-language model looks</h1>\n"
        '<p class="lead">When such a model reads what it is asked about a picture, a few of its '
        "attention heads look at just that thing. fastground finds the heads that do, and reads "
        f"boxes out of them. Nothing is trained: the heads of <b>{model}</b> were found on "
        f"{ranking.num_samples:,} expressions without any box.</p>\n"
        + (f'<dl class="tiles">{tiles}</dl>\n' if tiles else "")
        + "</header>"
    )


def _asking(page: _Page, walk: Walk | None) -> str:
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
        "step1-image", figures.enlarged(example.sample.image), "The picture that is asked about"
    )
    return _step(
        1,
        "The last token asks",
        "<p>Image and expression are one sequence of tokens. At the expression&rsquo;s last "
        "token the model must know what is meant, so this token looks back: each attention head "
        "spreads one unit of attention over everything before it. What falls on the image is "
        f"that head&rsquo;s <b>attention map</b>, {grid_h} &times; {grid_w} cells. (This example "
        "was chosen because it is clear; those at the end are not chosen.)</p>\n"
        '<ol class="tokens">'
        + "".join(chips)
        + f'</ol>\n<div class="row">{_figure(image, _quoted(example.sample.expression))}'
        "<div></div><div></div></div>",
    )


def _two_numbers(page: _Page, walk: Walk | None, ranking: HeadRanking) -> str:
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
            name, figures.overlay(walk.example.sample.image, map, walk.attention.layout),
            f"Attention map of {head} over the picture",
        )  # fmt: skip
        cells = page.picture(
            f"{name}-regions", figures.regions(map, labels),
            f"Its {_regions(labels)} above the mean",
        )  # fmt: skip
        cards.append(
            _figure(
                f'<div class="pair">{over}{cells}</div>',
                f"<b>{head}: {kind}</b><br>attention sum {share:.2f} · entropy {entropy:.2f} "
                f"({_regions(labels)})",
            )
        )
    return _step(
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


def _election(page: _Page, ranking: HeadRanking) -> str:
    recipe = ranking.recipe
    curve = page.chart(
        "step3-curve", lambda theme: figures.attention_sum_curve(ranking, theme),
        f"Mean attention sums of {len(ranking.curve)} heads in ascending order, cut at "
        f"{ranking.tau:.2f}",
    )  # fmt: skip
    matrix = page.chart(
        "step3-heads", lambda theme: figures.head_matrix(ranking, theme),
        "Selection frequency of every head, layer by layer; chosen: "
        + ", ".join(str(h) for h in ranking.top()),
    )  # fmt: skip
    lines = []
    for place, ranked in enumerate(ranking.heads[: max(recipe.k, 10)], start=1):
        mark = ' class="ours"' if place <= recipe.k else ""
        lines.append(
            f"<tr{mark}><th>{place}. {ranked.head}</th><td>{100 * ranked.frequency:.1f} %</td>"
            f"<td>± {100 * ranked.frequency_std:.1f}</td><td>{ranked.attention_sum:.2f}</td>"
            f"<td>{ranked.entropy:.2f}</td></tr>"
        )
    same = sum(set(t) == set(ranking.top()) for t in ranking.trials)
    body = (
        f"<p>Over {ranking.num_samples:,} expressions, sort all heads by their mean attention "
        f"sum. The curve&rsquo;s elbow, τ = {ranking.tau:.2f}, parts the heads that look at the "
        "image from those that do not. Of those that do, every expression elects its "
        f"{recipe.top_n} of least entropy. Who is elected most often is a <b>localization "
        "head</b>: "
        f'<span class="found">{", ".join(str(h) for h in ranking.top())}</span>.'
        + (
            f" In {same} of {len(ranking.trials)} separate trials they were the same."
            if len(ranking.trials) > 1
            else ""
        )
        + '</p>\n<div class="row wide">'
        + _figure(curve, "The elbow: mean attention sum of every head.", "chart")
        + _figure(
            matrix, f"The election; the first {recipe.skip_layers} layers do not stand.", "chart"
        )
        + '</div>\n<div class="scroll"><table><thead><tr><th>head</th><th>elected in</th>'
        "<th>over trials</th><th>attention sum</th><th>entropy</th></tr></thead><tbody>"
        + "".join(lines)
        + "</tbody></table></div>"
    )
    return _step(3, "The elbow and the election", body)


def _maps(page: _Page, walk: Walk | None) -> str:
    if walk is None:
        return ""
    grounding, image = walk.example.grounding, walk.example.sample.image
    cards = []
    for head, map in zip(grounding.heads, grounding.maps.float().cpu(), strict=True):
        picture = page.picture(
            f"step4-l{head.layer}-h{head.head}", figures.overlay(image, map, grounding.layout),
            f"Attention map of {head} over the picture",
        )  # fmt: skip
        cards.append(_figure(picture, f"<b>{head}</b>"))
    summed = figures.overlay(image, grounding.map.float().cpu(), grounding.layout)
    picture = page.picture("step4-sum", summed, "The smoothed maps, summed, over the picture")
    cards.append(_figure(picture, "<b>smoothed and summed</b>"))
    return _step(
        4,
        f"{_count(len(grounding.heads))} maps" if len(grounding.heads) > 1 else "One map",
        f"<p>For {_quoted(walk.example.sample.expression)} only these heads are read. Each map "
        f'is smoothed a little, then they are summed.</p>\n<div class="row">{"".join(cards)}</div>',
    )


def _box(page: _Page, walk: Walk | None, recipe: Recipe) -> str:
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
    box = page.picture("step5-box", _boxed(example, mask=True), _result(example))
    return _step(
        5,
        "The box",
        f"<p>The sum is cut at its mean. {kept}, and its tight box, carried from cells to "
        'pixels, is <span class="found">what was found</span>. Beside it, '
        '<span class="truth">the truth</span>, dashed, which nothing before this line has '
        'seen.</p>\n<div class="row">'
        + _figure(regions, f"<b>{_regions(labels)}</b> above the mean")
        + _figure(box, f"<b>the box</b>, IoU with the truth {example.iou:.2f}")
        + "<div></div></div>",
    )


def _scores(comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    kinds = list(comparison.rows[0].scores.by_kind)
    lines = []
    for i, row in enumerate(comparison.rows):
        scores = row.scores
        heads = f" <small>({', '.join(map(str, row.heads))})</small>" if row.heads else ""
        by_kind = "".join(f"<td>{_percent(scores.by_kind[k])}</td>" for k in kinds)
        lines.append(
            f'<tr{" class=ours" if i == 0 else ""}><th scope="row">{escape(row.name)}{heads}</th>'
            f'<td class="bar" style="--share:{100 * scores.accuracy:.1f}%">'
            f"{_percent(scores.accuracy)}</td><td>{scores.mean_iou:.3f}</td>"
            f"<td>{_percent(scores.pointing)}</td>{by_kind}</tr>"
        )
    columns = ("Acc@0.5", "mean IoU", "pointing", *kinds)
    return (
        f"<section>\n<h2>How well it works</h2>\n<p>On {comparison.num_samples:,} held-out "
        "expressions, for the method and for what it must be compared with: the share of boxes "
        "that overlap the truth by half or more (Acc@0.5), the mean overlap (IoU), how often the "
        "map&rsquo;s peak lies on the object (pointing), and Acc@0.5 by kind of expression. The "
        "oracle knows the true masks of the training split; the ceiling is what the grid leaves "
        "of a perfect map.</p>\n"
        '<div class="scroll"><table><thead><tr><th>heads</th>'
        + "".join(f"<th>{escape(c)}</th>" for c in columns)
        + f"</tr></thead><tbody>{''.join(lines)}</tbody></table></div>\n</section>"
    )


def _gallery(page: _Page, title: str, name: str, examples: Sequence[Example]) -> str:
    cards = []
    for i, example in enumerate(examples, start=1):
        grounding, image = example.grounding, example.sample.image
        stem = f"{name.replace(' ', '-')}-{i:02d}"
        small = [
            page.picture(f"{stem}-l{head.layer}-h{head.head}",
                         figures.overlay(image, map, grounding.layout), f"Map of {head}")
            for head, map in zip(grounding.heads, grounding.maps.float().cpu(), strict=True)
        ]  # fmt: skip
        summed = figures.overlay(image, grounding.map.float().cpu(), grounding.layout)
        small.append(page.picture(f"{stem}-sum", summed, "The smoothed maps, summed"))
        box = page.picture(f"{stem}-box", _boxed(example), _result(example))
        verdict = "hit" if example.iou >= 0.5 else "miss"
        cards.append(
            _figure(
                f'{box}<div class="trio" style="grid-template-columns:repeat({len(small)},1fr)">'
                f"{''.join(small)}</div>",
                f'<span class="badge {verdict}">{verdict}, IoU {example.iou:.2f}</span>'
                f"<b>{escape(example.sample.expression)}</b>",
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


def _small_print(ranking: HeadRanking, details: Iterable[tuple[str, str]]) -> str:
    recipe = ", ".join(f"{k} {v}" for k, v in ranking.recipe.to_dict().items())
    versions = ", ".join(f"{k} {v}" for k, v in ranking.versions.items())
    facts = [
        ("model", f"{ranking.checkpoint} {ranking.architecture}"),
        ("heads from", f"{ranking.dataset} {ranking.split}, {ranking.num_samples:,} expressions"),
        ("recipe", recipe),
        ("versions", versions),
        *details,
    ]
    lines = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts if v)
    return (
        "<footer>\n<p>The method is that of Kang et al., <i>Your Large Vision-Language Model Only "
        "Needs A Few Attention Heads For Visual Grounding</i>, CVPR 2025.</p>\n"
        f'<details open><summary>Every choice behind this page</summary><dl class="facts">{lines}'
        "</dl></details>\n</footer>"
    )


def _step(number: int, title: str, body: str) -> str:
    return (
        f'<section class="step">\n<div class="number" aria-hidden="true">{number}</div>\n<div>\n'
        f"<h2>{escape(title)}</h2>\n{body}\n</div>\n</section>"
    )


def _figure(picture: str, caption: str, kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    return f"<figure{mark}>{picture}<figcaption>{caption}</figcaption></figure>"


def _foreground(map: Any, valid: Any, recipe: Recipe) -> Any:
    """The combined map's cells above its mean; padding is left out where the recipe says so."""
    if recipe.padding == "include":
        return ops.binarize(map)
    return (map > map[valid].mean()) & valid


def _boxed(example: Example, *, mask: bool = False) -> Image:
    grounding = example.grounding
    box = [float(v) for v in grounding.box] if grounding.found else None
    tint = grounding.mask.cpu() if mask else None
    return figures.boxed(example.sample.image, box, example.sample.box, tint)


def _result(example: Example) -> str:
    found = "The box found" if example.grounding.found else "No box was found"
    return f"{found} for “{example.sample.expression}”, IoU with the truth {example.iou:.2f}"


def _regions(labels: Any) -> str:
    count = int(labels.max())
    return f"{count} region" if count == 1 else f"{count} regions"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share == share else "&ndash;"


def _quoted(expression: str) -> str:
    return f"“{escape(expression)}”"


def _count(number: int) -> str:
    words = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")
    return words[number] if number < len(words) else str(number)
