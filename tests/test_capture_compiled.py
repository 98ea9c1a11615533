"""Capture of models given to torch.compile, whole or in part; nothing of it is traced."""

import pytest
import torch
from fastground.capture import capture
from fastground.layers import is_compiled
from random_llava import random_llava
from test_capture import eager, inputs_of, last_rows, on_image


def whole(model):
    return torch.compile(model, backend="eager")


def in_place(model):
    model.compile(backend="eager")
    return model


def its_forward(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def its_layers(model):
    for layer in model.model.language_model.layers:
        layer.compile(backend="eager")
    return model


@pytest.mark.parametrize("compiled", [whole, in_place, its_layers])
def test_a_compiled_model(compiled):
    torch._dynamo.reset()
    model, processor = random_llava(0, layers=2)
    inputs = inputs_of(processor, "left")
    want = on_image(eager(model, inputs), inputs, last_rows(inputs))
    layers = model.model.language_model.layers
    model = compiled(model)
    with torch.no_grad():
        plain = model(**inputs).logits
        for _ in range(2):  # the second finds what the first compiled
            with capture(model) as captured:
                logits = model(**inputs).logits
            torch.testing.assert_close(captured.maps.maps.flatten(2), want, atol=2e-6, rtol=0)
            assert torch.equal(logits, plain)
        returned = False
        with capture(model, stop_after=0) as ended:
            model(**inputs)
            returned = True
        assert returned
        assert model.model.language_model.layers is layers and len(layers) == 2
        assert torch.equal(ended.maps.maps, captured.maps.maps[:, :4])
        assert torch.equal(model(**inputs).logits, plain)


def test_the_layers_come_back_after_an_error():
    torch._dynamo.reset()
    model, _ = random_llava(0, layers=2)
    model.compile(backend="eager")
    with pytest.raises(KeyboardInterrupt), capture(model, stop_after=0):
        assert len(model.model.language_model.layers) == 1
        raise KeyboardInterrupt
    assert len(model.model.language_model.layers) == 2
    assert model.config.text_config._attn_implementation == "sdpa"
    assert not model._forward_pre_hooks


def test_every_way_of_compiling_is_seen():
    model, _ = random_llava(0, layers=2)
    assert not is_compiled(model)
    assert is_compiled(whole(model)) and not is_compiled(model)
    assert is_compiled(its_forward(random_llava(0, layers=2)[0]))
    assert is_compiled(its_layers(random_llava(0, layers=2)[0]))
    assert is_compiled(in_place(model))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
def test_flex_attention_as_transformers_compiles_it():
    model, processor = random_llava(0)
    inputs = inputs_of(processor, "left")
    want = on_image(eager(model, inputs), inputs, last_rows(inputs))
    model.set_attn_implementation({"text_config": "flex_attention"})
    with torch.no_grad():
        plain = model(**inputs).logits
        with capture(model) as captured:
            logits = model(**inputs).logits
        with capture(model, stop_after=1) as ended:
            model(**inputs)
        again = model(**inputs).logits
    assert torch.equal(logits, plain) and torch.equal(again, plain)
    torch.testing.assert_close(captured.maps.maps.flatten(2), want, atol=2e-6, rtol=0)
    assert torch.equal(ended.maps.maps, captured.maps.select(ended.maps.heads).maps)
