"""Several objects of one expression: regions, shares, boxes and masks of each."""

import dataclasses

import numpy as np
import pytest
import scipy.ndimage
import small_world
import torch
from fastground import figures, grounding, runs, scoring
from fastground.comparison import paper_table
from fastground.evaluation import evaluate
from fastground.grounder import Grounder
from fastground.objects import found_regions
from fastground.settings import SHARES
from fastground.types import Recipe, Sample
from PIL import Image
from test_grounding import PLAIN, REGIONS, attention, block, layout

TWO = block(slice(2, 4), slice(0, 2), value=3.0) + block(slice(2, 4), slice(4, 6), value=2.0)
"""Regions of 12 and 8: shares 0.6 and 0.4."""


@pytest.mark.parametrize("region", REGIONS)
def test_regions_against_scipy(region):
    random = np.random.default_rng(0)
    for grid in ((1, 1), (7, 9), (12, 12), (24, 24)):
        for valid in (np.ones(grid, dtype=bool), random.random(grid) > 0.2):
            if not valid.any():
                continue
            combined = random.random(grid).astype(np.float32)
            found = found_regions(
                torch.from_numpy(combined), Recipe(region=region), torch.from_numpy(valid)
            )
            foreground = valid & (combined > combined[valid].mean(dtype=np.float64))
            labels, count = scipy.ndimage.label(foreground, np.ones((3, 3)))
            assert len(found) == count
            sums = scipy.ndimage.sum_labels(
                combined.astype(np.float64), labels, range(1, count + 1)
            )
            shares = sorted(sums / sums.sum() if count else [], reverse=True)
            np.testing.assert_allclose([f.share for f in found], shares, rtol=1e-9)
            for one in found:
                (number,) = np.unique(labels[one.cells.numpy()])
                assert (labels == number).sum() == one.cells.sum()
                rows, columns = np.nonzero(labels == number)
                box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
                assert one.box == box
                if region != "hull":
                    assert one.area == len(rows)
                    mass = combined[one.cells.numpy()].sum() / combined[valid].sum()
                    assert one.mass == pytest.approx(mass, rel=1e-5)
                else:
                    assert one.area >= len(rows)


@pytest.mark.parametrize("region", REGIONS)
def test_the_kept_region_is_one_of_them(region):
    """With the box, area, mass and score that ops.boxes gives."""
    random = torch.rand(8, 2, 6, 6, generator=torch.Generator().manual_seed(3))
    recipe = Recipe(region=region)
    boxes = grounding.boxes_on_grid(random, layout(), recipe)
    combined = grounding.ops.combine(random, recipe=recipe)
    valid = layout().valid()
    for i in range(8):
        found = {f.box: f for f in found_regions(combined[i], recipe, valid)}
        if region != "all":
            kept = found[tuple(int(v) for v in boxes.xyxy[i])]
            rest = (kept.area, kept.mass, kept.score)
            kept_by_boxes = [float(part[i]) for part in (boxes.area, boxes.mass, boxes.score)]
            assert rest == pytest.approx(kept_by_boxes, rel=1e-5)


def test_every_region_above_the_share_has_its_own_box_mask_and_score():
    maps = attention(TWO[None, None], layout())
    (none,) = grounding.ground(maps, ["dogs"], recipe=PLAIN)
    assert none.others == () and none.objects == (none,)
    for share, count in ((0.1, 2), (0.4, 2), (0.41, 1), (1.0, 1)):
        (found,) = grounding.ground(maps, ["dogs"], recipe=PLAIN.replace(objects=share))
        assert len(found.objects) == count and found.objects[0] is found
        assert found.box.tolist() == none.box.tolist() == [0, 10, 20, 30]
        assert found.mask.equal(none.mask)
    (found,) = grounding.ground(maps, ["dogs"], recipe=PLAIN.replace(objects=0.4))
    (other,) = found.others
    assert other.box.tolist() == other.map_box.tolist() == [40, 10, 60, 30]
    assert other.mask[11:29, 41:60].all() and not other.mask[:, :40].any()
    assert (found.mass, other.mass) == pytest.approx((0.6, 0.4))
    assert other.expression == "dogs" and other.map is found.map and other.others == ()


