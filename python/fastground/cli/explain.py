"""fastground explain: one grounding step by step, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastground import terminal
from fastground.cli.options import (
    Changes,
    Json,
    Model,
    Profile,
    Ranking,
    Segmenter,
    make_grounder,
    picture_file,
)
from fastground.cli.unread import STATISTICS


def explain(
    model: Model,
    image: Annotated[Path, typer.Argument(help="An image file.")],
    expression: Annotated[str, typer.Argument(help="What to look for.")],
    out: Annotated[Path | None, typer.Option(help="The picture of all steps.")] = None,
    truth: Annotated[
        str | None, typer.Option(metavar="X1,Y1,X2,Y2", help="The true box in pixels.")
    ] = None,
    ranking: Ranking = None,
    segmenter: Segmenter = None,
    profile: Profile = None,
    recipe: Changes = None,
    as_json: Json = False,
) -> None:
    """Show how an expression became a box, and where it was lost if it was."""
    from fastground import explain, figures
    from fastground.models.geometry import read_image

    picture_file(out)
    box = None if truth is None else _box(truth)
    seen = read_image(image)  # before the model is loaded, which takes longer
    grounder = make_grounder(model, ranking, profile, recipe, segmenter, read=STATISTICS)
    explained = explain.explain(grounder, seen, expression, box)
    if out is not None:
        figures.save(explain.figure(explained), out)
    if as_json:
        terminal.print_json(
            image=str(image), checkpoint=model, recipe=grounder.recipe.to_dict(),
            **explained.to_dict(),
        )  # fmt: skip
        return
    for look in explained.looks:
        x, y = look.peak
        print(f"{look.head}: attention sum {look.attention_sum:.3f} (tau {explained.tau:.3f}), "
              f"entropy {look.entropy:.3f}, peak at {x:.0f}, {y:.0f}")  # fmt: skip
    print(f"sum: cut at its mean {explained.mean:.4g}")
    for part in explained.parts:
        corners = ", ".join(f"{v:.1f}" for v in part.box)
        name = "kept" if part.kept else "object" if part.other else "region"
        print(f"{name:6} {corners}: {part.cells} cells, area "
              f"{part.area:g}, {100 * part.share:.1f} % of the foreground")  # fmt: skip
    found = explained.grounding
    corners = ", ".join(f"{float(v):.1f}" for v in found.box)
    print(f"box {corners}, score {found.score:.2f}, mask of {int(found.mask.sum())} pixels")
    for remark in explained.remarks:
        print(remark)


def _box(text: str) -> tuple[float, float, float, float]:
    try:
        x1, y1, x2, y2 = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"--truth must be X1,Y1,X2,Y2 in pixels, but got {text!r}") from None
    return x1, y1, x2, y2
