"""Runs as folders: whole whatever happens, the same numbers always, and nobody else's."""

import dataclasses
import errno
import json
import os
import sys
import warnings

import killing
import numpy as np
import pytest
import small_world
from fastground import runs
from fastground.discovery import collect, discover
from fastground.ranking import rank_table
from fastground.types import HeadRanking

COLUMNS = ("sample_ids", "image_ids", "sums", "entropies", "ious")


def gather(out, samples=None, **options):
    """The small world's table in a folder of shards of at least two samples."""
    samples = small_world.samples() if samples is None else samples
    options = {"recipe": small_world.RECIPE, "dataset": "small", "split": "train"} | options
    return collect(small_world.lvlm(), iter(samples), out=out, shard_samples=2, **options)


def content(table):
    return [getattr(table, name) for name in COLUMNS]


def same(table, other):
    return all(map(np.array_equal, content(table), content(other)))


def shards(folder):
    return sorted((folder / runs.SHARDS).iterdir())


@pytest.fixture
def run(tmp_path):
    """A finished run, and its table: shards of 3, 4, 1 + 3 samples."""
    return tmp_path / "run", gather(tmp_path / "run")


def test_a_run_that_kept_nothing_is_begun_anew_as_asked(tmp_path):
    def none():
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        gather(tmp_path, none(), split="val")
    assert json.loads((tmp_path / runs.MANIFEST).read_text())["split"] == "val"
    assert gather(tmp_path, resume=False).num_samples == len(small_world.samples())
    assert json.loads((tmp_path / runs.MANIFEST).read_text())["split"] == "train"
    with pytest.raises(ValueError, match="split must be 'train', with which"):
        gather(tmp_path, split="val")


def test_a_shard_holds_whole_images_and_tells_all_about_itself(run):
    import pyarrow as pa
    from pyarrow import parquet

    folder, table = run
    assert [p.name for p in shards(folder)] == ["00000.parquet", "00001.parquet", "00002.parquet"]
    files = [parquet.read_table(p) for p in shards(folder)]
    assert [f["sample_ids"].to_pylist() for f in files] == [[0, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10]]
    for name in ("sums", "entropies", "ious"):
        assert files[0].schema.field(name).type == pa.list_(pa.float32(), 12)
    notes = {k.decode(): json.loads(v) for k, v in files[0].schema.metadata.items()}
    assert notes["recipe"] == small_world.RECIPE.to_dict()
    assert (notes["checkpoint"], notes["dataset"], notes["split"]) == ("random", "small", "train")
    assert {"torch", "transformers"} <= set(notes["versions"]) and notes["skipped"] == []
    column = parquet.ParquetFile(shards(folder)[0]).metadata.row_group(0).column(3)
    assert column.compression == "ZSTD"
    assert table.num_samples == 11 and same(table, runs.load(folder))


def test_in_memory_and_in_a_folder_are_the_same_numbers(run):
    memory = collect(
        small_world.lvlm(), small_world.samples(), recipe=small_world.RECIPE, shard_samples=2
    )
    assert same(run[1], memory)
    assert rank_table(run[1], trials=2).heads == rank_table(memory, trials=2).heads


@pytest.mark.parametrize("stop", [0, 2, 3, 5, 7, 8, 9, 10])
def test_a_run_that_was_interrupted_or_ended_early_goes_on(run, tmp_path, stop):
    def interrupted():
        yield from small_world.samples()[:stop]
        raise KeyboardInterrupt

    ways = {"interrupted": interrupted(), "ended": small_world.samples()[:stop]}
    for name, samples in ways.items():
        out = tmp_path / name
        with pytest.raises((KeyboardInterrupt, ValueError)):
            gather(out, samples)
            raise KeyboardInterrupt
        assert not any(p.suffix == ".part" for p in shards(out))
        assert same(gather(out), run[1]) and same(runs.load(out), run[1])


