"""The Triton kernel without a GPU, in a process of its own: `interpret` or `compile`."""

import itertools
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from fastground import reference
from fastground.kernels import attention_rows as kernel

SHAPES = [
    # batch, rows, heads, key heads, tokens, head_dim, chosen heads
    (2, 3, 4, 2, 37, 16, (0, 1, 2, 3)),
    (1, 1, 7, 1, 130, 24, (6, 0)),
    (1, 20, 4, 4, 70, 64, (3, 1)),
]


def interpret():
    torch.manual_seed(0)
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    for dtype, shape in itertools.product(dtypes, SHAPES):
        batch, rows, num_heads, key_heads, tokens, head_dim, heads = shape
        query = (torch.randn(batch, rows, num_heads, head_dim) * 3).to(dtype)
        key = torch.randn(batch, key_heads, tokens, head_dim).to(dtype)
        blind = torch.rand(batch, rows, tokens) > 0.5
        blind[0, 0] = False
        masks = [None, torch.rand(batch, tokens) > 0.3, blind, torch.randn(batch, rows, tokens)]
        for visible, softcap in itertools.product(masks, (None, 5.0)):
            choice = {"heads": heads, "visible": visible, "scale": 0.2, "softcap": softcap}
            got = kernel.attention_rows(query, key, **choice)
            want = reference.attention_rows(query, key, **choice)
            assert got.isfinite().all()
            error = float((got - want).abs().max())
            assert error < 3e-6, (dtype, shape, softcap, error)
            print(dtype, shape, softcap, error)


def compile_for_sm_90():
    for dtype, (rows, head_dim) in itertools.product(
        ("bf16", "fp32"), ((1, 64), (7, 128), (70, 128), (70, 256))
    ):
        upcast = dtype == "fp32"
        mask = kernel.BOOL_MASK if rows > 1 else kernel.NO_MASK
        constants = {"G": min(rows, 7), "MASK": mask, "SOFTCAP": False, "UPCAST": upcast}
        constants |= kernel.blocks(rows, head_dim, upcast)
        types = {"query_ptr": "*" + dtype, "key_ptr": "*" + dtype, "visible_ptr": "*u8"}
        types |= dict.fromkeys(("heads_ptr", "slots_ptr", "key_heads_ptr"), "*i32")
        report(kernel._logits, types, constants)
    report(kernel._normalise, {}, {"BLOCK_S": 16, "BLOCK_T": 1024})


def report(function, types, constants):
    """Compile to PTX as the launcher would, then let the bundled ptxas count registers."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas
    from triton.compiler import ASTSource

    names = function.arg_names
    default = {name: "*fp32" for name in names if name.endswith("_ptr")}
    default |= {"scale": "fp32", "softcap": "fp32"}
    signature = {
        name: "constexpr" if name in constants else (default | types).get(name, "i32")
        for name in names
    }
    aligned = [name for name in names if name.endswith("_ptr") or name == "D"]
    aligned += [name for name in names if name.startswith(("query_stride", "key_stride"))]
    source = ASTSource(
        fn=function,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    assert len(compiled.asm["cubin"]) > 0
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "kernel.ptx"
        ptx.write_text(compiled.asm["ptx"])
        done = subprocess.run(
            [
                get_ptxas(90).path,
                "-v",
                "--gpu-name=sm_90a",
                ptx,
                "-o",
                Path(folder) / "kernel.cubin",
            ],
            capture_output=True,
            text=True,
            check=True,
        )
    spills = [line for line in done.stderr.splitlines() if "spill" in line]
    print(function.__name__, constants, *spills)


if __name__ == "__main__":
    {"interpret": interpret, "compile": compile_for_sm_90}[sys.argv[1]]()
