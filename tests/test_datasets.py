"""ReasonSeg, PNG, lists of one's own; what they refuse."""

import json

import numpy as np
import pytest
import small_world
import torch
from fastground import datasets, evaluation, metrics
from fastground.datasets import masks
from fastground.datasets.shapes.export import outlines
from fastground.result import Grounding
from fastground.types import ImageLayout, Sample
from PIL import Image


def rectangle(x1, y1, x2, y2):
    """Points of a rectangle that covers these pixels, ends included."""
    return [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]


def reasonseg(folder, split="val", count=1, **changes):
    """Images of 40 x 60 with a large target, a smaller piece to ignore, and a flag."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (60, 40), (i, 0, 0)).save(folder / split / f"{i}.jpg")
        facts = {
            "text": ["where does it come from", "another"],
            "is_sentence": i % 2 == 0,
            "shapes": [
                {"label": "ignore", "points": rectangle(12, 12, 15, 15)},
                {"label": "flag", "points": rectangle(0, 0, 59, 39)},
                {"label": "target", "points": rectangle(10, 10, 29, 24)},
                {"label": "target", "points": rectangle(13, 13, 14, 14)},
            ],
            **changes,
        }
        (folder / split / f"{i}.json").write_text(json.dumps(facts))
    return folder


def test_reasonseg_draws_the_largest_first(tmp_path):
    data = reasonseg(tmp_path, count=2)
    long, short = datasets.load(
        "reasonseg", data=data, split="val", num_samples=None, check_sizes=False
    )
    assert (long.kind, short.kind) == ("long query", "short query")
    assert long.expression == "where does it come from" and long.box == (10, 10, 30, 25)
    ignore = np.zeros((40, 60), bool)
    ignore[12:16, 12:16] = True
    ignore[13:15, 13:15] = False
    mask = np.zeros((40, 60), bool)
    mask[10:25, 10:30] = True
    assert np.array_equal(long.ignore, ignore) and np.array_equal(long.mask, mask & ~ignore)
    every = datasets.annotated_images("reasonseg", data, "val", sentences="all", check_sizes=False)
    assert [p.sample_id for i in every for p in i.phrases] == [0, 1, 2, 3]
    assert [p.first for i in every for p in i.phrases] == [True, False, True, False]


def test_reasonseg_asserts_its_sizes_and_its_form(tmp_path):
    data = reasonseg(tmp_path)
    with pytest.raises(ValueError, match=r"reasonseg val must have 200 images, but .* has 1"):
        datasets.load("reasonseg", data=data, split="val")
    with pytest.raises(FileNotFoundError, match=r"no .*test; get train\.zip, .*LISA"):
        datasets.load("reasonseg", data=data, split="test")
    with pytest.raises(ValueError, match="split must be one of train, val, test"):
        datasets.load("reasonseg", data=data, split="testA")
    (data / "val" / "0.json").write_bytes('{"text": "a “caf\xe9”"}'.encode("cp1252"))
    with pytest.raises(ValueError, match="must have text, is_sentence and shapes"):
        datasets.load("reasonseg", data=data, split="val", check_sizes=False)
    reasonseg(tmp_path, shapes=[{"label": "target", "points": [[1, 2], [3]]}])
    with pytest.raises(ValueError, match=r"points must be pairs.*0\.jpg"):
        small_world.read(datasets.load("reasonseg", data=data, split="val", check_sizes=False))


def test_reasonseg_may_have_no_object(tmp_path):
    for shapes in ([], [{"label": "ignore", "points": [[1, 2], [3, 4], [5, 2]]}]):
        data = reasonseg(tmp_path, shapes=shapes)
        [sample] = datasets.load("reasonseg", data=data, split="val", check_sizes=False)
        assert sample.box is None and not sample.mask.any() and sample.mask.ndim == 2
        assert (sample.ignore is None) == (not shapes)
    [blind] = datasets.load("reasonseg", data=data, split="val", check_sizes=False, masks=False)
    with pytest.raises(ValueError, match="mask must have pixels, but is empty"):
        _ = blind.box


def test_ignored_pixels_count_neither_way(tmp_path):
    """The same groundings score as if only the other pixels were there."""
    random = np.random.default_rng(0)
    mask, truth, ignore = random.random((3, 24, 24)) < 0.4
    kept = ~ignore
    assert metrics.mask_overlap(mask, truth, ignore) == (
        (mask & truth)[kept].sum(), (mask | truth)[kept].sum(),
    )  # fmt: skip
    with pytest.raises(ValueError, match="ignore must have the truth's shape"):
        metrics.mask_overlap(mask, truth, ignore[1:])
    layout = ImageLayout((6, 6), tuple(range(36)), None, (24, 24), (4.0, 4.0))
    sample = Sample(Image.new("RGB", (24, 24)), "x", (0, 0, 9, 9), truth, ignore=ignore)

    def grounder(image, expressions):
        box, heat = torch.tensor([0.0, 0, 9, 9]), torch.ones(6, 6)
        return [
            Grounding(
                text, box, box, torch.from_numpy(mask), 1.0, 1.0, True, heat, heat[None], (), layout
            )
            for text in expressions
        ]

    scores = evaluation.evaluate(grounder, [sample])
    assert scores.ciou == pytest.approx((mask & truth)[kept].sum() / (mask | truth)[kept].sum())
    foreground = random.random((5, 6, 6)) < 0.5
    large = foreground.repeat(4, -1).repeat(4, -2)
    expected = [(f & truth & kept).sum() / ((f | truth) & kept).sum() for f in large]
    assert metrics.map_iou(foreground, truth, layout, ignore) == pytest.approx(expected)


# PNG.


def narrative(folder, split="val"):
    """One image of 30 x 20 with a thing, another, and grass; a caption with four phrases."""
    year = f"{split}2017"
    colours = np.zeros((20, 30, 3), np.uint8)
    segments = {261: np.s_[2:8, 3:9], 70000: np.s_[10:18, 20:29], 5: np.s_[0:2, :]}
    for number, place in segments.items():
        colours[place] = number % 256, number // 256 % 256, number // 65536
    for where in (f"annotations/panoptic_segmentation/{year}", f"images/{year}"):
        (folder / where).mkdir(parents=True)
    notes = folder / "annotations"
    Image.fromarray(colours).save(notes / "panoptic_segmentation" / year / "000000000139.png")
    Image.new("RGB", (30, 20)).save(folder / "images" / year / "000000000139.jpg")
    phrases = [("two dogs", [261, 70000], 1), ("a dog", [261], 0), ("in", [], 0), ("grass", [5], 0)]
    captions = [
        {
            "image_id": "139",
            "segments": [
                {
                    "utterance": u,
                    "segment_ids": list(map(str, ids)),
                    "plural": bool(p),
                    "noun": True,
                }
                for u, ids, p in phrases
            ],
        }
    ]
    panoptic = {
        "images": [{"id": 139, "height": 20, "width": 30}],
        "categories": [{"id": 18, "isthing": 1}, {"id": 193, "isthing": 0}],
        "annotations": [
            {
                "image_id": 139,
                "file_name": "000000000139.png",
                "segments_info": [
                    {"id": i, "category_id": 193 if i == 5 else 18} for i in segments
                ],
            }
        ],
    }
    (notes / f"png_coco_{year}.json").write_text(json.dumps(captions))
    (notes / f"panoptic_{year}.json").write_text(json.dumps(panoptic))
    return folder


def test_png_joins_the_segments_of_a_phrase(tmp_path):
    data = narrative(tmp_path)
    read = list(datasets.load("png", data=data, split="val"))
    assert [(s.expression, s.kind, s.box) for s in read] == [
        ("two dogs", "thing, plural", (3, 2, 29, 18)),
        ("a dog", "thing, singular", (3, 2, 9, 8)),
        ("grass", "stuff, singular", (0, 0, 30, 2)),
    ]
    assert [int(s.mask.sum()) for s in read] == [36 + 72, 36, 60]
    assert {s.image_id for s in read} == {139} and [s.sample_id for s in read] == [0, 1, 2]
    boxes = [s.box for s in datasets.load("png", data=data, split="val", masks=False)]
    assert boxes == [s.box for s in read]


def test_png_refuses(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"png_coco_val2017\.json; get it from https://"):
        datasets.load("png", data=tmp_path, split="val")
    data = narrative(tmp_path)
    with pytest.raises(ValueError, match="split must be one of train, val for png"):
        datasets.load("png", data=data, split="test")
    picture = tmp_path / "annotations" / "panoptic_segmentation" / "val2017" / "000000000139.png"
    Image.new("RGB", (31, 20)).save(picture)
    with pytest.raises(ValueError, match=r"20 high and 30 wide.*000000000139\.png"):
        small_world.read(datasets.load("png", data=data, split="val"))
    Image.new("RGB", (30, 20)).save(picture)
    with pytest.raises(ValueError, match=r"segments must have pixels, but .* none in .*139\.png"):
        small_world.read(datasets.load("png", data=data, split="val"))
    path = tmp_path / "annotations" / "png_coco_val2017.json"
    path.write_text(path.read_text().replace("70000", "7").replace('"261", ', ""))
    with pytest.raises(ValueError, match="something is missing: KeyError 7"):
        datasets.load("png", data=data, split="val")


# Lists of one's own.


@pytest.fixture
def photos(tmp_path):
    """Two photographs and a mask beside them."""
    (tmp_path / "photos").mkdir()
    for i in (1, 2):
        Image.new("RGB", (32, 24), (i, i, i)).save(tmp_path / "photos" / f"{i}.png")
    mask = np.zeros((24, 32), np.uint8)
    mask[4:9, 6:20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(np.stack([mask, np.full_like(mask, 255)], -1), "LA").save(tmp_path / "la.png")
    return tmp_path


def lines(folder, *records, name="train.jsonl"):
    path = folder / name
    path.write_text("\n\n".join(map(json.dumps, records)))
    return path


def test_a_list_of_lines(photos):
    pytest.importorskip("pycocotools")
    mask = masks.picture(photos / "mask.png", (24, 32)).mask
    path = lines(
        photos,
        {"image": "photos/1.png", "expression": "the mug", "box": [1, 2, 11, 12]},
        {"image": "photos/2.png", "expression": "a dog", "mask": "mask.png", "kind": "animal"},
        {"image": "photos/1.png", "expression": "left cup", "bbox": [1, 2, 10, 10]},
        {"image": "photos/2.png", "expression": "it", "segmentation": outlines(mask)},
        {"image": "photos/2.png", "expression": "where", "mask": "la.png"},
        {"image": "photos/2.png", "expression": "nothing told"},
        {"image": "photos/2.png", "expression": "not this", "split": "val"},
    )
    for data in (path, photos):
        read = list(datasets.load("listed", data=data, num_samples=None))
        assert [s.expression for s in read] == [
            "the mug", "left cup", "a dog", "it", "where", "nothing told",
        ]  # fmt: skip
        assert [s.image_id for s in read] == [0, 0, 1, 1, 1, 1]
        assert [s.sample_id for s in read] == list(range(6))
        assert read[0].box == read[1].box == (1, 2, 11, 12) and read[0].mask is None
        assert all(s.box == (6, 4, 20, 9) and np.array_equal(s.mask, mask) for s in read[2:5])
        assert read[2].kind == "animal" and read[5].box is None and read[5].mask is None


def test_where_some_lines_have_no_id_none_counts(photos):
    path = lines(photos, {**MUG, "id": 1}, MUG, {**MUG, "id": 7})
    read = list(datasets.load("listed", data=path, num_samples=None))
    assert [s.sample_id for s in read] == [0, 1, 2]
    path = lines(photos, {**MUG, "id": 1}, {**MUG, "id": 7})
    assert [s.sample_id for s in datasets.load("listed", data=path)] == [1, 7]


def test_a_coco_style_file(photos):
    facts = {
        "images": [
            {"id": 7, "file_name": "2.png", "width": 32, "height": 24},
            {"id": 3, "file_name": "1.png", "width": 32, "height": 24},
        ],
        "annotations": [
            {"id": 11, "image_id": 3, "expression": "the mug", "bbox": [1, 2, 10, 10]},
            {"id": 12, "image_id": 7, "expression": "a dog", "bbox": [0, 0, 32, 24]},
        ],
    }
    path = photos / "mine.json"
    path.write_text(json.dumps(facts))
    options = {"images": photos / "photos", "num_samples": None}
    read = list(datasets.load("listed", data=path, **options))
    assert [(s.image_id, s.sample_id, s.box) for s in read] == [
        (3, 11, (1, 2, 11, 12)), (7, 12, (0, 0, 32, 24)),
    ]  # fmt: skip
    facts["images"][0]["width"] = 33
    path.write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="must be 24 high and 33 wide"):
        small_world.read(datasets.load("listed", data=path, **options))
    del facts["annotations"][0]["image_id"]
    path.write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="something is missing: KeyError 'image_id'"):
        datasets.load("listed", data=path)


MUG = {"image": "photos/1.png", "expression": "the mug"}


def test_boxes_of_several_objects(photos):
    boxes = [[1, 2, 11, 12], [5, 1, 20, 9]]
    path = lines(photos, {**MUG, "boxes": boxes}, {**MUG, "boxes": boxes, "box": [0, 0, 30, 20]})
    around, told = datasets.load("listed", data=path, num_samples=None)
    assert around.boxes == told.boxes == ((1, 2, 11, 12), (5, 1, 20, 9))
    assert around.box == (1, 1, 20, 12) and told.box == (0, 0, 30, 20)
    assert next(datasets.load("listed", data=lines(photos, MUG))).boxes == ()


def test_an_expression_is_read_to_the_letter(photos):
    text = '  The "RED" mug\u2028isn\'t\x85left? '
    path = photos / "train.jsonl"
    path.write_text(json.dumps({**MUG, "expression": text, "kind": None}, ensure_ascii=False))
    [sample] = datasets.load("listed", data=path)
    assert sample.expression == text and sample.kind == ""


def test_one_image_under_two_spellings_is_one(photos):
    path = lines(photos, MUG, {**MUG, "image": "./photos/1.png"}, {**MUG, "image": "photos//1.png"})
    read = list(datasets.load("listed", data=path, num_samples=None))
    assert {s.image_id for s in read} == {0} and len(read) == 3


@pytest.mark.parametrize("side", [24, 32], ids=["landscape", "square"])
def test_boxes_and_masks_are_of_the_image_as_it_is_shown(tmp_path, side):
    """A white square on black, by a camera that was held in any way; with its size and without."""
    upright = np.zeros((side, 32, 3), np.uint8)
    upright[2:8, 20:30] = 255
    picture = Image.fromarray(upright)
    picture.save(tmp_path / "mask.png")
    turn = Image.Transpose
    stored = [
        turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM, turn.TRANSPOSE,
        turn.ROTATE_90, turn.TRANSVERSE, turn.ROTATE_270,
    ]  # fmt: skip
    records = []
    for orientation, how in enumerate(stored, start=2):
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture.transpose(how).save(tmp_path / f"{orientation}.png", exif=exif)
        truth = {"box": [20, 2, 30, 8], "mask": "mask.png", "expression": "it"}
        size = {"height": side, "width": 32} if orientation % 2 else {}
        records.append({"image": f"{orientation}.png", **truth, **size})
    for sample in datasets.load("listed", data=lines(tmp_path, *records), num_samples=None):
        assert np.array_equal(np.asarray(sample.image), upright)
        assert np.array_equal(sample.mask, upright[..., 0] > 0) and sample.box == (20, 2, 30, 8)


def test_a_size_that_only_the_stored_pixels_have_is_of_those(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 24)).save(tmp_path / "1.png", exif=exif)
    for size in ((24, 32), (32, 24)):
        told = {"height": size[0], "width": size[1]}
        path = lines(tmp_path, {"image": "1.png", "expression": "it", **told})
        [sample] = datasets.load("listed", data=path)
        assert sample.image.size == size[::-1]


def test_a_mask_shows_in_which_way_its_box_is_written(photos):
    pytest.importorskip("pycocotools")
    corners, sides = [6, 4, 20, 9], [6, 4, 14, 5]
    for truth in ({"mask": "mask.png"}, {"segmentation": [[6, 4, 20, 4, 20, 9, 6, 9]]}):
        right = [{**MUG, "box": corners, **truth}, {**MUG, "bbox": sides, **truth}]
        right.append({**MUG, "box": [6, 0, 32, 24], **truth})  # of what is seen in part
        for sample in datasets.load("listed", data=lines(photos, *right), num_samples=None):
            assert sample.mask.sum() == 70
        for name, numbers, says in (
            ("box", [6, 4, 14, 5], r"box must be \[x1, y1, x2, y2\], .*; call it bbox"),
            ("bbox", [6, 4, 20, 9], r"bbox must be \[x, y, width, height\], .*; call it box"),
        ):
            path = lines(photos, {**MUG, name: numbers, **truth})
            [sample] = datasets.load("listed", data=path)
            with pytest.raises(ValueError, match=says):
                _ = sample.mask


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_a_mask_is_what_is_not_black_in_it(tmp_path, mode):
    mask = np.zeros((24, 32), np.uint8)
    mask[4:9, 6:20] = 255
    picture = Image.fromarray(mask)
    if mode == "P":  # colour 0 is white, 1 is black
        picture = Image.fromarray((mask == 0).astype(np.uint8), "P")
        picture.putpalette([255, 255, 255, 0, 0, 0])
    elif mode == "I;16":
        picture = Image.fromarray(mask.astype(np.uint16))
    else:
        picture = picture.convert(mode)
    picture.save(tmp_path / "mask.png")
    assert np.array_equal(masks.picture(tmp_path / "mask.png", (24, 32)).mask, mask > 0)
    picture.convert("L").save(tmp_path / "mask.jpg")
    Image.fromarray(np.stack([0 * mask, mask], -1), "LA").save(tmp_path / "clear.png")
    with pytest.raises(ValueError, match="all black and transparent in parts; save its transp"):
        masks.picture(tmp_path / "clear.png", (24, 32))
    with pytest.raises(ValueError, match=r"must be kept without loss, .* is a JPEG; save it as"):
        masks.picture(tmp_path / "mask.jpg", (24, 32))


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([{"image": "photos/1.png"}], "line 1, must have an image and an expression"),
        ([["a"]], "line 1, must have an image and an expression"),
        ([{**MUG, "id": 1}, {**MUG, "id": 1}], "line 3, must have its own id, but 1 is twice"),
        ([{**MUG, "box": [1, 2, 3]}], "line 1, must have four numbers as box or bbox"),
        ([{**MUG, "box": "abcd"}], "line 1, must have four numbers as box or bbox"),
        ([{**MUG, "boxes": [[1, 2, 3, 4], [1, 2]]}], "line 1, must have four numbers .* of boxes"),
        ([{**MUG, "boxes": [[1, 2, 3, 4], [5, 2, 4, 9]]}], r"is it \[x, y, width, height\]"),
        (
            [{**MUG, "segmentation": [[0.1, 0.1, 0.9, 0.1, 0.9, 0.9]]}],
            "its points are no pixels; multiply shares",
        ),
        ([{**MUG, "expression": None}], "line 1, must have a text as expression, but has None"),
        ([{**MUG, "expression": ["a", "b"]}], r"must have a text as expression, but has \['a'"),
        ([{**MUG, "image": 7}], "line 1, must have a text as image, but has 7"),
        ([{**MUG, "box": [5, 5, 40, 9]}], "box must lie in the image of 32 x 24 pixels"),
        ([{**MUG, "box": [5, 9, 9, 5]}], "box must have x1 < x2 and y1 < y2"),
        ([{**MUG, "box": [0.1, 0.2, 0.9, 1.0]}], "must be in pixels .* multiply them"),
        ([{**MUG, "expression": " "}], "expression must have words"),
        ([{**MUG, "image": "photos/9.png"}], "image must be a file, but there is none"),
        ([{**MUG, "mask": "photos/1.jpg"}], "image must be a file, but there is none"),
        ([{**MUG, "split": "val"}], "split 'train' must have lines"),
        (
            [{**MUG, "image_id": 4}, {**MUG, "image": "photos/2.png", "image_id": 4}],
            "must give every image an image_id of its own",
        ),
    ],
)
def test_bad_lines(photos, records, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        small_world.read(datasets.load("listed", data=lines(photos, *records)))


def test_a_list_that_is_none(photos):
    with pytest.raises(FileNotFoundError, match=r"split 'val' must be there, .*val\.jsonl"):
        datasets.load("listed", data=photos, split="val")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl; a line is"):
        datasets.load("listed", data=photos / "nowhere.jsonl")
    (photos / "train.jsonl").write_text('{"image": 1}\n{"image')
    with pytest.raises(ValueError, match=r"train\.jsonl, line 2, must be JSON"):
        datasets.load("listed", data=photos)
    (photos / "mine.json").write_text("[1, 2")
    with pytest.raises(ValueError, match=r"mine\.json must be JSON, but is not"):
        datasets.load("listed", data=photos / "mine.json")
