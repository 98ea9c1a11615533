"""The CUDA kernels on the CPU: their own sources, compiled with the launch.cuh of this folder."""

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
from hashlib import blake2b
from pathlib import Path

import pybind11
import torch
from fastground import gpu

ROOT = Path(__file__).parent.parent.parent
HERE = ROOT / "tests" / "cuda"
FLAGS = [
    *("-std=c++20", "-O2", "-g", "-fPIC", "-ffp-contract=off"),
    *("-U_FORTIFY_SOURCE", "-Wall", "-Wextra", "-Wno-unknown-pragmas"),
]
"""Without _FORTIFY_SOURCE: it takes a jump from one fiber's stack to another's for an error."""


def compiler():
    """The C++ compiler; None if there is none."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")


def build(folder, find_races=False):
    """The path of the extension, made as fastground._cuda would be: once of the same sources.

    Args:
        folder: where it is then copied.
        find_races: whether it tells of races, by the functions at the end of races.cpp.
    """
    name = f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = [HERE, ROOT / "csrc", pybind11.get_include(), sysconfig.get_path("include")]
    csrc = ROOT / "csrc"
    command = [compiler(), *FLAGS, *(f"-I{path}" for path in includes)]
    others, watched = [csrc / "cuda_bindings.cpp", csrc / "fixed_point.cpp"], []
    if find_races:  # before what is compiled so touches memory, it calls races.cpp
        command += ["-O1", "-DFIND_RACES", "-fno-gnu-unique"]  # nothing of another build's
        watched += ["-fsanitize=thread"]
        others += [HERE / "races.cpp"]
    digest = blake2b(f"{command} {pybind11.__version__}".encode(), digest_size=8)
    for source in sorted([*csrc.iterdir(), *HERE.glob("*.cuh"), *HERE.glob("*.[ch]pp")]):
        digest.update(source.read_bytes())
    made = ROOT / "build" / "cuda_on_host" / digest.hexdigest() / name
    folder.mkdir(parents=True, exist_ok=True)
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=made.parent) as apart:  # others may do the same
            kernels, part = Path(apart) / "kernels.o", Path(apart) / name
            source = ["-x", "c++", "-c", csrc / "cuda_kernels.cu"]
            subprocess.run([*command, *watched, *source, "-o", kernels], check=True)
            subprocess.run([*command, "-shared", kernels, *others, "-o", part], check=True)
            part.replace(made)
    shutil.copy(made, folder)
    return folder / name


def load(path):
    """The extension at this path."""
    # By a name of its own: pybind11 gives what it has loaded before by the same.
    spec = importlib.util.spec_from_file_location(f"{path.parent}._cuda", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.use_tensors(torch.Tensor)
    return module


@contextlib.contextmanager
def kernels(module):
    """`fastground.gpu` calls this module, with tensors of the CPU."""
    before, gpu.cuda_core = gpu.cuda_core, module
    try:
        yield
    finally:
        gpu.cuda_core = before
