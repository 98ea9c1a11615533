"""What the embedded model scores on shapes: every table of the README's section on scores.

    python benches/tiny_shapes.py [--held-out 2000] [--trials 5] [--per-trial 1000]
    python benches/tiny_shapes.py --several     only expressions that mean several objects
    python benches/tiny_shapes.py --readme      from benches/results/tiny-shapes.json alone

Heads come from training expressions, scores from held-out ones: the method beside its ablations,
chance and the oracle; by kind and size of the object, with masks cut from the map and by GrabCut;
the paper's tables 4, 5 and 8; and choice by choice to the authors' release. The section lies
between two HTML comments of README.md; nobody edits it by hand, and a test holds it to the results;
what these lack is left out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import harness
import readme_tables
from fastground import datasets, discovery, models, terminal
from fastground.comparison import compare, paper_table
from fastground.evaluation import evaluate
from fastground.grounder import Grounder
from fastground.ranking import rank_table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benches" / "results" / "tiny-shapes.json"
README = ROOT / "README.md"
BEGIN, END = "<!-- scores: by benches/tiny_shapes.py -->\n", "<!-- end of scores -->\n"
TABLES = ("4", "5", "8", "switches")
MASKS = {"pseudo-mask": None, "GrabCut": "grabcut"}

Results = dict[str, Any]


def measure(held_out: int, trials: int, per_trial: int, seed: int = 0) -> Results:
    """Every number of the section."""

    def stream(split: str, count: int) -> Any:
        return datasets.load("shapes", split=split, num_samples=count, seed=seed)

    seconds: dict[str, float] = {}

    def timed(name: str, what: Any) -> Any:
        start = time.perf_counter()
        made = what()
        seconds[name] = round(time.perf_counter() - start, 1)
        print(f"{name}: {seconds[name]} s", flush=True)
        return made

    lvlm = models.load("tiny")
    table = timed(
        "discovery",
        lambda: discovery.collect(
            lvlm, stream("train", trials * per_trial), dataset="shapes", split="train"
        ),
    )
    ranking = rank_table(table, trials=trials, seed=seed)
    comparison = timed(
        "comparison", lambda: compare(lvlm, table, ranking, stream("test", held_out), seed=seed)
    )
    scores = {}
    for name, segmenter in MASKS.items():
        grounder = Grounder(lvlm, ranking, segmenter=segmenter)
        samples = stream("test", held_out)
        if segmenter is not None:  # what does not hang on masks is asked once
            samples = (replace(sample, answer=()) for sample in samples)
        scores[name] = timed(
            f"evaluation, {name}",
            lambda grounder=grounder, samples=samples: evaluate(
                grounder, samples, baseline="text-box", seed=seed
            ),
        )
    tables = {
        number: timed(
            f"table {number}",
            lambda number=number: paper_table(
                number, lvlm, ranking, stream("test", held_out), table=table, seed=seed
            ),
        )
        for number in TABLES
    }
    return {
        "command": f"python benches/tiny_shapes.py --held-out {held_out} --trials {trials} "
        f"--per-trial {per_trial}",
        "machine": harness.machine(),
        "commit": harness.commit(),
        "date": date.today().isoformat(),
        "ranking": ranking.to_dict(),
        "comparison": compact(comparison.to_dict()),
        "scores": {name: each.to_dict() for name, each in scores.items()},
        "tables": {number: compact(each.to_dict()) for number, each in tables.items()},
        "seconds": seconds,
    }


def measure_several(held_out: int, seed: int = 0) -> Results:
    """Expressions of several objects, by the model's own heads."""
    made = Grounder.from_pretrained("tiny")
    samples = datasets.load("shapes", split="test", num_samples=held_out, seed=seed, several=True)
    found = paper_table("objects", made.lvlm, made.ranking, samples, seed=seed)
    return {
        "command": f"python benches/tiny_shapes.py --several --held-out {held_out}",
        "machine": harness.machine(),
        "commit": harness.commit(),
        "date": date.today().isoformat(),
        "heads": [list(head) for head in made.heads],
        "table": compact(found.to_dict()),
    }


def compact(comparison: Results) -> Results:
    """A comparison whose rows keep of their parts the accuracy by kind alone."""
    for row in comparison["rows"]:
        kinds = row["scores"].pop("parts")["kind"]
        row["scores"]["by_kind"] = {name: part["accuracy"] for name, part in kinds.items()}
    return comparison


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def span(interval: list[float]) -> str:
    return " to ".join(map(percent, interval))


def section(results: Results) -> str:
    """The README's words and tables for these results."""
    tables = [words(results), heads(results)]
    tables += [parts(results)] * ("scores" in results)
    if "tables" in results:
        tables += [counts(results), criteria(results), smoothing(results)]
        tables += [switches(results)] * ("switches" in results["tables"])
    tables += [objects(results["several"])] * ("several" in results)
    return "\n".join("\n".join(table) + "\n" for table in tables)


def words(results: Results) -> Iterator[str]:
    comparison, ranking = results["comparison"], results["ranking"]
    trials = len(ranking["trials"])
    yield (
        f"`{results['command']}`: the model `tiny` on {comparison['num_samples']:,} held-out "
        "expressions of `shapes`,"
    )
    yield (
        f"its heads found in {trials} trials of {ranking['num_samples'] // trials:,} training "
        "expressions, under the paper's recipe"
    )
    yield "(`benches/results/tiny-shapes.json`). Percent, but for the mean IoU:"


