"""The method beside what it must beat, scored on the same maps.

`compare` reads every head's map of each held-out sample once and scores from it the method, its
ablations, random heads, the oracle and the grid's ceiling. Heads are chosen on the training split
alone; nothing here is fitted to a score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastground import ops, sinks
from fastground.attention import attention_maps, right_answers
from fastground.datasets.images import by_image
from fastground.grounding import boxes_in_pixels, boxes_on_grid, peaks, truth_boxes
from fastground.metrics import BoxScores, BoxTally, bootstrap_interval, mean, spearman
from fastground.ranking import OFTEN, greedy, kept_heads, rank_table
from fastground.stats import head_statistics, head_table
from fastground.table import HeadTable
from fastground.types import AttentionMaps, HeadId, HeadRanking, Recipe, Sample

if TYPE_CHECKING:
    from fastground.models import LVLM

MOST_NAMED = 8
"""A row of more heads than these does not list them."""


@dataclass(frozen=True)
class Row:
    """One choice of heads, scored."""

    name: str
    scores: BoxScores
    """Means over the draws, for random heads."""
    heads: tuple[HeadId, ...] = ()
    """The heads, where they are the same for all samples."""
    accuracy_std: float = 0.0
    """Standard deviation over the draws, for random heads."""


@dataclass(frozen=True)
class Comparison:
    """The method beside its ablations, chance, the oracle and the ceiling, on the same maps."""

    rows: tuple[Row, ...]
    """The method first."""
    num_samples: int
    answer_accuracy: float
    """Share of questions that greedy decoding answers right; nan without answers."""
    rho: float
    """Spearman's correlation of selection frequency and mean mask IoU on the training split, over
    the heads elected in at least 1 % of the samples; nan without masks."""
    rho_heads: int
    """How many heads those are."""
    agreement: tuple[int, int]
    """Trials whose first k heads are the ranking's, as a set; and trials."""
    shared_with_oracle: int
    """How many of the method's k heads are among the oracle's."""
    recipe: Recipe

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
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """The method and what it must beat, from one reading of every head's map.

    The rows, all under the ranking's recipe: its k heads by both criteria; k by one criterion
    alone; k chosen in every sample anew; one head; five heads; all heads; k random heads; the k of
    highest mean mask IoU on the training split; the true mask instead of heads. Random heads come
    from the layers that may be chosen, the oracle's from all; neither oracle nor ceiling is there
    without masks.

    Args:
        lvlm: the model.
        table: its head statistics on the training split.
        ranking: made from that table.
        samples: held-out, with true boxes; those of an image one after another.
        draws: of random heads.
        seed: of the draws and of the intervals.
        progress: called with the number of samples done.

    Raises:
        ValueError: no samples, one without a box, a table that is not the ranking's, fewer heads
            than k in the layers that may be chosen, or no draws.
    """
    recipe = ranking.recipe
    table.check(recipe)
    shape = table.shape
    sets = _fixed_sets(table, ranking, draws, seed)
    oracle = sets.get(_named(recipe.k, "oracle "))
    kept = None
    if recipe.scope == "mean":
        kept = kept_heads(table.mean_sums, recipe, tau=ranking.tau)
    own = f"{_named(recipe.k)}, own for each sample"
    ceiling = "ceiling: the true mask"
    tallies = {name: [BoxTally() for _ in members] for name, members in sets.items()}
    tallies |= {own: [BoxTally()], ceiling: [BoxTally()]}
    right: list[bool] = []
    done = 0
    for group in by_image(samples):
        asked = sinks.asked([s.expression for s in group], recipe)
        attention, ground = sinks.cleared(
            attention_maps(lvlm, group[0].image, asked, recipe=recipe), recipe
        )
        stats = head_statistics(attention, recipe)
        sums, entropies = head_table(stats, attention.heads, shape)
        chosen = greedy(sums, entropies, recipe, kept=kept)
        all_sets = {**sets, own: chosen[:, None]}
        places = {name: attention.positions(s, shape[1]) for name, s in all_sets.items()}
        found = _score_sets(ground, places, recipe)
        for name, (boxes, points) in found.items():
            for i, tally in enumerate(tallies[name]):
                tally.add(group, boxes[:, i], points[:, i])
        if all(s.mask is not None for s in group):
            masks = torch.stack([torch.as_tensor(s.mask, dtype=torch.bool) for s in group])
            boxes = truth_boxes(masks, attention.layout, recipe).numpy()
            tallies[ceiling][0].add(group, boxes)
        if all(s.answer for s in group):
            right += right_answers(lvlm, group, recipe=recipe)
        done += len(group)
        if progress is not None:
            progress(done)
    if not done:
        raise ValueError("samples must hold at least one sample, but are empty")
    order = [*[*sets][:3], own, *[*sets][3:], ceiling]
    best = set(ranking.top())
    frequent = [h for h in ranking.heads if h.frequency >= OFTEN]
    rho = float("nan")
    ious = table.mean_ious
    if ious is not None:
        rho = spearman([h.frequency for h in frequent], [ious[h.head] for h in frequent])
    return Comparison(
        rows=tuple(_row(n, tallies[n], sets.get(n), shape, seed) for n in order if tallies[n][0]),
        num_samples=done,
        answer_accuracy=mean(right),
        rho=rho,
        rho_heads=len(frequent),
        agreement=(sum(set(t) == best for t in ranking.trials), len(ranking.trials)),
        shared_with_oracle=0 if oracle is None else len(best & set(_head_ids(oracle[0], shape))),
        recipe=recipe,
    )


