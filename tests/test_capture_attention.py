"""Capture with every kind of attention: flash, flex, windows, softcap; and what it refuses.

Flash and flex attention run here as transformers calls them, from its masks to its unpadding; only
flash-attn's two kernels are by PyTorch (see flash_kernels.py), and flex attention is not compiled.
"""

from contextlib import nullcontext
from functools import wraps
from unittest.mock import patch

import flash_kernels
import pytest
import torch
from fastground.capture import capture
from fastground.seam import cache_name
from fastground.types import ImageLayout
from random_llava import random_llava
from test_capture import eager, inputs_of, last_rows, on_image
from transformers import AttentionInterface, AttentionMaskInterface, masking_utils


def _repeated(query, key, value):
    group = query.shape[1] // key.shape[1]
    return key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)


def uncompiled(query, key, value, training=False, **keywords):
    """Flex attention without the minute that a CPU takes to compile it."""
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(query, key, value, **keywords)


@pytest.fixture(scope="module", autouse=True)
def without_a_gpu():
    from transformers.integrations import flex_attention

    made = masking_utils.create_block_mask
    with (
        flash_kernels.installed(),
        patch.object(flex_attention, "compile_friendly_flex_attention", uncompiled),
        patch.object(
            masking_utils, "create_block_mask", lambda *a, _compile=None, **k: made(*a, **k)
        ),
    ):
        yield


def use(model, implementation):
    model.config.text_config._attn_implementation = implementation  # unasked whether it is there
    return model


def text_config(kind, window):
    import transformers

    more = {"sliding_window": window}
    if kind == "Gemma2Config":
        more |= {"attn_logit_softcapping": 8.0, "query_pre_attn_scalar": 16}
    if kind == "Gemma3TextConfig":
        more |= {"query_pre_attn_scalar": 16}
    return getattr(transformers, kind), more


pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

IMPLEMENTATIONS = ["sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"]
CASES = [
    (text, implementation)
    for text in ("LlamaConfig", "MistralConfig", "Gemma2Config", "Gemma3TextConfig")
    for implementation in IMPLEMENTATIONS
    if (text, implementation) != ("Gemma2Config", "sdpa")  # refused: it ignores the softcap
]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("text", "implementation"), CASES)
def test_equals_eager_attention(text, implementation, side):
    kind, more = text_config(text, 9)
    model, processor = random_llava(0, text=kind, **({} if text == "LlamaConfig" else more))
    inputs = inputs_of(processor, side)
    want = on_image(eager(model, inputs), inputs, last_rows(inputs))
    assert want.max() > 0.1
    if text != "LlamaConfig":
        assert (want == 0).any()  # of the windows some end in the image or after it
    use(model, implementation)
    with torch.no_grad():
        plain = model(**inputs).logits
        with capture(model) as captured:
            logits = model(**inputs).logits
        assert torch.equal(model(**inputs).logits, plain)
    torch.testing.assert_close(captured.maps.maps.flatten(2), want, atol=2e-6, rtol=0)
    real = inputs["attention_mask"].bool()
    assert torch.equal(logits[real], plain[real])
    assert model.config.text_config._attn_implementation == implementation


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("text", "implementation"), CASES)
def test_after_cached_keys_of_which_windows_keep_the_last(text, implementation, batch):
    # Keys of a window's cache are fewer than the tokens; so are those of an expanded cache's.
    from transformers import DynamicCache

    kind, more = text_config(text, 9)
    model, processor = random_llava(0, text=kind, **({} if text == "LlamaConfig" else more))
    inputs = inputs_of(processor, texts=["a dog on the left of the small blue mug."])
    ids, cut = inputs["input_ids"], 18
    want = on_image(eager(model, inputs), inputs, last_rows(inputs)).expand(batch, -1, -1)
    use(model, implementation)
    layout = ImageLayout((4, 4), tuple((ids[0] == 4).nonzero()[:, 0].tolist()))
    with torch.no_grad():
        cache = DynamicCache(config=model.config.text_config)
        cached = {cache_name(model): cache}
        model(input_ids=ids[:, :cut], pixel_values=inputs["pixel_values"], **cached)
        cache.batch_repeat_interleave(batch)
        with capture(model, layouts=layout) as captured:
            model(
                input_ids=ids[:, cut:].expand(batch, -1),
                attention_mask=torch.ones(batch, ids.shape[1], dtype=torch.long),
                **cached,
            )
    torch.testing.assert_close(captured.maps.maps.flatten(2), want, atol=2e-6, rtol=0)


