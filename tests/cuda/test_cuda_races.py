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


def needs_gcc():
    """Skips where the compiler is another, which would call more than races.cpp has."""
    compiler = cuda_on_host.compiler()
    ask = [compiler, "-E", "-dM", "-x", "c++", "/dev/null"]
    said = compiler and subprocess.run(ask, capture_output=True, text=True, check=True).stdout
    if not said or "__clang__" in said:
        pytest.skip("no GCC here")


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
            for _ in few_calls.calls(gpu, "cpu", 9, (9, 34)):
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
    needs_gcc()
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


MISTAKES = """
#include <launch.cuh>

namespace {
void two_blocks_write(int* out) { out[threadIdx.x] = 1; }
void nobody_has_written(int* out) {
  out[32 * blockIdx.x + threadIdx.x] = static_cast<int*>(fastground::shared_memory())[threadIdx.x];
}
void steps_beside_a_write(int* out) {
  if (threadIdx.x == 0) out[blockIdx.x] = 0;
  atomicAdd(&out[blockIdx.x], 1);
}
void none(int* out) { out[32 * blockIdx.x + threadIdx.x] = 1; }
void lanes_at_two_places(int*) {
  if (threadIdx.x < 16) {
    __syncwarp();
  } else {
    __syncwarp();
  }
}
void (*const kernels[])(int*) = {two_blocks_write, nobody_has_written, steps_beside_a_write, none,
                                 lanes_at_two_places};
}  // namespace

extern "C" void run(int number, int* out) {
  fastground::launch(kernels[number], 0, nullptr, 2, 32, 128, out);
}
"""

RUN = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.races_found.restype = ctypes.c_char_p
library.races_begin(b"")
library.run(int(sys.argv[2]), (ctypes.c_int * 64)())
print(library.races_found().decode())
"""


def test_other_mistakes_are_found(tmp_path):
    needs_gcc()
    command = [
        cuda_on_host.compiler(),
        *cuda_on_host.FLAGS,
        "-DFIND_RACES",
        "-I",
        cuda_on_host.HERE,
    ]
    made, kernels = tmp_path / "mistakes.so", tmp_path / "mistakes.o"
    watched = [*command, "-fsanitize=thread", "-x", "c++", "-c", "-", "-o", kernels]
    subprocess.run(watched, input=MISTAKES, text=True, check=True)
    races = cuda_on_host.HERE / "races.cpp"
    subprocess.run([*command, "-shared", kernels, races, "-o", made], check=True)
    runs = [
        subprocess.run(
            [sys.executable, "-c", RUN, made, str(number)],
            capture_output=True, text=True, check=False,
        )
        for number in range(5)
    ]  # fmt: skip
    found = [re.sub("0x[0-9a-f]+ ", "", run.stdout).split("\n")[0] for run in runs]
    assert found[0] == "write write global"
    assert found[1] == "nothing read shared"
    assert found[2] in ("write atomic global", "atomic write global")
    assert found[3] == "" and runs[3].returncode == 0, runs[3].stderr
    assert runs[4].returncode == 3 and "waits elsewhere" in runs[4].stderr