def _fixed_sets(
    table: HeadTable, ranking: HeadRanking, draws: int, seed: int
) -> dict[str, np.ndarray]:
    """By row name (sets, k): the flat numbers of heads that are the same for all samples."""
    recipe, (layers, heads) = ranking.recipe, table.shape
    k = recipe.k
    seeing = (table.mean_sums != 0).reshape(-1)  # of the others some layers have none

    def flat(of: HeadRanking, count: int) -> np.ndarray:
        return np.array([[h.layer * heads + h.head for h in of.top(count)]])

    def alone(criterion: str) -> HeadRanking:
        changed = recipe.replace(criteria=criterion)
        return rank_table(table, changed, trials=1)

    sets = {
        f"{_named(k)}, both criteria": flat(ranking, k),
        f"{_named(k)}, attention sum only": flat(alone("attention_sum"), k),
        f"{_named(k)}, entropy only": flat(alone("entropy"), k),
        "1 head, both criteria": flat(ranking, 1),
        "5 heads, both criteria": flat(ranking, 5),
        "all heads": np.flatnonzero(seeing)[None],
    }
    random = np.random.default_rng(seed)
    pool = np.flatnonzero(seeing & (np.arange(layers * heads) >= recipe.skip_layers * heads))
    if k > len(pool) or draws < 1:
        raise ValueError(
            f"recipe.k must be at most the {len(pool)} heads that may be chosen and draws at least "
            f"1, but got {k} and {draws}"
        )
    sets[_named(k, "random ")] = np.stack(
        [random.choice(pool, k, replace=False) for _ in range(draws)]
    )
    if table.mean_ious is not None:
        best = np.argsort(-table.mean_ious.reshape(-1), kind="stable")
        sets[_named(k, "oracle ")] = best[None, :k]
    return sets


def _named(k: int, kind: str = "") -> str:
    return f"1 {kind}head" if k == 1 else f"{k} {kind}heads"


def _score_sets(
    attention: AttentionMaps, sets: dict[str, np.ndarray], recipe: Recipe
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By row name boxes (n, sets, 4) and peaks (n, sets, 2) in pixels; one call for each k."""
    n = len(attention.maps)
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for k in {members.shape[-1] for members in sets.values()}:
        names = [name for name, members in sets.items() if members.shape[-1] == k]
        index = np.concatenate(
            [np.broadcast_to(sets[name], (n, *sets[name].shape[-2:])) for name in names], axis=1
        )
        chosen = torch.from_numpy(index).to(attention.maps.device)
        maps = torch.take_along_dim(
            attention.maps[:, None], chosen[..., None, None], dim=2
        )  # (n, sets, k, grid_h, grid_w)
        boxes = boxes_in_pixels(boxes_on_grid(maps, attention.layout, recipe), attention.layout)
        points = peaks(ops.combine(maps, recipe=recipe), attention.layout, recipe)
        parts = np.cumsum([sets[name].shape[-2] for name in names])[:-1]
        each = (np.split(x.cpu().numpy(), parts, axis=1) for x in (boxes, points))
        found |= dict(zip(names, zip(*each, strict=True), strict=True))
    return found


def _row(
    name: str,
    tallies: list[BoxTally],
    members: np.ndarray | None,
    shape: tuple[int, ...],
    seed: int,
) -> Row:
    scores = [tally.scores(seed) for tally in tallies]
    if len(scores) == 1:
        if members is None or members.size > MOST_NAMED:
            return Row(name, scores[0])
        return Row(name, scores[0], _head_ids(members[0], shape))
    hits = np.mean([np.array(tally.ious) >= 0.5 for tally in tallies], axis=0)
    each = [s.accuracy for s in scores]
    means = BoxScores(
        accuracy=mean(each),
        interval=bootstrap_interval(hits, tallies[0].images, seed=seed),
        mean_iou=mean([s.mean_iou for s in scores]),
        pointing=mean([s.pointing for s in scores]),
        by_kind={k: mean([s.by_kind[k] for s in scores]) for k in scores[0].by_kind},
    )
    return Row(name, means, accuracy_std=float(np.std(each, ddof=1)))


def _head_ids(flat: np.ndarray, shape: tuple[int, ...]) -> tuple[HeadId, ...]:
    return tuple(HeadId(int(i) // shape[1], int(i) % shape[1]) for i in flat)
