"""Models of which some layers have no attention heads: captured, ranked and asked all the same."""

from functools import cache

import numpy as np
import pytest
import small_world
import torch
from fastground import models
from fastground.attention import attention_maps
from fastground.capture import capture
from fastground.comparison import compare
from fastground.discovery import collect
from fastground.elbow import elbow
from fastground.election import greedy, kept_heads
from fastground.grounder import Grounder
from fastground.layers import layers_with_heads
from fastground.ranking import rank, rank_table
from fastground.stats import head_statistics, head_table
from fastground.types import HeadId, HeadStats, Recipe
from random_llava import random_llava
from test_capture import eager, inputs_of, last_rows, on_image

KINDS = ["conv", "full_attention", "conv", "full_attention", "conv"]


@cache
def hybrid(grid=4):
    from transformers import Lfm2Config

    return random_llava(0, grid=grid, text=Lfm2Config, layers=5, layer_types=list(KINDS))


@cache
def lvlm():
    return models.wrap(*hybrid(6), checkpoint="hybrid")


@cache
def table():
    return collect(lvlm(), small_world.samples(), recipe=small_world.RECIPE)


def test_layers_with_heads():
    model, _ = hybrid()
    assert layers_with_heads(model.config) == layers_with_heads(model.config.text_config) == (1, 3)
    assert layers_with_heads(random_llava(0)[0].config) == (0, 1, 2)
    assert lvlm().layers_with_heads == (1, 3)
    assert not lvlm().shares_prefix


def test_layers_that_see_the_image_aside_have_no_head_of_the_sequence():
    from transformers import MllamaConfig

    text = {"num_hidden_layers": 5, "cross_attention_layers": [1, 3]}
    assert layers_with_heads(MllamaConfig(text_config=text)) == (0, 2, 4)


def test_a_model_without_any_such_layer_is_refused():
    model, processor = random_llava(0)
    model.config.text_config.layer_types = ["mamba", "linear_attention", "conv"]
    message = "has only conv, linear_attention, mamba; such a model cannot be captured"
    with pytest.raises(ValueError, match=message):
        capture(model)
    with pytest.raises(ValueError, match=message):
        models.wrap(model, processor)


@pytest.mark.parametrize("stop_after", [None, 4, 3])
def test_all_heads_are_those_of_layers_with_attention(stop_after):
    model, processor = hybrid()
    inputs = inputs_of(processor, "left")
    want = on_image(eager(model, inputs), inputs, last_rows(inputs))
    assert want.max() > 0.1
    with torch.no_grad(), capture(model, stop_after=stop_after) as captured:
        model(**inputs)
    assert captured.maps.heads == tuple(HeadId(layer, h) for layer in (1, 3) for h in range(4))
    torch.testing.assert_close(captured.maps.maps.flatten(2), want, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": [(2, 0)]}, r"heads \(1, 3\), but got L2 H0, .* of the kind 'conv'"),
        ({"stop_after": 0}, "at least 1, the first layer with attention heads, but got 0"),
        ({"heads": [(3, 0)], "stop_after": 2}, "layers 0 to 2"),
    ],
)
def test_heads_that_are_not_there_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        capture(hybrid()[0], **arguments)


def test_said_tokens_of_a_hybrid():
    model, processor = hybrid()
    inputs = inputs_of(processor, "left")
    settings = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad(), capture(model, rows="steps") as captured:
        model.generate(**inputs, **settings)
    with torch.no_grad(), capture(model) as first:
        model(**inputs)
    assert [each.maps.shape for each in captured.each] == [(3, 8, 4, 4)] * 3
    torch.testing.assert_close(captured.maps.maps[:3], first.maps.maps, atol=1e-6, rtol=0)


def test_the_table_holds_nothing_where_there_is_no_head():
    none = [0, 2, 4]
    found = table()
    assert found.sums.shape == found.entropies.shape == found.ious.shape == (11, 5, 4)
    assert (found.sums[:, none] == 0).all() and (found.ious[:, none] == 0).all()
    assert np.isposinf(found.entropies[:, none]).all()
    assert (found.sums[:, [1, 3]] > 0).all()
    sample = small_world.samples()[0]
    attention = attention_maps(lvlm(), sample.image, [sample.expression], recipe=table().recipe)
    own = head_statistics(attention, table().recipe).attention_sum[0].numpy()
    assert np.allclose(found.sums[0, [1, 3]].reshape(-1), own, atol=1e-6)


