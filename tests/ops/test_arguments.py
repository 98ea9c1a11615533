"""What every operation on maps takes, gives back and refuses."""

import fastground as fg
import numpy as np
import pytest
import torch
from fastground import ops

OPERATIONS = [fg.attention_sum, fg.binarize, fg.label, fg.entropy, fg.head_stats, fg.smooth]
OPERATIONS += [ops.combine, fg.boxes]
each_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda f: f.__name__)


def arrays(result):
    return result if isinstance(result, tuple) else (result,)


@each_operation
def test_numpy_in_numpy_out(operation):
    maps = torch.rand(2, 3, 6, 5)
    expected = arrays(operation(maps))
    base = np.asfortranarray(maps.numpy())
    read_only = maps.numpy().copy()
    read_only.flags.writeable = False
    packed = np.zeros(maps.shape, dtype=np.dtype([("pad", "i1"), ("cells", "f4")]))
    packed["cells"] = base
    variants = [base, base[::-1][::-1], base[..., ::-1].copy()[..., ::-1], read_only]
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
        (torch.rand(1, 4, 257), ValueError, r"but got shape \(1, 4, 257\)"),
        (torch.ones(1, 4, 4, dtype=torch.int32), TypeError, "but got int32; convert with"),
        (torch.ones(1, 4, 4, dtype=torch.complex64), TypeError, "but got complex64"),
        (np.ones((1, 4, 4), dtype=np.int64), TypeError, "but got int64"),
        (np.array([["a"]]), TypeError, "maps must be numbers"),
        ([[0.1, 0.2]], TypeError, "maps must be a torch tensor, a NumPy array .* but got list"),
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


def test_masks_only_where_they_mean_something():
    mask = torch.eye(4, dtype=torch.bool)
    assert fg.label(mask).max() == 1
    with pytest.raises(TypeError, match="but got bool"):
        fg.entropy(mask)


def test_the_implementation_can_be_forced_and_is_told(monkeypatch):
    assert ops.implementations()["entropy"]["cpu"] == "native (C++)"
    monkeypatch.setenv("FASTGROUND_IMPLEMENTATION", "reference")
    forced = ops.implementations()["entropy"]
    assert forced["cpu"] == "reference (PyTorch)" and "IMPLEMENTATION=reference" in forced["why"]
    monkeypatch.setenv("FASTGROUND_IMPLEMENTATION", "fast")
    with pytest.raises(ValueError, match="must be reference or native, but got 'fast'"):
        fg.entropy(torch.rand(4, 4))


def test_every_operation_tells_its_implementation():
    told = ops.implementations()
    assert set(told) == {f.__name__ for f in OPERATIONS} | {"attention_rows"}
    assert all({"cpu", "cuda", "why"} <= set(row) for row in told.values())
