"""Evaluation in a folder: killed, it goes on to the same scores; other batches, the same scores."""

import dataclasses
import functools
import json
import os
import types

import killing
import numpy as np
import pytest
import small_world
from fastground import evaluation, grounder, runs, tables
from fastground.datasets.annotated import AnnotatedImage, Phrase, stream
from fastground.datasets.masks import Drawn
from fastground.datasets.photos import Photo, open_image
from fastground.evaluation import evaluate
from fastground.grounder import Grounder


def gather(out, samples=None, **options):
    """The small world's scores, kept in shards of at least two samples."""
    samples = small_world.samples() if samples is None else samples
    made = Grounder(small_world.lvlm(), options.pop("ranking", small_world.ranking()))
    return evaluate(
        made, iter(samples), dataset="small", split="test", out=out, shard_samples=2, **options
    )


def same(scores, other):
    return repr(scores) == repr(other)  # to the last digit; nan is nan


def shards(folder):
    return sorted((folder / runs.SHARDS).iterdir())


def test_with_a_folder_and_without_the_scores_are_the_same(tmp_path):
    kept = gather(tmp_path)
    assert same(kept, gather(None)) and same(kept, evaluation.load(tmp_path))
    assert len(shards(tmp_path)) == 3
    told = json.loads((tmp_path / "scores.json").read_text(), parse_constant=pytest.fail)
    assert told["accuracy"] == kept.accuracy and told["text_boxes"] is None
    columns, about = runs.load_columns(tmp_path, "evaluate")
    assert columns["sentences"].tolist() == [s.expression for s in small_world.samples()]
    assert columns["sample_ids"].tolist() == list(range(11))
    assert about["heads"] == [list(h) for h in small_world.ranking().top()]
    assert {"mask_boxes", "masks", "true_masks", "unions", "scores", "masses"} <= set(columns)


@pytest.mark.parametrize("stop", [0, 3, 5, 8, 10])
def test_an_evaluation_that_was_interrupted_goes_on(tmp_path, stop):
    def interrupted():
        yield from small_world.samples()[:stop]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gather(tmp_path, interrupted())
    kept = {p: p.stat().st_mtime_ns for p in shards(tmp_path)}
    assert same(gather(tmp_path), gather(None))
    assert all(p.stat().st_mtime_ns == when for p, when in kept.items())


def test_a_folder_asked_for_fewer_samples_keeps_its_scores(tmp_path):
    first = gather(tmp_path)
    with pytest.warns(UserWarning, match="the 11 that .* but were 5; what is told is of all 11"):
        assert same(gather(tmp_path, small_world.samples()[:5]), first)
    told = json.loads((tmp_path / "scores.json").read_text())
    assert told["num_samples"] == 11 and same(evaluation.load(tmp_path), first)


def test_nothing_is_asked_again_of_what_is_done(tmp_path, monkeypatch):
    first = gather(tmp_path)
    monkeypatch.setattr(Grounder, "__call__", None)
    assert same(gather(tmp_path), first)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"baseline": "text-box"}, "baseline must be None"),
        (
            {"options": {"masks": False}},
            r"options must be \{\}, with which .* got \{'masks': False",
        ),
        ({"resume": False}, "must hold no run where resume is False"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path, change, says):
    gather(tmp_path)
    with pytest.raises(ValueError, match=says):
        gather(tmp_path, **change)
    other = dataclasses.replace(small_world.ranking(), heads=small_world.ranking().heads[::-1])
    with pytest.raises(ValueError, match="heads must be"):
        gather(tmp_path, ranking=other)
    smoothed = dataclasses.replace(
        small_world.ranking(), recipe=small_world.RECIPE.replace(sigma=2.0)
    )
    with pytest.raises(ValueError, match=r"recipe\.sigma must be 1\.0"):
        gather(tmp_path, ranking=smoothed)
    with pytest.raises(ValueError, match=r"written by fastground discover --out, but .*evaluate"):
        runs.load(tmp_path)


def whole(_, groundings, recipe):
    return [np.ones(g.mask.shape, dtype=bool) for g in groundings]


def test_a_segmenter_is_known_again_and_another_is_refused(tmp_path):
    def gathered(segmenter):
        made = Grounder(small_world.lvlm(), small_world.ranking(), segmenter=segmenter)
        return evaluate(made, small_world.samples(), out=tmp_path)

    first = gathered(whole)
    again = types.FunctionType(whole.__code__, globals(), "whole")  # as in another process
    assert repr(again) != repr(whole) and same(gathered(again), first)
    for segmenter in (None, lambda *_: []):
        with pytest.raises(ValueError, match="segmenter must be '<function whole>'"):
            gathered(segmenter)


def greedily(tau=0.2, **changes):
    """The small world's ranking, choosing heads in every sample."""
    recipe = small_world.RECIPE.replace(selection="greedy", **changes)
    return dataclasses.replace(small_world.ranking(), recipe=recipe, tau=tau)


