"""The native core stays within its memory, and its instruction sets share no code."""

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fastground import _core

ROOT = Path(__file__).parent.parent
PYTHON = [sys.executable, *(["-S"] if sys.flags.no_site else [])]


def test_nothing_outside_the_maps_and_results_is_touched():
    script = str(ROOT / "tests" / "guard_pages.py")
    done = subprocess.run([*PYTHON, script, "5"], capture_output=True, text=True, check=False)
    last = done.stderr.rpartition("\r")[0].rpartition("\r")[2].strip()
    assert done.returncode == 0, (
        f"{done.returncode} at {last}\n{done.stderr.rpartition(chr(13))[2]}"
    )
    assert "none left its memory" in done.stdout


def objects():
    """The kernels' newest object file of each instruction set."""
    found = {}
    for path in ROOT.glob("build/*/CMakeFiles/kernels_*.dir/csrc/*.o"):
        name = path.parts[-3]
        if name not in found or path.stat().st_mtime > found[name].stat().st_mtime:
            found[name] = path
    return found


def built():
    """The instruction sets that CMakeLists.txt builds for this machine."""
    text = (ROOT / "CMakeLists.txt").read_text()
    names = re.findall(r"^set\(kernels (.+)\)", text, flags=re.M)
    if platform.machine() in ("x86_64", "AMD64"):
        names += re.findall(r"^ +list\(APPEND kernels (.+)\)", text, flags=re.M)
    return set(" ".join(names).split())


def symbols(path):
    """(kind, name) of each symbol that the object defines or shares."""
    done = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True)
    return re.findall(r"^\w* +(\w) (.*)$", done.stdout, flags=re.M)


def test_instruction_sets_share_no_inline_function():
    """A weak symbol is kept once for all: an older processor might get the newer one's code."""
    if shutil.which("nm") is None:
        pytest.skip("no nm here (Debian: apt install binutils)")
    found = objects()
    if not found:
        pytest.skip("no build directory here; an editable install leaves one")
    assert set(found) == {f"kernels_{name}.dir" for name in built()}
    assert set(_core.instruction_sets()) <= built()
    for path in found.values():
        kinds = symbols(path)
        assert any(kind in "DRB" for kind, _ in kinds), f"{path} defines no table"
        weak = [name for kind, name in kinds if kind in "WwVvu"]
        assert not weak, f"{path.relative_to(ROOT)} defines weak symbols: {weak}"
