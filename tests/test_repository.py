"""What can rot in a repository: sizes, leftovers, paths of one machine, missing docstrings."""

import ast
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import fastground
import pytest

ROOT = Path(__file__).parent.parent
SUFFIXES = {".py", ".pyi", ".cpp", ".hpp", ".cu", ".cuh", ".md", ".toml", ".txt", ".yaml", ".css"}
SUFFIXES |= {""}
LONGEST = 500
"""Lines of a source file; 300 is where one should begin to ask."""
LARGEST = 12_000_000
"""Bytes of all tracked files; the embedded model may take ten million of them."""


def tracked():
    try:
        done = subprocess.run(
            ["git", "ls-files", "--cached"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file()]


def texts():
    for path in tracked():
        if path.suffix in SUFFIXES and "results" not in path.parts and path.name != "LICENSE":
            yield path.relative_to(ROOT), path.read_text(encoding="utf-8")


def sources():
    for folder in ("python/fastground", "kernels"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def test_files_are_short():
    long = {
        str(path): text.count("\n")
        for path, text in texts()
        if path.suffix in (".py", ".cpp", ".hpp", ".cu", ".cuh") and text.count("\n") > LONGEST
    }
    assert not long


def test_repository_is_small():
    assert sum(path.stat().st_size for path in tracked()) < LARGEST


@pytest.mark.parametrize(
    "pattern",
    [
        r"/(?:work|home|root|Users)/\w",  # paths of one machine
        r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X)\b",  # leftovers
        r"<<<<" r"<<<|>>>>" r">>>",
        r"[ \t]+$",
        r"\t",
    ],
)
def test_nothing_is_left_over(pattern):
    found = [
        f"{path}:{number}: {line.strip()}"
        for path, text in texts()
        if not (pattern == r"\t" and path.name == "Makefile")
        for number, line in enumerate(text.splitlines(), start=1)
        if re.search(pattern, line)
    ]
    assert not found


def test_every_public_thing_has_a_docstring():
    bare = []
    for path in sources():
        tree = ast.parse(path.read_text())
        nodes = [tree, *(n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)))]
        for node in list(nodes):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                nodes += [n for n in node.body if isinstance(n, ast.FunctionDef)]
        for node in nodes:
            name = getattr(node, "name", "module")
            overload = any("overload" in ast.dump(d) for d in getattr(node, "decorator_list", ()))
            if not name.startswith("_") and not overload and not ast.get_docstring(node):
                bare.append(f"{path.relative_to(ROOT)}: {name}")
    assert not bare


def test_package_holds_more_than_python():
    package = Path(fastground.__file__).parent
    assert (package / "report" / "page.css").is_file() and (package / "py.typed").is_file()


def test_scripts_run():
    scripts = sorted((ROOT / ".ci").iterdir())
    assert {"run", "bench", "gpu-check", "sanitize", "fuzz"} <= {script.name for script in scripts}
    for script in scripts:
        assert os.access(script, os.X_OK)
        subprocess.run(["bash", "-n", script], check=True)


@pytest.fixture
def gpu_check(tmp_path):
    """Runs .ci/gpu-check with stand-ins that only note what they are to do: that, and the text."""

    def run(sanitizer_exits=0):
        log = tmp_path / "log"
        for name, status in (("python", 0), ("compute-sanitizer", sanitizer_exits)):
            (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@" >>{log}\nexit {status}\n')
            (tmp_path / name).chmod(0o755)
        done = subprocess.run(
            [ROOT / ".ci" / "gpu-check", tmp_path / "python"],
            env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return log.read_text().splitlines(), done.stdout

    return run


def test_a_machine_with_a_gpu_runs_what_needs_one(gpu_check):
    commands, _ = gpu_check()
    named, rest = (c.split("PytestUnknownMarkWarning")[1] for c in commands if "-m gpu" in c)
    kernels = [word for word in named.split() if word.startswith("tests/")]
    assert " ".join(kernels) + " -m gpu" in named and "--noconftest" in named
    ignored = " ".join(f"--ignore={path}" for path in kernels)
    assert rest.endswith(f" tests -m gpu {ignored}")
    for path in kernels:
        assert "mark.gpu" in (ROOT / path).read_text()
        assert not re.search(r"\bimplementation\b", (ROOT / path).read_text())  # no conftest.py
    ran = dict(re.findall(r"benches/(\w+\.py)( --gpu)?", "\n".join(commands)))
    texts = {path.name: path.read_text() for path in (ROOT / "benches").glob("bench_*.py")}
    wanted = {name for name, text in texts.items() if re.search('"--gpu"|cuda.is_avail', text)}
    assert len(wanted) >= 5
    assert ran == {name: " --gpu" if '"--gpu"' in texts[name] else "" for name in wanted}


def test_a_sanitizer_that_cannot_work_is_told_and_no_failure(gpu_check):
    commands, told = gpu_check()
    assert "not checked" not in told
    before = commands.index("python tests/ops/few_rows.py")  # so that Triton need not compile
    for tool in ("memcheck", "racecheck"):
        checked = [c for c in commands[before:] if f"--tool {tool}" in c]
        assert len(checked) == 1 and checked[0].endswith("tests/ops/few_rows.py")
    _, told = gpu_check(sanitizer_exits=1)
    assert "not checked: memory and races" in told and "memcheck" not in told
    assert "== all other tests" in told


def test_only_the_marker_leaves_a_test_to_a_gpu(tmp_path):
    asked = re.compile(r"cuda\.is_available\(\)")
    asking = {
        path.name for path in (ROOT / "tests").rglob("*.py") if asked.search(path.read_text())
    }
    assert asking == {"conftest.py", "test_cli.py"}  # which compares it with what info says
    (tmp_path / "test_skips.py").write_text(
        "import pytest\n"
        "def test_itself(): pytest.skip('no CUDA device here')\n"
        "@pytest.mark.skipif(True, reason='no GPU')\n"
        "def test_by_condition(): pass\n"
        "@pytest.mark.gpu\n"
        "def test_marked(): pytest.skip('no CUDA device here')\n"
        "def test_for_another_reason(): pytest.skip('no nvcc')\n"
    )
    run = "import sys, pytest; sys.path.insert(0, sys.argv[1]); sys.exit(pytest.main(sys.argv[2:]))"
    options = ["-c", os.devnull, "-p", "conftest", "-p", "no:cacheprovider", "-q", tmp_path]
    done = subprocess.run(
        [sys.executable, "-c", run, ROOT / "tests", *options],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert "1 failed, 2 skipped" in done.stdout, done.stdout + done.stderr
    assert "test_itself must be marked gpu" in done.stdout
    assert "test_by_condition must be marked gpu" in done.stdout


def test_wheel_holds_everything(tmp_path):
    """All of the package's files and the kernels, built without the native core to be quick."""
    pytest.importorskip("scikit_build_core")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", str(ROOT)]
    options = [
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--config-settings=wheel.cmake=false",
    ]
    done = subprocess.run(
        [*command, *options, "--wheel-dir", str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("fastground-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "python" / "fastground"
    for path in tracked():
        if package in path.parents:
            assert f"fastground/{path.relative_to(package).as_posix()}" in held
        elif ROOT / "kernels" in path.parents:
            assert f"fastground/kernels/{path.name}" in held
    assert not any(name.startswith(("kernels/", "tests/")) for name in held)
    assert (
        "fastground = fastground.cli:main"
        in zipfile.ZipFile(wheel)
        .read(next(name for name in held if name.endswith("entry_points.txt")))
        .decode()
    )
