"""The same questions to every supported family: tokens, maps, packs, early ends, geometry."""

import re
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from families import all_families
from fastground import packing
from fastground.attention import answers, attention_maps, attention_of_encoded, said
from fastground.capture import capture
from fastground.layouts import moved
from fastground.models import LVLM, wrap
from fastground.types import Recipe
from PIL import Image

TEXTS = ["the red mug", "a dog on the left of the small blue mug", "x"]
CASES = [
    pytest.param(family, blocks, id=f"{family}-{blocks}" if len(family.blocks) > 1 else str(family))
    for family in all_families()
    for blocks in family.blocks
]
FOLLOWING = [family for family in all_families() if family.caches and not family.packs]
FAMILIES = [pytest.param(family, id=str(family)) for family in all_families()]


def picture(size=(31, 20), seed=0):
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(0, 256, (*size[::-1], 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(colours.numpy())


@cache
def made(family, seed=0) -> LVLM:
    model, processor = family.build(seed)
    return wrap(model, processor, checkpoint=family.name)


def left_padded(inputs):
    """The same batch with its padding before the words instead of after."""
    shifts = (inputs["attention_mask"] == 0).sum(1).tolist()
    length = inputs["input_ids"].shape[1]
    moved = dict(inputs)
    for name, value in inputs.items():
        if name in ("input_ids", "attention_mask"):
            rows = [row.roll(shift) for row, shift in zip(value, shifts, strict=True)]
            moved[name] = torch.stack(rows)
        elif name == "position_ids":
            rows = [value[..., i, :].roll(shift, -1) for i, shift in enumerate(shifts)]
            moved[name] = torch.stack(rows, dim=-2)
    assert moved["input_ids"].shape[1] == length
    return moved, shifts


def moved_layout(layout, shift):
    from dataclasses import replace

    whole = layout.all_tokens and tuple(i + shift for i in layout.all_tokens)
    return replace(layout, tokens=tuple(i + shift for i in layout.tokens), all_tokens=whole)


@torch.no_grad()
def eager_rows(lvlm, inputs, rows, layouts):
    """(rows, heads, cells) and (rows, heads): what the model's own eager attention says."""
    config = lvlm.model.config
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    parts = {"": config, **{name: part for name, part in parts.items() if part is not None}}
    before = {name: part._attn_implementation or "sdpa" for name, part in parts.items()}
    lvlm.model.set_attn_implementation("eager")
    try:
        attentions = lvlm.model(**inputs, output_attentions=True, use_cache=False).attentions
    finally:
        lvlm.model.set_attn_implementation(before)
    count = lvlm.architecture["num_heads"]  # as many as the layers have that are read
    whole = torch.cat([a for a in attentions if a is not None and a.shape[1] == count], dim=1)
    found = [whole[b, :, position] for b, position in rows.tolist()]
    maps = [r[:, list(layouts[b].tokens)] for r, b in zip(found, rows[:, 0].tolist(), strict=True)]
    sums = [
        r[:, list(layouts[b].all_tokens or layouts[b].tokens)].sum(1)
        for r, b in zip(found, rows[:, 0].tolist(), strict=True)
    ]
    return torch.stack(maps), torch.stack(sums)


def asked(lvlm, blocks="base", size=(31, 20), texts=TEXTS):
    """(inputs, rows, layouts) of one sequence an expression."""
    encoded = lvlm.encode(picture(size), texts, Recipe(blocks=blocks))
    inputs, rows = packing.separate(encoded)
    inputs |= lvlm.token_inputs(inputs["input_ids"])
    return inputs, rows, [encoded.layout] * len(texts)


def assert_answers_are_those_of_generate(lvlm, image, texts):
    """Alone and in a pack."""
    lvlm.model.generation_config.eos_token_id = None
    encoded = lvlm.encode(image, texts[:1], Recipe())
    ids = encoded.token_ids[0][None]
    with torch.no_grad():
        said = lvlm.model.generate(
            input_ids=ids, **encoded.image_inputs, **lvlm.token_inputs(ids), max_new_tokens=4,
            do_sample=False, attention_mask=torch.ones_like(ids),
        )[0, ids.shape[1]:]  # fmt: skip
    tokenizer = lvlm.processor.tokenizer
    assert tokenizer.eos_token_id not in said
    tokenizer.decode = lambda ids, **_: " ".join(map(str, ids))  # all of them are seen
    want = tuple(map(str, said.tolist()))
    assert answers(lvlm, image, texts[:1], max_new_tokens=4) == [want]
    assert answers(lvlm, image, texts, max_new_tokens=4)[0] == want


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_the_processor(family):
    lvlm = made(family)
    image, recipe = picture(), Recipe()
    encoded = lvlm.encode(image, TEXTS[:1], recipe)
    before, after = lvlm.words(recipe)
    prompt = before + TEXTS[0] + "." + after
    begins = bool(lvlm.processor.tokenizer.bos_token) and prompt.startswith(
        lvlm.processor.tokenizer.bos_token
    )
    own = lvlm.processor(
        images=[image], text=[prompt], add_special_tokens=not begins, return_tensors="pt"
    )
    assert encoded.token_ids[0].tolist() == own["input_ids"][0].tolist()
    for name, value in encoded.image_inputs.items():
        assert torch.equal(value, own[name].to(value.dtype)), name
    image_id = lvlm.image_token_id
    cells = [int(encoded.token_ids[0][i]) for i in encoded.layout.tokens]
    assert set(cells) == {image_id}
    whole = encoded.layout.all_tokens or encoded.layout.tokens
    assert set(encoded.layout.tokens) <= set(whole)
    image_tokens = (encoded.token_ids[0] == image_id).nonzero().flatten().tolist()
    assert set(image_tokens) <= set(whole)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("family", "blocks"), CASES)
def test_maps_equal_eager_attention(family, blocks, side):
    if side == "left" and not family.bears_left_padding():
        pytest.skip("this transformers makes NaN of padding before the words")
    lvlm = made(family)
    inputs, rows, layouts = asked(lvlm, blocks)
    if side == "left":
        inputs, shifts = left_padded(inputs)
        rows = rows + torch.tensor([[0, shift] for shift in shifts])
        layouts = [moved_layout(a, shift) for a, shift in zip(layouts, shifts, strict=True)]
        inputs |= lvlm.token_inputs(inputs["input_ids"])
    assert not inputs["attention_mask"].all()
    want, sums = eager_rows(lvlm, inputs, rows, layouts)
    assert want.max() > 0.1  # not flat, or the comparison would say little
    with torch.no_grad(), capture(lvlm.model, rows=rows, layouts=layouts) as captured:
        lvlm.model(**inputs, use_cache=False)
    torch.testing.assert_close(captured.maps.maps.flatten(2), want, atol=2e-6, rtol=0)
    torch.testing.assert_close(captured.sums, sums, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("family", "blocks"), CASES)
def test_layouts_of_another_prompt_follow_the_image(family, blocks):
    lvlm = made(family)
    inputs, _, layouts = asked(lvlm, blocks, texts=TEXTS[:1])
    others = [moved_layout(layout, 5) for layout in layouts]
    named = getattr(lvlm.model.config, "image_token_id", None) is not None
    assert named or family.name == "phi4_multimodal"
    assert moved(others, lvlm.model.config, inputs, 0) == (layouts if named else others)
    assert moved(layouts, lvlm.model.config, inputs, 0) == layouts


@pytest.mark.parametrize("family", FAMILIES)
def test_shifted_positions_would_be_seen(family):
    # The negative control: with every position five further, maps differ by more than tolerances.
    lvlm = made(family)
    inputs, rows, layouts = asked(lvlm)
    want, _ = eager_rows(lvlm, inputs, rows, layouts)
    positions = inputs.get("position_ids")
    if positions is None:
        positions = torch.arange(inputs["input_ids"].shape[1]).expand(len(rows), -1)
    first = min(layouts[0].tokens)
    stretched = positions + 5 * (torch.arange(positions.shape[-1]) > first)
    other, _ = eager_rows(lvlm, {**inputs, "position_ids": stretched}, rows, layouts)
    assert ((other - want).abs().max() > 1e-3) == family.positions


@contextmanager
def counted(lvlm):
    """A list that gets how many tokens each forward of the language model computes."""
    tokens: list[int] = []

    def count(module, args, keywords):
        embedded = keywords.get("inputs_embeds")
        given = keywords["input_ids"] if embedded is None else embedded[..., 0]
        tokens.append(given.numel())

    hook = lvlm.model.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    yield tokens
    hook.remove()


@pytest.mark.parametrize("query", ["last_expression", "phrase_mean", "first_generated"])
@pytest.mark.parametrize(("family", "blocks"), CASES)
def test_together_equals_separate(family, blocks, query):
    """Packed, or behind the image's cached keys: its tokens are computed once, where they may."""
    says_words = query != "first_generated" or family.name != "molmo2"
    lvlm = made(family, seed=0 if says_words else 2)  # of seed 0 it says a token of its images
    assert lvlm.shares_prefix == family.packs and lvlm.caches_prefix == family.caches
    recipe = Recipe(blocks=blocks, query=query)
    encoded = lvlm.encode(picture(), TEXTS, recipe)
    apart = attention_maps(lvlm, encoded, TEXTS, recipe=recipe, packed=False)
    with counted(lvlm) as tokens:
        together = attention_maps(lvlm, encoded, TEXTS, recipe=recipe)
    torch.testing.assert_close(together.maps, apart.maps, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.sums, apart.sums, atol=1e-5, rtol=0)
    longest = max(map(len, encoded.token_ids)) - encoded.prefix_length
    once = encoded.prefix_length + len(TEXTS) * longest
    if query != "first_generated":
        assert (sum(tokens) <= once) == (family.packs or family.caches)
    elif family in FOLLOWING:  # words are said by a forward of their own, behind the same keys
        assert sum(tokens) == once + len(TEXTS) * (longest + 1)


@pytest.mark.parametrize("family", FOLLOWING, ids=str)
def test_what_is_said_behind_the_image_is_what_is_said_apart(family):
    lvlm = made(family)
    apart = said(lvlm, picture(), TEXTS, max_new_tokens=4, packed=False)
    assert said(lvlm, picture(), TEXTS, max_new_tokens=4) == apart


@pytest.mark.parametrize(("family", "blocks"), CASES)
def test_images_of_several_sizes_share_a_forward(family, blocks):
    lvlm = made(family)
    recipe = Recipe(blocks=blocks)
    images = [picture((31, 20)), picture((20, 44), seed=1), picture((31, 20), seed=2)]
    alone = [attention_maps(lvlm, image, TEXTS[:2], recipe=recipe) for image in images]
    encoded = [lvlm.encode(image, TEXTS[:2], recipe) for image in images]
    for packed in (True, False):
        many = attention_of_encoded(lvlm, encoded, recipe=recipe, packed=packed, max_tokens=1 << 16)
        for found, want in zip(many, alone, strict=True):
            assert found.layout == want.layout
            torch.testing.assert_close(found.maps, want.maps, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_early_end_changes_nothing(family):
    lvlm = made(family)
    inputs, rows, layouts = asked(lvlm)
    with torch.no_grad():
        plain = lvlm.model(**inputs, use_cache=False).logits
        with capture(lvlm.model, rows=rows, layouts=layouts) as whole:
            logits = lvlm.model(**inputs, use_cache=False).logits
        deepest = whole.maps.heads[len(whole.maps.heads) // 2].layer
        with capture(lvlm.model, rows=rows, layouts=layouts, stop_after=deepest) as ended:
            lvlm.model(**inputs, use_cache=False)
            raise AssertionError("the forward must have ended the block")
        again = lvlm.model(**inputs, use_cache=False).logits
    tokens = inputs["attention_mask"].bool()  # nobody asks what follows padding
    assert torch.equal(logits[tokens], plain[tokens])
    assert torch.equal(again, plain)
    assert torch.equal(ended.maps.maps, whole.maps.select(ended.maps.heads).maps)


@pytest.mark.parametrize("family", FAMILIES)
def test_attentions_of_the_model_are_not_made_beside_capture(family):
    lvlm = made(family)
    inputs, rows, layouts = asked(lvlm, texts=TEXTS[:1])
    says = "output_attentions must not be asked for inside capture"
    with (
        pytest.raises(ValueError, match=says),
        torch.no_grad(),
        capture(lvlm.model, rows=rows, layouts=layouts),
    ):
        lvlm.model(**inputs, output_attentions=True)


@pytest.mark.parametrize("size", [(1, 1), (4000, 1), (1, 4000)], ids=str)
@pytest.mark.parametrize(("family", "blocks"), CASES)
def test_an_image_of_any_shape_is_read_or_refused_in_words(family, blocks, size):
    lvlm, recipe = made(family), Recipe(blocks=blocks)
    try:
        found = attention_maps(lvlm, picture(size), TEXTS[:1], recipe=recipe)
    except ValueError as error:
        assert re.match(r"image must .* but .*; (where|enlarge|use)", str(error)), error
        return
    assert found.layout.image_size == size[::-1] and found.layout.valid().any()
    assert bool(found.sums.isfinite().all()) and found.sums.min() > 0


class _Seen(Exception):
    pass


@torch.no_grad()
def embedded(lvlm, image, recipe):
    """(cells, width): what the language model gets of each cell, and the layout.

    Chameleon's finds the words for an image itself; Granite's gets zeros, and adds in its layers
    what it is to see.
    """
    encoded = lvlm.encode(image, TEXTS[:1], recipe)
    inputs, _ = packing.separate(encoded)
    inputs |= lvlm.token_inputs(inputs["input_ids"])
    got = []

    def look(module, args, keywords):
        states = args[0] if args else keywords["inputs_embeds"]
        if states is None:  # the decoder looks itself, before its first layer
            return
        added = (keywords.get("deepstack_features") or {}).values()
        mask = keywords.get("vision_mask")
        parts = [torch.zeros_like(states).masked_scatter(mask, features) for features in added]
        got.append(torch.cat([states, *parts], dim=-1))
        raise _Seen

    decoder = lvlm.model.get_decoder()
    readers = [decoder, *getattr(decoder, "layers", ())[:1]]
    readers = readers[1:] if hasattr(decoder, "vqmodel") else readers
    hooks = [part.register_forward_pre_hook(look, with_kwargs=True) for part in readers]
    try:
        with pytest.raises(_Seen):
            lvlm.model(**inputs, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return got[0][0][list(encoded.layout.tokens)].float(), encoded.layout


SIZES = [
    pytest.param(family, blocks, size, id=f"{family}-{blocks}-{size[0]}x{size[1]}")
    for family in all_families()
    for blocks in family.blocks
    for size in family.sizes
]


@pytest.mark.parametrize(("family", "blocks", "size"), SIZES)
def test_a_painted_patch_changes_its_own_cell_most(family, blocks, size):
    lvlm = made(family)
    recipe = Recipe(blocks=blocks)
    ground = Image.new("RGB", size, (90, 120, 60))
    plain, layout = embedded(lvlm, ground, recipe)
    grid_w = layout.grid[1]
    valid = layout.valid().nonzero().tolist()
    for row, column in (valid[0], valid[len(valid) // 3], valid[len(valid) // 2], valid[-1]):
        box = layout.to_pixels(torch.tensor([[column, row, column + 1, row + 1.0]]))[0]
        x1, y1, x2, y2 = box.tolist()
        # Whole pixels, at least one: painted is what they cover.
        left, top = int(x1), int(y1)
        right, bottom = max(left + 1, round(x2)), max(top + 1, round(y2))
        painted = ground.copy()
        painted.paste((250, 10, 200), (left, top, right, bottom))
        changed, _ = embedded(lvlm, painted, recipe)
        most = int((changed - plain).norm(dim=1).argmax())
        found = most // grid_w, most % grid_w
        # The cell's middle lies in what was painted, give or take half a cell.
        y, x = (
            layout.origin[1 - axis] + (found[axis] + 0.5) * layout.cell_size[1 - axis]
            for axis in (0, 1)
        )
        half_w, half_h = layout.cell_size[0] / 2, layout.cell_size[1] / 2
        assert left - half_w <= x <= right + half_w, (found, (row, column))
        assert top - half_h <= y <= bottom + half_h, (found, (row, column))


@pytest.mark.parametrize(("family", "blocks", "size"), SIZES)
def test_boxes_go_to_pixels_and_back(family, blocks, size):
    layout = made(family).encode(picture(size), TEXTS[:1], Recipe(blocks=blocks)).layout
    width, height = size
    assert layout.image_size == (height, width)
    valid = layout.valid()
    assert valid.any()
    rows, columns = valid.nonzero().unbind(1)
    whole = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()[
        None
    ]
    covered = layout.to_pixels(whole)[0]
    cell_w, cell_h = layout.cell_size
    # The valid cells cover the image but for half a cell at each side.
    assert covered[0] <= cell_w / 2 + 1e-3
    assert covered[1] <= cell_h / 2 + 1e-3
    assert covered[2] >= width - cell_w / 2 - 1e-3
    assert covered[3] >= height - cell_h / 2 - 1e-3
    y, x = layout.pixel_centers()
    for row, column in valid.nonzero().tolist()[:: max(1, int(valid.sum()) // 7)]:
        box = layout.to_pixels(torch.tensor([[column, row, column + 1.0, row + 1.0]]))[0]
        middle_x, middle_y = float(box[0] + box[2]) / 2, float(box[1] + box[3]) / 2
        back_x = float(x[min(width - 1, int(middle_x))])
        back_y = float(y[min(height - 1, int(middle_y))])
        assert abs(back_x - (column + 0.5)) <= 0.5 + 0.5 / cell_w
        assert abs(back_y - (row + 0.5)) <= 0.5 + 0.5 / cell_h
