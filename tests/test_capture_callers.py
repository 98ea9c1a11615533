"""Who calls a captured model, and what else is called: wrappers, parts, twins, other defaults."""

from dataclasses import replace

import pytest
import small_world
import torch
from fastground.attention import answers
from fastground.capture import capture
from fastground.discovery import discover
from fastground.grounder import Grounder
from random_llava import random_llava
from test_capture import eager, inputs_of, last_rows, on_image
from wrapped import Peft


@pytest.fixture(scope="module")
def asked():
    """(model, inputs, maps by eager attention)."""
    model, processor = random_llava(0)
    inputs = inputs_of(processor, "left")
    return model, inputs, on_image(eager(model, inputs), inputs, last_rows(inputs))


def assert_is(captured, want):
    torch.testing.assert_close(captured.maps.maps.flatten(2), want, atol=2e-6, rtol=0)


@pytest.mark.parametrize("old", [False, True], ids=["0.21", "0.20"])
def test_a_model_that_peft_wraps(asked, old):
    model, inputs, want = asked
    wrapped = Peft(model, old=old)
    given = dict(inputs)
    with torch.no_grad():
        with capture(wrapped) as captured:
            wrapped(given.pop("input_ids"), **given)
        assert_is(captured, want)
        with capture(wrapped, stop_after=1) as ended:
            wrapped(**inputs)
        assert_is(ended, want[:, :8])
        with capture(wrapped, rows="steps") as steps:
            wrapped.generate(**inputs, max_new_tokens=2, min_new_tokens=2, pad_token_id=0)
    assert [each.maps.shape[0] for each in steps.each] == [2, 2, 2]
    torch.testing.assert_close(steps.each[1].maps[0].flatten(1), want[1], atol=2e-6, rtol=0)


def test_prompts_that_peft_learned_are_refused(asked):
    # They stand before the input's tokens, the image's among them, without being in the input.
    with pytest.raises(ValueError, match=r"learned prompts before it .* model.get_base_model\(\)"):
        capture(Peft(asked[0], prompts=True))


@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_that_run_again_for_their_gradients(asked, reentrant):
    _, inputs, want = asked
    model, _ = random_llava(0)
    model.train()
    model.enable_input_require_grads()
    # transformers 5.24 has another name for it.
    new = getattr(model, "activation_checkpointing_enable", None)
    (new or model.gradient_checkpointing_enable)({"use_reentrant": reentrant})
    gradients = []
    for captures in (True, False):
        if captures:
            with capture(model) as captured:
                model(**inputs, labels=inputs["input_ids"]).loss.backward()
            assert_is(captured, want)
        else:
            model(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients.append([p.grad for p in model.model.language_model.parameters()])
        model.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert max(float(g.abs().max()) for g in gradients[0]) > 0


def test_a_part_called_by_itself_after_the_model_is_not_heard(asked):
    model, inputs, want = asked
    other = torch.randn(*inputs["input_ids"].shape, 64)
    with torch.no_grad(), capture(model) as captured:
        model(**inputs)
        model.model.language_model(inputs_embeds=other)
    assert_is(captured, want)


def test_a_part_called_after_a_forward_that_failed_is_not_heard(asked):
    model, inputs, want = asked
    layers = model.model.language_model.layers

    def fails(*_):
        raise ZeroDivisionError

    other = torch.randn(*inputs["input_ids"].shape, 64)
    with torch.no_grad(), capture(model, heads=[(0, 1)]) as captured:
        hook = layers[1].register_forward_pre_hook(fails)
        try:
            with pytest.raises(ZeroDivisionError):
                model(**inputs)
        finally:
            hook.remove()
        model.model.language_model(inputs_embeds=other)
    assert_is(captured, want[:, 1:2])


def test_a_twin_of_the_same_configuration_is_not_heard(asked):
    model, inputs, want = asked
    twin = type(model)(model.config).eval()
    assert twin.config.text_config is model.config.text_config
    with torch.no_grad(), capture(model) as captured:
        model(**inputs)
        twin(**inputs)
    assert_is(captured, want)
    message = "must be called itself inside the with block"
    with pytest.raises(RuntimeError, match=message), torch.no_grad(), capture(model):
        twin(**inputs)


@pytest.mark.parametrize("heads", [None, [(0, 1)]])
def test_a_model_that_runs_a_layer_twice_is_refused(heads):
    model, processor = random_llava(0)
    layers = model.model.language_model.layers
    whole = layers[1].forward
    layers[1].forward = lambda *args, **more: whole(layers[0](*args, **more), **more)
    message = "each layer once a forward to be captured, but runs layer 0 again"
    with pytest.raises(RuntimeError, match=message), torch.no_grad(), capture(model, heads):
        model(**inputs_of(processor))
    assert not model._forward_pre_hooks and not model._forward_hooks


def test_a_layer_with_more_heads_than_the_configuration_says_is_refused():
    # Some would be left out without a word.
    model, processor = random_llava(0)
    model.config.text_config.num_attention_heads = 2
    message = "must have 2 heads in every layer, .* but layer 0 has 4"
    with pytest.raises(RuntimeError, match=message), torch.no_grad(), capture(model):
        model(**inputs_of(processor))


def test_a_refused_second_block_does_no_harm(asked):
    model, inputs, want = asked
    captured = capture(model)
    with torch.no_grad(), captured:
        for again in (captured, capture(model)):
            with pytest.raises(RuntimeError, match="captured twice at a time"), again:
                pass
        model(**inputs)
    assert_is(captured, want)
    assert model.config.text_config._attn_implementation == "sdpa"
    assert not model._forward_pre_hooks


@pytest.fixture
def elsewhere():
    """As after torch.set_default_device("cuda"): what names no device is not in host memory."""
    with torch.device("meta"):
        yield


def test_another_default_device(asked, elsewhere):
    model, inputs, want = asked
    with torch.no_grad(), capture(model) as captured:
        model(**inputs)
    assert_is(captured, want)


def all_of(lvlm, samples):
    """(ranking, groundings, answers): the whole way."""
    ranking = discover(lvlm.model, lvlm.processor, samples, trials=1, recipe=small_world.RECIPE)
    words = 2 * [sample.expression for sample in samples]
    grounder = Grounder(lvlm, ranking, segmenter=None)
    return ranking, grounder(samples[0].image, words), answers(lvlm, samples[0].image, words)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_the_whole_way_under_other_defaults(dtype):
    lvlm, samples = small_world.lvlm(), list(small_world.samples())
    want, groundings, said = all_of(lvlm, samples)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            ranking, found, answered = all_of(lvlm, samples)
    finally:
        torch.set_default_dtype(before)
    assert ranking.heads == want.heads and answered == said
    for one, other in zip(found, groundings, strict=True):
        assert torch.equal(one.box, other.box) and torch.equal(one.map, other.map)
        assert torch.equal(one.mask, other.mask)


def test_a_layout_made_with_other_words_follows_the_image(asked):
    model, inputs, _ = asked
    with torch.no_grad(), capture(model) as found:
        model(**inputs)
    layouts = [each.layout for each in found.each]
    assert len({layout.tokens for layout in layouts}) > 1  # each behind its own padding
    other = replace(layouts[0], tokens=tuple(n + 3 for n in layouts[0].tokens))
    with torch.no_grad(), capture(model, layouts=other) as captured:
        model(**inputs)
    assert [each.layout for each in captured.each] == layouts
    assert torch.equal(captured.maps.maps, found.maps.maps)
