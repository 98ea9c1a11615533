"""Copies of RefCOCO in Parquet and Arrow: what they hold, how they are read, what they refuse."""

import importlib
import itertools
import json

import pytest
from fastground import datasets
from fastground.datasets import photos
from fastground.datasets.shapes.export import export
from fastground.datasets.unpickle import load_plain

REFS = "refs(unc).p"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, references, annotations and images by id) of an export."""
    folder = tmp_path_factory.mktemp("made")
    export(folder, 20, 5)
    facts = json.loads((folder / "refcoco" / "instances.json").read_text())
    tables = [{one["id"]: one for one in facts[key]} for key in ("annotations", "images")]
    return folder, load_plain(folder / "refcoco" / REFS), *tables


def with_paths(made, split):
    """Rows as jxu124's copies have them."""
    _, refs, annotations, images = made
    for ref in refs:
        if ref["split"] == split:
            annotation, image = annotations[ref["ann_id"]], images[ref["image_id"]]
            x, y, w, h = annotation["bbox"]
            yield {
                **{k: ref[k] for k in ("sent_ids", "file_name", "ann_id", "ref_id", "image_id")},
                "split": split,
                "sentences": ref["sentences"],
                "raw_anns": json.dumps(annotation),
                "raw_image_info": json.dumps(image),
                "image_path": f"coco/train2014/{image['file_name']}",
                "bbox": [x, y, x + w, y + h],
                "captions": [s["sent"] for s in ref["sentences"]],
            }


def with_images(made, split):
    """Rows as lmms-lab's copies have them."""
    folder, refs, annotations, images = made
    for number, ref in enumerate(refs):
        if ref["split"] == split:
            name = images[ref["image_id"]]["file_name"]
            yield {
                "question_id": str(number),
                "image": {"bytes": (folder / "train2014" / name).read_bytes(), "path": name},
                "question": "Please describe the region.",
                "answer": [s["sent"] for s in ref["sentences"]],
                "segmentation": annotations[ref["ann_id"]]["segmentation"][0],
                "bbox": annotations[ref["ann_id"]]["bbox"],
                "iscrowd": 0,
                "file_name": ref["file_name"],
            }


def write(path, rows, arrow=False):
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(list(rows))
    if arrow:
        with (
            pyarrow.OSFile(str(path), "wb") as file,
            pyarrow.ipc.new_stream(file, table.schema) as out,
        ):
            for batch in table.to_batches(max_chunksize=7):
                out.write_batch(batch)
    else:
        parquet.write_table(table, path, row_group_size=7)


def told(samples):
    """What two copies of a sample share: words, box, mask and pixels."""
    return sorted(
        (s.image_id, s.expression, s.box, s.mask.tobytes(), s.image.tobytes()) for s in samples
    )


@pytest.mark.parametrize("arrow", [False, True])
def test_a_copy_with_paths_is_the_original(made, tmp_path, arrow):
    pytest.importorskip("pyarrow")
    pytest.importorskip("pycocotools")
    for split, called in (
        ("train", "train"),
        ("val", "validation"),
        ("testA", "test"),
        ("testB", "testB"),
    ):
        name = (
            f"{called}/data-00000-of-00001.arrow"
            if arrow
            else f"data/{called}-00000-of-00001-ab12.parquet"
        )
        write(tmp_path / name, with_paths(made, split), arrow)
    for split in ("train", "val", "testA", "testB"):
        copy = datasets.refcoco(tmp_path, split, images=made[0] / "train2014", check_sizes=False)
        original = list(datasets.refcoco(made[0], split))
        assert told(copy) == told(original) and original
    with pytest.raises(ValueError, match=r"got 'test'; what some copies call test is testA"):
        datasets.refcoco(tmp_path, "test", images=made[0] / "train2014")
    with pytest.raises(FileNotFoundError, match="get COCO's train2014 images"):
        datasets.refcoco(tmp_path, "val")
    with pytest.raises(ValueError, match="val must have 1,500 images, 3,811 references"):
        datasets.refcoco(tmp_path, "val", images=made[0] / "train2014")
    with pytest.raises(ValueError, match="exclude_eval_images must be False for Parquet"):
        datasets.refcoco(
            tmp_path, images=made[0] / "train2014", check_sizes=False, exclude_eval_images=True
        )


