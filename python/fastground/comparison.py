"""Settings beside each other, scored on the same maps: the method and what it must beat.

`compare` reads every head's map of each held-out sample once and scores from it the method, its
ablations, random heads, the oracle and the grid's ceiling; `paper_table` the paper's tables in the
same way. What a row does is a `Setting`.

    maps of all heads --take each setting's--> smooth, sum, cut, box, pseudo-mask --> a row a sample

A sample's row holds every setting's numbers side by side; it is kept in a folder, and a comparison
that is stopped goes on, as an evaluation does (`gathering.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastground import settings, sinks
from fastground.attention import attention_maps, right_answers
from fastground.counts import check_whole
from fastground.election import greedy
from fastground.gathering import Way, gathered, of_model
from fastground.grounding import cell_coverage, ground
from fastground.metrics import mean
from fastground.ranking import correlation
from fastground.result import Grounding
from fastground.scoring import (
    Columns,
    Scores,
    counted,
    measured,
    scored,
    stacked,
    united,
    unstacked,
)
from fastground.segmentation import segmented
from fastground.settings import Setting
from fastground.stats import head_statistics, head_table
from fastground.table import HeadTable
from fastground.types import AttentionMaps, HeadId, HeadRanking, Recipe, Sample

if TYPE_CHECKING:
    from fastground.models import LVLM

MOST_NAMED = 8
"""A row of more heads than these does not list them."""
CEILING = "ceiling: the true mask"
TABLES = ("heads", "4", "5", "8", "switches", "objects")
COMMAND = "evaluate --table "
"""And the table's name: whose folder a comparison's is."""


@dataclass(frozen=True)
class Row:
    """One setting, scored."""

    name: str
    scores: Scores
    """Over all draws together, for random heads."""
    heads: tuple[HeadId, ...] = ()
    """The heads, where they are the same for all samples."""
    accuracy_std: float = 0.0
    """Standard deviation over the draws, for random heads."""


@dataclass(frozen=True)
class Comparison:
    """Settings beside each other, on the same maps."""

    rows: tuple[Row, ...]
    """In `compare` the method first."""
    num_samples: int
    answer_accuracy: float
    """Share of questions that greedy decoding answers right; nan without answers."""
    recipe: Recipe
    rho: float = float("nan")
    """Spearman's correlation of selection frequency and mean mask IoU on the training split, over
    the heads elected in at least 1 % of the samples; nan without masks."""
    rho_heads: int = 0
    """How many heads those are."""
    agreement: tuple[int, int] = (0, 0)
    """Trials whose first k heads are the ranking's, as a set; and trials."""
    shared_with_oracle: int = 0
    """How many of the method's k heads are among the oracle's."""
    skipped: int = 0
    """How many samples beside these had no readable image."""

    def row(self, name: str) -> Row:
        """The row of that name.

        Raises:
            KeyError: there is none.
        """
        return {row.name: row for row in self.rows}[name]

    def to_dict(self) -> dict[str, Any]:
        """Every field by name, as JSON keeps it."""
        return asdict(self)


def compare(
    lvlm: LVLM,
    table: HeadTable,
    ranking: HeadRanking,
    samples: Iterable[Sample],
    *,
    draws: int = 10,
    seed: int = 0,
    **how: Any,
) -> Comparison:
    """The method and what it must beat, from one reading of every head's map.

    The rows, all under the ranking's recipe: its k heads; k by the other choices of criteria; k
    chosen in every sample anew; one head; five heads; all heads; k random heads; the k of highest
    mean mask IoU on the training split; the true mask instead of heads. Random heads come from the
    layers that may be chosen, the oracle's from all; neither oracle nor ceiling is there without
    masks.

    Args:
        lvlm: the model.
        table: its head statistics on the training split.
        ranking: made from that table.
        samples: held-out, with true boxes; those of an image one after another.
        draws: of random heads.
        seed: of the draws and of the intervals.
        how: the arguments of `evaluation.evaluate` that say how rows are made and kept: progress,
            out, resume, shard_samples, max_bad, workers, dataset, split, options.

    Raises:
        ValueError: no samples, one without a box, a table that is not the ranking's, fewer heads
            than k in the layers that may be chosen, no draws, too many unreadable images, or a
            folder with a run of something else.
        OSError, RuntimeError: as `evaluation.evaluate`.
    """
    check_whole("seed", seed, 0)
    table.check(ranking.recipe)
    chosen = settings.of_heads(table, ranking, draws=draws, seed=seed)
    way = Way(**how)
    found = _scored("heads", lvlm, chosen, samples, ranking, seed, way)
    best = set(ranking.top())
    rho, rho_heads = correlation(ranking, table.mean_ious)
    oracles = [row.heads for row in found.rows if row.name == settings.oracle(ranking.recipe.k)]
    found = replace(
        found,
        rho=rho,
        rho_heads=rho_heads,
        agreement=ranking.agreement(),
        shared_with_oracle=len(best & set(*oracles)),
    )
    way.save(found.to_dict())
    return found


