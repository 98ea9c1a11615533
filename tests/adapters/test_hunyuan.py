"""HunYuan-VL: its lines by hand, its absolute positions, and what is refused."""

import pytest
import torch
from fastground import packing
from fastground.models import wrap
from fastground.types import Recipe
from test_adapters import TEXTS, assert_answers_are_those_of_generate, picture
from tiny_hunyuan import hunyuan

SECTIONS = [(2, 2, 2, 2), (3, 3, 2)]


def test_cells_by_hand():
    encoded = wrap(*hunyuan()).encode(picture((31, 20)), TEXTS[:1], Recipe())
    layout = encoded.layout
    assert layout.grid == (2, 4) and layout.cell_size == (31 / 4, 10)
    first = layout.all_tokens[0]
    assert layout.all_tokens == tuple(range(first, first + 2 * 5 + 2))
    assert layout.tokens == tuple(first + 1 + i for i in (0, 1, 2, 3, 5, 6, 7, 8))


@pytest.mark.parametrize("template", ["plain", "chat"])
@pytest.mark.parametrize("section", SECTIONS)
def test_positions_are_the_models_own(section, template):
    lvlm = wrap(*hunyuan(section=section))
    encoded = lvlm.encode(picture((44, 20)), TEXTS, Recipe(template=template))
    for i, ids in enumerate(encoded.token_ids):
        one = lvlm.encode(picture((44, 20)), TEXTS[i : i + 1], Recipe(template=template))
        inputs, _ = packing.separate(one)
        want, _ = lvlm.count_positions(
            ids[None], image_grid_thw=inputs["image_grid_thw"], **lvlm.token_inputs(ids[None])
        )
        assert torch.equal(inputs["position_ids"], want)
        assert packing.next_position(one, len(ids)) == want.max() + 1


@pytest.mark.parametrize("section", SECTIONS)
def test_answers_are_those_of_generate(section):
    assert_answers_are_those_of_generate(wrap(*hunyuan(section=section)), picture(), TEXTS[:2])


def test_a_processor_without_the_two_ends_is_refused():
    lvlm = wrap(*hunyuan(cat_extra_token=False))
    with pytest.raises(ValueError, match="one a line and two more, but for 2 x 4 cells made 10;"):
        lvlm.encode(picture((31, 20)), TEXTS, Recipe())
