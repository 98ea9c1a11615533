"""Boxes that models write, said by hand in each family's way, and read back by fastground.

A box of known pixels is written as the family's authors document it, for an image of random shape,
and put into the mouth of a tiny model of the true class.
"""

import functools
import sys
from pathlib import Path
from random import Random

import by_hand
import fastground as fg
import numpy as np
import pytest
import test_method as whole
from fastground import models, textboxes
from PIL import Image
from random_llava import random_llava

sys.path.append(str(Path(__file__).parent / "adapters"))

from families import all_families

TINY = {family.name: family for family in all_families()}
QWEN = {"factor": 8, "least": 4 * 8 * 8, "most": 64 * 8 * 8}  # as tiny_qwen_vl.py has its images
NAMED = {"other": "gemma3"}
RECIPE = fg.Recipe(k=2, top_n=4, skip_layers=1)


@functools.cache
def lvlm(name):
    name = NAMED.get(name, name)
    made = random_llava(3, grid=6) if name == "llava" else TINY[name].build(0)
    return models.wrap(*made, checkpoint=name)


def box_in(random, image):
    x, y = (sorted(random.sample(range(side + 1), 2)) for side in image)
    return x[0], y[0], x[1], y[1]


@pytest.mark.parametrize("family", by_hand.written.FAMILIES)
def test_a_written_box_comes_back_to_its_pixels(family, monkeypatch):
    random = Random(family)
    monkeypatch.setattr(textboxes, "can_write", lambda _: True)
    monkeypatch.setattr(lvlm(family), "_know", lambda *_: None)  # its tokenizer knows few words
    for _ in range(12):
        size = tuple(random.randint(20, 160) for _ in range(2))
        boxes = [box_in(random, size) for _ in range(3)]
        told = [by_hand.written.written(family, b, size, random, **QWEN) for b in boxes]
        monkeypatch.setattr(
            textboxes, "said", lambda *_, t=told, **__: [*(t for t, _ in t), "none"]
        )
        image = Image.new("RGB", size, "red")
        found = textboxes.written_boxes(lvlm(family), image, ["the mug"] * 4)["text_boxes"]
        for box, (text, step), ours in zip(boxes, told, found, strict=False):
            near = np.tile(step, 2) * 1.01
            assert (np.abs(ours - box) <= near).all(), (size, box, text, ours)
        assert np.isnan(found[3]).all()


def test_written_boxes_scored(monkeypatch):
    """Beside the truth: what holds no box is a miss; intervals from every draw of the images."""
    family, random, some = "llava", Random(1), whole.samples("llava")
    known = whole.lvlm(family)
    ranking = fg.discover(known.model, known.processor, some, recipe=RECIPE, trials=1)
    monkeypatch.setattr(textboxes, "can_write", lambda _: True)
    monkeypatch.setattr(known, "_know", lambda *_: None)  # its tokenizer knows few words
    told = {}
    for sample in some:
        left, top, right, bottom = sample.box or (0, 0, 9, 9)
        box = left + random.choice([0, 4]), top, right, bottom + random.choice([0, 4])
        told[sample.sample_id] = by_hand.written.written(family, box, sample.image.size, random)[0]
    told[2], said = "I see no such thing.", iter(told.values())
    monkeypatch.setattr(textboxes, "said", lambda _, __, p, **___: [next(said) for _ in p])
    found = fg.evaluate(fg.Grounder(known, ranking), some, baseline="text-box").text_boxes
    rows = [
        (s, by_hand.written.read_shares(told[s.sample_id], s.image.size)) for s in some if s.box
    ]
    hits = [box is not None and by_hand.scores.iou(box, s.box) >= 0.5 for s, box in rows]
    assert 0 < sum(hits) < len(hits) and found.accuracy == pytest.approx(np.mean(hits))
    assert found.parsed == pytest.approx(1 - 1 / len(some))
    images = [s.image_id for s, _ in rows]
    draws = by_hand.scores.every_draw(hits, np.ones(len(hits)), images)
    for least, most in by_hand.scores.outside(found.interval, draws):
        assert least <= 0.05 and most >= 0.005
