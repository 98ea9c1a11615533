"""Packed forwards equal separate ones, and the model's own eager attention."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from fastground import packing
from fastground.attention import answers, attention_maps, attention_of_encoded, right_answers
from fastground.models import wrap
from fastground.seam import empty_cache, spread
from fastground.types import Recipe, Sample
from PIL import Image
from random_llava import random_llava

TEXTS = ["the red mug", "a dog on the left of the small blue mug", "x", "the mug what is the mug"]
RECIPE = Recipe()


def picture(seed=0):
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(0, 256, (20, 31, 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(colours.numpy())


def make(seed=0, **settings):
    return wrap(*random_llava(seed, **settings), checkpoint="random")


def with_window(window=12):
    from transformers import MistralConfig

    return wrap(*random_llava(0, text=MistralConfig, sliding_window=window))


def recurrent():
    from transformers import Lfm2Config

    kinds = ["conv", "full_attention", "conv", "full_attention", "conv"]
    return wrap(*random_llava(0, text=Lfm2Config, layers=5, layer_types=kinds))


def eager_maps(lvlm, encoded):
    """(N, layers * heads, 4, 4) of eager output_attentions, one plain forward an expression."""
    lvlm.model.set_attn_implementation("eager")
    found = []
    for ids, asking in zip(encoded.token_ids, encoded.asking, strict=True):
        with torch.no_grad():
            attentions = lvlm.model(
                input_ids=ids[None], **encoded.image_inputs, output_attentions=True
            ).attentions
        rows = torch.cat(attentions, dim=1)[0, :, asking[-1]]
        found.append(rows[:, list(encoded.layout.tokens)].unflatten(-1, (4, 4)))
    lvlm.model.set_attn_implementation("sdpa")
    return torch.stack(found)


@pytest.mark.parametrize(("seed", "kv_heads"), [(0, 1), (1, 2), (2, 4), (3, 2)])
def test_packed_logits_and_maps_equal_separate_ones(seed, kv_heads):
    lvlm = make(seed, kv_heads=kv_heads)
    encoded = lvlm.encode(picture(seed), TEXTS, RECIPE)
    packed, rows = packing.pack(encoded)
    apart, places = packing.separate(encoded)
    with torch.no_grad():
        together = lvlm.model(**packed).logits[rows[:, 0], rows[:, 1]]
        alone = lvlm.model(**apart).logits[places[:, 0], places[:, 1]]
    assert alone.std() > 0.1
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    want = eager_maps(lvlm, encoded)
    for choice in ({}, {"packed": False}, {"max_tokens": 30}):
        found = attention_maps(lvlm, picture(seed), TEXTS, recipe=RECIPE, **choice)
        torch.testing.assert_close(found.maps, want, atol=2e-6, rtol=0)
        torch.testing.assert_close(found.sums, want.sum((-2, -1)), atol=2e-6, rtol=0)


def test_attention_that_is_nan_is_said_with_the_way_out():
    lvlm = make()
    key = lvlm.model.model.language_model.layers[1].self_attn.k_proj
    torch.nn.init.constant_(key.weight, torch.inf)
    with pytest.raises(ValueError, match=r"gave NaN; if float16 overflowed, .*bfloat16"):
        attention_maps(lvlm, picture(), TEXTS, recipe=RECIPE)


def test_branches_do_not_see_one_another():
    lvlm = make()
    first = attention_maps(lvlm, picture(), [TEXTS[0], TEXTS[1]], recipe=RECIPE)
    other = attention_maps(lvlm, picture(), [TEXTS[0], "x x x x"], recipe=RECIPE)
    torch.testing.assert_close(first.maps[0], other.maps[0], atol=1e-6, rtol=0)
    assert (first.maps[1] - other.maps[1]).abs().max() > 1e-2


def test_a_pack_is_one_sequence_with_restarted_positions():
    lvlm = make()
    encoded = lvlm.encode(picture(), TEXTS[:2], RECIPE)
    inputs, rows = packing.pack(encoded)
    n, lengths = (
        encoded.prefix_length,
        [len(ids) - encoded.prefix_length for ids in encoded.token_ids],
    )
    assert n == 17
    assert inputs["input_ids"].shape == (1, n + sum(lengths))
    expected = [*range(n), *range(n, n + lengths[0]), *range(n, n + lengths[1])]
    assert inputs["position_ids"][0].tolist() == expected
    mask = inputs["attention_mask"][0, 0]
    assert mask.dtype == torch.bool
    assert mask.diagonal().all()
    assert not mask.triu(1).any()
    assert not mask[n + lengths[0] :, n : n + lengths[0]].any()
    assert mask[n:, :n].all()
    period = encoded.token_ids[0][-1]
    assert (inputs["input_ids"][rows[:, 0], rows[:, 1]] == period).all()
    assert inputs["pixel_values"].shape[0] == 1


def test_the_token_budget_spills_into_further_packs():
    encoded = make().encode(picture(), TEXTS, RECIPE)
    costs = [len(ids) - encoded.prefix_length for ids in encoded.token_ids]
    assert costs == [4, 11, 2, 7]
    parts = packing.split(encoded, max_tokens=17 + 15)
    assert [part.expressions for part in parts] == [tuple(TEXTS[:2]), tuple(TEXTS[2:])]
    for part in parts:
        assert packing.pack(part)[0]["input_ids"].shape[1] <= 32
    alone = packing.split(encoded, max_tokens=1)
    assert [part.expressions for part in alone] == [(text,) for text in TEXTS]
    assert len(packing.split(encoded, packed=False, max_tokens=60)) == 2
    beside = packing.split(encoded, max_tokens=30)  # of which the image leaves 13
    assert [part.expressions for part in beside] == [tuple(TEXTS[:2]), tuple(TEXTS[2:])]
    assert [part.expressions for part in packing.split(encoded)] == [tuple(TEXTS)]


def test_eager_models_give_the_same_maps():
    lvlm = make()
    want = attention_maps(lvlm, picture(), TEXTS, recipe=RECIPE)
    lvlm.model.set_attn_implementation("eager")
    found = attention_maps(lvlm, picture(), TEXTS, recipe=RECIPE)
    torch.testing.assert_close(found.maps, want.maps, atol=2e-6, rtol=0)
    assert lvlm.model.config.text_config._attn_implementation == "eager"


def test_bfloat16_models_give_float32_maps():
    lvlm = make()
    lvlm.model.to(torch.bfloat16)
    found = attention_maps(lvlm, picture(), TEXTS, recipe=RECIPE)
    assert found.maps.dtype == found.sums.dtype == torch.float32
    apart = attention_maps(lvlm, picture(), TEXTS, recipe=RECIPE, packed=False)
    torch.testing.assert_close(found.maps, apart.maps, atol=0.1, rtol=0)
    first = slice(0, 4)  # eager rounds its logits to bfloat16 as well
    want = eager_maps(lvlm, lvlm.encode(picture(), TEXTS, RECIPE)).float()
    torch.testing.assert_close(found.maps[:, first], want[:, first], atol=0.02, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [make, with_window], ids=["packed", "behind the image"])
def test_a_gpu_gives_the_maps_of_the_cpu(monkeypatch, kind):
    lvlm = kind()
    want = attention_maps(lvlm, picture(), TEXTS, recipe=RECIPE)
    lvlm.model.cuda()
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # the tower's convolution
    for choice in ({}, {"packed": False}, {"heads": [(2, 3), (0, 1)]}):
        found = attention_maps(lvlm, picture(), TEXTS, recipe=RECIPE, **choice)
        assert found.maps.is_cuda
        kept = want.select(choice["heads"]) if choice.get("heads") else want
        torch.testing.assert_close(found.maps.cpu(), kept.maps, atol=1e-4, rtol=0)
    assert answers(lvlm, picture(), TEXTS) == answers(kind(), picture(), TEXTS)


@contextmanager
def sequences(lvlm):
    """A list that gets (sequences, tokens) of each forward of the language model."""
    shapes: list[tuple[int, int]] = []
    hook = lvlm.model.get_decoder().register_forward_pre_hook(
        lambda _, args, given: shapes.append(tuple(given["inputs_embeds"].shape[:2])),
        with_kwargs=True,
    )
    yield shapes
    hook.remove()


@pytest.mark.parametrize("kind", [with_window, recurrent])
def test_expressions_that_may_not_be_packed_are_asked_behind_the_image(kind):
    lvlm = kind()
    assert not lvlm.shares_prefix and with_window(None).shares_prefix
    encoded = lvlm.encode(picture(), TEXTS, RECIPE)
    want = eager_maps(lvlm, encoded)
    behind = {5000: [(4, 11)], 60: [(2, 11), (2, 7)], 1: [(1, 4), (1, 11), (1, 2), (1, 7)]}
    for budget, expected in behind.items():
        with sequences(lvlm) as ran:
            found = attention_maps(lvlm, encoded, TEXTS, recipe=RECIPE, max_tokens=budget)
        assert ran == [(1, encoded.prefix_length), *expected]
        torch.testing.assert_close(found.maps, want, atol=2e-6, rtol=0)
        torch.testing.assert_close(found.sums, want.sum((-2, -1)), atol=2e-6, rtol=0)


def test_images_of_one_expression_share_a_forward_beside_those_of_several():
    lvlm = with_window()
    counts = (1, 1, 3, 1, 2, 2)
    asked = [(picture(seed), TEXTS[:count]) for seed, count in enumerate(counts)]
    want = [attention_maps(lvlm, *pair, recipe=RECIPE) for pair in asked]
    encoded = (lvlm.encode(*pair, RECIPE) for pair in asked)
    with sequences(lvlm) as ran:
        found = list(attention_of_encoded(lvlm, encoded, recipe=RECIPE))
    assert [batch for batch, _ in ran] == [2, 1, 3, 1, 1, 2, 1, 2]
    for maps, alone in zip(found, want, strict=True):
        torch.testing.assert_close(maps.maps, alone.maps, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "forwards"), [(make, 1), (with_window, 2)], ids=["packed", "behind the image"]
)
def test_chosen_heads_stop_each_forward_after_the_deepest(kind, forwards):
    lvlm = kind()
    whole = attention_maps(lvlm, picture(), TEXTS, recipe=RECIPE)
    ran = []
    hooks = [
        layer.mlp.register_forward_hook(lambda *_, n=n: ran.append(n))
        for n, layer in enumerate(lvlm.model.model.language_model.layers)
    ]
    heads = [(1, 2), (0, 3)]
    found = attention_maps(lvlm, picture(), TEXTS, recipe=RECIPE, heads=heads)
    for hook in hooks:
        hook.remove()
    assert ran == [0] * forwards
    torch.testing.assert_close(found.maps, whole.select(heads).maps, atol=1e-6, rtol=0)
    for wrong in ([(9, 0)], [(-1, 0)], [(0, 4)], []):
        with pytest.raises(ValueError, match=r"^heads must"):
            attention_maps(lvlm, picture(), TEXTS, recipe=RECIPE, heads=wrong)


def test_last_prompt_and_last_expression_differ_in_a_chat_only():
    from random_llava import CHAT

    lvlm = make()
    lvlm.processor.chat_template = CHAT
    for template, differ in (("plain", False), ("chat", True)):
        by_query = [
            attention_maps(
                lvlm, picture(), ["the mug"], recipe=Recipe(template=template, query=query)
            ).maps
            for query in ("last_expression", "last_prompt")
        ]
        assert ((by_query[0] - by_query[1]).abs().max() > 1e-3) == differ


@pytest.mark.parametrize("packed", [True, False])
def test_a_phrase_asks_with_the_mean_of_all_its_tokens(packed):
    lvlm = make()
    recipe = Recipe(query="phrase_mean", ensure_period=False)
    found = attention_maps(lvlm, picture(), TEXTS, recipe=recipe, packed=packed)
    encoded = lvlm.encode(picture(), TEXTS, recipe)
    assert [len(asks) for asks in encoded.asking] == [len(text.split()) for text in TEXTS]
    each = [
        eager_maps(lvlm, replace(encoded, asking=asking))
        for asking in zip_longest_by_last(encoded.asking)
    ]
    for i, asks in enumerate(encoded.asking):
        want = torch.stack([maps[i] for maps in each[: len(asks)]]).mean(0)
        torch.testing.assert_close(found.maps[i], want, atol=2e-6, rtol=0)
    assert (
        found.maps - attention_maps(lvlm, picture(), TEXTS, recipe=RECIPE).maps
    ).abs().max() > 0.01


def zip_longest_by_last(asking):
    """The first token of every expression, the second, ...; a short one repeats its last."""
    for i in range(max(map(len, asking))):
        yield tuple((asks[min(i, len(asks) - 1)],) for asks in asking)


@pytest.mark.parametrize("packed", [True, False])
def test_the_first_word_that_the_model_says_asks(packed):
    lvlm = make()
    recipe = Recipe(query="first_generated")
    found = attention_maps(lvlm, picture(), TEXTS, recipe=recipe, packed=packed)
    encoded = lvlm.encode(picture(), TEXTS, RECIPE)
    longer = []
    for ids in encoded.token_ids:
        with torch.no_grad():
            logits = lvlm.model(input_ids=ids[None], **encoded.image_inputs).logits
        longer.append(torch.cat([ids, logits[0, -1:].argmax(-1)]))
    asking = tuple((len(ids) - 1,) for ids in longer)
    want = eager_maps(lvlm, replace(encoded, token_ids=tuple(longer), asking=asking))
    torch.testing.assert_close(found.maps, want, atol=2e-6, rtol=0)


@pytest.mark.parametrize("query", ["last_expression", "phrase_mean", "first_generated"])
@pytest.mark.parametrize("packed", [True, False])
def test_several_images_share_a_forward_as_the_budget_allows(packed, query):
    lvlm = make()
    recipe = Recipe(query=query)
    asked = [(picture(seed), TEXTS[: 1 + seed % 4]) for seed in range(5)]
    want = [attention_maps(lvlm, *pair, recipe=recipe) for pair in asked]
    forwards = []
    hook = lvlm.model.register_forward_hook(lambda *_: forwards.append(1))
    ran = {}
    for budget in (25, 90, 5000):
        forwards.clear()
        encoded = (lvlm.encode(*pair, recipe) for pair in asked)
        found = attention_of_encoded(lvlm, encoded, recipe=recipe, packed=packed, max_tokens=budget)
        for maps, alone in zip(found, want, strict=True):
            torch.testing.assert_close(maps.maps, alone.maps, atol=1e-5, rtol=0)
            torch.testing.assert_close(maps.sums, alone.sums, atol=1e-5, rtol=0)
        ran[budget] = len(forwards)
    hook.remove()
    if query == "first_generated":  # the forwards that say the words are not left early
        assert ran[25] > ran[90] > ran[5000] == 1
    assert list(attention_of_encoded(lvlm, [], recipe=recipe)) == []


def test_a_batch_keeps_to_its_budget():
    lvlm = make()
    parts = [lvlm.encode(picture(), TEXTS[: 1 + n % 4], RECIPE) for n in range(6)]
    for packed in (True, False):
        made = packing.pack if packed else packing.separate
        for budget in (20, 60, 130, 1000):
            batches = list(packing.batches(parts, packed=packed, max_tokens=budget))
            assert [part for batch in batches for part in batch] == parts
            for batch in batches:
                assert len(batch) == 1 or made(*batch)[0]["input_ids"].numel() <= budget
        assert len(batches) == 1


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("seed", [0, 5])
def test_answers_are_what_generate_says(seed, implementation, packed):
    lvlm = make(seed)
    lvlm.model.set_attn_implementation(implementation)
    said = answers(lvlm, picture(), TEXTS, max_new_tokens=4, packed=packed)
    tokenizer, want = lvlm.processor.tokenizer, []
    for text in TEXTS:
        inputs = lvlm.processor(images=picture(), text=f"<image>\n{text}.", return_tensors="pt")
        ids = lvlm.model.generate(**inputs, max_new_tokens=4, do_sample=False)
        new = ids[0, inputs["input_ids"].shape[1] :]
        want.append(tuple(tokenizer.decode(new, skip_special_tokens=True).split()))
    assert said == want
    assert len(set(said)) > 1


@pytest.mark.parametrize("kind", [with_window, recurrent])
def test_answers_are_said_behind_the_image_computed_once(kind):
    lvlm = kind()
    apart = answers(lvlm, picture(), TEXTS, max_new_tokens=4, packed=False)
    with sequences(lvlm) as ran:
        assert answers(lvlm, picture(), TEXTS, max_new_tokens=4) == apart
    assert ran == [(1, 17), *((1, n) for length in (4, 11, 2, 7) for n in (length, 1, 1, 1))]
    assert len(set(apart)) > 1


def test_a_cache_is_spread_by_views_of_its_keys_and_stays_as_it_was():
    model, cached = recurrent().model, empty_cache(recurrent().model)
    ids = torch.arange(1, 7)[None]
    [(name, cache)] = cached.items()
    with torch.no_grad():
        model(input_ids=ids, **cached, use_cache=True)
        states = [cache.layers[n].conv_states[0].clone() for n in (0, 2, 4)]
        [several] = spread(cached, 3).values()
        assert several.layers[1].keys.data_ptr() == cache.layers[1].keys.data_ptr()
        assert several.layers[1].values.shape[0] == several.layers[0].conv_states[0].shape[0] == 3
        want = model(input_ids=torch.cat([ids, ids[:, :2]], dim=1)).logits[:, -2:]
        for again in (several, spread(cached, 3)[name]):
            found = model(input_ids=ids[:, :2].expand(3, -1), **{name: again}, use_cache=True)
            torch.testing.assert_close(found.logits, want.expand(3, -1, -1), atol=1e-5, rtol=0)
    assert cache.get_seq_length() == 6 and cache.layers[1].keys.shape[0] == 1
    for n, state in zip((0, 2, 4), states, strict=True):
        assert torch.equal(cache.layers[n].conv_states[0], state)
    assert spread({}, 3) == {}


def test_right_answers_are_those_said_word_for_word():
    lvlm = make(5)
    said = answers(lvlm, picture(), TEXTS, max_new_tokens=3)
    truths = [said[0][:1], ("mug", "dog", "x"), *said[2:]]
    assert all(truths)
    samples = [
        Sample(picture(), text, answer=truth) for text, truth in zip(TEXTS, truths, strict=True)
    ]
    assert right_answers(lvlm, samples, recipe=RECIPE) == [True, False, True, True]
