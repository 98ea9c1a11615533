"""The command line: ground, discover, evaluate, report, info, demo.

Results go to stdout, as text for people or with --json as JSON alone; progress and errors go to
stderr. Exit codes: 0 done, 2 bad input (one line says what and the way out), 130 interrupted.
"""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from fastground import terminal
from fastground.types import HeadRanking, Recipe

INTERRUPTED = 130
"""Exit code after Ctrl-C."""
UsageError: Any = typer.BadParameter.__base__
"""What typer raises for a wrong command line; it has no public name of its own."""

app = typer.Typer(
    name="fastground",
    help="Where a frozen vision-language model looks: boxes from its localization heads.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

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
Seed = Annotated[int, typer.Option(min=0, help="Of the samples and of their parts.")]
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
    typer.Option("--recipe", metavar="NAME=VALUE", help="One choice of the method; repeatable."),
]


@app.command(epilog='Example: fastground ground photo.png "the small red star" --out found.png')
def ground(
    image: Annotated[Path, typer.Argument(help="An image file.")],
    expression: Annotated[list[str], typer.Argument(help="What to look for; one or more.")],
    checkpoint: Annotated[str, typer.Option(help="The model, as for discover.")] = "tiny",
    ranking: Ranking = None,
    segmenter: Segmenter = None,
    out: Annotated[Path | None, typer.Option(help="A picture of the maps and the box.")] = None,
    profile: Profile = None,
    recipe: Changes = None,
    as_json: Json = False,
) -> None:
    """Find what an expression means in an image."""
    from fastground import figures

    if out is not None and out.suffix.lower() not in figures.PICTURES:
        raise ValueError(
            f"--out must end in one of {', '.join(figures.PICTURES)}, but got {str(out)!r}"
        )
    grounder = _grounder(checkpoint, ranking, profile, recipe, segmenter)
    found = grounder(str(image), expression)
    if out is not None:
        if len(found) == 1:
            found[0].save(out)
        else:
            figures.save(figures.contact_sheet(found, [g.image for g in found]), out)
    if as_json:
        terminal.print_json(
            image=str(image),
            checkpoint=checkpoint,
            recipe=grounder.recipe.to_dict(),
            groundings=[
                {
                    "expression": g.expression,
                    "found": g.found,
                    "box": [float(v) for v in g.box],
                    "mask_area": int(g.mask.sum()),
                    "score": g.score,
                    "mass": g.mass,
                    "heads": [list(h) for h in g.heads],
                }
                for g in found
            ],
        )
        return
    for g in found:
        if g.found:
            corners = ", ".join(f"{float(v):.1f}" for v in g.box)
            print(f"{g.expression}: box {corners} (x1, y1, x2, y2), score {g.score:.2f}")
        else:
            print(f"{g.expression}: nothing found")


@app.command(epilog="Example: fastground discover tiny --num-samples 1000 --out runs/tiny")
def discover(
    model: Model,
    dataset: Dataset = "shapes",
    data: Data = None,
    split: Annotated[str, typer.Option(help="Never the one evaluated on.")] = "train",
    num_samples: NumSamples = 1000,
    trials: Annotated[int, typer.Option(min=1, help="Disjoint parts to repeat it on.")] = 5,
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="A folder for ranking.json and its table; run again, it goes on."),
    ] = None,
    max_bad: Annotated[
        float, typer.Option(min=0, max=1, help="Share of samples that may be unreadable.")
    ] = 0.01,
    option: Options = None,
    profile: Profile = None,
    recipe: Changes = None,
    as_json: Json = False,
) -> None:
    """Find a model's localization heads on training expressions; no box is read."""
    chosen = recipe_of(Recipe(), profile, recipe)
    from fastground import datasets, discovery, models

    samples = datasets.load(
        dataset, data=data, split=split, num_samples=num_samples, seed=seed,
        **options_of(dataset, option),
    )  # fmt: skip
    lvlm = models.load(model)
    with (
        terminal.progress("discovering heads", num_samples) as advance,
        terminal.interruptible() as stop,
    ):
        ranking = discovery.discover(
            lvlm.model, lvlm.processor, stop.until(samples), recipe=chosen, trials=trials,
            seed=seed, checkpoint=model, dataset=dataset, split=split, progress=advance, out=out,
            max_bad=max_bad,
        )  # fmt: skip
    if as_json:
        terminal.print_json(**terminal.ranking_json(ranking))
    else:
        terminal.show(terminal.ranking_table(ranking))
        if out is not None:
            print(f"wrote {out / discovery.RANKING_FILE}")
    _leave(stop, ranking.num_samples)


@app.command(epilog="Example: fastground report runs/tiny --out runs/tiny/report")
def report(
    ranking: Annotated[Path, typer.Argument(help="What discover wrote, file or folder.")],
    out: Annotated[Path, typer.Option(help="A folder for index.html.")] = Path("report"),
    as_json: Json = False,
) -> None:
    """Write a page on a ranking: the elbow, the election, the heads."""
    from fastground import report as reports

    path = reports.write(out, HeadRanking.load(_ranking_file(ranking)))
    if as_json:
        terminal.print_json(page=str(path))
    else:
        print(f"wrote {path}")


