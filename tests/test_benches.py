"""The benchmark harness: what it measures, prints and keeps; the peers give the same answers."""

import json
from pathlib import Path

import numpy as np
import pytest

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


def test_the_families_repeat(harness):
    import map_families

    for family in map_families.FAMILIES:
        maps = map_families.batch(family, count=3, size=9)
        assert maps.shape == (3, 9, 9) and maps.dtype == np.float32 and (maps >= 0).all()
        assert np.array_equal(maps, map_families.batch(family, count=3, size=9))


def test_the_peers_of_entropy_agree(harness):
    pytest.importorskip("numba")
    import bench_entropy
    import map_families

    for family in map_families.FAMILIES:
        maps = map_families.batch(family, count=5, size=11)
        truth = bench_entropy.scipy_per_map(maps)
        for name, entropies in bench_entropy.CONTENDERS.items():
            result = entropies(maps)
            assert result.shape == (5,), name
            if name != "per map loop":
                np.testing.assert_allclose(result, truth, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("bench", ["bench_smooth", "bench_boxes"])
def test_the_peers_of_smooth_and_boxes_agree(harness, bench):
    import importlib

    import map_families

    maps = map_families.batch("attention", count=4, size=24)
    results = [call(maps) for call in importlib.import_module(bench).CONTENDERS.values()]
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], rtol=1e-5)
