"""The CUDA kernels on the CPU: their own sources, compiled with the launch.cuh of this folder."""

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
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
    """The path of the extension, made as fastground._cuda would be.

    Args:
        folder: where it is made.
        find_races: whether it tells of races, by the functions at the end of races.cpp.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = [HERE, ROOT / "csrc", pybind11.get_include(), sysconfig.get_path("include")]
    csrc = ROOT / "csrc"
    command = [compiler(), *FLAGS, *(f"-I{path}" for path in includes)]
    kernels, others = folder / "kernels.o", [csrc / "cuda_bindings.cpp", csrc / "fixed_point.cpp"]
    watched = []
    if find_races:  # before what is compiled so touches memory, it calls races.cpp
        command += ["-O1", "-DFIND_RACES"]
        watched += ["-fsanitize=thread"]
        others += [HERE / "races.cpp"]
    source = ["-x", "c++", "-c", csrc / "cuda_kernels.cu"]
    subprocess.run([*command, *watched, *source, "-o", kernels], check=True)
    subprocess.run([*command, "-shared", kernels, *others, "-o", made], check=True)
    return made


def load(path):
    """The extension at this path."""
    spec = importlib.util.spec_from_file_location("_cuda", path)
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
