"""The nouns: what they refuse, and that they survive being written down."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from fastground.strict_json import dumps
from fastground.types import (
    CHOICES,
    PROFILES,
    AttentionMaps,
    HeadId,
    HeadRanking,
    ImageLayout,
    RankedHead,
    Recipe,
)


def ranking(**changes):
    heads = tuple(RankedHead(HeadId(i, 1), 1 / (i + 1), 0.1, 0.5, 0.3 + i) for i in range(4))
    heads = (*heads[:3], dataclasses.replace(heads[3], entropy=float("inf"), frequency=0.0))
    values = {
        "heads": heads, "tau": 0.24, "curve": (0.1, 0.2), "num_samples": 10,
        "trials": ((HeadId(0, 1), HeadId(1, 1)),), "recipe": Recipe(k=2, elbow=0.24),
        "checkpoint": "tiny", "architecture": {"model_type": "llava", "num_layers": 4},
        "dataset": "shapes", "split": "train", "versions": {"torch": "2"}, "ties": 3,
    }  # fmt: skip
    return HeadRanking(**values | changes)


def test_the_default_recipe_is_the_papers():
    recipe = Recipe()
    assert recipe == Recipe.profile("paper")
    assert (recipe.k, recipe.top_n, recipe.skip_layers) == (3, 10, 2)
    assert (recipe.kernel_size, recipe.sigma, recipe.border) == (7, 1.0, "reflect101")
    for name, choices in CHOICES.items():
        assert getattr(recipe, name) == choices[0]


def test_the_authors_releases_differ_as_the_method_says():
    june, august = Recipe.profile("repo-2025-06"), Recipe.profile("repo-2025-08")
    assert (june.weight, june.cut, june.skip_layers, june.empty) == ("mass", "mean+eps", 0, "zero")
    assert (august.cut, august.bottom_row, august.k) == ("2mean+eps", 0.05, 5)
    assert (august.region, august.padding, august.kernel_size) == ("all", "include", 9)
    assert set(PROFILES) == {"paper", "repo-2025-06", "repo-2025-08"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weight": "volume"}, "recipe.weight must be one of area, mass, but got 'volume'"),
        ({"elbow": "kink"}, "recipe.elbow must be chord, curvature or a number"),
        ({"top_n": 0}, "recipe.top_n must be an integer >= 1, but got 0"),
        ({"k": 1.5}, "recipe.k must be an integer"),
        ({"kernel_size": 4}, "recipe.kernel_size must be odd"),
        ({"sigma": -1.0}, "recipe.sigma must be finite and >= 0"),
        ({"sigma": float("nan")}, "recipe.sigma must be finite"),
        ({"sigma": "wide"}, "recipe.sigma must be finite"),
        ({"elbow": float("nan")}, "recipe.elbow must be chord, curvature or a number"),
        ({"elbow": None}, "recipe.elbow must be chord, curvature or a number"),
        ({"kernel_size": 65537}, "recipe.kernel_size must be odd and at most 65535, but got 65537"),
        ({"bottom_row": "low"}, "recipe.bottom_row must be a number or None, but got 'low'"),
        ({"tau": 3}, "recipe has no field 'tau'; its fields are weight"),
    ],
)
def test_a_recipe_refuses(change, says):
    with pytest.raises(ValueError, match=says):
        Recipe().replace(**change)


def test_an_unknown_profile_is_refused():
    with pytest.raises(ValueError, match="profile must be one of paper"):
        Recipe.profile("mine")


def test_a_recipe_survives_json():
    for recipe in PROFILES.values():
        assert Recipe(**json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_a_ranking_survives_its_file(tmp_path):
    path = tmp_path / "deep" / "ranking.json"
    ranking().save(path)
    assert HeadRanking.load(path) == ranking()
    assert isinstance(HeadRanking.load(path).heads[0].head, HeadId)
    assert [p.name for p in path.parent.iterdir()] == ["ranking.json"]
    assert "Infinity" not in path.read_text()  # which is no JSON


NO_RANKINGS = [b"", b"[]", b"{}", b'{"heads": 3}', b'{"heads": [{"head": [1, 2]}]}', b"\xff\xfe"]


@pytest.mark.parametrize("content", NO_RANKINGS)
def test_a_file_that_is_no_ranking_is_refused(tmp_path, content):
    path = tmp_path / "ranking.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="make one with: fastground discover"):
        HeadRanking.load(path)


def test_the_first_heads():
    assert ranking().top() == (HeadId(0, 1), HeadId(1, 1))
    assert ranking().top(3)[2] == HeadId(2, 1)
    with pytest.raises(ValueError, match="k must be 1 to 4"):
        ranking().top(5)
    assert str(HeadId(14, 24)) == "L14 H24"


def test_a_ranking_tells_its_often_elected_heads_its_trials_and_all_as_json():
    one = ranking(trials=((HeadId(1, 1), HeadId(0, 1)), (HeadId(0, 1), HeadId(3, 1))))
    assert [ranked.head.layer for ranked in one.often()] == [0, 1, 2]
    assert one.agreement() == (1, 2)
    told = one.to_dict()
    assert told["top"] == [[0, 1], [1, 1]] and told["num_samples"] == 10
    assert told.keys() - {"top"} == {field.name for field in dataclasses.fields(one)}


def test_a_layout_knows_its_padding_and_its_pixels():
    # 60 x 40 pixels padded to 60 x 60, 6 x 6 cells of 10 pixels: one row of padding each side
    layout = ImageLayout((6, 6), tuple(range(36)), None, (40, 60), (10.0, 10.0), (0.0, -10.0))
    assert layout.valid().sum(dim=1).tolist() == [0, 6, 6, 6, 6, 0]
    boxes = torch.tensor([[0, 0, 6, 6], [1, 2, 3, 4]])
    assert layout.to_pixels(boxes).tolist() == [[0, 0, 60, 40], [10, 10, 30, 30]]
    y, x = layout.pixel_centers()
    assert y.shape == (40,) and x.shape == (60,)
    assert y.floor().tolist() == np.repeat([1, 2, 3, 4], 10).tolist()
    assert x[0] == pytest.approx(0.05) and x[-1] == pytest.approx(5.95)


@pytest.mark.parametrize("length", [37, 61, 97, 333, 427])
def test_a_cell_half_in_the_image_is_no_padding_however_that_is_rounded(length):
    # 5.25 cells high, a quarter of a cell above them: the centre of the sixth is on the edge
    cell = length / 5.25
    layout = ImageLayout((7, 3), tuple(range(21)), None, (length, 3), (1.0, cell), (0.0, -cell / 4))
    assert layout.valid().sum(dim=1).tolist() == [3] * 6 + [0]
    layout = dataclasses.replace(layout, origin=(0.0, -cell / 2))
    assert layout.valid().sum(dim=1).tolist() == [3] * 6 + [0]
    layout = dataclasses.replace(layout, origin=(0.0, -cell / 2 - 0.01))
    assert layout.valid().sum(dim=1).tolist() == [0] + [3] * 5 + [0]


def test_an_image_thinner_than_a_cell_is_not_all_padding():
    # 1 x 60 pixels padded to 60 x 60: on the border of two of six rows, within one of five
    for rows, valid in ((6, [0, 0, 6, 6, 0, 0]), (5, [0, 0, 6, 0, 0])):
        cell = (10.0, 60 / rows)
        layout = ImageLayout((rows, 6), tuple(range(rows * 6)), None, (1, 60), cell, (0.0, -29.5))
        assert layout.valid().sum(dim=1).tolist() == valid
    outside = dataclasses.replace(layout, origin=(0.0, 40.0))
    assert not outside.valid().any()


def test_maps_at_every_pixel_are_linear_between_cells():
    layout = ImageLayout(
        (2, 3), tuple(range(6)), image_size=(10, 8), cell_size=(4.0, 6.0), origin=(-2.0, 0.0)
    )
    maps = torch.rand(5, 2, 3)
    found = layout.on_image(maps)
    assert found.shape == (5, 10, 8) and found.dtype == torch.float32
    want = torch.nn.functional.interpolate(
        maps[None], (12, 12), mode="bilinear", align_corners=False
    )[0]
    torch.testing.assert_close(found, want[:, :10, 2:10])
    assert torch.equal(layout.on_image(maps[0]), found[0])
    seen = dataclasses.replace(layout, origin=(0.0, 6.0), image_size=(20, 13))
    cut = seen.on_image(torch.ones(2, 3))
    assert torch.equal(cut[6:18, :12], torch.ones(12, 12)) and cut.sum() == 144
    with pytest.raises(ValueError, match=r"maps must be \(..., 2, 3\), .* got shape \(3, 2\)"):
        layout.on_image(maps[0].T)


def test_nouns_say_what_they_hold_in_a_line():
    heads = tuple(HeadId(0, n) for n in range(5))
    layout = ImageLayout((2, 3), tuple(range(4, 10)), tuple(range(4, 12)), (10, 8), (4.0, 5.0))
    assert repr(layout) == "ImageLayout(2 x 3 cells, 8 tokens from 4 on, 10 x 8 pixels)"
    maps = AttentionMaps(torch.zeros(1, 5, 2, 3), torch.zeros(1, 5), heads, ImageLayout((0, 0), ()))
    assert repr(maps) == (
        "AttentionMaps(1 x 5 x 2 x 3, L0 H0, L0 H1, L0 H2 and 2 more, cpu, "
        "ImageLayout(0 x 0 cells, 0 tokens from 0 on, no image))"
    )
    assert repr(ranking()) == (
        "HeadRanking('tiny', L0 H1, L1 H1, L2 H1 and 1 more, tau 0.240, 10 samples of shapes train)"
    )
    assert "tau 0.240, 10 samples)" in repr(ranking(dataset="", split=""))


def test_a_layout_without_an_image_has_cells_but_no_pixels():
    layout = ImageLayout((2, 3), tuple(range(6)))
    assert layout.valid().all() and layout.valid().shape == (2, 3)
    for call in (lambda: layout.to_pixels(torch.zeros(4)), layout.pixel_centers):
        with pytest.raises(ValueError, match="set image_size and cell_size"):
            call()
    with pytest.raises(ValueError, match=r"2 \* 3 positions, but got 5"):
        ImageLayout((2, 3), tuple(range(5)))


def test_maps_of_some_heads():
    heads = (HeadId(0, 0), HeadId(2, 1), HeadId(3, 5))
    maps = torch.rand(2, 3, 2, 3)
    attention = AttentionMaps(maps, maps.sum((-2, -1)), heads, ImageLayout((2, 3), tuple(range(6))))
    some = attention.select([(3, 5), (0, 0)])
    assert some.heads == (HeadId(3, 5), HeadId(0, 0))
    assert some.maps.equal(maps[:, [2, 0]]) and some.sums.equal(attention.sums[:, [2, 0]])
    with pytest.raises(ValueError, match="L9 H9 were not"):
        attention.select([(9, 9)])


def test_what_json_lacks_is_null_and_read_back(tmp_path):
    path = tmp_path / "ranking.json"
    ranking(tau=float("nan")).save(path)
    told = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert told["tau"] is None and told["heads"][3]["entropy"] is None
    read = HeadRanking.load(path)
    assert np.isnan(read.tau) and read.heads == ranking().heads
    odd = {"a": [float("nan"), {"b": (np.float64("-inf"), 1.5)}], "c": None}
    assert json.loads(dumps(odd), parse_constant=pytest.fail) == {
        "a": [None, {"b": [None, 1.5]}],
        "c": None,
    }
