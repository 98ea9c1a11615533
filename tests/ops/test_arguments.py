"""What every operation on maps takes, gives back and refuses."""

import math

import fastground as fg
import numpy as np
import pytest
import torch
from fastground import _core, arguments, dispatch, ops
from torch._subclasses.fake_tensor import FakeTensorMode

OPERATIONS = [fg.attention_sum, fg.binarize, fg.label, fg.entropy, fg.head_stats, fg.smooth]
OPERATIONS += [ops.combine, fg.boxes]
each_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda f: f.__name__)

LARGE = {
    fg.binarize: torch.bool,
    fg.label: torch.int32,
    fg.smooth: torch.float32,
    ops.combine: torch.float32,
}
"""Those that take `out`, and the dtype of their results."""
each_large = pytest.mark.parametrize("operation", LARGE, ids=lambda f: f.__name__)
each_kind = pytest.mark.parametrize("kind", [torch.from_numpy, np.asarray], ids=["torch", "numpy"])


def arrays(result):
    return (result,) if isinstance(result, (torch.Tensor, np.ndarray)) else tuple(result)


@each_operation
def test_numpy_in_numpy_out(operation):
    maps = torch.rand(2, 3, 6, 5)
    expected = arrays(operation(maps))
    base = np.asfortranarray(maps.numpy())
    read_only = maps.numpy().copy()
    read_only.flags.writeable = False
    packed = np.zeros(maps.shape, dtype=np.dtype([("pad", "i1"), ("cells", "f4")]))
    packed["cells"] = base
    backward = base[::-1, ::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1, ::-1]
    assert max(backward.strides) < 0
    variants = [base, base[::-1][::-1], base[..., ::-1].copy()[..., ::-1], read_only, backward]
    variants += [base.astype(">f4"), packed["cells"], base.astype(np.float64)]
    for variant in variants:
        result = arrays(operation(variant))
        assert all(isinstance(array, np.ndarray) for array in result)
        for array, tensor in zip(result, expected, strict=True):
            np.testing.assert_allclose(array, tensor.numpy(), rtol=1e-5, atol=1e-7)


@each_operation
def test_dlpack_in_torch_out(operation):
    class Foreign:
        def __init__(self, tensor):
            self.tensor = tensor

        def __dlpack__(self, **keywords):
            return self.tensor.__dlpack__(**keywords)

        def __dlpack_device__(self):
            return self.tensor.__dlpack_device__()

    maps = torch.rand(2, 3, 6, 5).to(torch.bfloat16)
    result = arrays(operation(Foreign(maps)))
    assert all(isinstance(tensor, torch.Tensor) for tensor in result)
    assert all(map(torch.equal, result, arrays(operation(maps))))


@each_operation
def test_the_input_stays_and_no_gradient_comes_out(operation):
    maps = torch.rand(2, 3, 6, 5)
    before = maps.clone()
    result = arrays(operation(maps.requires_grad_()))
    assert torch.equal(maps, before)
    assert not any(tensor.requires_grad for tensor in result)


@each_operation
def test_expanded_and_negated_views(operation):
    one = torch.rand(3, 6, 5)
    expanded = arrays(operation(one.expand(4, 3, 6, 5)))
    single = arrays(operation(one))
    assert all(torch.equal(many[2], few) for many, few in zip(expanded, single, strict=True))
    negated = torch.complex(one, -one).conj().imag
    assert negated.is_neg()
    assert all(map(torch.equal, arrays(operation(negated)), single))