def test_greedy_choice_is_of_the_same_heads_or_the_folder_is_refused(tmp_path):
    made = gather(tmp_path, ranking=greedily())
    assert same(gather(tmp_path, ranking=greedily()), made)
    heads = small_world.ranking().heads
    low = dataclasses.replace(heads[0], attention_sum=0.01)
    other = dataclasses.replace(greedily(), heads=(low, *heads[1:]))
    with pytest.raises(ValueError, match=r"kept_heads must be '\d+ of 12, "):
        gather(tmp_path, ranking=other)


def test_greedy_choice_by_a_samples_own_sums_needs_no_tau(tmp_path):
    ranking = greedily(tau=float("nan"), scope="sample")
    made = gather(tmp_path, ranking=ranking)
    assert same(gather(tmp_path, ranking=ranking), made)


def test_a_grounder_without_a_model_keeps_no_folder(tmp_path):
    def told(image, expressions):
        raise AssertionError("asked")

    for options in ({"out": tmp_path}, {"baseline": "text-box"}):
        with pytest.raises(ValueError, match=r"must be a fastground\.Grounder"):
            evaluate(told, small_world.samples(), **options)
    with pytest.raises(ValueError, match="baseline must be text-box, but got 'boxes'"):
        evaluate(told, small_world.samples(), baseline="boxes")


@pytest.fixture
def files(tmp_path):
    """The small world's samples, one of whose images is cut off."""
    return small_world.in_files(tmp_path)


def rows(folder):
    """What the shards hold, to the byte."""
    return [p.read_bytes() for p in shards(folder)]


def test_unreadable_images_are_skipped_counted_and_listed(tmp_path, files):
    readable = [s for s in small_world.samples() if s.image_id != 2]
    plain = dataclasses.replace(gather(None, readable), skipped=1)
    for out in (tmp_path / "run", tmp_path / "run", None):  # the second from the shards
        with pytest.warns(UserWarning, match=r"1 of 11 were not; the first is .*2\.jpg"):
            assert same(gather(out, files, max_bad=0.1), plain)
    assert same(evaluation.load(tmp_path / "run"), plain)
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["skipped"] == 1
    columns, about = runs.load_columns(tmp_path / "run", "evaluate")
    assert columns["sample_ids"].tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10]
    ((sample_id, image_id, reason),) = about["skipped"]
    assert (sample_id, image_id) == (7, 2) and "2.jpg" in reason
    table = tables.of_scores(plain, "", small_world.RECIPE)
    assert "could not be read: 1\n" in table.caption


@pytest.mark.parametrize("stop", [3, 7, 8, 10])
def test_what_was_skipped_is_neither_lost_nor_doubled_when_a_run_goes_on(tmp_path, files, stop):
    with pytest.warns(UserWarning, match="were not"):
        whole = gather(None, files, max_bad=0.1)

    def interrupted():
        yield from files[:stop]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gather(tmp_path / "run", interrupted(), max_bad=0.1)
    with pytest.warns(UserWarning, match="1 of 11 were not"):
        assert same(gather(tmp_path / "run", files, max_bad=0.1), whole)
    assert same(evaluation.load(tmp_path / "run"), whole)


def test_too_many_unreadable_images_are_an_error_and_shards_are_kept(tmp_path, files, monkeypatch):
    says = r"max_bad=0\.01 of the samples, but 1 of 11 were not; .*2\.jpg.* or raise max_bad"
    with pytest.raises(ValueError, match=says):
        gather(tmp_path / "run", files)  # a short run is judged at its end
    assert len(shards(tmp_path / "run")) == 3
    monkeypatch.setattr("fastground.watch.GRACE", 1)
    with pytest.raises(ValueError, match="1 of 8 were not"):
        gather(tmp_path / "soon", files)
    assert len(shards(tmp_path / "soon")) == 2
    before = rows(tmp_path / "soon")
    with pytest.warns(UserWarning, match="left out"):
        gather(tmp_path / "soon", files, max_bad=0.5)
    assert rows(tmp_path / "soon")[:2] == before
    with pytest.raises(ValueError, match="1 of 1 were not"):
        gather(None, files[7:8], max_bad=1)


def test_a_grounder_of_ones_own_skips_them_too(files):
    made = Grounder(small_world.lvlm(), small_world.ranking())
    asked = []

    def own(image, expressions):
        asked.append(image)
        return made(image, expressions)

    with pytest.warns(UserWarning, match="1 of 11 were not"):
        scores = evaluate(own, files, max_bad=0.1)
    assert (scores.num_samples, scores.skipped) == (10, 1)
    assert asked == [files[0].image, files[3].image, files[8].image]
    with pytest.raises(ValueError, match=r"must be a fastground\.Grounder .* workers"):
        evaluate(own, files, workers=2)


