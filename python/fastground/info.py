"""What this installation is and can do: versions, build, devices, operations, shipped rankings."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fastground import dispatch, models
from fastground.published import RANKINGS
from fastground.types import HeadRanking

PACKAGES = ("fastground", "torch", "transformers", "triton", "numpy", "pillow")


def facts() -> dict[str, Any]:
    """All of it, as JSON can hold it.

    Returns:
        "versions" (None for a package that is not installed), "build" of the native core with its
        instruction sets and threads, "cuda" as torch sees it, "operations" with what runs on which
        device and why, "models" that are supported, and "rankings" that ship along.
    """
    return {
        "versions": {
            "python": platform.python_version(),
            **{p: _version(p) for p in PACKAGES},
            "torch": str(torch.__version__),  # its build too, such as +cpu
        },
        "build": dispatch.build(),
        "cuda": _cuda(),
        "operations": dispatch.implementations(),
        "models": sorted(models.ADAPTERS),
        "rankings": [
            *(_summary(HeadRanking.load(p)) for p in sorted(_folder().glob("*/ranking.json"))),
            *({**_summary(r), "provenance": r.provenance} for r in RANKINGS.values()),
        ],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cuda() -> dict[str, Any]:
    built = torch.version.cuda
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if devices:
        why = ""
    elif built is None:
        why = "this torch is a build without CUDA"
    else:
        why = f"this torch is built for CUDA {built}, but sees no device"
    return {"torch": built, "devices": devices, "why": why}


def _folder() -> Path:
    return Path(__file__).parent / "tiny"


def _summary(ranking: HeadRanking) -> dict[str, Any]:
    return {
        "checkpoint": ranking.checkpoint,
        "heads": [str(h) for h in ranking.top()],
        "dataset": ranking.dataset,
        "split": ranking.split,
        "num_samples": ranking.num_samples,
        "versions": ranking.versions,
    }
