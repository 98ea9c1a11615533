"""The files of a checkpoint: its configuration, and its tensors one by one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"folder must hold a {path.name}, but there is no {str(path)!r}")
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return read


def weight_files(folder: Path) -> list[Path]:
    """The .safetensors files, or else the .bin files.

    Raises:
        ValueError: there are none.
    """
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        found = sorted(folder.glob(pattern))
        if found:
            return found
    raise ValueError(
        f"folder must hold weights (model*.safetensors or pytorch_model*.bin), but {str(folder)!r} "
        "has none"
    )


@contextmanager
def opened(path: Path) -> Iterator[dict[str, Callable[[], torch.Tensor]]]:
    """The file's names, each with what reads its tensor; code in a .bin file is never run."""
    import torch
    from safetensors import safe_open

    if path.suffix == ".bin":
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        yield {name: partial(held.get, name) for name in held}
        return
    with safe_open(path, framework="pt") as file:
        yield {name: partial(file.get_tensor, name) for name in file.keys()}  # noqa: SIM118


def names(folder: Path) -> list[str]:
    """The names of all tensors in the folder's weight files."""
    found: list[str] = []
    for path in weight_files(folder):
        with opened(path) as tensors:
            found += tensors
    return found


def tensor_of(folder: Path, wanted: str) -> torch.Tensor:
    """One tensor of the folder by its name.

    Raises:
        ValueError: no file has it.
    """
    for path in weight_files(folder):
        with opened(path) as tensors:
            if wanted in tensors:
                return tensors[wanted]()
    raise ValueError(f"folder must hold {wanted}, but no weight file in {str(folder)!r} does")
