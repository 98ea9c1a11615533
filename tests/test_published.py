"""Published heads: what they say of themselves, what they can and cannot do."""

import dataclasses

import pytest
import small_world
from fastground import grounder as grounders
from fastground import info
from fastground.grounder import Grounder
from fastground.published import RANKINGS
from fastground.types import HeadId

SEVEN, THIRTEEN = "llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-13b-hf"


def test_the_heads_and_who_says_so():
    assert RANKINGS[SEVEN].top() == (HeadId(14, 24),)
    assert RANKINGS[THIRTEEN].top() == ((15, 39), (16, 30), (7, 2))
    assert RANKINGS[SEVEN].architecture["num_layers"] == 32
    assert RANKINGS[THIRTEEN].architecture["num_heads"] == 40
    for name, ranking in RANKINGS.items():
        assert ranking.checkpoint == name and "2503.06287" in ranking.provenance
        with pytest.raises(ValueError, match="must be measured to be saved"):
            ranking.save("ranking.json")
    assert "one head grounds where the paper takes three" in RANKINGS[SEVEN].provenance
    assert "not verified" in RANKINGS[THIRTEEN].provenance


def test_installation_tells_them():
    told = {r["checkpoint"]: r for r in info.facts()["rankings"]}
    assert told[SEVEN]["heads"] == ["L14 H24"] and "2503.06287" in told[SEVEN]["provenance"]
    assert "provenance" not in told["tiny"]


def fitting(name, **changes):
    """The published ranking as if it were of the small random model."""
    return dataclasses.replace(
        RANKINGS[name], architecture=small_world.lvlm().architecture, **changes
    )


def test_a_grounder_takes_them_and_says_so(monkeypatch):
    heads = tuple(
        dataclasses.replace(r, head=HeadId(i, 1)) for i, r in enumerate(RANKINGS[THIRTEEN].heads)
    )
    published = fitting(THIRTEEN, heads=heads)
    monkeypatch.setitem(grounders.RANKINGS, "some/model", published)
    monkeypatch.setattr(grounders.models, "load", lambda *_, **__: small_world.lvlm())
    with pytest.warns(UserWarning, match="as published, not discovered: three heads.*fastground d"):
        grounder = Grounder.from_pretrained("some/model")
    assert grounder.heads == ((0, 1), (1, 1), (2, 1))
    assert grounder(small_world.samples()[0].image, "the red mug").heads == grounder.heads
    with pytest.raises(ValueError, match="discover its heads first: fastground discover other/m"):
        Grounder.from_pretrained("other/model")


def test_more_than_is_known_is_refused():
    heads = (dataclasses.replace(RANKINGS[SEVEN].heads[0], head=HeadId(1, 2)),)
    published = fitting(SEVEN, heads=heads)
    recipe = published.recipe
    assert Grounder(small_world.lvlm(), published).heads == (HeadId(1, 2),)
    with pytest.raises(ValueError, match=r"k must be at most 1 .*but got 3.*give k=1, or discover"):
        Grounder(small_world.lvlm(), published, recipe=recipe.replace(k=3))
    with pytest.raises(ValueError, match="every head's mean attention sum"):
        Grounder(small_world.lvlm(), published, recipe=recipe.replace(selection="greedy"))
    greedy = recipe.replace(selection="greedy", scope="sample", criteria="entropy")
    found = Grounder(small_world.lvlm(), published, recipe=greedy)
    assert len(found(small_world.samples()[0].image, "the red mug").heads) == 1
    with pytest.raises(ValueError, match="must be of a model like"):
        Grounder(small_world.lvlm(), RANKINGS[SEVEN])
