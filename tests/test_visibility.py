"""Which keys an asking token sees, by every kind of mask, against what is counted out by hand."""

import pytest
import torch
from fastground.visibility import visible_keys


def by_hand(batch, keys, positions, *, first=0, causal=True, window=None, real=None):
    """(batch, R, keys) bool, key by key."""
    seen = torch.zeros(batch, positions.shape[1], keys, dtype=torch.bool)
    for b in range(batch):
        for r, position in enumerate(positions[b].tolist()):
            own = first + position
            for key in range(keys):
                before = not causal or key <= own
                near = window is None or key > own - window
                seen[b, r, key] = before and near and (real is None or bool(real[b][key]))
    return seen


POSITIONS = torch.tensor([[5, 2], [0, 4]])
REAL = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])


def test_no_mask_is_all_keys_until_itself():
    found = visible_keys(None, POSITIONS, queries=6, keys=6)
    assert torch.equal(found, by_hand(2, 6, POSITIONS))
    assert visible_keys(None, POSITIONS, queries=6, keys=6, causal=False) is None
    assert visible_keys(None, POSITIONS[:, :1] * 0, queries=1, keys=6, cached=5) is None


def test_a_padding_mask_of_flash_attention():
    found = visible_keys(REAL, POSITIONS, queries=6, keys=6)
    assert torch.equal(found, by_hand(2, 6, POSITIONS, real=REAL))
    both_ways = visible_keys(REAL, POSITIONS, queries=6, keys=6, causal=False)
    assert torch.equal(both_ways, by_hand(2, 6, POSITIONS, real=REAL, causal=False))


@pytest.mark.parametrize("window", [1, 3, 6, 9])
def test_a_window_of_flash_attention(window):
    for real in (None, REAL):
        found = visible_keys(real, POSITIONS, queries=6, keys=6, window=window)
        assert torch.equal(found, by_hand(2, 6, POSITIONS, window=window, real=real))


def test_queries_after_cached_keys_are_the_last_ones():
    positions = torch.tensor([[1, 0]])
    found = visible_keys(None, positions, queries=2, keys=7, cached=5, window=4)
    assert torch.equal(found, by_hand(1, 7, positions, first=5, window=4))
    # A cache that keeps the window's keys only: 5 of the 12 tokens so far.
    cropped = visible_keys(None, positions, queries=2, keys=5, cached=10, window=4)
    assert torch.equal(cropped, by_hand(1, 5, positions, first=3, window=4))
    one = visible_keys(None, positions[:, :1] * 0, queries=1, keys=6, cached=11, window=4)
    assert torch.equal(one, by_hand(1, 6, positions[:, :1] * 0, first=5, window=4))


def test_room_for_later_keys_is_empty():
    found = visible_keys(None, POSITIONS, queries=6, keys=10)
    assert torch.equal(found, by_hand(2, 10, POSITIONS))
    found = visible_keys(REAL, POSITIONS[:, :1] * 0, queries=1, keys=10, cached=5)
    assert torch.equal(found, by_hand(2, 10, POSITIONS[:, :1] * 0, first=5, real=pad(REAL, 4)))


def pad(real, more):
    return torch.nn.functional.pad(real, (0, more))


@pytest.mark.parametrize("batch", [1, 2])
def test_rows_of_a_whole_mask(batch):
    mask = torch.rand(batch, 1, 6, 8, generator=torch.Generator().manual_seed(0))
    found = visible_keys(mask, POSITIONS, queries=6, keys=7)
    for b in range(2):
        for r in range(2):
            assert torch.equal(found[b, r], mask[min(b, batch - 1), 0, POSITIONS[b, r], :7])
    assert visible_keys(mask > 0.5, POSITIONS, queries=6, keys=8).dtype == torch.bool


def test_the_rule_of_a_block_mask():
    from torch.nn.attention.flex_attention import create_block_mask

    def rule(b, h, q, k):
        return (k <= q + 1) & (REAL[b, k] > 0) & (k > q - 3)

    mask = create_block_mask(rule, 2, None, 6, 6, device="cpu")
    found = visible_keys(mask, POSITIONS, queries=6, keys=6)
    assert torch.equal(found, by_hand(2, 6, POSITIONS, first=1, window=4, real=REAL))


@pytest.mark.parametrize("mask", [torch.ones(2, 4, 6, 6), torch.ones(2, 6, 6), "causal"])
def test_other_masks_are_refused(mask):
    with pytest.raises(RuntimeError, match=r"\(batch, 1, queries, keys\), \(batch, keys\) or a"):
        visible_keys(mask, POSITIONS, queries=6, keys=6)
