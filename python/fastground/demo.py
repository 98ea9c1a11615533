"""The whole way on the model that ships along: discover, compare, ground, and tell it on a page."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path
from typing import Any

from fastground import datasets, discovery, figures, models, report, tables, terminal
from fastground.ablations import ablate
from fastground.attention import attention_maps
from fastground.comparison import Comparison, compare
from fastground.grounder import Grounder
from fastground.models import LVLM
from fastground.ranking import rank_table
from fastground.report.examples import Example, grounded
from fastground.report.walk import IMAGE, Walk
from fastground.stats import head_statistics
from fastground.table import HeadTable
from fastground.types import RANKING_FILE, HeadRanking, Recipe

EXAMPLES = 9
FAILURES = 3
LOOKED_AT = 200
"""Held-out expressions in which the page's examples and failures are looked for."""


def run(
    out: Path, *, checkpoint: str = "tiny", dataset: str = "shapes", num_samples: int = 1000,
    trials: int = 5, seed: int = 0, recipe: Recipe = Recipe(),
) -> dict[str, Any]:  # fmt: skip
    """Run all of it, print the tables, write `out/index.html`, its pictures and results.json.

    Args:
        out: a folder.
        checkpoint: the model.
        dataset: the data set; heads come from its training split, scores from its test split.
        num_samples: held-out expressions, and training expressions of each trial.
        trials: as in the paper, each on other training expressions; the ranking is over them all.
        seed: of the expressions and the parts.
        recipe: every choice of the method.

    Returns:
        The page's path, ranking, comparison and seconds a step took, as JSON can hold it.
    """

    def stream(split: str, count: int) -> Any:
        return datasets.load(dataset, split=split, num_samples=count, seed=seed)

    lvlm = models.load(checkpoint)
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    count = trials * num_samples
    with terminal.progress("discovering heads", count) as advance:
        table = discovery.collect(
            lvlm, stream("train", count), recipe=recipe, dataset=dataset, split="train",
            progress=advance,
        )  # fmt: skip
    ranking = rank_table(table, trials=trials, seed=seed)
    seconds["discovery"] = time.perf_counter() - start
    ranking.save(out / RANKING_FILE)
    terminal.show(tables.of_ranking(ranking))

    start = time.perf_counter()
    with terminal.progress("comparing on held-out", num_samples) as advance:
        held_out = stream("test", num_samples)
        comparison = compare(lvlm, table, ranking, held_out, seed=seed, progress=advance)
    seconds["comparison"] = time.perf_counter() - start
    terminal.show(tables.of_comparison(comparison))
    for name, value in tables.comparison_facts(comparison):
        print(f"{name}: {value}")

    start = time.perf_counter()
    page = _tell(out, lvlm, table, ranking, comparison, stream("test", num_samples), seconds, seed)
    seconds["page"] = time.perf_counter() - start
    told = {
        "page": str(page),
        "ranking": ranking.to_dict(),
        "comparison": comparison.to_dict(),
        "seconds": seconds,
    }
    terminal.write_json(out / "results.json", **told)
    (out / "results.md").write_text(tables.comparison_markdown(comparison))
    print("\n" + ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()))
    print(f"wrote {page}")
    return told


def _tell(
    out: Path, lvlm: LVLM, table: HeadTable, ranking: HeadRanking, comparison: Comparison,
    samples: Any, seconds: dict[str, float], seed: int,
) -> Path:  # fmt: skip
    """Ground the first held-out expressions and write the page."""
    found = list(grounded(Grounder(lvlm, ranking), islice(samples, LOOKED_AT)))
    examples = _one_an_image(found)[:EXAMPLES]
    others = [e for e in found if all(e is not shown for shown in examples)]
    failures = _one_an_image([e for e in others if e.iou < 0.5])[:FAILURES]
    clear = max(found, key=lambda e: (e.sample.kind == "relation", e.iou))
    best = comparison.rows[0].scores
    same, trials = comparison.agreement
    shape = ranking.architecture
    page = report.write(
        out,
        ranking,
        ablations=ablate(table, ranking, seed=seed),
        ious=table.mean_ious,
        comparison=comparison,
        facts=[
            ("of the boxes right (Acc@0.5)", f"{100 * best.accuracy:.0f} %"),
            ("point at the object", f"{100 * best.pointing:.0f} %"),
            (
                f"of {shape['num_layers'] * shape['num_heads']} heads read",
                f"{ranking.recipe.k}",
            ),
            ("trials with the same heads", f"{same} of {trials}"),
        ],
        example=_walk(lvlm, ranking.recipe, clear),
        galleries={
            "Held-out expressions, as they came": examples,
            "Where it fails": failures,
        },
        details=[
            *tables.comparison_facts(comparison),
            ("run times", ", ".join(f"{k} {v:.0f} s" for k, v in seconds.items())),
        ],
    )
    one = clear.grounding
    figures.save(figures.figure(one, clear.sample.image, clear.sample.box), out / "grounding.png")
    sheet = figures.contact_sheet(
        [e.grounding for e in examples],
        [e.sample.image for e in examples],
        [e.sample.box for e in examples],
        columns=3,
    )
    figures.save(sheet, out / "examples.png")
    return page


def _one_an_image(examples: list[Example]) -> list[Example]:
    """The first of every image, in order."""
    first: dict[int, Example] = {}
    for example in examples:
        first.setdefault(example.sample.image_id, example)
    return list(first.values())


def _walk(lvlm: LVLM, recipe: Recipe, example: Example) -> Walk:
    """Every head's map of one example, and its sequence as people read it."""
    image, expression = example.sample.image, example.sample.expression
    attention = attention_maps(lvlm, image, [expression], recipe=recipe)
    encoded = lvlm.encode(image, [expression], recipe)
    ids = encoded.token_ids[0].tolist()
    image_id = lvlm.image_token_id
    shown = [i for i, t in enumerate(ids) if t != image_id or i == ids.index(image_id)]
    words = lvlm.processor.tokenizer.convert_ids_to_tokens([ids[i] for i in shown])
    tokens = [IMAGE if ids[i] == image_id else w for i, w in zip(shown, words, strict=True)]
    asking = shown.index(encoded.asking[0][-1])
    return Walk(example, tokens, asking, attention, head_statistics(attention, recipe))