def test_all_regions_as_one_has_its_parts_as_others():
    maps = attention(TWO[None, None], layout())
    (found,) = grounding.ground(maps, ["dogs"], recipe=PLAIN.replace(region="all", objects=0.1))
    assert found.box.tolist() == [0, 10, 60, 30] and len(found.others) == 2
    assert found.mask.equal(found.others[0].mask | found.others[1].mask)
    boxes = tuple(tuple(other.box.tolist()) for other in found.others)
    sample = Sample(None, "dogs", box=(0, 10, 60, 30), boxes=boxes)
    counts = scoring.counted([sample], [found], PLAIN.replace(region="all"))
    assert {name: int(n) for name, (n,) in counts.items()} == {
        "objects": 2, "objects_found": 2, "objects_right": 2,
    }  # fmt: skip


def test_of_all_regions_one_that_reaches_as_far_as_all_is_an_object_too():
    """A ring with a spot in it: its box is that of both."""
    maps = block(slice(0, 6), slice(0, 6)) - block(slice(1, 5), slice(1, 5))
    maps += block(2, 2, value=4.0)
    recipe = PLAIN.replace(region="all", objects=0.1)
    (found,) = grounding.ground(
        attention(maps[None, None], layout((6, 6), (60, 60))), ["dogs"], recipe=recipe
    )
    boxes = [other.box.tolist() for other in found.others]
    assert boxes == [[0, 0, 60, 60], [20, 20, 30, 30]] and found.box.tolist() == boxes[0]


def test_nothing_found_has_no_objects():
    maps = attention(np.ones((1, 2, 6, 6)), layout(image=(60, 60)))
    (found,) = grounding.ground(maps, ["dogs"], recipe=PLAIN.replace(objects=0.1))
    assert not found.found and found.objects == found.others == ()


def test_a_segmenter_gets_all_objects_of_an_image_at_once():
    calls = []

    def boxed(image, groundings, recipe):
        calls.append(len(groundings))
        for found in groundings:
            x1, y1, x2, y2 = (int(v) for v in found.box)
            mask = np.zeros((image.height, image.width), dtype=bool)
            mask[y1:y2, x1:x2] = True
            yield mask

    recipe = small_world.RECIPE.replace(objects=0.01, kernel_size=1)
    grounder = Grounder(small_world.lvlm(), small_world.ranking(), segmenter=boxed, recipe=recipe)
    image = small_world.samples()[0].image
    found = grounder(image, ["the red mug", "the dog"])
    assert calls == [sum(len(g.objects) for g in found)] and calls[0] > 2
    for one in (o for g in found for o in g.objects):
        x1, y1, x2, y2 = (int(v) for v in one.box)
        assert one.mask.sum() == (x2 - x1) * (y2 - y1) and one.image is not None
    grounder.segmenter = None
    for one, plain in zip(grounder(image, ["the red mug", "the dog"]), found, strict=True):
        assert [o.box.tolist() for o in one.objects] == [o.box.tolist() for o in plain.objects]


def test_objects_are_united_in_one_mask_and_the_box_around_them():
    maps = attention(TWO[None, None], layout())
    (one,) = grounding.ground(maps, ["dogs"], recipe=PLAIN)
    assert one.united() is one
    (found,) = grounding.ground(maps, ["dogs"], recipe=PLAIN.replace(objects=0.1))
    (other,) = found.others
    both = found.united()
    assert both.mask.equal(found.mask | other.mask) and both.others == ()
    assert both.box.tolist() == both.map_box.tolist() == [0, 10, 60, 30]
    assert (both.mass, both.score) == (found.mass, found.score)


