"""Charts of a ranking: its curve and elbow, frequencies, heads, and what they hang on.

Each is a matplotlib figure drawn without a display, in the colours of a theme, to be written by
`figures.save` as PNG, SVG or PDF.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastground.elbow import elbow
from fastground.figures import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fastground.ablations import Choice
    from fastground.types import HeadRanking

MOST_BARS = 30


class Theme(NamedTuple):
    """Colours of a chart."""

    ink: str
    faint: str
    none: str
    """Of frequency 0."""
    full: str
    """Of frequency 1, and of what was chosen."""


LIGHT = Theme("#26282c", "#c9ccd3", "#f1efe9", "#d85f00")
DARK = Theme("#e4e6ea", "#4a4e57", "#2a2e36", "#ff9a4d")


def attention_sum_curve(ranking: HeadRanking, theme: Theme = LIGHT) -> Figure:
    """The heads' mean attention sums in ascending order, cut at the elbow; chosen heads marked.

    Beside the ranking's own threshold, dashed, stands what the other estimators say, dotted.
    """
    drawn, (axis,) = canvas(5.2, 3.4)
    curve = ranking.curve
    places = range(1, len(curve) + 1)
    axis.fill_between(places, curve, color=theme.faint, alpha=0.45, linewidth=0)
    axis.plot(places, curve, color=theme.ink, linewidth=2)
    kept = len(curve) - bisect_left(curve, ranking.tau)
    own = ranking.recipe.elbow
    name = f"by {own}" if isinstance(own, str) else "as given"
    axis.axhline(
        ranking.tau, color=theme.ink, linewidth=1, linestyle=(0, (4, 3)),
        label=f"τ = {ranking.tau:.2f} {name}: {kept} of {len(curve)} heads reach it",
    )  # fmt: skip
    for method, dots in (("chord", (1, 3)), ("curvature", (1, 1.5))):
        if method != own:
            tau = float(elbow(np.array(curve), method))
            axis.axhline(
                tau, color=theme.ink, linewidth=1, linestyle=(0, dots),
                label=f"{tau:.2f} by {method}",
            )  # fmt: skip
    axis.legend(frameon=False, labelcolor=theme.ink, fontsize=9, loc="center left")
    chosen = ranking.heads[: ranking.recipe.k]
    sums = [ranked.attention_sum for ranked in chosen]
    at = [bisect_left(curve, v - 1e-6) + 1 for v in sums]
    axis.plot(at, sums, "o", color=theme.full, markersize=8, clip_on=False, zorder=3)
    marks: list[list[int]] = []  # of heads that lie so near that their names would overlap
    for i in sorted(range(len(sums)), key=lambda i: -sums[i]):
        if marks and sums[marks[-1][-1]] - sums[i] < 0.06 * max(curve):
            marks[-1].append(i)
        else:
            marks.append([i])
    for near in marks:
        axis.annotate(
            ",  ".join(str(chosen[i].head) for i in near),
            (min(at[i] for i in near), max(sums[i] for i in near)), (-10, 5 * (near != marks[0])),
            textcoords="offset points", ha="right", va="center", color=theme.full,
            fontweight="bold",
        )  # fmt: skip
    axis.set_xlabel("heads, by mean attention sum")
    axis.set_ylabel("mean attention on the image")
    axis.set_xlim(1, len(curve) + 0.5)
    axis.set_ylim(0, 1.05 * max((1e-6, *curve)))
    _dress(axis, theme)
    return drawn


def head_matrix(ranking: HeadRanking, theme: Theme = LIGHT) -> Figure:
    """Layers by heads: how often each head was elected; the chosen ones framed."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    layers = int(ranking.architecture["num_layers"])
    heads = int(ranking.architecture["num_heads"])
    frequency = np.zeros((layers, heads))
    for ranked in ranking.heads:
        frequency[ranked.head] = ranked.frequency
    drawn, (axis,) = canvas(5.2, max(2.8, min(5.2, 5.2 * layers / heads)))
    colours = LinearSegmentedColormap.from_list("frequency", [theme.none, theme.full])
    shown = axis.imshow(frequency, cmap=colours, vmin=0, vmax=1, aspect="auto")
    axis.set_xticks(np.arange(heads + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(layers + 1) - 0.5, minor=True)
    axis.grid(which="minor", color=theme.faint, linewidth=0.5)
    axis.tick_params(which="minor", length=0)
    for skipped in range(min(ranking.recipe.skip_layers, layers)):
        axis.add_patch(
            Rectangle(
                (-0.5, skipped - 0.5), heads, 1, fill=False, hatch="////", linewidth=0,
                edgecolor=theme.faint,
            )
        )  # fmt: skip
    for ranked in ranking.heads[: ranking.recipe.k]:
        layer, head = ranked.head
        axis.add_patch(
            Rectangle((head - 0.5, layer - 0.5), 1, 1, fill=False, edgecolor=theme.ink, linewidth=2)
        )
    axis.set_xlabel("head")
    axis.set_ylabel("layer")
    axis.set_xticks(range(0, heads, max(1, heads // 8)))
    axis.set_yticks(range(0, layers, max(1, layers // 8)))
    bar = drawn.colorbar(shown, ax=axis, fraction=0.04, pad=0.02)
    bar.set_label("selection frequency", color=theme.ink)
    bar.ax.tick_params(colors=theme.ink, length=0)
    bar.outline.set_visible(False)
    _dress(axis, theme)
    return drawn


def frequencies(ranking: HeadRanking, theme: Theme = LIGHT) -> Figure:
    """The selection frequencies of the first heads, with their deviation over the trials."""
    shown = ranking.often()[:MOST_BARS] or ranking.heads[:1]
    drawn, (axis,) = canvas(5.2, 3.4)
    axis.bar(
        range(len(shown)), [h.frequency for h in shown], yerr=[h.frequency_std for h in shown],
        color=[theme.full if i < ranking.recipe.k else theme.faint for i in range(len(shown))],
        ecolor=theme.ink, error_kw={"linewidth": 1}, capsize=2,
    )  # fmt: skip
    axis.set_xticks(range(len(shown)), [str(h.head) for h in shown], rotation=90, fontsize=8)
    axis.set_xlim(-0.6, len(shown) - 0.4)
    axis.set_ylim(0, 1.05)
    axis.set_ylabel("selection frequency")
    _dress(axis, theme)
    return drawn


def iou_by_rank(ranking: HeadRanking, ious: Any, rho: float, theme: Theme = LIGHT) -> Figure:
    """How well each often elected head's map covers the true masks, by its rank.

    Args:
        ranking: the heads.
        ious: (L, H) mean IoU of each head's binarized map with the true masks.
        rho: Spearman's correlation of frequency and IoU, written on the chart.
        theme: its colours.
    """
    shown = [h.head for h in ranking.often()]
    values = [float(ious[h]) for h in shown]
    drawn, (axis,) = canvas(5.2, 3.4)
    k = ranking.recipe.k
    axis.plot(range(k + 1, len(shown) + 1), values[k:], "o", color=theme.faint, markersize=6)
    axis.plot(range(1, len(shown[:k]) + 1), values[:k], "o", color=theme.full, markersize=8)
    for place, (head, value) in enumerate(zip(shown[:k], values, strict=False), start=1):
        axis.annotate(
            str(head), (place, value), (7, 0), textcoords="offset points", va="center",
            color=theme.full, fontweight="bold", fontsize=8,
        )  # fmt: skip
    title = rf"Spearman's $\rho$ = {rho:.2f} over {len(shown)} heads"
    axis.set_title(title, color=theme.ink, fontsize=10)
    axis.set_xlabel("rank by selection frequency")
    axis.set_ylabel("mean IoU of map and mask")
    axis.set_ylim(0, 1.1 * max((1e-6, *values)))
    axis.locator_params(axis="x", integer=True)
    _dress(axis, theme)
    return drawn


def chosen_heads(
    choices: Sequence[Choice], ranking: HeadRanking, what: str, theme: Theme = LIGHT
) -> Figure:
    """Which heads each of many settings chooses, and above, where masks are, their mean IoU.

    Args:
        choices: of one kind, such as every N; the last word of a name is the setting.
        ranking: whose heads are in colour, and in whose order all are.
        what: is set.
        theme: the colours.
    """
    met = {head for choice in choices for head in choice.heads}
    rows = [ranked.head for ranked in ranking.heads if ranked.head in met]
    scored = any(choice.iou == choice.iou for choice in choices)
    height = 1.2 + 0.24 * len(rows)
    ratios: dict[str, Any] = {"height_ratios": (1.6, height)} if scored else {}
    drawn, axes = canvas(5.2, height + 1.6 * scored, columns=1, rows=1 + scored, **ratios)
    for axis in axes:
        axis.set_xlim(-0.6, len(choices) - 0.4)
        axis.set_xticks(range(len(choices)), [""] * len(choices))
        _dress(axis, theme)
    if scored:
        axes[0].plot([c.iou for c in choices], "o-", color=theme.full, label="these heads")
        axes[0].plot(
            [c.own_iou for c in choices], "o:", color=theme.ink, label="each expression's own"
        )
        axes[0].set_ylabel("mean IoU")
        tops = [v for c in choices for v in (c.iou, c.own_iou) if v == v]
        axes[0].set_ylim(0, 1.15 * max(1e-6, *tops))
        axes[0].legend(frameon=False, labelcolor=theme.ink, fontsize=8, loc="lower right")
    axis, best = axes[-1], set(ranking.top())
    for y, head in enumerate(rows):
        axis.axhline(y, color=theme.faint, linewidth=0.5, zorder=0)
        xs = [x for x, choice in enumerate(choices) if head in choice.heads]
        axis.plot(xs, [y] * len(xs), "o", color=theme.full if head in best else theme.ink)
    axis.set_xticks(
        range(len(choices)), [choice.name.split()[-1] for choice in choices],
        rotation=0 if len(choices[0].name) < 5 else 45, fontsize=8,
    )  # fmt: skip
    axis.set_yticks(range(len(rows)), [str(head) for head in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlabel(what)
    return drawn


def _dress(axis: Axes, theme: Theme) -> None:
    axis.tick_params(colors=theme.ink, length=0)
    for label in (axis.xaxis.label, axis.yaxis.label):
        label.set_color(theme.ink)
    for side in axis.spines.values():
        side.set_visible(False)
