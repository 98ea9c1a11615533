"""The README: its code runs, its commands exist, its tree, links and numbers are true."""

import json
import re
import shlex
from pathlib import Path

import fastground
import pytest
from fastground import cli
from fastground.models import support
from fastground.types import CHOICES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TINY = Path(fastground.__file__).parent / "tiny" / "checkpoint" / "ranking.json"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.M | re.S)


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[-1])
def test_code_runs(code, tmp_path, monkeypatch, capsys):
    if '"tiny"' in code and not TINY.is_file():
        pytest.skip("the embedded model is not trained yet")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out


def commands():
    for block in blocks("sh"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


@pytest.mark.parametrize("words", [w for w in commands() if w[0] == "fastground"], ids=" ".join)
def test_commands_exist_with_these_options(words, capsys):
    with pytest.raises(SystemExit) as leaving:
        cli.main([words[1], "--help"])
    shown = capsys.readouterr().out
    assert leaving.value.code == 0
    assert all(word in shown for word in words if word.startswith("--"))


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    wanted = {w[1] for w in commands() if w[0] == "make"} | set(
        re.findall(r"`make ([\w-]+)", README)
    )
    assert wanted and all(re.search(rf"^{target}:", makefile, flags=re.M) for target in wanted)


def test_tree_is_the_real_one():
    (tree,) = blocks("tree")
    folder, named = Path(), set()
    for line in tree.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = Path(name)
        path = folder if not line.startswith(" ") else folder / name
        assert (ROOT / path).exists(), path
        assert (ROOT / path).is_dir() == name.endswith("/")
        named.add(path.as_posix())
    hidden = {"__init__", "terminal", "info", "demo"}
    for module in (ROOT / "python" / "fastground").glob("*.py"):
        path = module.relative_to(ROOT).as_posix()
        assert path in named or module.stem in hidden, f"{path} is missing in the README's tree"


def test_links_and_pictures_are_there():
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)|<img src=\"([^\"]+)\"", README):
        name = next(filter(None, target))
        assert (ROOT / name).is_file(), name


def test_scores_are_what_the_run_gave(monkeypatch):
    """The section on scores against the committed results of the run."""
    monkeypatch.syspath_prepend(str(ROOT / "benches"))
    import readme_tables
    import tiny_shapes

    _, written, _ = readme_tables.split(README, tiny_shapes.BEGIN, tiny_shapes.END)
    results = json.loads(tiny_shapes.RESULTS.read_text())
    assert written == tiny_shapes.section(results), "run `python benches/tiny_shapes.py --readme`"


def test_models_are_those_of_the_support_table():
    """By how they work; a star where the expressions of an image do not share its tokens."""
    written = re.findall(r"^\| (\w+): .+? \| (`.+) \|$", README, flags=re.M)
    assert [how for how, _ in written] == sorted(dict(written), key=support.HOW.index)
    rows = [
        (how, name, not star)
        for how, names in written
        for name, star in re.findall(r"`([^`]+)`( \\\*)?", names)
    ]
    told = [(row.how, row.name, row.packs is not False) for row in support.table()]
    assert sorted(rows) == sorted(told)


@pytest.mark.parametrize("field", ["blocks", "query"])
def test_choices_of_a_map_are_those_of_the_recipe(field):
    (rest,) = re.findall(rf"^\| `{field}` (\|.*?)(?=^\| `|^$)", README, flags=re.M | re.S)
    assert tuple(re.findall(r"\| `(\w+)` \|", rest)) == CHOICES[field]


def test_speed_is_what_the_benchmarks_gave(monkeypatch):
    """The section on speed against the committed results that it names."""
    monkeypatch.syspath_prepend(str(ROOT / "benches"))
    import readme_tables

    _, written, _ = readme_tables.split(README)
    path = ROOT / "benches" / "results" / readme_tables.named_in(README)
    assert path.is_file(), "the section on speed names no results file"
    assert written == readme_tables.section(json.loads(path.read_text()), path.name), (
        f"run `python benches/readme_tables.py {path.relative_to(ROOT)}`"
    )


def test_the_opening_table_is_of_the_scores():
    """Row by row the beginning of a row in the section on scores."""
    opening, _, rest = README.partition("\n## ")
    rows = re.findall(r"^\| (?!---|`tiny`).+\|$", opening, flags=re.M)
    assert len(rows) == 5 and all(f"\n{row} " in rest for row in rows)
