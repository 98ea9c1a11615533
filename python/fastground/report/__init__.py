"""The report: one page that explains the method by what it did, with its pictures beside it.

    page       HTML that needs nothing beside it, pictures as files
    examples   expressions and what was found for each; scores of many
    walk       one example from the asking token to the box
    heads      the elbow and the election
    choices    what the choice of heads hangs on

The page needs no script and no other host. It tells the five steps, each on real numbers: the last
token asks; two numbers a head; the elbow and the election; a few maps; the box. Then what the
choice of heads hangs on, the scores, and examples. Parts that were not given are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastground.report import choices, heads, walk
from fastground.report.examples import Example, gallery, scores
from fastground.report.page import Page
from fastground.report.walk import Walk

if TYPE_CHECKING:
    from fastground.ablations import Ablations
    from fastground.comparison import Comparison
    from fastground.types import HeadRanking


def write(
    folder: str | Path,
    ranking: HeadRanking,
    *,
    ablations: Ablations | None = None,
    ious: Any | None = None,
    comparison: Comparison | None = None,
    facts: Sequence[tuple[str, str]] = (),
    example: Walk | None = None,
    galleries: Mapping[str, Iterable[Example]] | None = None,
    details: Sequence[tuple[str, str]] = (),
    format: str = "png",
) -> Path:
    """Write `index.html`, which holds its pictures, and the pictures as files into a folder.

    Args:
        folder: made where it does not exist; files of the same names are replaced.
        ranking: the heads.
        ablations: what they hang on, made from the ranking's table.
        ious: (L, H) each head's mean IoU with the true masks, the table's `mean_ious`.
        comparison: the method beside what it must beat.
        facts: name and value of the numbers that open the page.
        example: one expression from the asking token to the box.
        galleries: examples by the title of their section.
        details: name and value of what belongs in small print, such as run times.
        format: of the charts' files: png, svg or pdf.

    Returns:
        The path of `index.html`.

    Raises:
        ValueError: another format.
    """
    page = Page(Path(folder), format)
    sections = [
        _opening(ranking, facts),
        walk.asking(page, example),
        walk.two_numbers(page, example, ranking),
        heads.election(page, ranking, ablations, 3 if example else 0),
        walk.maps(page, example),
        walk.box(page, example, ranking.recipe),
        choices.agreement(page, ranking, ablations, ious),
        choices.robustness(page, ranking, ablations),
        scores(comparison),
        *(gallery(page, title, examples) for title, examples in (galleries or {}).items()),
        _small_print(ranking, details),
    ]
    return page.write(f"fastground: {ranking.checkpoint}", sections)


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
