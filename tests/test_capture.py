"""Capture against eager output_attentions, on random LLaVAs with sharpened attention."""

import re
import warnings
from dataclasses import replace

import pytest
import torch
from fastground.capture import capture
from fastground.seam import cache_name
from fastground.types import HeadId, ImageLayout
from PIL import Image
from random_llava import random_llava

TEXTS = ["the red mug.", "a dog on the left of the small blue mug.", "x."]


def inputs_of(processor, side="right", texts=TEXTS, seed=0):
    processor.tokenizer.padding_side = side
    colours = torch.randint(
        0, 256, (16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    image = Image.fromarray(colours.numpy())
    prompts = [f"<image>\n{text}" for text in texts]
    return processor(images=[image] * len(texts), text=prompts, padding=True, return_tensors="pt")


def eager(model, inputs):
    """(batch, layers * heads, tokens, tokens) of the model itself."""
    before = model.config.text_config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(**inputs, output_attentions=True).attentions
    model.set_attn_implementation({"text_config": before, "vision_config": "sdpa"})
    return torch.cat(attentions, dim=1)


def on_image(attentions, inputs, rows):
    """What eager's rows (N, 2) give the image: (N, heads, 16)."""
    found = []
    for b, position in rows.tolist():
        image = inputs["input_ids"][b] == 4
        found.append(attentions[b][:, position][:, image])
    return torch.stack(found)


def last_rows(inputs):
    mask = inputs["attention_mask"]
    last = [int(row.nonzero().max()) for row in mask]
    return torch.tensor([[b, position] for b, position in enumerate(last)])


@pytest.fixture(scope="module")
def llava():
    return random_llava(0)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("seed", "kv_heads"), [(0, 2), (1, 1), (2, 4)])
def test_equals_eager_with_padding(seed, kv_heads, side):
    model, processor = random_llava(seed, kv_heads=kv_heads)
    inputs = inputs_of(processor, side, seed=seed)
    assert not inputs["attention_mask"].all()
    want = on_image(eager(model, inputs), inputs, last_rows(inputs))
    assert want.max() > 0.3  # not flat, or the comparison would say little
    with torch.no_grad(), capture(model) as captured:
        model(**inputs)
    assert captured.maps.maps.shape == (3, 12, 4, 4)
    torch.testing.assert_close(captured.maps.maps.flatten(2), want, atol=2e-6, rtol=0)
    torch.testing.assert_close(captured.sums, want.sum(-1), atol=2e-6, rtol=0)
    assert captured.maps.heads[:5] == (*(HeadId(0, h) for h in range(4)), HeadId(1, 0))


def test_wrong_positions_would_be_seen(llava):
    # The negative control: the row beside the asking one differs by far more than the tolerance.
    model, processor = llava
    inputs = inputs_of(processor)
    rows = last_rows(inputs)
    attentions = eager(model, inputs)
    shifted = on_image(attentions, inputs, rows - torch.tensor([0, 1]))
    assert (shifted - on_image(attentions, inputs, rows)).abs().max() > 1e-2


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_are_the_same_bit_for_bit_and_the_model_is_restored(llava, implementation, side):
    model, processor = llava
    model.set_attn_implementation(implementation)
    inputs = inputs_of(processor, side)
    with torch.no_grad():
        plain = model(**inputs).logits
        with capture(model) as captured:
            logits = model(**inputs).logits
        again = model(**inputs).logits
    want = on_image(eager(model, inputs), inputs, last_rows(inputs))
    torch.testing.assert_close(captured.maps.maps.flatten(2), want, atol=2e-6, rtol=0)
    model.set_attn_implementation(implementation)
    assert torch.equal(logits, plain)
    assert torch.equal(again, plain)
    for config in (model.config, model.config.text_config, model.config.vision_config):
        assert config._attn_implementation == implementation
    assert not model._forward_pre_hooks
    model.set_attn_implementation("sdpa")


def test_any_rows_several_a_sequence(llava):
    model, processor = llava
    inputs = inputs_of(processor)
    rows = torch.tensor([[1, 20], [0, 18], [1, 3], [1, 19], [2, 17]])
    want = on_image(eager(model, inputs), inputs, rows)
    with torch.no_grad(), capture(model, rows=rows) as captured:
        model(**inputs)
    torch.testing.assert_close(captured.maps.maps.flatten(2), want, atol=2e-6, rtol=0)
    assert (captured.maps.maps[2].flatten(1)[:, 3:] == 0).all()  # token 3 sees three image tokens


@pytest.mark.parametrize("stop_after", [None, 1])
def test_chosen_heads_in_their_order(llava, stop_after):
    model, processor = llava
    inputs = inputs_of(processor)
    heads = [(1, 3), (0, 2), (1, 0)]
    with torch.no_grad():
        with capture(model) as whole:
            plain = model(**inputs).logits
        with capture(model, heads=heads, stop_after=stop_after) as captured:
            model(**inputs)
        assert torch.equal(model(**inputs).logits, plain)
    assert captured.maps.heads == tuple(HeadId(*h) for h in heads)
    torch.testing.assert_close(captured.maps.maps, whole.maps.select(heads).maps, atol=1e-6, rtol=0)


def test_stopping_leaves_the_block_and_later_layers_untouched(llava):
    model, processor = llava
    inputs = inputs_of(processor)
    ran = []
    hooks = [
        layer.mlp.register_forward_hook(lambda *_, n=n: ran.append(n))
        for n, layer in enumerate(model.model.language_model.layers)
    ]
    reached = False
    with torch.no_grad(), capture(model, stop_after=1) as captured:
        model(**inputs)
        reached = True
    for hook in hooks:
        hook.remove()
    assert not reached
    assert ran == [0]
    assert captured.maps.heads[-1] == HeadId(1, 3)
    assert len(captured.maps.heads) == 8


def test_cached_prefix_with_a_given_layout(llava):
    # Image and first words cached, then the rest: the keys are the same, the queries fewer.
    model, processor = llava
    inputs = inputs_of(processor, texts=TEXTS[1:2])
    want = on_image(eager(model, inputs), inputs, last_rows(inputs))
    ids, cut = inputs["input_ids"], 20
    layout = ImageLayout((4, 4), tuple((ids[0] == 4).nonzero()[:, 0].tolist()))
    with torch.no_grad():
        name = cache_name(model)
        cache = model(input_ids=ids[:, :cut], pixel_values=inputs["pixel_values"], use_cache=True)[
            name
        ]
        with capture(model, layouts=layout) as captured:
            model(
                input_ids=ids[:, cut:],
                attention_mask=inputs["attention_mask"],
                **{name: cache},
            )
    torch.testing.assert_close(captured.maps.maps.flatten(2), want, atol=2e-6, rtol=0)


def test_the_class_token_counts_in_the_sum_only():
    model, processor = random_llava(0, strategy="full")
    inputs = inputs_of(processor, texts=TEXTS[:1])
    want = on_image(eager(model, inputs), inputs, last_rows(inputs))
    assert want.shape[-1] == 17
    with torch.no_grad(), capture(model) as captured:
        model(**inputs)
    torch.testing.assert_close(captured.maps.maps.flatten(2), want[..., 1:], atol=2e-6, rtol=0)
    torch.testing.assert_close(captured.sums, want.sum(-1), atol=2e-6, rtol=0)


def test_a_sliding_window_is_seen_as_the_mask_says():
    # Keys out of the window get nothing; softmax is over those in it.
    from transformers import AttentionMaskInterface

    model, processor = random_llava(0)
    inputs = inputs_of(processor, "right")
    batch, tokens = inputs["input_ids"].shape
    place = torch.arange(tokens)
    window = (place[None] <= place[:, None]) & (place[None] > place[:, None] - 12)
    allowed = window[None, None] & inputs["attention_mask"].bool()[:, None, None]
    inputs["attention_mask"] = allowed | torch.eye(tokens, dtype=torch.bool)
    rows = torch.tensor([[b, 19] for b in range(batch)])
    rows[2, 1] = 18
    with torch.no_grad(), capture(model, rows=rows) as captured:
        model(**inputs)
    maps = captured.maps.maps.flatten(2)
    assert (maps[0, :, :7] == 0).all()
    assert (maps[0, :, 7:] > 0).any()
    assert "fastground" in AttentionMaskInterface()


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_gradients_and_inference_mode(llava, mode):
    model, processor = llava
    inputs = inputs_of(processor, "left")
    with torch.no_grad(), capture(model) as plain:
        model(**inputs)
    with mode():
        with capture(model) as captured:
            logits = model(**inputs).logits
        with capture(model, stop_after=1) as ended:
            model(**inputs)
    assert logits.requires_grad == (mode is torch.enable_grad)
    assert not captured.maps.maps.requires_grad
    assert torch.equal(captured.maps.maps, plain.maps.maps)
    assert torch.equal(ended.maps.maps, plain.maps.maps[:, :8])
    if mode is torch.enable_grad:
        logits.sum().backward()
        assert model.lm_head.weight.grad.abs().max() > 0
        model.zero_grad()


def test_what_asks_is_moved_to_the_device_once_a_forward(llava, monkeypatch):
    # A GPU waits for each such move: there may be some a forward, none a layer.
    from fastground import asking

    model, processor = llava
    inputs = inputs_of(processor, "left")
    moved, read = [], []
    to, visible_keys = asking._Indices.to, asking.visible_keys
    monkeypatch.setattr(asking._Indices, "to", lambda *a: moved.append(1) or to(*a))
    monkeypatch.setattr(
        asking, "visible_keys", lambda *a, **k: read.append(1) or visible_keys(*a, **k)
    )
    with torch.no_grad(), capture(model) as captured:
        model(**inputs)
    assert captured.sums.shape == (3, 12)
    assert len(moved) == len(read) == 1


@pytest.mark.gpu
def test_layers_do_not_wait_for_a_gpu():
    waits = {}
    for layers in (2, 5):
        model, processor = random_llava(0, layers=layers)
        model.cuda()
        inputs = inputs_of(processor, "left").to("cuda")
        with torch.no_grad(), capture(model):
            model(**inputs)  # the first is a self-test, too
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught, torch.no_grad(), capture(model):
                warnings.simplefilter("always")
                model(**inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        waits[layers] = sum("synchroniz" in str(warning.message) for warning in caught)
    assert waits[2] == waits[5] > 0


class Failing(Exception):
    pass


def test_errors_inside_the_block_pass_and_restore(llava):
    model, processor = llava
    with pytest.raises(Failing), capture(model):
        raise Failing
    assert model.config.text_config._attn_implementation == "sdpa"
    inputs = inputs_of(processor)
    with torch.no_grad(), capture(model) as captured:
        model(**inputs)
    assert captured.maps.maps.isfinite().all()


def test_misuse_is_refused_with_the_way_out(llava):
    model, processor = llava
    inputs = inputs_of(processor)
    with (
        pytest.raises(RuntimeError, match="captured twice at a time"),
        capture(model),
        capture(model),
    ):
        pass
    with capture(model) as captured:
        pass
    with pytest.raises(RuntimeError, match="call the model once inside the with block"):
        captured.maps  # noqa: B018
    with (
        pytest.raises(RuntimeError, match="open a new with block"),
        torch.no_grad(),
        capture(model),
    ):
        model(**inputs)
        model(**inputs)
    with (
        pytest.raises(RuntimeError, match="must be called itself"),
        torch.no_grad(),
        capture(model),
    ):
        model.model(**inputs)
    padding = torch.tensor([[2, inputs["input_ids"].shape[1] - 1]])
    with pytest.raises(ValueError, match="is padding"), capture(model, rows=padding):
        model(**inputs)
    beyond = torch.tensor([[3, 0]])
    with pytest.raises(ValueError, match=r"batch of 3 and its \d+"), capture(model, rows=beyond):
        model(**inputs)
    with pytest.raises(ValueError, match="pass layouts="), torch.no_grad(), capture(model):
        model(input_ids=torch.tensor([[1, 10, 11]]))
    with pytest.raises(ValueError, match="of some tokens"), capture(model):
        model(input_ids=torch.zeros(0, 5, dtype=torch.long))
    assert model.config.text_config._attn_implementation == "sdpa"
    assert not model._forward_pre_hooks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": [(3, 0)]}, "layers 0 to 2 .* but got L3 H0"),
        ({"heads": [(0, 4)]}, "heads 0 to 3, but got L0 H4"),
        ({"heads": []}, "at least one head"),
        ({"heads": [3]}, r"heads must be \(layer, head\) pairs, but got \[3\]"),
        ({"heads": [(2, 0)], "stop_after": 1}, "layers 0 to 1"),
        ({"stop_after": 3}, "stop_after must be a layer 0 to 2"),
        ({"rows": "first"}, "rows must be 'last', 'steps' or an"),
        ({"rows": "steps", "stop_after": 1}, "stop_after must be None with rows='steps'"),
        ({"heads": [(1, 2, 3)]}, r"heads must be \(layer, head\) pairs, but got \[\(1, 2, 3\)\]"),
        ({"heads": ["L1 H2"]}, "heads must be"),
        ({"heads": [(1.5, 0)]}, "heads must be"),
        ({"stop_after": 1.5}, "stop_after must be a layer 0 to 2, but got 1.5"),
        ({"stop_after": "1"}, "stop_after must be a layer 0 to 2, but got '1'"),
        ({"rows": torch.zeros(3)}, "got shape"),
        ({"rows": torch.tensor([[0.0, 17.9]])}, r"integer tensor .*got shape \(1, 2\) float32"),
    ],
)
def test_bad_arguments_are_named(llava, arguments, message):
    with pytest.raises(ValueError, match=message):
        capture(llava[0], **arguments)


