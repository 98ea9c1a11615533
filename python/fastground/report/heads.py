"""The election: the curve and its elbow, who was elected how often, and how sure that is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastground import charts
from fastground.report.page import Page, figure, percent, step, table

if TYPE_CHECKING:
    from fastground.ablations import Ablations
    from fastground.types import HeadRanking

LEAST_ROWS = 10


def election(page: Page, ranking: HeadRanking, ablations: Ablations | None, number: int = 3) -> str:
    """Step 3, or 0 without the others: from the attention sums' elbow to the heads."""
    top = ", ".join(map(str, ranking.top()))
    curve = page.chart(
        "curve", lambda theme: charts.attention_sum_curve(ranking, theme),
        f"Mean attention sums of {len(ranking.curve)} heads in ascending order, cut at "
        f"{ranking.tau:.2f}",
    )  # fmt: skip
    bars = page.chart(
        "frequencies", lambda theme: charts.frequencies(ranking, theme),
        f"Selection frequencies of the heads elected most often, first {top}",
    )  # fmt: skip
    matrix = page.chart(
        "heads", lambda theme: charts.head_matrix(ranking, theme),
        f"Selection frequency of every head, layer by layer; chosen: {top}",
    )  # fmt: skip
    same, trials = ranking.agreement()
    repeated = f" In {same} of {trials} separate trials they were the same." if trials > 1 else ""
    body = (
        f"<p>Over {ranking.num_samples:,} expressions, sort all heads by their mean attention "
        f"sum. The curve&rsquo;s elbow, τ = {ranking.tau:.2f}, parts the heads that look at the "
        "image from those that do not. Of those that do, every expression elects its "
        f"{ranking.recipe.top_n} of least entropy. Who is elected most often is a <b>localization "
        f'head</b>: <span class="found">{top}</span>.{repeated}</p>\n<div class="row wide">'
        + figure(curve, "The elbow: mean attention sum of every head.", "chart")
        + figure(
            bars,
            "The election, with the standard deviation over the trials."
            if trials > 1
            else "The election.",
            "chart",
        )
        + figure(
            matrix,
            f"Where they are; the first {ranking.recipe.skip_layers} layers cannot be elected.",
            "chart",
        )
        + "</div>\n"
        + _first_heads(ranking, ablations)
    )
    return step(number, "The elbow and the election", body)


def _first_heads(ranking: HeadRanking, ablations: Ablations | None) -> str:
    """The first heads' numbers; with ablations also how they fare when images are drawn anew."""
    k = ranking.recipe.k
    names = ["head", "elected in", "over trials", "attention sum", "entropy"]
    sure = {s.head: s for s in ablations.sureness} if ablations is not None else {}
    if sure:
        names += ["95 % interval", f"among the first {k}"]
    rows: list[tuple[bool, list[str]]] = []
    for place, ranked in enumerate(ranking.heads[: max(k, LEAST_ROWS)], start=1):
        cells = [
            f"{place}. {ranked.head}", percent(ranked.frequency),
            f"± {100 * ranked.frequency_std:.1f}", f"{ranked.attention_sum:.2f}",
            f"{ranked.entropy:.2f}",
        ]  # fmt: skip
        if ranked.head in sure:
            low, high = (100 * end for end in sure[ranked.head].interval)
            cells += [f"{low:.1f} to {high:.1f} %", percent(sure[ranked.head].in_top)]
        elif sure:
            cells += ["", percent(0.0)]
        rows.append((place <= k, cells))
    told = ""
    if sure:
        told = (
            "<p>When the images are drawn anew, a head is elected as often as its interval says, "
            f"and is among the first {k} in the share of draws given last.</p>"
        )
    return table(names, rows) + told
