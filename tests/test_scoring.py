"""Rows a sample and the scores made of them: against truths known beforehand and pycocotools."""

import dataclasses

import numpy as np
import pytest
import small_world
import torch
from fastground import scoring
from fastground.grounder import Grounder
from fastground.metrics import box_iou
from fastground.types import Recipe

SIZE = (40, 50)


def rows(
    boxes, truths, *, inter=None, union=None, kinds=None, firsts=None, areas=None, images=None
):
    """Columns of samples that differ in these alone."""
    n = len(boxes)
    return {
        "image_ids": np.arange(n) if images is None else np.array(images),
        "kinds": np.array(kinds or [""] * n),
        "firsts": np.array(firsts or [True] * n),
        "sizes": np.tile(SIZE, (n, 1)),
        "truths": np.array(truths, dtype=float),
        "boxes": np.array(boxes, dtype=float),
        "map_boxes": np.array(boxes, dtype=float),
        "mask_boxes": np.array(boxes, dtype=float),
        "hits": np.full(n, -1),
        "intersections": np.array(inter if inter is not None else [-1] * n),
        "unions": np.array(union if union is not None else [-1] * n),
        "truth_areas": np.array(areas if areas is not None else [-1] * n),
    }


BOX, HALF, MISS = (0, 0, 10, 10), (0, 0, 10, 5), (20, 20, 30, 30)


def test_exactly_one_half_is_a_hit_and_no_mask_is_no_score():
    scores = scoring.scored(rows([BOX, HALF, MISS], [BOX] * 3))
    assert scores.accuracy == pytest.approx(2 / 3) and scores.mean_iou == pytest.approx(0.5)
    assert np.isnan([scores.ciou, scores.giou, scores.pointing, scores.average_recall]).all()
    assert scores.parts["sentence"] == {} and scores.text_boxes is None
    with pytest.raises(ValueError, match="at least one sample"):
        scoring.scored({})


def test_reasonseg_by_short_and_long_queries_and_overall():
    scores = scoring.scored(
        rows(
            [BOX] * 4, [BOX] * 4, inter=[10, 0, 30, 0], union=[20, 0, 40, 10],
            kinds=["short query", "short query", "long query", "long query"],
        )
    )  # fmt: skip
    kinds = scores.parts["kind"]
    assert (scores.ciou, scores.giou) == (40 / 70, pytest.approx((0.5 + 1 + 0.75 + 0) / 4))
    assert (kinds["short query"].ciou, kinds["short query"].giou) == (0.5, 0.75)
    assert (kinds["long query"].ciou, kinds["long query"].giou) == (30 / 50, 0.375)
    assert scores.average_recall == pytest.approx((0.5 + 0 + 0.75 + 0) / 4)  # nothing is no recall


NOTHING = (np.nan,) * 4


def test_what_is_not_there_counts_in_masks_alone_as_lisa_has_it():
    """Two samples without an object: in one nothing is found, in the other 60 pixels are."""
    scores = scoring.scored(
        rows(
            [BOX, (0, 0, 0, 0), MISS, MISS], [BOX, NOTHING, NOTHING, BOX],
            inter=[20, 0, 0, 10], union=[40, 0, 60, 100], areas=[40, 0, 0, 100],
        )
        | {"hits": np.array([1, -1, -1, 0]), "text_boxes": np.array([BOX, BOX, NOTHING, MISS])}
    )  # fmt: skip
    assert scores.ciou == 30 / 200 and scores.giou == pytest.approx((0.5 + 1 + 0 + 0.1) / 4)
    assert (scores.num_samples, scores.without_object) == (4, 2)
    assert (scores.accuracy, scores.mean_iou, scores.pointing) == (0.5, 0.5, 0.5)
    assert scores.by_box == {"map": 0.5, "mask": 0.5}
    assert (scores.text_boxes.accuracy, scores.text_boxes.parsed) == (0.5, 0.75)
    sizes = {name: part.num_samples for name, part in scores.parts["size"].items()}
    assert sizes == {"small": 2}  # what is not there has none
    assert sum(part.num_samples for part in scores.parts["third"].values()) == 2
    alone = scoring.scored(rows([MISS], [NOTHING], inter=[0], union=[0], areas=[0]))
    assert (alone.ciou, alone.giou) == (1, 1) and np.isnan([alone.accuracy, alone.mean_iou]).all()
    assert alone.parts["size"] == alone.parts["third"] == {}


