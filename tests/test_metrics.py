"""Scores: against counting pixels, scipy, and by their properties."""

import numpy as np
import pytest
import scipy.stats
from fastground import metrics
from fastground.types import ImageLayout
from hypothesis import given, settings
from hypothesis import strategies as st

stable = settings(derandomize=True, deadline=None, database=None)


@st.composite
def pixel_box(draw):
    x, y = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    return x, y, draw(st.integers(x, 10)), draw(st.integers(y, 10))


def drawn(box):
    mask = np.zeros((10, 10), dtype=bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


@stable
@given(pixel_box(), pixel_box())
def test_box_iou_counts_pixels(a, b):
    both, either = (drawn(a) & drawn(b)).sum(), (drawn(a) | drawn(b)).sum()
    expected = both / either if either else 0
    assert metrics.box_iou(a, b) == pytest.approx(expected)
    assert metrics.box_iou(b, a) == metrics.box_iou(a, b)
    assert metrics.mask_overlap(drawn(a), drawn(b)) == (both, either)


def test_box_iou_of_batches():
    boxes = np.array([[0, 0, 2, 2], [5, 5, 6, 6]])
    assert metrics.box_iou(boxes, [0, 0, 1, 2]).tolist() == [0.5, 0.0]
    assert metrics.box_iou(boxes[:, None], boxes).tolist() == [[1, 0], [0, 1]]


@stable
@given(pixel_box(), pixel_box())
def test_box_iou_is_shapelys_and_cocos(a, b):
    shapely = pytest.importorskip("shapely")
    outer, inner = shapely.box(*a), shapely.box(*b)
    union = outer.union(inner).area
    expected = outer.intersection(inner).area / union if union else 0
    assert metrics.box_iou(a, b) == pytest.approx(expected)
    if expected:
        coco = pytest.importorskip("pycocotools.mask")
        of_coco = coco.iou(
            *(np.array([[x, y, p - x, q - y]], dtype=float) for x, y, p, q in (a, b)), [0]
        )
        assert metrics.box_iou(a, b) == pytest.approx(of_coco.item())


def test_mask_iou_is_cocos():
    coco = pytest.importorskip("pycocotools.mask")
    random = np.random.default_rng(2)
    for _ in range(50):
        masks = random.random((2, 17, 23)) < random.random((2, 1, 1))
        a, b = (coco.encode(np.asfortranarray(m.astype(np.uint8))) for m in masks)
        intersection, union = metrics.mask_overlap(*masks)
        assert intersection == coco.area(coco.merge([a, b], intersect=True))
        assert union == coco.area(coco.merge([a, b]))
        assert intersection / union == pytest.approx(coco.iou([a], [b], [0]).item())


def test_mask_iou_of_polygons_is_shapelys():
    shapely = pytest.importorskip("shapely")
    from fastground.datasets.masks import labelled

    def drawn(points):  # ten pixels a unit: the outline of a pixel's width weighs little
        return labelled([("target", [(10 * x, 10 * y) for x, y in points])], (400, 400)).mask

    a, b = [(2, 3), (30, 6), (22, 34)], [(10, 1), (38, 20), (12, 30), (4, 12)]
    p, q = shapely.Polygon(a), shapely.Polygon(b)
    intersection, union = metrics.mask_overlap(drawn(a), drawn(b))
    assert intersection / union == pytest.approx(p.intersection(q).area / p.union(q).area, abs=0.01)


def test_acc_at_exactly_one_half_is_a_hit():
    half = metrics.box_iou([0, 0, 10, 10], [0, 0, 10, 20])  # 100 / 200, exact in binary
    below = metrics.box_iou([0, 0, 10, 10], [0, 0, 10, 20 + 1e-9])
    assert half == 0.5 and below < 0.5
    assert metrics.accuracy([half]) == 1 and metrics.accuracy([below]) == 0


def test_accuracy_counts_the_border():
    assert metrics.accuracy([0.5, 0.49999, 1.0, 0.0]) == 0.5
    assert np.isnan(metrics.accuracy([]))


def test_ciou_and_giou():
    assert metrics.mask_scores([1, 30], [10, 30]) == (31 / 40, pytest.approx((0.1 + 1) / 2))
    assert metrics.mask_scores([0, 5], [0, 10]) == (0.5, 0.75)  # an empty union counts 1
    assert metrics.mask_scores([0], [0]) == (1.0, 1.0)
    assert np.isnan(metrics.mask_scores([], [])).all()


def test_lisas_conventions_by_hand():
    """An empty union counts 1 in gIoU and nothing in cIoU; ignored pixels count neither way."""
    empty, whole = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    left, top = whole.copy(), whole.copy()
    left[:, 2:] = top[2:] = False
    assert metrics.mask_overlap(empty, empty) == (0, 0)
    assert metrics.mask_overlap(left, top) == (4, 12)
    assert metrics.mask_overlap(left, top, ignore=~top) == (4, 8)
    assert metrics.mask_overlap(left, top, ignore=whole) == (0, 0)
    assert metrics.mask_overlap(empty, left) == (0, 8)
    pairs = [(0, 0), (4, 12), (4, 8), (0, 8)]
    ciou, giou = metrics.mask_scores(*zip(*pairs, strict=True))
    assert ciou == (0 + 4 + 4 + 0) / (0 + 12 + 8 + 8)
    assert giou == pytest.approx((1 + 1 / 3 + 1 / 2 + 0) / 4)


def lisas(masks, truths):
    """(cIoU, gIoU) as LISA's validate and intersectionAndUnionGPU compute them; 255 is ignored."""
    each, sums = [], np.zeros(2)
    for mask, truth in zip(masks, truths, strict=True):
        output = np.where(truth == 255, 255, mask)
        areas = [np.bincount(a[a < 2], minlength=2)[1] for a in (output, truth)]
        both = np.bincount(output[(output == truth) & (output < 2)], minlength=2)[1]
        union = areas[0] + areas[1] - both
        each.append(both / (union + 1e-5) + (union == 0))
        sums += both, union
    return sums[0] / (sums[1] + 1e-10), np.mean(each)


def test_ciou_and_giou_are_lisas():
    """On masks of which some are empty, and truths with ignored pixels, some with nothing else."""
    random = np.random.default_rng(5)
    for _ in range(20):
        shares = random.choice([0, 0.1, 0.6], (2, 12, 1, 1))
        masks, truths = random.random((2, 12, 9, 7)) < shares
        ignored = random.random((12, 9, 7)) < random.choice([0, 0.3, 1], (12, 1, 1))
        counted = [metrics.mask_overlap(*each) for each in zip(masks, truths, ignored, strict=True)]
        assert min(union for _, union in counted) == 0 < max(union for _, union in counted)
        expected = lisas(masks.astype(int), np.where(ignored, 255, truths.astype(int)))
        assert metrics.mask_scores(*zip(*counted, strict=True)) == pytest.approx(expected, abs=1e-6)


@stable
@given(st.lists(pixel_box(), max_size=5), st.lists(pixel_box(), max_size=5))
def test_matched_boxes_are_those_that_coco_matches(boxes, truths):
    pytest.importorskip("pycocotools")
    from pycocotools.cocoeval import COCOeval, Params

    def noted(some):
        return [
            {"id": i + 1, "bbox": [x, y, p - x, q - y], "area": (p - x) * (q - y), "iscrowd": 0,
             "ignore": 0, "score": 1 - i / 10}
            for i, (x, y, p, q) in enumerate(some)
        ]  # fmt: skip

    judge = COCOeval()
    judge.params = Params(iouType="bbox")
    judge._gts, judge._dts = {(0, 1): noted(truths)}, {(0, 1): noted(boxes)}
    judge.ious = {(0, 1): judge.computeIoU(0, 1)}
    judged = judge.evaluateImg(0, 1, [0, 1e10], 100)
    expected = 0 if judged is None else int((judged["dtMatches"][0] > 0).sum())
    assert judge.params.iouThrs[0] == 0.5 and metrics.matched(boxes, truths) == expected


def test_matched_boxes_by_hand():
    """Each object once, and the surest first, even where another choice would match more."""
    one, two, far = (0, 0, 10, 10), (10, 0, 20, 10), (50, 50, 60, 60)
    assert metrics.matched([two, one, far], [one, two]) == 2
    assert metrics.matched([one, one], [one, two]) == 1
    # Of objects with the same IoU the last is taken, as COCO takes it.
    shared, first = (1, 0, 11, 10), (-3, 0, 7, 10)
    assert metrics.matched([shared, first], [(0, 0, 10, 10), (2, 0, 12, 10)]) == 2
    assert metrics.matched([(0, 0, 10, 5)], [one]) == 1  # exactly one half
    assert metrics.matched([(0, 0, 10, 4.9)], [one]) == 0
    assert metrics.matched([], [one]) == metrics.matched([one], []) == metrics.matched([], []) == 0


def test_average_recall_is_the_area_under_recall():
    ious = np.random.default_rng(1).random(300) ** 2
    thresholds = (np.arange(20_000) + 0.5) / 20_000
    recall = [(ious >= t).mean() for t in thresholds]
    assert metrics.average_recall(ious) == pytest.approx(np.mean(recall), abs=1e-4)
    assert np.isnan(metrics.average_recall([]))


def test_sizes_are_cocos():
    areas = [0, 1023.9, 1024, 5000, 9216, 9216.5]
    expected = ["small", "small", "medium", "medium", "medium", "large"]
    assert metrics.size_class(areas).tolist() == expected


def test_points_inside_the_mask():
    mask = np.zeros((4, 6), dtype=bool)
    mask[1, 2] = True
    points = [[2.0, 1.0], [2.99, 1.99], [3.0, 1.5], [-0.1, 1.5], [2.5, 4.0], [1e9, -1e9]]
    assert metrics.points_inside(points, mask).tolist() == [True, True, False, False, False, False]


@pytest.mark.parametrize("image", [(24, 24), (30, 20), (17, 23)])
def test_map_iou_is_the_iou_of_the_resized_map(image):
    random = np.random.default_rng(4)
    side = max(image)
    layout = ImageLayout(
        (6, 6),
        tuple(range(36)),
        image_size=image,
        cell_size=(side / 6, side / 6),
        origin=(-float((side - image[1]) // 2), -float((side - image[0]) // 2)),
    )
    maps = random.random((5, 6, 6)) > 0.6
    mask = random.random(image) > 0.7
    y, x = (np.floor(c.numpy()).astype(int) for c in layout.pixel_centers())
    for one, iou in zip(maps, metrics.map_iou(maps, mask, layout), strict=True):
        resized = one[np.ix_(y, x)]
        assert iou == pytest.approx((resized & mask).sum() / (resized | mask).sum())
    assert metrics.map_iou(np.zeros((6, 6)), np.zeros(image), layout) == 0


def test_map_iou_outside_a_cropped_image_is_background():
    layout = ImageLayout((2, 2), (0, 1, 2, 3), None, (4, 8), (2.0, 2.0), (2.0, 0.0))
    mask = np.ones((4, 8), dtype=bool)
    assert metrics.map_iou(np.ones((2, 2)), mask, layout) == 0.5


@stable
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=30))
def test_spearman_is_scipys(pairs):
    a, b = np.array(pairs).T
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        assert np.isnan(metrics.spearman(a, b))
    else:
        assert metrics.spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic)