@pytest.mark.parametrize("window", [None, 9])
def test_lost_masks_are_noticed(monkeypatch, window):
    # As if the mask function had not been registered: transformers then passes None, silently.
    # Without padding only windows are lost.
    from transformers import MistralConfig, masking_utils

    model, processor = random_llava(
        0, **({} if window is None else {"text": MistralConfig, "sliding_window": window})
    )
    inputs = inputs_of(processor, "left", **({} if window is None else {"texts": TEXTS[:1]}))
    with torch.no_grad(), capture(model):
        model(**inputs)
    mapping = dict(masking_utils.AttentionMaskInterface._global_mapping)
    del mapping["fastground"]
    monkeypatch.setattr(masking_utils.AttentionMaskInterface, "_global_mapping", mapping)
    with pytest.raises(RuntimeError, match="lost its attention_mask"), capture(model):
        model(**inputs)


@pytest.mark.parametrize("error", [KeyboardInterrupt, Failing])
@pytest.mark.parametrize("where", ["vision_tower", "language_model"])
def test_errors_inside_the_forward_pass_and_restore(error, where):
    model, processor = random_llava(0)
    inputs = inputs_of(processor)

    def fails(*_):
        raise error

    hook = getattr(model.model, where).register_forward_hook(fails)
    with pytest.raises(error), torch.no_grad(), capture(model):
        model(**inputs)
    hook.remove()
    assert model.config.text_config._attn_implementation == "sdpa"
    assert not model._forward_pre_hooks
    with torch.no_grad(), capture(model) as captured:
        model(**inputs)
    assert captured.sums.shape == (3, 12)


