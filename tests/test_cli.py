"""The command line: what it prints, what it refuses, what it leaves behind."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from importlib.metadata import version

import pytest
import torch
from commands import run, strict
from fastground import datasets, demo, runs, tables, terminal
from fastground.ablations import ablate
from fastground.cli import discover
from fastground.cli.options import recipe_of
from fastground.datasets.images import by_image
from fastground.ranking import rank_table
from fastground.types import HeadRanking, Recipe
from random_sam import random_sam

COMMANDS = ("ground", "explain", "discover", "evaluate", "rank", "report", "demo", "info")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_json(capsys, command):
    code, out, err = run(capsys, command, "--help")
    assert code == 0 and not err
    assert f"fastground {command}" in out and "--json" in out


def test_discover_writes_what_it_says(capsys, heads):
    ranking = HeadRanking.load(heads / "ranking.json")
    assert ranking.num_samples == 12 and len(ranking.trials) == 2
    assert (ranking.dataset, ranking.split) == ("shapes", "train")


def test_discover_tells_people_and_machines(capsys, model, tmp_path):
    options = (model, "--num-samples", 6, "--trials", 2, "--recipe", "k=2", "--out", tmp_path)
    code, out, _ = run(capsys, "discover", *options)
    assert code == 0 and "elected in" in out and str(tmp_path / "ranking.json") in out
    code, out, _ = run(capsys, "discover", *options, "--json")
    told = strict(out)
    assert code == 0 and len(told["top"]) == 2 and told["recipe"]["k"] == 2
    assert [list(h) for h in HeadRanking.load(tmp_path / "ranking.json").top()] == told["top"]


def test_ground_gives_a_box_and_a_picture(capsys, model, heads, photo, tmp_path):
    picture = tmp_path / "new" / "found.png"
    options = ("--checkpoint", model, "--ranking", heads, "--out", picture)
    code, out, _ = run(capsys, "ground", photo, "the red thing", *options, "--json")
    told = strict(out)
    (grounding,) = told["groundings"]
    assert code == 0 and grounding["expression"] == "the red thing"
    assert len(grounding["box"]) == 4 and len(grounding["heads"]) == 3
    assert picture.stat().st_size > 1000
    both = ("the red thing", "left circle")
    code, out, _ = run(capsys, "ground", photo, *both, *options)
    assert code == 0 and [line.split(":")[0] for line in out.splitlines()] == list(both)


def test_ground_and_evaluate_take_a_segmenter(capsys, model, heads, photo, tmp_path):
    pytest.importorskip("cv2")
    options = ("--checkpoint", model, "--ranking", heads, "--recipe", "box_from=mask", "--json")
    areas = {}
    random_sam("sam").save_pretrained(tmp_path)
    for name in ("none", "grabcut", f"sam:{tmp_path}"):
        code, out, _ = run(capsys, "ground", photo, "left circle", *options, "--segmenter", name)
        (grounding,) = strict(out)["groundings"]
        x1, y1, x2, y2 = grounding["box"]
        areas[name] = grounding["mask_area"]
        assert code == 0 and 0 <= areas[name] <= (x2 - x1) * (y2 - y1)
    assert len(set(areas.values())) == 3
    options = (model, "--ranking", heads, "--num-samples", 4, "--segmenter", "grabcut")
    code, out, _ = run(capsys, "evaluate", *options, "--json")
    assert code == 0 and set(strict(out)["scores"]["by_box"]) == {"map", "mask"}
    code, out, _ = run(capsys, "evaluate", *options)
    assert code == 0 and "box from the mask" in out


def test_ground_takes_a_sentence_apart(capsys, model, heads, photo):
    options = ("--checkpoint", model, "--ranking", heads, "--phrases")
    sentence = "the red star, the small circle left of it"
    code, out, _ = run(capsys, "ground", photo, sentence, *options)
    alone = ["the red star", "the small circle left of the red star"]
    assert code == 0 and [line.split(":")[0] for line in out.splitlines()] == alone
    sentence = "the red star is left of the small circle"
    asked = {}
    for how in ((), ("--in-place",)):
        code, out, _ = run(capsys, "ground", photo, sentence, *options, *how, "--json")
        found = strict(out)["groundings"]
        assert code == 0
        assert [g["expression"] for g in found] == ["the red star", "the small circle"]
        asked[how] = found[1]["mass"]
    assert len(set(asked.values())) == 2


def test_ground_tells_all_objects(capsys, model, heads, photo):
    changes = [a for c in ("objects=0.01", "kernel_size=1") for a in ("--recipe", c)]
    options = ("--checkpoint", model, "--ranking", heads, *changes)
    code, out, _ = run(capsys, "ground", photo, "the red thing", *options, "--json")
    (grounding,) = strict(out)["groundings"]
    assert code == 0 and len(grounding["others"]) > 0
    assert set(grounding["others"][0]) == {"box", "mask_area", "score", "mass"}
    code, out, _ = run(capsys, "ground", photo, "the red thing", *options)
    assert code == 0 and len(out.splitlines()) == 1 + len(grounding["others"])


def test_ground_takes_the_recipe(capsys, model, heads, photo):
    options = ("--checkpoint", model, "--ranking", heads / "ranking.json", "--recipe", "k=1")
    code, out, _ = run(capsys, "ground", photo, "left circle", *options, "--json")
    assert code == 0 and len(strict(out)["groundings"][0]["heads"]) == 1


def test_explain_tells_and_draws_every_step(capsys, model, heads, photo, tmp_path):
    picture = tmp_path / "why.svg"
    options = (model, photo, "the red thing", "--ranking", heads)
    code, out, _ = run(capsys, "explain", *options, "--out", picture, "--truth", "5,5,60,40")
    assert code == 0 and picture.stat().st_size > 10000
    assert out.count("attention sum") == 3 and "\nkept " in out and "with the truth" in out
    code, out, _ = run(capsys, "explain", *options, "--recipe", "k=1", "--json")
    told = strict(out)
    assert code == 0 and len(told["heads"]) == 1 and told["truth"] is None and told["iou"] is None
    assert sum(region["kept"] for region in told["regions"]) == 1
    assert told["recipe"]["k"] == 1 and told["expression"] == "the red thing"


def test_rank_asks_the_table_anew(capsys, monkeypatch, heads, tmp_path):
    """Any choice of how heads are chosen, and the model is never loaded."""
    monkeypatch.delattr("fastground.models.load")
    code, out, _ = run(capsys, "rank", heads, "--trials", 2, "--json")
    assert code == 0
    same = HeadRanking.load(heads / "ranking.json")
    assert strict(out)["top"] == [list(h) for h in same.top()]
    changes = ("--recipe", "elbow=0.1", "--recipe", "k=2", "--recipe", "scope=sample")
    file = tmp_path / "new" / "ranking.json"
    code, out, _ = run(capsys, "rank", heads, *changes, "--ablations", "--out", file, "--json")
    told = strict(out)
    assert code == 0 and told["recipe"]["k"] == 2 and len(told["top"]) == 2
    table = runs.load(heads)
    recipe = table.recipe.replace(elbow=0.1, k=2, scope="sample")
    expected = rank_table(table, recipe, trials=5)
    assert HeadRanking.load(file) == expected
    others = ablate(table, expected)
    assert [c["heads"] for c in told["ablations"]["by_n"]] == [
        [list(h) for h in choice.heads] for choice in others.by_n
    ]  # fmt: skip
    code, out, _ = run(capsys, "rank", heads, *changes, "--ablations")
    assert code == 0 and "attention sum only" in out and "N 14" in out and "95 %" in out


def test_report_writes_a_page(capsys, heads, tmp_path):
    code, out, _ = run(capsys, "report", heads, "--out", tmp_path / "page", "--json")
    assert code == 0 and strict(out)["page"] == str(tmp_path / "page" / "index.html")
    page = (tmp_path / "page" / "index.html").read_text()
    assert "The elbow and the election" in page and "Do the first heads localize?" in page
    options = ("--out", tmp_path / "bare", "--format", "pdf")
    code, out, _ = run(capsys, "report", heads / "ranking.json", *options)
    assert code == 0 and (tmp_path / "bare" / "curve.pdf").is_file()
    assert "What the choice hangs on" not in (tmp_path / "bare" / "index.html").read_text()


def test_report_shows_heads_at_work(capsys, model, heads, tmp_path):
    """The run itself names its model and its data."""
    options = ("--out", tmp_path, "--recipe", "k=2")
    code, *_ = run(capsys, "report", heads, *options, "--examples", 3)
    assert code == 0
    page = (tmp_path / "index.html").read_text()
    assert (
        "Expressions of shapes train, as they came" in page and page.count("data:image/jpeg") == 12
    )
    images = [group[0] for group in by_image(datasets.load("shapes", num_samples=60))][:3]
    assert all(sample.expression in page for sample in images)
    code, _, err = run(
        capsys, "report", heads, *options, "--examples", 1, "--model", tmp_path / "nowhere"
    )
    assert code == 2 and "nowhere" in err


def test_report_of_a_run_that_went_on(capsys, heads, tmp_path):
    """A ranking of fewer samples than the table has by now is not taken for the table's."""
    run_folder = shutil.copytree(heads, tmp_path / "run")
    old = HeadRanking.load(run_folder / "ranking.json")
    dataclasses.replace(old, num_samples=7).save(run_folder / "ranking.json")
    code, *_ = run(capsys, "report", run_folder, "--out", tmp_path / "page")
    assert code == 0 and "12 expressions" in (tmp_path / "page" / "index.html").read_text()