def heads(results: Results) -> Iterator[str]:
    comparison = results["comparison"]
    kinds = list(comparison["rows"][0]["scores"]["by_kind"])
    masks = [name for name in ("ciou", "giou") if name in comparison["rows"][0]["scores"]]
    columns = ["", "Acc@0.5", "mean IoU", "pointing", *kinds]
    yield from head([*columns, *(name.replace("iou", "IoU") for name in masks)])
    for i, row in enumerate(comparison["rows"]):
        scores = row["scores"]
        spread = f" ± {100 * row['accuracy_std']:.1f}" if row["accuracy_std"] else ""
        yield line(
            f"**{row['name']}**" if i == 0 else row["name"],
            percent(scores["accuracy"]) + spread, f"{scores['mean_iou']:.3f}",
            percent(scores["pointing"]), *(percent(scores["by_kind"][k]) for k in kinds),
            *(percent(scores[name]) for name in masks),
        )  # fmt: skip


def parts(results: Results) -> Iterator[str]:
    first = results["scores"]["pseudo-mask"]
    columns = ["the method", "expressions", "Acc@0.5", "95 %"]
    for name in MASKS:
        columns += [f"cIoU, {name}", "95 %", "gIoU"]
    yield from head(columns)
    places = [("all", None, None)]
    places += [(name, of, name) for of in ("kind", "third") for name in first["parts"][of]]
    for said, of, name in places:
        each = [results["scores"][m] if of is None else results["scores"][m]["parts"][of][name]
                for m in MASKS]  # fmt: skip
        cells = [f"{each[0]['num_samples']:,}", percent(each[0]["accuracy"])]
        cells.append(span(each[0]["interval"]))
        for part in each:
            cells += [percent(part["ciou"]), span(part["ciou_interval"]), percent(part["giou"])]
        yield line(said, *cells)


def counts(results: Results) -> Iterator[str]:
    rows = results["tables"]["4"]["rows"]
    yield from head(["table 4", *(row["name"] for row in rows)])
    yield line("Acc@0.5", *(percent(row["scores"]["accuracy"]) for row in rows))
    yield line("cIoU", *(percent(row["scores"]["ciou"]) for row in rows))


def criteria(results: Results) -> Iterator[str]:
    found = {row["name"]: row["scores"] for row in results["tables"]["5"]["rows"]}
    yield from head(["table 5, Acc@0.5", "fixed heads", "95 %", "greedy", "95 %"])
    for name in dict.fromkeys(key.rpartition(", ")[0] for key in found):
        each = [found[f"{name}, {how}"] for how in ("fixed", "greedy")]
        cells = [cell for s in each for cell in (percent(s["accuracy"]), span(s["interval"]))]
        yield line(name, *cells)


def smoothing(results: Results) -> Iterator[str]:
    rows = results["tables"]["8"]["rows"]
    plain, *grid = rows
    found = {row["name"]: row["scores"]["accuracy"] for row in grid}
    sigmas, sizes = (
        list(dict.fromkeys(name.split(", ")[i].split()[1] for name in found)) for i in (0, 1)
    )
    yield from head(["table 8, Acc@0.5", *(f"kernel {size}" for size in sizes)])
    for sigma in sigmas:
        cells = (percent(found[f"sigma {sigma}, kernel {size}"]) for size in sizes)
        yield line(f"sigma {sigma}", *cells)
    yield line(plain["name"], percent(plain["scores"]["accuracy"]), *[""] * (len(sizes) - 1))


def switches(results: Results) -> Iterator[str]:
    yield from head(["choice by choice", "Acc@0.5", "95 %", "mean IoU", "cIoU"])
    for row in results["tables"]["switches"]["rows"]:
        scores = row["scores"]
        cells = percent(scores["accuracy"]), span(scores["interval"]), f"{scores['mean_iou']:.3f}"
        yield line(row["name"], *cells, percent(scores["ciou"]))


def objects(several: Results) -> Iterator[str]:
    rows = several["table"]["rows"]
    yield from head([f"several objects ({several['table']['num_samples']:,})",
                     *(row["name"] for row in rows)])  # fmt: skip
    for name, key in (("recall", "object_recall"), ("precision", "object_precision"),
                      ("Acc@0.5, all as one", "accuracy"), ("cIoU", "ciou")):  # fmt: skip
        yield line(name, *(percent(row["scores"][key]) for row in rows))


def head(columns: list[str]) -> Iterator[str]:
    yield line(*columns)
    yield line("---", *["---:"] * (len(columns) - 1))


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--held-out", type=int, default=2000)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--per-trial", type=int, default=1000)
    parser.add_argument("--several", action="store_true", help="only what means several objects")
    parser.add_argument("--readme", action="store_true", help="only rewrite README.md")
    given = parser.parse_args()
    results = json.loads(RESULTS.read_text())
    if given.several:
        results["several"] = measure_several(given.held_out)
    elif not given.readme:
        results |= measure(given.held_out, given.trials, given.per_trial)
        results["several"] = measure_several(given.held_out)
    terminal.write_json(RESULTS, **results)
    before, _, after = readme_tables.split(README.read_text(encoding="utf-8"), BEGIN, END)
    README.write_text(before + section(results) + after, encoding="utf-8")


if __name__ == "__main__":
    main()
