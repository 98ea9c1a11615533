"""What models write as boxes, read; and carried to pixels through the true adapters' layouts."""

import numpy as np
import pytest
import small_world
from fastground import evaluation, textboxes
from fastground.grounder import Grounder
from fastground.textboxes import DIALECTS, GENERIC, Dialect, parse, to_pixels
from fastground.types import ImageLayout

SAID = [
    ('```json\n[{"bbox_2d": [12, 40, 230, 310], "label": "a mug"}]\n```', (12, 40, 230, 310)),
    ("<|box_start|>(52,104),(431,560)<|box_end|><|im_end|>", (52, 104, 431, 560)),
    ("<|object_ref_start|>mug<|object_ref_end|>(52, 104), (431, 560)", (52, 104, 431, 560)),
    ("<ref>the mug</ref><box>[[52, 104, 431, 560]]</box>", (52, 104, 431, 560)),
    ("<|begin_of_box|>[[52, 104, 431, 560]]<|end_of_box|>", (52, 104, 431, 560)),
    ("[0.05, 0.1, 0.43, 0.56]</s>", (0.05, 0.1, 0.43, 0.56)),
    ("It is at [.05,.10,.43,1.0].", (0.05, 0.1, 0.43, 1.0)),
    ("<loc0106><loc0053><loc0573><loc0441> mug<eos>", (106, 53, 573, 441)),
    ("[0., .1, 1., 0.56]", (0, 0.1, 1, 0.56)),
    ("[1e-3, 2.5e-02, 1e0, 0.56]", (0.001, 0.025, 1, 0.56)),
    ("at 52 104 431 560.", (52, 104, 431, 560)),
    ("0.05, 0.1, 0.43, 0.56", (0.05, 0.1, 0.43, 0.56)),
    ("x1=52 y1=104", None),
    ("I see 2 mugs and 3 cups, 4 plates", None),
    ("[52, 104, 431]", None),
    ("two boxes: [1, 2, 3, 4] and [5, 6, 7, 8]", (1, 2, 3, 4)),
    ("[-3, 2, 30, 4]", (-3, 2, 30, 4)),
    ("", None),
]


@pytest.mark.parametrize(("text", "numbers"), SAID, ids=[t[:24] for t, _ in SAID])
def test_the_first_box_of_a_text_is_read(text, numbers):
    assert parse(text) == numbers


def square(height, width, grid=6):
    """LLaVA's layout: the image padded to a square."""
    side = max(height, width)
    return ImageLayout(
        (grid, grid), tuple(range(grid * grid)), image_size=(height, width),
        cell_size=(side / grid,) * 2,
        origin=(-float((side - width) // 2), -float((side - height) // 2)),
    )  # fmt: skip


def test_shares_are_of_the_padded_square():
    box = to_pixels((0.25, 0.5, 0.5, 0.75), DIALECTS["llava"], square(200, 400))
    assert box == pytest.approx((100, 100, 200, 200))
    clipped = to_pixels((0.0, 0.0, 1.0, 1.0), DIALECTS["llava"], square(200, 400))
    assert clipped == (0, 0, 400, 200)


WHOLE = ImageLayout((4, 8), tuple(range(32)), image_size=(200, 400), cell_size=(50.0, 50.0))


@pytest.mark.parametrize(
    ("dialect", "numbers", "seen", "box"),
    [
        (DIALECTS["internvl"], (250, 500, 500, 750), None, (100, 100, 200, 150)),
        (DIALECTS["qwen2_5_vl"], (56, 56, 112, 84), (112, 224), (100, 100, 200, 150)),
        (DIALECTS["paligemma"], (512, 256, 768, 512), None, (100, 100, 200, 150)),
        (GENERIC, (0.25, 0.5, 0.5, 0.75), None, (100, 100, 200, 150)),
        (GENERIC, (250, 500, 500, 750), None, (100, 100, 200, 150)),
        (GENERIC, (0.5, 0.75, 0.25, 0.5), None, (100, 100, 200, 150)),  # corners turned round
        (GENERIC, (0.25, 0.5, 0.5, 1.02), None, (100, 100, 200, 200)),  # a share, beyond the edge
        (GENERIC, (-1.0, -1.0, 0.5, 0.5), None, (0, 0, 200, 100)),
    ],
)
def test_every_dialect_to_pixels(dialect, numbers, seen, box):
    assert to_pixels(numbers, dialect, WHOLE, seen) == pytest.approx(box)


def test_pixels_need_to_know_whose():
    with pytest.raises(ValueError, match="seen_size"):
        to_pixels((1, 2, 3, 4), Dialect("{}", pixels=True), WHOLE)


def told(monkeypatch, texts):
    """The small world's model, made to say these texts; and what it is asked."""
    asked = []

    def said(lvlm, image, prompts, **_):
        asked.extend(prompts)
        return texts[: len(prompts)]

    monkeypatch.setattr(textboxes, "can_write", lambda _: True)
    monkeypatch.setattr(textboxes, "said", said)
    monkeypatch.setattr(small_world.lvlm(), "_know", lambda *_: None)
    return asked


def test_a_model_is_asked_in_its_dialect_and_read_through_its_layout(monkeypatch):
    asked = told(monkeypatch, ["[0.25, 0.25, 0.5, 1.0]", "no"])
    sample = small_world.samples()[0]  # 24 wide, 18 high: three rows of padding above and below
    found = textboxes.written_boxes(small_world.lvlm(), sample.image, ["the red mug.", "what is x"])
    assert [prompt.rpartition(": ")[2] for prompt in asked] == ["the red mug", "what is x"]
    assert found["text_boxes"][0].tolist() == [6, 3, 12, 18]
    assert np.isnan(found["text_boxes"][1]).all() and found["texts"][1] == "no"


def test_the_baseline_is_scored_beside_the_method(monkeypatch):
    told(monkeypatch, ["[0, 0, 1, 1]", "[0.1, 0.1, 0.2, 0.2]", "nothing", "nothing"])
    samples = [s for s in small_world.samples() if s.image_id == 0]
    whole = [
        s.__class__(**{**vars(s), "box": (0.0, 0.0, 24.0, 18.0), "mask": None}) for s in samples
    ]
    made = Grounder(small_world.lvlm(), small_world.ranking())
    scores = evaluation.evaluate(made, whole, baseline="text-box").text_boxes
    assert scores.accuracy == pytest.approx(1 / 3) and scores.parsed == pytest.approx(2 / 3)
    assert np.isnan(scores.interval).all()  # one image


def test_a_model_without_digits_is_not_asked():
    sample = small_world.samples()[0]
    assert not textboxes.can_write(small_world.lvlm())
    found = textboxes.written_boxes(small_world.lvlm(), sample.image, ["the red mug"])
    assert found["texts"].tolist() == [""] and np.isnan(found["text_boxes"]).all()