class Tinted:
    """A segmenter whose masks hang on every pixel."""

    def __repr__(self):
        return "tinted"

    def __call__(self, image, groundings, recipe):
        pixels = np.asarray(image)
        assert pixels.shape[2] == 3
        for _ in groundings:
            yield pixels[..., 0] > pixels.mean()


# Python's of forks beside threads, from 3.12: torch's workers are made for them.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("recipe", [{}, {"sinks": "relative", "generic": "the mug"}])
@pytest.mark.parametrize("segmenter", [None, Tinted()])
def test_workers_give_the_same_rows_to_the_byte(tmp_path, files, recipe, segmenter):
    ranking = dataclasses.replace(
        small_world.ranking(), recipe=small_world.RECIPE.replace(**recipe)
    )
    made = Grounder(small_world.lvlm(), ranking, segmenter=segmenter)
    found = {}
    for workers in (0, 1, 2):
        out = tmp_path / str(workers)
        with pytest.warns(UserWarning, match="1 of 11 were not"):
            found[workers] = evaluate(
                made, files, out=out, shard_samples=2, max_bad=0.1, workers=workers,
                baseline="text-box",
            )  # fmt: skip
        assert rows(out) == rows(tmp_path / "0") and same(found[workers], found[0])
    direct = [
        g for s in files if s.image_id != 2 for g in made(s.image, [s.expression])
    ]  # by the public door, one by one
    columns, _ = runs.load_columns(tmp_path / "2", "evaluate")
    assert columns["masks"].tolist() == [g.to_rle()["counts"] for g in direct]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_with_workers_no_image_is_opened_here(tmp_path, monkeypatch):
    """Not even for the size at which masks are drawn, where no annotation tells it."""
    images = []
    for i, sample in enumerate(small_world.samples()[:4]):
        sample.image.save(tmp_path / f"{i}.png")
        draw = functools.partial(drawn, sample.mask)
        phrase = Phrase(sample.expression, i, None, draw)
        images.append(AnnotatedImage(tmp_path / f"{i}.png", i, (phrase,)))
    made = Grounder(small_world.lvlm(), small_world.ranking())
    here = evaluate(made, stream(images))
    process = os.getpid()

    def image(photo):
        assert os.getpid() != process, f"{photo.source} is opened"
        return open_image(photo.source, photo.told)

    monkeypatch.setattr(Photo, "image", property(image))
    assert same(evaluate(made, stream(images), workers=2), here)


def drawn(mask, size):
    assert mask.shape == size
    return Drawn(mask)


@pytest.mark.parametrize("change", [{"packed": False}, {"max_tokens": 60}, {"max_tokens": 1}])
def test_on_another_batch_size_and_unpacked_the_scores_are_the_same(monkeypatch, change):
    """Boxes to 1e-3 pixels, so every count is the same and means differ in their last digits."""
    before, rows = gather(None), []
    measured = evaluation.measured

    def spied(*given):
        rows.append(measured(*given))
        return rows[-1]

    monkeypatch.setattr(evaluation, "measured", spied)
    gather(None)
    packed, rows = rows, []
    whole = functools.partial(grounder.attention_maps, **change)
    monkeypatch.setattr(grounder, "attention_maps", whole)
    scores = gather(None)
    for mine, theirs in zip(packed, rows, strict=True):
        assert np.abs(mine["boxes"] - theirs["boxes"]).max() < 1e-3
        assert np.array_equal(mine["hits"], theirs["hits"])
    assert (scores.accuracy, scores.interval) == (before.accuracy, before.interval)
    assert scores.mean_iou == pytest.approx(before.mean_iou, abs=1e-6)
    assert scores.ciou == pytest.approx(before.ciou, abs=2e-3)  # a pixel at the cut may turn
    assert scores.giou == pytest.approx(before.giou, abs=2e-3)


def test_what_others_published_stands_beside_one_model_on_one_split_alone():
    told = evaluation.references("llava-hf/llava-1.5-7b-hf", "refcoco", "val")
    assert all(number in told for number in ("86.5", "46", "26", "56.2", "65.0"))
    assert evaluation.references("llava-hf/llava-1.5-7b-hf", "refcoco", "testA") == ""
    assert evaluation.references("tiny", "refcoco", "val") == ""


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_killed_at_any_moment_it_ends_with_the_same_scores(tmp_path):
    found = killing.folders("evaluate", tmp_path, times=8)
    whole = evaluation.load(undisturbed := next(found))
    told = (undisturbed / evaluation.SCORES_FILE).read_text()
    assert whole.num_samples == 60
    ended = list(found)
    for folder in ended:
        assert same(evaluation.load(folder), whole)
        assert (folder / evaluation.SCORES_FILE).read_text() == told
    assert len(ended) == 8
