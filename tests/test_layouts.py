"""The image in the input of a bare model: found where it is plain, refused where it is not."""

from types import SimpleNamespace

import pytest
import torch
from fastground.layouts import find_image, moved
from fastground.types import ImageLayout

IMAGE = 9
VISION = SimpleNamespace(patch_size=14, spatial_merge_size=2)


def config(vision=VISION, **more):
    return SimpleNamespace(image_token_id=IMAGE, vision_config=vision, **more)


def words(*runs, before=2, length=None):
    """(batch, length) token ids with so many image tokens in a row each."""
    length = length or before + max(runs) + 3
    ids = torch.ones(len(runs), length, dtype=torch.long)
    for row, run in zip(ids, runs, strict=True):
        row[before : before + run] = IMAGE
    return ids


def pixels(*shape):
    return torch.zeros(*shape)


def test_a_token_a_patch():
    found = find_image(
        config(), {"input_ids": words(6, 6), "pixel_values": pixels(2, 3, 28, 42)}, 2
    )
    assert [layout.grid for layout in found] == [(2, 3), (2, 3)]
    assert found[0].tokens == tuple(range(2, 8)) and found[0].all_tokens is None


def test_a_class_token_before_them():
    full = config(vision_feature_select_strategy="full")
    [found] = find_image(full, {"input_ids": words(7), "pixel_values": pixels(1, 3, 28, 42)}, 1)
    assert found.tokens == tuple(range(3, 9)) and found.all_tokens == tuple(range(2, 9))


def test_grids_of_their_own_merged_in_squares():
    given = {
        "input_ids": words(6, 8),
        "pixel_values": pixels(24 + 32, 588),
        "image_grid_thw": torch.tensor([[1, 4, 6], [1, 8, 4]]),
    }
    assert [layout.grid for layout in find_image(config(), given, 2)] == [(2, 3), (4, 2)]


@pytest.mark.parametrize(
    ("more", "shape", "tokens", "grid"),
    [
        ({"downsample_ratio": 0.5}, (1, 3, 56, 84), 6, (2, 3)),
        ({"scale_factor": 2}, (1, 1, 3, 56, 56), 4, (2, 2)),
        ({"downsample_factor": 2}, (1, 3, 56, 56), 4, (2, 2)),
        ({"mm_tokens_per_image": 9}, (1, 3, 896, 896), 9, (3, 3)),
        ({"vision": SimpleNamespace(patch_size=[14, 14])}, (1, 3, 28, 28), 4, (2, 2)),
    ],
)
def test_merged_patches_of_one_tile(more, shape, tokens, grid):
    given = {"input_ids": words(tokens), "pixel_values": pixels(*shape)}
    [found] = find_image(config(**more), given, 1)
    assert found.grid == grid and found.tokens == tuple(range(2, 2 + tokens))


def test_a_layout_follows_its_image():
    """Made with other words before it: by its cells, with what stands between, after padding."""
    ids = words(6, 6, before=5)
    ids[1] = ids[1].roll(2)
    plain, rows = ImageLayout((2, 3), tuple(range(1, 7))), (1, 2, 3, 5, 6, 7)
    found = moved([plain, plain], config(), {"input_ids": ids}, 0)
    assert [a.tokens[0] for a in found] == [5, 7]
    assert moved(found, config(), {"input_ids": ids}, 0) == found
    ids = words(7, before=4)
    ids[0, 7] = 1  # an end of a row, which is the image's, too
    [found] = moved([ImageLayout((2, 3), rows, tuple(range(9)))], config(), {"input_ids": ids}, 0)
    assert found.tokens == (4, 5, 6, 8, 9, 10) and found.all_tokens == tuple(range(3, 12))
    tiles = ImageLayout((1, 2), (12, 13), tuple(range(11, 18)))
    [found] = moved([tiles], config(), {"input_ids": words(7, before=3)}, 10)
    assert found.tokens == (14, 15) and found.all_tokens == tuple(range(13, 20))


def test_a_layout_stays_where_the_input_says_nothing_against_it():
    layout = ImageLayout((1, 2), (3, 4))
    for given in ({"input_ids": words(6)}, {"input_ids": words(0)}, {"input_ids": None}, {}):
        assert moved([layout], config(), given, 0) == [layout]
    for image in (2, 1):  # another behind the cached one, the last token of the same
        assert moved([layout], config(), {"input_ids": words(image, before=0)}, 4) == [layout]
    with pytest.raises(ValueError, match=r"2 tokens from 3 on, .* 5 image tokens from 4 on; pass"):
        moved([layout], config(), {"input_ids": words(5, before=4)}, 0)