def square(x, y):
    """A mask of 18 x 24 with one of 6 x 6 pixels there."""
    mask = np.zeros((18, 24), dtype=bool)
    mask[y : y + 6, x : x + 6] = True
    return mask


class Told:
    """Two objects for every expression: one in the left top corner, and one 3 pixels off x = 12."""

    def __init__(self):
        self.grounder = Grounder(small_world.lvlm(), small_world.ranking())

    def __call__(self, image, expressions):
        found = []
        for g in self.grounder(image, expressions):
            kept, other = (self.tell(g, x) for x in (0, 15))
            found.append(dataclasses.replace(kept, others=(other,)))
        return found

    def tell(self, g, x):
        box = torch.tensor([x, 0, x + 6, 6]).float()
        return dataclasses.replace(
            g, box=box, map_box=box, mask=torch.from_numpy(square(x, 0)), found=True
        )


def phrases(*kinds):
    """Of the first image, whose true masks are two squares: the left one is found whole."""
    truth = square(0, 0) | square(12, 0)
    return [
        dataclasses.replace(s, kind=kind, mask=truth, box=(0.0, 0.0, 18.0, 6.0))
        for s, kind in zip(small_world.samples(), kinds, strict=False)
    ]


def test_plural_phrases_are_scored_by_the_union_of_their_objects():
    """Kept: 36 of 72 pixels. Union: 36 + 18 of 72 + 18; its box 21 x 6 around one of 18 x 6."""
    samples = phrases("thing, plural", "thing, singular", "stuff, plural")
    kept = evaluate(Told(), samples)
    assert kept.giou == kept.average_recall == 0.5 and kept.mean_iou == pytest.approx(1 / 3)
    scores = evaluate(Told(), samples, plurals="union")
    kinds = scores.parts["kind"]
    assert kinds["plural"].average_recall == kinds["plural"].giou == pytest.approx(54 / 90)
    assert kinds["plural"].mean_iou == pytest.approx(18 / 21)
    assert kinds["singular"].average_recall == 0.5  # by the kept region alone, as before
    assert kinds["singular"].mean_iou == pytest.approx(6 / 18)
    assert scores.average_recall == pytest.approx((0.6 + 0.5 + 0.6) / 3)
    assert scores.ciou == pytest.approx((54 + 36 + 54) / (90 + 72 + 90))
    assert kinds["thing"].average_recall == pytest.approx(0.55)
    assert repr(evaluate(Told(), samples, plurals="region")) == repr(kept)


def test_of_all_regions_only_those_that_are_objects_are_united():
    """Two squares with 5 and 1 of 6 parts of the attention, kept as one: a fifth is asked."""
    maps = block(slice(0, 2), slice(0, 2), value=10.0) + block(slice(4, 6), slice(4, 6), value=2.0)
    recipe = PLAIN.replace(region="all", objects=0.2)
    given = attention(maps[None, None], layout((6, 6), (60, 60)))
    found = grounding.ground(given, ["dogs"], recipe=recipe)
    sample = Sample(Image.new("RGB", (60, 60)), "dogs", (0.0, 0.0, 20.0, 20.0), kind="plural")
    assert found[0].box.tolist() == [0, 0, 60, 60] and len(found[0].others) == 1
    (one,) = scoring.united([sample], found, recipe)
    assert one.box.tolist() == [0, 0, 20, 20] and not one.mask[40:, 40:].any()
    assert one.score == found[0].score and not one.others


