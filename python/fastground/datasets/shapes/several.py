"""Expressions of several objects in the world of shapes: all of a class that a scene holds.

    the red star       where two stars are red: both of them
    the large thing    all that are large

A class is named as one of it would be, since a model of shapes knows no plurals: `WORDS` has none,
and nothing was trained on expressions of more than one object. For scoring alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastground.datasets.shapes import PER_IMAGE, descriptions, mask_box, noun, render, scene
from fastground.types import Sample


def several(split: str, num_samples: int, seed: int) -> Iterator[Sample]:
    """Samples that mean two objects or more, up to seven to an image.

    Args:
        split, num_samples, seed: as in `shapes`; scenes without two of a class are passed by.

    Yields:
        Samples with boxes of each object, the box around them, their masks' union, and the kind
        "plural, two" or "plural, more".
    """
    from PIL import Image

    made = index = 0
    while made < num_samples:
        this, random = scene(split, seed, index)
        classes = [(words, who) for words, who in descriptions(this.things).items()
                   if any(words) and len(who) > 1]  # fmt: skip
        if classes:
            pixels, masks = render(this)
            image = Image.fromarray(pixels)
        for i in random.permutation(len(classes))[: min(PER_IMAGE, num_samples - made)]:
            words, who = classes[i]
            whole = np.any(masks[who], axis=0)
            yield Sample(
                image=image,
                expression=f"the {noun(words)}",
                box=mask_box(whole),
                mask=whole,
                image_id=index,
                sample_id=made,
                kind=f"plural, {'two' if len(who) == 2 else 'more'}",
                boxes=tuple(mask_box(masks[one]) for one in who),
            )
            made += 1
        index += 1
