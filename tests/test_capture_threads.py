"""Captures in threads: of several models at once; of one model one at a time."""

import threading

import pytest
import torch
from fastground.capture import capture
from random_llava import random_llava
from test_capture import inputs_of


def run(works):
    """All at once, each in its own thread; the first error is raised here."""
    errors = []

    def guarded(work):
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]


@torch.no_grad()
def maps_of(model, inputs, **chosen):
    with capture(model, **chosen) as captured:
        model(**inputs)
    return captured.maps.maps


def test_several_models_at_once():
    worlds = [random_llava(seed) for seed in range(3)]
    inputs = [inputs_of(processor, side) for (_, processor), side in
              zip(worlds, ["left", "right", "left"], strict=True)]  # fmt: skip
    want = [maps_of(model, x) for (model, _), x in zip(worlds, inputs, strict=True)]
    found = [[] for _ in worlds]

    def work(n):
        for turn in range(8):
            found[n].append(maps_of(worlds[n][0], inputs[n], stop_after=[None, 1][turn % 2]))

    run([lambda n=n: work(n) for n in range(3)])
    for mine, maps in zip(want, found, strict=True):
        assert len(maps) == 8
        for one in maps:
            assert torch.equal(one, mine[:, : one.shape[1]])


def test_one_model_is_captured_by_one_thread_at_a_time():
    model, processor = random_llava(0)
    inputs = inputs_of(processor)
    with torch.no_grad():
        plain = model(**inputs).logits
    inside, over = threading.Event(), threading.Event()
    seen = []

    def holds():
        with torch.no_grad(), capture(model) as captured:
            inside.set()
            over.wait(60)
            seen.append(model(**inputs).logits)
        seen.append(captured.maps.maps)

    def others():
        inside.wait(60)
        try:
            with pytest.raises(RuntimeError, match="nor in two threads"), capture(model):
                pass
            with torch.no_grad():  # only called, not captured: it passes unheard
                seen.append(model(**inputs).logits)
        finally:
            over.set()

    run([holds, others])
    assert len(seen) == 3
    assert torch.equal(seen[0], plain) and torch.equal(seen[1], plain)
    assert torch.equal(seen[2], maps_of(model, inputs))
    assert model.config.text_config._attn_implementation == "sdpa"


def test_own_attention_of_other_threads_reads_its_own_name():
    # Flash attention asks the configuration which of its kinds it is, in every thread.
    from transformers import AttentionInterface, AttentionMaskInterface, masking_utils

    read, making = [], []

    def own(module, *args, **keywords):
        read.append((threading.get_ident(), module.config._attn_implementation))
        return AttentionInterface()["sdpa"](module, *args, **keywords)

    def mask(*args, config, **keywords):
        making.append(config._attn_implementation)
        return masking_utils.sdpa_mask(*args, config=config, **keywords)

    AttentionInterface.register("own", own)
    AttentionMaskInterface.register("own", mask)
    model, processor = random_llava(0)
    inputs = inputs_of(processor)
    try:
        model.set_attn_implementation({"text_config": "own"})

        def other():
            with torch.no_grad():
                model(**inputs)

        with torch.no_grad(), capture(model):
            run([other])
            model(**inputs)
    finally:
        del AttentionInterface._global_mapping["own"]
        del AttentionMaskInterface._global_mapping["own"]
    assert len({thread for thread, _ in read}) == 2
    assert {name for _, name in read} == {"own"} == set(making)


def test_many_threads_that_want_one_model():
    # Whoever finds it taken is told; nobody gets maps of another, and the model is as it was.
    model, processor = random_llava(0)
    inputs = inputs_of(processor)
    want = maps_of(model, inputs)
    taken, good = [], []

    def work():
        for _ in range(6):
            try:
                good.append(maps_of(model, inputs))
            except RuntimeError as error:
                assert "captured twice at a time" in str(error)
                taken.append(1)

    run([work] * 4)
    assert len(taken) + len(good) == 24 and good
    assert all(torch.equal(one, want) for one in good)
    assert not model._forward_pre_hooks
    assert model.config.text_config._attn_implementation == "sdpa"
