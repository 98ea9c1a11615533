"""entropy and head_stats: every implementation against SciPy's regions and NumPy's logarithm."""

import math
import subprocess
import sys

import fastground as fg
import map_cases
import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given
from hypothesis import strategies as st

CHOICES = {
    "weight": st.sampled_from(["area", "mass"]),
    "cut": st.sampled_from(["mean", "mean+eps", "2mean+eps"]),
    "empty": st.sampled_from(["inf", "zero"]),
}


def by_scipy(maps, weight, cut, empty):
    """One map at a time, in float64."""
    entropies = []
    for cells, mask in zip(maps.double().numpy(), map_cases.foreground(maps, cut), strict=True):
        labels, count = scipy.ndimage.label(mask, np.ones((3, 3)))
        over = np.ones_like(cells) if weight == "area" else np.maximum(cells - cells.mean(), 0)
        parts = scipy.ndimage.sum_labels(over, labels, range(1, count + 1))
        if parts.sum() == 0:
            entropies.append(math.inf if empty == "inf" else 0.0)
            continue
        p = parts[parts > 0] / parts.sum()
        entropies.append(float(-(p * np.log(p)).sum()))
    return torch.tensor(entropies)


@given(maps=map_cases.batches(), **CHOICES)
def test_equals_scipy(implementation, maps, weight, cut, empty):
    result = implementation(fg.entropy, maps, weight=weight, cut=cut, empty=empty)
    assert result.dtype == torch.float32
    expected = by_scipy(maps, weight, cut, empty)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)


@given(maps=map_cases.batches(sizes=("plain",)), **CHOICES)
def test_head_stats_are_both_numbers(implementation, maps, weight, cut, empty):
    stats = implementation(fg.head_stats, maps, weight=weight, cut=cut, empty=empty)
    assert torch.equal(stats.attention_sum, implementation(fg.attention_sum, maps))
    alone = implementation(fg.entropy, maps, weight=weight, cut=cut, empty=empty)
    assert torch.equal(stats.entropy, alone)


def test_known_values(implementation):
    one, two, four = torch.zeros(3, 7, 7)
    one[2:4, 1:5] = 1
    two[0, 0] = two[4:7, 4] = 1
    four[::6, ::6] = 1
    result = implementation(fg.entropy, torch.stack([one, two, four]))
    assert result[0] == 0 and math.copysign(1, result[0]) == 1
    assert result[1:].tolist() == pytest.approx(
        [-math.log(1 / 4) / 4 - math.log(3 / 4) * 3 / 4, math.log(4)]
    )


def test_a_flat_map_never_ranks_first(implementation):
    flat = torch.full((24, 24), 1 / 3)
    assert implementation(fg.entropy, flat) == math.inf
    assert implementation(fg.entropy, flat, empty="zero") == 0


def test_half_precision_equals_the_same_numbers_in_single(implementation):
    maps = torch.rand(20, 24, 24).softmax(-1)
    for dtype in (torch.float16, torch.bfloat16):
        half = maps.to(dtype)
        single = implementation(fg.entropy, half.float())
        assert torch.equal(implementation(fg.entropy, half), single)


def test_what_is_no_number_is_refused_or_nan(implementation):
    for maps in map_cases.spoilt():
        for operation in (fg.entropy, fg.head_stats):
            with pytest.raises(ValueError, match="1 of 3 are not, the first at 1"):
                implementation(operation, maps)
        stats = implementation(fg.head_stats, maps, nan="propagate")
        assert stats.attention_sum.isnan().tolist() == [False, True, False]
        assert stats.entropy.isnan().tolist() == [False, True, False]
        assert implementation(fg.entropy, maps, nan="propagate").isnan().tolist() == [0, 1, 0]


def test_any_batch_shape(implementation):
    maps = torch.rand(2, 3, 4, 5)
    stats = implementation(fg.head_stats, maps)
    assert stats.attention_sum.shape == stats.entropy.shape == (2, 3)
    assert implementation(fg.entropy, maps[0, 0]).shape == ()
    assert implementation(fg.entropy, maps[:, :0]).shape == (2, 0)


def test_native_and_reference_agree_to_the_bit_on_regions(monkeypatch):
    maps = torch.rand(64, 24, 24)
    monkeypatch.setenv("FASTGROUND_IMPLEMENTATION", "reference")
    reference = fg.attention_sum(maps), fg.label(maps), fg.entropy(maps)
    monkeypatch.setenv("FASTGROUND_IMPLEMENTATION", "native")
    native = fg.attention_sum(maps), fg.label(maps), fg.entropy(maps)
    assert torch.equal(reference[0], native[0]) and torch.equal(reference[1], native[1])
    torch.testing.assert_close(reference[2], native[2], rtol=2e-7, atol=1e-7)


def test_cells_whose_sum_exceeds_the_range_have_no_excess(implementation):
    maps = torch.full((3, 4, 6), 1.7e308, dtype=torch.float64)
    maps[0, 1] = maps[1, :, 2:] = -1.7e308
    maps[2] = torch.rand(4, 6)
    entropies = implementation(fg.entropy, maps, weight="mass", nan="propagate")
    assert entropies.isnan().tolist() == [True, True, False]


IN_A_MODE = """
import sys
import fastground as fg, torch
from fastground import _core

maps = (torch.rand(20_000, 24, 24, dtype=torch.float64) * 1e-40).float()

def bits():
    for name in _core.instruction_sets():
        _core.use(name)
        for threads in (1, 2):
            fg.set_num_threads(threads)
            for operation in (fg.entropy, fg.attention_sum, fg.smooth):
                yield operation.__name__, name, threads, operation(maps).numpy().tobytes()

before = list(bits())
if not torch.set_flush_denormal(True):
    sys.exit("no such mode")
for expected, found in zip(before, bits(), strict=True):
    assert any(found[-1]) and found == expected, found[:-1]
assert (maps[:1] * 0.5).max() == 0, "the mode is not the caller's any more"
"""


def test_results_do_not_depend_on_the_floating_point_mode():
    """Neither on one that takes the numbers below 1e-38 as 0, nor does a call end that mode."""
    python = [sys.executable, *(["-S"] if sys.flags.no_site else [])]
    done = subprocess.run([*python, "-c", IN_A_MODE], capture_output=True, text=True, check=False)
    if "no such mode" in done.stderr:
        pytest.skip("this processor knows no such mode")
    assert done.returncode == 0, done.stderr
