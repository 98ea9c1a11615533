"""Every dialect against a tiny model of its true class: it is asked, and read to pixels."""

import numpy as np
import pytest
from families import all_families
from fastground import textboxes
from fastground.models import wrap
from PIL import Image

SPOKEN = [f for f in all_families() if f.loads and f.name in textboxes.DIALECTS]


@pytest.mark.parametrize("family", SPOKEN, ids=str)
def test_a_family_is_asked_in_its_dialect(family, monkeypatch):
    """A random model says no box; one put into its mouth lies where its pixels are."""
    lvlm = wrap(*family.build(0), checkpoint=family.name)
    dialect = textboxes.DIALECTS[lvlm.architecture["model_type"]]
    monkeypatch.setattr(textboxes, "can_write", lambda _: True)
    monkeypatch.setattr(textboxes, "MAX_NEW_TOKENS", 3)
    monkeypatch.setattr(lvlm, "_know", lambda *_: None)  # these tokenizers know a few words
    image = Image.new("RGB", (96, 64), "red")
    found = textboxes.written_boxes(lvlm, image, ["the red mug", "dog"])
    assert len(found["texts"]) == 2 and found["text_boxes"].shape == (2, 4)
    seen = []

    def mouth(_, image, prompts, **options):
        from fastground.types import Recipe

        layout = lvlm.encode(image, prompts[:1], Recipe(template=options["recipe"].template)).layout
        seen.append((layout, textboxes._seen_size(lvlm, layout)))
        size = seen[0][1] if dialect.pixels else (dialect.unit or 1,) * 2
        numbers = [0.25 * size[1], 0.5 * size[0], 0.5 * size[1], 0.75 * size[0]]
        if dialect.by_rows:
            numbers = [int(numbers[i]) for i in (1, 0, 3, 2)]
            return ["".join(f"<loc{n:04d}>" for n in numbers)]
        return [str(numbers)]

    monkeypatch.setattr(textboxes, "said", mouth)
    (box,) = textboxes.written_boxes(lvlm, image, ["mug"])["text_boxes"]
    (layout, _), *_ = seen
    left, top = layout.origin
    width, height = np.array(layout.cell_size) * layout.grid[::-1]
    expected = [left + width / 4, top + height / 2, left + width / 2, top + height * 3 / 4]
    assert box == pytest.approx(np.clip(expected, 0, [96, 64, 96, 64]))
