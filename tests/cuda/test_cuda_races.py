"""Races of the CUDA kernels, found on the CPU; and that a missing barrier is found to be one."""

import ctypes
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cuda_on_host
import pytest
from fastground import gpu

sys.path.insert(0, str(Path(__file__).parent))
import few_calls

CSRC = cuda_on_host.ROOT / "csrc"
BARRIERS = {
    f"{path.name}:{number}": "// spare" not in line
    for path in CSRC.glob("*.cuh")
    for number, line in enumerate(path.read_text().splitlines(), 1)
    if re.search(r"__sync(warp|threads)\(\)", line)
}
"""By file and line, and whether none of the others does the same: see warp.cuh."""


class Races:
    """The kernels as `gpu` calls them, and what races.cpp tells of few_calls.py."""

    def __init__(self, path):
        self.module = cuda_on_host.load(path)
        self.path = path
        self.library = ctypes.CDLL(str(path))
        for name in ("races_found", "races_barriers"):
            getattr(self.library, name).restype = ctypes.c_char_p

    def found(self, without=""):
        """The first races of `few_calls`, as lines, if this barrier counts for nothing."""
        self.library.races_begin(without.encode())
        with cuda_on_host.kernels(self.module):
            for _ in few_calls.calls(gpu, "cpu", 9, (12, 70)):
                if found := self.library.races_found().decode().splitlines():
                    return found
        return []

    def barriers(self):
        return set(self.library.races_barriers().decode().split())

    def named(self, line):
        """The same with lines of the sources, where addr2line is."""
        if shutil.which("addr2line") is None:
            return line
        command = ["addr2line", "-e", self.path, "-ips", *re.findall("0x[0-9a-f]+", line)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return f"{line}\n{done.stdout}"


@pytest.fixture(scope="module")
def races(tmp_path_factory):
    if cuda_on_host.compiler() is None:
        pytest.skip("no C++ compiler here")
    return Races(cuda_on_host.build(tmp_path_factory.mktemp("races"), find_races=True))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kernels_have_no_race(races):
    found = races.found()
    assert not found, "\n".join(map(races.named, found))
    assert races.barriers() == BARRIERS.keys()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("barrier", sorted(name for name, needed in BARRIERS.items() if needed))
def test_a_barrier_that_is_missing_is_a_race(races, barrier):
    assert races.found(without=barrier)