@each_operation
@pytest.mark.parametrize(
    ("maps", "error", "message"),
    [
        (torch.rand(576), ValueError, r"but got shape \(576,\); reshape with layout.grid"),
        (torch.rand(3, 4, 0), ValueError, "grid of 1 to 256 cells a side"),
        (torch.rand(3, 0, 4), ValueError, "grid of 1 to 256 cells a side"),
        (torch.rand(1, 4, 257), ValueError, r"but got shape \(1, 4, 257\); resize or crop"),
        (
            torch.ones(1, 4, 4, dtype=torch.int32),
            TypeError,
            r"but got int32; convert with maps.float\(\)",
        ),
        (torch.ones(1, 4, 4, dtype=torch.complex64), TypeError, r"maps.real.float\(\)"),
        (np.ones((1, 4, 4), dtype=np.int64), TypeError, r"int64; .* maps.astype\(np.float32\)"),
        (np.ones((1, 4, 4), complex), TypeError, r"convert with maps.real.astype\(np.float32\)"),
        (np.ma.masked_less(np.eye(4)[None], 1), TypeError, r"masked one; give maps.filled\(0\)"),
        (np.array([["a"]]), TypeError, "maps must be numbers"),
        (
            [[0.1, 0.2]],
            TypeError,
            "maps must be a torch tensor, a NumPy array .* but got list; give np.asarray",
        ),
        (None, TypeError, "but got NoneType"),
        (torch.rand(1, 4, 4).to_sparse(), TypeError, "to_dense"),
        (torch.rand(1, 4, 4, device="meta"), TypeError, "must be a dense tensor that holds data"),
    ],
    ids=str,
)
def test_bad_maps(operation, maps, error, message):
    with pytest.raises(error, match=message):
        operation(maps)


def test_bad_choices():
    maps = torch.rand(3, 4, 4)
    with pytest.raises(ValueError, match=r"cut must be one of mean, .* but got 'median'"):
        fg.entropy(maps, cut="median")
    with pytest.raises(ValueError, match="weight must be one of area, mass, but got 'count'"):
        fg.head_stats(maps, weight="count")
    with pytest.raises(ValueError, match="empty must be one of inf, zero"):
        fg.entropy(maps, empty="nan")
    for operation in OPERATIONS:
        with pytest.raises(ValueError, match="nan must be one of raise, propagate"):
            operation(maps, nan="ignore")


def test_choices_that_cannot_be_looked_up():
    maps = torch.rand(3, 4, 4)
    for operation in (fg.binarize, fg.label, fg.entropy, fg.head_stats):
        with pytest.raises(TypeError, match=r"cut must be one str, but got \['mean'\]"):
            operation(maps, cut=["mean"])
    for operation in OPERATIONS:
        with pytest.raises(TypeError, match=r"nan must be one str, but got \['raise'\]"):
            operation(maps, nan=["raise"])
    with pytest.raises(ValueError, match=r"border must be one of reflect101, .* got \['reflect'\]"):
        fg.smooth(maps, border=["reflect"])


def test_bad_kernel_sizes_and_recipes():
    maps = torch.rand(3, 4, 4)
    for size in (7.0, True, [7], 0):
        with pytest.raises(ValueError, match=r"^kernel_size must be an integer >= 1, but got "):
            fg.smooth(maps, kernel_size=size)
    with pytest.raises(ValueError, match=r"^kernel_size must be odd .* 65535, but got 65537"):
        fg.smooth(maps, kernel_size=65537)
    for operation in (ops.combine, fg.boxes):
        with pytest.raises(TypeError, match="recipe must be a Recipe or None, but got 'paper'"):
            operation(maps, recipe="paper")
        with pytest.raises(ValueError, match=r"at least one head.* the axis before the grid"):
            operation(maps[:0])
    with pytest.raises(TypeError, match="valid must be bool, but got float32; give valid != 0"):
        fg.boxes(maps, valid=maps[0])


def test_sums_between_float32_and_float64(implementation):
    maps = torch.rand(2, 1, 6, 5, dtype=torch.float64)
    large = maps * 1e38
    for operation in (fg.binarize, fg.label, fg.entropy):
        expected = implementation(operation, maps)
        assert torch.allclose(implementation(operation, large).double(), expected.double())
    sums = implementation(fg.attention_sum, large, nan="propagate")
    assert torch.equal(sums, torch.full((2, 1), math.inf))
    combined = implementation(ops.combine, large * 100, nan="propagate")
    assert bool((combined == math.inf).any()) and not combined.isnan().any()
    found = implementation(fg.boxes, large * 100, nan="propagate")
    assert not found.found.any() and bool(found.mass.isnan().all() and found.score.isnan().all())


