"""What all loaders ask of files: to be there, to be JSON, to name each thing once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def needed(candidates: Sequence[Path], what: str, source: str) -> Path:
    """The first of these paths that is there.

    Raises:
        FileNotFoundError: none is; says what is missing and where to get it.
    """
    for path in candidates:
        if path.exists():
            return path
    first, *others = map(str, candidates)
    looked = f" (nor {', '.join(others)})" if others else ""
    raise FileNotFoundError(f"{what} must be there, but there is no {first}{looked}; {source}")


def read_json(path: Path) -> Any:
    """What a JSON file holds; ReasonSeg has a few in Windows' encoding.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no JSON.
    """
    data = path.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON, but is not ({error}); get it anew") from error


def by_id(records: Iterable[Any], key: str, path: Path, what: str) -> dict[Any, Any]:
    """Records by their id.

    Raises:
        ValueError: a record without that id, or two with the same.
    """
    found: dict[Any, Any] = {}
    try:
        for record in records:
            if record[key] in found:
                raise ValueError(
                    f"{path} must name each {what} once, but has two with {key} {record[key]!r}"
                )
            found[record[key]] = record
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path} must list {what}s with {key!r}, but has one without") from error
    return found


def one_of(split: str, splits: Iterable[str], what: str) -> str:
    """The split, if it is one of these.

    Raises:
        ValueError: it is not; "test" of RefCOCO is told apart into testA and testB.
    """
    known = list(splits)
    if split not in known:
        hint = ""
        if split == "test" and "testA" in known:
            hint = "; what some copies call test is testA: people, and testB: other things"
        raise ValueError(
            f"split must be one of {', '.join(known)} for {what}, but got {split!r}{hint}"
        )
    return split
