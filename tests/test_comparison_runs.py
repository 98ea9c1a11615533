"""Tables in a folder: killed, they go on to the same rows, from one forward an image."""

import dataclasses
import json

import killing
import pytest
import small_world
from fastground import comparison, evaluation, runs
from fastground.comparison import TABLES, compare, paper_table

# Python's of forks beside threads, from 3.12: torch's workers are made for them.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def gather(number, out, samples=None, ranking=None, seed=0, **how):
    """A table of the small world, kept in shards of at least two samples."""
    samples = small_world.samples() if samples is None else samples
    ranking = small_world.ranking() if ranking is None else ranking
    lvlm, table = small_world.lvlm(), small_world.table()
    how = {"dataset": "small", "split": "test", "out": out, "shard_samples": 2, **how}
    if number == "heads":
        return compare(lvlm, table, ranking, iter(samples), draws=3, seed=seed, **how)
    return paper_table(number, lvlm, ranking, iter(samples), table=table, seed=seed, **how)


def same(one, other):
    return repr(one) == repr(other)  # to the last digit; nan is nan


def shards(folder):
    return sorted((folder / runs.SHARDS).iterdir())


@pytest.mark.parametrize("number", TABLES)
def test_with_a_folder_and_without_the_rows_are_the_same(tmp_path, number, monkeypatch):
    forwards = []
    asked = comparison.attention_maps

    def counted(*given, **options):
        forwards.append(given)
        return asked(*given, **options)

    monkeypatch.setattr(comparison, "attention_maps", counted)
    kept = gather(number, tmp_path)
    assert len(forwards) == 4  # one an image, whatever the number of rows
    assert same(kept, gather(number, None)) and len(shards(tmp_path)) == 3
    told = json.loads((tmp_path / "scores.json").read_text(), parse_constant=pytest.fail)
    assert [row["name"] for row in told["rows"]] == [row.name for row in kept.rows]
    assert told["rows"][0]["scores"]["accuracy"] == kept.rows[0].scores.accuracy
    forwards.clear()
    assert same(gather(number, tmp_path), kept) and not forwards
    with pytest.warns(UserWarning, match="the 11 that .* but were 7; what is told is of all 11"):
        assert same(gather(number, tmp_path, small_world.samples()[:7]), kept)


@pytest.mark.parametrize("number", TABLES)
@pytest.mark.parametrize("stop", [3, 8])
def test_a_table_that_was_interrupted_goes_on(tmp_path, number, stop):
    def interrupted():
        yield from small_world.samples()[:stop]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gather(number, tmp_path, interrupted())
    kept = {p: p.stat().st_mtime_ns for p in shards(tmp_path)}
    assert same(gather(number, tmp_path), gather(number, None))
    assert all(p.stat().st_mtime_ns == when for p, when in kept.items())


def test_some_samples_without_a_mask_have_no_ceiling_there_or_in_a_folder(tmp_path):
    samples = [
        dataclasses.replace(s, mask=None, answer=()) if s.image_id in (0, 3) else s
        for s in small_world.samples()
    ]
    kept = gather("heads", tmp_path, samples)
    assert same(kept, gather("heads", None, samples))
    assert kept.row(comparison.CEILING).scores.num_samples == 5
    masked = [s for s in samples if s.mask is not None]
    assert same(kept.row(comparison.CEILING), gather("heads", None, masked).row(comparison.CEILING))


@pytest.mark.parametrize("number", TABLES)
@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_skipped_and_workers_change_nothing(tmp_path, number, workers):
    samples = small_world.in_files(tmp_path)
    readable = [s for s in small_world.samples() if s.image_id != 2]
    plain = dataclasses.replace(gather(number, None, readable), skipped=1)
    out = tmp_path / "run"
    for _ in range(2):  # the second from the shards
        with pytest.warns(UserWarning, match=r"1 of 11 were not; the first is .*2\.jpg"):
            found = gather(number, out, samples, max_bad=0.1, workers=workers)
        assert same(found, plain)
    with pytest.raises(ValueError, match="or raise max_bad"):
        gather(number, out, samples)


def test_a_folder_of_something_else_is_refused(tmp_path):
    gather("4", tmp_path)
    with pytest.raises(ValueError, match="it was written by fastground evaluate --table 4"):
        gather("8", tmp_path)
    with pytest.raises(ValueError, match="it was written by fastground evaluate --table 4"):
        evaluation.load(tmp_path)
    ranking = small_world.ranking()
    turned = dataclasses.replace(ranking, heads=ranking.heads[::-1])
    with pytest.raises(ValueError, match="heads must be"):
        gather("4", tmp_path, ranking=turned)
    third = dataclasses.replace(
        ranking, heads=(*ranking.heads[:2], ranking.heads[3], ranking.heads[2], *ranking.heads[4:])
    )
    with pytest.raises(ValueError, match="settings must be '5 rows, "):
        gather("4", tmp_path, ranking=third)
    with pytest.raises(ValueError, match="must hold no run where resume is False"):
        gather("4", tmp_path, resume=False)
    gather("heads", tmp_path / "heads")
    with pytest.raises(ValueError, match="settings must be '9 rows, "):
        gather("heads", tmp_path / "heads", seed=1)  # other random heads


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_killed_at_any_moment_it_ends_with_the_same_rows(tmp_path):
    """Of table 5, whose heads are fixed in some rows and each sample's own in others."""
    found = killing.folders("5", tmp_path, times=6)
    undisturbed = next(found)
    whole = (undisturbed / "scores.json").read_text()
    assert json.loads(whole)["num_samples"] == 24
    contents = [p.read_bytes() for p in shards(undisturbed)]
    ended = list(found)
    for folder in ended:
        assert (folder / "scores.json").read_text() == whole
        assert [p.read_bytes() for p in shards(folder)] == contents
    assert len(ended) == 6
