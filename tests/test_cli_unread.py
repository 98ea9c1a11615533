"""Choices that would change nothing: refused with one line that says who reads them."""

import inspect

import pytest
import small_world
from commands import run, strict
from fastground import models
from fastground.cli import unread
from fastground.datasets.annotated import stream
from fastground.discovery import collect
from fastground.evaluation import evaluate
from fastground.grounder import Grounder
from fastground.models.internvl import GotOcr2
from fastground.types import Recipe

GROUND = ("ground", "{photo}", "left circle", "--checkpoint", "{model}", "--ranking", "{heads}")
EVALUATE = ("evaluate", "{model}", "--ranking", "{heads}", "--num-samples", 2)
SEVERAL = (*EVALUATE, "--option", "several=true")


@pytest.mark.parametrize(
    ("command", "changes", "says"),
    [
        (GROUND, ["prompt=box+mask"],
         "recipe.prompt must be 'box' here, but got 'box+mask', which only a segmenter reads; name "
         "one with --segmenter"),
        (GROUND, ["masks=best of three"], "name one with --segmenter"),
        ((*GROUND, "--segmenter", "grabcut"), ["masks=best of three"], "several proposals"),
        (GROUND, ["generic=the thing"], "add --recipe sinks=relative"),
        (GROUND, ["generic=the thing", "sinks=drop"], "add --recipe sinks=relative"),
        (GROUND, ["sink_share=0.2", "sinks=centre"], "add --recipe sinks=drop"),
        (GROUND, ["kernel_size=3", "sigma=0"], "give sigma above 0"),
        (GROUND, ["kernel_size=1", "sigma=2"], "give kernel_size above 1"),
        (GROUND, ["border=reflect", "sigma=0"], "give sigma above 0 and kernel_size above 1"),
        (GROUND, ["blocks=stitch"], "{model} does not; leave it out"),
        (EVALUATE, ["objects=0.2"], "only --plurals union reads; add it"),
        ((*EVALUATE, "--table", "4"), ["k=2"], "table 4 itself varies"),
        ((*EVALUATE, "--table", "8"), ["sigma=2"], "table 8 itself varies"),
        ((*EVALUATE, "--table", "5"), ["criteria=entropy"], "table 5 itself varies"),
        ((*EVALUATE, "--table", "heads"), ["selection=greedy"], "table heads itself varies"),
        ((*EVALUATE, "--table", "heads"), ["prompt=box+mask"], "no table reads"),
        ((*SEVERAL, "--table", "objects"), ["objects=0.1"], "table objects itself varies"),
        ((*EVALUATE, "--table", "objects"), [], "shapes with --option several=true"),
        ((*EVALUATE, "--plurals", "union"), ["objects=0.1"], "--plurals union scores what means"),
        (("rank", "{heads}"), ["sigma=2"], "add --out FILE, so that the ranking tells it"),
        (("report", "{heads}"), ["sigma=2"], "add --examples N"),
        (("report", "{heads}", "--model", "tiny"), [], "--model says how examples are made"),
        (("report", "{heads}", "--data", "here"), [], "--data says how examples are made"),
        (("demo",), ["masks=best of three"], "the demo does not read"),
        (("discover", "{model}", "--retry-skipped"), [], "give out=FOLDER (--out FOLDER)"),
    ],
)  # fmt: skip
def test_what_changes_nothing_is_refused(capsys, model, heads, photo, command, changes, says):
    if "grabcut" in command:
        pytest.importorskip("cv2")
    places = {"model": model, "heads": heads, "photo": photo}
    asked = [a for change in changes for a in ("--recipe", change)]
    code, out, err = run(capsys, *(str(a).format(**places) for a in command), *asked)
    last = err.splitlines()[-1]
    assert code == 2 and not out and last.startswith("fastground: ")
    assert says.format(**places) in last


@pytest.mark.parametrize(
    "changes",
    [
        ["prompt=box", "masks=one"],  # what holds
        ["sigma=0"], ["kernel_size=1"], ["sigma=0", "kernel_size=1"],
        ["sinks=relative", "generic=the thing"], ["sinks=drop", "sink_share=0.2"],
        ["objects=0.2", "border=reflect", "k=2"],
    ],
)  # fmt: skip
def test_what_is_read_is_taken(capsys, model, heads, photo, changes):
    asked = [a for change in changes for a in ("--recipe", change)]
    command = [str(a).format(model=model, heads=heads, photo=photo) for a in GROUND]
    code, out, _ = run(capsys, *command, *asked, "--json")
    told = strict(out)["recipe"]
    assert code == 0
    assert all(str(told[name]) == value.replace("sigma=0", "0.0") or float(told[name]) ==
               float(value) for name, value in (c.split("=") for c in changes))  # fmt: skip


def test_a_profile_is_a_whole_and_passes(capsys, model, heads):
    """Its k is what table 4 varies."""
    options = ("--ranking", heads / "ranking.json", "--num-samples", 2, "--table", "4", "--json")
    code, out, _ = run(capsys, "evaluate", model, *options, "--profile", "repo-2025-08")
    assert code == 0 and strict(out)["recipe"]["k"] == 5


def test_a_recipe_in_python_may_say_more_than_is_read():
    assert Recipe(prompt="box+mask", generic="the thing", kernel_size=1).generic == "the thing"


def test_a_keyword_that_nobody_would_read_is_refused():
    grounder = Grounder(small_world.lvlm(), small_world.ranking())
    with pytest.raises(ValueError, match=r"resume says .* give out=FOLDER"):
        evaluate(grounder, small_world.samples(), resume=False)
    for name, given in (("resume", False), ("retry_skipped", True)):
        with pytest.raises(ValueError, match=rf"{name} says .* give out=FOLDER"):
            collect(small_world.lvlm(), small_world.samples(), **{name: given})
    with pytest.raises(ValueError, match=r"seed draws num_samples .* leave out seed=3"):
        stream([], seed=3)


def test_every_field_has_its_reader():
    """The table of unread.py names fields that there are."""
    named = {*unread.STATISTICS, *unread.CHOICE, *unread.GROUNDING}
    others = {"k", "blocks", "query", "template", "ensure_period"}
    assert named.isdisjoint(others) and named | others == set(Recipe().to_dict())


def test_who_sees_tiles_reads_blocks():
    for adapter in set(models.ADAPTERS.values()):
        sources = [inspect.getsource(c) for c in adapter.__mro__ if c.__module__ != "abc"
                   and c.__module__.startswith("fastground.models.")
                   and not c.__module__.endswith(".lvlm")]  # fmt: skip
        reads = any("recipe.blocks" in source for source in sources)
        assert adapter.sees_tiles == reads or issubclass(adapter, GotOcr2), adapter
