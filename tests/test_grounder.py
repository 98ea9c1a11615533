"""The grounder on a small random LLaVA: what it takes, what it gives, what it refuses."""

import dataclasses

import numpy as np
import pytest
import small_world
import torch
from fastground.attention import attention_maps
from fastground.election import greedy, kept_heads
from fastground.grounder import Grounder
from fastground.grounding import ground
from fastground.models import load
from fastground.types import HeadId
from PIL import Image


@pytest.fixture
def grounder():
    return Grounder(small_world.lvlm(), small_world.ranking())


def picture():
    return small_world.samples()[0].image


def test_it_grounds_with_the_first_k_heads_of_the_ranking(grounder):
    assert grounder.heads == small_world.ranking().top(2)
    every = attention_maps(
        small_world.lvlm(), picture(), ["the red mug"], recipe=small_world.RECIPE, packed=False
    )
    (expected,) = ground(every.select(grounder.heads), ["the red mug"], recipe=small_world.RECIPE)
    found = grounder(picture(), "the red mug")
    assert torch.allclose(found.map, expected.map, atol=1e-5)
    assert found.box.equal(expected.box) and found.mask.equal(expected.mask)
    assert found.heads == grounder.heads and found.expression == "the red mug"
    assert found.mask.shape == (picture().height, picture().width)


def test_a_list_of_expressions_gives_a_list(grounder):
    texts = ["the red mug", "what is x", "a dog on the left"]
    found = grounder(picture(), texts)
    assert [g.expression for g in found] == texts
    for one, text in zip(found, texts, strict=True):
        alone = grounder(picture(), text)
        assert torch.allclose(one.map, alone.map, atol=1e-5) and one.box.equal(alone.box)
    assert grounder(picture(), []) == []
    assert len(grounder(picture(), ["x"])) == 1


@pytest.mark.parametrize("deepest", [0, 1, 2])
def test_the_expressions_of_an_image_are_one_forward_up_to_the_deepest_head(deepest):
    texts = ["the red mug", "what is x", "a dog on the left", "the dog", "x", "blue", "a mug"]
    ranking = small_world.ranking()
    first = dataclasses.replace(ranking.heads[0], head=HeadId(0, 3))
    second = dataclasses.replace(ranking.heads[1], head=HeadId(deepest, 1))
    ranking = dataclasses.replace(ranking, heads=(first, second))
    model = small_world.lvlm().model
    grounder = Grounder(small_world.lvlm(), ranking)
    grounder(picture(), "x")  # the first forward tests itself, which takes the last layer whole
    called = []

    def count(name):
        return lambda module, args, keywords: called.append((name, len(args[0]) if args else 1))

    layers = enumerate(model.get_decoder().layers)
    parts = {f"layer {i}": layer for i, layer in layers} | {"head": model.lm_head}
    parts["tower"] = model.model.vision_tower
    parts["last MLP"] = model.get_decoder().layers[deepest].mlp
    hooks = [p.register_forward_pre_hook(count(n), with_kwargs=True) for n, p in parts.items()]
    try:
        found = grounder(picture(), texts)
    finally:
        for hook in hooks:
            hook.remove()
    assert called == [("tower", 1), *((f"layer {i}", 1) for i in range(deepest + 1))]
    assert [g.expression for g in found] == texts
    assert all(g.heads == (HeadId(0, 3), HeadId(deepest, 1)) for g in found)


def test_an_image_may_be_a_path_or_an_array(grounder, tmp_path):
    picture().save(tmp_path / "picture.png")
    expected = grounder(picture(), "the dog").box
    assert grounder(str(tmp_path / "picture.png"), "the dog").box.equal(expected)
    assert grounder(tmp_path / "picture.png", "the dog").box.equal(expected)
    assert grounder(np.asarray(picture()), "the dog").box.equal(expected)


def test_greedy_chooses_heads_for_every_expression():
    recipe = small_world.RECIPE.replace(selection="greedy", criteria="entropy")
    found = Grounder(small_world.lvlm(), small_world.ranking(), recipe=recipe)(
        picture(), [s.expression for s in small_world.samples()[:3]]
    )
    table = small_world.table()
    kept = kept_heads(table.sums.mean(axis=0), recipe)
    expected = greedy(table.sums[:3], table.entropies[:3], recipe, kept=kept)
    assert [[h.layer * 4 + h.head for h in g.heads] for g in found] == expected.tolist()


