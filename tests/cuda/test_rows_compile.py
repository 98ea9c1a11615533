"""What Triton makes of the kernel `attention_rows`, for Ampere and Hopper, without a GPU."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "ops"))

from test_attention_rows import run


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("capability", [80, 90])
def test_kernel_compiles_without_spills(capability, tmp_path):
    made = run(tmp_path, "compile", str(capability))
    assert len(made) == 5 * (7 + 4 + 3 + 1) + 2
    for one in made:
        print(*(f"{name} {value}" for name, value in one.items()))
        assert one["spilled"] == 0, one
        assert one["registers"] <= (255 if one["constants"].get("MANY") else 128), one
        if one["kernel"] == "_logits" and "key_stride_d" in one["constants"]:
            assert one["wide"], f"keys are not read 16 bytes at a time: {one}"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_calls_reach_the_launch_without_a_gpu(tmp_path):
    """Triton takes their arguments, options and types, and compiles for them."""
    made = run(tmp_path, "launch", "90")
    assert [one["kernel"] for one in made] == ["_logits", "_weights"] * 6
    assert all(one["cubin"] > 0 for one in made)
