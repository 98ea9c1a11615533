"""The CUDA kernels' sources, run on the CPU: a part of what `make test-exhaustive` compares."""

import math
import os
import subprocess
import sys
from pathlib import Path

import cuda_on_host
import fastground as fg
import numpy as np
import pytest
import torch
from fastground import dispatch, gpu, ops

sys.path.insert(0, str(Path(__file__).parent))
import prove_cuda

pytestmark = pytest.mark.skipif(cuda_on_host.compiler() is None, reason="no C++ compiler here")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return cuda_on_host.build(tmp_path_factory.mktemp("cuda"))


def test_kernels_equal_the_native_core_to_the_bit(built):
    done, differ = prove_cuda.prove_all(12_000, built, most_cells=6_000)
    assert done >= 12_000
    assert not differ


def test_the_order_in_which_lanes_run_does_not_matter(built):
    """Shared memory that is read before it is written would show in the other order."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import pathlib, prove_cuda\n"
        "_, differ = prove_cuda.prove_all(2_000, pathlib.Path(sys.argv[2]), most_cells=3_000)\n"
        "sys.exit(bool(differ))"
    )
    folder = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code, folder, str(built)],
        env={**os.environ, "FIBER_ORDER": "backwards"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0


@pytest.mark.parametrize("count", [1, 8, 9, 31, 32, 33, 255, 2048])
def test_every_share_of_a_warp(built, count):
    """A warp has a map, loads four, or 32: here from 9 and 33 on, not from 2,049 and 16,385."""
    maps = torch.rand(count, 4, 3)
    with cuda_on_host.kernels(cuda_on_host.load(built)):
        sums, entropies = gpu.head_stats(maps)
    expected = fg.head_stats(maps)
    assert torch.equal(sums, expected.attention_sum) and torch.equal(entropies, expected.entropy)


@pytest.mark.parametrize("border", ["reflect101", "reflect"])
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_smoothing_with_a_lane_for_each_column_and_without(built, dtype, kernel_size, border):
    """Grids that a lane's reach does or does not fit; what float32 does not suffice for."""
    recipe = fg.Recipe(kernel_size=kernel_size, border=border)
    huge = torch.finfo(dtype).max
    with cuda_on_host.kernels(cuda_on_host.load(built)):
        for grid in ((1, 7), (5, 4), (4, 5), (24, 24), (11, 32), (9, 33)):
            maps = torch.rand(4, 3, *grid)
            maps[1] *= huge  # of it intermediate sums are too large
            maps[2, 1, 0, 0] = torch.inf
            maps[3, 2, -1, -1] = torch.nan
            maps = maps.to(dtype)
            for some in (maps, maps[:, :1], maps.flatten(0, 1)[:, None]):
                found = gpu.combine(some, recipe=recipe)
                expected = ops.combine(some, recipe=recipe, nan="propagate")
                assert prove_cuda.same(found, expected), grid


@pytest.mark.parametrize("region", prove_cuda.REGIONS)
def test_boxes_of_grids_that_a_warp_holds_in_registers_and_of_others(built, region):
    """Few cells, so that many regions are equally large; mirrored, so that their sums are, too."""
    rng = torch.Generator().manual_seed(0)
    recipe = fg.Recipe(region=region, sigma=0.3)
    with cuda_on_host.kernels(cuda_on_host.load(built)):
        for grid in ((24, 24), (4, 4), (31, 32), (32, 31), (31, 4), (11, 32), (9, 33)):
            maps = (torch.rand(12, 2, *grid, generator=rng) < 0.05).float()
            maps[::2] += maps[::2].flip(-1)
            maps[3] = torch.rand(2, *grid, generator=rng)
            maps[4, 1, 0, 0] = torch.nan
            maps[5] = 1
            valid = torch.rand(12, *grid, generator=rng) < 0.8
            valid[6] = False
            for some in (None, valid, valid[0]):
                found = gpu.boxes(maps, recipe=recipe, valid=some)
                expected = fg.boxes(maps, recipe=recipe, valid=some, nan="propagate")
                assert all(map(prove_cuda.same, found, expected)), grid


def test_any_shape_and_layout(built):
    maps = torch.rand(2, 3, 4, 6, 5)
    with cuda_on_host.kernels(cuda_on_host.load(built)):
        some_maps = [maps, maps.transpose(0, 1), maps[0, 0, 0], maps[:, :, ::2], maps[:, :0]]
        some_maps += [maps[..., 1:, ::2], maps[:, :1].expand(2, 3, 4, 6, 5)]
        for some in some_maps:
            assert torch.equal(gpu.entropy(some), fg.entropy(some))
            assert torch.equal(gpu.label(some), fg.label(some))
        wide = torch.rand(7, 100)
        some = wide[:, 40:70].unflatten(1, (6, 5))  # rows of attention: maps lie apart
        assert torch.equal(gpu.head_stats(some).entropy, fg.entropy(some))
        assert all(map(torch.equal, gpu.boxes(some), fg.boxes(some)))