@each_operation
def test_tensors_without_memory(operation):
    with pytest.raises(TypeError, match="maps must hold numbers in memory"):
        operation(torch._efficientzerotensor((1, 4, 4)))


def test_masks_only_where_they_mean_something():
    mask = torch.eye(4, dtype=torch.bool)
    assert fg.label(mask).max() == 1
    with pytest.raises(TypeError, match="but got bool"):
        fg.entropy(mask)


@each_operation
@each_kind
def test_a_batch_of_none(operation, kind):
    results = arrays(operation(kind(np.empty((0, 3, 5, 7), np.float32))))
    assert all(array.shape[0] == 0 for array in results)


@each_operation
def test_batches_whose_axes_do_not_make_one(operation):
    maps = torch.rand(4, 3, 2, 6, 5)
    odd = maps.permute(1, 2, 0, 3, 4)
    assert all(map(torch.equal, arrays(operation(odd)), arrays(operation(odd.contiguous()))))
    results = arrays(operation(maps.numpy().transpose(1, 2, 0, 3, 4)))
    expected = arrays(operation(odd))
    assert all(np.array_equal(a, b) for a, b in zip(results, expected, strict=True))


@each_operation
@each_kind
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused_or_passed_on(operation, kind, value):
    cells = np.random.default_rng(0).random((3, 1, 6, 5), np.float32)
    cells[1, 0, 2, 3] = value
    with pytest.raises(ValueError, match=r"1 of 3 are not, the first at 1; pass nan="):
        operation(kind(cells))
    passed = arrays(operation(kind(cells), nan="propagate"))
    clean = arrays(operation(kind(cells[::2].copy())))
    assert all(np.array_equal(a[::2], b) for a, b in zip(passed, clean, strict=True))


@pytest.mark.parametrize("operation", [fg.smooth, ops.combine, fg.boxes], ids=["smooth", "k", "b"])
def test_sums_that_do_not_fit_are_refused(operation, implementation):
    maps = torch.rand(3, 2, 6, 5, dtype=torch.float64)
    maps[2] *= 1e39
    with pytest.raises(ValueError, match="are not, the first at"):
        implementation(operation, maps)


# out


@each_large
@each_kind
def test_out_holds_the_result(operation, kind):
    maps = kind(np.random.default_rng(0).random((4, 3, 13, 9), np.float32))
    expected = torch.as_tensor(operation(maps))
    base = torch.empty(expected.numel() + 1, dtype=expected.dtype)  # not aligned to a cache line
    out = base[1:].reshape(expected.shape)
    out = out.numpy() if kind is np.asarray else out
    for nan in ("raise", "propagate"):
        base.fill_(7)
        assert operation(maps, out=out, nan=nan) is out
        assert torch.equal(torch.as_tensor(out), expected) and base[0] == torch.tensor(7).to(base)


@each_large
def test_out_on_every_implementation(operation, implementation):
    maps = torch.rand(2, 3, 6, 5)
    expected = operation(maps)
    out = torch.full_like(expected, 1)
    assert torch.equal(implementation(operation, maps, out=out), expected)
    if implementation.device == "cpu":
        assert torch.equal(out, expected)


@each_large
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, "huge", "opposite"])
def test_out_stays_when_maps_are_refused(operation, dtype, value):
    maps = torch.rand(70, 2, 6, 5).to(dtype)
    huge = torch.finfo(dtype).max
    if value == "huge":
        maps[50] = huge
    elif value == "opposite":
        maps[50, :, ::2], maps[50, :, 1::2] = huge, -huge
    else:
        maps[50, 1, 2, 3] = value
    out = torch.ones_like(operation(maps, nan="propagate"))
    try:
        result = operation(maps, out=out)
    except ValueError as error:
        assert "pass nan=" in str(error) and bool((out == 1).all())
    else:
        assert value in ("huge", "opposite") and result is out
        assert torch.equal(out, operation(maps, nan="propagate"))


