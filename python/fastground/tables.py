"""Results as tables, and as lines and rows of text: what they say, for whoever shows them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fastground.types import PROFILES, Recipe

if TYPE_CHECKING:
    from rich.table import Table

    from fastground.types import HeadRanking


def of_ranking(ranking: HeadRanking, rows: int = 10) -> Table:
    """The first heads of a ranking."""
    where = f"{ranking.dataset} {ranking.split}".strip()
    table = _table(
        f"heads of {ranking.checkpoint} on {ranking.num_samples:,} expressions of {where}",
        ("head", "elected in", "± trials", "attention sum", "entropy"),
        f"attention-sum threshold {ranking.tau:.3f}; bold: the {ranking.recipe.k} chosen\n"
        f"{_recipe(ranking.recipe)}",
    )
    for place, ranked in enumerate(ranking.heads[: max(rows, ranking.recipe.k)]):
        table.add_row(
            str(ranked.head), f"{100 * ranked.frequency:.1f} %",
            f"{100 * ranked.frequency_std:.1f}", f"{ranked.attention_sum:.3f}",
            f"{ranked.entropy:.3f}", style="bold" if place < ranking.recipe.k else None,
        )  # fmt: skip
    return table


def of_choices(ablations: Any) -> Table:
    """What each other choice of an `Ablations` comes to, one line a choice."""
    table = _table(
        "the ranking under other choices",
        ("choice", "heads", "shared", "pass", "IoU", "own shared", "own IoU"),
        "shared: heads that the ranking chooses, too; pass: heads that pass the first criterion\n"
        "own: heads chosen anew for each expression, and the share of them that are the fixed ones",
    )
    for choice in (*ablations.by_criteria, *ablations.by_tau, *ablations.by_n):
        table.add_row(
            choice.name, ", ".join(map(str, choice.heads)), str(choice.shared), str(choice.kept),
            _fraction(choice.iou), _percent(choice.own_shared, " %"), _fraction(choice.own_iou),
        )  # fmt: skip
    return table


def of_sureness(ablations: Any) -> Table:
    """How sure each head of an `Ablations` is among the first k, the images drawn anew."""
    note = f"Spearman's rho of frequency and mask IoU {ablations.rho:.2f}"
    table = _table(
        "when the images are drawn anew",
        ("head", "among the first", "elected in (95 %)"),
        f"{note} ({ablations.rho_heads} heads)" if ablations.rho == ablations.rho else None,
    )
    for sure in ablations.sureness:
        low, high = (100 * v for v in sure.interval)
        table.add_row(str(sure.head), _percent(sure.in_top, " %"), f"{low:.1f} to {high:.1f} %")
    return table


def of_comparison(comparison: Any) -> Table:
    """The method, bold, beside what it must beat; or the rows of a paper's table."""
    names, *lines = _rows(comparison)
    skipped = f", {comparison.skipped:,} left out" if comparison.skipped else ""
    table = _table(
        f"{comparison.num_samples:,} held-out expressions{skipped}", tuple(names),
        "percent, but for the mean IoU; 95 % of the first row's Acc@0.5: "
        f"{_span(comparison.rows[0].scores.interval)}\n{_recipe(comparison.recipe)}",
    )  # fmt: skip
    for i, line in enumerate(lines):
        table.add_row(*line, style="bold" if i == 0 else None)
    return table