def test_forwards_wrapped_by_hooks_that_move_their_input():
    # As accelerate does for models that are quantised or split over devices: every module's
    # forward is an instance attribute around the true one.
    import functools

    def wrapped(module):
        true = module.forward

        def moving(module, *args, **keywords):
            keywords = {
                n: v.clone() if isinstance(v, torch.Tensor) else v for n, v in keywords.items()
            }
            return true(*args, **keywords)

        return functools.update_wrapper(functools.partial(moving, module), true)

    model, processor = random_llava(0)
    inputs = inputs_of(processor, "left")
    want = on_image(eager(model, inputs), inputs, last_rows(inputs))
    for module in (*model.modules(),):
        module.forward = wrapped(module)
    ids = inputs.pop("input_ids")
    with torch.no_grad():
        with capture(model) as captured:
            model(ids, **inputs)
        with capture(model, stop_after=1) as ended:
            model(ids, **inputs)
    torch.testing.assert_close(captured.maps.maps.flatten(2), want, atol=2e-6, rtol=0)
    assert torch.equal(ended.maps.maps, captured.maps.maps[:, :8])


def test_two_images_in_a_sequence_need_layouts(llava):
    model, processor = llava
    inputs = inputs_of(processor, texts=TEXTS[:1])
    ids = inputs["input_ids"]
    image = ids[:, 1:17]
    inputs["input_ids"] = torch.cat([ids[:, :17], image, ids[:, 17:]], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["pixel_values"] = inputs["pixel_values"].repeat(2, 1, 1, 1)
    message = "2 images in 1 sequences; pass layouts="
    with pytest.raises(ValueError, match=message), torch.no_grad(), capture(model):
        model(**inputs)
    second = ImageLayout((4, 4), tuple(range(17, 33)))
    want = eager(model, inputs)[0, :, -1, 17:33]
    with torch.no_grad(), capture(model, layouts=second) as captured:
        model(**inputs)
    torch.testing.assert_close(captured.maps.maps[0].flatten(1), want, atol=2e-6, rtol=0)
    for tokens, at in ((range(30, 46), 45), (range(-1, 15), -1)):
        outside = ImageLayout((4, 4), tuple(tokens))
        message = rf"in the sequence of \d+ tokens, but .* is at {at}"
        for layout in (outside, replace(outside, all_tokens=tuple(range(17)))):
            with (
                pytest.raises(ValueError, match=message),
                torch.no_grad(),
                capture(model, layouts=layout),
            ):
                model(**inputs)


@pytest.mark.parametrize("name", ["paged|sdpa", "paged|eager", "paged|flash_attention_2"])
def test_other_attention_is_refused(llava, monkeypatch, name):
    monkeypatch.setattr(llava[0].config.text_config, "_attn_implementation_internal", name)
    message = rf"together with its masks, such as sdpa or eager, but uses '{re.escape(name)}'"
    with pytest.raises(ValueError, match=message), capture(llava[0]):
        pass


def test_images_of_several_grids_in_one_batch(llava):
    # Of the 4 x 4 cells each sequence asks for its own part, as if it had another grid.
    model, processor = llava
    inputs = inputs_of(processor)
    rows = torch.tensor([[1, 20], [0, 18], [1, 19], [2, 17]])
    with torch.no_grad(), capture(model, rows=rows) as whole:
        model(**inputs)
    at = (inputs["input_ids"][0] == 4).nonzero()[:, 0].tolist()
    layouts = [
        ImageLayout((2, 3), tuple(at[:6])),
        ImageLayout((4, 4), tuple(at)),
        ImageLayout((1, 2), tuple(at[:2]), all_tokens=tuple(at[:5])),
    ]
    with torch.no_grad(), capture(model, rows=rows, layouts=layouts) as captured:
        model(**inputs)
    assert [each.maps.shape[2:] for each in captured.each] == [(2, 3), (4, 4), (1, 2)]
    assert [each.layout for each in captured.each] == layouts
    flat = whole.maps.maps.flatten(2)
    for each, mine, image in zip(captured.each, [[1], [0, 2], [3]], [6, 16, 5], strict=True):
        want = flat[mine]
        cells = each.maps[0, 0].numel()
        assert torch.equal(each.maps.flatten(2), want[..., :cells])
        torch.testing.assert_close(each.sums, want[..., :image].sum(-1), atol=1e-6, rtol=0)
    assert captured.sums.shape == (4, 12)
    with pytest.raises(RuntimeError, match=r"\(1, 2\), \(2, 3\), \(4, 4\); read captured.each"):
        captured.maps  # noqa: B018
    for wrong in (5, [None] * 3):
        message = "must be an ImageLayout or one a sequence"
        with pytest.raises(ValueError, match=message), capture(model, layouts=wrong):
            model(**inputs)
    two = rows[[1, 3]]
    with torch.no_grad(), capture(model, rows=two, layouts=[layouts[2]] * 3) as captured:
        model(**inputs)
    assert captured.maps.maps.shape == (2, 12, 1, 2)
    assert [len(each.maps) for each in captured.each] == [1, 0, 1]
    with (
        pytest.raises(ValueError, match=r"one a sequence \(3\), but got 2"),
        torch.no_grad(),
        capture(model, layouts=layouts[:2]),
    ):
        model(**inputs)
