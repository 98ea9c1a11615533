"""What a run is, as its folder says in run.json; whoever goes on with it is held to that."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastground.shards import write_whole
from fastground.strict_json import dumps
from fastground.table import DECIDED_BY

if TYPE_CHECKING:
    from fastground.models import LVLM

MANIFEST = "run.json"
FORMAT = 2
DISCOVER = "discover"
"""The command whose runs hold the head-statistics table."""


def identity(lvlm: LVLM) -> dict[str, Any]:
    """What a run is labelled with that only the loaded model tells."""
    return {
        "checkpoint": lvlm.checkpoint,
        "revision": lvlm.revision,
        "architecture": dict(lvlm.architecture),
        "weights": fingerprint(lvlm.model.named_parameters()),
    }


def fingerprint(parameters: Iterable[tuple[str, Any]]) -> str:
    """A few letters that tell weights from others under the same name.

    Args:
        parameters: names and torch tensors; of each its shape, type and first values count.
    """
    digest = blake2b(digest_size=8)
    for name, tensor in parameters:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if not tensor.is_meta:
            digest.update(tensor.detach().reshape(-1)[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def write(folder: Path, about: dict[str, Any]) -> None:
    """Say in a new folder what its run is."""
    content = dumps({"format": FORMAT, **about})
    write_whole(folder / MANIFEST, f"{content}\n".encode())


def read(folder: Path, command: str) -> dict[str, Any]:
    """What a folder's run is.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: it is another command's, or cannot be read.
    """
    path = folder / MANIFEST
    needed = f"run must be a folder written by fastground {command} --out"
    if not path.is_file():
        raise FileNotFoundError(f"{needed}, but {folder} has no {MANIFEST}")
    try:
        manifest = json.loads(path.read_text())
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']}")
        if manifest["command"] != command:
            raise ValueError(f"it was written by fastground {manifest['command']}")
        return manifest
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{needed}, but {path} is not ({type(error).__name__}: {error}); choose another folder"
        ) from error


def check(folder: Path, made: dict[str, Any], asked: dict[str, Any]) -> None:
    """Nothing where a folder's run is of the same as what is asked for.

    A model's weights are compared, not its revision, which a word in its page changes.

    Raises:
        ValueError: something differs that decides the numbers.
    """
    recipe = DECIDED_BY if asked["command"] == DISCOVER else tuple(asked["recipe"])
    names = [name for name in asked if name not in ("recipe", "versions", "revision")]
    pairs = [(name, made.get(name), asked[name]) for name in names]
    pairs += [(f"recipe.{n}", made["recipe"].get(n), asked["recipe"][n]) for n in recipe]
    for name, before, now in pairs:
        if before != now:
            raise ValueError(
                f"{name} must be {before!r}, with which {folder} was made, but got {now!r}; choose "
                "another folder"
            )


def tell_versions(folder: Path, made: dict[str, str], here: dict[str, str]) -> None:
    """A warning that names each library whose version differs: numbers may in their last digits."""
    none = "none"
    differ = [
        f"{name} {made.get(name, none)} (now {here.get(name, none)})"
        for name in sorted({*made, *here})
        if made.get(name) != here.get(name)
    ]
    if differ:
        warnings.warn(
            f"versions of libraries should be those with which {folder} was made, but differ: "
            f"{', '.join(differ)}; what is there is kept, and what is added may be rounded in "
            "another way: install those versions, or choose another folder, for the same numbers",
            stacklevel=5,
        )