def test_a_softcap_that_sdpa_ignores_is_refused():
    kind, more = text_config("Gemma2Config", 64)
    model, processor = random_llava(0, text=kind, **more)
    inputs = inputs_of(processor)
    model.config.text_config._attn_implementation = "sdpa"  # which transformers may refuse to set
    message = "heeds its softcap, but 'sdpa' ignores it; call model.set_attn_implementation"
    with torch.no_grad(), pytest.raises(ValueError, match=message), capture(model):
        model(**inputs)


def registered(name, function):
    """The function under this name, with sdpa's masks, as long as the block is open."""
    from contextlib import contextmanager

    @contextmanager
    def block():
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, masking_utils.sdpa_mask)
        try:
            yield
        finally:
            del AttentionInterface._global_mapping[name]
            del AttentionMaskInterface._global_mapping[name]

    return block()


def sdpa(module, query, key, value, attention_mask, **keywords):
    return AttentionInterface()["sdpa"](module, query, key, value, attention_mask, **keywords)


def turned(module, query, key, value, attention_mask, **keywords):
    """As if rotary embeddings were applied inside the attention function."""
    return sdpa(module, query.roll(1, -1), key, value, attention_mask, **keywords)


def unmasked(module, query, key, value, attention_mask, **keywords):
    """As if the mask were made inside the attention function."""
    return sdpa(module, query, key, value, None, is_causal=False)


def rescaled(module, query, key, value, attention_mask, **keywords):
    """As if the attention function knew its own scale."""
    keywords["scaling"] *= 2
    return sdpa(module, query, key, value, attention_mask, **keywords)


@pytest.mark.parametrize("function", [turned, unmasked, rescaled])
@pytest.mark.parametrize("chosen", [{}, {"heads": [(1, 2)], "stop_after": 1}, {"stop_after": 0}])
def test_the_self_test_refuses_attention_that_is_not_what_it_is_given(function, chosen):
    model, processor = random_llava(0)
    inputs = inputs_of(processor, "left")
    with registered("odd", function), torch.no_grad():
        use(model, "odd")
        message = r"attend by what its attention function is given.*in layer 0 its output is off by"
        with pytest.raises(RuntimeError, match=message), capture(model, **chosen):
            model(**inputs)
        assert model.config.text_config._attn_implementation == "odd"


