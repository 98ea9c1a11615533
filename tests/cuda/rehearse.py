"""Runs a program as Python would, on a GPU's stand-in: a benchmark or tests, at sizes it can bear.

    python tests/cuda/rehearse.py FOLDER  SCRIPT | -c CODE | -m MODULE | -  [ARGUMENTS ...]

FOLDER: where `stand_in.build` has compiled what is needed.
"""

import importlib
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import MagicMock

import stand_in


def shrink(bench):
    """Gives a benchmark small models and few maps."""
    import bench_capture
    import random_lvlms
    from fastground.kernels import attention_rows as kernel

    for name, value in {"MANY": 96, "SOME": 64, "HEADS": 12}.items():
        if hasattr(bench, name):
            setattr(bench, name, value)
    if hasattr(bench, "Stack"):
        whole = bench.Stack
        bench.Stack = lambda layers, heads, **more: whole(2, 2, head_dim=16, **more)
    del bench_capture.EXPRESSIONS[2:]
    random_lvlms.GRID = 8
    random_lvlms.LLAVA_7B = random_lvlms.Shape(2, 64, 4, 4, 128)
    random_lvlms.FULL = {
        "LLaVA": random_lvlms.LLAVA_7B, "Qwen2.5-VL": random_lvlms.Shape(2, 64, 4, 2, 128),
    }  # fmt: skip
    sizes = kernel.tile_sizes  # an interpreter takes as long for a large tile as for a small one
    kernel.tile_sizes = lambda *of, **more: sizes(*of, **more) | {"BLOCK_T": 1024}


def main():
    stand_in.install(Path(sys.argv.pop(1)))
    del sys.argv[0]
    first = Path(sys.argv[0])
    if sys.argv[0] in ("-", "-c"):
        code = sys.stdin.read() if sys.argv[0] == "-" else sys.argv.pop(1)
        sys.path[0] = ""
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    elif sys.argv[0] == "-m":
        del sys.argv[0]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    elif first.parent.name == "benches":
        sys.path[0] = str(first.parent)
        if find_spec("numba") is None:
            sys.modules["numba"] = MagicMock()  # it compiles peers of the CPU's alone
        bench = importlib.import_module(first.stem)
        shrink(bench)
        bench.main()
    else:
        sys.path[0] = str(first.parent)
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