def test_finished_shards_are_not_done_again(run, monkeypatch):
    folder, table = run
    before = [p.stat().st_mtime_ns for p in shards(folder)]
    shards(folder)[1].unlink()
    with pytest.raises(ValueError, match=r"00001.parquet is missing; run discover again"):
        runs.load(folder)
    seen = []
    progress = seen.append
    assert same(gather(folder, progress=progress), table) and seen == [7, 11]
    after = [p.stat().st_mtime_ns for p in shards(folder)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    monkeypatch.setattr("fastground.measuring.attention_of_encoded", None)
    assert same(gather(folder), table)


@pytest.mark.parametrize("count", [1, 3, 5, 9])
def test_a_folder_asked_for_fewer_samples_tells_of_all_and_says_so(run, count):
    folder, table = run
    before = [p.stat().st_mtime_ns for p in shards(folder)]
    with pytest.warns(UserWarning, match=f"the 11 that .* holds, but were {count}; .* of all 11"):
        assert same(gather(folder, small_world.samples()[:count]), table)
    assert [p.stat().st_mtime_ns for p in shards(folder)] == before


@pytest.mark.parametrize("end", [4, 6])
def test_a_short_shard_before_others_is_done_anew(run, end):
    """As where Ray was killed while it made a short last shard whole, after it wrote the next."""
    folder, table = run
    last = shards(folder)[2].read_bytes()
    for path in shards(folder)[1:]:
        path.unlink()
    gather(folder, small_world.samples()[:end])
    (folder / runs.SHARDS / "00002.parquet").write_bytes(last)
    assert same(gather(folder), table) and same(runs.load(folder), table)
    assert shards(folder)[2].read_bytes() == last


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dataset": "other"}, "dataset must be 'small', with which .* but got 'other'"),
        ({"split": "val"}, "split must be 'train'"),
        ({"recipe": small_world.RECIPE.replace(weight="mass")}, "recipe.weight must be 'area'"),
        ({"resume": False}, "must hold no run where resume is False"),
    ],
)
def test_a_run_of_something_else_is_refused_by_name(run, change, says):
    before = [p.read_bytes() for p in shards(run[0])]
    with pytest.raises(ValueError, match=says):
        gather(run[0], **change)
    assert [p.read_bytes() for p in shards(run[0])] == before
    reading = small_world.RECIPE.replace(top_n=1, elbow=0.1)  # which only reads the numbers
    assert gather(run[0], recipe=reading).recipe == reading


def test_a_run_is_read_by_the_recipe_that_was_last_asked_for(run):
    folder, table = run
    before = [p.read_bytes() for p in shards(folder)]
    made = json.loads((folder / runs.MANIFEST).read_text())
    for elbow in ("curvature", 0.1, small_world.RECIPE.elbow):
        recipe = small_world.RECIPE.replace(elbow=elbow, k=1)
        assert same(gather(folder, recipe=recipe), table)
        assert runs.load(folder).recipe == recipe
        told = json.loads((folder / runs.MANIFEST).read_text())
        assert told == {**made, "recipe": recipe.to_dict()}
    with pytest.raises(ValueError, match=r"recipe\.cut must be"):
        gather(folder, recipe=recipe.replace(cut="2mean+eps"))
    assert runs.load(folder).recipe == recipe, "what is refused changes nothing"
    assert [p.read_bytes() for p in shards(folder)] == before


def test_other_samples_are_refused(run):
    samples = list(small_world.samples())
    samples[4] = dataclasses.replace(samples[4], expression="the blue mug")
    with pytest.raises(ValueError, match=r"the expression of sample_id 4 .* in 00001.parquet"):
        gather(run[0], samples)
    with pytest.raises(ValueError, match=r"the sample of sample_id 3 .* sample_id 0 in 00000"):
        gather(run[0], samples[3:])


def test_another_model_is_refused(run):
    from fastground import models
    from random_llava import random_llava

    for seed, name, says in ((1, "another", "checkpoint"), (2, "random", "weights")):
        lvlm = models.wrap(*random_llava(seed=seed, grid=6), checkpoint=name)
        with pytest.raises(ValueError, match=f"{says} must be"):
            collect(
                lvlm, small_world.samples(), recipe=small_world.RECIPE, dataset="small",
                split="train", out=run[0],
            )  # fmt: skip


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    """One byte of the numbers: only the checksum can tell."""
    from pyarrow import parquet

    content = bytearray(path.read_bytes())
    column = parquet.ParquetFile(path).metadata.row_group(0).column(3)
    content[column.data_page_offset + column.total_compressed_size - 5] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip, lambda path: path.write_bytes(b"")])
def test_a_damaged_shard_is_named_and_the_others_are_kept(run, damage):
    folder, table = run
    damage(shards(folder)[1])
    says = r"00001.parquet is damaged .*; delete it and run again"
    with pytest.raises(ValueError, match=says):
        runs.load(folder).sums  # noqa: B018
    with pytest.raises(ValueError, match=says):
        rank_table(gather(folder))
    kept = [shards(folder)[i].stat().st_mtime_ns for i in (0, 2)]
    shards(folder)[1].unlink()
    assert same(gather(folder), table)
    assert [shards(folder)[i].stat().st_mtime_ns for i in (0, 2)] == kept