def even(model):
    """The same model with nearly even attention, where what is wrong shows least."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                weight.div_(8)
    return model


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("function", [turned, unmasked, rescaled])
def test_the_self_test_sees_it_in_half_precision_among_hundreds_of_keys(function, dtype):
    model, processor = random_llava(0, grid=24)
    even(model).to(dtype)
    inputs = inputs_of(processor, "left").to(dtype)
    with registered("odd", function), torch.no_grad():
        use(model, "odd")
        with pytest.raises(RuntimeError, match="its output is off by"), capture(model):
            model(**inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sharper", [0.1, 1, 8])
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flash_attention_2"])
def test_the_self_test_lets_half_precision_pass(implementation, sharper, dtype):
    # Eager attention rounds its logits, which here are up to hundreds, to few bits.
    model, processor = random_llava(0, grid=12)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "q_proj" in name:
                weight.mul_(sharper)
    inputs = inputs_of(processor, "left").to(dtype)
    use(model.to(dtype), implementation)
    with torch.no_grad(), capture(model) as captured:
        model(**inputs)
    assert captured.sums.isfinite().all()


def test_each_kind_of_layer_is_tested_even_where_the_forward_ends():
    # Layers slide but for every second, which is odd: the first of these is the last that runs.
    kind, more = text_config("Gemma3TextConfig", 9)
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    model, processor = random_llava(0, text=kind, layer_types=kinds, **more)
    inputs = inputs_of(processor)

    def odd(module, *args, **keywords):
        return (turned if module.layer_idx == 1 else sdpa)(module, *args, **keywords)

    with registered("odd", odd), torch.no_grad():
        use(model, "odd")
        with capture(model, stop_after=0):
            model(**inputs)
        message = "in layer 1 its output is off by"
        with pytest.raises(RuntimeError, match=message), capture(model, stop_after=1):
            model(**inputs)


def test_attention_that_is_nan_is_no_proof():
    model, processor = random_llava(0)
    inputs = inputs_of(processor, "left")
    broken = torch.full_like(inputs["pixel_values"], torch.nan)
    with registered("odd", turned), torch.no_grad():
        use(model, "odd")
        with capture(model) as captured:
            model(**{**inputs, "pixel_values": broken})
        assert captured.sums.isnan().all()
        with pytest.raises(RuntimeError, match="its output is off by"), capture(model):
            model(**inputs)


def test_the_self_test_is_made_wherever_positions_restart_without_a_mask():
    # Without a mask flash attention takes what then begins for another text.
    model, processor = random_llava(0)
    inputs = inputs_of(processor, texts=["the red mug."])
    length = inputs["input_ids"].shape[1]
    usual = torch.arange(length)[None]
    restarting = torch.cat([usual[:, :-3], usual[:, :3]], dim=1)
    inputs.pop("attention_mask")
    with torch.no_grad():
        use(model, "flash_attention_2")
        with capture(model) as captured:
            model(**inputs, position_ids=usual)
        assert captured.sums.shape == (1, 12)
        with pytest.raises(RuntimeError, match="in layer 0 its output is off"), capture(model):
            model(**inputs, position_ids=restarting)


def test_texts_told_apart_by_positions_are_seen_apart():
    # sdpa and eager get a mask that says so: the last text's tokens see nothing of the image.
    model, processor = random_llava(0)
    inputs = inputs_of(processor, texts=["the red mug. a dog on the left"])
    length = inputs["input_ids"].shape[1]
    restarting = torch.cat([torch.arange(length - 6), torch.arange(6)])[None]
    inputs.pop("attention_mask")
    for implementation in ("sdpa", "eager"):
        use(model, implementation)
        rows = torch.tensor([[0, length - 1], [0, length - 7]])
        with torch.no_grad(), capture(model, rows=rows) as captured:
            model(**inputs, position_ids=restarting, use_cache=False)
        assert (captured.sums[0] == 0).all() and (captured.sums[1] > 0).all()


def noted(implementation, calls):
    """The attention of that name, which notes what it is given."""

    @wraps(AttentionInterface()[implementation])  # whether it takes softcap is read off it
    def attend(module, *arguments, **keywords):
        calls.append((module.layer_idx, arguments, keywords))
        module.config._attn_implementation = implementation  # which some read there
        try:
            return AttentionInterface()[implementation](module, *arguments, **keywords)
        finally:
            module.config._attn_implementation = "noted"

    return attend


def alike(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(alike, one, other))
    return one == other or str(one) == str(other)  # a block mask says its blocks


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("text", ["LlamaConfig", "Gemma2Config", "Gemma3TextConfig"])
@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention", "sdpa"])
def test_its_own_attention_gets_what_it_gets_without(text, implementation, padded):
    if (text, implementation) == ("Gemma2Config", "sdpa"):
        pytest.skip("sdpa does not take Gemma 2's softcap")
    kind, more = text_config(text, 9)
    model, processor = random_llava(0, text=kind, **({} if text == "LlamaConfig" else more))
    inputs = inputs_of(processor, texts=["the red mug.", "a dog on the left."][: 1 + padded])
    runs = []
    with torch.no_grad(), registered("noted", None):
        for captures in (False, True):
            calls = []
            AttentionInterface.register("noted", noted(implementation, calls))
            made = AttentionMaskInterface()[implementation]
            AttentionMaskInterface.register("noted", made)
            use(model, "noted")
            with capture(model) if captures else nullcontext():
                model(**inputs, use_cache=False, deterministic=True, kernel_options=None)
            runs.append(calls)
    assert [call[0] for call in runs[0]] == [0, 1, 2] == [call[0] for call in runs[1]]
    for (_, arguments, keywords), (_, wanted, named) in zip(runs[1], runs[0], strict=True):
        assert alike(arguments, wanted)
        assert keywords.keys() == named.keys() >= {"scaling", "dropout", "deterministic"}
        assert all(alike(keywords[name], named[name]) for name in named)
        assert ("softcap" in named) == (text == "Gemma2Config")


def test_the_self_test_lets_repeated_keys_pass(monkeypatch):
    # Keys repeated before the attention function: the rows are the same.
    from transformers.models.llama import modeling_llama

    model, processor = random_llava(0)
    inputs = inputs_of(processor)
    want = on_image(eager(model, inputs), inputs, last_rows(inputs))

    def repeats(module, query, key, value, attention_mask, **keywords):
        group, module.num_key_value_groups = module.num_key_value_groups, 1
        key, value = _repeated(query, key, value)
        function = AttentionInterface()[module.config._attn_implementation]
        try:
            return function(module, query, key, value, attention_mask, **keywords)
        finally:
            module.num_key_value_groups = group

    class Interface(AttentionInterface):
        def get_interface(self, name, default):
            return repeats

    monkeypatch.setattr(modeling_llama, "ALL_ATTENTION_FUNCTIONS", Interface())
    with torch.no_grad(), capture(model) as captured:
        model(**inputs)
    torch.testing.assert_close(captured.maps.maps.flatten(2), want, atol=2e-6, rtol=0)


def test_attention_past_the_interface_is_noticed(monkeypatch):
    # Layers 0 and 2 call their attention through the interface, layer 1 its own.
    from transformers.models.llama import modeling_llama

    model, processor = random_llava(0)
    inputs = inputs_of(processor)

    def past(module, *args, **keywords):
        if module.layer_idx == 1:
            return sdpa(module, *args, **keywords)
        return AttentionInterface()[module.config._attn_implementation](module, *args, **keywords)

    class Interface(AttentionInterface):
        def get_interface(self, name, default):
            return past

    monkeypatch.setattr(modeling_llama, "ALL_ATTENTION_FUNCTIONS", Interface())
    message = r"only layers \[0, 2\] of \[0, 1, 2\] did"
    with torch.no_grad(), pytest.raises(RuntimeError, match=message), capture(model):
        model(**inputs)


@pytest.mark.parametrize("name", ["s_aux", "position_bias", "cu_seq_lens_q", "cache"])
def test_sinks_and_biases_are_refused(monkeypatch, name):
    from transformers.models.llama import modeling_llama

    model, processor = random_llava(0)
    inputs = inputs_of(processor)

    def more(module, *args, **keywords):
        keywords[name] = torch.zeros(4)
        return AttentionInterface()[module.config._attn_implementation](module, *args, **keywords)

    class Interface(AttentionInterface):
        def get_interface(self, implementation, default):
            return more

    monkeypatch.setattr(modeling_llama, "ALL_ATTENTION_FUNCTIONS", Interface())
    with torch.no_grad(), pytest.raises(ValueError, match=f"given {name} beside"), capture(model):
        model(**inputs)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_output_attentions_inside_capture_is_refused(implementation):
    model, processor = random_llava(0)
    model.set_attn_implementation(implementation)
    inputs = inputs_of(processor)
    message = "output_attentions must not be asked for inside capture.*read captured.maps"
    with torch.no_grad(), pytest.raises(ValueError, match=message), capture(model):
        model(**inputs, output_attentions=True)
    if implementation == "eager":
        model.config.output_attentions = True
        with torch.no_grad(), pytest.raises(ValueError, match=message), capture(model):
            model(**inputs)
        with torch.no_grad(), capture(model) as captured:
            model(**inputs, output_attentions=False)
        assert captured.sums.shape == (3, 12)


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention", "eager"])
def test_expressions_are_asked_with_every_attention(implementation):
    from fastground.attention import attention_maps
    from fastground.models import wrap
    from fastground.types import Recipe
    from PIL import Image

    lvlm = wrap(*random_llava(0), checkpoint="random")
    image = Image.radial_gradient("L").resize((31, 20))
    texts = ["the red mug", "a dog on the left of the small blue mug", "x"]
    want = attention_maps(lvlm, image, texts, recipe=Recipe())
    use(lvlm.model, implementation)
    found = attention_maps(lvlm, image, texts, recipe=Recipe())
    torch.testing.assert_close(found.maps, want.maps, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.sums, want.sums, atol=1e-5, rtol=0)


def test_a_part_without_a_layer_number_is_handed_on(monkeypatch):
    # Such as a resampler that is made of the decoder's own attention and configuration.
    from transformers.models.llama.modeling_llama import LlamaAttention

    model, processor = random_llava(0)
    inputs = inputs_of(processor)
    config = model.config.text_config
    part = LlamaAttention(config, 0)
    del part.layer_idx
    turned = (torch.ones(1, 2, 16), torch.zeros(1, 2, 16))
    got = []

    def resamples(module, args):
        got.append(part(torch.ones(1, 2, 64), position_embeddings=turned)[0])

    model.model.language_model.register_forward_pre_hook(resamples)
    with torch.no_grad():
        with capture(model) as captured:
            model(**inputs)
        model(**inputs)
    assert torch.equal(got[0], got[1])
    assert captured.sums.shape == (3, 12)