def test_info_says_what_runs_where(capsys):
    code, out, _ = run(capsys, "info", "--json")
    facts = strict(out)
    assert code == 0 and facts["versions"]["torch"] == torch.__version__
    assert bool(facts["cuda"]["devices"]) == torch.cuda.is_available()
    assert facts["cuda"]["devices"] or facts["cuda"]["why"]
    assert {"entropy", "boxes", "attention_rows"} <= set(facts["operations"])
    code, out, _ = run(capsys, "info")
    assert code == 0 and "attention_rows" in out and torch.__version__ in out


def test_demo_goes_the_whole_way(capsys, model, tmp_path):
    told = demo.run(tmp_path, checkpoint=str(model), num_samples=16, trials=2)
    out, _ = capsys.readouterr()
    assert "3 heads, both criteria" in out and "elected in" in out
    assert told["comparison"]["num_samples"] == 16 and strict(json.dumps(told["ranking"]["top"]))
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert lines[2].startswith("| **3 heads, both criteria** | ") and len(lines) == 12
    page = (tmp_path / "index.html").read_text()
    assert "image: 6 &times; 6 tokens" in page and "How well it works" in page
    for name in ("grounding.png", "examples.png", "ranking.json", "results.json", "step5-box.png"):
        assert (tmp_path / name).is_file()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nonsense"], "nonsense"),
        (["ground", "a.png"], "expression"),
        (["ground", "a.png"], "see fastground ground --help"),
        (["ground", "{photo}", "left circle", "--checkpoint", "tinny"], "there is no 'tinny'"),
        (["rank", "{heads}", "--out", "{heads}"], "--out must be a file"),
        (["ground", "nowhere.png", "the mug", "--checkpoint", "{model}", "--ranking", "{heads}"],
         "nowhere.png"),
        (["explain", "no/model", "nowhere.png", "the mug"], "nowhere.png"),  # before it is loaded
        (["ground", "{model}/config.json", "left circle", "--checkpoint", "{model}",
          "--ranking", "{heads}"], "config.json"),
        (["ground", "{photo}", "", "--checkpoint", "{model}", "--ranking", "{heads}"],
         "expression"),
        (["ground", "{photo}", "the zebra", "--checkpoint", "{model}", "--ranking", "{heads}"],
         "zebra"),
        (["ground", "{photo}", "left circle", "--checkpoint", "{model}"], "ranking"),
        (["ground", "{photo}", "left circle", "--out", "found.txt"], ".png"),
        (["ground", "{photo}", "left circle", "--checkpoint", "{model}", "--ranking", "{heads}",
          "--segmenter", "sam:nowhere"], "hf download"),
        (["ground", "{photo}", "left circle", "--checkpoint", "{model}", "--ranking", "{heads}",
          "--segmenter", "scissors"], "grabcut, sam:FOLDER"),
        (["ground", "{photo}", "left circle", "--in-place"], "--phrases"),
        (["explain", "{model}", "{photo}", "left circle", "--ranking", "{heads}",
          "--truth", "1,2,3"], "X1,Y1,X2,Y2"),
        (["explain", "{model}", "{photo}", "left circle", "--ranking", "{heads}",
          "--truth", "1,2,3,9999"], "truth must be"),
        (["explain", "{model}", "{photo}", "left circle", "--out", "why.txt"], ".png"),
        (["evaluate", "{model}", "--ranking", "{heads}", "--table", "4", "--segmenter", "none"],
         "--segmenter"),
        (["evaluate", "{model}", "--ranking", "{heads}", "--table", "4", "--out", "{heads}"],
         "it was written by fastground discover"),
        (["evaluate", "{model}", "--ranking", "{heads}", "--table", "9"],
         "heads, 4, 5, 8, switches"),
        (["evaluate", "{model}", "--ranking", "{heads}", "--baseline", "x"], "text-box"),
        (["evaluate", "{model}", "--ranking", "{heads}", "--plurals", "all"], "region, union"),
        (["evaluate", "{model}", "--ranking", "{heads}", "--plurals", "union",
          "--option", "several=true"],
         "recipe.objects must be a share where plurals is 'union'"),
        (["evaluate", "{model}", "--ranking", "{heads}", "--plurals", "union", "--table", "4"],
         "without --plurals"),
        (["ground", "{photo}", "left circle", "--ranking", "{model}/config.json"], "ranking"),
        (["discover", "{photo}"], "checkpoint"),
        (["discover", "{model}", "--dataset", "nothing"], "dataset"),
        (["discover", "{model}", "--split", "nothing"], "split"),
        (["discover", "{model}", "--num-samples", "0"], "--num-samples"),
        (["discover", "{model}", "--workers", "-1"], "--workers"),
        (["discover", "{model}", "--num-samples", "3", "--trials", "4"], "trials"),
        (["discover", "{model}", "--recipe", "k"], "name=value"),
        (["discover", "{model}", "--recipe", "k=few"], "recipe.k"),
        (["discover", "{model}", "--recipe", "heads=3"], "no field 'heads'"),
        (["discover", "{model}", "--profile", "mine"], "profile"),
        (["evaluate", "{model}", "--ranking", "nowhere"], "nowhere"),
        (["evaluate", "{model}", "--table", "heads"], "--ranking FOLDER"),
        (["evaluate", "{model}", "--table", "5"], "--ranking FOLDER"),
        (["evaluate", "{model}", "--ranking", "{model}", "--table", "heads"], "--ranking FOLDER"),
        (["evaluate", "{model}", "--ranking", "{heads}", "--recipe", "top_n=5"],
         "recipe.top_n must be 10, with which the ranking was made, but got 5, which changes "
         "nothing once heads are chosen; choose them anew with: fastground rank {heads} --recipe "
         "top_n=5 --out FILE, and give that as --ranking"),
        (["evaluate", "{model}", "--ranking", "{heads}/ranking.json", "--recipe", "elbow=0.3"],
         "fastground rank {heads} --recipe elbow=0.3 --out FILE, and give that as --ranking"),
        (["evaluate", "{model}", "--ranking", "{heads}/ranking.json", "--recipe", "scope=sample",
          "--table", "4"], "recipe.scope must be 'mean'"),
        (["ground", "{photo}", "left circle", "--checkpoint", "{model}", "--ranking", "{heads}",
          "--recipe", "weight=mass"],
         "anew with: fastground discover {model} --recipe weight=mass --out FOLDER, and give that"),
        (["ground", "{photo}", "left circle", "--recipe", "top_n=5"],
         "fastground discover tiny --recipe top_n=5 --out FOLDER"),
        (["ground", "{photo}", "left circle", "--checkpoint", "{model}", "--ranking", "{heads}",
          "--recipe", "k=2", "--recipe", "criteria=entropy"], "recipe.criteria must be 'both'"),
        (["ground", "{photo}", "left circle", "--checkpoint", "{model}", "--ranking", "{heads}",
          "--recipe", "selection=greedy", "--recipe", "top_n=5"], "say with k how many heads"),
        (["ground", "{photo}", "left circle", "--checkpoint", "{model}", "--ranking", "{heads}",
          "--recipe", "selection=greedy", "--recipe", "elbow=0.3"], "recipe.elbow must be 'chord'"),
        (["explain", "{model}", "{photo}", "left circle", "--ranking", "{heads}",
          "--recipe", "skip_layers=0"], "recipe.skip_layers must be 2"),
        (["report", "nowhere"], "nowhere"),
        (["report", "{heads}", "--format", "bmp"], "png, svg, pdf"),
        (["report", "{heads}/ranking.json", "--recipe", "k=2"], "need a run's table"),
        (["report", "{heads}", "--examples", "1", "--data", "nowhere"],
         "must have no data; name the data set of your files: --dataset listed"),
        (["rank", "nowhere"], "nowhere has no run.json"),
        (["rank", "{heads}", "--trials", "20"], "trials must be 1 to the 12 samples"),
        (["rank", "{heads}", "--trials", "9999"], "--trials"),
        (["discover", "{model}", "--num-samples", "4"],
         "--trials must be at most --num-samples, 4, since"),
        (["discover", "{model}", "--num-samples", f"{10**23}"], "0 to 10,000,000, but got 1000"),
        (["evaluate", "{model}", "--ranking", "{heads}", "--num-samples", f"{10**23}"],
         "shapes are drawn without end, so ask for fewer"),
        (["evaluate", "{model}", "--max-bad", "nan"], "--max-bad"),
        (["evaluate", "{model}", "--workers", f"{10**9}"], "--workers"),
        (["report", "{heads}", "--examples", f"{10**9}"], "--examples"),
        (["rank", "{heads}", "--profile", "repo-2025-06"], "recipe.weight must be 'area'"),
        (["rank", "{heads}", "--recipe", "elbow=9"], "lower skip_layers or elbow"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line(capsys, model, heads, photo, arguments, says):
    places = {"model": model, "heads": heads, "photo": photo}
    arguments, says = [a.format(**places) for a in arguments], says.format(**places)
    code, out, err = run(capsys, *arguments)
    assert code == 2 and not out
    last = err.splitlines()[-1]
    assert last.startswith("fastground: ") and says in last and "Traceback" not in err


def test_recipe_of_reads_every_kind():
    changes = [
        "elbow=0.3",
        "sigma=2",
        "k=5",
        "bottom_row=none",
        "ensure_period=False",
        "cut=2mean+eps",
    ]
    recipe = recipe_of(Recipe(), "repo-2025-08", changes)
    assert recipe == Recipe.profile("repo-2025-08").replace(
        elbow=0.3, sigma=2.0, k=5, bottom_row=None, ensure_period=False, cut="2mean+eps"
    )
    assert recipe_of(Recipe(k=2), None, ["elbow=curvature"]) == Recipe(k=2, elbow="curvature")


def test_ctrl_c_keeps_what_is_done(capsys, monkeypatch, model, tmp_path):
    whole = datasets.load

    def interrupted(*args, **options):
        for i, sample in enumerate(whole(*args, **options)):
            if i == 5:
                signal.raise_signal(signal.SIGINT)
            yield sample

    monkeypatch.setattr(datasets, "load", interrupted)
    options = ("--num-samples", 40, "--trials", 1, "--out", tmp_path, "--json")
    code, out, err = run(capsys, "discover", model, *options)
    assert code == 130 and "interrupted" in err
    assert (
        strict(out)["num_samples"] == HeadRanking.load(tmp_path / "ranking.json").num_samples == 5
    )


def test_progress_has_a_rate_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with terminal.progress("discovering heads", 40) as advance:
        for done in (10, 20, 30):
            advance(done)
            time.sleep(0.02)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert "30/40" in shown and re.search(r"\d/s", shown)


def test_progress_tells_the_share_of_a_gpu_where_there_is_one(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert terminal.gpu_share(torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 80 + device.index)
    with terminal.progress("", 4, terminal.gpu_share(torch.device("cuda", 7))) as advance:
        advance(1)
    assert "GPU 87 %" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)

    def absent(device):
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(torch.cuda, "utilization", absent)
    assert terminal.gpu_share(torch.device("cuda", 7)) is None


def test_a_second_ctrl_c_stops_at_once():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), terminal.interruptible():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_program_that_is_told_to_ignore_ctrl_c_does():
    """As a shell's script tells those that it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with terminal.interruptible() as stop:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        assert not stop.asked
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_that_another_error_hides(capsys, monkeypatch):
    """An import that is interrupted may end in an ImportError."""

    def load(*_):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("cannot load module more than once per process") from None

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(discover, "recipe_of", load)
    code, out, err = run(capsys, "discover", "tiny")
    assert (code, out, err) == (130, "", "fastground: interrupted\n")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_warning_of_ours_is_one_line():
    plain = warnings.formatwarning
    with terminal.one_line_warnings():
        said = warnings.formatwarning("as published", UserWarning, terminal.__file__, 1)
        assert said == "fastground: as published\n"
        theirs = warnings.formatwarning("old", DeprecationWarning, "/else/where.py", 1)
        assert theirs.startswith("/else/where.py:1: DeprecationWarning: old")
    assert warnings.formatwarning is plain


def test_a_narrow_terminal_loses_nothing_of_a_table(capsys, monkeypatch, heads):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    terminal.show(tables.of_ranking(HeadRanking.load(heads / "ranking.json")))
    told = capsys.readouterr().out
    assert "attention sum" in told and "\u2026" not in told


@pytest.mark.parametrize("command", [
    ("ground", "{photo}", "left circle", "--out", "{photo}/found.png"),
    ("explain", "tiny", "{photo}", "left circle", "--out", "{photo}/new/why.png"),
    ("rank", "{heads}", "--out", "{photo}/ranking.json"),
    ("report", "{heads}", "--out", "{photo}"),
    ("demo", "--out", "{photo}/demo"),
])  # fmt: skip
def test_a_place_that_cannot_be_written_is_said_before_the_work(
    capsys, monkeypatch, heads, photo, command
):
    monkeypatch.delattr("fastground.models.load")
    code, out, err = run(capsys, *(a.format(heads=heads, photo=photo) for a in command))
    says = f"--out must be in a folder that can be written, but '{photo}' is not"
    assert code == 2 and not out and says in err and len(err.splitlines()) == 1


def test_what_the_disk_refuses_is_one_line(capsys, model, heads, photo):
    options = (model, "--ranking", heads, "--num-samples", 2, "--out", photo)
    code, _, err = run(capsys, "evaluate", *options)
    assert code == 2 and f"'{photo}/shards' must be a place that can be" in err.splitlines()[-1]


def test_ctrl_c_before_the_first_sample(capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(discover, "recipe_of", stop)
    code, out, err = run(capsys, "discover", "tiny")
    assert (code, out, err) == (130, "", "fastground: interrupted\n")


def test_version(capsys):
    assert run(capsys, "--version") == (0, f"{version('fastground')}\n", "")


def test_letters_that_the_terminal_lacks_lose_no_result(heads):
    words = [sys.executable, "-m", "fastground.cli", "rank", str(heads)]
    told = subprocess.run(
        words, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}
    )
    assert told.returncode == 0 and not told.stderr and b"? trials" in told.stdout
