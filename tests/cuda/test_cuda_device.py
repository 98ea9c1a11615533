"""What only a GPU can show: the kernels there, their streams, graphs, devices and large offsets."""

import fastground as fg
import pytest
import torch
from fastground import dispatch, ops

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(dispatch.cuda_core is None, reason="built without CUDA kernels"),
]

OPERATIONS = {
    "attention_sum": fg.attention_sum,
    "entropy": fg.entropy,
    "head_stats": fg.head_stats,
    "entropy by mass": lambda maps, **k: fg.entropy(maps, weight="mass", **k),
    "binarize": fg.binarize,
    "label": fg.label,
    "smooth": fg.smooth,
    "combine": lambda maps, **k: ops.combine(maps[:, None], **k),
    "boxes": lambda maps, **k: fg.boxes(maps[:, None], **k),
}
each_operation = pytest.mark.parametrize("name", OPERATIONS)
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def tensors(result):
    """The tensors of a result."""
    return [result] if isinstance(result, torch.Tensor) else list(result)


def assert_like_the_cpu(name, maps):
    """To the bit, but that the logarithm of another library may round elsewhere."""
    found = tensors(OPERATIONS[name](maps, nan="propagate"))
    expected = tensors(OPERATIONS[name](maps.cpu(), nan="propagate"))
    for a, b in zip(found, expected, strict=True):
        assert a.is_cuda
        if name == "entropy by mass":
            torch.testing.assert_close(a.cpu(), b, rtol=1e-6, atol=1e-6, equal_nan=True)
        else:
            torch.testing.assert_close(a.cpu(), b, rtol=0, atol=0, equal_nan=True)


@each_operation
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_equals_the_cpu_to_the_bit(name, dtype):
    for h, w in [(24, 24), (1, 1), (14, 14), (27, 27), (32, 32), (33, 20), (64, 64), (5, 65)]:
        maps = torch.rand(300, h, w).pow(3).to(dtype)
        maps[7, 0, 0] = torch.nan
        assert_like_the_cpu(name, maps.cuda())
    for h, w in [(3, 130), (128, 128), (256, 256)]:
        assert_like_the_cpu(name, torch.rand(3, h, w).pow(3).to(dtype).cuda())


@each_operation
def test_cuda_takes_every_size_of_batch(name):
    maps = torch.rand(70_000, 6, 7).cuda()
    for count in (0, 1, 31, 33, 2048, 2049, 16384, 16385, 70_000):
        assert_like_the_cpu(name, maps[:count])


@each_operation
def test_cuda_takes_any_layout(name):
    maps = torch.rand(40, 24, 26).cuda()
    for some in (maps[::3], maps[:, :, 1:25], maps.transpose(1, 2), maps[:, ::2], maps[:1].expand(
        9, 24, 26
    )):  # fmt: skip
        assert_like_the_cpu(name, some)
    rows = torch.rand(50, 700).cuda()
    assert_like_the_cpu(name, rows[:, 35:611].unflatten(1, (24, 24)))


@each_operation
def test_cuda_runs_on_the_callers_stream_without_waiting(name):
    operation = OPERATIONS[name]
    maps = torch.rand(500, 24, 24).cuda()
    expected = [x.clone() for x in tensors(operation(maps, nan="propagate"))]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        operation(maps, nan="propagate")  # so that its memory is there
    torch.cuda.synchronize()
    late = torch.zeros_like(maps)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            late.copy_(maps)  # only after the sleep: another stream would see zeros
            found = tensors(operation(late, nan="propagate"))
            assert not stream.query(), "the call has waited for the device"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream.synchronize()
    assert all(map(torch.equal, found, expected))


@each_operation
@pytest.mark.parametrize("grid", [(24, 24), (80, 80)])
def test_cuda_calls_can_be_captured_in_a_graph(name, grid):
    operation = OPERATIONS[name]
    maps, other = torch.rand(2, 50, *grid).cuda()
    expected = [x.clone() for x in tensors(operation(other, nan="propagate"))]
    operation(maps, nan="propagate")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = tensors(operation(maps, nan="propagate"))
    maps.copy_(other)
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, captured, expected))


@each_operation
def test_cuda_gives_the_same_bits_again(name):
    maps = torch.rand(3000, 24, 24).cuda()
    first = tensors(OPERATIONS[name](maps))
    for _ in range(3):
        assert all(map(torch.equal, tensors(OPERATIONS[name](maps)), first))


def test_cuda_offsets_beyond_32_bits():
    """2^31 elements lie before the last maps."""
    if torch.cuda.mem_get_info()[0] < 8 << 30:
        pytest.skip("not enough memory on this device")
    maps = torch.zeros((1 << 31) // 576 + 40, 24, 24, dtype=torch.float16, device="cuda")
    last = torch.rand(30, 24, 24).half().cuda()
    maps[-30:] = last
    assert torch.equal(fg.entropy(maps, nan="propagate")[-30:], fg.entropy(last))
    assert torch.equal(fg.attention_sum(maps)[-30:], fg.attention_sum(last))
    wide = torch.as_strided(maps, (2, 24, 24), ((maps.shape[0] - 1) * 576, 24, 1))
    assert torch.equal(fg.label(wide)[1], fg.label(last)[-1])


def test_cuda_refuses_what_is_no_number():
    maps = torch.rand(3, 5, 4).cuda()
    maps[1, 2, 3] = torch.inf
    for operation in OPERATIONS.values():
        with pytest.raises(ValueError, match="1 of 3 are not"):
            operation(maps)


def test_cuda_valid_cells_may_be_given_on_either_device():
    maps = torch.rand(5, 3, 24, 24)
    valid = torch.rand(5, 24, 24) > 0.3
    expected = fg.boxes(maps, valid=valid)
    for place in (valid, valid.cuda(), valid.cuda().transpose(1, 2).contiguous().transpose(1, 2)):
        found = fg.boxes(maps.cuda(), valid=place)
        assert all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))
    shared = fg.boxes(maps, valid=valid[0])
    found = fg.boxes(maps.cuda(), valid=valid[0])
    assert all(torch.equal(a.cpu(), b) for a, b in zip(found, shared, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device here")
def test_cuda_runs_on_the_device_of_the_maps():
    for operation in OPERATIONS:
        assert_like_the_cpu(operation, torch.rand(9, 24, 24).to("cuda:1"))


def test_cuda_may_be_left_to_the_reference(monkeypatch):
    maps = torch.rand(20, 24, 24).cuda()
    native = fg.label(maps)
    monkeypatch.setenv("FASTGROUND_IMPLEMENTATION", "reference")
    assert torch.equal(fg.label(maps), native)
    monkeypatch.setenv("FASTGROUND_IMPLEMENTATION", "avx2")
    with pytest.raises(ValueError, match=r"needs maps on the CPU|must be one of"):
        fg.label(maps)