def test_spearman_of_too_few():
    assert np.isnan(metrics.spearman([], [])) and np.isnan(metrics.spearman([1], [2]))


def test_bootstrap_of_a_ratio_draws_both_sums_together():
    random = np.random.default_rng(0)
    unions = random.integers(1, 100, 400)
    low, high = metrics.bootstrap_interval(unions / 4, weights=unions)
    assert low == pytest.approx(0.25) and high == pytest.approx(0.25)
    inter = (unions * random.random(400)).astype(int)
    low, high = metrics.bootstrap_interval(inter, weights=unions)
    assert low < inter.sum() / unions.sum() < high
    assert metrics.bootstrap_interval([0, 0], weights=[0, 0]) == (1, 1)


def test_bootstrap_holds_the_mean_and_is_wider_by_image():
    random = np.random.default_rng(0)
    images = np.repeat(np.arange(50), 10)
    hits = random.random(50)[images] > 0.5  # all ten of an image hit or miss together
    low, high = metrics.bootstrap_interval(hits)
    wide_low, wide_high = metrics.bootstrap_interval(hits, images)
    assert wide_low < low < hits.mean() < high < wide_high
    error = np.sqrt(hits.mean() * (1 - hits.mean()) / 500)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert metrics.bootstrap_interval(hits) == (low, high)
    for few in ([], [1.0]):
        assert np.isnan(metrics.bootstrap_interval(few)).all()
    assert np.isnan(metrics.bootstrap_interval(hits, np.zeros(500))).all()  # one image


def test_masks_of_other_shapes_are_refused():
    layout = ImageLayout((1, 1), (0,), None, (4, 4), (4.0, 4.0))
    with pytest.raises(ValueError, match=r"truth's shape \(4, 4\), but got \(4, 5\)"):
        metrics.mask_overlap(np.ones((4, 5)), np.ones((4, 4)))
    with pytest.raises(ValueError, match=r"\(height, width\) \(4, 4\), but got \(5, 4\)"):
        metrics.map_iou(np.ones((1, 1)), np.ones((5, 4)), layout)