def paper_table(
    number: str,
    lvlm: LVLM,
    ranking: HeadRanking,
    samples: Iterable[Sample],
    *,
    table: HeadTable | None = None,
    seed: int = 0,
    **how: Any,
) -> Comparison:
    """One of the paper's tables, or one of our own, from one reading of the maps.

    Args:
        number: "4" (k from 1 to 5), "5" (criteria, fixed and greedy) or "8" (sigma and kernel); or
            "switches" (each choice of the box, and those that lead to a release), or "objects"
            (which regions are objects: `Recipe.objects`), for samples of several each.
        lvlm: the model.
        ranking: its heads.
        samples: held-out, with true boxes; those of an image one after another.
        table: the head statistics that the ranking was made from; needed for 5.
        seed: of the intervals.
        how: as in `compare`.

    Raises:
        ValueError: no such table, no samples, one without a box, no table where it is needed, too
            many unreadable images, or a folder with a run of something else.
        OSError, RuntimeError: as `evaluation.evaluate`.
    """
    check_whole("seed", seed, 0)
    if number not in TABLES[1:]:
        raise ValueError(f"number must be one of {', '.join(TABLES[1:])}, but got {number!r}")
    if number == "5":
        if table is None:
            raise ValueError(
                "table must be given for table 5, whose rankings by one criterion are made from "
                "it; runs.load the folder that discover wrote"
            )
        table.check(ranking.recipe)
        chosen = settings.of_criteria(table, ranking)
    else:
        rows = {
            "4": settings.of_counts, "8": settings.of_smoothing,
            "switches": settings.of_switches, "objects": settings.of_shares,
        }  # fmt: skip
        chosen = rows[number](ranking)
    way = Way(**how)
    found = _scored(number, lvlm, chosen, samples, ranking, seed, way)
    way.save(found.to_dict())
    return found


def _scored(
    number: str,
    lvlm: LVLM,
    chosen: Sequence[Setting],
    samples: Iterable[Sample],
    ranking: HeadRanking,
    seed: int,
    way: Way,
) -> Comparison:
    """Every setting on every sample; the recipe's statistics, asking token and sinks hold for all.

    The whole comparison has the grid's ceiling, too, and asks for the answers.
    """
    recipe, whole = ranking.recipe, number == "heads"
    shape = lvlm.architecture["num_layers"], lvlm.architecture["num_heads"]
    draws = [1 if s.heads is None else len(s.heads) for s in chosen]
    heads = None
    if all(s.heads is not None for s in chosen):
        numbers = np.unique(np.concatenate([np.ravel(s.heads) for s in chosen]))  # type: ignore
        named = [HeadId(*map(int, divmod(i, shape[1]))) for i in numbers]
        heads = sinks.read(named, shape[1], recipe)

    def measure(group: list[Sample], image: Any) -> Columns:
        expressions = [s.expression for s in group]
        asked = sinks.asked(expressions, recipe)
        attention = attention_maps(lvlm, image, asked, recipe=recipe, heads=heads)
        captured, cleared = sinks.cleared(attention, recipe)
        pieces = []
        for setting in chosen:
            places = captured.positions(_numbers(setting, captured, shape), shape[1])
            each = _ground_draws(cleared, places, expressions, setting.recipe)
            for found in each:
                told = counted(group, found, setting.recipe)
                if number == "objects":
                    found = united(group, found, setting.recipe)
                pieces.append(measured(group, found, setting.recipe) | told)
        more = {}
        if whole:
            masked = all(s.mask is not None for s in group)
            more["ceilings"] = np.full(len(group), masked)
            more["rights"] = np.full(len(group), -1)
            if masked:
                truth = ground(_of_masks(group, captured), expressions, recipe=recipe)
                truth = segmented(None, truth, recipe)
                pieces.append(measured(group, truth, recipe) | counted(group, truth, recipe))
            else:
                pieces.append(pieces[0])  # fills the place; `ceilings` says that it is none
            if all(s.answer for s in group):
                more["rights"] = np.array(right_answers(lvlm, group, recipe=recipe), dtype=int)
        return stacked(pieces) | more

    def about() -> dict[str, Any]:
        top = [list(head) for head in ranking.top()]
        return way.about(lvlm, recipe, heads=top, settings=_digest(chosen))

    columns, skipped = gathered(
        samples, of_model(lvlm, recipe, way.workers), measure, way, about, COMMAND + number
    )
    right, ceilings = (columns.pop(name, np.array(())) for name in ("rights", "ceilings"))
    each = unstacked(columns, sum(draws) + whole)
    rows, first = [], 0
    for setting, count in zip(chosen, draws, strict=True):
        rows.append(_row(setting, each[first : first + count], shape, seed))
        first += count
    if ceilings.any():
        there = ceilings.astype(bool)
        rows.append(Row(CEILING, scored({n: v[there] for n, v in each[-1].items()}, seed)))
    return Comparison(
        tuple(rows), len(columns["image_ids"]), mean(right[right >= 0]), recipe, skipped=skipped
    )


