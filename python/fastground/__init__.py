"""fastground shows where a frozen vision-language model looks: boxes and masks without training.

The names below are the public face; each loads its module on first use, as do the modules
themselves (fastground.models, fastground.figures), so that importing fastground needs torch but
neither transformers nor Triton nor a GPU.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastground import datasets
    from fastground import figures as figures
    from fastground import models as models
    from fastground import types as types
    from fastground.capture import capture
    from fastground.discovery import discover
    from fastground.dispatch import get_num_threads, set_num_threads
    from fastground.evaluation import evaluate
    from fastground.grounder import Grounder
    from fastground.ops import (
        attention_rows,
        attention_sum,
        binarize,
        boxes,
        entropy,
        head_stats,
        label,
        smooth,
    )
    from fastground.types import HeadRanking, Recipe

    __version__: str

__all__ = [
    "Grounder",
    "HeadRanking",
    "Recipe",
    "__version__",
    "attention_rows",
    "attention_sum",
    "binarize",
    "boxes",
    "capture",
    "datasets",
    "discover",
    "entropy",
    "evaluate",
    "get_num_threads",
    "head_stats",
    "label",
    "set_num_threads",
    "smooth",
]

_HOMES = {
    "Grounder": "grounder",
    "HeadRanking": "types",
    "Recipe": "types",
    "capture": "capture",
    "discover": "discovery",
    "evaluate": "evaluation",
    "get_num_threads": "dispatch",
    "set_num_threads": "dispatch",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("fastground")
    if name == "datasets" or name not in __all__:
        from importlib.util import find_spec

        if not name.startswith("_") and find_spec(f"fastground.{name}"):
            return import_module(f"fastground.{name}")
        raise AttributeError(f"module 'fastground' has no attribute {name!r}")
    value = getattr(import_module(f"fastground.{_HOMES.get(name, 'ops')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """Keeps `fastground.capture` the function: importing its module binds the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "capture" and isinstance(value, ModuleType):
            value = value.capture
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
