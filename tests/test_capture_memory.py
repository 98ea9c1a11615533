"""What capture remembers of its self-test: of which function, and no longer than that is there."""

import gc
import weakref

import pytest
import torch
from fastground import packing
from fastground.capture import Capture, capture
from fastground.causal import CausalAttention
from fastground.types import Recipe
from random_llava import random_llava
from test_capture import inputs_of
from test_capture_attention import registered, rescaled, sdpa, turned, unmasked, use
from test_packing import TEXTS, make, picture
from transformers import AttentionInterface


def right(calls, held=None):
    """Attention as it is given, noting the layers, which may hold anything."""

    def attend(module, *args, **keywords):
        calls.append((module.layer_idx, held is not None))
        return sdpa(module, *args, **keywords)

    return attend


@pytest.mark.parametrize("function", [turned, unmasked, rescaled])
def test_another_function_under_a_name_that_passed_is_tested(function):
    model, processor = random_llava(0)
    inputs, calls = inputs_of(processor, "left"), []
    passes = right(calls)
    with registered("odd", passes), torch.no_grad():
        use(model, "odd")
        for _ in range(2):
            with capture(model) as captured:
                model(**inputs)
            assert captured.sums.isfinite().all()
        assert [layer for layer, _ in calls] == [0, 1, 2] * 2
        AttentionInterface.register("odd", function)
        with pytest.raises(RuntimeError, match="in layer 0 its output is off by"), capture(model):
            model(**inputs)
        AttentionInterface.register("odd", passes)
        with capture(model) as again:
            model(**inputs)
        assert torch.equal(again.maps.maps, captured.maps.maps)


def test_what_passed_is_not_tested_again(monkeypatch):
    model, processor = random_llava(0)
    inputs, tested = inputs_of(processor, "left"), []
    test = Capture._test
    monkeypatch.setattr(Capture, "_test", lambda *given: tested.append(given) or test(*given))
    for _ in range(2):
        with torch.no_grad(), capture(model):
            model(**inputs)
    assert len(tested) == 1


def test_neither_model_nor_function_is_kept():
    model, processor = random_llava(0)
    attend = right([], held=model)
    with registered("odd", attend), torch.no_grad(), capture(use(model, "odd")) as captured:
        model(**inputs_of(processor, "left"))
    gone = weakref.ref(model), weakref.ref(attend)
    del model, attend, captured
    gc.collect()
    assert [kept() for kept in gone] == [None, None]


def test_of_a_pack_only_its_maps_are_kept(monkeypatch):
    """Neither its mask of tokens x tokens, nor the words that the native core makes of it."""
    lvlm, seen = make(seed=0), []
    inputs, rows = packing.pack(lvlm.encode(picture(), TEXTS, Recipe()))
    attend = CausalAttention.attend

    def noted(self, own, module, query, key, value, mask, **keywords):
        found = attend(self, own, module, query, key, value, mask, **keywords)
        assert self._words.size
        seen.extend((weakref.ref(mask), weakref.ref(self._words)))
        return found

    monkeypatch.setattr(CausalAttention, "attend", noted)
    with torch.no_grad(), capture(lvlm.model, rows=rows, packed=True) as captured:
        lvlm.model(**inputs)
        assert len(seen) == 6, "the core would not have been taken"
    del inputs
    gc.collect()
    assert [kept() for kept in seen] == [None] * 6
    assert captured.maps.maps.isfinite().all() and len(captured.each) == 1
