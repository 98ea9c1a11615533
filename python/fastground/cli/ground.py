"""fastground ground: boxes of expressions in an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastground import terminal
from fastground.cli.options import Changes, Json, Profile, Ranking, Segmenter, make_grounder


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
    grounder = make_grounder(checkpoint, ranking, profile, recipe, segmenter)
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