class Cached:
    def get_seq_length(self):
        return 5


TWO_PIECES = words(6)
TWO_PIECES[0, [4, 9]] = TWO_PIECES[0, [9, 4]]


@pytest.mark.parametrize(
    ("more", "given", "message"),
    [
        ({}, {"input_ids": words(6)}, "does not hold input_ids with image tokens and pixel_values"),
        ({}, {"pixel_values": pixels(1, 3, 28, 42)}, "does not hold input_ids"),
        ({}, {"input_ids": words(0)}, "0 image tokens for 2 x 3 cells"),
        ({}, {"input_ids": words(12)}, "12 image tokens for 2 x 3 cells"),
        ({}, {"input_ids": TWO_PIECES}, "one image in one piece"),
        ({}, {"pixel_values": pixels(2, 3, 28, 42)}, "2 images in 1 sequences"),
        ({}, {"pixel_values": pixels(1, 4, 3, 28, 42)}, "they say no grid"),
        ({"downsample_ratio": 0.5}, {"pixel_values": pixels(1, 3, 42, 42)}, "no grid"),
        ({"mm_tokens_per_image": 6}, {}, "no grid"),
        ({"perceiver_config": object()}, {}, "no grid"),
        ({"vision": SimpleNamespace()}, {}, "no grid"),
        ({}, {"image_grid_thw": torch.tensor([[2, 4, 6]])}, "no grid"),
        ({}, {"past_key_values": Cached()}, "where keys are cached already"),
        ({}, {"cache": Cached(), "past_key_values": None}, "where keys are cached already"),
    ],
)
def test_what_is_not_plain_is_refused(more, given, message):
    usual = {"input_ids": words(6), "pixel_values": pixels(1, 3, 28, 42)}
    if "does not hold" in message:
        usual = {}
    with pytest.raises(ValueError, match=message) as raised:
        find_image(config(**more), {**usual, **given}, 1)
    assert "pass layouts=, from fastground.models.wrap" in str(raised.value)


def test_images_encoded_before_by_generate():
    # What newer transformers hands its model: the tower's output instead of pixels.
    given = {"input_ids": words(4, 4), "mm_encoder_outputs": {"image": object()}}
    vision = SimpleNamespace(patch_size=14, image_size=28)
    assert [a.grid for a in find_image(config(vision), given, 2)] == [(2, 2), (2, 2)]
    with pytest.raises(ValueError, match="6 image tokens for 2 x 2 cells"):
        find_image(config(vision), given | {"input_ids": words(6)}, 1)
    with pytest.raises(ValueError, match="6 image tokens for 0 x 0 cells"):
        find_image(config(), given | {"input_ids": words(6)}, 1)


def test_a_bare_qwen_of_several_grids():
    # Through the whole of capture, against the model's own attention.
    from fastground.capture import capture
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(
            text_config={
                "vocab_size": 32, "hidden_size": 64, "intermediate_size": 96,
                "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]},
                "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
            },
            vision_config={
                "depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 64, "patch_size": 4,
            },
            image_token_id=IMAGE, video_token_id=10, vision_start_token_id=11,
            vision_end_token_id=12,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "language_model" in name and weight.ndim == 2:
                weight.mul_(8 if "q_proj" in name or "k_proj" in name else 4)
    ids = words(6, 8, before=3)
    ids[:, 2], ids[:, -1] = 11, 5
    ids[ids == 1] = torch.arange(20, 20 + int((ids == 1).sum())) % 12 + 16
    ids[0, 9], ids[1, 11] = 12, 12
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(24 + 32, 3 * 2 * 16),
        "image_grid_thw": torch.tensor([[1, 4, 6], [1, 8, 4]]),
        "mm_token_type_ids": (ids == IMAGE).int(),
    }
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = torch.cat(model(**inputs, output_attentions=True).attentions, dim=1)
    model.set_attn_implementation("sdpa")
    with torch.no_grad(), capture(model) as captured:
        model(**inputs)
    assert [each.layout.grid for each in captured.each] == [(2, 3), (4, 2)]
    for b, each in enumerate(captured.each):
        want = attentions[b, :, -1][:, ids[b] == IMAGE]
        assert want.max() > 0.1
        torch.testing.assert_close(each.maps[0].flatten(1), want, atol=2e-6, rtol=0)
