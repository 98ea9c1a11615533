"""Discovery by actors of Ray: the same table as without, and a run's guarantees."""

import gc
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray_runs
import small_world
from fastground import cli, cluster, discovery, models, runs, watch

# Ray Data warns of what it sets itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

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


def test_more_actors_than_there_is_room_for_are_refused():
    with pytest.raises(ValueError, match="num_actors must be at most 2, the cluster's GPUs, but"):
        cluster._shares({"CPU": 16.0, "GPU": 2.0}, 3)
    with pytest.raises(ValueError, match="num_actors must be at most 10, 10 for each free CPU"):
        cluster._shares({"CPU": 2.0}, 11)


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


def test_too_many_unreadable_images_of_actors_end_the_run():
    skipped = [(i, i, "no such file") for i in range(11)]
    told = watch.Watch(max_bad=0.01, progress=None)
    with pytest.raises(
        ValueError, match=r"max_bad=0.01 .*but 11 of 11 were not; the first is samp"
    ):
        told.shard(0, skipped)


def test_a_model_that_its_name_does_not_give_is_refused():
    lvlm = small_world.lvlm()
    there = discovery.identity(discovery._loader("tiny")("cpu"))
    assert discovery._theirs(there, "tiny")["architecture"]["num_layers"] == 8
    lvlm = models.wrap(lvlm.model, lvlm.processor, checkpoint="tiny")
    with pytest.raises(ValueError, match="'tiny' has other weights; save the model and its proc"):
        discovery._theirs(there, lvlm)
    other = there | {"weights": "0"}
    with pytest.raises(ValueError, match="must be the same model on all machines, but 'random'"):
        discovery._measure_apart(small_world.lvlm(), left=[], model=other)


def test_a_name_is_no_model_where_no_actor_loads_it():
    with pytest.raises(ValueError, match="lvlm must be a model unless engine is 'ray', but got 't"):
        discovery.collect("tiny", small_world.samples())


