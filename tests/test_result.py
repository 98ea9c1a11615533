"""A grounding as a picture, and in COCO's and supervision's formats."""

import dataclasses
import json
from io import BytesIO

import numpy as np
import pytest
import small_world
import torch
from fastground import figures
from fastground.grounder import Grounder
from PIL import Image


@pytest.fixture(scope="module")
def grounding():
    grounder = Grounder(small_world.lvlm(), small_world.ranking())
    return grounder(small_world.samples()[0].image, "the red mug")


@pytest.fixture
def nothing(grounding):
    return dataclasses.replace(
        grounding, found=False, box=torch.zeros(4), mask=torch.zeros_like(grounding.mask), mass=0.0
    )


def test_a_line_says_what_was_found(grounding, nothing):
    said = repr(grounding)
    assert said.startswith("Grounding('the red mug': box ") and len(said) < 200
    assert f"score {grounding.score:.2f}; L" in said and "x 24 pixels" in said
    assert "'the red mug': nothing found; L" in repr(nothing)
    assert "2 others" in repr(dataclasses.replace(grounding, others=(grounding, grounding)))
    again = dataclasses.replace(grounding)
    assert grounding in {grounding} and again not in [grounding]


def test_rle_is_the_mask(grounding, nothing):
    masks = pytest.importorskip("pycocotools.mask")
    for one in (grounding, nothing):
        rle = json.loads(json.dumps(one.to_rle()))
        assert np.array_equal(masks.decode(rle), one.mask.numpy())
    assert grounding.mask.any()


def test_coco_reads_the_results(grounding, tmp_path):
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO

    x1, y1, x2, y2 = grounding.box.tolist()
    entry = grounding.to_coco(image_id=7, category_id=3)
    assert entry["bbox"] == [x1, y1, x2 - x1, y2 - y1]
    assert entry["area"] == int(grounding.mask.sum()) and entry["caption"] == "the red mug"
    assert entry["score"] == grounding.mass and 0 < entry["score"] <= 1
    truth = COCO()
    truth.dataset = {
        "info": {}, "annotations": [], "images": [{"id": 7, "height": 18, "width": 24}],
        "categories": [{"id": 3, "name": "object"}],
    }  # fmt: skip
    truth.createIndex()
    (tmp_path / "results.json").write_text(json.dumps([entry]))
    read = truth.loadRes(str(tmp_path / "results.json"))
    (annotation,) = read.loadAnns(read.getAnnIds(imgIds=[7]))
    assert np.array_equal(read.annToMask(annotation), grounding.mask.numpy())


def test_supervision_takes_the_detections(grounding, nothing):
    supervision = pytest.importorskip("supervision")
    found = grounding.to_supervision()
    assert np.array_equal(found.xyxy, grounding.box.numpy()[None])
    assert np.array_equal(found.mask, grounding.mask.numpy()[None])
    assert found.confidence.tolist() == [pytest.approx(grounding.mass)]
    assert found["class_name"].tolist() == ["the red mug"]
    assert len(nothing.to_supervision()) == 0
    both = supervision.Detections.merge([found, nothing.to_supervision(), found])
    assert len(both) == 2 and both.mask.shape == (2, 18, 24)


@pytest.mark.parametrize(("name", "call"), [
    ("pycocotools.mask", "to_rle"), ("pycocotools.mask", "to_coco"),
    ("supervision", "to_supervision"),
])  # fmt: skip
def test_a_library_that_is_not_installed(grounding, monkeypatch, name, call):
    import sys

    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ModuleNotFoundError, match=r"must be installed .* pip install 'fastground\["
    ):
        getattr(grounding, call)()


@pytest.mark.parametrize("ending", figures.PICTURES)
def test_a_grounding_is_written_as_a_picture(grounding, tmp_path, ending):
    path = tmp_path / "deep" / f"found{ending}"
    grounding.save(path)
    assert path.stat().st_size > 1000
    if ending in (".png", ".jpg"):
        with Image.open(path) as drawn:
            assert drawn.width > 3 * drawn.height  # a strip of panels
            assert len(drawn.convert("RGB").getcolors(1 << 20)) > 100


def test_a_grounding_is_shown(grounding, monkeypatch):
    shown = []
    monkeypatch.setattr(Image.Image, "show", lambda self, *_: shown.append(self.size))
    grounding.show()
    (size,) = shown
    with Image.open(BytesIO(grounding._repr_png_())) as drawn:
        assert drawn.size == size and drawn.format == "PNG"


def test_what_cannot_be_drawn(grounding, tmp_path):
    with pytest.raises(ValueError, match=r"path must end in one of \.png, .* but got .*found\.txt"):
        grounding.save(tmp_path / "found.txt")
    blind = dataclasses.replace(grounding, image=None)
    for draw in (blind.show, lambda: blind.save(tmp_path / "found.png")):
        with pytest.raises(ValueError, match="grounding must know its image"):
            draw()
    assert blind._repr_png_() is None
