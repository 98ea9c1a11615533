"""What a segmenter is told of a grounding, and which of its masks is taken."""

import math

import numpy as np
import scipy.ndimage
import torch
from transformers import SamImageProcessorPil

from by_hand.look import inside


def level(combined, place, recipe):
    """The mean at which a map is cut, and the cells it is of."""
    counts = np.ones(combined.shape, bool)
    if recipe.padding == "exclude":
        counts = inside(place, combined.shape)
    return combined[counts].mean(), counts


def log_odds(combined, box, place, recipe, x, y):
    """At pixel positions x (w,) and y (h,): 0 where the map is cut, least outside box and image."""
    mean, _ = level(combined, place, recipe)
    (height, width), cell, origin = place
    at = [(at - origin[i]) / cell[i] - 0.5 for i, at in ((1, y), (0, x))]
    large = scipy.ndimage.map_coordinates(
        combined, np.meshgrid(*at, indexing="ij"), order=1, mode="nearest"
    )
    share = np.clip(large / (2 * mean), 1e-9, 1 - 1e-9)
    odds = np.clip(np.log(share / (1 - share)), -6.9, 6.9)
    there = [(a >= max(0, low)) & (a < min(end, high)) for a, low, high, end in
             ((y, box[1], box[3], height), (x, box[0], box[2], width))]  # fmt: skip
    return np.where(np.outer(*there), odds, -6.9)


def peaks(combined, box, place, recipe):
    """x, y in pixels of the highest three cells above the mean that no neighbour exceeds."""
    mean, counts = level(combined, place, recipe)
    seen = np.where(counts, combined, -math.inf)
    highest = scipy.ndimage.maximum_filter(seen, 3, mode="constant", cval=-math.inf)
    _, cell, origin = place
    found = []
    for i, j in np.argwhere(counts & (seen > mean) & (seen == highest)):
        x, y = origin[0] + (j + 0.5) * cell[0], origin[1] + (i + 0.5) * cell[1]
        if box[0] <= x <= box[2] and box[1] <= y <= box[3]:
            found.append((-combined[i, j], i, j, x, y))
    return [(x, y) for *_, x, y in sorted(found)[:3]]


def coverage(mask, place, grid):
    """(grid_h, grid_w): the share of each cell's area that a mask has, by integrals."""
    whole = np.pad(mask.cumsum(0).cumsum(1), ((1, 0), (1, 0))).astype(float)
    _, cell, origin = place
    y, x = (origin[1 - i] + np.arange(grid[i] + 1) * cell[1 - i] for i in (0, 1))
    corners = scipy.ndimage.map_coordinates(
        whole, np.meshgrid(y, x, indexing="ij"), order=1, mode="nearest"
    )
    return np.round(np.diff(np.diff(corners, axis=0), axis=1) / (cell[0] * cell[1]), 12)


def best(masks, combined, place, recipe):
    """Which of the masks agrees best with the map: by correlation over the cells that count.

    A mask that covers all of them alike agrees neither way.
    """
    _, counts = level(combined, place, recipe)
    cells = combined[counts]
    each = []
    for mask in masks:
        covered = coverage(mask, place, combined.shape)[counts]
        flat = np.ptp(covered) < 1e-6 or np.ptp(cells) == 0
        each.append(0 if flat else np.corrcoef(covered, cells)[0, 1])
    return masks[int(np.argmax(each))]


@torch.no_grad()
def sam(model, image, combined, kept, place, recipe):
    """(1 or 3, height, width) logits: transformers' SAM asked as its own processor has it."""
    side, mask_side = 64, 4 * model.config.prompt_encoder_config.image_embedding_size
    frame = SamImageProcessorPil(
        size={"longest_edge": side}, pad_size={"height": side, "width": side}
    )(image, return_tensors="pt")
    (height, width), (new_height, new_width) = place.size, frame["reshaped_input_sizes"][0].tolist()
    scale = np.array([new_width / width, new_height / height])
    told = {"input_boxes": torch.tensor(kept.box * np.tile(scale, 2)).float()[None, None]}
    points = peaks(combined, kept.box, place, recipe)
    if recipe.prompt == "box+points" and points:
        told["input_points"] = torch.tensor(np.array(points) * scale).float()[None, None]
        told["input_labels"] = torch.ones(1, 1, len(points), dtype=torch.long)
    if recipe.prompt == "box+mask":
        at = (np.arange(mask_side) + 0.5) * side / mask_side
        odds = log_odds(combined, kept.box, place, recipe, at / scale[0], at / scale[1])
        told["input_masks"] = torch.from_numpy(odds).float()[None, None]
    several = recipe.masks == "best of three"
    low = model(frame["pixel_values"], multimask_output=several, **told).pred_masks[0]
    large = torch.nn.functional.interpolate(low, (side, side), mode="bilinear")
    cut = large[..., :new_height, :new_width]
    return torch.nn.functional.interpolate(cut, (height, width), mode="bilinear")[0].numpy()