@pytest.fixture(scope="module")
def machines():
    """One start of Ray for all tests: a machine to begin with, and one that has the CPUs."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    few = {"object_store_memory": 100 << 20, "num_gpus": 0}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **few})
    working = made.add_node(num_cpus=2, **few)
    ray.init(made.address, log_to_driver=False)
    yield made, working
    ray.shutdown()
    made.shutdown()
    gc.collect()  # or Ray Data's cycles end in the midst of another test


def by_ray(checkpoint, samples=None, **options):
    options = ray_runs.OPTIONS | {"num_actors": 1} | options
    return discovery.collect(checkpoint, samples or small_world.samples(), **options)


def plain(checkpoint, **options):
    options = ray_runs.OPTIONS | {"engine": "plain", "num_actors": None} | options
    return discovery.collect(models.load(checkpoint), small_world.samples(), **options)


@pytest.mark.slow
def test_killed_and_resumed_by_two_actors_the_table_is_the_plain_one(
    machines, checkpoint, tmp_path, monkeypatch
):
    out, killed = tmp_path / "run", tmp_path / "killed"
    program = Path(__file__).with_name("ray_runs.py")
    # Shards hold 3, 4 and 4 samples, so that at the fifth one is written and another is not.
    told = [sys.executable, program, machines[0].address, checkpoint, out, "5"]
    ended = subprocess.run(told, check=False, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    shards = out / runs.SHARDS
    before = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.parquet")}
    assert len(before) == 1

    measure = discovery._measure_apart

    def killing(lvlm, **how):
        if not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return measure(lvlm, **how)

    monkeypatch.setattr(discovery, "_measure_apart", killing)  # in actors alone
    table = by_ray(checkpoint, num_actors=2, out=out)
    assert killed.exists()
    after = {path.name: path.stat().st_mtime_ns for path in shards.iterdir()}
    assert sorted(after) == ["00000.parquet", "00001.parquet", "00002.parquet"]
    assert before.items() <= after.items()
    assert same(table, plain(checkpoint)) and table.num_samples == 11
    # And a run begun with Ray goes on without it.
    (shards / "00001.parquet").unlink()
    assert same(plain(checkpoint, out=out), table)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:images must be readable, but 4 of 11 were not")
def test_what_is_wrong_in_an_actor_is_told_as_without(machines, checkpoint, tmp_path):
    samples = list(small_world.samples())
    missing = [replace(s, image="no.jpg") if s.image_id == 1 else s for s in samples]
    table = by_ray(checkpoint, missing, max_bad=0.5, workers=1)
    assert table.sample_ids.tolist() == [0, 1, 2, 7, 8, 9, 10]
    assert [skipped[:2] for skipped in table.skipped] == [(3, 1), (4, 1), (5, 1), (6, 1)]
    samples[0] = replace(samples[0], expression="the zebra")
    with pytest.raises(ValueError, match="expression must use words that the tokenizer knows"):
        by_ray(checkpoint, samples)


@pytest.mark.slow
def test_the_command_loads_no_model_here(machines, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(models, "load", None)  # actors are other processes
    command = ["discover", "tiny", "--engine", "ray", "--num-actors", "1", "--trials", "2"]
    with pytest.raises(SystemExit) as left:
        cli.main([*command, "--num-samples", "8", "--out", str(tmp_path / "run")])
    assert left.value.code == 0 and "heads of tiny on 8 expressions" in capsys.readouterr().out
    about = runs.load(tmp_path / "run")
    assert (about.checkpoint, about.architecture["num_layers"]) == ("tiny", 8)


@pytest.mark.slow
def test_work_may_take_longer_than_ray_data_waits_for_progress(machines, monkeypatch):
    from ray.data import DataContext

    def slow(device):
        time.sleep(4)
        return device

    monkeypatch.setattr(DataContext.get_current(), "execution_no_progress_timeout_s", 1)
    with cluster.actors(lambda device: device, 1) as actors:
        assert actors.ask(slow)() == "cpu"


@pytest.mark.slow
def test_jobs_do_not_wait_behind_a_long_one_where_another_actor_is_free(machines, tmp_path):
    def long(device):
        until = time.monotonic() + 30
        while len(list(tmp_path.iterdir())) < 3 and time.monotonic() < until:
            time.sleep(0.1)
        return len(list(tmp_path.iterdir()))

    def short(name, device):
        (tmp_path / name).touch()

    with cluster.actors(lambda device: device, 2) as actors:
        jobs = [long, *(partial(short, name) for name in "abc")]
        assert 3 in list(actors.each(jobs))


@pytest.mark.slow
def test_whoever_is_killed_nobody_waits_for_ever(machines, monkeypatch):
    import ray

    def load(device):
        return device

    def job(device):
        return os.getpid()

    def fatal(device):
        os.kill(os.getpid(), signal.SIGKILL)

    def absent(device):
        raise ValueError(f"no model for the {device}")

    # What says by itself what is wrong, at once.
    with (
        pytest.raises(ValueError, match="no model for the cpu"),
        cluster.actors(absent, 1) as actors,
    ):
        actors.ask(job)()
    # An actor that ends at every try.
    with (
        pytest.raises(ChildProcessError, match="of one the actor was killed 4 times; run discover"),
        cluster.actors(load, 1) as actors,
    ):
        list(actors.each([job, fatal]))
    # What hands the jobs out, in mid-run.
    with (
        pytest.raises(ChildProcessError, match=r"every shard must come back, but .*; run discover"),
        cluster.actors(load, 1) as actors,
    ):
        assert actors.ask(job)() != os.getpid()
        ray.kill(actors.desk)
        list(actors.each([job] * 5))
    monkeypatch.setattr(cluster, "ROOMLESS", 2)  # not before: a busy machine starts an actor late
    # The machine that all actors are on, and perhaps what reads the desk.
    with (
        pytest.raises(
            OSError, match=r"; .*run discover again with the same folder: what is written"
        ),
        cluster.actors(load, 1) as actors,
    ):
        actors.ask(job)()
        machines[0].remove_node(machines[1])
        list(actors.each([job] * 5))
    with pytest.raises(
        TimeoutError, match=r"room for an actor \(num_cpus=1\), but for 2 s no mach"
    ):
        cluster.Actors(None, 1, {"num_cpus": 1})._next()
    # And where there is no room to begin with.
    monkeypatch.setattr(cluster, "WAIT", 1)
    with pytest.raises(TimeoutError, match="for 1 s all was taken by others, or it has none"):
        by_ray("tiny")


@pytest.mark.parametrize("told", [None, "0"])
def test_what_the_environment_says_is_kept(monkeypatch, told):
    name = cluster.AUTOSCALER
    monkeypatch.setenv(name, told) if told else monkeypatch.delenv(name, raising=False)
    with cluster._unless_told(name, "1"):
        assert os.environ[name] == (told or "1")
    assert os.environ.get(name) == told
