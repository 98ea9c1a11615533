"""The native core's own door: what it reads, what it refuses, and its tensors."""

import math

import numpy as np
import pytest
import torch
from fastground import _core, arguments


def test_the_native_core_checks_what_it_would_write_and_read():
    maps, one = np.zeros((4, 6, 5), np.float32), np.ones(1)
    sums = np.empty(4, np.float32)
    assert _core.head_stats(maps, 0, 0, 0, sums, None) == 0
    with pytest.raises(ValueError, match="not the size of the result"):
        _core.head_stats(maps, 0, 0, 0, sums[:3], None)
    with pytest.raises(ValueError, match="not the size of the result"):
        _core.label(maps, 0, np.empty((4, 6, 5), np.int16))
    sums.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        _core.head_stats(maps, 0, 0, 0, sums, None)
    for wrong in (maps[0, 0], maps[None], maps[:, :0], maps.astype(int), np.zeros((1, 257, 2))):
        with pytest.raises(ValueError, match="maps"):
            _core.binarize(wrong, 0, np.empty(wrong.shape, bool))
    for heads in (0, 3):
        with pytest.raises(ValueError, match="heads"):
            _core.combine(maps, heads, one, 0, np.empty((1, 6, 5), np.float32))
    room = np.empty(maps.shape, np.float32)
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        _core.combine(maps, 1, np.ones(2), 0, room)
    with pytest.raises(ValueError, match="taps must be float64"):
        _core.combine(maps, 1, np.ones(6, np.float32)[:2], 0, room)
    with pytest.raises(ValueError, match="an output is missing"):
        _core.combine(maps, 1, one, 0, None)
    with pytest.raises(ValueError, match="not the size of the result"):
        _core.combine(maps, 1, one, 0, room.view(np.int16))
    sums = np.empty(4, np.float32)
    rows = np.empty((4, 7), np.float32)
    mask = maps > 0
    for call in (
        lambda: _core.head_stats(mask, 0, 0, 0, sums, None),
        lambda: _core.combine(mask, 1, one, 0, room),
        lambda: _core.boxes(mask, 1, one, 0, None, 0, rows),
        lambda: _core.largest(mask),
    ):
        with pytest.raises(ValueError, match="maps must not be bool here"):
            call()
    for code in (-1, 9):
        for call in (
            lambda code=code: _core.head_stats(maps, code, 0, 0, sums, None),
            lambda code=code: _core.head_stats(maps, 0, code, 0, sums, None),
            lambda code=code: _core.head_stats(maps, 0, 0, code, sums, None),
            lambda code=code: _core.binarize(maps, code, mask),
            lambda code=code: _core.label(maps, code, room.view(np.int32)),
            lambda code=code: _core.combine(maps, 1, one, code, room),
            lambda code=code: _core.boxes(maps, 1, one, 0, None, code, rows),
        ):
            with pytest.raises(ValueError, match="no choice has the number"):
                call()


def test_the_native_core_checks_tensors():
    maps, one, rows = torch.rand(6, 4, 5), np.ones(1), np.empty((6, 7), np.float32)
    suspect, parts = _core.box_tensors(maps, 1, one, 0, None, 0, (3, 2), tuple)
    assert suspect == _core.boxes(maps.numpy(), 1, one, 0, None, 0, rows) == 0
    assert torch.equal(parts[0].flatten(0, 1), torch.from_numpy(rows[:, :4]))
    assert [part.shape for part in parts] == [(3, 2, 4)] + [(3, 2)] * 4
    for batch in ((5,), (6, 2), (), (-3, -2), ("6",)):
        with pytest.raises((ValueError, RuntimeError), match=r"batch|cast"):
            _core.box_tensors(maps, 1, one, 0, None, 0, batch, tuple)
    for answer in (list, object):
        with pytest.raises(TypeError, match="answer must be a class of tuples"):
            _core.box_tensors(maps, 1, one, 0, None, 0, (6,), answer)
    refused = {
        "Cannot pack tensors on meta": maps.to("meta"),
        "doesn't have storage": maps.to_sparse(),
        "maps must be float16": maps.to(torch.complex64),
        "maps must have two or three axes": maps[0, 0],
        "arrays must be of NumPy": [[1.0]],
    }
    for match, wrong in refused.items():
        with pytest.raises((RuntimeError, ValueError, TypeError), match=match):
            _core.largest(wrong)
        assert _core.plain_shape(wrong, 2) is None
    with pytest.raises(AttributeError):
        _core.use_tensors(np.ndarray)
    assert _core.largest(maps) == maps.max()  # the class is torch's as before


def test_which_maps_are_read_as_they_are():
    maps = np.zeros((2, 3, 4, 5), np.float32)
    masked = np.ma.masked_array(maps)
    packed = np.zeros((2, 3, 4, 5), [("a", "u1"), ("b", "f4")])["b"]
    for plain in (maps, maps[..., ::-1], maps.astype(np.float16), maps.astype(float), maps[:0]):
        assert _core.plain_shape(plain, 3) == plain.shape
        if min(plain.strides) > 0 and plain.size:
            assert _core.plain_shape(torch.from_numpy(plain), 3) == plain.shape
    for nothing in (torch.empty(0, 3, 4, 5), torch._efficientzerotensor((2, 3, 4, 5))):
        assert _core.plain_shape(nothing, 3) is None, "nothing to be read"
    assert _core.plain_shape(torch.from_numpy(maps).bfloat16().requires_grad_(), 2) == maps.shape
    assert _core.plain_shape(maps, 5) is None and _core.plain_shape(maps[:, :0], 3) is None
    assert _core.plain_shape(maps[:, :0], 2) == (2, 0, 4, 5)
    swapped = maps.astype(maps.dtype.newbyteorder())
    for other in (masked, packed, swapped, maps > 0, maps.astype(int), maps.tolist(), None):
        assert _core.plain_shape(other, 2) is None
    for grid in ((0, 5), (5, 0), (257, 5), (5, 257)):
        assert _core.plain_shape(np.zeros((2, *grid)), 2) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_largest_magnitude(dtype):
    generator = torch.Generator().manual_seed(0)
    for grid in ((1, 1), (3, 5), (24, 24), (5, 65)):
        maps = torch.randn(7, *grid, generator=generator).to(dtype)
        for view in (maps, maps[::2], maps.transpose(1, 2), maps[:, :, :1]):
            worst = view.clone()
            worst[-1, -1, -1] = -math.nan
            for name in _core.instruction_sets():
                _core.use(name)
                found = _core.largest(arguments.source(view, tuple(view.shape)))
                assert found == view.double().abs().max().item()
                assert _core.largest(arguments.source(worst, tuple(view.shape))) == math.inf
    _core.use("")
    assert _core.largest(np.empty((0, 4, 4))) == 0