def _digest(chosen: Sequence[Setting]) -> str:
    """A few letters that tell these settings from others."""
    digest = blake2b(digest_size=8)
    for setting in chosen:
        arrays = (a for a in (setting.heads, setting.kept) if a is not None)
        parts = [setting.name, repr(setting.recipe), *((a.shape, a.tolist()) for a in arrays)]
        digest.update(repr(parts).encode())
    return f"{len(chosen)} rows, {digest.hexdigest()}"


def _numbers(setting: Setting, attention: AttentionMaps, shape: tuple[int, int]) -> np.ndarray:
    """(n, draws, k) flat numbers of the heads that each expression's box is made of."""
    if setting.heads is not None:
        return np.broadcast_to(setting.heads, (len(attention.maps), *setting.heads.shape))
    stats = head_statistics(attention, setting.recipe)
    sums, entropies = head_table(stats, attention.heads, shape)
    return greedy(sums, entropies, setting.recipe, kept=setting.kept)[:, None]


def _ground_draws(
    attention: AttentionMaps, places: np.ndarray, expressions: list[str], recipe: Recipe
) -> list[list[Grounding]]:
    """By draw the groundings of all expressions, by the heads at these (n, draws, k) places."""
    n, draws, _ = places.shape
    again = np.repeat(np.arange(n), draws)
    repeated = replace(attention, maps=attention.maps[again], sums=attention.sums[again])
    chosen = torch.from_numpy(places.reshape(n * draws, -1))
    found = ground(repeated, [expressions[i] for i in again], recipe=recipe, chosen=chosen)
    found = segmented(None, found, recipe)
    return [found[draw::draws] for draw in range(draws)]


def _of_masks(group: list[Sample], attention: AttentionMaps) -> AttentionMaps:
    """The maps that perfect heads would give: the true masks, averaged by area onto the grid."""
    masks = torch.stack([torch.as_tensor(s.mask, dtype=torch.bool) for s in group])
    maps = cell_coverage(masks, attention.layout)[:, None]
    return AttentionMaps(maps, maps.sum(dim=(-2, -1)), (HeadId(0, 0),), attention.layout)


def _row(setting: Setting, each: list[Columns], shape: tuple[int, int], seed: int) -> Row:
    if len(each) == 1:
        heads: tuple[HeadId, ...] = ()
        if setting.heads is not None and setting.heads.size <= MOST_NAMED:
            heads = tuple(HeadId(*map(int, divmod(i, shape[1]))) for i in setting.heads[0])
        return Row(setting.name, scored(each[0], seed), heads)
    # All draws together: their mean, and an image is resampled with all of them.
    whole = {name: np.concatenate([columns[name] for columns in each]) for name in each[0]}
    accuracies = [scored(columns, seed).accuracy for columns in each]
    return Row(setting.name, scored(whole, seed), accuracy_std=float(np.std(accuracies, ddof=1)))