def test_a_full_disk_costs_nothing_that_is_finished(run, tmp_path, monkeypatch):
    synced, real = [], os.fsync

    def full(descriptor):
        synced.append(descriptor)
        if len(synced) == 5:  # manifest, folder, first shard, folder, second shard
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "full"
    with pytest.raises(OSError, match=r"00001.parquet could not be written \(No space left.*3 sam"):
        gather(out)
    assert [p.name for p in shards(out)] == ["00000.parquet"]
    assert same(gather(out), run[1])


def test_unreadable_images_are_skipped_counted_and_listed(tmp_path):
    samples = list(small_world.samples())
    missing = str(tmp_path / "missing.jpg")
    broken = tmp_path / "broken.jpg"
    samples[4].image.save(broken)
    broken.write_bytes(broken.read_bytes()[:300])
    bad = [
        dataclasses.replace(
            s,
            sample_id=np.int64(s.sample_id),
            image={1: missing, 2: str(broken)}.get(s.image_id, s.image),
        )
        for s in samples
    ]
    for out in (tmp_path / "bad", tmp_path / "bad", None):  # the second from the shards
        with pytest.warns(UserWarning, match="5 of 11 were not; the first is .* left out"):
            table = gather(out, bad, max_bad=0.5)
        assert table.sample_ids.tolist() == [0, 1, 2, 8, 9, 10]
        assert [s[:2] for s in table.skipped] == [(3, 1), (4, 1), (5, 1), (6, 1), (7, 2)]
        assert (
            "missing.jpg' is not there" in table.skipped[0][2]
            and "broken.jpg" in table.skipped[4][2]
        )
    with pytest.raises(ValueError, match=r"5 of 11 were not; the first is sample_id 3, .*missing"):
        gather(tmp_path / "bad", bad)
    assert runs.load(tmp_path / "bad").num_samples == 6
    with pytest.raises(ValueError, match="5 of 5 were not"):
        gather(None, bad[3:8], max_bad=1)
    for wrong in (float("nan"), -0.1, 5):
        with pytest.raises(ValueError, match="max_bad must be a share, 0 to 1, but got"):
            gather(None, bad, max_bad=wrong)


@pytest.mark.parametrize("stop", [None, 5])
def test_skipped_images_are_taken_again_when_asked(tmp_path, stop):
    files = [tmp_path / f"{n}.png" for n in range(4)]
    samples = [dataclasses.replace(s, image=str(files[s.image_id])) for s in small_world.samples()]
    for sample in small_world.samples():
        sample.image.save(files[sample.image_id])
    clean = gather(tmp_path / "clean", samples)
    out = tmp_path / "run"
    for gone in (1, 2):
        files[gone].rename(files[gone].with_suffix(".away"))
    options = {"max_bad": 0.5, "retry_skipped": True}
    with pytest.warns(UserWarning, match="5 of 11 were not"):
        gather(out, samples, max_bad=0.5)
    before = [p.stat().st_mtime_ns for p in shards(out)]

    files[1].with_suffix(".away").rename(files[1])
    with pytest.warns(UserWarning, match="5 of 11 were not"):  # unless asked they stay skipped
        gather(out, samples, max_bad=0.5)
    if stop is not None:

        def interrupted():
            yield from samples[:stop]
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            gather(out, interrupted(), **options)
        assert len(runs.load(out).skipped) == 5, "what was there is kept until its shard is done"
    with pytest.warns(UserWarning, match="1 of 11 were not"):  # one is still away
        assert gather(out, samples, **options).num_samples == 10
    files[2].with_suffix(".away").rename(files[2])
    assert same(gather(out, samples, **options), clean) and same(runs.load(out), clean)
    after = [p.stat().st_mtime_ns for p in shards(out)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, False]
    again = [p.stat().st_mtime_ns for p in shards(out)]
    assert same(gather(out, samples, **options), clean) and again == after


def test_what_is_not_asked_for_is_not_lost_where_skipped_images_are_taken_again(tmp_path):
    files = small_world.in_files(tmp_path)
    with pytest.warns(UserWarning, match="1 of 11 were not"):
        whole = gather(tmp_path / "run", files, max_bad=0.5)
    with pytest.warns(UserWarning) as told:  # sample 7 lies in the shard of sample 9
        some = gather(tmp_path / "run", files[:9], max_bad=0.5, retry_skipped=True)
    assert "the 11 that" in str(told[-1].message) and "but were 9" in str(told[-1].message)
    assert same(some, whole) and some.skipped == whole.skipped