def test_what_was_united_is_kept_and_another_way_is_refused(tmp_path):
    recipe = small_world.RECIPE.replace(objects=0.01, kernel_size=1)
    made = Grounder(small_world.lvlm(), small_world.ranking(), recipe=recipe)
    samples = phrases("thing, plural", "thing, singular")
    evaluate(made, samples, out=tmp_path, plurals="union")
    columns, _ = runs.load_columns(tmp_path, "evaluate")
    plural, singular = (made(s.image, s.expression) for s in samples)
    assert len(plural.objects) > 1 and len(singular.objects) > 1
    masks = [plural.united().to_rle()["counts"], singular.to_rle()["counts"]]
    assert columns["masks"].tolist() == masks
    assert columns["boxes"].tolist() == [plural.united().box.tolist(), singular.box.tolist()]
    with pytest.raises(ValueError, match=r"plurals must be 'union', with which .* but got None"):
        evaluate(made, samples, out=tmp_path)
    with pytest.raises(ValueError, match="plurals must be one of region, union, but got 'all'"):
        evaluate(made, samples, plurals="all")
    plain = Grounder(small_world.lvlm(), small_world.ranking())
    with pytest.raises(ValueError, match=r"give objects=0\.2 \(--recipe objects=0\.2\)"):
        evaluate(plain, samples, plurals="union")


def test_objects_are_right_each_by_itself():
    """Of the two that are told the left one is right; the other is 3 of 6 pixels off."""
    truth = ((0.0, 0.0, 6.0, 6.0), (12.0, 0.0, 18.0, 6.0))
    (sample,) = phrases("plural, two")
    several = dataclasses.replace(sample, boxes=truth)
    for plurals in ("region", "union"):
        scores = evaluate(Told(), [several, sample], plurals=plurals)
        assert (scores.object_recall, scores.object_precision) == (0.5, 0.5)
    assert scores.num_samples == 2 and np.isnan(evaluate(Told(), [sample]).object_recall)
    near = dataclasses.replace(several, boxes=(truth[0], (15.0, 0.0, 21.0, 6.0)))
    scores = evaluate(Told(), [near, several])
    assert (scores.object_recall, scores.object_precision) == (0.75, 0.75)


@pytest.mark.parametrize("changes", [{}, {"box_from": "mask"}, {"region": "all"}])
def test_a_table_of_shares_is_what_grounders_score(changes, tmp_path):
    samples = [dataclasses.replace(s, boxes=(s.box,) * 2, kind="plural, two")
               for s in small_world.samples()]  # fmt: skip
    lvlm, own = small_world.lvlm(), small_world.RECIPE.replace(**changes)
    ranking = dataclasses.replace(small_world.ranking(), recipe=own)
    found = paper_table("objects", lvlm, ranking, samples, out=tmp_path)
    assert [row.name for row in found.rows][:2] == ["one object", "share 0.5"]
    for row, share in zip(found.rows, (None, *SHARES), strict=True):
        recipe = own.replace(objects=share)
        plurals = "region" if share is None else "union"
        scores = evaluate(Grounder(lvlm, ranking, recipe=recipe), samples, plurals=plurals)
        ours, theirs = (dataclasses.replace(s, answer_accuracy=0.0) for s in (scores, row.scores))
        assert repr(theirs) == repr(ours) and theirs.object_recall >= 0
    assert repr(paper_table("objects", lvlm, ranking, samples, out=tmp_path)) == repr(found)


def test_a_picture_shows_all_objects():
    maps = attention(TWO[None, None], layout())
    image = Image.new("RGB", (60, 40))
    pictures = []
    for share in (None, 0.4):
        (found,) = grounding.ground(maps, ["dogs"], recipe=PLAIN.replace(objects=share))
        found = dataclasses.replace(found, image=image)
        pictures.append(np.asarray(figures.rendered(figures.figure(found, image)).convert("RGB")))
        figures.contact_sheet([found], [image])
    orange = [(np.abs(p.astype(int) - figures.BOX).sum(-1) < 30).sum() for p in pictures]
    assert orange[1] > 1.5 * orange[0] > 0


@pytest.mark.parametrize("share", [0, -0.1, 1.1, float("nan"), "many"])
def test_a_share_is_a_share(share):
    with pytest.raises(ValueError, match=r"recipe\.objects must be a share"):
        Recipe(objects=share)
