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


def test_one_environment_variable():
    names = set()
    for path in sources():
        for call in re.findall(r"environ[^\n]*|getenv[^\n]*", path.read_text()):
            names |= set(re.findall(r"[\"']([A-Z][A-Z0-9_]+)[\"']", call))
    assert names <= {"FASTGROUND_IMPLEMENTATION"}


def test_kernels_shadow_nothing():
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_package_holds_more_than_python():
    package = Path(fastground.__file__).parent
    assert (package / "report" / "page.css").is_file() and (package / "py.typed").is_file()


def test_scripts_run():
    scripts = sorted((ROOT / ".ci").iterdir())
    assert {"run", "bench", "gpu-check", "sanitize", "fuzz"} <= {script.name for script in scripts}
    for script in scripts:
        assert os.access(script, os.X_OK)
        subprocess.run(["bash", "-n", script], check=True)


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
