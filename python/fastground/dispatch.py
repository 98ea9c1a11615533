"""What runs: which implementation on which device, in which instruction set, on how many threads.

On the CPU the native core runs, in the fastest instruction set that this processor has; on a CUDA
device its kernels, if they are built; elsewhere the plain PyTorch of `fastground.reference`, on the
tensor's own device; `implementations` says so. FASTGROUND_IMPLEMENTATION = reference | native |
avx512 | avx2 | portable forces one of them, for debugging; native is what runs anyway, the last
three are for the CPU. It may change at any time. The results of the native core are the same to the
bit on every number of threads and, but for a pack's attention, in every instruction set.
"""

from __future__ import annotations

import operator
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from fastground.core import _core

cuda_core: Any
"""The CUDA kernels; None in a build without."""
try:
    from fastground import _cuda as cuda_core
except ImportError:
    cuda_core = None
else:
    cuda_core.use_tensors(torch.Tensor)

MAX_THREADS = 1024

_followed = ""


def in_host_memory() -> AbstractContextManager[Any]:
    """Inside it new tensors lie in the host's memory, whatever torch.set_default_device says."""
    on_host = torch.get_default_device().type == "cpu"
    return nullcontext() if on_host else torch.device("cpu")


def set_num_threads(num_threads: int) -> None:
    """At most this many threads work on one call of an operation on the CPU.

    Only calls of a millisecond or more are shared among threads. While one is, a call of another
    Python thread does its work alone. torch's own threads are another matter, and with them
    attention_rows and a pack's attention, which takes as many as torch does.

    Args:
        num_threads: 1 to 1024, the calling thread included; at first all processors that this
            process may use.

    Raises:
        TypeError: num_threads is no integer.
        ValueError: it is out of range.
    """
    if isinstance(num_threads, bool) or not hasattr(num_threads, "__index__"):
        raise TypeError(f"num_threads must be an integer, but got {num_threads!r}")
    num_threads = operator.index(num_threads)
    if not 1 <= num_threads <= MAX_THREADS:
        raise ValueError(f"num_threads must be 1 to {MAX_THREADS}, but got {num_threads}")
    _core.set_num_threads(num_threads)


def get_num_threads() -> int:
    """How many threads may work on one call of an operation on the CPU.

    Returns:
        What `set_num_threads` was given, else the number of processors this process may use.
    """
    return _core.num_threads()


def forced() -> str:
    """FASTGROUND_IMPLEMENTATION, empty unless set; the native core follows it.

    Raises:
        ValueError: this build or this processor has no such implementation.
    """
    name = _core.forced()
    if name != _followed:
        _follow(name)
    return name


def _follow(name: str) -> None:
    global _followed
    here = _core.instruction_sets()
    if name not in ("", "reference", "native", *here):
        raise ValueError(
            "FASTGROUND_IMPLEMENTATION must be one of what this build and this processor have, "
            f"reference, native, {', '.join(here)}, but got {name!r}"
        )
    _core.use(name if name in here else "")
    _followed = name


def native(maps: np.ndarray | torch.Tensor) -> bool:
    """Whether the native core for the CPU takes these maps.

    Raises:
        ValueError: FASTGROUND_IMPLEMENTATION cannot be had for them.
    """
    if (name := _core.forced()) != _followed:
        _follow(name)
    if isinstance(maps, np.ndarray) or maps.is_cpu:
        return name != "reference"
    if name not in ("", "reference", "native"):
        raise ValueError(
            f"FASTGROUND_IMPLEMENTATION={name} needs maps on the CPU, but got {maps.device}: "
            "give maps.cpu(), or leave it unset"
        )
    return False


def native_on_gpu(maps: torch.Tensor) -> bool:
    """Whether the CUDA kernels take these maps, which `native` did not.

    Raises:
        RuntimeError: maps are on a CUDA device, but this build has no kernels for it.
    """
    if not maps.is_cuda or forced() == "reference":
        return False
    if cuda_core is None:
        raise RuntimeError(
            f"maps are on {maps.device}, but this build has no CUDA kernels "
            f"({_core.build_info()['cuda']}); install NVIDIA's nvcc and build again: pip install "
            "--no-build-isolation --no-deps --config-settings=cmake.define.FASTGROUND_CUDA=ON . ; "
            "or give maps.cpu(), or set FASTGROUND_IMPLEMENTATION=reference"
        )
    return True


def implementations() -> dict[str, dict[str, str]]:
    """Which implementation of each operation runs on which device here, and why.

    Returns:
        Per operation the keys "cpu" and "cuda" with "native (C++, avx512)", "native (CUDA)" or the
        like, or "reference (PyTorch)", or "none", and "why".
    """
    name = forced()
    build = _core.build_info()
    if not torch.cuda.is_available():
        cuda = "none (no CUDA device here)"
    elif name == "reference":
        cuda = "reference (PyTorch)"
    else:
        cuda = "none (not built)" if cuda_core is None else "native (CUDA)"
    on_cpu = "reference (PyTorch)" if name == "reference" else f"native (C++, {build['kernels']})"
    why = f"CUDA kernels in this build: {build['cuda']}"
    if name:
        why += f"; FASTGROUND_IMPLEMENTATION={name}"
    operations = ("attention_sum", "binarize", "label", "entropy", "head_stats", "smooth")
    row = {"cpu": on_cpu, "cuda": cuda, "why": why}
    found = {operation: dict(row) for operation in (*operations, "combine", "boxes")}
    triton = "none (Triton is not installed)" if find_spec("triton") is None else "Triton"
    found["attention_rows"] = {
        "cpu": "reference (PyTorch)",
        "cuda": (triton if name != "reference" else cuda) if torch.cuda.is_available() else cuda,
        "why": "on the CPU it is two of PyTorch's own products, which are native",
    }
    return found


def build() -> dict[str, Any]:
    """What the native core was built with, and what of it runs here."""
    forced()
    return {
        **_core.build_info(),
        "kernels here": " ".join(_core.instruction_sets()),
        "threads": get_num_threads(),
    }
