"""Operations as nodes of the graphs that torch.compile makes: opaque, and one call each.

    tracing   a door sees that it is traced, and calls torch.ops.fastground.<its name>
    graph     that is a node, of whose results only shapes and dtypes are told
    running   the node calls the door with the numbers themselves

Without a node the graph would break at the native core, which nobody can trace, and at every look
into memory before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_library = torch.library.Library("fastground", "FRAGMENT")


def register(name: str, schema: str, results: Callable[..., Any], run: Callable[..., Any]) -> None:
    """Make a node known to torch.

    Args:
        name: the door's.
        schema: arguments and results, as torch.library has them.
        results: of the same arguments, empty tensors like the results.
        run: what the node calls; a graph relies on strides, and gets contiguous tensors.
    """

    def packed(*given: Any, **told: Any) -> Any:
        found = run(*given, **told)
        if isinstance(found, torch.Tensor):
            return found.contiguous()
        return tuple(part.contiguous() for part in found)

    _library.define(name + schema)
    _library.impl(name, packed, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastground::{name}", results, lib=_library)


def node(
    settings: str,
    *kinds: torch.dtype,
    heads: bool = False,
    cells: int | None = 0,
    run: Callable[..., Any] | None = None,
) -> Any:
    """A decorator of doors for maps (..., grid_h, grid_w), which are left as they are.

    Args:
        settings: their keyword arguments, as torch.library has them.
        kinds: the results' dtypes.
        heads: whether maps are (..., k, grid_h, grid_w).
        cells: numbers a map in each result: 0 for (...), n for (..., n), None for all of its grid.
        run: what the node calls; the door itself unless given.
    """

    def results(maps: torch.Tensor, **_: Any) -> Any:
        grid = tuple(maps.shape[-2:]) if cells is None else (cells,) if cells else ()
        shape = (*maps.shape[: -2 - heads], *grid)
        made = tuple(maps.new_empty(shape, dtype=kind) for kind in kinds)
        return made if len(made) > 1 else made[0]

    def registered(door: Any) -> Any:
        gives = ", ".join("Tensor" for _ in kinds)
        register(door.__name__, f"(Tensor maps, *, {settings}) -> ({gives})", results, run or door)
        return door

    return registered
