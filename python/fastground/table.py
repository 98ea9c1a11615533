"""The head-statistics table: two numbers a head for every sample, and never a map again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from fastground.types import Recipe

DECIDED_BY = (
    "weight", "cut", "empty", "bottom_row", "padding_stats", "blocks", "query", "template",
    "ensure_period",
)  # fmt: skip
"""The recipe's fields that the numbers of a table depend on; all others only read them."""


@dataclass(frozen=True)
class HeadTable:
    """What discovery keeps of every sample; all rankings and ablations read it."""

    sums: np.ndarray
    """(N, L, H) float32 in [0, 1]: attention sums."""
    entropies: np.ndarray
    """(N, L, H) float32: spatial entropies, nats, +inf where a map is empty."""
    sample_ids: np.ndarray
    """(N,) int64."""
    image_ids: np.ndarray
    """(N,) int64."""
    recipe: Recipe
    checkpoint: str
    architecture: dict[str, Any]
    """model_type, num_layers, num_heads."""
    dataset: str
    split: str
    versions: dict[str, str]
    ious: np.ndarray | None = None
    """(N, L, H) float32: IoU of each head's binarized map with the true mask; nan without one."""

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.sums)

    def check(self, recipe: Recipe) -> None:
        """Nothing where the table's numbers are what this recipe asks for.

        Raises:
            ValueError: a switch that decided the numbers has another value in `recipe`.
        """
        for name in DECIDED_BY:
            made, asked = getattr(self.recipe, name), getattr(recipe, name)
            if made != asked:
                raise ValueError(
                    f"recipe.{name} must be {made!r}, with which the table was made, but got "
                    f"{asked!r}; collect a table with the new value"
                )

    def save(self, path: str | Path) -> None:
        """Write the table as safetensors, whole or not at all."""
        from safetensors.numpy import save_file

        arrays = {name: getattr(self, name) for name in _ARRAYS if getattr(self, name) is not None}
        notes = {name: json.dumps(getattr(self, name)) for name in _NOTES}
        notes["recipe"] = json.dumps(self.recipe.to_dict())
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(path.suffix + ".part")
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, part, metadata=notes)
        part.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> HeadTable:
        """Read a table.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no head-statistics table.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(f"table must be a file, but there is none at {str(path)!r}")
        try:
            with safe_open(path, framework="np") as file:
                notes = {name: json.loads(text) for name, text in file.metadata().items()}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return cls(recipe=Recipe(**notes.pop("recipe")), **notes, **arrays)
        except (SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"table must be a file written by fastground discover, but {str(path)!r} is not "
                f"({type(error).__name__}: {error})"
            ) from error


_ARRAYS = ("sums", "entropies", "sample_ids", "image_ids", "ious")
_NOTES = ("checkpoint", "architecture", "dataset", "split", "versions")


def installed_versions() -> dict[str, str]:
    """Versions of what the numbers depend on; a package that is not installed is left out."""
    found = {}
    for name in ("fastground", "torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
