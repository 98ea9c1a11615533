"""fastground info: what is installed, and what runs where."""

from __future__ import annotations

from typing import Annotated

import typer

from fastground import tables, terminal
from fastground.cli.options import Json


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
            terminal.show(tables.of_support(support.table()))
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
        source = (
            f"{ranking['num_samples']:,} expressions of {ranking['dataset']} {ranking['split']}"
        )
        source = ranking.get("provenance", source)
        print(f"{'ranking':13} {ranking['checkpoint']}: {', '.join(ranking['heads'])} ({source})")
    terminal.show(tables.of_operations(facts["operations"]))
