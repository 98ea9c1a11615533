"""Every forward of generate captured: a map for every token that the model says."""

import pytest
import torch
from fastground.asking import Asking
from fastground.capture import capture
from fastground.seam import cache_name
from fastground.types import ImageLayout
from random_llava import random_llava
from test_capture import TEXTS, eager, inputs_of
from transformers import LlamaConfig


@pytest.fixture(scope="module")
def llava():
    return random_llava(0)


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("window", [None, 9])
def test_each_said_token_has_its_maps(cache, window):
    from transformers import MistralConfig

    more = {} if window is None else {"text": MistralConfig, "sliding_window": window}
    model, processor = random_llava(0, **more)
    inputs = inputs_of(processor, "left")
    length = inputs["input_ids"].shape[1]
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    settings |= {"cache_implementation": cache, "disable_compile": True}
    with torch.no_grad():
        plain = model.generate(**inputs, **settings)
        with capture(model, rows="steps") as captured:
            said = model.generate(**inputs, **settings)
    assert torch.equal(said, plain)
    assert said.shape[1] == length + 4
    # All at once: the row of a token that said the next is the same without a cache.
    whole = dict(inputs) | {
        "input_ids": said[:, :-1],
        "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, 3), value=1),
    }
    attentions = eager(model, whole)
    for b, each in enumerate(captured.each):
        assert each.maps.shape == (4, 12, 4, 4)
        image = inputs["input_ids"][b] == 4
        image = torch.nn.functional.pad(image, (0, 3), value=False)
        want = attentions[b][:, length - 1 :][:, :, image].movedim(0, 1)
        torch.testing.assert_close(each.maps.flatten(2), want, atol=2e-6, rtol=0)
        torch.testing.assert_close(each.sums, want.sum(-1), atol=2e-6, rtol=0)
    assert captured.maps.maps.shape == (12, 12, 4, 4)
    if window is not None:
        assert (captured.maps.maps == 0).any()


def test_chosen_heads_of_one_sequence(llava):
    model, processor = llava
    inputs = inputs_of(processor, texts=TEXTS[1:2])
    settings = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        with capture(model, rows="steps") as every:
            model.generate(**inputs, **settings)
        with capture(model, [(2, 3), (0, 1)], rows="steps") as some:
            model.generate(**inputs, **settings)
    want = every.maps.select([(2, 3), (0, 1)])
    torch.testing.assert_close(some.maps.maps, want.maps, atol=1e-6, rtol=0)
    assert some.maps.maps.shape == (3, 2, 4, 4)


def test_a_single_forward_is_a_step_and_two_batches_are_not_mixed(llava):
    model, processor = llava
    inputs = inputs_of(processor)
    with torch.no_grad():
        with capture(model) as last:
            model(**inputs)
        with capture(model, rows="steps") as steps:
            model(**inputs)
        assert torch.equal(steps.maps.maps, last.maps.maps)
        message = r"one a sequence \(1\), but got 3 of them"
        with pytest.raises(ValueError, match=message), capture(model, rows="steps"):
            model(**inputs)
            model(**inputs_of(processor, texts=TEXTS[:1]))


@pytest.mark.parametrize(
    ("way", "says"),
    [
        ({"num_beams": 2}, "it is called for beam search; pass num_beams=1"),
        ({"num_beams": 2, "do_sample": True}, "for beam search"),
        ({"prompt_lookup_num_tokens": 2}, "for assisted decoding; pass num_beams=1, no assist"),
        ({"assistant_model": random_llava(1)[0]}, "for assisted decoding"),
        (
            {"guidance_scale": 2.0, "negative_prompt_ids": torch.tensor([[9, 10]])},
            "for get unconditional logits; .* no guidance_scale",
        ),
    ],
    ids=["beams", "sampled beams", "lookup", "assistant", "guidance"],
)
def test_ways_of_generating_whose_forwards_are_not_its_tokens_are_refused(llava, way, says):
    # In beam search sequences change places between the forwards; an assistant's tokens are tried
    # several at a time, and some are taken back.
    model, processor = llava
    inputs = inputs_of(processor, "left", TEXTS[1:2])
    settings = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0} | way
    with pytest.raises(ValueError, match=says), capture(model, rows="steps"):
        model.generate(**inputs, **settings)
    assert model.generate(**inputs, **settings).shape[1] > inputs["input_ids"].shape[1]


def test_only_generate_s_own_searches_are_refused(llava):
    model, processor = llava

    def compare_with_beam_search():
        return model.generate(
            **inputs_of(processor, "left", TEXTS[:1]), max_new_tokens=2, min_new_tokens=2,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip

    with capture(model, rows="steps") as captured:
        compare_with_beam_search()
    assert len(captured.each[0].maps) == 2


@pytest.mark.parametrize("cached", [True, False])
def test_several_tokens_a_forward_are_refused_where_keys_are_cached(llava, cached):
    model, processor = llava
    inputs = inputs_of(processor, texts=TEXTS[:1])
    more = torch.tensor([[9, 10]])
    with torch.no_grad(), capture(model, rows="steps") as captured:
        name = cache_name(model)
        cache = model(**inputs, use_cache=cached).get(name)
        if cached:
            with pytest.raises(ValueError, match=r"one new token a forward .* but one brought 2"):
                model(input_ids=more, **{name: cache})
        else:  # all tokens are seen anew
            model(
                input_ids=torch.cat([inputs["input_ids"], more], dim=1),
                pixel_values=inputs["pixel_values"],
            )
    assert captured.maps.maps.shape[0] == 2 - cached


def test_rows_that_a_layer_does_not_compute_are_refused():
    given, layout = {"input_ids": torch.ones(2, 6)}, ImageLayout((1, 2), (1, 2))
    tokens = torch.arange(12.0).view(2, 1, 6, 1)
    rows = torch.tensor([[0, 5], [0, 4], [1, 5]])
    asking = Asking(LlamaConfig(), given, rows, layout)
    whole = asking.take(asking.select(tokens))
    assert whole.flatten().tolist() == [5, 4, 11]
    assert torch.equal(asking.take(asking.select(tokens[:, :, 4:])), whole)
    with pytest.raises(ValueError, match=r"last 1 tokens, .* one is at 4 of 6; call it without"):
        asking.select(tokens[:, :, 5:])
