"""`make gpu-check` on a GPU's stand-in: every step, so that none fails first on a real one."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cuda_on_host
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import stand_in

ROOT = Path(__file__).parent.parent.parent

PYTHON = """#!/bin/sh
case "$*" in
  *"pip install"* | "-m fastground.cli info") exit ;;
  "-c import xdist") exit 1 ;;
  *"-m gpu"*) set -- "$@" -k "$FEW" --ignore=tests/adapters/test_quantised_models.py ;;
  *bench_discovery*) set -- "$@" --repeats 1 --min-time-ms 0 --images 2 ;;
  *benches/*) set -- "$@" --repeats 1 --min-time-ms 0 ;;
esac
exec {python} {rehearse} {folder} "$@"
"""

FEW = (
    "graph or callers_stream or refuse or either_device or left_to or new_addresses or nan_stays "
    "or any_strides or exact_on_a_gpu[3] or exact_on_a_gpu[8] or gives_the_maps or do_not_wait "
    "or (test_binarize and cuda)"
)
"""Tests of all that is made for a GPU alone; the others make many maps, which is slow here."""

PROGRAMS = {
    "nvcc": "exit 1", "nvidia-smi": "echo 50",
    # The same calls once, not once more by each of its tools.
    "compute-sanitizer": 'case "$*" in *racecheck* | *few_rows*) exit ;; esac\n'
    'while [ "$1" != "$PYTHON" ]; do shift; done; exec "$@"',
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(cuda_on_host.compiler() is None, reason="no C++ compiler here")
def test_every_step_runs_and_leaves_its_results(tmp_path):
    pytest.importorskip("triton")
    pytest.importorskip("hypothesis")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", ":!python"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    folder, bin_folder = tmp_path / "built", tmp_path / "bin"
    stand_in.build(folder)
    rehearse = tmp_path / "tests" / "cuda" / "rehearse.py"
    python = PYTHON.format(python=sys.executable, rehearse=rehearse, folder=folder)
    bin_folder.mkdir()
    for name, text in {**PROGRAMS, "python": python}.items():
        (bin_folder / name).write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
        (bin_folder / name).chmod(0o755)
    before = set((tmp_path / "benches" / "results").iterdir())
    environment = {
        "PATH": f"{bin_folder}:{os.environ['PATH']}", "PYTHON": str(bin_folder / "python"),
        "FEW": FEW, "OMP_NUM_THREADS": "1", "GIT_CEILING_DIRECTORIES": str(tmp_path.parent),
    }  # fmt: skip
    done = subprocess.run(
        [tmp_path / ".ci" / "gpu-check", bin_folder / "python", "3500"],
        env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    told = done.stdout + done.stderr
    print(told)
    assert done.returncode == 0, told
    assert "gpu-check: all passed" in told and "not checked" not in told
    passed = [int(number) for number in re.findall(r"^(\d+) passed", told, flags=re.M)]
    assert len(passed) == 2 and min(passed) > 2, told
    (results,) = set((tmp_path / "benches" / "results").iterdir()) - before
    kept = json.loads(results.read_text())
    names = {"gpu", "gpu-call", "gpu-peers", "rows-gpu", "capture-gpu", "grounder-gpu"}
    assert kept.keys() == names | {"discovery-gpu"}
