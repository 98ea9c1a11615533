"""The architecture, written down once and held: who may import whom, and where heavy things live.

A unit is a module of fastground, or a package with all that is in it. It imports only from lower
rows, never from its own. Layers are cut once more where their modules build on each other: `types`
lies above `recipe`; `ops` above `gpu` and `rows` above what all share; `ranking` above `election`;
`attention`, the way from an image to maps, `segmentation`, that from boxes to masks, and `ahead`,
that from files to what a model takes, below the other pipelines; `cli` above `demo` above
`terminal`. Imports for type checkers alone do not run and are not counted.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "python" / "fastground"

ROWS = (
    # layer 0, nouns and binary
    {"recipe", "regions", "english", "strict_json", "counts", "_core", "_cuda"},
    {"types", "core"},
    # layer 1, implementations
    {"reference", "kernels"},
    # layer 2, the doors
    {"arguments", "dispatch", "nodes"},
    {"gpu", "rows"},
    {"ops"},
    # layer 3, stages
    {"layouts", "layers", "visibility", "seam", "hub", "figures", "chunks"},
    {"asking", "causal", "elbow", "objects", "phrases", "published", "result", "table"},
    {"election", "metrics"},
    {
        "models", "packing", "capture", "stats", "shards", "ranking", "grounding", "datasets",
        "sam", "sinks",
    },
    # layer 4, pipelines
    {"manifest"},
    {"attention", "runs", "segmentation", "scoring", "settings", "charts", "watch"},
    {"textboxes", "ahead", "cluster"},
    {"gathering", "measuring"},
    {"grounder", "discovery", "evaluation", "comparison", "ablations", "report", "explain"},
    # layer 5, commands
    {"tables", "terminal", "info", "bench", "tiny"},
    {"demo"},
    {"cli"},
)  # fmt: skip

ONLY_IN = {
    "transformers": {"models", "seam", "tiny", "sam"},
    "huggingface_hub": {"hub", "models"},
    "segment_anything": {"sam"},
    "cv2": {"segmentation"},
    "tokenizers": {"tiny"},
    "triton": {"kernels"},
    "safetensors": {"models", "tiny"},
    "pyarrow": {"cluster", "datasets", "runs", "shards"},
    "ray": {"cluster"},
    "matplotlib": {"figures", "charts"},
    "typer": {"cli"},
    "rich": {"tables", "terminal"},
}
"""Heavy packages and the units that may name them; elsewhere they must not be needed."""

AT_THE_TOP = {"numpy", "torch", "PIL", "typer"}
"""What may be imported before it is used; Triton in kernels is the one exception."""

CORE_ONLY = re.compile(r"pybind11|Python\.h|torch/|ATen/")


def units():
    """(unit, file) of every Python source; the top-level kernels/ is fastground.kernels."""
    for path in sorted(PACKAGE.rglob("*.py")):
        first = path.relative_to(PACKAGE).parts[0]
        yield first.removesuffix(".py"), path
    for path in sorted((ROOT / "kernels").rglob("*.py")):
        yield "kernels", path


SOURCES = [pytest.param(u, p, id=str(p.relative_to(ROOT))) for u, p in units() if u != "__init__"]
PLACE = {unit: row for row, members in enumerate(ROWS) for unit in members}


def imports(path):
    """(module, names, at the top of the file) of every import that runs."""
    tree = ast.parse(path.read_text(), str(path))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    inside = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, [], id(node) not in inside
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} must import by full names"
            yield node.module, [alias.name for alias in node.names], id(node) not in inside


def test_every_module_has_its_place():
    found = {unit for unit, _ in units()} - {"__init__"}
    assert found <= set(PLACE), "place new modules in ROWS"
    assert set(PLACE) - found <= {"_core", "_cuda"}, "remove modules that are gone"
    assert sum(map(len, ROWS)) == len(PLACE)


@pytest.mark.parametrize(("unit", "path"), SOURCES)
def test_imports_only_point_down(unit, path):
    for module, names, _ in imports(path):
        if module.split(".")[0] != "fastground":
            continue
        parts = module.split(".")[1:]
        used = {parts[0]} if parts else set(names)
        for other in used - {unit}:
            assert other in PLACE, f"{path} takes {other!r} from fastground itself"
            assert PLACE[other] < PLACE[unit], f"{unit} must not import {other}"


@pytest.mark.parametrize(("unit", "path"), SOURCES)
def test_heavy_packages_are_imported_where_they_belong_and_on_use(unit, path):
    import sys

    for module, _, at_the_top in imports(path):
        package = module.split(".")[0]
        if package in ONLY_IN:
            assert unit in ONLY_IN[package], f"{unit} must not import {package}"
        if at_the_top and package not in sys.stdlib_module_names | {"fastground"}:
            allowed = AT_THE_TOP | ({"triton"} if unit == "kernels" else set())
            assert package in allowed, f"{path} must import {package} inside the function using it"


def test_json_is_written_in_one_place():
    writing = {
        path.name for _, path in units() for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("json.dump", "json.dumps")
    }  # fmt: skip
    assert writing == {"strict_json.py"}, "its dumps writes no NaN, which JSON lacks"


def test_the_native_core_is_told_of_tensors_before_any_call():
    importing = {
        unit for unit, path in units() for module, names, _ in imports(path)
        if module == "fastground._core" or (module == "fastground" and "_core" in names)
    }  # fmt: skip
    assert importing == {"core"}, "take it from fastground.core, which tells it"


def test_the_public_module_loads_nothing():
    top = [m for m, _, at_the_top in imports(PACKAGE / "__init__.py") if at_the_top]
    assert set(top) <= {"sys", "importlib", "types", "typing"}


def test_kernels_know_no_framework_and_bindings_alone_know_python():
    sources = [p for p in (ROOT / "csrc").iterdir() if p.suffix in {".cpp", ".hpp", ".cu", ".cuh"}]
    assert sources
    including = {p.name for p in sources if CORE_ONLY.search(p.read_text())}
    assert including == {"bindings.cpp", "cuda_bindings.cpp", "tensors.hpp"}


def test_threads_are_started_in_one_place():
    starting = {p.name for p in (ROOT / "csrc").iterdir() if "<thread>" in p.read_text()}
    assert starting == {"threads.cpp"}


def test_the_top_level_kernels_folder_is_no_package():
    # With the repository root on sys.path it would shadow the package of the same name that
    # transformers imports.
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert (PACKAGE / "kernels" / "__init__.py").is_file()


def test_one_environment_variable_and_no_more():
    for _, path in units():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and path.name != "cluster.py":  # which tells Ray
                assert node.attr not in {"environ", "getenv"}, f"{path} reads the environment"
    sources = [p.read_text() for p in (ROOT / "csrc").iterdir()]
    named = [name for text in sources for name in re.findall(r"\bgetenv\((.*?)\)", text)]
    assert named == ['"FASTGROUND_IMPLEMENTATION"']
