r"""The most memory that a call takes above what was in use before it.

resident     _______/\______/\___     peak: what the kernel saw at most, if only for a moment
before ______|                        (VmHWM of Linux, set back; or CUDA's own count)
"""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak(call: Callable[[], object], device: str = "cpu") -> float | None:
    """Megabytes, of a second call; None where this system does not say."""
    call()  # what stays after a first call is not the call's own
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # free pages go back, or nothing would be added
        _RESET.write_text("5")
        before = _kilobytes("VmRSS")
        call()
        return 1.024e-3 * (_kilobytes("VmHWM") - before)
    except OSError:
        return None


def _kilobytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(), flags=re.M)
    if found is None:
        raise OSError(f"{_STATUS} has no {field}")
    return int(found[1])