def test_other_versions_of_libraries_are_told_and_the_run_goes_on(run):
    folder, table = run
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(gather(folder), table)
    path = folder / runs.MANIFEST
    made = json.loads(path.read_text())
    here = made["versions"]["torch"]
    made["versions"] = made["versions"] | {"torch": "1.0", "tensorflow": "2.0"}
    path.write_text(json.dumps(made))
    shards(folder)[1].unlink()
    with pytest.warns(UserWarning) as told:
        assert same(gather(folder), table)
    [message] = [str(each.message) for each in told]
    assert f"{folder} was made" in message
    assert f"differ: tensorflow 2.0 (now none), torch 1.0 (now {here}); what is" in message
    assert json.loads(path.read_text()) == made, "a manifest says how the run began"


def test_many_unreadable_images_stop_a_run_before_its_end(tmp_path, monkeypatch):
    def samples():
        for i in range(30):
            yield dataclasses.replace(small_world.samples()[0], image="none.jpg", image_id=i)
        raise AssertionError("read on")

    monkeypatch.setattr("fastground.watch.GRACE", 100)
    with pytest.raises(ValueError, match="2 of 2 were not"):
        gather(tmp_path / "bad", samples())


def test_one_process_writes_a_folder(run):
    with (
        runs.begin(run[0], json.loads((run[0] / runs.MANIFEST).read_text())),
        pytest.raises(ValueError, match="in use"),
    ):
        gather(run[0])


def test_a_fork_does_not_hold_the_folder(run):
    about = json.loads((run[0] / runs.MANIFEST).read_text())
    waits, wakes = os.pipe()
    told, tells = os.pipe()
    with warnings.catch_warnings(), runs.begin(run[0], about):
        warnings.simplefilter("ignore")  # Python's of forks beside threads
        child = os.fork()
        if not child:
            os.write(tells, b"!")  # it runs, and has let go
            os.read(waits, 1)
            os._exit(0)
        os.read(told, 1)
        with pytest.raises(ValueError, match="in use"):
            gather(run[0])
    try:
        assert same(gather(run[0]), run[1])
    finally:
        os.write(wakes, b"!")
        os.waitpid(child, 0)
        for end in (waits, wakes, told, tells):
            os.close(end)


def test_what_is_no_run_is_refused(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"has no run\.json"):
        runs.load(tmp_path)
    for text in ("no JSON", "[]", '{"format": 7}'):
        (tmp_path / runs.MANIFEST).write_text(text)
        with pytest.raises(ValueError, match="run must be a folder written by fastground discover"):
            runs.load(tmp_path)
    (tmp_path / "bare" / runs.SHARDS).mkdir(parents=True)
    (tmp_path / "bare" / runs.SHARDS / "00000.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"must hold run\.json beside its shards"):
        gather(tmp_path / "bare")
    with pytest.raises(ValueError, match="at least one sample"):
        gather(tmp_path / "empty", [])
    with pytest.raises(ValueError, match="has none yet"):
        runs.load(tmp_path / "empty")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pip install 'fastground\[io\]'"):
        gather(tmp_path / "without")


def test_discover_goes_on_and_ranks_the_whole(tmp_path):
    lvlm, options = small_world.lvlm(), {"recipe": small_world.RECIPE, "trials": 3}

    def found(count):
        return discover(
            lvlm.model, lvlm.processor, small_world.samples()[:count], checkpoint="random",
            dataset="small", split="train", out=tmp_path, **options,
        )  # fmt: skip

    for count in (5, 11):
        assert found(count) == HeadRanking.load(tmp_path / "ranking.json")
    with pytest.warns(UserWarning, match="were 5; what is told is of all 11"):
        assert found(5) == small_world.ranking()  # no better one is lost
    assert HeadRanking.load(tmp_path / "ranking.json") == small_world.ranking()
    assert rank_table(runs.load(tmp_path), trials=3) == small_world.ranking()
    options["recipe"] = small_world.RECIPE.replace(elbow="curvature", k=1)  # and so ranks who asks
    assert found(11) == HeadRanking.load(tmp_path / "ranking.json") != small_world.ranking()
    assert rank_table(runs.load(tmp_path), trials=3) == found(11)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_twenty_moments_it_ends_as_if_never_killed(tmp_path, workers):
    found = killing.folders("discover", tmp_path, times=20, workers=workers)
    whole = runs.load(undisturbed := next(found))
    assert whole.num_samples == 60 and len(shards(undisturbed)) == 5
    ended = [same(runs.load(folder), whole) for folder in found]
    assert len(ended) == 20 and all(ended)
