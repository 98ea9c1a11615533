"""The options that several commands share, and what they mean."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from fastground import terminal
from fastground.cli import INTERRUPTED
from fastground.cli.unread import NO_TILES, of_segmenter, refuse_chosen, refuse_unread
from fastground.types import Recipe

Model = Annotated[
    str,
    typer.Argument(help='"tiny" (ships along), a folder, or NAME[@REVISION] on the hub.'),
]
Dataset = Annotated[
    str, typer.Option(help="shapes, refcoco, refcoco+, refcocog, reasonseg, png, or listed.")
]
Data = Annotated[Path | None, typer.Option(help="Where its files are; shapes has none.")]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option", metavar="NAME=VALUE", help="One of the data set's, as masks=false; repeatable."
    ),
]
NumSamples = Annotated[
    int, typer.Option(min=1, help="How many expressions; more than there are: all.")
]
Trials = Annotated[int, typer.Option(min=1, max=1000, help="Disjoint parts to repeat it on.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the samples and of their parts.")]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=1024,
        help="Processes that read images ahead; 0: none. If not given, one a core beside a GPU.",
    ),
]
MaxBad = Annotated[
    float, typer.Option(min=0, max=1, help="Share of samples that may be unreadable.")
]
Ranking = Annotated[
    Path | None, typer.Option(help="What discover wrote, file or folder; the model's own if not.")
]
Segmenter = Annotated[
    str | None,
    typer.Option(
        metavar="grabcut|sam:FOLDER|segment-anything:FILE",
        help="What turns a box into a mask; the maps themselves if not.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, nothing else.")]
Profile = Annotated[
    str | None, typer.Option(help="All choices at once: paper, repo-2025-06 or repo-2025-08.")
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--recipe",
        metavar="NAME=VALUE",
        help="One choice of the method; repeatable. Refused where it would change nothing.",
    ),
]


def recipe_of(
    base: Recipe,
    profile: str | None,
    changes: list[str] | None,
    unread: Mapping[str, str] | None = None,
) -> Recipe:
    """The recipe of the options --profile and --recipe.

    Args:
        base: what holds without --profile.
        profile: a name of `Recipe.profile`, or None.
        changes: "name=value" each.
        unread: fields that the command does not read, with who does and the way out; None: the
            recipe is written down, for whoever reads it later.

    Raises:
        ValueError: an unknown profile, field or value, or a change without effect.
    """
    recipe = base if profile is None else Recipe.profile(profile)
    kinds = {field.name: str(field.type) for field in fields(Recipe)}
    values: dict[str, Any] = {}
    for change in changes or ():
        name, equals, text = change.partition("=")
        if not equals:
            raise ValueError(f"--recipe must be name=value, such as k=5, but got {change!r}")
        values[name] = _value(name, text, kinds.get(name, "str"))
    changed = recipe.replace(**values)
    if unread is not None:
        refuse_unread(changed, recipe, values, unread)
    return changed


def options_of(dataset: str, options: list[str] | None) -> dict[str, Any]:
    """What --option says to a data set.

    Args:
        dataset: its name.
        options: "name=value" each.

    Raises:
        ValueError: the data set takes no such option, or not such a value.
    """
    from fastground import datasets

    known: dict[str, Any] = {"masks": True} if dataset in datasets.FILES else {}
    if dataset in datasets.DATASETS:
        known |= datasets.options_of(dataset)
    values: dict[str, Any] = {}
    for option in options or ():
        name, equals, text = option.partition("=")
        if not equals or name not in known:
            raise ValueError(
                f"--option must be NAME=VALUE with a name of {', '.join(known) or 'none'} for "
                f"{dataset}, but got {option!r}"
            )
        if isinstance(known[name], bool) and text.lower() not in ("true", "false"):
            raise ValueError(f"--option {name} must be true or false, but got {text!r}")
        values[name] = text.lower() == "true" if isinstance(known[name], bool) else text
    return values


def _value(name: str, text: str, kind: str) -> Any:
    if kind == "bool" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if "None" in kind and text.lower() == "none":
        return None
    for number, makes in (("int", int), ("float", float)):
        if number in kind:
            try:
                return makes(text)
            except ValueError:
                break
    if "str" in kind:
        return text
    raise ValueError(f"recipe.{name} must be {kind}, but got {text!r}")


def leave(stop: terminal.Stop, done: int) -> None:
    """Exit if Ctrl-C was pressed; the result is told already."""
    if stop.asked:
        terminal.say(f"the result is of the {done:,} expressions that were done")
        raise typer.Exit(INTERRUPTED)


def make_grounder(
    checkpoint: str,
    ranking: Path | None,
    profile: str | None,
    changes: list[str] | None,
    segmenter: str | None,
    *,
    read: Sequence[str] = (),
    unread: Mapping[str, str] | None = None,
) -> Any:
    """The grounder of a command's options.

    Args:
        checkpoint, ranking, profile, changes, segmenter: the options.
        read: fields of the recipe that this command reads besides what grounding reads.
        unread: fields that it does not read, with who does and the way out.

    Raises:
        ValueError: what one of them says cannot be, or would change nothing.
    """
    from fastground.grounder import Grounder

    grounder = Grounder.from_pretrained(checkpoint, ranking, segmenter)
    if profile is None and not changes:
        return grounder
    own = grounder.ranking.recipe
    tiles = {} if grounder.lvlm.sees_tiles else {"blocks": NO_TILES.format(checkpoint)}
    idle = {**of_segmenter(grounder.segmenter), **tiles, **(unread or {})}
    recipe = recipe_of(own, profile, changes, idle)
    refuse_chosen(recipe, own, checkpoint, ranking, read)
    return Grounder(grounder.lvlm, grounder.ranking, segmenter=grounder.segmenter, recipe=recipe)


def picture_file(out: Path | None) -> None:
    """Refuse what no picture can be written as, or where.

    Raises:
        ValueError: another ending, or a folder that cannot be made or written.
    """
    from fastground import figures

    if out is None:
        return
    writable(out.parent)
    if out.suffix.lower() not in figures.PICTURES:
        raise ValueError(
            f"--out must end in one of {', '.join(figures.PICTURES)}, but got {str(out)!r}"
        )


def writable(folder: Path) -> None:
    """Nothing, where files can be written in a folder, which may not be there yet.

    Raises:
        ValueError: they cannot; said before an hour's work rather than after.
    """
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise ValueError(
            f"--out must be in a folder that can be written, but {str(place)!r} is not; give "
            "another place"
        )
