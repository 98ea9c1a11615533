"""`fastground evaluate` and the choices it takes: scores, tables, folders, what is refused."""

import json

import pytest
from commands import run, strict
from fastground import datasets, runs
from fastground.datasets.shapes.export import export
from fastground.ranking import rank_table
from fastground.types import Recipe


def test_evaluate_scores_and_compares(capsys, model, heads):
    options = (model, "--ranking", heads, "--num-samples", 8)
    code, out, _ = run(capsys, "evaluate", *options, "--json")
    scores = strict(out)["scores"]
    assert code == 0 and scores["num_samples"] == 8 and 0 <= scores["accuracy"] <= 1
    code, out, _ = run(capsys, "evaluate", *options)
    assert code == 0 and "Acc@0.5" in out and "recipe: paper" in out
    code, out, _ = run(capsys, "evaluate", *options, "--profile", "repo-2025-06")
    assert code == 0 and "3 heads, own for each sample" in out and "recipe: repo-2025-06" in out
    several = ("--option", "several=true")
    objects = ("--plurals", "union", "--recipe", "objects=0.2")
    code, out, _ = run(capsys, "evaluate", *options, *several, *objects)
    said = " ".join(out.split())
    assert code == 0 and "plurals by all of their objects" in said
    assert "of several objects at IoU 0.5: recall" in said
    code, out, _ = run(capsys, "evaluate", *options, *several, "--table", "objects")
    assert code == 0 and "precision" in out and "share 0.05" in out
    sigma = ("--recipe", "sigma=2.0")
    code, out, _ = run(capsys, "evaluate", *options, "--table", "heads", *sigma)
    assert code == 0 and "3 random heads" in out and "trials" in out
    assert "recipe: paper, but" in out and "sigma=2.0" in out


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_evaluate_skips_what_cannot_be_read_and_reads_ahead(capsys, model, heads, tmp_path):
    export(tmp_path / "data", 6, 2)
    path = tmp_path / "data" / "train2014" / "COCO_train2014_000000000002.jpg"
    path.write_bytes(path.read_bytes()[:400])
    options = (model, "--ranking", heads, "--dataset", "refcoco", "--data", tmp_path / "data")
    options += ("--split", "train", "--option", "check_sizes=false")
    code, _, err = run(capsys, "evaluate", *options)
    assert code == 2 and "max_bad=0.01" in err.splitlines()[-1] and path.name in err
    told = []
    for workers in (0, 2):
        with pytest.warns(UserWarning, match="they are left out"):
            code, out, _ = run(
                capsys, "evaluate", *options, "--max-bad", 0.5, "--json", "--workers", workers
            )
        told.append(strict(out))
        assert code == 0
    assert told[0] == told[1]
    scores = told[0]["scores"]
    assert scores["skipped"] > 0 and scores["num_samples"] > 0
    with pytest.warns(UserWarning, match="they are left out"):
        code, out, _ = run(capsys, "evaluate", *options, "--max-bad", 0.5)
    assert code == 0 and f"could not be read: {scores['skipped']}" in out
    assert "drawn" not in out


def test_objects_of_a_list_are_counted(capsys, model, heads, tmp_path):
    lines = []
    for sample in datasets.load("shapes", split="test", num_samples=3, several=True):
        sample.image.save(tmp_path / f"{sample.image_id}.png")
        line = {"image": f"{sample.image_id}.png", "expression": sample.expression}
        lines.append(json.dumps({**line, "boxes": sample.boxes}))
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    options = ("--ranking", heads, "--dataset", "listed", "--data", tmp_path / "mine.jsonl")
    options += ("--split", "test", "--recipe", "objects=0.05", "--json")
    code, out, _ = run(capsys, "evaluate", model, *options)
    scores = strict(out)["scores"]
    assert code == 0 and 0 <= scores["object_recall"] <= 1 and scores["num_samples"] == 3


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_part_of_a_split_is_told_as_that(capsys, model, heads, tmp_path):
    export(tmp_path / "data", 6, 2)
    options = ("--ranking", heads, "--dataset", "refcoco", "--data", tmp_path / "data")
    options += ("--split", "train", "--option", "check_sizes=false", "--num-samples", 2)
    code, out, _ = run(capsys, "evaluate", model, *options)
    assert code == 0 and "on refcoco train, 2 drawn at random" in " ".join(out.split())


