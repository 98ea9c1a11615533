"""fastground ground: boxes of expressions in an image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastground import terminal
from fastground.cli.options import (
    Changes,
    Json,
    Profile,
    Ranking,
    Segmenter,
    make_grounder,
    picture_file,
)
from fastground.phrases import noun_phrases, standalone

if TYPE_CHECKING:
    from fastground.result import Grounding


def ground(
    image: Annotated[Path, typer.Argument(help="An image file.")],
    expression: Annotated[list[str], typer.Argument(help="What to look for; one or more.")],
    checkpoint: Annotated[str, typer.Option(help="The model, as for discover.")] = "tiny",
    ranking: Ranking = None,
    segmenter: Segmenter = None,
    phrases: Annotated[
        bool, typer.Option("--phrases", help="Each noun phrase of the expressions, for itself.")
    ] = False,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="With --phrases: asked within their sentence.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="A picture of the maps and the box.")] = None,
    profile: Profile = None,
    recipe: Changes = None,
    as_json: Json = False,
) -> None:
    """Find what an expression means in an image."""
    from fastground import figures
    from fastground.models.geometry import read_image

    picture_file(out)
    if in_place and not phrases:
        raise ValueError("--in-place says how --phrases are asked, but was given alone; add it")
    if phrases:
        expression = [phrase for e in expression for phrase in _phrases(e, in_place)]
    seen = read_image(image)  # before the model is loaded, which takes longer
    grounder = make_grounder(checkpoint, ranking, profile, recipe, segmenter)
    found = grounder(seen, expression)
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
                    **_object(g),
                    "heads": [list(h) for h in g.heads],
                    "others": [_object(other) for other in g.others],
                }
                for g in found
            ],
        )
        return
    for g in found:
        if not g.found:
            print(f"{g.expression}: nothing found")
        for o in g.objects:
            corners = ", ".join(f"{float(v):.1f}" for v in o.box)
            print(f"{g.expression}: box {corners} (x1, y1, x2, y2), score {o.score:.2f}, "
                  f"mask of {int(o.mask.sum())} pixels")  # fmt: skip


def _phrases(expression: str, in_place: bool) -> list[str]:
    found = noun_phrases(expression)
    return list(found) if in_place else standalone(found)


def _object(grounding: Grounding) -> dict[str, Any]:
    """What is told of an object."""
    return {
        "box": [float(v) for v in grounding.box],
        "mask_area": int(grounding.mask.sum()),
        "score": grounding.score,
        "mass": grounding.mass,
    }
