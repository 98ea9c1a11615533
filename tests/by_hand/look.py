"""One expression -> maps, by a forward of its own; and where their cells lie in the image.

Families: "llava" pads an image to a square, "qwen" resizes it to whole cells, "next" squeezes it to
a square and sees it once more in tiles.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image


class Place(NamedTuple):
    """Where the cells of a map lie in the image, in pixels."""

    size: tuple[int, int]  # (height, width)
    cell: tuple[float, float]  # (x, y)
    origin: tuple[float, float]  # (x, y) of the grid's corner


def inside(place, grid):
    """(grid_h, grid_w) the cells that are no padding: their centre is not outside the image."""
    (height, width), (cell_x, cell_y), (left, top) = place
    y = np.round(top + cell_y * (np.arange(grid[0]) + 0.5), 6)
    x = np.round(left + cell_x * (np.arange(grid[1]) + 0.5), 6)
    return np.outer((y >= 0) & (y <= height), (x >= 0) & (x <= width))


def on_grid(place):
    """Where the centres of the image's rows and columns lie, in cells."""
    (height, width), (cell_x, cell_y), (left, top) = place
    return (np.arange(height) + 0.5 - top) / cell_y, (np.arange(width) + 0.5 - left) / cell_x


class View(NamedTuple):
    """What the asking token sees of an image."""

    maps: np.ndarray
    sums: np.ndarray  # (layers, heads): its attention on all of the image's tokens
    place: Place


def squeezed(image, grid):
    (width, height), (rows, columns) = image.size, grid
    return Place((height, width), (width / columns, height / rows), (0.0, 0.0))


def llava(image, made, count, blocks):
    side, cells = max(image.size), math.isqrt(count)
    left, top = ((side - length) // 2 for length in image.size)
    place = Place(image.size[::-1], (side / cells, side / cells), (-left, -top))
    return (cells, cells), range(count), place


def qwen(image, made, count, blocks):
    _, rows, columns = (int(n) for n in made["image_grid_thw"][0])
    grid = rows // 2, columns // 2  # patches are merged two by two
    return grid, range(count), squeezed(image, grid)


def llava_next(image, made, count, blocks, *, base=4, pixels=4):
    """The base's 4 x 4 cells, then lines of the tiles' cells, each with a token more at its end."""
    if blocks == "base":
        return (base, base), range(base * base), squeezed(image, (base, base))
    (width, height), side = image.size, base * pixels

    def fits(canvas):  # the most of the image's own pixels, then the least waste
        factor = min(canvas[0] / height, canvas[1] / width)
        seen = min(int(height * factor) * int(width * factor), height * width)
        return seen, -(canvas[0] * canvas[1] - seen)

    shapes = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
    canvas = max(((side * rows, side * columns) for rows, columns in shapes), key=fits)
    if canvas[1] / width < canvas[0] / height:
        new = min(math.ceil(height * canvas[1] / width), canvas[0]), canvas[1]
    else:
        new = canvas[0], min(math.ceil(width * canvas[0] / height), canvas[1])
    grid, cut = [n // pixels for n in canvas], [0, 0]
    axis = 0 if width / height > grid[1] / grid[0] else 1  # along which the canvas was padded
    long = (height, width)[axis] * grid[1 - axis] / (height, width)[1 - axis]
    cut[axis] = (grid[axis] - int(round(long, 7))) // 2
    grid[axis] -= 2 * cut[axis]
    scale = width / new[1], height / new[0]
    pad = [(canvas[1] - new[1]) // 2, (canvas[0] - new[0]) // 2]
    origin = tuple((cut[1 - i] * pixels - pad[i]) * scale[i] for i in (0, 1))
    place = Place((height, width), (pixels * scale[0], pixels * scale[1]), origin)
    picks = [base * base + i * (grid[1] + 1) + j for i in range(grid[0]) for j in range(grid[1])]
    return tuple(grid), picks, place


FAMILIES = {"llava": llava, "qwen2_5_vl": qwen, "llava_next": llava_next}


def prompt_of(processor, mark, text, template):
    if template == "plain":
        return f"{mark}\n{text}"
    content = [{"type": "image"}, {"type": "text", "text": text}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )


@torch.no_grad()
def look(model, processor, family, image, expression, recipe):
    """The View of one expression, by a forward of its own that keeps all attention.

    A phrase is asked in its place: the model reads its sentence, and the phrase's tokens ask.
    """
    whole = getattr(expression, "sentence", expression)
    text, blank = whole.strip(), len(whole) - len(whole.lstrip())
    if recipe.ensure_period and not text.endswith("."):
        text += "."
    mark = processor.image_token
    if family == "qwen2_5_vl":
        mark = f"<|vision_start|>{mark}<|vision_end|>"
    prompt = prompt_of(processor, mark, text, recipe.template)
    inputs = dict(processor(images=[image], text=[prompt], return_tensors="pt"))
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    words = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = inputs["input_ids"][0].tolist()
    (start,) = (i for i in range(len(ids)) if ids[i : i + len(words)] == words)
    asking = range(start, start + len(words))
    if whole is not expression:
        first, last = expression.start - blank, expression.end - blank
        ends = processor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        asking = [
            start + i for i, (a, b) in enumerate(ends["offset_mapping"]) if a < last and first < b
        ]
    rows = {
        "last_expression": asking[-1:],
        "last_prompt": [len(ids) - 1],
        "phrase_mean": asking,
        "first_generated": [len(ids)],
    }[recipe.query]
    if recipe.query == "first_generated":
        said = model(**inputs).logits[0, -1].argmax()
        for name, new in {"input_ids": said, "attention_mask": 1, "mm_token_type_ids": 0}.items():
            if name in inputs:
                longer = torch.nn.functional.pad(inputs[name], (0, 1))
                longer[0, -1] = new
                inputs[name] = longer
    attention = model(**inputs, output_attentions=True).attentions
    seen = np.stack([layer[0][:, list(rows)].mean(1).numpy() for layer in attention])
    image_tokens = np.flatnonzero(np.array(ids) == model.config.image_token_id)
    grid, picks, place = FAMILIES[family](image, inputs, len(image_tokens), recipe.blocks)
    maps = seen[..., image_tokens[list(picks)]].reshape(*seen.shape[:2], *grid)
    return View(maps, seen[..., image_tokens].sum(-1), place)


def image_of(seed, size):
    """Noise of (width, height)."""
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(noise)