@each_large
def test_masks_and_a_batch_of_none_into_out(operation):
    shape = (0, 3, 6, 5)
    out = torch.empty(operation(torch.empty(shape)).shape, dtype=LARGE[operation])
    assert operation(torch.empty(shape), out=out) is out
    mask = torch.eye(6, dtype=torch.bool)
    assert fg.label(mask, out=torch.empty(6, 6, dtype=torch.int32)).max() == 1


def other(dtype):
    return torch.int64 if dtype == torch.int32 else torch.int32


@each_large
def test_bad_out_of_torch(operation):
    maps = torch.rand(2, 3, 6, 5)
    dtype = LARGE[operation]
    shape = operation(maps).shape
    good = torch.zeros(shape, dtype=dtype)
    long = ("shape", torch.zeros(1, *shape, dtype=dtype))
    bad = {
        ValueError: [
            ("out must have shape .* but got shape", long[1]),
            ("out must have shape", good[..., :-1]),
            ("out must be contiguous", good.mT.contiguous().mT),
            ("out must be contiguous", good[:1].expand(shape)),
            ("out must be on the device of maps, cpu: meta", good.to("meta")),
        ],
        TypeError: [
            (f"out must be {arguments.dtype_name(dtype)}, but got", good.to(other(dtype))),
            ("out must be of the kind of maps, torch.Tensor, but got numpy", good.numpy()),
            ("out must be of the kind of maps, torch.Tensor, but got builtins.list", [1.0]),
        ],
    }
    for error, cases in bad.items():
        for message, out in cases:
            with pytest.raises(error, match=message):
                operation(maps, out=out)
    assert not good.any()
    if dtype.is_floating_point:
        with pytest.raises(ValueError, match="out must not require a gradient"):
            operation(maps, out=good.requires_grad_())


@each_large
def test_bad_out_of_numpy(operation):
    maps = np.random.default_rng(0).random((2, 3, 6, 5), np.float32)
    good = np.zeros_like(operation(maps))
    read_only = good.copy()
    read_only.flags.writeable = False
    packed = np.zeros(good.size + 1, good.dtype).view("i1")[1 : 1 + good.nbytes].view(good.dtype)
    cases = [
        ("out must be writable, but got a read-only array", read_only),
        ("out must have shape", good[1:]),
        ("out must be contiguous", np.asfortranarray(good)),
        ("out must be contiguous", good[:, ::-1]),
    ]
    if good.itemsize > 1:
        cases.append(("out must be contiguous", packed.reshape(good.shape)))
    for message, out in cases:
        with pytest.raises(ValueError, match=message):
            operation(maps, out=out)
    for out in (good.astype(">i8"), good.astype(complex), torch.from_numpy(good), None.__class__):
        with pytest.raises(TypeError, match="out must be"):
            operation(maps, out=out)
    assert not good.any() and not read_only.any()


def test_out_that_overlaps_the_maps():
    for memory in (torch.rand(100), torch.rand(100).numpy()):
        maps = memory[:60].reshape(2, 6, 5)
        with pytest.raises(ValueError, match="out must lie apart from maps in memory"):
            fg.smooth(maps, out=memory[40:].reshape(2, 6, 5))
        fg.smooth(maps[:1], out=memory[30:60].reshape(1, 6, 5))  # its neighbour may hold it
    with pytest.raises(ValueError, match="out must lie apart from maps in memory"):
        fg.smooth(maps, out=maps)


# What runs


