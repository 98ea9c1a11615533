"""Where the image is in the input of a bare model: its configuration and its input say it, or no.

For a model without its processor. Only what is unmistakable is answered: one image a sequence, in
one piece of one token a cell, whose number is that of the cells; adapters (`fastground.models`)
know the rest.

    input_ids      1  9  9  9  9  9  9  5  7        image_token_id 9
                      |--------------|
    pixel_values   (1, 3, 56, 84), patches of 28  ->  a grid of 2 x 3 cells
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from fastground.types import ImageLayout

_WAY_OUT = (
    "pass layouts=, from fastground.models.wrap(model, processor).encode(image, [text]).layout"
)

_WITHOUT_GRID = ("perceiver_config", "qformer_config", "projector_patch_to_query_dict")
"""Parts that make image tokens of learned queries, which have no place in the image."""


def cache_of(given: dict[str, Any]) -> Any:
    """The keys of earlier tokens, by either of their names: from 5.24 on transformers' is cache."""
    cache = given.get("cache")
    return given.get("past_key_values") if cache is None else cache


def find_image(config: Any, given: dict[str, Any], batch: int) -> list[ImageLayout]:
    """One layout a sequence, from image token ids, pixel values and the configuration.

    Args:
        config: of the whole model.
        given: what its forward was called with, by name.
        batch: number of sequences.

    Raises:
        ValueError: the image's tokens or its grid are not plain from these.
    """
    ids, pixels, past = given.get("input_ids"), given.get("pixel_values"), cache_of(given)
    image_id = getattr(config, "image_token_id", None)
    if past is not None and past.get_seq_length():
        raise ValueError(f"layouts must be given where keys are cached already; {_WAY_OUT}")
    encoded = given.get("mm_encoder_outputs") is not None
    if ids is None or image_id is None or (pixels is None and not encoded):
        raise ValueError(
            "layouts must be given where the model's input does not hold input_ids with image "
            f"tokens and pixel_values; {_WAY_OUT}"
        )
    runs = [tuple(row.nonzero()[:, 0].tolist()) for row in (ids == image_id).cpu()]
    without = [name for name in _WITHOUT_GRID if getattr(config, name, None) is not None]
    grids = []
    if not without:
        grids = [_trained_grid(config)] * batch if pixels is None else _grids(config, given)
    if len(grids) != batch:
        found = f"{len(grids)} images in {batch} sequences" if grids else "no grid"
        raise ValueError(
            "layouts must be given where the input and the configuration do not say one image and "
            f"its grid a sequence: they say {found}; {_WAY_OUT}"
        )
    first = int(getattr(config, "vision_feature_select_strategy", None) == "full")
    layouts = []
    for run, grid in zip(runs, grids, strict=True):
        spare = len(run) - grid[0] * grid[1]
        if not run or spare not in {0, first} or run[-1] - run[0] + 1 != len(run):
            raise ValueError(
                "layouts must be given where a sequence does not hold one image in one piece, a "
                f"token a cell: {len(run)} image tokens for {grid[0]} x {grid[1]} cells of "
                f"the pixel values; {_WAY_OUT}"
            )
        layouts.append(ImageLayout(grid, run[spare:], all_tokens=run if spare else None))
    return layouts


def moved(
    layouts: Sequence[ImageLayout], config: Any, given: dict[str, Any], cached: int
) -> list[ImageLayout]:
    """Layouts made with other words before the image, each moved to where the input has it.

        encode       1  9  9  9  9  5            tokens 1 to 4
        the input    1  7  6  9  9  9  9  5      moved by 2

    Args:
        layouts: one a sequence.
        config: of the whole model.
        given: what its forward was called with, by name; where that names no image token, as with
            inputs_embeds, layouts stay.
        cached: tokens before the input; a layout that begins among them stays.

    Raises:
        ValueError: an image of other tokens than the input has.
    """
    ids, image_id = given.get("input_ids"), getattr(config, "image_token_id", None)
    if ids is None or image_id is None:
        return list(layouts)
    rows = [(row.nonzero()[:, 0] + cached).tolist() for row in (ids == image_id).cpu()]
    input = range(cached, cached + ids.shape[1])
    return [_moved(layout, row, input) for layout, row in zip(layouts, rows, strict=True)]


def _moved(layout: ImageLayout, places: list[int], input: range) -> ImageLayout:
    cells, there = set(layout.tokens), set(places)
    every = cells | set(layout.all_tokens or ())
    if min(every) < input.start:  # what is cached may be another image, or a part of this one
        return layout
    shifts = {
        places[0] - min(every), places[0] - min(cells), places[-1] - max(every)
    } if there else set()  # fmt: skip
    for by in (0, *sorted(shifts)):
        if {n + by for n in cells} <= there <= {n + by for n in every}:
            whole = layout.all_tokens and tuple(n + by for n in layout.all_tokens)
            tokens = tuple(n + by for n in layout.tokens)
            return replace(layout, tokens=tokens, all_tokens=whole) if by else layout
    # A part of what is there, as the caller says; or no place of the sequence, as it will be told.
    if cells <= there or not there or not (every <= set(input)):
        return layout
    raise ValueError(
        f"layouts must be of the input's image, but one names {len(every)} tokens from "
        f"{min(every)} on, and the input has {len(places)} image tokens from {places[0]} on; "
        f"{_WAY_OUT}, of the same image"
    )


def _grids(config: Any, given: dict[str, Any]) -> list[tuple[int, int]]:
    """(grid_h, grid_w) of each image; none where they are not plain."""
    vision = getattr(config, "vision_config", None)
    sizes, pixels = given.get("image_grid_thw"), given["pixel_values"]
    if sizes is not None:  # patches in time, height and width, merged in squares
        merge = getattr(vision, "spatial_merge_size", None)
        if not isinstance(merge, int) or any(time != 1 for time in sizes[:, 0].tolist()):
            return []
        return [(h // merge, w // merge) for h, w in sizes[:, 1:].tolist()]
    if pixels.ndim == 5 and pixels.shape[1] == 1:  # images of one tile
        pixels = pixels[:, 0]
    patch = getattr(vision, "patch_size", None)
    patch = patch[0] if isinstance(patch, (list, tuple)) and len(set(patch)) == 1 else patch
    if pixels.ndim != 4 or not isinstance(patch, int):
        return []
    tokens = getattr(config, "mm_tokens_per_image", None)
    if tokens is not None:  # patches averaged to a square of so many
        side = math.isqrt(tokens)
        return [(side, side)] * len(pixels) if side * side == tokens else []
    cell = patch * _merged(config)
    height, width = pixels.shape[-2:]
    if height % cell or width % cell:
        return []
    return [(int(height // cell), int(width // cell))] * len(pixels)


def _trained_grid(config: Any) -> tuple[int, int]:
    """(grid_h, grid_w) of the size that the vision tower is made for; (0, 0) where it says none.

    For `generate` of newer transformers, which encodes images before and hands on no pixels.
    """
    vision = getattr(config, "vision_config", None)
    size = getattr(vision, "image_size", None)
    size = size[0] if isinstance(size, (list, tuple)) and len(set(size)) == 1 else size
    if not isinstance(size, int):
        return 0, 0
    tower = torch.empty(1, 3, size, size, device="meta")
    found = _grids(config, {"pixel_values": tower})
    return found[0] if found else (0, 0)


def _merged(config: Any) -> float:
    """How many patches of each side become one token."""
    ratio = getattr(config, "downsample_ratio", None)
    if ratio is not None:
        return 1 / ratio
    names = ("scale_factor", "downsample_factor")
    return next((f for name in names if (f := getattr(config, name, None)) is not None), 1)
