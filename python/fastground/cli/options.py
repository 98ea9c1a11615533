"""The options that several commands share, and what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastground import terminal
from fastground.types import Recipe

if TYPE_CHECKING:
    from fastground.types import HeadRanking

INTERRUPTED = 130
"""Exit code after Ctrl-C."""
STATISTICS = ("weight", "cut", "empty", "bottom_row", "padding_stats")
"""Fields of a recipe that only a map's statistics read."""
CHOICE = ("elbow", "scope", "criteria", "skip_layers", "top_n")
"""Those that only the choice of heads reads."""

Model = Annotated[str, typer.Argument(help='"tiny" (ships along), a folder, or a name on the hub.')]
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
Trials = Annotated[int, typer.Option(min=1, help="Disjoint parts to repeat it on.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the samples and of their parts.")]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
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


def recipe_of(base: Recipe, profile: str | None, changes: list[str] | None) -> Recipe:
    """The recipe of the options --profile and --recipe.

    Args:
        base: what holds without --profile.
        profile: a name of `Recipe.profile`, or None.
        changes: "name=value" each.

    Raises:
        ValueError: an unknown profile, field or value.
    """
    recipe = base if profile is None else Recipe.profile(profile)
    kinds = {field.name: str(field.type) for field in fields(Recipe)}
    values: dict[str, Any] = {}
    for change in changes or ():
        name, equals, text = change.partition("=")
        if not equals:
            raise ValueError(f"--recipe must be name=value, such as k=5, but got {change!r}")
        values[name] = _value(name, text, kinds.get(name, "str"))
    return recipe.replace(**values)


def options_of(dataset: str, options: list[str] | None) -> dict[str, Any]:
    """What --option says to a data set.

    Args:
        dataset: its name.
        options: "name=value" each.

    Raises:
        ValueError: the data set takes no such option, or not such a value.
    """
    from fastground import datasets

    files = dataset in datasets.FILES
    known = {"masks": True, **datasets.options_of(dataset)} if files else {}
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
) -> Any:
    """The grounder of a command's options.

    Args:
        checkpoint, ranking, profile, changes, segmenter: the options.
        read: fields of the recipe that this command reads besides what grounding reads.

    Raises:
        ValueError: what one of them says cannot be, or would change nothing.
    """
    from fastground.grounder import Grounder

    source = None if ranking is None else ranking_file(ranking)
    grounder = Grounder.from_pretrained(checkpoint, source, segmenter)
    if profile is None and not changes:
        return grounder
    recipe = recipe_of(grounder.ranking.recipe, profile, changes)
    _refuse_unread(recipe, grounder.ranking, checkpoint, ranking, read)
    return Grounder(grounder.lvlm, grounder.ranking, segmenter=grounder.segmenter, recipe=recipe)


def _refuse_unread(
    recipe: Recipe, ranking: HeadRanking, checkpoint: str, source: Path | None, read: Sequence[str]
) -> None:
    """Nothing, where every choice that differs from the ranking's own has an effect.

    Raises:
        ValueError: one has none, since the heads are chosen already.
    """
    unread: tuple[str, ...] = (*STATISTICS, *CHOICE)
    if recipe.selection == "greedy":  # each sample's own heads, by its own statistics
        by_sample = recipe.scope == "sample" and recipe.criteria == "both"
        unread = ("top_n",) if by_sample else ("top_n", "elbow")
    for name in unread:
        own, value = getattr(ranking.recipe, name), getattr(recipe, name)
        if own == value or name in read:
            continue
        what = f"recipe.{name} must be {own!r}, with which the ranking was made, but got {value!r}"
        if name == "top_n" and recipe.selection == "greedy":
            raise ValueError(
                f"{what}, which changes nothing where each sample has its own heads "
                "(selection=greedy); leave it out, or say with k how many heads"
            )
        run = source if source is None or source.is_dir() else source.parent
        again = f"fastground rank {run} --recipe {name}={value} --out FILE"
        if run is None or name in STATISTICS or not (run / "run.json").is_file():
            again = f"fastground discover {checkpoint} --recipe {name}={value} --out FOLDER"
        raise ValueError(
            f"{what}, which changes nothing once heads are chosen; choose them anew with: {again}, "
            "and give that as --ranking"
        )


def picture_file(out: Path | None) -> None:
    """Refuse what no picture can be written as.

    Raises:
        ValueError: another ending.
    """
    from fastground import figures

    if out is not None and out.suffix.lower() not in figures.PICTURES:
        raise ValueError(
            f"--out must end in one of {', '.join(figures.PICTURES)}, but got {str(out)!r}"
        )


def ranking_file(path: Path) -> Path:
    """The file of a ranking, or of the folder that holds it.

    Raises:
        ValueError: it is not there.
    """
    file = path / "ranking.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"ranking must be a file or folder written by fastground discover, but {path} is not "
            "there; make one with: fastground discover MODEL --out FOLDER"
        )
    return file