def test_the_implementation_can_be_forced_and_is_told(monkeypatch):
    monkeypatch.delenv("FASTGROUND_IMPLEMENTATION", raising=False)
    best, *_ = here = _core.instruction_sets()
    assert here[-1] == "portable"
    assert dispatch.implementations()["entropy"]["cpu"] == f"native (C++, {best})"
    for name in here:
        monkeypatch.setenv("FASTGROUND_IMPLEMENTATION", name)
        assert dispatch.implementations()["boxes"]["cpu"] == f"native (C++, {name})"
        assert dispatch.build()["kernels"] == name
    monkeypatch.setenv("FASTGROUND_IMPLEMENTATION", "native")
    assert dispatch.implementations()["entropy"]["cpu"] == f"native (C++, {best})"
    monkeypatch.setenv("FASTGROUND_IMPLEMENTATION", "reference")
    forced = dispatch.implementations()["entropy"]
    assert forced["cpu"] == "reference (PyTorch)" and "IMPLEMENTATION=reference" in forced["why"]
    monkeypatch.setenv("FASTGROUND_IMPLEMENTATION", "fast")
    message = f"must be one of .*, reference, native, {', '.join(here)}, but got 'fast'"
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            fg.entropy(torch.rand(4, 4))


def test_an_instruction_set_that_is_not_here_is_refused(monkeypatch):
    monkeypatch.setattr(_core, "instruction_sets", lambda: ["portable"])
    monkeypatch.setenv("FASTGROUND_IMPLEMENTATION", "avx512")
    with pytest.raises(ValueError, match="reference, native, portable, but got 'avx512'"):
        fg.smooth(torch.rand(4, 4))


@each_operation
def test_instruction_sets_agree_to_the_bit(operation, monkeypatch):
    maps = torch.rand(20, 3, 24, 24)
    results = []
    for name in _core.instruction_sets():
        monkeypatch.setenv("FASTGROUND_IMPLEMENTATION", name)
        results.append(arrays(operation(maps)))
    for other_result in results[1:]:
        assert all(map(torch.equal, results[0], other_result))


def test_every_operation_tells_its_implementation():
    told = dispatch.implementations()
    assert set(told) == {f.__name__ for f in OPERATIONS} | {"attention_rows"}
    assert all({"cpu", "cuda", "why"} <= set(row) for row in told.values())


def traced_by_jit(call, maps):
    with pytest.warns(DeprecationWarning):  # torch.jit is on its way out
        torch.jit.trace(call, (maps,), check_trace=False)


def exported(call, maps):
    class Module(torch.nn.Module):
        def forward(self, maps):
            return call(maps)

    torch.export.export(Module(), (maps,))


def faked(call, maps):
    with FakeTensorMode() as mode:
        call(mode.from_tensor(maps))


FOLLOWED = {
    "vmap": lambda call, maps: torch.func.vmap(call)(maps),
    "grad": lambda call, maps: torch.func.grad(lambda m: call(m).float().sum())(maps),
    "jvp": lambda call, maps: torch.func.jvp(call, (maps,), (maps,)),
    "jit": traced_by_jit,
    "export": exported,
    "fake": faked,
}
"""What torch does with functions, of whose tensors there are no numbers to be read meanwhile."""


@each_operation
@pytest.mark.parametrize("way", FOLLOWED)
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # by torch itself
def test_what_torch_only_follows_is_refused_and_never_taken_for_a_constant(operation, way):
    with pytest.raises(TypeError, match=r"maps must hold numbers in memory, .* outside"):
        FOLLOWED[way](lambda maps: arrays(operation(maps))[0], torch.rand(4, 3, 6, 6))


def test_valid_that_torch_only_follows_is_refused():
    maps = torch.rand(3, 6, 6)

    def call(valid):
        return fg.boxes(maps, valid=valid).xyxy

    with pytest.raises(TypeError, match="valid must hold numbers in memory"):
        torch.func.vmap(call)(torch.ones(2, 6, 6, dtype=torch.bool))
