"""Boxes that models write, said by hand in each family's way, and read back by fastground.

A box of known pixels is written as the family's authors document it, for an image of random shape,
and put into the mouth of a tiny model of the true class.
"""

import functools
import sys
from pathlib import Path
from random import Random

import by_hand
import numpy as np
import pytest
from fastground import models, textboxes
from PIL import Image
from random_llava import random_llava

sys.path.append(str(Path(__file__).parent / "adapters"))

from families import all_families

TINY = {family.name: family for family in all_families()}
QWEN = {"factor": 8, "least": 4 * 8 * 8, "most": 64 * 8 * 8}  # as tiny_qwen_vl.py has its images
NAMED = {"other": "gemma3"}


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
