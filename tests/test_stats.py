"""The two numbers of every head under each switch of the recipe."""

import dataclasses

import pytest
import torch
from fastground.stats import foreground, head_statistics
from fastground.types import AttentionMaps, HeadId, ImageLayout, Recipe


def attention(maps, **where):
    grid = tuple(maps.shape[-2:])
    layout = ImageLayout(grid, tuple(range(grid[0] * grid[1])), **where)
    heads = tuple(HeadId(0, i) for i in range(maps.shape[1]))
    return AttentionMaps(maps, maps.sum((-2, -1)), heads, layout)


PADDED = {"image_size": (20, 60), "cell_size": (10.0, 10.0), "origin": (0.0, -20.0)}


def two_blobs():
    maps = torch.zeros(1, 2, 6, 6)
    maps[0, 0, 2, 0:2] = 0.1  # in the image
    maps[0, 0, 5, 5] = 0.2  # in the padding below
    maps[0, 1] = 0.01  # flat
    return maps


def test_sum_and_entropy_of_each_head():
    stats = head_statistics(attention(two_blobs()))
    assert stats.attention_sum[0].tolist() == pytest.approx([0.4, 0.36])
    p = torch.tensor([2 / 3, 1 / 3])
    assert stats.entropy[0].tolist() == pytest.approx([float(-(p * p.log()).sum()), torch.inf])


def test_the_sum_is_over_all_of_the_images_tokens():
    maps = attention(two_blobs())
    more = AttentionMaps(maps.maps, maps.sums + 0.3, maps.heads, maps.layout)
    assert head_statistics(more).attention_sum[0].tolist() == pytest.approx([0.7, 0.66])


def test_padding_is_seen_unless_the_recipe_says_not():
    padded = attention(two_blobs(), **PADDED)
    assert head_statistics(padded).entropy[0, 0] > 0.6
    inside = head_statistics(padded, Recipe(padding_stats="exclude"))
    assert inside.attention_sum[0].tolist() == pytest.approx([0.2, 0.12])
    assert inside.entropy[0].tolist() == [0, torch.inf]


def test_padding_is_all_that_is_left_out_of_the_images_tokens():
    padded = attention(two_blobs(), **PADDED)
    layout = dataclasses.replace(padded.layout, all_tokens=tuple(range(50)))
    tiled = AttentionMaps(padded.maps, padded.sums + 0.3, padded.heads, layout)
    inside = head_statistics(tiled, Recipe(padding_stats="exclude"))
    assert inside.attention_sum[0].tolist() == pytest.approx([0.5, 0.42])
    seen = foreground(padded, Recipe(padding_stats="exclude"))
    assert seen[0, 0].nonzero().tolist() == [[2, 0], [2, 1]] and not seen[0, 1].any()
    assert foreground(padded, Recipe())[0, 0].sum() == 3


def test_weight_cut_and_empty_reach_the_operation():
    maps = attention(two_blobs())
    mass = head_statistics(maps, Recipe(weight="mass")).entropy[0, 0]
    p = torch.tensor([2 * (0.1 - 0.4 / 36), 0.2 - 0.4 / 36])
    p = p / p.sum()
    assert float(mass) == pytest.approx(float(-(p * p.log()).sum()), abs=1e-6)
    assert head_statistics(maps, Recipe(empty="zero")).entropy[0, 1] == 0
    maps.maps[0, 0, 2, 0:2] = 0.0065  # above the mean, below the mean + 1e-3
    assert head_statistics(maps).entropy[0, 0] > 0
    assert head_statistics(maps, Recipe(cut="mean+eps")).entropy[0, 0] == 0


def test_a_strong_cell_in_the_last_row_drops_the_head():
    maps = attention(two_blobs())
    kept, dropped = (head_statistics(maps, Recipe(bottom_row=v)).entropy[0, 0] for v in (0.2, 0.19))
    assert kept < 1 and dropped == torch.inf
    inside = Recipe(bottom_row=0.05, padding_stats="exclude")
    padded = attention(two_blobs(), **PADDED)
    assert head_statistics(padded, inside).entropy[0, 0] == 0  # the last row of the image is clean


def test_bad_maps_are_refused():
    with pytest.raises(ValueError, match=r"NaN|finite"):
        head_statistics(attention(two_blobs() * torch.nan))
    outside = PADDED | {"origin": (100.0, 0.0)}
    with pytest.raises(ValueError, match="every cell is padding"):
        head_statistics(attention(two_blobs(), **outside), Recipe(padding_stats="exclude"))
