"""Discovery by actors of Ray: the same table as without, and a run's guarantees."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_world
import torch
from fastground import cluster, discovery, models, runs

COLUMNS = ("sample_ids", "image_ids", "sums", "entropies", "ious")


def same(table, other):
    return all(np.array_equal(getattr(table, n), getattr(other, n)) for n in COLUMNS)


@pytest.mark.parametrize(
    ("resources", "asked", "actors", "share"),
    [
        ({"CPU": 8.0}, None, 7, {"num_cpus": 1}),
        ({"CPU": 8.0}, 3, 3, {"num_cpus": 1}),
        ({"CPU": 2.0}, None, 1, {"num_cpus": 1}),
        ({"CPU": 2.0}, 2, 2, {"num_cpus": 0.5}),
        ({"CPU": 2.0}, 3, 3, {"num_cpus": 0.333}),
        ({"CPU": 1.0}, None, 1, {"num_cpus": 0.5}),
        ({"CPU": 16.0, "GPU": 8.0}, None, 8, {"num_gpus": 1}),
        ({"CPU": 16.0, "GPU": 8.0}, 2, 2, {"num_gpus": 1}),
    ],
)
def test_actors_leave_a_cpu_free(resources, asked, actors, share):
    assert cluster._shares(resources, asked) == (actors, share)
    assert actors * share.get("num_cpus", 0) <= max(resources["CPU"] - 1, 0.5)


def test_more_actors_than_gpus_would_wait_for_ever():
    with pytest.raises(ValueError, match="num_actors must be at most 2, the cluster's GPUs, but"):
        cluster._shares({"CPU": 16.0, "GPU": 2.0}, 3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"engine": "spark"}, "engine must be one of plain, ray, but got 'spark'"),
        ({"engine": "ray", "num_actors": 0}, "num_actors must be at least 1, but got 0"),
        ({"num_actors": 2}, "num_actors must be None unless engine is 'ray', but got 2"),
        ({"engine": "ray"}, r"cannot be imported .*pip install 'fastground\[ray\]', or choose"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(tmp_path, monkeypatch, options, says):
    monkeypatch.setitem(sys.modules, "ray", None)
    out = tmp_path / "run"
    with pytest.raises(ValueError, match=says):
        discovery.collect(small_world.lvlm(), small_world.samples(), out=out, **options)
    assert not out.exists()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The small world's model in a folder, from which actors can load it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    lvlm = small_world.lvlm()
    lvlm.model.save_pretrained(folder)
    lvlm.processor.save_pretrained(folder)
    return str(folder)


def test_actors_load_the_model_itself_or_refuse(checkpoint):
    weights = runs.fingerprint(small_world.lvlm().model.named_parameters())
    lvlm = discovery._load(checkpoint, torch.float32, weights, "cpu")
    assert lvlm.checkpoint == checkpoint
    with pytest.raises(ValueError, match="'tiny' has other weights; save the model and its proc"):
        discovery._load("tiny", torch.float32, weights, "cpu")


def plain(checkpoint, **options):
    options = {"recipe": small_world.RECIPE, "shard_samples": 2} | options
    return discovery.collect(models.load(checkpoint), small_world.samples(), **options)


def by_ray(checkpoint, *told):
    """What the program said to each of these, and how it ended."""
    program = subprocess.run(
        [sys.executable, Path(__file__).with_name("ray_runs.py"), checkpoint],
        input="".join(json.dumps(line) + "\n" for line in told),
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    lines = program.stdout.splitlines()
    return [line[2:] for line in lines if line.startswith("> ")], program.returncode


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_and_resumed_by_two_actors_the_table_is_the_plain_one(checkpoint, tmp_path):
    pytest.importorskip("ray")
    out = tmp_path / "run"
    told = {"out": str(out)}
    # Shards hold 3, 4 and 4 samples, so that at the fifth one is written and another is not.
    assert by_ray(checkpoint, told | {"killed_at": 5}) == ([], -signal.SIGKILL)
    shards = out / runs.SHARDS
    before = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.parquet")}
    assert len(before) == 1
    assert by_ray(checkpoint, told) == (["done"], 0)
    after = {path.name: path.stat().st_mtime_ns for path in shards.iterdir()}
    assert sorted(after) == ["00000.parquet", "00001.parquet", "00002.parquet"]
    assert before.items() <= after.items()
    table = runs.load(out)
    assert same(table, plain(checkpoint)) and table.num_samples == 11
    # And a run begun with Ray goes on without it.
    (shards / "00001.parquet").unlink()
    labels = {"dataset": "small", "split": "train"}
    assert same(plain(checkpoint, out=out, **labels), table)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_is_wrong_in_an_actor_is_told_as_without(checkpoint, tmp_path):
    pytest.importorskip("ray")
    out = tmp_path / "bad"
    said, code = by_ray(
        checkpoint,
        {"out": str(out), "missing": [1], "max_bad": 0.5, "workers": 1},
        {"out": str(out), "missing": [1]},
        {"first": "the zebra"},
    )
    assert code == 0 and said[0] == "done"
    table = runs.load(out)
    assert table.sample_ids.tolist() == [0, 1, 2, 7, 8, 9, 10]
    assert [skipped[:2] for skipped in table.skipped] == [(3, 1), (4, 1), (5, 1), (6, 1)]
    assert said[1].startswith("ValueError: images must be readable but for max_bad=0.01")
    assert "4 of 11 were not; the first is sample_id 3, image_id 1" in said[1]
    assert said[2].startswith("ValueError: expression must use words that the tokenizer knows")