@app.command(epilog="Example: fastground evaluate tiny --num-samples 1000")
def evaluate(
    model: Model,
    dataset: Dataset = "shapes",
    data: Data = None,
    split: Annotated[str, typer.Option(help="Never the one discovered on.")] = "test",
    num_samples: NumSamples = 1000,
    seed: Seed = 0,
    ranking: Ranking = None,
    segmenter: Segmenter = None,
    table: Annotated[
        bool,
        typer.Option(
            "--table", help="Beside ablations and chance; --ranking is discover's folder."
        ),
    ] = False,
    option: Options = None,
    profile: Profile = None,
    recipe: Changes = None,
    as_json: Json = False,
) -> None:
    """Score a model's groundings on held-out expressions."""
    if table and (ranking is None or not ranking.is_dir()):
        raise ValueError(
            "--table needs --ranking FOLDER, what discover wrote with --out; make it with: "
            f"fastground discover {model} --out FOLDER"
        )
    if table and segmenter is not None:
        raise ValueError(
            "--table compares boxes of maps, which no --segmenter changes; leave one of them out"
        )
    from fastground import comparison, datasets, evaluation, runs
    from fastground.ranking import rank_table

    samples = datasets.load(
        dataset, data=data, split=split, num_samples=num_samples, seed=seed,
        **options_of(dataset, option),
    )  # fmt: skip
    grounder = _grounder(model, ranking, profile, recipe, segmenter)
    with (
        terminal.progress("evaluating", num_samples) as advance,
        terminal.interruptible() as stop,
    ):
        if table:
            heads = runs.load(ranking)  # type: ignore[arg-type]
            found = rank_table(heads, grounder.recipe, seed=seed)
            scores: Any = comparison.compare(
                grounder.lvlm, heads, found, stop.until(samples), seed=seed, progress=advance
            )
        else:
            scores = evaluation.evaluate(grounder, stop.until(samples), progress=advance)
    if as_json:
        terminal.print_json(
            model=model, dataset=dataset, split=split, recipe=grounder.recipe.to_dict(),
            scores=scores.to_dict(),
        )  # fmt: skip
    elif table:
        terminal.show(terminal.comparison_table(scores))
        for name, value in terminal.comparison_facts(scores):
            print(f"{name}: {value}")
    else:
        heads_used = ", ".join(map(str, grounder.heads))
        terminal.show(terminal.scores_table(scores, f"{model} on {dataset} {split}: {heads_used}"))
    _leave(stop, scores.num_samples)


@app.command(epilog="Example: fastground demo --out demo --num-samples 1000")
def demo(
    out: Annotated[Path, typer.Option(help="A folder for index.html and its pictures.")] = (
        Path("demo")
    ),
    num_samples: NumSamples = 1000,
    trials: Annotated[int, typer.Option(min=1, help="Disjoint parts to repeat it on.")] = 5,
    seed: Seed = 0,
    profile: Profile = None,
    recipe: Changes = None,
    as_json: Json = False,
) -> None:
    """Discover the heads of the model that ships along, compare, and tell it on a page."""
    chosen = recipe_of(Recipe(), profile, recipe)
    from contextlib import redirect_stdout

    from fastground import demo as demonstration

    with redirect_stdout(sys.stderr if as_json else sys.stdout):
        told = demonstration.run(
            out, num_samples=num_samples, trials=trials, seed=seed, recipe=chosen
        )
    if as_json:
        terminal.print_json(**told)


@app.command(epilog="Example: fastground info --models")
def info(
    models: Annotated[
        bool, typer.Option("--models", help="Which models are supported, and how.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what is installed, and what runs where and why."""
    if models:
        from fastground.models import support

        if as_json:
            terminal.print_json(models=support.facts())
        else:
            terminal.show(terminal.support_table(support.table()))
        return
    from fastground import info as installation

    facts = installation.facts()
    if as_json:
        terminal.print_json(**facts)
        return
    for name, value in facts["versions"].items():
        print(f"{name:13} {value or 'not installed'}")
    print(f"{'native core':13} {', '.join(f'{k} {v}' for k, v in facts['build'].items())}")
    cuda = facts["cuda"]
    print(f"{'CUDA':13} {', '.join(cuda['devices']) or 'no: ' + cuda['why']}")
    print(f"{'models':13} {', '.join(facts['models'])}")
    for ranking in facts["rankings"]:
        print(
            f"{'ranking':13} {ranking['checkpoint']}: {', '.join(ranking['heads'])} "
            f"({ranking['num_samples']:,} expressions of {ranking['dataset']} {ranking['split']})"
        )
    terminal.show(terminal.operations_table(facts["operations"]))


def main(arguments: list[str] | None = None) -> None:
    """Run a command and leave the process with its exit code."""
    try:
        code = app(arguments, standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except UsageError as error:
        message = error.format_message().rstrip(".")
        if message:  # without any arguments the help has been shown, and says it all
            terminal.say(f"{message}; see fastground --help")
        code = 2
    except (ValueError, OSError, ModuleNotFoundError) as error:
        terminal.say(" ".join(str(error).split()))
        code = 2
    if code == INTERRUPTED:
        terminal.say("interrupted")
    sys.exit(code if isinstance(code, int) else 0)


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


def _leave(stop: terminal.Stop, done: int) -> None:
    """Exit if Ctrl-C was pressed; the result is told already."""
    if stop.asked:
        terminal.say(f"the result is of the {done:,} expressions that were done")
        raise typer.Exit(INTERRUPTED)


def _grounder(
    checkpoint: str,
    ranking: Path | None,
    profile: str | None,
    changes: list[str] | None,
    segmenter: str | None,
) -> Any:
    from fastground.grounder import Grounder

    source = None if ranking is None else _ranking_file(ranking)
    grounder = Grounder.from_pretrained(checkpoint, source, segmenter)
    if profile is None and not changes:
        return grounder
    recipe = recipe_of(grounder.ranking.recipe, profile, changes)
    return Grounder(grounder.lvlm, grounder.ranking, segmenter=grounder.segmenter, recipe=recipe)


def _ranking_file(path: Path) -> Path:
    file = path / "ranking.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"ranking must be a file or folder written by fastground discover, but {path} is not "
            "there; make one with: fastground discover MODEL --out FOLDER"
        )
    return file


if __name__ == "__main__":
    main()
