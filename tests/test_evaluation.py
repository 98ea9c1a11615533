"""Scores and the comparison table: against answers known beforehand, and against the grounder."""

import dataclasses
import json

import numpy as np
import pytest
import small_world
import torch
from fastground import settings
from fastground.attention import right_answers
from fastground.comparison import compare, paper_table
from fastground.evaluation import evaluate
from fastground.grounder import Grounder
from fastground.metrics import box_iou, spearman
from fastground.ranking import rank_table
from fastground.types import HeadId, Recipe


class Told:
    """A grounder that knows the truth and tells it, but for the samples it is to get wrong."""

    def __init__(self, wrong=()):
        self.wrong = wrong
        self.grounder = Grounder(small_world.lvlm(), small_world.ranking())

    def __call__(self, image, expressions):
        found = self.grounder(image, expressions)
        of = {s.expression: s for s in small_world.samples() if s.image is image}
        return [self.tell(g, of[g.expression]) for g in found]

    def tell(self, grounding, sample):
        box = torch.tensor(sample.box)
        if sample.sample_id in self.wrong:
            return dataclasses.replace(grounding, box=box + 100, mask=~torch.tensor(sample.mask))
        return dataclasses.replace(grounding, box=box, mask=torch.tensor(sample.mask))


def test_the_truth_scores_one_and_what_is_wrong_counts():
    scores = evaluate(Told(), small_world.samples())
    assert (scores.num_samples, scores.accuracy, scores.mean_iou) == (11, 1, 1)
    assert (scores.ciou, scores.giou, scores.interval) == (1, 1, (1, 1))
    assert scores.by_kind == {"attribute": 1, "location": 1}
    assert np.isnan(scores.answer_accuracy)  # nobody to ask
    scores = evaluate(Told(wrong=(1, 4)), small_world.samples())
    assert scores.accuracy == scores.mean_iou == scores.giou == pytest.approx(9 / 11)
    assert scores.by_kind["location"] == pytest.approx(1 / 3)  # samples 1 and 4 of 1, 4, 9
    assert scores.by_kind["attribute"] == 1
    assert scores.ciou < scores.giou
    assert scores.interval[0] < scores.accuracy <= scores.interval[1]
    assert json.loads(json.dumps(scores.to_dict()))["num_samples"] == 11
    assert scores.parts["kind"]["attribute"].num_samples == 8


def test_the_map_and_the_mask_give_a_box_each():
    def corner(image, groundings, recipe):
        for _ in groundings:
            mask = np.zeros((image.height, image.width), dtype=bool)
            mask[:9, :9] = True
            yield mask

    samples = [dataclasses.replace(s, box=(0.0, 0.0, 9.0, 9.0)) for s in small_world.samples()]
    of_map = evaluate(Grounder(small_world.lvlm(), small_world.ranking()), samples).by_box["map"]
    for box_from in ("map", "mask"):
        recipe = small_world.RECIPE.replace(box_from=box_from)
        grounder = Grounder(
            small_world.lvlm(), small_world.ranking(), segmenter=corner, recipe=recipe
        )
        scores = evaluate(grounder, samples)
        assert scores.by_box == {"map": of_map, "mask": 1.0} and of_map < 1
        assert scores.accuracy == scores.by_box[box_from]


def test_without_masks_there_is_no_mask_score_and_without_boxes_none_at_all():
    blind = [dataclasses.replace(s, mask=None) for s in small_world.samples()]
    grounder = Grounder(small_world.lvlm(), small_world.ranking())
    scores = evaluate(grounder, blind)
    assert np.isnan([scores.ciou, scores.giou, scores.pointing]).all()
    assert scores.accuracy == evaluate(grounder, small_world.samples()).accuracy
    with pytest.raises(ValueError, match="must have true boxes"):
        evaluate(grounder, [dataclasses.replace(blind[0], box=None)])
    with pytest.raises(ValueError, match="at least one sample"):
        evaluate(grounder, [])


