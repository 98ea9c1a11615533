"""Calls of attention_rows with every ability, their exact answers, and the kernel without a GPU.

As a program, since Triton's interpreter must be chosen before its import: `interpret`, `far`,
`layouts`, or `compile` or `launch` with a compute capability.
"""

import contextlib
import io
import itertools
import json
import re
import sys
from types import SimpleNamespace

import torch
from fastground import reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MASKS = (
    "none", "left padding", "right padding", "window", "packed", "random", "additive",
    "additive keys", "blind row",
)  # fmt: skip
LAYOUTS = ("whole", "whole", "turned", "slices", "slices, one turned", "repeated")


def laid(key, how, layer):
    """The keys as a cache may keep them: the same numbers, but where they are repeated."""
    if how == "turned" or (how == "slices, one turned" and layer == 1):
        return key.transpose(2, 3).contiguous().transpose(2, 3)
    if how.startswith("slices"):  # of rooms that are not all as long
        room = torch.full_like(key[:, :, :1], torch.nan).repeat(1, 1, key.shape[2] + layer + 1, 1)
        room[:, :, : key.shape[2]] = key
        return room[:, :, : key.shape[2]]
    return key[:1].expand_as(key) if how == "repeated" else key


def case(choose, device="cpu", large=False):
    """The arguments of a call as (query, key, keywords), as the door takes them.

    Args:
        choose: takes a sequence and returns one of it.
        device: of the tensors.
        large: whether to fill a GPU, or to be done by an interpreter.
    """
    torch.manual_seed(choose(range(1000)))
    dtype = choose(DTYPES)
    num_heads, key_heads = choose([(4, 4), (6, 2), (7, 1), (1, 1)])
    batch, rows = choose([1, 2]), choose([1, 3, 20 if large else 6])
    head_dim = choose([64, 80, 96, 128, 256] if large else [8, 24, 64, 80])
    page = choose([0, 0, 4, 16])
    length = choose([1, 37, 640, 1300] if large else [1, 17, 70])
    layers = choose([0, 0, 1, 3])

    def draw(*shape, dtype=dtype):
        return torch.randn(shape).to(device, dtype)

    keywords = {"scale": 1.5 * head_dim**-0.5, "softcap": choose([None, None, 5.0])}
    first, count = batch, length
    if page:
        blocks = -(-length // page)
        first, count, length = batch * blocks + 2, page, blocks * page
        table = torch.randperm(first)[: batch * blocks].view(batch, blocks)
        table[-1, blocks // 2 :] = choose([table[-1, blocks // 2], -1])  # shared, or not there
        keywords["block_table"] = table.to(device)
    lies = choose(LAYOUTS)
    keys = [
        laid(draw(first, key_heads, count, head_dim), lies, layer)
        for layer in range(max(layers, 1))
    ]
    asked = choose([dtype, dtype, *DTYPES])
    queries = [draw(batch, rows, num_heads, head_dim, dtype=asked) * 2 for _ in keys]
    every = list(range(num_heads))
    if layers:
        every = [(layer, head) for layer in range(layers) for head in range(num_heads)]
    keywords["heads"] = choose([None, [choose(every) for _ in range(3)]])
    keywords["visible"] = visibility(choose(MASKS), batch, rows, length, choose, device)
    lists = torch.randint(-1, length, (batch, 5))
    ranges = [range(length // 3, length, 2), range(0)]
    keywords["tokens"] = choose([None, *ranges, lists.to(device), lists[0]])
    spans = torch.randint(0, rows + 1, (batch, 2, 2)).sort(-1).values
    keywords["phrases"] = choose([None, None, spans.to(device), [[0, rows], [rows, rows]]])
    return *((queries, keys) if layers else (queries[0], keys[0])), keywords


def visibility(kind, batch, rows, length, choose, device):
    """What each row may see, as models and packed prompts have it."""
    t = torch.arange(length)
    if kind == "none":
        return None
    if kind == "additive keys":
        return torch.randn(batch, length).to(device, choose(DTYPES))
    pad = torch.randint(0, length, (batch, 1))
    if kind.endswith("padding"):
        return (t >= pad if kind == "left padding" else t <= pad).to(device)
    own = torch.randint(0, length, (batch, rows, 1))
    if kind == "window":
        return ((t <= own) & (t > own - 5)).to(device)
    if kind == "packed":  # a prefix that all see, and branches of three tokens, each its own
        prefix = length // 2
        branch = torch.where(t < prefix, -1, (t - prefix) // 3)
        return ((branch == -1) | ((branch == (own - prefix) // 3) & (t <= own))).to(device)
    seen = torch.rand(batch, rows, length) > 0.4
    if kind == "random":
        return seen.to(device)
    if kind == "blind row":
        seen[0, 0] = False
        return seen.to(device)
    return torch.randn(batch, rows, length).masked_fill(~seen, -torch.inf).to(device)


def exact(query, key, *, heads=None, visible=None, scale=None, softcap=None, tokens=None,
          phrases=None, block_table=None):  # fmt: skip
    """One row at a time, in double precision: (rows,), or (rows, sums) of tokens."""
    layers = isinstance(key, list)
    queries, keys = ([x.cpu() for x in (xs if layers else [xs])] for xs in (query, key))
    batch, rows, num_heads, head_dim = queries[0].shape
    block_table = None if block_table is None else block_table.cpu()
    if heads is None:
        heads = list(itertools.product(range(len(keys)), range(num_heads)))
    elif not layers:
        heads = [(0, head) for head in heads]
    found = []
    for b, r, (layer, head) in itertools.product(range(batch), range(rows), heads):
        key_head = head // (num_heads // keys[layer].shape[1])
        if block_table is None:
            own = keys[layer][b, key_head].double()
            seen = torch.ones(len(own), dtype=torch.bool)
        else:
            own = torch.cat([keys[layer][block, key_head] for block in block_table[b]]).double()
            seen = (block_table[b] >= 0).repeat_interleave(keys[layer].shape[2])
        logits = own @ queries[layer][b, r, head].double()
        logits *= head_dim**-0.5 if scale is None else scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        if visible is not None:
            row = (visible[b] if visible.ndim == 2 else visible[b, r]).cpu()
            seen &= row if row.dtype == torch.bool else row > -torch.inf
            logits = logits if row.dtype == torch.bool else logits + row.double()
        weights = torch.zeros(len(own), dtype=torch.float64)
        weights[seen] = logits[seen].softmax(0)
        found.append(weights)
    whole = torch.stack(found).unflatten(0, (batch, rows, len(heads)))
    if phrases is not None:
        spans = torch.as_tensor(phrases).cpu().expand(batch, -1, -1)
        nothing = torch.zeros_like(whole[0, 0])
        whole = torch.stack([
            torch.stack([of[i:j].mean(0) if i < j else nothing for i, j in own.tolist()])
            for of, own in zip(whole, spans, strict=True)
        ])  # fmt: skip
    if tokens is None:
        return (whole,)
    places = torch.as_tensor(list(tokens) if isinstance(tokens, range) else tokens).long()
    told = torch.zeros(*whole.shape[:3], places.shape[-1], dtype=torch.float64)
    for b, own in enumerate(places.cpu().expand(batch, -1)):
        told[b][..., own >= 0] = whole[b][..., own[own >= 0]]
    return told, told.sum(-1)


def parts(found):
    """The arrays of an answer, with sums or without."""
    return (found,) if isinstance(found, torch.Tensor) else tuple(found)


def off(found, want):
    """The largest difference of two answers, which must be of one shape."""
    differences = [0.0]
    for one, other in zip(parts(found), parts(want), strict=True):
        assert one.shape == other.shape and one.dtype == torch.float32, (one.shape, other.shape)
        if one.numel():
            differences.append(float((one.cpu() - other.cpu()).abs().max()))
    return max(differences)


def prepared(query, key, keywords):
    """The same call as the door hands it on, to the kernel or the reference."""
    query_0, batch = (query[0], len(query[0])) if isinstance(query, list) else (query, len(query))
    heads = keywords["heads"]
    keywords = keywords | {"heads": None if heads is None else tuple(heads)}
    for name, ndim in (("tokens", 2), ("phrases", 3)):
        index = keywords[name]
        if index is not None and not isinstance(index, range):
            index = torch.as_tensor(index).to(query_0.device)
            keywords[name] = index.expand(batch, *index.shape[-ndim + 1 :])
    return query, key, keywords


def interpret():
    """Drawn calls by the kernel, with one program for all tiles of a key head and with many."""
    import hypothesis
    from fastground.kernels import attention_rows as kernel
    from hypothesis import strategies

    count = itertools.count(1)
    worst = {}

    @hypothesis.settings(
        max_examples=50,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategies.data())
    def check(data):
        query, key, keywords = case(lambda of: data.draw(strategies.sampled_from(of)))
        kernel.PROGRAMS = data.draw(strategies.sampled_from([1, 528]))
        want = exact(query, key, **keywords)
        query, key, keywords = prepared(query, key, keywords)
        assert off(reference.attention_rows(query, key, **keywords), want) < 2e-6
        error = off(kernel.attention_rows(query, key, **keywords), want)
        assert error < 2e-6, error
        dtype = str((query[0] if isinstance(query, list) else query).dtype)
        worst[dtype] = max(error, worst.get(dtype, 0))
        worst["calls"] = next(count)

    check()
    print(json.dumps(worst))


def far(rows_of, device="cpu"):
    """Errors where one of the strides carries a key more than 2**31 elements away.

    The memory between is never touched; a machine need not have it.
    """
    torch.manual_seed(0)
    gap, sizes = 2**31 + 64, (2, 2, 3, 16)
    room = torch.empty(gap + 10_000, dtype=torch.float16, device=device)
    errors = {}
    for axis, name in enumerate(("batch", "head", "token", "dimension")):
        strides = [1000, 200, 20, 1]
        strides[axis] = gap // (sizes[axis] - 1) // 16 * 16 + 16
        key = room.as_strided(sizes, strides)
        key.copy_(torch.randn(sizes))
        query = torch.randn(2, 1, 2, 16).to(key)
        errors[name] = off(rows_of(query, key, scale=0.3), exact(query, key, scale=0.3))
    layers = [room[begin : begin + 192].view(2, 2, 3, 16) for begin in (gap, 0)]
    query = torch.randn(2, 2, 1, 2, 16).to(room)
    for key in layers:
        key.copy_(torch.randn(sizes))
    found = rows_of(list(query), layers, scale=0.3)
    errors["layer"] = off(found, exact(list(query), layers, scale=0.3))
    cache = room.as_strided(sizes, (gap, 200, 20, 1))
    table = torch.tensor([[1, 0], [1, 1]], device=device)
    found = rows_of(query[0], cache, scale=0.3, block_table=table)
    errors["block"] = off(found, exact(query[0], cache, scale=0.3, block_table=table))
    return errors


def layouts(rows_of, device="cpu"):
    """Errors where the keys of three layers lie one way or another, by that way."""
    torch.manual_seed(0)
    errors = {}
    for how in dict.fromkeys(LAYOUTS):
        keys = [laid(torch.randn(2, 2, 70, 24), how, layer).to(device) for layer in range(3)]
        queries = [torch.randn(2, 3, 4, 24).to(device) for _ in keys]
        errors[how] = off(rows_of(queries, keys, scale=0.3), exact(queries, keys, scale=0.3))
    return errors


def compile_offline(capability):
    """Every head_dim and dtype: one row, a packed image's and many, with few abilities and all."""
    from fastground.kernels import attention_rows as kernel

    plain = {"G": 1, "MASK": kernel.NO_MASK, "SOFTCAP": False, "LAYERS": kernel.ONE_LAYER}
    plain |= {"PAGE": 0}
    packed = plain | {"G": 7, "MASK": kernel.BOOL_MASK}
    layers = packed | {"LAYERS": kernel.ALIKE}
    every = packed | {"SOFTCAP": True, "LAYERS": kernel.STRIDED, "PAGE": 16}
    turned = every | {"LAYERS": kernel.TURNED, "MASK": kernel.ADDITIVE_MASK}
    kinds = {
        "bf16": [
            (1, plain),
            (28, packed),
            (49, packed),
            (1, every),
            (70, every),
            (28, turned),
            (70, every | {"PAGE": 0}),
        ],
        "fp32": [(1, plain), (1, turned), (70, every), (70, every | {"PAGE": 0})],
        "fp16": [(1, layers), (28, layers), (49, layers)],
        "bf16 of fp32": [(70, every)],
    }
    for kind, head_dim in itertools.product(kinds, (64, 80, 96, 128, 256)):
        keys, *of = kind.split(" of ")
        query = of[0] if of else keys
        upcast = query == "fp32"
        for rows, abilities in kinds[kind]:
            scattered = abilities["LAYERS"] == kernel.TURNED
            sizes = kernel.tile_sizes(
                rows, head_dim, upcast, bool(of), scattered, abilities["PAGE"] > 0
            )
            constants = abilities | {"UPCAST": upcast, "ALIGNED": True, "D": head_dim} | sizes
            constants |= {} if scattered else {"key_stride_d": 1}
            mask = "*fp32" if abilities["MASK"] == kernel.ADDITIVE_MASK else "*u8"
            types = {"query_ptr": "*" + query, "key_ptr": "*" + keys, "visible_ptr": mask}
            report(kernel._logits, types, constants, capability)
    for told in (False, True):
        constants = dict.fromkeys(("LISTED", "PHRASES", "SUMS"), told)
        report(kernel._weights, {}, constants | {"BLOCK_S": 16, "BLOCK_N": 1024}, capability)


WHOLE = {"layers_ptr": "*i64", "blocks_ptr": "*i64", "tokens_ptr": "*i64", "phrases_ptr": "*i64"}
WHOLE |= dict.fromkeys(("heads_ptr", "slots_ptr", "key_heads_ptr"), "*i32")


def report(function, types, constants, capability):
    """Compile as the launcher would, and tell what ptxas said of the code."""
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = function.arg_names
    options = {name: constants.pop(name) for name in ("num_warps", "maxnreg") if name in constants}
    default = {name: "*fp32" for name in names if name.endswith("_ptr")}
    default |= {"scale": "fp32", "softcap": "fp32"} | WHOLE
    signature = {
        name: "constexpr" if name in constants else (default | types).get(name, "i32")
        for name in names
    }
    strided = ("query_stride", "key_stride")
    aligned = [n for n in names if n.endswith("_ptr") or n.startswith(strided)]
    source = ASTSource(
        fn=function,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={
            (names.index(name),): [["tt.divisibility", 16]]
            for name in aligned
            if name not in constants
        },
    )
    target = GPUTarget("cuda", capability, 32)
    with knobs.nvidia.scope(), contextlib.redirect_stdout(io.StringIO()) as printed:
        knobs.nvidia.dump_ptxas_log = True
        compiled = triton.compile(source, target=target, options=options)
    said = printed.getvalue()
    assert len(compiled.asm["cubin"]) > 0
    (architecture,) = re.findall(r"Compiling entry function '\w+' for '(\w+)'", said)
    wide = sum(name in compiled.asm["ptx"] for name in VECTORS)
    registers, stores, loads = (
        int(re.search(pattern, said)[1])
        for pattern in (r"Used (\d+) registers", r"(\d+) bytes spill st", r"(\d+) bytes spill lo")
    )
    print(json.dumps({
        "kernel": function.__name__, "architecture": architecture,
        "dtype": types.get("key_ptr", "")[1:], "constants": constants, "registers": registers,
        "spilled": stores + loads, "shared": compiled.metadata.shared, "wide": wide,
    }))  # fmt: skip


def launch(capability):
    """Drawn calls up to the launch: what Triton makes of their arguments there, compiled."""
    import random

    from fastground.kernels import attention_rows as kernel
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    here = {"target": GPUTarget("cuda", capability, 32), "device": 0, "stream": 0}
    answers = {f"get_current_{name}": lambda *_, it=it: it for name, it in here.items()}
    driver.set_active(SimpleNamespace(**answers))
    for function in (kernel._logits, kernel._weights):

        def only_compile(*given, warmup, start=function.run, **named):
            made = start(*given, warmup=True, **named)
            print(json.dumps({"kernel": made.metadata.name, "cubin": len(made.asm["cubin"])}))

        function.run = only_compile
    for seed in range(6):
        query, key, keywords = prepared(*case(random.Random(seed).choice, large=True))
        kernel.attention_rows(query, key, **keywords)


VECTORS = ("cp.async.cg.shared.global", "ld.global.v4", "L2::cache_hint.v4")


if __name__ == "__main__":
    if sys.argv[1] == "interpret":
        interpret()
    elif sys.argv[1] == "compile":
        compile_offline(int(sys.argv[2]))
    elif sys.argv[1] == "launch":
        launch(int(sys.argv[2]))
    else:
        from fastground.kernels import attention_rows as kernel

        errors = {"far": far, "layouts": layouts}[sys.argv[1]]
        print(json.dumps(errors(kernel.attention_rows)))