def comparison_markdown(comparison: Any) -> str:
    """The same as a table of Markdown."""
    names, *lines = _rows(comparison)
    lines[0][0] = f"**{lines[0][0]}**"
    rule = ["---", *["---:"] * (len(names) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (names, rule, *lines))


def comparison_facts(comparison: Any) -> list[tuple[str, str]]:
    """What a comparison of heads says besides its rows, name and value."""
    same, trials = comparison.agreement
    k = comparison.recipe.k
    return [
        ("answers right", _percent(comparison.answer_accuracy, " %")),
        (
            "rank and mask IoU, Spearman's rho",
            f"{comparison.rho:.2f} ({comparison.rho_heads} heads)",
        ),
        ("the same heads in", f"{same} of {trials} trials"),
        ("among the oracle's heads", f"{comparison.shared_with_oracle} of {k}"),
    ]


def of_scores(scores: Any, title: str, recipe: Recipe, references: str = "") -> Table:
    """`Scores`: all samples, and each part of them, with what else was asked below.

    Args:
        scores: of `fastground.evaluation`.
        title: what they are of.
        recipe: what they were made with.
        references: what others have published, a line below the table.
    """
    columns = ("", "n", "Acc@0.5", "95 %", "mean IoU", "pointing", "mask cIoU", "95 %", "gIoU")
    facts = [*_facts(scores), _recipe(recipe), *[references] * bool(references)]
    table = _table(title, columns, "\n".join(facts))
    parts = [("all", scores)]
    for of, members in scores.parts.items():
        shown = {"size": "{} (COCO)", "sentence": "{} sentences"}.get(of, "{}")
        parts += [(f"  {shown.format(name)}", part) for name, part in members.items()]
    for name, part in parts:
        table.add_row(
            name, f"{part.num_samples:,}", _percent(part.accuracy), _span(part.interval),
            f"{part.mean_iou:.3f}", _percent(part.pointing), _percent(part.ciou),
            _span(part.ciou_interval), _percent(part.giou),
        )  # fmt: skip
    return table


def of_operations(operations: dict[str, dict[str, str]]) -> Table:
    """What runs where, one line an operation; every reason once below."""
    whys = list(dict.fromkeys(where["why"] for where in operations.values() if where.get("why")))
    notes = "\n".join(f"({i}) {why}" for i, why in enumerate(whys, start=1))
    table = _table("what runs where", ("operation", "cpu", "cuda", ""), notes or None)
    for name, where in operations.items():
        why = where.get("why", "")
        table.add_row(name, where["cpu"], where["cuda"], f"({whys.index(why) + 1})" if why else "")
    return table


def of_speeds(rows: Iterable[Any], title: str) -> Table:
    """`fastground.bench.Speed`, one line an operation."""
    table = _table(
        title, ("operation", "runs as", "time a map", "+-", "of a copy", "off by"),
        "time a map: median; of attention_rows, of a head's row over 640 keys\n"
        "of a copy: the time in which torch copies the same bytes, over its own; least times\n"
        "off by: the largest difference from the definition in PyTorch, or how many cells differ",
    )  # fmt: skip
    for row in rows:
        time = f"{row.time_ns:,.0f} ns" if row.time_ns < 1e4 else f"{row.time_ns / 1e3:,.1f} µs"
        table.add_row(
            row.operation, row.implementation, time, _percent(row.spread, " %"),
            f"{100 * row.of_copy:.0f} %", f"{row.error:.1g}",
        )  # fmt: skip
    return table


def of_support(rows: Iterable[Any]) -> Table:
    """Which models work and how: `fastground.models.support.table`, rows that are alike in one."""
    table = _table(
        "supported models",
        ("model", "how", "packs", "in the paper", "remarks"),
        "how: as published (native), after fastground.models.convert (conversion), loaded by its "
        "authors' code (hooks), without an adapter of its own (generic), or not at all (refused)\n"
        "packs: an image's tokens are computed once for all of its expressions, in one sequence or "
        "(keys) before it; so, too, where some layer of the language model has a sliding window",
    )
    for column in table.columns:
        column.justify = "left"
        column.no_wrap = column.header in ("how", "packs")
    alike: dict[tuple[Any, ...], list[Any]] = {}
    for row in rows:
        once = "" if row.packs is None else "yes" if row.packs else "keys" if row.caches else "no"
        alike.setdefault((row.how, once, row.remarks), []).append(row)
    for (how, once, remarks), several in alike.items():
        names = ", ".join(row.name for row in several)
        papers = ", ".join(paper for row in several for paper in row.paper)
        table.add_row(names, how, once, papers, remarks)
    return table


def _rows(comparison: Any) -> list[list[str]]:
    """A `Comparison` as text, a line a row, the names of the columns first."""
    kinds = list(comparison.rows[0].scores.by_kind)
    lines = [["", "Acc@0.5", "mean IoU", "pointing", *kinds, "cIoU", "gIoU"]]
    several = any(row.scores.object_recall >= 0 for row in comparison.rows)
    lines[0] += ["recall", "precision"] * several
    for row in comparison.rows:
        scores = row.scores
        spread = f" ± {100 * row.accuracy_std:.1f}" if row.accuracy_std else ""
        by_kind = [_percent(scores.by_kind.get(k, float("nan"))) for k in kinds]
        accuracy, iou = f"{100 * scores.accuracy:.1f}{spread}", f"{scores.mean_iou:.3f}"
        masks = [_percent(scores.ciou), _percent(scores.giou)]
        masks += [_percent(scores.object_recall), _percent(scores.object_precision)] * several
        lines.append([row.name, accuracy, iou, _percent(scores.pointing), *by_kind, *masks])
    return lines


def _facts(scores: Any) -> list[str]:
    """What else `Scores` say besides the rows of their table."""
    facts = [
        *(f"Acc@0.5, box from the {k}: {_percent(v, ' %')}" for k, v in scores.by_box.items()),
        f"95 % of gIoU: {_span(scores.giou_interval)}",
        f"answers right: {_percent(scores.answer_accuracy, ' %')}",
    ]
    if (texts := scores.text_boxes) is not None:
        facts.append(
            f"boxes that the model writes itself: Acc@0.5 {_percent(texts.accuracy, ' %')} "
            f"({_span(texts.interval)}), a box in {_percent(texts.parsed, ' %')} of its texts"
        )
    kinds = scores.parts["kind"]
    if {"thing", "stuff"} & set(kinds):
        each = {"all": scores, **kinds}
        told = (f"{name} {_percent(part.average_recall)}" for name, part in each.items())
        facts.append(f"average recall: {', '.join(told)}")
    if scores.object_recall >= 0:
        facts.append(
            f"of several objects at IoU 0.5: recall {_percent(scores.object_recall, ' %')}, "
            f"precision {_percent(scores.object_precision, ' %')}"
        )
    if scores.without_object:
        facts.append(
            f"without an object, so that only masks count: {scores.without_object:,} (right where "
            "nothing is found)"
        )
    if scores.skipped:
        facts.append(f"left out, since their image could not be read: {scores.skipped:,}")
    return facts


def _recipe(recipe: Recipe) -> str:
    """The recipe in words: a profile's name, or the paper's with what differs from it."""
    for name, profile in PROFILES.items():
        if recipe == profile:
            return f"recipe: {name}"
    paper = Recipe().to_dict()
    changes = (f"{n}={v}" for n, v in recipe.to_dict().items() if v != paper[n])
    return f"recipe: paper, but {', '.join(changes)}"


def _table(title: str, columns: tuple[str, ...], caption: str | None = None) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, title_justify="left")
    table.caption_justify = "left"
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i > 0 else "left", no_wrap=True)
    return table


def _fraction(number: float) -> str:
    return f"{number:.3f}" if number == number else "-"


def _percent(share: float, unit: str = "") -> str:
    return f"{100 * share:.1f}{unit}" if share == share else "-"


def _span(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{100 * low:.1f} to {100 * high:.1f}" if low == low else "-"