def test_right_answers_are_those_that_greedy_decoding_says():
    lvlm, samples = small_world.lvlm(), small_world.samples()[3:7]
    tokenizer = lvlm.processor.tokenizer
    said = []
    for sample in samples:
        encoded = lvlm.encode(sample.image, [sample.expression], small_world.RECIPE)
        ids = encoded.token_ids[0]
        for _ in range(2):
            with torch.no_grad():
                logits = lvlm.model(input_ids=ids[None], **encoded.image_inputs).logits
            ids = torch.cat([ids, logits[0, -1:].argmax(-1)])
        said.append(tuple(tokenizer.decode(ids[-2:], skip_special_tokens=True).split()))
    known = [dataclasses.replace(s, answer=a) for s, a in zip(samples, said, strict=True) if a]
    assert known and all(right_answers(lvlm, known, recipe=small_world.RECIPE))
    wrong = [dataclasses.replace(s, answer=("x", "x", "x")) for s in known]
    assert not any(right_answers(lvlm, wrong, recipe=small_world.RECIPE))


def compared(**changes):
    return compare(
        small_world.lvlm(), small_world.table(), small_world.ranking(), small_world.samples(),
        **{"draws": 4} | changes,
    )  # fmt: skip


def test_every_row_of_the_table_is_there():
    table = compared()
    names = [row.name for row in table.rows]
    assert names == [
        "2 heads, both criteria",
        "2 heads, attention sum only",
        "2 heads, entropy only",
        "2 heads, own for each sample",
        "1 head, both criteria",
        "5 heads, both criteria",
        "all heads",
        "2 random heads",
        "2 oracle heads",
        "ceiling: the true mask",
    ]
    assert table.num_samples == 11
    for row in table.rows:
        assert 0 <= row.scores.accuracy <= 1 and 0 <= row.scores.mean_iou <= 1
        low, high = row.scores.interval
        assert low <= row.scores.accuracy <= high
        assert set(row.scores.by_kind) == {"attribute", "location"}
    assert table.row("all heads").heads == ()
    assert table.row("2 random heads").accuracy_std >= 0
    assert json.loads(json.dumps(table.to_dict()))["rows"][0]["scores"]["accuracy"] >= 0
    with pytest.raises(KeyError):
        table.row("no heads")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("2 heads, both criteria", {}),
        ("1 head, both criteria", {"k": 1}),
        ("5 heads, both criteria", {"k": 5}),
        ("2 heads, own for each sample", {"selection": "greedy"}),
    ],
)
def test_a_row_is_what_the_grounder_scores(name, change):
    recipe = small_world.RECIPE.replace(**change)
    grounder = Grounder(small_world.lvlm(), small_world.ranking(), recipe=recipe)
    scores, row = evaluate(grounder, small_world.samples()), compared().row(name).scores
    assert row.accuracy == scores.accuracy and row.pointing == scores.pointing
    assert row.mean_iou == pytest.approx(scores.mean_iou, abs=1e-6)
    assert (row.ciou, row.giou, row.by_box) == (scores.ciou, scores.giou, scores.by_box)
    assert repr(row.parts) == repr(scores.parts)  # nan, the interval of one image, is nan
    assert row.by_kind == scores.by_kind and row.interval == scores.interval


def test_the_oracle_reads_the_training_table_and_the_facts_are_computed():
    comparison, table, ranking = compared(), small_world.table(), small_world.ranking()
    mean = table.ious.mean(axis=0)
    best = sorted(np.ndindex(3, 4), key=lambda h: -mean[h])[:2]
    assert comparison.row("2 oracle heads").heads == tuple(HeadId(*h) for h in best)
    assert comparison.shared_with_oracle == len(set(best) & set(ranking.top()))
    elected = [h for h in ranking.heads if h.frequency > 0]
    assert comparison.rho_heads == len(elected)
    assert comparison.rho == pytest.approx(
        spearman([h.frequency for h in elected], [mean[h.head] for h in elected])
    )
    same = sum(set(t) == set(ranking.top()) for t in ranking.trials)
    assert comparison.agreement == (same, 3)


def test_the_ceiling_is_near_one_where_cells_are_small_and_nothing_is_smoothed():
    ranking = dataclasses.replace(
        small_world.ranking(), recipe=small_world.RECIPE.replace(kernel_size=1)
    )
    sharp = compare(small_world.lvlm(), small_world.table(), ranking, small_world.samples())
    assert sharp.row("ceiling: the true mask").scores.mean_iou > 0.5
    assert sharp.row("ceiling: the true mask").scores.mean_iou > sharp.rows[0].scores.mean_iou