def test_evaluate_counts_a_question_about_nothing(capsys, model, heads, tmp_path):
    (tmp_path / "val").mkdir()
    for i, shapes in enumerate([[], [{"label": "x", "points": [[5, 5], [50, 5], [50, 40]]}]]):
        (sample,) = datasets.load("shapes", split="test", num_samples=1, seed=i)
        sample.image.save(tmp_path / "val" / f"{i}.jpg")
        facts = {"text": "the red thing", "is_sentence": False, "shapes": shapes}
        (tmp_path / "val" / f"{i}.json").write_text(json.dumps(facts))
    options = (model, "--ranking", heads, "--dataset", "reasonseg", "--data", tmp_path)
    options += ("--split", "val", "--option", "check_sizes=false")
    code, out, _ = run(capsys, "evaluate", *options, "--json")
    scores = strict(out)["scores"]
    assert code == 0 and (scores["num_samples"], scores["without_object"]) == (2, 1)
    code, out, _ = run(capsys, "evaluate", *options)
    assert code == 0 and "without an object, so that only masks count: 1" in out


@pytest.mark.parametrize(
    "changes",
    [
        ("top_n=10", "elbow=chord"),  # the ranking's own
        ("selection=greedy", "scope=sample", "elbow=0.1", "weight=mass", "skip_layers=1"),
        ("selection=greedy", "criteria=entropy", "cut=mean+eps"),
    ],
)
def test_choices_that_are_read_are_taken(capsys, model, heads, photo, changes):
    asked = [a for change in changes for a in ("--recipe", change)]
    options = ("--checkpoint", model, "--ranking", heads, *asked, "--json")
    code, out, _ = run(capsys, "ground", photo, "left circle", *options)
    told = strict(out)["recipe"]
    assert code == 0 and {c.split("=")[0]: str(told[c.split("=")[0]]) for c in changes} == dict(
        change.split("=") for change in changes
    )


def test_what_the_statistics_read_is_told_by_explain_and_by_a_table(capsys, model, heads, photo):
    options = (model, photo, "left circle", "--ranking", heads, "--json")
    entropies = {}
    for weight in ("area", "mass"):
        code, out, _ = run(capsys, "explain", *options, "--recipe", f"weight={weight}")
        entropies[weight] = [head["entropy"] for head in strict(out)["heads"]]
        assert code == 0
    assert entropies["area"] != entropies["mass"]
    options = (model, "--ranking", heads, "--num-samples", 2, "--table", "4", "--json")
    code, out, _ = run(capsys, "evaluate", *options, "--recipe", "criteria=entropy")
    other = strict(out)["scores"]["rows"][2]["heads"]
    assert code == 0 and other == [
        list(h) for h in rank_table(runs.load(heads), Recipe(criteria="entropy"), trials=2).top()
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("table", "rows"), [("4", 5), ("5", 6), ("8", 17), ("switches", 17)],
    ids=["table 4", "table 5", "table 8", "switches"],
)  # fmt: skip
def test_evaluate_runs_the_tables_of_the_paper(capsys, model, heads, table, rows, tmp_path):
    options = (model, "--ranking", heads, "--num-samples", 8, "--table", table)
    code, out, _ = run(capsys, "evaluate", *options, "--json")
    told = strict(out)["scores"]
    assert code == 0 and len(told["rows"]) == rows and told["num_samples"] == 8
    code, out, _ = run(capsys, "evaluate", *options, "--out", tmp_path)
    assert code == 0 and f"wrote {tmp_path}" in out.replace("\n", "")
    assert strict((tmp_path / "scores.json").read_text()) == told


def test_evaluate_keeps_rows_in_a_folder_and_asks_for_boxes(capsys, model, heads, tmp_path):
    options = (model, "--ranking", heads, "--num-samples", 8, "--out", tmp_path)
    code, out, _ = run(capsys, "evaluate", *options, "--baseline", "text-box", "--json")
    first = strict(out)["scores"]
    assert code == 0 and first["text_boxes"]["parsed"] == 0
    assert strict((tmp_path / "scores.json").read_text()) == first
    assert (tmp_path / "shards" / "00000.parquet").is_file()
    code, out, _ = run(capsys, "evaluate", *options, "--baseline", "text-box")
    assert code == 0 and "a box in 0.0 % of its texts" in out and "scores.json" in out
    code, _, err = run(capsys, "evaluate", *options)
    assert code == 2 and "baseline must be 'text-box'" in err