def test_a_sample_without_an_object_is_measured():
    grounder = Grounder(small_world.lvlm(), small_world.ranking())
    sample = small_world.samples()[0]
    absent = dataclasses.replace(sample, box=None, mask=np.zeros_like(sample.mask))
    found = grounder(sample.image, sample.expression)
    nothing = dataclasses.replace(found, mask=torch.zeros_like(found.mask), found=False)
    columns = scoring.measured([absent, absent], [found, nothing], Recipe())
    assert np.isnan(columns["truths"]).all() and columns["hits"].tolist() == [-1, -1]
    assert columns["intersections"].tolist() == [0, 0]
    assert columns["unions"].tolist() == [int(found.mask.sum()), 0] and columns["unions"][0] > 0
    assert scoring.scored(columns).giou == 0.5
    ignored = dataclasses.replace(absent, ignore=np.ones_like(sample.mask))
    assert scoring.measured([ignored], [found], Recipe())["unions"].tolist() == [0]
    for wrong in ({"mask": None}, {"mask": sample.mask}):
        with pytest.raises(ValueError, match="must have true boxes to be scored"):
            scoring.measured([dataclasses.replace(absent, **wrong)], [found], Recipe())


@pytest.mark.parametrize(
    ("truth", "says"),
    [
        (
            {"box": (20.0, 12.0, 6.0, 5.0)},
            r"x1 < x2 .* is it \[x, y, width, height\]\? \(sample 0\)",
        ),
        ({"box": (1.0, 2.0, 300.0, 400.0)}, "must lie in the image of 24 x 18 pixels"),
        ({"boxes": ((0.0, 0.0, 6.0, 6.0), (1.0, 2.0, np.nan, 9.0))}, "x1 < x2 and y1 < y2"),
    ],
)
def test_a_true_box_that_can_be_none_is_refused(truth, says):
    sample = dataclasses.replace(small_world.samples()[0], **truth)
    found = Grounder(small_world.lvlm(), small_world.ranking())(sample.image, sample.expression)
    with pytest.raises(ValueError, match=says):
        scoring.measured([sample], [found], Recipe())


def test_objects_are_counted_over_all_samples():
    counts = {"objects": [3, 2, -1], "objects_found": [2, 4, -1], "objects_right": [2, 1, -1]}
    columns = rows([BOX] * 3, [BOX] * 3, kinds=["plural, more", "plural, two", ""])
    scores = scoring.scored(columns | {name: np.array(of) for name, of in counts.items()})
    assert (scores.object_recall, scores.object_precision) == (3 / 5, 3 / 6)
    two = scores.parts["kind"]["two"]
    assert (two.object_recall, two.object_precision) == (1 / 2, 1 / 4)
    none = scoring.scored(columns)
    assert np.isnan([none.object_recall, none.object_precision]).all()


def test_png_by_things_and_stuff_singulars_and_plurals():
    kinds = ["thing, singular", "thing, plural", "stuff, singular"]
    scores = scoring.scored(
        rows([BOX] * 3, [BOX] * 3, inter=[1, 2, 3], union=[4, 4, 4], kinds=kinds)
    )
    recalls = {name: part.average_recall for name, part in scores.parts["kind"].items()}
    expected = {"thing": 0.375, "stuff": 0.75, "singular": 0.5, "plural": 0.5}
    assert scores.average_recall == 0.5 and recalls == expected