def test_a_segmenter_makes_the_mask():
    def boxed(image, groundings, recipe):
        assert recipe == small_world.RECIPE
        for grounding in groundings:
            x1, y1, x2, y2 = (int(v) for v in grounding.box)
            mask = np.zeros((image.height, image.width), dtype=bool)
            mask[y1:y2, x1:x2] = True
            yield mask

    grounder = Grounder(small_world.lvlm(), small_world.ranking(), segmenter=boxed)
    for found in (grounder(picture(), "the red mug"), *grounder(picture(), ["x", "the dog"])):
        x1, y1, x2, y2 = (int(v) for v in found.box)
        assert found.mask.sum() == (x2 - x1) * (y2 - y1) > 0
    grounder.segmenter = lambda image, groundings, recipe: [np.ones((3, 3))]
    with pytest.raises(ValueError, match=r"segmenter must return a \(height, width\) mask"):
        grounder(picture(), "the red mug")


def test_a_ranking_of_another_architecture_is_refused():
    for name, value in (("num_layers", 32), ("num_heads", 8), ("model_type", "qwen2_5_vl")):
        other = dataclasses.replace(
            small_world.ranking(), architecture=small_world.ranking().architecture | {name: value}
        )
        with pytest.raises(ValueError, match=f"{name}.*make one with: fastground discover random"):
            Grounder(small_world.lvlm(), other)
    with pytest.raises(ValueError, match="with model_type None"):
        Grounder(small_world.lvlm(), dataclasses.replace(small_world.ranking(), architecture={}))
    with pytest.raises(ValueError, match="k must be 1 to 12"):
        recipe = small_world.RECIPE.replace(k=13)
        Grounder(small_world.lvlm(), small_world.ranking(), recipe=recipe)


def test_a_ranking_may_be_its_folder_and_a_model_must_be_wrapped(tmp_path):
    lvlm = small_world.lvlm()
    small_world.ranking().save(tmp_path / "ranking.json")
    assert Grounder(lvlm, tmp_path).ranking == Grounder(lvlm, f"{tmp_path}/ranking.json").ranking
    with pytest.raises(FileNotFoundError, match="make one with: fastground discover"):
        Grounder(lvlm, tmp_path / "none")
    with pytest.raises(ValueError, match=r"ranking must be a HeadRanking.*but got tuple"):
        Grounder(lvlm, small_world.ranking().top())
    with pytest.raises(ValueError, match=r"give models.wrap\(model, processor\)"):
        Grounder(lvlm.model, small_world.ranking())
    with pytest.raises(ValueError, match=r"segmenter must be a name, .* but got 5"):
        Grounder(lvlm, small_world.ranking(), segmenter=5)
    for loaded in (lvlm, lvlm.model):
        with pytest.raises(
            ValueError, match=r"must be a name or a folder.* to fastground.models.wr"
        ):
            Grounder.from_pretrained(loaded)
        with pytest.raises(ValueError, match=f"but got {type(loaded).__name__}; give a model"):
            load(loaded)


def test_a_segmenter_without_weights_is_refused_at_once(tmp_path):
    for name, says in (("sam", "hf download facebook/sam"), ("segment-anything", "curl -LO https")):
        with pytest.raises(FileNotFoundError, match=says):
            Grounder(
                small_world.lvlm(), small_world.ranking(), segmenter=f"{name}:{tmp_path / 'none'}"
            )


def test_from_pretrained_takes_the_ranking_that_lies_beside_the_weights(tmp_path):
    lvlm = small_world.lvlm()
    lvlm.model.save_pretrained(tmp_path)
    lvlm.processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="discover its heads first: fastground discover"):
        Grounder.from_pretrained(tmp_path)
    small_world.ranking().save(tmp_path / "elsewhere.json")
    given = Grounder.from_pretrained(tmp_path, tmp_path / "elsewhere.json", device="cpu")
    small_world.ranking().save(tmp_path / "ranking.json")
    own = Grounder.from_pretrained(str(tmp_path), device="cpu")
    expected = Grounder(lvlm, small_world.ranking())(picture(), "the red mug")
    for grounder in (given, own):
        assert grounder(picture(), "the red mug").box.equal(expected.box)
        assert "L" in repr(grounder)
    with pytest.raises(FileNotFoundError):
        Grounder.from_pretrained(tmp_path, tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("image", "expression", "error", "says"),
    [
        (None, " ", ValueError, "expression must say something"),
        (None, "the zebra", ValueError, "words that the tokenizer knows"),
        (None, ["the mug", 3], ValueError, "expression must say something"),
        (3.5, "the mug", ValueError, "image must be"),
        ("nowhere.png", "the mug", FileNotFoundError, "image must be a file"),
        (np.zeros((4, 4, 3)), "the mug", ValueError, "uint8 where it is an array"),
        (np.zeros((4, 4, 2), np.uint8), "the mug", ValueError, "uint8 where it is an array"),
        (np.zeros((0, 4, 3), np.uint8), "the mug", ValueError, "image must"),
        (Image.new("RGB", (0, 0)), "the mug", ValueError, "image must have pixels"),
    ],
)
def test_bad_input_is_said(grounder, image, expression, error, says):
    with pytest.raises(error, match=says):
        grounder(picture() if image is None else image, expression)
