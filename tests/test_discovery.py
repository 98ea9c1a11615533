"""Discovery on a small random LLaVA: the table is right, is all that ranking needs, and is kept."""

import dataclasses

import numpy as np
import pytest
import small_world
import torch
from fastground import ops, runs
from fastground.attention import attention_maps
from fastground.datasets.images import by_image
from fastground.discovery import collect, discover
from fastground.metrics import map_iou
from fastground.ranking import rank, rank_table
from fastground.stats import head_statistics
from fastground.types import RANKING_FILE, HeadRanking, Sample


def test_samples_may_be_arrays_of_one_id_and_must_be_many():
    arrays = [np.full((4, 4, 3), shade, np.uint8) for shade in (0, 90, 90)]
    groups = list(by_image([*(Sample(a, "a") for a in arrays), Sample(arrays[2], "b")]))
    assert [len(group) for group in groups] == [1, 1, 2]
    others = [np.zeros((4, 6, 3)), torch.zeros(3, 4, 4), torch.zeros(3, 5, 5), "file.png"]
    assert len(list(by_image(Sample(a, "a") for a in (*arrays, *others)))) == 7
    with pytest.raises(ValueError, match=r"samples must be many, .* but got a Sample"):
        next(by_image(Sample(arrays[0], "a")))


def test_the_table_holds_each_samples_numbers():
    table, lvlm = small_world.table(), small_world.lvlm()
    assert table.sums.shape == table.entropies.shape == table.ious.shape == (11, 3, 4)
    assert table.sums.dtype == table.entropies.dtype == table.ious.dtype == np.float32
    assert table.sample_ids.tolist() == list(range(11))
    assert table.image_ids.tolist() == [0] * 3 + [1] * 4 + [2] + [3] * 3
    for i in (0, 4, 7, 10):
        sample = small_world.samples()[i]
        alone = attention_maps(
            lvlm, sample.image, [sample.expression], recipe=small_world.RECIPE, packed=False
        )
        stats = head_statistics(alone)
        assert np.allclose(table.sums[i].ravel(), stats.attention_sum[0], atol=1e-5)
        assert np.allclose(table.entropies[i].ravel(), stats.entropy[0], atol=1e-5)
        ious = map_iou(ops.binarize(alone.maps[0]).numpy(), sample.mask, alone.layout)
        assert np.allclose(table.ious[i].ravel(), ious, atol=1e-5)


def test_ranking_reads_the_table_and_never_the_model():
    table = small_world.table()
    recipe = small_world.RECIPE.replace(top_n=2, elbow="chord", k=1)
    ranking = rank_table(table, recipe, trials=2, seed=4)
    expected = rank(table.sums, table.entropies, recipe=recipe, trials=2, seed=4)
    assert ranking.heads == expected.heads and ranking.trials == expected.trials
    assert (ranking.checkpoint, ranking.dataset, ranking.split) == ("random", "small", "train")
    assert ranking.architecture == {"model_type": "llava", "num_layers": 3, "num_heads": 4}
    assert {"torch", "transformers"} <= set(ranking.versions)


def test_a_table_refuses_a_recipe_that_asks_for_other_numbers():
    table = small_world.table()
    for change in ({"weight": "mass"}, {"bottom_row": 0.1}, {"template": "chat"}):
        (name,) = change
        with pytest.raises(ValueError, match=f"recipe.{name} must be .*collect a table"):
            rank_table(table, table.recipe.replace(**change))


def test_discover_is_collect_then_rank_and_writes_both(tmp_path):
    lvlm, done = small_world.lvlm(), []
    ranking = discover(
        lvlm.model, lvlm.processor, iter(small_world.samples()), recipe=small_world.RECIPE,
        trials=3, checkpoint="random", dataset="small", split="train", progress=done.append,
        out=tmp_path / "run",
    )  # fmt: skip
    assert ranking == small_world.ranking()
    assert done == [3, 7, 8, 11, 11]
    assert {RANKING_FILE, runs.MANIFEST} <= {p.name for p in (tmp_path / "run").iterdir()}
    assert HeadRanking.load(tmp_path / "run" / RANKING_FILE) == ranking
    table = runs.load(tmp_path / "run")
    assert rank_table(table, trials=3) == ranking
    for name in ("sums", "entropies", "ious", "sample_ids", "image_ids"):
        assert np.array_equal(getattr(table, name), getattr(small_world.table(), name))


@pytest.mark.parametrize("out", [None, "run"])
def test_a_table_without_masks_has_no_ious(tmp_path, out):
    blind = [dataclasses.replace(s, mask=None, box=None) for s in small_world.samples()]
    folders = (tmp_path / "blind", tmp_path / "some") if out else (None, None)
    table = collect(small_world.lvlm(), blind[:3], recipe=small_world.RECIPE, out=folders[0])
    assert table.ious is None and table.mean_ious is None
    mixed = [*blind[:2], *small_world.samples()[2:7], *blind[7:]]
    some = collect(small_world.lvlm(), mixed, out=folders[1], shard_samples=2)
    assert np.isfinite(some.ious).all((1, 2)).tolist() == [False] * 2 + [True] * 5 + [False] * 4
    np.testing.assert_allclose(some.mean_ious, some.ious[2:7].mean(0), rtol=1e-6)


def test_bad_input_is_said(tmp_path):
    lvlm = small_world.lvlm()
    with pytest.raises(ValueError, match="at least one sample"):
        discover(lvlm.model, lvlm.processor, [])
    with pytest.raises(ValueError, match="trials must be 1 to the 2 samples"):
        discover(lvlm.model, lvlm.processor, small_world.samples()[:2], trials=3, out=tmp_path)
    assert runs.load(tmp_path).num_samples == 2  # the forwards are not lost
    assert not (tmp_path / RANKING_FILE).exists()
    with pytest.raises(ValueError, match="model must be"):
        discover("llava", lvlm.processor, small_world.samples())


def test_samples_of_one_image_come_together_and_others_never():
    samples = small_world.samples()
    assert [len(g) for g in by_image(samples)] == [3, 4, 1, 3]
    same_id = [dataclasses.replace(s, image_id=0) for s in samples]
    assert [len(g) for g in by_image(same_id)] == [3, 4, 1, 3]
    copies = [dataclasses.replace(s, image=s.image.copy()) for s in samples]
    assert [len(g) for g in by_image(copies)] == [3, 4, 1, 3]
    assert list(by_image([])) == []
