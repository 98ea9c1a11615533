"""Whole numbers that a caller gives, such as how many samples: refused where they cannot be."""

from __future__ import annotations

from typing import Any


def check_whole(
    name: str, value: Any, least: int, most: int | None = None, way_out: str = ""
) -> None:
    """Nothing, where it is an integer in the range.

    Args:
        name: the argument's.
        value: what was given.
        least, most: both may be; None: there is no end.
        way_out: said behind the reason.

    Raises:
        ValueError: it is none, or out of range.
    """
    whole = hasattr(value, "__index__") and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        need = f">= {least}" if most is None else f"from {least} to {most:,}"
        raise ValueError(
            f"{name} must be an integer {need}, but got {value!r}{way_out and '; ' + way_out}"
        )
