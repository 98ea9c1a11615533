"""A box as each family of models writes it, by its authors' documents.

`image` is (width, height); what is written is rounded as they round it, so that a box read back
lies within `step` pixels (x, y) of the true one.
"""

import math


def padded(image):
    """The side of the square that an image is padded to, and what is left of and above it."""
    side = max(image)
    return side, [(side - length) // 2 for length in image]


def resized(image, factor, least, most):
    """Qwen2-VL's size of an image: whole cells, between so many pixels."""
    sides = [max(round(length / factor), 1) * factor for length in image]
    if math.prod(sides) > most:
        by = math.sqrt(math.prod(image) / most)
        sides = [max(math.floor(length / by / factor), 1) * factor for length in image]
    elif math.prod(sides) < least:
        by = math.sqrt(least / math.prod(image))
        sides = [math.ceil(length * by / factor) * factor for length in image]
    return sides


def in_units(box, sides, scale, digits=0):
    """A box whose corners are shares of these sides, in so many units a side."""
    return [round(scale * value / sides[i % 2], digits) for i, value in enumerate(box)]


def shares(box, image, **_):
    """LLaVA: two or three digits of the padded square."""
    side, (left, top) = padded(image)
    moved = [value + (left, top)[i % 2] for i, value in enumerate(box)]
    return in_units(moved, (side, side), 1, 3), (side / 1000, side / 1000)


def shares_of_all(box, image, **_):
    return in_units(box, image, 1, 3), [length / 1000 for length in image]


def thousandths(box, image, **_):
    return [int(n) for n in in_units(box, image, 1000)], [length / 1000 for length in image]


def pixels(box, image, *, factor, least, most):
    seen = resized(image, factor, least, most)
    numbers = [round(value * seen[i % 2] / image[i % 2]) for i, value in enumerate(box)]
    return numbers, [image[i] / seen[i] for i in (0, 1)]


def locations(box, image, **_):
    """PaliGemma: y before x, 1024 a side, of which the last is 1023."""
    x1, y1, x2, y2 = (min(int(n), 1023) for n in in_units(box, image, 1024))
    return [y1, x1, y2, x2], [length / 512 for length in image]


JSON = '```json\n[\n\t{{"bbox_2d": [{}, {}, {}, {}], "label": "the mug 2"}}\n]\n```'
FAMILIES = {
    "llava": (shares, ["[{}, {}, {}, {}]", "[{},{},{},{}]</s>", "It is at [{}, {}, {}, {}]."]),
    "llava_next": (shares_of_all, ["[{}, {}, {}, {}]"]),
    "llava_onevision": (shares_of_all, ["[{}, {}, {}, {}]"]),
    "qwen2_vl": (thousandths, [
        "<|object_ref_start|>the mug<|object_ref_end|><|box_start|>({},{}),({},{})<|box_end|>",
        "({}, {}), ({}, {})", "<|box_start|>({},{}),({},{})<|box_end|><|im_end|>",
    ]),
    "qwen2_5_vl": (pixels, [JSON, '{{"bbox_2d": [{}, {}, {}, {}]}}', "[[{}, {}, {}, {}]]"]),
    "qwen3_vl": (thousandths, [JSON, '[{{"bbox_2d": [{}, {}, {}, {}], "label": "x"}}]']),
    "glm4v": (thousandths, [
        "<|begin_of_box|>[[{}, {}, {}, {}]]<|end_of_box|>", "<answer>[{},{},{},{}]</answer>",
    ]),
    "internvl": (thousandths, [
        "<ref>the mug</ref><box>[[{}, {}, {}, {}]]</box>", "[[{}, {}, {}, {}]]",
    ]),
    "paligemma": (locations, [
        "<loc{:04}><loc{:04}><loc{:04}><loc{:04}> the mug",
        "<loc{:04}><loc{:04}><loc{:04}><loc{:04}> mug ; <loc0001><loc0002><loc0500><loc0600> dog",
    ]),
    "other": (shares_of_all, ["The box is [{}, {}, {}, {}]", "{}, {}, {}, {}"]),
}  # fmt: skip


def written(family, box, image, random, **size):
    """(text, step): one of the family's ways to write a box, in pixels, of an image."""
    numbers, step = FAMILIES[family][0](box, image, **size)
    return random.choice(FAMILIES[family][1]).format(*numbers), step


def read_shares(text, image):
    """The box in pixels of [x1, y1, x2, y2] in LLaVA's shares, cut to the image; None without."""
    numbers = text.partition("[")[2].partition("]")[0].split(",")
    if len(numbers) != 4:
        return None
    side, before = padded(image)
    places = [side * float(n) - before[i % 2] for i, n in enumerate(numbers)]
    return [min(max(place, 0), image[i % 2]) for i, place in enumerate(places)]