def test_without_masks_neither_oracle_nor_ceiling_nor_correlation():
    table = dataclasses.replace(small_world.table(), has_ious=False)
    blind = [dataclasses.replace(s, mask=None, answer=()) for s in small_world.samples()]
    comparison = compare(small_world.lvlm(), table, small_world.ranking(), blind, draws=2)
    assert [row.name for row in comparison.rows][-1] == "2 random heads"
    assert np.isnan([comparison.rho, comparison.answer_accuracy]).all()
    assert comparison.shared_with_oracle == 0


def test_the_draws_are_what_their_mean_says():
    row = compared(draws=3, seed=5).row("2 random heads")
    assert repr(row) == repr(compared(draws=3, seed=5).row("2 random heads"))  # nan is not nan
    random, accuracies = np.random.default_rng(5), []
    for _ in range(3):
        heads = random.choice(np.arange(4, 12), 2, replace=False)
        ranked = {h.head: h for h in small_world.ranking().heads}
        first = [ranked[HeadId(int(h) // 4, int(h) % 4)] for h in heads]
        rest = [h for h in small_world.ranking().heads if h not in first]
        ranking = dataclasses.replace(small_world.ranking(), heads=(*first, *rest))
        grounder = Grounder(small_world.lvlm(), ranking)
        ious = [box_iou(grounder(s.image, s.expression).box, s.box) for s in small_world.samples()]
        accuracies.append(np.mean(np.array(ious) >= 0.5))
    assert row.scores.accuracy == pytest.approx(np.mean(accuracies))
    assert row.accuracy_std == pytest.approx(np.std(accuracies, ddof=1))


def test_bad_input_is_said():
    with pytest.raises(ValueError, match="at least one sample"):
        compare(small_world.lvlm(), small_world.table(), small_world.ranking(), [])
    other = dataclasses.replace(
        small_world.ranking(), recipe=small_world.RECIPE.replace(cut="mean+eps")
    )
    with pytest.raises(ValueError, match="cut must be 'mean'"):
        compare(small_world.lvlm(), small_world.table(), other, small_world.samples())
    with pytest.raises(ValueError, match="draws at least 1, but got 2 and 0"):
        compare(
            small_world.lvlm(), small_world.table(), small_world.ranking(), small_world.samples(),
            draws=0,
        )  # fmt: skip


@pytest.mark.parametrize("number", ["heads", "4", "8"])
def test_tables_take_the_box_that_the_recipe_wants(number):
    recipe = small_world.RECIPE.replace(box_from="mask")
    ranking = dataclasses.replace(small_world.ranking(), recipe=recipe)
    samples, lvlm = small_world.samples(), small_world.lvlm()
    if number == "heads":
        row = compare(lvlm, small_world.table(), ranking, samples).rows[0]
    else:
        rows = paper_table(number, lvlm, ranking, samples).rows
        row = {r.name: r for r in rows}[{"4": "k = 2", "8": "sigma 1.0, kernel 3"}[number]]
    scores = evaluate(Grounder(lvlm, ranking), samples)
    assert row.scores.mean_iou == pytest.approx(scores.mean_iou, abs=1e-6)
    plain = evaluate(Grounder(lvlm, small_world.ranking()), samples)
    assert scores.mean_iou != pytest.approx(plain.mean_iou, abs=1e-3)


def test_rows_are_named_by_the_criteria_of_the_ranking():
    recipe = small_world.RECIPE.replace(criteria="entropy")
    ranking = rank_table(small_world.table(), recipe, trials=1)
    found = compare(small_world.lvlm(), small_world.table(), ranking, small_world.samples())
    names = [row.name for row in found.rows]
    assert names[:3] == ["2 heads, entropy only", "2 heads, attention sum only",
                         "2 heads, both criteria"]  # fmt: skip
    assert names[4:6] == ["1 head, entropy only", "5 heads, entropy only"]
    both = found.row("2 heads, both criteria")
    assert both.heads == small_world.ranking().top(2)


CRITERIA = ("attention_sum", "entropy", "both")
WAY = [
    ("scope", "sample"), ("elbow", "chord"), ("selection", "greedy"), ("weight", "mass"),
    ("cut", "2mean+eps"), ("empty", "zero"), ("bottom_row", 0.05), ("skip_layers", 2), ("k", 5),
    ("kernel_size", 9), ("border", "reflect"), ("region", "all"), ("padding", "include"),
]  # fmt: skip
TABLES = {
    "4": [({"k": k}, f"k = {k}") for k in range(1, 6)],
    "5": [
        ({"criteria": criteria, "selection": selection}, f"{name}, {selection}")
        for criteria, name in zip(
            CRITERIA, ("attention sum only", "entropy only", "both"), strict=True
        )
        for selection in ("fixed", "greedy")
    ],
    "8": [
        ({"sigma": 0.0, "kernel_size": 1}, "not smoothed"),
        *(
            ({"sigma": sigma, "kernel_size": size}, f"sigma {sigma}, kernel {size}")
            for sigma in (0.5, 1.0, 1.5, 2.0)
            for size in (3, 5, 7, 9)
        ),
    ],
    "switches": [
        ({}, "as told"),
        ({"border": "reflect"}, "border=reflect"),
        *(({"region": region}, f"region={region}") for region in ("component", "mass", "all")),
        ({"padding": "include"}, "padding=include"),
        *(
            (dict(WAY[:count]), "+ {}={}".format(*WAY[count - 1]))
            for count in range(1, len(WAY) + 1)
        ),
    ],
}


@pytest.mark.parametrize("number", TABLES)
def test_a_table_of_the_paper_is_what_grounders_score(number):
    lvlm, table, samples = small_world.lvlm(), small_world.table(), small_world.samples()
    found = paper_table(number, lvlm, small_world.ranking(), samples, table=table)
    assert [row.name for row in found.rows] == [name for _, name in TABLES[number]]
    assert found.num_samples == 11
    for row, (change, _) in zip(found.rows, TABLES[number], strict=True):
        recipe = small_world.RECIPE.replace(**change)
        ranking = small_world.ranking()
        if "criteria" in change:
            ranking = rank_table(table, recipe, trials=1)
        scores = evaluate(Grounder(lvlm, ranking, recipe=recipe), samples)
        ours = dataclasses.replace(scores, answer_accuracy=0.0)
        assert repr(dataclasses.replace(row.scores, answer_accuracy=0.0)) == repr(ours)


@pytest.mark.parametrize("number", ["4", "8"])
@pytest.mark.parametrize("scope", ["mean", "sample"])
def test_a_greedy_recipe_is_greedy_in_every_row(number, scope):
    lvlm, samples = small_world.lvlm(), small_world.samples()
    greedily = small_world.RECIPE.replace(selection="greedy", scope=scope)
    ranking = dataclasses.replace(small_world.ranking(), recipe=greedily)
    rows = {row.name: row for row in paper_table(number, lvlm, ranking, samples).rows}
    for change, name in TABLES[number][-2:]:
        made = Grounder(lvlm, ranking, recipe=greedily.replace(**change))
        scores = evaluate(made, samples)
        assert rows[name].heads == ()
        assert rows[name].scores.mean_iou == pytest.approx(scores.mean_iou, abs=1e-6)


def test_the_way_to_the_release_ends_there():
    told = Recipe(sigma=0.5, elbow="curvature", criteria="entropy", padding_stats="exclude")
    ranking = dataclasses.replace(small_world.ranking(), recipe=told)
    last = settings.of_switches(ranking)[-1]
    assert last.recipe == Recipe.profile("repo-2025-08")
    assert last.heads is None and last.kept is None


def test_a_table_that_is_not_there_or_lacks_its_statistics_is_refused():
    given = (small_world.lvlm(), small_world.ranking(), small_world.samples())
    said = "number must be one of 4, 5, 8, switches, objects, but got '6'"
    with pytest.raises(ValueError, match=said):
        paper_table("6", *given)
    with pytest.raises(ValueError, match=r"runs\.load the folder that discover wrote"):
        paper_table("5", *given)


def test_one_head_is_one_row():
    ranking = dataclasses.replace(small_world.ranking(), recipe=small_world.RECIPE.replace(k=1))
    table = compare(small_world.lvlm(), small_world.table(), ranking, small_world.samples())
    names = [row.name for row in table.rows]
    assert len(names) == len(set(names)) == 9
    assert names[0] == "1 head, both criteria" and "1 oracle head" in names
