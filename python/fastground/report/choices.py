"""What the choice of heads hangs on: masks that agree, other criteria, other N and thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from fastground import charts
from fastground.report.page import Page, figure, fraction, percent, table

if TYPE_CHECKING:
    from fastground.ablations import Ablations, Choice
    from fastground.types import HeadRanking


def agreement(
    page: Page, ranking: HeadRanking, ablations: Ablations | None, ious: Any | None
) -> str:
    """A section on rank and IoU with the true masks; without masks, no section."""
    if ablations is None or ious is None:
        return ""
    chart = page.chart(
        "iou-by-rank", lambda theme: charts.iou_by_rank(ranking, ious, ablations.rho, theme),
        f"Mean IoU of the heads' maps with the true masks, by rank; rho {ablations.rho:.2f}",
    )  # fmt: skip
    return (
        "<section>\n<h2>Do the first heads localize?</h2>\n<p>No mask was read to rank the heads. "
        "Held against the true masks of the same expressions, a head&rsquo;s map, cut at its mean, "
        "covers the object the better the more often it was elected, if the election is right: "
        f"Spearman&rsquo;s &rho; is {fraction(ablations.rho)} over the {ablations.rho_heads} heads "
        "elected in at least 1 % of the expressions. (The paper: above 0.7 for all its models.)"
        f'</p>\n<div class="row wide">{figure(chart, "Rank and IoU, head by head.", "chart")}'
        "<div></div></div>\n</section>"
    )


def robustness(page: Page, ranking: HeadRanking, ablations: Ablations | None) -> str:
    """A section on other criteria, N and thresholds; without ablations, no section."""
    if ablations is None:
        return ""
    recipe, k = ranking.recipe, ranking.recipe.k

    def chart(name: str, choices: Sequence[Choice], what: str) -> str:
        same = sum(choice.shared == k for choice in choices)
        drawn = page.chart(
            name, lambda theme: charts.chosen_heads(choices, ranking, what, theme),
            f"Heads chosen by {what}; the same {k} in {same} of {len(choices)}",
        )  # fmt: skip
        return figure(drawn, f"The same {k} heads in {same} of {len(choices)}.", "chart")

    return (
        "<section>\n<h2>What the choice hangs on</h2>\n<p>From the table alone, without the model: "
        f"which {k} heads would have been chosen with another threshold τ (now {ranking.tau:.3g}), "
        f"with more or fewer elected by an expression (now {recipe.top_n}), and by one criterion "
        'alone. Heads of the ranking are in colour.</p>\n<div class="row wide">'
        + chart("by-tau", ablations.by_tau, "threshold τ")
        + chart("by-n", ablations.by_n, "heads elected by an expression, N")
        + "</div>\n"
        + _criteria(ablations.by_criteria, k)
        + "<p>A threshold can be met by a head&rsquo;s mean, which makes one set of heads for the "
        "model, or by each expression&rsquo;s own attention sum. The last columns leave the fixed "
        "heads for those that each expression would choose for itself by the same criteria: how "
        "many of them are the fixed ones"
        + (", and their IoU" if _scored(ablations) else "")
        + ".</p>\n</section>"
    )


def _criteria(choices: Sequence[Choice], k: int) -> str:
    scored = any(choice.iou == choice.iou for choice in choices)
    names = ["criteria", f"first {k} heads", "of the ranking", "heads that pass", "own: the same"]
    if scored:
        names += ["IoU", "own: IoU"]
    rows = []
    for choice in choices:
        cells = [
            escape(choice.name), ", ".join(map(str, choice.heads)), f"{choice.shared} of {k}",
            f"{choice.kept}", percent(choice.own_shared),
        ]  # fmt: skip
        if scored:
            cells += [fraction(choice.iou), fraction(choice.own_iou)]
        rows.append((False, cells))
    return table(names, rows)


def _scored(ablations: Ablations) -> bool:
    return any(choice.iou == choice.iou for choice in ablations.by_criteria)
