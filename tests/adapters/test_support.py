"""The support table says what the tests of the adapters show, no more and no less."""

import json
import re
from pathlib import Path

import pytest
from families import all_families
from fastground import cli, models
from fastground.models import support
from test_adapters import made

TESTED = ("native", "conversion", "hooks")
ROWS = {row.name: row for row in support.table()}
FAMILIES = {family.name: family for family in all_families()}


def test_every_row_has_its_tests_and_every_test_its_row():
    tested = {name for name, row in ROWS.items() if row.how in TESTED}
    families = {n: f for n, f in FAMILIES.items() if (f.row or n) not in tested}
    without = {name for name, family in families.items() if made(family).how != "generic"}
    assert tested - FAMILIES.keys() == set(), "rows without a Family of that name"
    assert without == set(), "families without a row"


def test_every_model_of_transformers_has_a_row():
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as LOADED,
    )

    named = {
        kind.partition("+")[0] for row in ROWS.values() for kind in (row.name, *row.model_types)
    }
    assert set(LOADED) - named == set()


@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if (f.row or n) in ROWS])
def test_a_row_tells_the_truth_of_its_family(name):
    row, lvlm = ROWS[FAMILIES[name].row or name], made(FAMILIES[name])
    assert lvlm.how in (row.how, "native")  # conversions may make what transformers knows
    assert lvlm.model.config.model_type in [kind.partition("+")[0] for kind in row.model_types]
    assert row.packs or not lvlm.shares_prefix
    assert len(row.remarks) > 10 and "\n" not in row.remarks


def test_rows_are_one_each_and_in_order():
    rows = support.table()
    assert len(ROWS) == len(rows)
    assert {row.how for row in rows} <= set(support.HOW)
    assert all(bool(row.model_types) == (row.how != "generic") for row in rows)
    places = [(support.HOW.index(row.how), row.name) for row in rows]
    assert places == sorted(places)
    assert set(models.ADAPTERS) <= ROWS.keys() | {t for row in rows for t in row.model_types}


@pytest.mark.parametrize("name", support.PAPER)
def test_all_ten_of_the_paper_have_a_row(name):
    assert name in ROWS[support.PAPER[name]].paper
    assert ROWS[support.PAPER[name]].how in TESTED


def test_the_readme_says_what_is_read_only_beside_torchvision():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (names,) = re.findall(r"only beside torchvision: ([^;]+);", readme)
    needing = {
        family.row or family.name
        for family in FAMILIES.values()
        if not family.loads and family.refusal == "torchvision"
    }
    assert re.findall(r"`(.+?)`", names) == sorted(needing)


def told(capsys, *arguments):
    with pytest.raises(SystemExit) as leaving:
        cli.main(["info", "--models", *arguments])
    assert leaving.value.code == 0
    return capsys.readouterr().out


def test_the_table_is_printed(capsys):
    out = told(capsys)
    for word in ("llava_v1", "conversion", "mini_gemini", "hooks", "Yi-VL-6B", "native"):
        assert word in out
    rows = json.loads(told(capsys, "--json"))["models"]
    assert [row["name"] for row in rows] == list(ROWS)
    [yi] = [row for row in rows if row["name"] == "yi_vl"]
    assert yi["paper"] == ["Yi-VL-6B"] and yi["packs"] is True
