"""What nvcc makes of the kernels: for Ampere and Hopper no spills, and registers for 16 warps."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

KERNELS = {
    "sums_by_warp", "stats_by_lane", "stats_by_warp", "stats_of_few", "binarize_by_warp",
    "label_by_warp", "combine_by_lanes", "combine_by_warp", "boxes_by_warp", "boxes_by_rows",
}  # fmt: skip

ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for '(?P<arch>\w+)'\n"
    r".*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


def flags():
    """What CMakeLists.txt gives to nvcc beside the architectures."""
    text = (ROOT / "CMakeLists.txt").read_text()
    (found,) = re.findall(r"COMPILE_LANGUAGE:CUDA>:(.*?)>", text)
    return found.split()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc here")
def test_no_kernel_spills_or_takes_more_than_128_registers(tmp_path):
    archs = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in (80, 90)]
    done = subprocess.run(
        ["nvcc", "-std=c++20", "-O3", *flags(), *archs, "-Xptxas=-v", "-I", ROOT / "csrc",
         "-c", ROOT / "csrc" / "cuda_kernels.cu", "-o", tmp_path / "kernels.o"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = done.stdout + done.stderr
    assert "warning" not in told, told
    entries = [m.groupdict() for m in ENTRY.finditer(told)]
    for arch in ("sm_80", "sm_90"):
        names = " ".join(e["name"] for e in entries if e["arch"] == arch)
        assert {kernel for kernel in KERNELS if kernel in names} == KERNELS, arch
    assert {e["name"]: e["registers"] for e in entries if int(e["registers"]) > 128} == {}
    assert len(SPILLS.findall(told)) >= len(entries)
    assert set(SPILLS.findall(told)) == {("0", "0")}
