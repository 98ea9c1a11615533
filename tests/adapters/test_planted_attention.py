"""A head planted in every family's own model, and the box that Grounder makes of it.

The model's true forward runs, packed and stopped early as Grounder has it. In one layer queries and
keys are replaced, so that the softmax itself looks where the picture is yellow:

    a yellow rectangle on blue -> processor, vision tower -> what the language model gets of a token
      -> is that nearer to what it gets of yellow, or of blue?
      -> if of yellow, the token's key answers the query -> heads, box

Where a token's place in the image is, the layout alone can tell. The rectangle's edges are those of
cells, so the box must be the rectangle.
"""

import pytest
import torch
from fastground import Grounder
from fastground.capture import Capture
from fastground.types import HeadId, HeadRanking, RankedHead, Recipe
from PIL import Image
from test_adapters import CASES, TEXTS, embedded, made

SHARP = Recipe(sigma=0, k=2)
SIZES = [(640, 480), (480, 640)]


def rectangle(layout):
    """x1, y1, x2, y2 in whole pixels: about a quarter of the cells in the image, off the middle."""
    rows, columns = (layout.valid().any(axis).nonzero().flatten() for axis in (1, 0))
    ends = []
    for places in (columns, rows):
        first, count = int(places[0]), len(places)
        ends.append((first + count // 2, first + count // 2 + max(1, count // 3)))
    (x1, x2), (y1, y2) = ends
    box = layout.to_pixels(torch.tensor([x1, y1, x2, y2], dtype=torch.float32))
    return tuple(box.round().int().tolist())


def planted_layer(lvlm):
    """The last that sees all tokens, where not all do."""
    kinds = getattr(lvlm.model.config.get_text_config(decoder=True), "layer_types", None)
    whole = [n for n in lvlm.layers_with_heads if kinds and kinds[n] == "full_attention"]
    return (whole or lvlm.layers_with_heads)[-1]


def ranking(lvlm):
    heads = [HeadId(planted_layer(lvlm), head) for head in (1, 3)]
    return HeadRanking(
        heads=tuple(RankedHead(head, 1.0, 0.0, 0.9, 0.1) for head in heads),
        tau=0.2, curve=(), num_samples=1, trials=(), recipe=SHARP, checkpoint=lvlm.checkpoint,
        architecture=lvlm.architecture, dataset="planted", split="train",
    )  # fmt: skip


def plant(monkeypatch, layer, places):
    """Let queries of one layer look e^8 times as much at the keys in these places of a sequence.

    Returns a list, which will hold the number of sequences of each forward.
    """
    attend = Capture.attend
    sequences = []

    def planted(self, own, module, query, key, value, mask, **keywords):
        if getattr(module, "layer_idx", None) == layer:
            scale = keywords.get("scaling") or query.shape[-1] ** -0.5
            query, key = torch.zeros_like(query), torch.zeros_like(key)
            query[..., 0] = 1 / scale
            key[:, :, places, 0] = 8
            sequences.append(len(query))
        return attend(self, own, module, query, key, value, mask, **keywords)

    monkeypatch.setattr(Capture, "attend", planted)
    return sequences


@pytest.mark.parametrize("size", SIZES, ids=["landscape", "portrait"])
@pytest.mark.parametrize(("family", "blocks"), CASES)
def test_a_planted_head_gives_its_rectangle(family, blocks, size, monkeypatch):
    if family.name in ("glm5_next", "qwen4_exp"):
        pytest.skip("an index of its layers' own hides most cells")
    lvlm, recipe = made(family), SHARP.replace(blocks=blocks)
    blue, yellow = (Image.new("RGB", size, colour) for colour in ("blue", "yellow"))
    dark, layout = embedded(lvlm, blue, recipe)
    bright, _ = embedded(lvlm, yellow, recipe)
    box = rectangle(layout)
    picture = blue.copy()
    picture.paste((255, 255, 0), box)
    shown, _ = embedded(lvlm, picture, recipe)
    nearer = (shown - bright).norm(dim=1) < (shown - dark).norm(dim=1)
    places = [place for place, near in zip(layout.tokens, nearer.tolist(), strict=True) if near]
    calls = plant(monkeypatch, planted_layer(lvlm), places)
    found = Grounder(lvlm, ranking(lvlm), recipe=recipe)(picture, TEXTS)
    assert calls == ([1] if family.packs else [1, len(TEXTS)] if family.caches else [len(TEXTS)])
    want = torch.tensor(box)
    for grounding in found:
        assert grounding.found and (grounding.box - want).abs().max() <= 1