@pytest.mark.parametrize("arrow", [False, True])
def test_a_copy_with_images_is_the_original(made, tmp_path, arrow):
    pytest.importorskip("pyarrow")
    pytest.importorskip("pycocotools")
    end = "arrow" if arrow else "parquet"
    write(tmp_path / "data" / f"testA-00000-of-00001.{end}", with_images(made, "testA"), arrow)
    write(tmp_path / "data" / f"val-00000-of-00001.{end}", with_images(made, "train"), arrow)
    for split, true in (("testA", "testA"), ("val", "train")):
        copy = list(datasets.refcoco(tmp_path, split, check_sizes=False))
        assert told(copy) == told(datasets.refcoco(made[0], true))
        ids = [s.image_id for s in copy]
        assert len({s.sample_id for s in copy}) == len(copy)
        assert sum(a != b for a, b in itertools.pairwise(ids)) == len(set(ids)) - 1
    with pytest.raises(ValueError, match="no train: take jxu124's or the original files"):
        datasets.refcoco(tmp_path, "train")


@pytest.mark.parametrize("arrow", [False, True])
def test_images_at_random_are_read_a_group_of_rows_at_a_time(made, tmp_path, arrow):
    pytest.importorskip("pyarrow")
    pytest.importorskip("pycocotools")
    end = "arrow" if arrow else "parquet"
    rows = list(with_images(made, "train"))
    half = len(rows) // 2
    write(tmp_path / "data" / f"val-00000-of-00002.{end}", rows[:half], arrow)
    write(tmp_path / "data" / f"val-00001-of-00002.{end}", rows[half:], arrow)
    groups = -(-half // 7) - (-(len(rows) - half) // 7)
    for count, seed in ((len(rows), 0), (len(rows) // 2, 1), (5, 2)):
        photos._images.cache_clear()
        options = {"num_samples": count, "seed": seed, "check_sizes": False}
        copy = list(datasets.refcoco(tmp_path, "val", **options))
        for sample in copy:
            assert sample.image.size == sample.mask.shape[::-1]
        read = photos._images.cache_info()
        drawn = len({s.image_id for s in copy})
        assert len(copy) == count and read.misses <= min(groups, drawn) and read.currsize == 1
        original = datasets.refcoco(made[0], "train", num_samples=count, seed=seed)
        assert {s.image_id for s in copy} == {s.image_id for s in original}
    assert drawn < len(rows), "all would be in the files' order in any case"


def test_bad_images_inside_a_copy_are_made_up_for(made, tmp_path):
    pytest.importorskip("pyarrow")
    pytest.importorskip("pycocotools")
    rows = list(with_images(made, "train"))
    spoilt = [row | {"image": {"bytes": b"none", "path": None}} if n % 3 == 0 else row
              for n, row in enumerate(rows)]  # fmt: skip
    write(tmp_path / "data" / "val-00000-of-00001.parquet", spoilt)
    bad = []
    count = len(rows) // 2
    options = {"num_samples": count, "check_sizes": False, "on_bad": bad.append}
    samples = list(datasets.refcoco(tmp_path, "val", **options))
    assert bad and len(samples) == count
    ids = [s.image_id for s in samples]
    assert sum(a != b for a, b in itertools.pairwise(ids)) == len(set(ids)) - 1


def test_the_test_of_a_copy_with_images_is_not_test_a(made, tmp_path):
    pytest.importorskip("pyarrow")
    write(tmp_path / "data" / "test-00000-of-00001.parquet", with_images(made, "testA"))
    with pytest.raises(ValueError, match="only test, which in lmms-lab's RefCOCO is Google's"):
        datasets.refcoco(tmp_path, "testA", check_sizes=False)


def test_a_mixed_val_is_named(made):
    """As many references more as Google's val has: said in the message."""
    module = importlib.import_module("fastground.datasets.refcoco")
    references = [
        module.Reference(i, i % 1500, ((i, "x"),), (0, 0, 1, 1), None, made[0], None)
        for i in range(8811)
    ]
    with pytest.raises(ValueError, match="mixed with the 5,000 references of Google's val"):
        module._check_sizes(references, (1500, 3811, 10834), "refcoco val", "val.parquet")


def test_a_copy_of_another_form(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "train-0.parquet"
    write(path, [{"picture": "1.jpg", "text": "the mug"}])
    with pytest.raises(ValueError, match="in the layout of jxu124 or lmms-lab"):
        datasets.refcoco(tmp_path, "train", check_sizes=False)
    path.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"train-0\.parquet must be a Parquet or Arrow file"):
        datasets.refcoco(tmp_path, "train", check_sizes=False)


def test_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "train-0.parquet").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ValueError, match="pip install pyarrow"):
        datasets.refcoco(tmp_path, "train")


# ReasonSeg.
