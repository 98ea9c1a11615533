"""fastground bench: how fast the operations are on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from fastground import tables, terminal
from fastground.cli.options import Json


def bench(
    maps: Annotated[int, typer.Option(min=3, help="Maps of one call.")] = 1024,
    grid: Annotated[str, typer.Option(metavar="SIDE|HxW", help="Cells of a map.")] = "24",
    dtype: Annotated[str, typer.Option(help="float32, float16, bfloat16 or float64.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of the native core and of torch; all, if not given.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.001, max=3600, help="For each operation.")] = 0.3,
    as_json: Json = False,
) -> None:
    """Time every operation on this machine, and hold its answers to their definition."""
    import torch

    import fastground
    from fastground import bench as measuring
    from fastground import info

    sides = grid.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise ValueError(f"--grid must be a side or HxW, such as 24 or 36x28, but got {grid!r}")
    shape = int(sides[0]), int(sides[-1])
    if threads is not None:
        fastground.set_num_threads(threads)
        torch.set_num_threads(threads)
    found = list(measuring.measure(maps, shape, dtype=dtype, device=device, seconds=seconds))
    if as_json:
        facts = info.facts()
        terminal.print_json(
            maps=maps, grid=list(shape), dtype=dtype, device=device,
            threads=torch.get_num_threads(), versions=facts["versions"], build=facts["build"],
            cuda=facts["cuda"], operations=[each._asdict() for each in found],
        )  # fmt: skip
        return
    title = f"{maps:,} maps of {shape[0]} x {shape[1]} {dtype} on {device}"
    terminal.show(tables.of_speeds(found, title))
