"""fastground bench: every operation is timed as it runs, and held to the reference."""

import json

import fastground
import pytest
import torch
from fastground import bench, cli, dispatch


def test_every_operation_is_timed_and_held_to_its_definition():
    found = {s.operation: s for s in bench.measure(7, (5, 9), seconds=0.001)}
    where = dispatch.implementations()
    assert set(found) == set(where)
    for name, speed in found.items():
        assert speed.implementation == where[name]["cpu"]
        assert speed.time_ns > 0 and speed.of_copy > 0 and speed.spread >= 0
        assert speed.error <= 1e-6


def test_what_is_wrong_is_seen(monkeypatch):
    label, smooth = bench.ops.label, bench.ops.smooth
    monkeypatch.setattr(bench.ops, "label", lambda maps, **_: 2 * label(maps))
    monkeypatch.setattr(bench.ops, "smooth", lambda maps, **given: smooth(maps, **given) + 0.25)
    found = {s.operation: s for s in bench.measure(6, (8, 8), seconds=0.001)}
    assert found["label"].error > 1 and found["smooth"].error == pytest.approx(0.25, abs=1e-3)
    assert found["entropy"].error <= 1e-6


@pytest.mark.parametrize("dtype", bench.DTYPES)
def test_maps_are_like_attention(dtype):
    maps = bench.attention_like(20, (12, 24), dtype=dtype)
    assert maps.shape == (20, 12, 24) and maps.dtype == getattr(torch, dtype)
    assert torch.allclose(maps.double().sum((1, 2)), torch.tensor(0.3).double(), atol=5e-3)
    share = fastground.binarize(maps).double().mean()
    assert 0.1 < share < 0.5 and fastground.entropy(maps).min() > 0
    assert torch.equal(maps, bench.attention_like(20, (12, 24), dtype=dtype))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"count": 2}, "count must be at least 3"),
        ({"grid": (0, 4)}, "grid must be 1 to 256 cells"),
        ({"grid": (24, 257)}, "grid must be 1 to 256 cells"),
        ({"count": 10**12}, "at most 1,000,000,000 cells together, but got 10+ of 24 x 24"),
        ({"dtype": "int8"}, "dtype must be one of float32"),
        ({"device": "meta"}, "device must be cpu, or cuda where torch sees one"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        next(bench.measure(**options))


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", bool)
    with pytest.raises(ValueError, match="but got 'cuda'"):
        next(bench.measure(device="cuda"))


def run(capsys, *options):
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", *map(str, options)])
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def test_the_command_prints_a_table_or_json(capsys):
    options = ("--maps", 6, "--grid", "6x7", "--seconds", 0.001)
    code, out, _ = run(capsys, *options)
    assert code == 0 and "6 maps of 6 x 7 float32 on cpu" in out and "attention_rows" in out
    code, out, _ = run(capsys, *options, "--json")
    told = json.loads(out)
    assert code == 0 and told["grid"] == [6, 7] and len(told["operations"]) == 9
    assert told["versions"]["torch"] == torch.__version__


def test_the_command_sets_the_threads_of_both(capsys):
    before = torch.get_num_threads(), fastground.get_num_threads()
    try:
        code, out, _ = run(capsys, "--maps", 3, "--seconds", 0.001, "--threads", 1, "--json")
        assert code == 0 and json.loads(out)["threads"] == 1
        assert (torch.get_num_threads(), fastground.get_num_threads()) == (1, 1)
    finally:
        torch.set_num_threads(before[0])
        fastground.set_num_threads(before[1])


@pytest.mark.parametrize("grid", ["0", "24x", "axb", "1x2x3", "300"])
def test_a_grid_that_is_none_is_refused_in_one_line(capsys, grid):
    code, _, err = run(capsys, "--grid", grid)
    assert code == 2 and "grid must be" in err and err.count("\n") == 1