def test_a_region_of_more_cells_than_the_cpus_table_has(built):
    maps = torch.rand(1, 256, 200)
    maps[:, 140:].mul_(1e-3)
    with cuda_on_host.kernels(cuda_on_host.load(built)):
        assert torch.equal(gpu.entropy(maps), fg.entropy(maps))
        assert gpu.cuda_core.n_ln_n().view("uint64")[-1] == round(2**64 * math.log(2))


def test_cells_of_masks_are_set_by_any_byte_but_0(built):
    masks = torch.randint(0, 3, (5, 6, 5), dtype=torch.uint8).mul(127).view(torch.bool)
    with cuda_on_host.kernels(cuda_on_host.load(built)):
        assert torch.equal(gpu.label(masks), fg.label(masks))
        found = gpu.boxes(torch.ones(5, 1, 6, 5) + torch.eye(6)[:, :5], valid=masks)
    expected = fg.boxes(torch.ones(5, 1, 6, 5) + torch.eye(6)[:, :5], valid=masks)
    assert all(map(torch.equal, found, expected))


def test_a_first_call_in_a_capture_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"before a CUDA graph .* the same call once before"):
        gpu._upload(np.zeros(3), torch.device("cuda", 0))


def test_bindings_refuse_what_they_cannot_run(built):
    module = cuda_on_host.load(built)
    maps, mask = torch.rand(4, 6, 5), torch.empty(4, 6, 5, dtype=torch.bool)
    for wrong in (maps[:, :0], torch.rand(4, 6, 257), maps[0, 0]):
        with pytest.raises(ValueError, match="1 to 256"):
            module.binarize(wrong, 0, mask)
    with pytest.raises(ValueError, match="no choice has the number 3"):
        module.binarize(maps, 3, mask)
    with pytest.raises(ValueError, match="must not be bool"):
        module.binarize(mask, 0, mask)
    with pytest.raises(ValueError, match="must be float16"):
        module.binarize(maps.int(), 0, mask)
    with pytest.raises(ValueError, match="must lie as"):
        module.binarize(maps.transpose(1, 2), 0, mask)
    for room in (mask[:3], mask.int(), torch.empty(8, 6, 5, dtype=torch.bool)[::2]):
        with pytest.raises(ValueError, match="not the size of what it is to hold"):
            module.binarize(maps, 0, room)
    with pytest.raises(TypeError, match="must be tensors"):
        module.binarize(maps.numpy(), 0, mask)
    with pytest.raises(TypeError, match="must be tensors"):
        module.head_stats(maps, 0, 0, 0, None, None, None, torch.empty(4))  # without the table


def test_which_maps_are_read_where_they_are(built):
    batch_of = cuda_on_host.load(built).batch_of
    maps = torch.rand(2, 3, 4, 6, 5)
    assert batch_of(maps) == batch_of(maps[:, :, ::1]) == (2, 3, 4)
    assert batch_of(maps[0, 0, 0]) == () and batch_of(maps[:, :1, :1]) == (2, 1, 1)
    assert batch_of(maps[:1, ::2]) is None and batch_of(maps[0, ::2]) is None
    assert batch_of(maps[:, :, ::2]) == (2, 3, 2)  # 12, 6, 2 maps apart
    assert batch_of(maps[0, 0, ::3]) == (2,) and batch_of(maps[0, 0, :1].expand(9, 6, 5)) == (9,)
    assert batch_of(maps.transpose(0, 1)) is None and batch_of(maps.transpose(3, 4)) is None
    assert batch_of(maps[..., :1]) is None and batch_of(maps[:, :0].transpose(3, 4)) == (2, 0, 4)
    rows = torch.rand(7, 100)
    assert batch_of(rows[:, 40:70].unflatten(1, (6, 5))) == (7,)


class OnCuda:
    """All that `dispatch` asks of maps."""

    is_cpu, is_cuda, device = False, True, "cuda:0"


def test_a_build_without_kernels_says_how_to_have_them(monkeypatch):
    monkeypatch.delenv("FASTGROUND_IMPLEMENTATION", raising=False)
    monkeypatch.setattr(dispatch, "cuda_core", None)
    with pytest.raises(RuntimeError, match=r"cuda:0, but .*define.FASTGROUND_CUDA=ON"):
        dispatch.native_on_gpu(OnCuda())
    monkeypatch.setenv("FASTGROUND_IMPLEMENTATION", "reference")
    assert dispatch.native_on_gpu(OnCuda()) is False


def test_a_build_with_kernels_takes_cuda_tensors(monkeypatch):
    monkeypatch.setattr(dispatch, "cuda_core", object())
    for name, taken in {"": True, "native": True, "reference": False}.items():
        monkeypatch.setenv("FASTGROUND_IMPLEMENTATION", name)
        assert dispatch.native(OnCuda()) is False
        assert dispatch.native_on_gpu(OnCuda()) is taken
    monkeypatch.setenv("FASTGROUND_IMPLEMENTATION", "portable")
    with pytest.raises(ValueError, match="needs maps on the CPU, but got cuda:0"):
        dispatch.native(OnCuda())
