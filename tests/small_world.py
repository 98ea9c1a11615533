"""Eleven samples on four images, a random LLaVA that reads them, and its head table."""

from dataclasses import replace
from functools import cache

import numpy as np
from fastground import models
from fastground.discovery import collect
from fastground.ranking import rank_table
from fastground.types import Recipe, Sample
from PIL import Image
from random_llava import random_llava

RECIPE = Recipe(skip_layers=1, top_n=3, k=2, kernel_size=3, elbow=0.2)


@cache
def lvlm():
    model, processor = random_llava(seed=1, grid=6)
    return models.wrap(model, processor, checkpoint="random")


@cache
def samples():
    random = np.random.default_rng(0)
    expressions = [
        "the red mug",
        "a small blue dog on the left",
        "what is x",
        "the dog on the mug.",
    ]
    out = []
    for image_id, count in enumerate([3, 4, 1, 3]):
        size = (18 + 6 * image_id, 24)
        image = Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8))
        for i in range(count):
            mask = np.zeros(size, dtype=bool)
            y, x = random.integers(0, 12, 2)
            mask[y : y + 9, x : x + 9] = True
            rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
            box = (columns[0], rows[0], columns[-1] + 1.0, rows[-1] + 1.0)
            out.append(
                Sample(
                    image, expressions[i], tuple(map(float, box)), mask, image_id, len(out),
                    "location" if i == 1 else "attribute", ("red", "mug"),
                )
            )  # fmt: skip
    return tuple(out)


def in_files(folder):
    """The samples with their images in files; that of sample 7 is cut off."""
    found = []
    for sample in samples():
        path = folder / f"{sample.image_id}.{'jpg' if sample.image_id == 2 else 'png'}"
        sample.image.save(path)
        found.append(replace(sample, image=str(path)))
    (folder / "2.jpg").write_bytes((folder / "2.jpg").read_bytes()[:300])
    return found


@cache
def table():
    return collect(lvlm(), samples(), recipe=RECIPE, dataset="small", split="train")


@cache
def ranking():
    return rank_table(table(), trials=3)


def read(samples):
    """All that the samples hold, asked for: images opened, masks drawn."""
    return [(s.image, s.box, s.mask, s.ignore) for s in samples]