CHOICES = [
    {},
    {"criteria": "attention_sum"},
    {"criteria": "entropy"},
    {"scope": "sample"},
    {"scope": "sample", "elbow": "curvature"},
    {"elbow": 0.0, "criteria": "attention_sum"},
]


@pytest.mark.parametrize("choice", CHOICES)
def test_no_head_that_is_not_there_is_ranked(choice):
    recipe = small_world.RECIPE.replace(skip_layers=0, top_n=20, **choice)
    ranking = rank_table(table(), recipe, trials=2)
    assert {ranked.head.layer for ranked in ranking.heads} == {1, 3}
    assert len(ranking.heads) == len(ranking.curve) == 8
    assert {head.layer for trial in ranking.trials for head in trial} <= {1, 3}
    # The same as of a model that has the other layers only.
    alone = rank(table().sums[:, [1, 3]], table().entropies[:, [1, 3]], recipe=recipe, trials=2)
    assert [r.head for r in ranking.heads] == [
        HeadId([1, 3][r.head.layer], r.head.head) for r in alone.heads
    ]
    assert ranking.tau == alone.tau and ranking.curve == alone.curve
    assert [r.frequency for r in ranking.heads] == [r.frequency for r in alone.heads]


@pytest.mark.parametrize("choice", CHOICES)
def test_no_head_that_is_not_there_is_chosen_for_a_sample(choice):
    recipe = Recipe(skip_layers=0, k=8, selection="greedy").replace(**choice)
    chosen = greedy(table().sums, table().entropies, recipe, kept=None)
    assert set((chosen // 4).flatten().tolist()) == {1, 3}
    kept = kept_heads(table().sums, recipe)
    assert not kept[:, [0, 2, 4]].any() and kept[:, [1, 3]].any()
    with pytest.raises(ValueError, match="at most 8, the heads that see the image, but got 9"):
        greedy(table().sums, table().entropies, recipe.replace(k=9), kept=None)


def test_the_elbow_is_that_of_the_heads_there_are():
    sums = np.zeros((3, 4))
    sums[1] = [0.3, 0.31, 0.32, 0.9]
    recipe = Recipe(skip_layers=0)
    assert float(elbow(sums[1])) != float(elbow(sums.reshape(-1)))
    assert np.array_equal(kept_heads(sums, recipe)[1], sums[1] >= elbow(sums[1]))


def test_it_grounds_with_fixed_and_with_own_heads():
    ranking = rank_table(table(), trials=2)
    texts = ["the red mug", "a small blue dog"]
    image = small_world.samples()[0].image
    fixed = Grounder(lvlm(), ranking)(image, texts)
    assert fixed[0].heads == ranking.top(2)
    recipe = small_world.RECIPE.replace(selection="greedy")
    for scope in ("mean", "sample"):
        own = Grounder(lvlm(), ranking, recipe=recipe.replace(scope=scope))(image, texts)
        every = attention_maps(lvlm(), image, texts, recipe=recipe)
        for n, grounding in enumerate(own):
            assert {head.layer for head in grounding.heads} <= {1, 3}
            want = every.select(grounding.heads).maps[n]
            assert torch.allclose(grounding.maps, want, atol=1e-6)


def test_it_is_compared():
    compared = compare(lvlm(), table(), rank_table(table(), trials=2), small_world.samples())
    named = {head for row in compared.rows for head in row.heads or ()}
    assert named and {head.layer for head in named} == {1, 3}
    assert compared.num_samples == 11


def test_head_table_puts_numbers_at_their_heads():
    stats = HeadStats(torch.tensor([[0.1, 0.2]]), torch.tensor([[3.0, 4.0]]))
    sums, entropies = head_table(stats, [HeadId(2, 1), HeadId(0, 0)], (3, 2))
    assert sums.tolist() == pytest.approx(np.array([[[0.2, 0], [0, 0], [0, 0.1]]]))
    assert entropies.tolist() == [[[4, np.inf], [np.inf, np.inf], [np.inf, 3]]]


def test_positions_of_heads_among_the_captured():
    sample = small_world.samples()[0]
    attention = attention_maps(lvlm(), sample.image, ["the red mug"], recipe=table().recipe)
    some = attention.select([(3, 1), (1, 2)])
    assert some.positions(np.array([[6, 13], [13, 13]]), 4).tolist() == [[1, 0], [0, 0]]
    with pytest.raises(ValueError, match="but L1 H3 was not"):
        some.positions(np.array([[6, 7]]), 4)
