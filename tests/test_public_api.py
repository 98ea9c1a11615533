"""The public face: its names, what they say of themselves, and what importing it costs."""

import inspect
import subprocess
import sys

import fastground
import pytest
from fastground.grounder import Grounder
from fastground.types import HeadRanking, Recipe

NAMES = {
    "Grounder", "HeadRanking", "Recipe", "__version__", "attention_rows", "attention_sum",
    "binarize", "boxes", "capture", "datasets", "discover", "entropy", "evaluate",
    "get_num_threads", "head_stats", "label", "set_num_threads", "smooth",
}  # fmt: skip

FUNCTIONS = sorted(n for n in NAMES if n.islower() and n not in {"__version__", "datasets"})

KEYWORDS = {
    "entropy": {"weight": "area", "cut": "mean", "nan": "raise"},
    "binarize": {"cut": "mean", "out": None},
    "smooth": {"kernel_size": 7, "sigma": 1.0, "border": "reflect101", "out": None},
    "boxes": {"recipe": None},
    "attention_rows": {
        "heads": None, "visible": None, "scale": None, "softcap": None, "tokens": None,
        "phrases": None, "block_table": None,
    },
    "capture": {"heads": None, "rows": "last", "stop_after": None},
    "discover": {"recipe": Recipe(), "out": None},
    "head_stats": {},
    "attention_sum": {},
    "label": {"cut": "mean", "out": None},
    "evaluate": {},
    "get_num_threads": {},
    "set_num_threads": {},
}  # fmt: skip


def test_the_names_are_these_and_no_others():
    assert set(fastground.__all__) == NAMES
    assert list(fastground.__all__) == sorted(fastground.__all__)
    assert set(dir(fastground)) == NAMES
    for name in NAMES:
        assert getattr(fastground, name) is not None
    assert fastground.Grounder is Grounder
    with pytest.raises(AttributeError, match="no attribute 'ground_truth'"):
        _ = fastground.ground_truth


def test_modules_are_there_without_an_import_of_their_own():
    ran = fresh(
        "import fastground as fg\n"
        "print(fg.types.Sample.__name__, fg.models.wrap.__name__, fg.figures.overlay.__name__,\n"
        "      fg.ablations.__name__, callable(fg.capture), hasattr(fg, '_nothing'))"
    )
    assert ran.stdout.split() == [
        "Sample",
        "wrap",
        "overlay",
        "fastground.ablations",
        "True",
        "False",
    ]


def test_a_name_that_is_also_a_module_stays_the_function():
    import fastground.capture

    assert callable(fastground.capture) and not inspect.ismodule(fastground.capture)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_keywords_and_defaults(name):
    parameters = inspect.signature(getattr(fastground, name)).parameters
    for keyword, default in KEYWORDS[name].items():
        assert parameters[keyword].default == default


PUBLIC = [
    *(pytest.param(getattr(fastground, name), id=name) for name in FUNCTIONS),
    pytest.param(Grounder.from_pretrained, id="Grounder.from_pretrained"),
    pytest.param(Grounder.__call__, id="Grounder()"),
]


@pytest.mark.parametrize("function", PUBLIC)
def test_documentation_tells_arguments_results_and_errors(function):
    text = inspect.getdoc(function)
    first = text.splitlines()[0]
    assert len(first) > 20 and first[0].isupper()
    parameters = [p for p in inspect.signature(function).parameters if p not in {"self", "cls"}]
    sections = {"Args:", "Raises:"} if parameters else set()
    if inspect.signature(function).return_annotation not in (None, "None"):
        sections.add("Returns:")
    for section in sections:
        assert section in text, f"{function.__qualname__} has no {section}"
    told = text.partition("Args:")[2].split("Returns:")[0].split("Raises:")[0]
    for parameter in parameters:
        assert parameter in told, f"{function.__qualname__} does not tell {parameter}"


@pytest.mark.parametrize("noun", [Recipe, HeadRanking, Grounder])
def test_nouns_say_what_they_are(noun):
    assert inspect.getdoc(noun) and "\n" not in inspect.getdoc(noun).splitlines()[0]


def fresh(code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120
    )


def test_importing_needs_no_heavy_package():
    code = (
        "import sys, fastground\n"
        "fastground.Recipe, fastground.entropy, fastground.Grounder, fastground.discover\n"
        "fastground.evaluate, fastground.capture, fastground.datasets\n"
        "heavy = 'transformers triton scipy matplotlib cv2 pyarrow safetensors typer'.split()\n"
        "print(*[name for name in heavy if name in sys.modules])"
    )
    ran = fresh(code)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == ""


def test_the_process_that_ray_serves_does_not_load_torch():
    code = (
        "import sys, fastground.cli.app\n"
        "from fastground import datasets, discovery\n"
        "list(datasets.load('shapes', num_samples=1))\n"
        "print('torch' in sys.modules, discovery.__name__ in sys.modules)"
    )
    assert fresh(code).stdout.split() == ["False", "True"]


def test_importing_alone_does_not_even_load_torch():
    ran = fresh("import sys, fastground; print('torch' in sys.modules, fastground.__version__)")
    assert ran.stdout.split() == ["False", fastground.__version__]
