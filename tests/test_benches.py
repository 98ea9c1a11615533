"""The benchmark harness: what it measures, prints and keeps; the peers give the same answers."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHES = Path(__file__).parent.parent / "benches"


@pytest.fixture
def harness(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHES))
    import harness

    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    return harness


def test_ratios_refer_to_the_first_contender(harness):
    loops = {"short": lambda: sum(range(2000)), "long": lambda: sum(range(20000))}
    rows = harness.compare("sums", loops, items=2, repeats=5, min_time_ms=2, errors={"long": "0"})
    assert [row.contender for row in rows] == ["short", "long"]
    assert rows[0].ratio == 1 and 3 < rows[1].ratio < 40
    assert all(row.time_us > 0 and row.spread >= 0 for row in rows)
    assert [row.error for row in rows] == ["", "0"]


def test_results_are_kept_by_machine_and_benchmark(harness, tmp_path, capsys):
    rows = harness.compare("nothing", {"pass": lambda: None}, items=1, repeats=2, min_time_ms=0)
    harness.report("first", "does nothing", rows)
    harness.report("second", "does nothing", rows)
    harness.report("first", "does nothing again", rows)
    assert "does nothing again" in capsys.readouterr().out
    (path,) = tmp_path.glob("*-cores.json")
    kept = json.loads(path.read_text())
    assert list(kept) == ["first", "second"]
    assert kept["first"]["description"] == "does nothing again"
    assert kept["first"]["rows"][0]["contender"] == "pass"
    assert {"cpu", "cores", "python", "torch"} <= set(kept["first"]["machine"])
    assert {"command", "commit", "date"} <= set(kept["first"])


def test_without_git_results_are_kept_of_an_unknown_commit(harness, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert harness.commit.__wrapped__() == "unknown"


def test_a_part_of_the_gpu_benchmark_that_fails_does_not_hide_the_others(
    harness, monkeypatch, tmp_path, capsys
):
    import bench_gpu

    def row(name):
        return harness.compare(name, {"it": lambda: None}, items=1, repeats=2, min_time_ms=0)

    def breaks(_):
        yield row("before")
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(bench_gpu.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(bench_gpu.dispatch, "cuda_core", object())
    monkeypatch.setattr(harness, "machine", lambda: {"cpu": "one", "kernels": "", "cores": "1"})
    monkeypatch.setattr(bench_gpu, "one_call", breaks)
    monkeypatch.setattr(bench_gpu, "many", lambda _: iter([row("many")]))
    monkeypatch.setattr(bench_gpu, "beside_peers", lambda _: iter([row("peers")]))
    monkeypatch.setattr("sys.argv", ["bench_gpu.py"])
    with pytest.raises(SystemExit, match="failed: gpu-call"):
        bench_gpu.main()
    assert "no such kernel" in capsys.readouterr().err
    (path,) = tmp_path.glob("*.json")
    kept = {name: each["rows"] for name, each in json.loads(path.read_text()).items()}
    assert kept.keys() == {"gpu", "gpu-call", "gpu-peers"}
    assert [row["workload"] for row in kept["gpu-call"]] == ["before"]


def test_the_families_repeat(harness):
    import map_families

    for family in map_families.FAMILIES:
        maps = map_families.batch(family, count=3, size=9)
        assert maps.shape == (3, 9, 9) and maps.dtype == np.float32 and (maps >= 0).all()
        assert np.array_equal(maps, map_families.batch(family, count=3, size=9))
        assert map_families.batch(family, count=2, size=(7, 12)).shape == (2, 7, 12)


def test_the_peers_of_entropy_agree(harness):
    pytest.importorskip("numba")
    import bench_entropy
    import entropy_peers
    import map_families

    contenders = bench_entropy.instruction_sets() | entropy_peers.FAST | entropy_peers.SLOW
    pool = ThreadPoolExecutor(2)
    contenders["numba, 2 threads"] = partial(entropy_peers.numba_threads, pool, 2)
    for family in map_families.FAMILIES:
        maps = map_families.batch(family, count=5, size=(11, 8))
        truth = entropy_peers.scipy_per_map(maps)
        for name, entropies in contenders.items():
            result = entropies(maps)
            assert result.shape == (5,), name
            if name != "per map loop":
                np.testing.assert_allclose(result, truth, atol=1e-6, err_msg=name)


def test_the_cases_of_entropy_run_and_are_exact(harness, monkeypatch, tmp_path):
    pytest.importorskip("numba")
    import bench_entropy

    options = ["--count", "6", "--repeats", "1", "--min-time-ms", "0"]
    monkeypatch.setattr("sys.argv", ["bench_entropy.py", *options])
    bench_entropy.main()
    (path,) = tmp_path.glob("*-cores.json")
    kept = json.loads(path.read_text())
    assert set(bench_entropy.CASES) - {"entropy-threads"} <= set(kept)
    for run in kept.values():
        assert run["threads"] >= 1 and run["machine"]["kernels"]
        for row in run["rows"]:
            if row["contender"].startswith("fastground"):
                assert float(row["error"]) <= 2e-6, row


def test_the_floor_is_one_plain_read(harness):
    pytest.importorskip("numba")
    values = np.arange(1 << 16, dtype=np.uint64)
    assert harness.plain_read(values)() == np.bitwise_xor.reduce(values)
    slow = {"sum of floats": lambda: sum(values.tolist())}
    rows = harness.compare("reading", slow, items=8, repeats=3, min_time_ms=1, floor=values)
    assert [row.contender for row in rows] == ["sum of floats", harness.FLOOR]
    assert rows[0].floor < 0.5 and rows[1].floor == 1 and rows[1].error.endswith("GB/s")


def made_up(**ratios):
    rows = [
        {"workload": "attention", "contender": n, "ratio": r, "time_us": r}
        for n, r in ratios.items()
    ]
    return {"entropy": {"rows": rows}}


def test_goals_are_judged(harness, monkeypatch):
    import goals

    least = goals.Goal("entropy", "attention", "peer", 10, 18, ours="ours")
    most = goals.Goal("entropy", "attention", "peer", at_most=1.05, ours="ours")
    clock = goals.Goal("entropy", "attention", within_us=3, ours="ours")
    monkeypatch.setattr(goals, "GOALS", (clock,))
    for time_us, word in ((2.9, "reached"), (3.1, "not reached")):
        assert list(goals.reached(made_up(ours=time_us))) == [(clock, time_us, word)]
    assert [word for *_, word in goals.reached({})] == ["not measured"]
    monkeypatch.setattr(goals, "GOALS", (least, most))
    judged = {
        ratio: [word for _, _, word in goals.reached(made_up(ours=2.0, peer=2.0 * ratio))]
        for ratio in (0.9, 1.0, 9.9, 10.0, 18.0)
    }
    assert judged[0.9] == ["not reached", "not reached"]
    assert judged[1.0] == judged[9.9] == ["not reached", "reached"]
    assert judged[10.0] == ["reached", "reached"] and judged[18.0] == ["aim reached", "reached"]
    assert [word for *_, word in goals.reached({})] == ["not measured"] * 2


def test_memory_is_compared_like_time(harness, monkeypatch):
    import goals

    goal = goals.Goal("entropy", "attention", "peer", 300, ours="ours", of="kept_mb")
    monkeypatch.setattr(goals, "GOALS", (goal,))
    results = made_up(ours=1.0, peer=2.0)
    assert [word for *_, word in goals.reached(results)] == ["not measured"]
    for row, megabytes in zip(results["entropy"]["rows"], (0.2, 80), strict=True):
        row["kept_mb"] = megabytes
    [(_, ratio, word)] = goals.reached(results)
    assert ratio == pytest.approx(400) and word == "reached"


def test_the_peak_is_what_a_call_takes_for_a_moment(harness):
    import memory

    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("no count of resident memory here")
    assert 39 < memory.peak(lambda: torch.ones(10_000_000)) < 45
    assert 78 < memory.peak(lambda: torch.ones(10_000_000) + 1) < 85
    assert memory.peak(lambda: None) < 1


@pytest.mark.parametrize("name", ["LLaVA", "Qwen2.5-VL"])
def test_the_contenders_of_capture_agree(harness, name):
    import bench_capture
    import goals
    import random_lvlms

    shape = random_lvlms.small(layers=2, width=512)[name]
    lvlm = random_lvlms.build(name, shape, "cpu", torch.float32)
    for count, other in ((1, goals.HALF), (2, goals.PACKED)):
        texts = bench_capture.EXPRESSIONS[:count]
        encoded = lvlm.encode(random_lvlms.picture(), texts, bench_capture.RECIPE)
        assert encoded.layout.grid == (24, 24)
        ways = bench_capture.Contenders(lvlm, encoded)
        assert set(ways.calls) == {goals.PLAIN, goals.CAPTURE, goals.EAGER, other}
        errors, kept = ways.errors()
        assert set(errors) == {goals.CAPTURE, other}
        assert all(float(error) <= 1e-5 for error in errors.values()), errors
        assert kept[goals.EAGER] > 300 * kept[goals.CAPTURE] > 0
    assert ways.eager()[0].max() > 0.05  # not flat, or the comparison would say little


@pytest.mark.parametrize("name", ["tiny", "LLaVA"])
def test_the_contenders_of_the_grounder_agree(harness, name):
    import bench_grounder
    import goals
    import random_lvlms

    if name == "tiny":
        grounder = bench_grounder.Grounder.from_pretrained("tiny", device="cpu")
    else:
        shape = random_lvlms.small(layers=2, width=512)["LLaVA"]
        lvlm = random_lvlms.build("LLaVA", shape, "cpu", torch.float32)
        grounder = bench_grounder.planted(lvlm)
    ways = bench_grounder.Contenders(grounder, ["the small red circle", "the leftmost star"])
    assert set(ways.errors()) == {goals.GROUNDER, goals.WHOLE}
    truth = ways.published()
    assert truth.shape == (2, 4) and (truth[:, 2:] > truth[:, :2]).all()
    for contender in ways.errors():
        np.testing.assert_allclose(ways.calls[contender](), truth, atol=1e-2)
    assert ways.model.config.text_config._attn_implementation == "sdpa"


@pytest.fixture
def ways(harness, tmp_path):
    """Discovery of two images by a LLaVA of two layers."""
    pytest.importorskip("numba")
    import bench_discovery
    import random_lvlms

    shape = random_lvlms.small(layers=2, width=512)["LLaVA"]
    lvlm = random_lvlms.build("LLaVA", shape, "cpu", torch.float32)
    samples = bench_discovery.samples_of(bench_discovery.photos(tmp_path, 2))
    assert [sample.image_id for sample in samples] == [0] * 7 + [1] * 7
    return bench_discovery.Ways(lvlm, samples, bench_discovery.Recipe(template="chat"))


def test_the_ways_of_discovery_agree(ways):
    import goals

    truth = ways.published()
    for name in (goals.DISCOVER, goals.ONE_BY_ONE):
        sums, entropies = ways.calls[name]()
        assert sums.shape == entropies.shape == (14, 64)
        np.testing.assert_allclose(sums, truth[0], atol=1e-5)
        # A cell within rounding of its map's mean may fall on either side.
        assert np.isclose(entropies, truth[1], atol=1e-5).mean() > 0.98
    assert ways.lvlm.model.config.get_text_config()._attn_implementation == "sdpa"


def test_a_long_discovery_is_measured_once_and_in_parts(ways, tmp_path):
    import bench_discovery
    import goals
    from fastground import runs

    watched = partial(nullcontext, [0.5, 1.0])
    rows = bench_discovery.once(ways, 3, tmp_path / "run", "wall", watched)
    assert runs.load(tmp_path / "run").num_samples == 14
    names = [goals.DISCOVER, goals.ONE_BY_ONE, goals.PUBLISHED, goals.TEN_MINUTES]
    assert [row.contender for row in rows] == names
    assert rows[0].error.endswith(", GPU busy 75%") and rows[2].ratio > rows[1].ratio > 1
    assert rows[0].maps_per_s == pytest.approx(64e6 / rows[0].time_us)
    assert rows[3].time_us == pytest.approx(4974, abs=1)
    parts = bench_discovery.where(ways, "LLaVA", 1, "cpu", repeats=1, min_time_ms=0)
    times = {row.contender: row.time_us for row in parts}
    least = bench_discovery.floors(ways)
    assert least.keys() < times.keys() and len(times) == 8
    # 2 layers of 4 x 512 x 512 and 3 x 512 x 1360 weights; 576 image tokens and a few words.
    weights = 2 * (4 * 512**2 + 3 * 512 * 1360)
    tokens = least["forwards: tower, prefill"] / 1e6 * bench_discovery.FLOPS / weights / 2
    assert 600 < tokens < 800
    assert times["vision tower"] < times["forwards: tower, prefill"] < 2 * times[goals.DISCOVER]


def test_goals_name_what_is_measured(harness):
    pytest.importorskip("numba")
    import bench_boxes
    import bench_calls
    import bench_entropy
    import bench_smooth
    import entropy_peers
    import goals

    names = {*bench_entropy.instruction_sets(), *entropy_peers.FAST, "entropy", "head_stats"}
    names |= {*bench_smooth.CONTENDERS, *bench_boxes.CONTENDERS, "fastground, avx2"}
    names |= {goals.PLAIN, goals.CAPTURE, goals.PACKED, goals.HALF, goals.EAGER, goals.GROUNDER}
    names |= {goals.ROWS, goals.SDPA_ROWS, goals.COPY, goals.ONE, goals.SEVEN}
    names |= {goals.DISCOVER, goals.ONE_BY_ONE, goals.PUBLISHED, goals.TEN_MINUTES}
    names |= {goals.PLAIN_ENGINE, goals.RAY_ENGINE}
    names |= {goals.COPIED, goals.ONE_CALL, goals.REPLAY, goals.CUPY, goals.KORNIA}
    names |= set(bench_calls.OPERATIONS)
    assert {goal.ours for goal in goals.GOALS} <= names
    assert {goal.peer for goal in goals.GOALS if goal.within_us is None} <= names
    assert set(goals.CALLS) == set(bench_calls.OPERATIONS)


def test_the_contenders_of_rows_agree(harness):
    pytest.importorskip("numba")
    import argparse

    import bench_rows
    import goals

    given = argparse.Namespace(repeats=1, min_time_ms=0)
    one = bench_rows.Stack(1, 4, head_dim=16)
    rows = bench_rows.on_cpu(given, one)
    assert [row.contender for row in rows][:2] == [goals.ROWS, goals.EAGER]
    assert rows[3].contender == goals.SDPA_ROWS
    assert all(float(row.error) <= 1e-6 for row in rows[:2])
    halves = bench_rows.Stack(1, 4, head_dim=16, dtype=torch.bfloat16)
    assert 1e-5 > float(halves.errors()[goals.ROWS]) < float(halves.errors()[goals.EAGER])
    stack = bench_rows.Stack(2, 4, head_dim=16)
    parts = bench_rows.on_gpu(given, stack)
    rows = {(row.workload, row.contender): row for part in parts for row in part}
    wanted = [goal for goal in goals.GOALS if goal.benchmark == "rows-gpu"]
    assert len(wanted) == 5
    for goal in wanted:
        assert (goal.workload, goal.ours) in rows
        assert goal.within_us or (goal.workload, goal.peer) in rows
    ours, eager = (rows[goals.STACK, name] for name in (goals.ROWS, goals.EAGER))
    assert float(ours.error) <= 1e-6 and float(eager.error) <= 1e-6
    assert eager.kept_mb > 300 * ours.kept_mb > 0
    assert ours.floor > 0 and stack.exact().max() > 0.05  # not flat


@pytest.mark.parametrize("bench", ["bench_smooth", "bench_boxes"])
def test_the_peers_of_smooth_and_boxes_agree(harness, bench):
    import importlib

    import map_families

    maps = map_families.batch("attention", count=4, size=24)
    results = [call(maps) for call in importlib.import_module(bench).CONTENDERS.values()]
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], rtol=1e-5)