def test_first_sentences_and_sizes_are_parts():
    scores = scoring.scored(
        rows(
            [BOX, MISS, BOX, MISS, MISS, MISS], [BOX] * 6,
            firsts=[True, False, True, False, False, True],
            areas=[100, 1100, 1500, 9300, 9400, 9500],
        )
    )  # fmt: skip
    assert scores.accuracy == pytest.approx(1 / 3)
    first = scores.parts["sentence"]["first"]
    assert (first.num_samples, first.accuracy) == (3, pytest.approx(2 / 3))
    counts = {name: part.num_samples for name, part in scores.parts["size"].items()}
    assert counts == {"small": 1, "medium": 2, "large": 3}
    assert scores.parts["size"]["medium"].accuracy == 0.5
    assert [p.num_samples for p in scores.parts["third"].values()] == [2, 2, 2]
    assert tuple(scores.parts["third"]) == scoring.THIRDS
    # without masks the true box's area counts
    assert set(scoring.scored(rows([BOX], [(0, 0, 32, 32)])).parts["size"]) == {"medium"}


def test_intervals_resample_images():
    truths, boxes = [BOX] * 40, [BOX] * 20 + [MISS] * 20
    apart = scoring.scored(rows(boxes, truths))
    together = scoring.scored(rows(boxes, truths, images=np.arange(40) // 10))
    assert together.interval[0] <= apart.interval[0] < 0.5 < apart.interval[1]
    assert apart.interval[1] <= together.interval[1]
    assert scoring.scored(rows(boxes, truths), seed=0) != scoring.scored(
        rows(boxes, truths), seed=1
    )


def test_everything_can_be_scored_again_from_what_is_kept():
    """Boxes, run-length masks and truth alone give every number of a row."""
    coco = pytest.importorskip("pycocotools.mask")
    grounder = Grounder(small_world.lvlm(), small_world.ranking())
    group = [s for s in small_world.samples() if s.image_id == 1]
    ignore = np.zeros_like(group[0].mask)
    ignore[:, :8] = True
    group[0] = dataclasses.replace(group[0], ignore=ignore)
    found = grounder(group[0].image, [s.expression for s in group])
    columns = scoring.measured(group, found, grounder.recipe)
    columns |= scoring.encoded(group, found)

    def decoded(counts, size):
        return coco.decode({"size": size.tolist(), "counts": counts.encode()}).astype(bool)

    for i, (sample, grounding) in enumerate(zip(group, found, strict=True)):
        size = columns["sizes"][i]
        mask, truth = (decoded(columns[n][i], size) for n in ("masks", "true_masks"))
        assert np.array_equal(mask, grounding.mask.numpy())
        assert np.array_equal(truth, sample.mask) and columns["truth_areas"][i] == truth.sum()
        counts = ~decoded(columns["ignored"][i], size) if columns["ignored"][i] else True
        assert columns["intersections"][i] == (mask & truth & counts).sum()
        assert columns["unions"][i] == ((mask | truth) & counts).sum()
        ys, xs = np.nonzero(mask)
        tight = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert columns["mask_boxes"][i].tolist() == list(tight)
        assert columns["map_boxes"][i].tolist() == grounding.map_box.tolist()
        assert columns["truths"][i].tolist() == list(sample.box)
        x, y = np.floor(columns["peaks"][i]).astype(int)
        assert columns["hits"][i] == truth[y, x]
        assert columns["sentences"][i] == sample.expression
        assert [tuple(h) for h in columns["layers_heads"][i]] == list(grounding.heads)
        assert columns["masses"][i] == grounding.mass and columns["found"][i] == grounding.found
    assert (columns["ignored"] == "").tolist() == [False, True, True, True]
    scores = scoring.scored(columns)
    assert scores.mean_iou == box_iou(columns["boxes"], columns["truths"]).mean()


def test_an_empty_mask_has_the_box_of_the_map():
    grounder = Grounder(small_world.lvlm(), small_world.ranking())
    sample = small_world.samples()[0]
    found = grounder(sample.image, sample.expression)
    empty = dataclasses.replace(found, mask=torch.zeros_like(found.mask))
    columns = scoring.measured([sample], [empty], Recipe())
    assert np.array_equal(columns["mask_boxes"], columns["map_boxes"])
    assert columns["intersections"].tolist() == [0]
