"""Pickles that cannot do anything: containers, strings and numbers, and no other thing.

A pickle is a program. Its dangerous words fetch a class or function by name and call it; all of
them ask `find_class`, or `persistent_load`, and here both refuse before anything is imported.
What is left are the words that build lists, tuples, dicts, sets, strings and numbers.

The files of RefCOCO were written by Python 2, whose strings are bytes: latin-1 reads any of them.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NoReturn


class Refused(pickle.UnpicklingError):
    """The pickle asks for more than plain data."""


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> NoReturn:
        raise Refused(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any, /) -> NoReturn:
        raise Refused("it asks for an object outside the file")


def load_plain(path: str | Path) -> Any:
    """What a pickle of plain data holds.

    Args:
        path: a file written by Python 2 or 3, in any protocol.

    Returns:
        Lists, tuples, dicts, sets, strings, bytes, numbers, booleans and None.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file names a class or function, of which none is imported or called, or
            is no whole pickle.
    """
    with open(path, "rb") as file:
        try:
            return _Plain(file, encoding="latin-1").load()
        except Refused as error:
            raise ValueError(
                f"{path} must be a pickle of containers, strings and numbers only, but {error}; "
                "nothing of it was run, and the original file has no such thing: get that"
            ) from error
        except Exception as error:  # a broken pickle can raise anything
            raise ValueError(
                f"{path} must be a whole pickle, but cannot be read "
                f"({type(error).__name__}: {error}); get the file anew"
            ) from error
