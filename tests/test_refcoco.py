"""RefCOCO's own files, written by `shapes export`: every pixel, name and count comes back."""

import dataclasses
import importlib
import json
import pickle
import shutil

import numpy as np
import pytest
import small_world
from fastground import datasets
from fastground.datasets import photos
from fastground.datasets.images import by_image, unopened
from fastground.datasets.shapes.export import export, outlines, python2_pickle
from fastground.datasets.unpickle import load_plain
from PIL import Image

world = importlib.import_module("fastground.datasets.shapes")
refcoco = importlib.import_module("fastground.datasets.refcoco")
IMAGES = 24
REFS = "refs(unc).p"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, sizes) of an export; tests that spoil it copy it first."""
    folder = tmp_path_factory.mktemp("made")
    return folder, export(folder, IMAGES, 7)


@pytest.fixture
def data(made, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(made[0], tmp_path / "data")


def rewrite(data, change, file="refcoco/instances.json"):
    """A JSON file of the copy, changed in place."""
    path = data / file
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))


def rewrite_refs(data, change):
    path = data / "refcoco" / REFS
    refs = load_plain(path)
    change(refs)
    path.write_bytes(python2_pickle(refs))


# What comes back.


def test_samples_of_an_image_share_it_and_follow_one_another(made):
    read = list(datasets.refcoco(made[0], "train", masks=False))
    ids = [s.image_id for s in read]
    runs = [i for k, i in enumerate(ids) if not k or ids[k - 1] != i]
    assert len(runs) == len(set(ids)) == made[1]["train"][0]
    assert len({id(s.image) for s in read}) == len(runs)
    assert len({s.sample_id for s in read}) == len(read)
    assert all(s.mask is None and s.ignore is None for s in read)


def test_sizes_and_sentences(made):
    folder, sizes = made
    assert sum(s[0] for s in sizes.values()) == IMAGES and set(sizes) == set(
        refcoco.SIZES["refcoco", "unc"]
    )
    for split, (images, references, texts) in sizes.items():
        listed = datasets.annotated_images("refcoco", folder, split)
        assert len(listed) == images and sum(len(i.phrases) for i in listed) == texts
        first = datasets.annotated_images("refcoco", folder, split, sentences="first")
        assert sum(len(i.phrases) for i in first) == references < texts
    refs = load_plain(folder / "refcoco" / REFS)
    firsts = {r["sentences"][0]["sent_id"] for r in refs if r["split"] == "train"}
    listed = datasets.annotated_images("refcoco", folder, "train", sentences="first")
    assert {p.sample_id for i in listed for p in i.phrases} == firsts
    every = datasets.refcoco(folder, "train", masks=False)
    assert {s.sample_id for s in every if s.first} == firsts


def test_published_sizes_are_those_of_the_papers():
    """All expressions: the sums over the splits."""
    total = {name: sum(c[2] for c in s.values()) for (name, _), s in refcoco.SIZES.items()}
    assert total == {"refcoco": 142_210, "refcoco+": 141_564, "refcocog": 95_010}


def test_a_part_at_random_is_whole_images(made):
    one = list(datasets.load("refcoco", data=made[0], num_samples=20, seed=1, masks=False))
    two = list(datasets.load("refcoco", data=made[0], num_samples=20, seed=1, masks=False))
    other = list(datasets.load("refcoco", data=made[0], num_samples=20, seed=2, masks=False))
    ids = lambda samples: [s.sample_id for s in samples]  # noqa: E731
    assert len(one) == 20 and ids(one) == ids(two) != ids(other)
    whole = list(datasets.load("refcoco", data=made[0], num_samples=10**6, masks=False))
    assert sorted(ids(whole)) == sorted(ids(datasets.refcoco(made[0], masks=False)))


def test_the_folder_itself_and_a_folder_of_images(made, tmp_path):
    inner = list(datasets.refcoco(made[0] / "refcoco", "val", masks=False))
    assert inner and [s.box for s in inner] == [
        s.box for s in datasets.refcoco(made[0], "val", masks=False)
    ]
    moved = shutil.copytree(made[0] / "train2014", tmp_path / "photos")
    shutil.copytree(made[0] / "refcoco", tmp_path / "refcoco")
    with pytest.raises(FileNotFoundError, match=r"no .*train2014; get COCO's train2014 images"):
        datasets.refcoco(tmp_path, "val")
    assert list(datasets.refcoco(tmp_path, "val", images=moved, masks=False))


def test_listed_images_go_to_workers(made):
    listed = datasets.annotated_images("refcoco", made[0], "val")
    assert len(pickle.dumps(listed)) < 192 * 192 * len(listed)  # no pixels
    back = pickle.loads(pickle.dumps(listed))
    assert [s.expression for i in back for s in i.samples(masks=False)] == [
        s.expression for s in datasets.refcoco(made[0], "val", masks=False)
    ]


def test_images_of_any_evaluation_are_left_out_of_train(data):
    """The same images under other splits in RefCOCO+ and RefCOCOg, as in the true data."""
    train = datasets.annotated_images("refcoco", data, "train")
    away = {train[0].image_id: "testB", train[3].image_id: "val"}
    for variant, name in (("refcoco+", REFS), ("refcocog", "refs(umd).p")):
        (data / variant).mkdir()
        refs = load_plain(data / "refcoco" / REFS)
        for ref in refs:
            ref["split"] = "train"
            if variant == "refcocog":
                ref["split"] = away.get(ref["image_id"], "train")
        (data / variant / name).write_bytes(python2_pickle(refs))
    left = datasets.annotated_images("refcoco", data, "train", exclude_eval_images=True)
    assert {i.image_id for i in train} - {i.image_id for i in left} == set(away)
    shutil.rmtree(data / "refcocog")
    with pytest.raises(FileNotFoundError, match=r"refcocog.refs\(umd\)\.p; get"):
        datasets.annotated_images("refcoco", data, "train", exclude_eval_images=True)
    with pytest.raises(ValueError, match="exclude_eval_images must be False for split 'val'"):
        datasets.annotated_images("refcoco", data, "val", exclude_eval_images=True)


# Bad input.


@pytest.mark.parametrize(
    ("gone", "says"),
    [
        ("refcoco", r"no .*refcoco/refs\(unc\)\.p; get refcoco\.zip.*https://"),
        (f"refcoco/{REFS}", r"no .*refs\(unc\)\.p; get refcoco\.zip"),
        ("refcoco/instances.json", r"annotations must be there, .*instances\.json; get refcoco"),
        ("train2014", r"images must be there.*train2014.*https://cocodataset\.org"),
    ],
)
def test_missing_files_are_named_with_where_to_get_them(data, gone, says):
    path = data / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=says):
        datasets.refcoco(data, "train")


def test_a_missing_image(data):
    path = sorted((data / "train2014").iterdir())[2]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name):
        small_world.read(datasets.refcoco(data, "train", masks=False))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"split": "test"}, r"one of train, val, testA, testB .* got 'test'; .* testA: people"),
        ({"split": "dev"}, "got 'dev'$"),
        ({"sentences": "last"}, "sentences must be all or first, but got 'last'"),
        ({"variant": "refcoco2"}, "dataset must be one of"),
        ({"num_samples": -1}, "num_samples must be an integer >= 0, but got -1"),
        ({"colour": 3}, "must have options .*sentences.* not colour"),
    ],
)
def test_wrong_choices(made, options, says):
    with pytest.raises(ValueError, match=says):
        datasets.refcoco(made[0], **options)


def test_an_unknown_split_of_google_is_told_by_the_file(data):
    shutil.move(data / "refcoco" / REFS, data / "refcoco" / "refs(google).p")
    with pytest.raises(ValueError, match="split must be one of train, val, testA, testB"):
        datasets.refcoco(data, "test", by="google")
    assert len(datasets.annotated_images("refcoco", data, "val", by="google")) > 0


def test_sizes_are_asserted(data):
    (data / "refcoco" / "sizes.json").unlink()
    with pytest.raises(
        ValueError,
        match=r"train must have 16,994 images, 42,404 references and 120,624 .*check_sizes=False",
    ):
        datasets.refcoco(data, "train")
    assert datasets.refcoco(data, "train", check_sizes=False)


def test_own_sizes_are_asserted(data):
    rewrite(data, lambda s: s[REFS].update(val=[1, 2, 3]), "refcoco/sizes.json")
    with pytest.raises(ValueError, match="val must have 1 images, 2 references and 3 expressions"):
        datasets.refcoco(data, "val")
    rewrite(data, lambda s: s[REFS].update(val=3), "refcoco/sizes.json")
    with pytest.raises(ValueError, match=r"sizes\.json must hold the splits of refs\(unc\)\.p"):
        datasets.refcoco(data, "val")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda refs: refs.append(refs[0]), "each reference once, but has two with ref_id 0"),
        (lambda refs: refs[1]["sentences"][0].update(sent_id=0), "of their own, but 0 is twice"),
        (lambda refs: refs[0]["sentences"][0].update(sent="  "), "expression must have words"),
        (lambda refs: refs[0].pop("ann_id"), "something is missing: KeyError 'ann_id'"),
        (lambda refs: refs[0].update(image_id=refs[-1]["image_id"]), "must be about image 1,"),
        (lambda refs: refs[0].update(image_id=10**6), "something is missing: KeyError 1000000"),
    ],
)  # fmt: skip
def test_bad_references(data, change, says):
    rewrite_refs(data, change)
    with pytest.raises(ValueError, match=says):
        small_world.read(datasets.refcoco(data, "train", masks=False, check_sizes=False))


def spoil(key, **values):
    """Change the first that is in use: image 1, or the annotation of reference 0."""

    def change(facts):
        which = 0 if key == "images" else next(
            i for i, a in enumerate(facts[key]) if a["image_id"] == 1
        )  # fmt: skip
        for one in facts[key][which : which + (1 if key == "images" else 6)]:
            one.update(values)

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (spoil("images", height=999), "must be 999 high and 192 wide, .* is 192 high and 192"),
        (spoil("annotations", bbox=[150, 10, 192, 20]), "box must lie in the image of 192 x 192"),
        (spoil("annotations", bbox=[-9, 10, 20, 20]), "box must lie in the image"),
        (spoil("annotations", bbox=[10, 10, 0, 20]), "box must have x1 < x2"),
        (spoil("annotations", bbox=[10, 10, float("nan"), 20]), "box must have x1 < x2"),
        (spoil("annotations", bbox=[10, 10, 20]), r"bbox must be x, y, width, height"),
        (lambda f: f["images"].append(f["images"][0]), "each image once, but has two with id 1"),
        (lambda f: f["annotations"].append(f["annotations"][0]), "each annotation once"),
        (lambda f: f.pop("annotations"), "something is missing: KeyError 'annotations'"),
    ],
)
def test_bad_instances(data, change, says):
    rewrite(data, change)
    with pytest.raises(ValueError, match=says):
        small_world.read(datasets.refcoco(data, "train", masks=False, check_sizes=False))


def test_a_box_may_stick_out_by_its_rounding(data):
    rewrite(data, spoil("annotations", bbox=[-0.6, 0, 193.2, 192.4]))
    box = next(datasets.refcoco(data, "train", masks=False)).box
    assert box == pytest.approx((-0.6, 0, 192.6, 192.4))


@pytest.mark.parametrize(
    ("segmentation", "says"),
    [
        ([[1, 1, 5, 5]], "no polygon of three points"),
        ([[1, 1, 5, 5, 9, 1, 3]], "no polygon of three points"),
        ("abc", "segmentation must be COCO polygons or runs"),
        ({"size": [10, 10], "counts": [100]}, r"its size is \(10, 10\), the image's \(192, 192\)"),
        ({"counts": [100]}, "segmentation must be COCO polygons or runs, but 'size'"),
    ],
)
def test_bad_segmentations(data, segmentation, says):
    pytest.importorskip("pycocotools")
    rewrite(data, spoil("annotations", segmentation=segmentation))
    with pytest.raises(ValueError, match=rf"{says}.*sample \d+, .*000000000001\.jpg"):
        small_world.read(datasets.refcoco(data, "train"))


def test_masks_of_parts_and_of_runs(data):
    runs = pytest.importorskip("pycocotools.mask")
    truth = np.zeros((192, 192), bool)
    truth[10:30, 20:50] = truth[100:120, 5:9] = True
    parts = outlines(truth)
    counts = np.diff(np.flatnonzero(np.diff(np.r_[-1, truth.T.reshape(-1).astype(int), -1])))
    packed = runs.encode(np.asfortranarray(truth.astype(np.uint8)))
    for segmentation in (
        parts,
        {"size": [192, 192], "counts": [int(c) for c in counts]},
        {"size": [192, 192], "counts": packed["counts"].decode()},
    ):
        rewrite(data, spoil("annotations", segmentation=segmentation))
        mask = next(datasets.refcoco(data, "train")).mask
        assert np.array_equal(mask, truth)
    assert len(parts) == 2


def test_without_pycocotools(made, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    with pytest.raises(ValueError, match="pip install pycocotools, or go without: masks=False"):
        small_world.read(datasets.refcoco(made[0], "train"))
    assert next(datasets.refcoco(made[0], "train", masks=False)).mask is None


def test_a_decompression_bomb(data, monkeypatch):
    """Refused by what the file says of itself, before its pixels are decoded."""
    path = data / "train2014" / "COCO_train2014_000000000001.jpg"
    Image.new("1", (15_000, 14_000)).save(path, "png")
    assert path.stat().st_size < 100_000
    decoded = []
    monkeypatch.setattr(Image.Image, "load", lambda self: decoded.append(self))
    with pytest.raises(
        ValueError, match=r"at most 89,478,485 pixels.*000000001\.jpg.* says it has"
    ):
        small_world.read(datasets.refcoco(data, "train", masks=False))
    assert not decoded
    Image.new("1", (10_000, 9_000)).save(path, "png")  # where Pillow only warns
    with pytest.raises(ValueError, match="at most 89,478,485 pixels"):
        small_world.read(datasets.refcoco(data, "train", masks=False))


@pytest.mark.parametrize("spoilt", [b"", b"GIF89a", "half"])
def test_a_broken_image(data, spoilt):
    path = data / "train2014" / "COCO_train2014_000000000001.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if spoilt == "half" else spoilt)
    with pytest.raises(ValueError, match=r"Pillow can read whole, but .*000000000001\.jpg"):
        small_world.read(datasets.refcoco(data, "train", masks=False))


def test_bad_images_can_be_left_out(data):
    (data / "train2014" / "COCO_train2014_000000000002.jpg").write_bytes(b"no image")
    (data / "train2014" / "COCO_train2014_000000000005.jpg").unlink()
    bad = []
    read = list(datasets.refcoco(data, "train", masks=False, on_bad=bad.append))
    whole = datasets.annotated_images("refcoco", data, "train")
    assert [type(e) for e in bad] == [ValueError, FileNotFoundError]
    assert {i.image_id for i in whole} - {s.image_id for s in read} == {2, 5}
    assert len(read) == sum(len(i.phrases) for i in whole if i.image_id not in (2, 5))


def test_an_image_is_opened_when_it_is_asked_for_and_once(data, monkeypatch):
    pytest.importorskip("pycocotools")
    opened, real = [], photos.open_image
    monkeypatch.setattr(
        photos, "open_image", lambda *a, **how: opened.append(a[0].name) or real(*a, **how)
    )
    groups = list(by_image(datasets.refcoco(data, "train")))
    assert not opened
    assert "000000000001.jpg" in repr(groups[0][0]) and not opened
    first, second = groups[:2]
    assert all(s.box and s.mask.shape == (192, 192) for s in first) and not opened  # size is told
    assert len({id(s.image) for s in first}) == 1 and len(opened) == 1
    sent = pickle.loads(pickle.dumps(unopened(first[0])))
    assert sent == unopened(first[0]) and len(pickle.dumps(sent)) < 1000
    other = pickle.loads(pickle.dumps(second[0]))
    assert len(opened) == 1 and np.array_equal(other.mask, second[0].mask)
    copy = dataclasses.replace(first[0], expression="the mug")
    assert copy.image is first[0].image and np.array_equal(copy.mask, first[0].mask)
    assert unopened(copy) is copy.image and "the mug" in repr(copy)
    for path in (data / "train2014").iterdir():
        path.unlink()
    assert first[0].image.getpixel((0, 0))
    with pytest.raises(FileNotFoundError):
        _ = second[0].image


def test_an_image_turned_by_its_camera(data):
    """Annotations on the upright picture are met by turning it; those on the raw one as it is."""
    path = data / "train2014" / "COCO_train2014_000000000001.jpg"
    picture = Image.effect_noise((192, 100), 50).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(path, exif=exif, quality=95)
    for height, width in ((192, 100), (100, 192)):
        rewrite(data, lambda f, h=height, w=width: f["images"][0].update(height=h, width=w))
        image = datasets.annotated_images("refcoco", data, "train")[0]
        one = type(image)(image.source, 1, (), image.size)
        assert one.samples() == []
        from fastground.datasets.photos import open_image

        assert open_image(image.source, image.size).size == (width, height)
