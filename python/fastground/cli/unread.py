"""Choices that would change nothing: refused with one line, which says who reads them.

    field of a recipe                              is read
    weight, cut, empty, bottom_row, padding_stats  by discovery, explain, each sample's own heads
    elbow, scope, criteria, skip_layers, top_n     where heads are chosen
    generic; sink_share                            with sinks=relative; with sinks=drop
    kernel_size, sigma, border                     where maps are smoothed
    objects                                        by ground, explain, evaluate --plurals union
    prompt; masks                                  by a segmenter; by one with several proposals
    blocks                                         by models that see an image in tiles, too
    all others                                     wherever maps are read or boxes made

What --profile says is a whole and passes, as does a `Recipe` in Python: a plain value, which may
say more than is read. Only what is named by --recipe and differs from what holds is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastground.types import Recipe

STATISTICS = ("weight", "cut", "empty", "bottom_row", "padding_stats")
"""Fields of a recipe that only a map's statistics read."""
CHOICE = ("elbow", "scope", "criteria", "skip_layers", "top_n")
"""Those that only the choice of heads reads."""
GROUNDING = (
    "selection", "sinks", "generic", "sink_share", "kernel_size", "sigma", "border", "region",
    "padding", "objects", "prompt", "masks", "box_from",
)  # fmt: skip
"""Those that only grounding reads."""
NO_TILES = "only a model reads that sees an image whole and in tiles, and {} does not; leave it out"
_NO_SEGMENTER = "only a segmenter reads; name one with --segmenter"
_ONE_PROPOSAL = "only a segmenter with several proposals reads, such as sam:FOLDER; leave it out"


def of_segmenter(segmenter: Any) -> dict[str, str]:
    """The fields that this segmenter, or none, does not read, with who does and the way out."""
    from fastground.segmentation import GrabCut

    if segmenter is None:
        return dict.fromkeys(("prompt", "masks"), _NO_SEGMENTER)
    return {"masks": _ONE_PROPOSAL} if isinstance(segmenter, GrabCut) else {}


def of_evaluation(table: str | None, objects: bool) -> dict[str, str]:
    """The fields that scores do not read, with who does and the way out.

    Args:
        table: what --table says.
        objects: whether more than the kept region is scored.
    """
    if table is None:
        return {} if objects else {"objects": "only --plurals union reads; add it"}
    varied = {"heads": ("selection",), "4": ("k",), "5": ("criteria", "selection")}
    varied |= {"8": ("sigma", "kernel_size"), "switches": (), "objects": ("objects",)}
    return {
        **dict.fromkeys(("objects", "prompt", "masks"), "no table reads; leave it out"),
        **dict.fromkeys(varied[table], f"table {table} itself varies; leave it out"),
    }


def refuse_unread(
    recipe: Recipe, own: Recipe, names: Iterable[str], unread: Mapping[str, str]
) -> None:
    """Nothing, where every --recipe that changes what holds has an effect.

    Args:
        recipe: as it would be.
        own: what holds without --recipe.
        names: of the fields that --recipe names.
        unread: fields that the command does not read, with who does and the way out.

    Raises:
        ValueError: one has none.
    """
    unread = {**_of_recipe(recipe), **unread}
    for name in names:
        value, held = getattr(recipe, name), getattr(own, name)
        if name in unread and value != held:
            raise ValueError(
                f"recipe.{name} must be {held!r} here, but got {value!r}, which {unread[name]}"
            )


def _of_recipe(recipe: Recipe) -> dict[str, str]:
    """The fields that the others make idle."""
    idle = {}
    if recipe.sinks != "relative":
        idle["generic"] = "only sinks=relative reads; add --recipe sinks=relative"
    if recipe.sinks != "drop":
        idle["sink_share"] = "only sinks=drop reads; add --recipe sinks=drop"
    if recipe.sigma == 0 or recipe.kernel_size == 1:
        idle["border"] = "only smoothing reads; give sigma above 0 and kernel_size above 1"
    if recipe.sigma == 0 and recipe.kernel_size != 1:
        idle["kernel_size"] = "only smoothing reads; give sigma above 0"
    if recipe.kernel_size == 1 and recipe.sigma != 0:
        idle["sigma"] = "only smoothing reads; give kernel_size above 1"
    return idle


def refuse_chosen(
    recipe: Recipe, own: Recipe, checkpoint: str, source: Path | None, read: Sequence[str]
) -> None:
    """Nothing, where no choice of heads differs from that with which they were chosen.

    Args:
        recipe: as it would be.
        own: the ranking's.
        checkpoint: the model.
        source: of the ranking; None: the model's own.
        read: fields that the command reads all the same.

    Raises:
        ValueError: one does.
    """
    from fastground.manifest import MANIFEST

    unread: tuple[str, ...] = (*STATISTICS, *CHOICE)
    if recipe.selection == "greedy":  # each sample's own heads, by its own statistics
        by_sample = recipe.scope == "sample" and recipe.criteria == "both"
        unread = ("top_n",) if by_sample else ("top_n", "elbow")
    for name in unread:
        held, value = getattr(own, name), getattr(recipe, name)
        if held == value or name in read:
            continue
        what = f"recipe.{name} must be {held!r}, with which the ranking was made, but got {value!r}"
        if name == "top_n" and recipe.selection == "greedy":
            raise ValueError(
                f"{what}, which changes nothing where each sample has its own heads "
                "(selection=greedy); leave it out, or say with k how many heads"
            )
        run = source if source is None or source.is_dir() else source.parent
        again = f"fastground rank {run} --recipe {name}={value} --out FILE"
        if run is None or name in STATISTICS or not (run / MANIFEST).is_file():
            again = f"fastground discover {checkpoint} --recipe {name}={value} --out FOLDER"
        raise ValueError(
            f"{what}, which changes nothing once heads are chosen; choose them anew with: {again}, "
            "and give that as --ranking"
        )
