"""Converted checkpoints: the original's logits to 1e-5, words, geometry, and what is refused."""

import json

import originals
import pytest
import torch
from fastground import models
from fastground.models import towers
from fastground.types import Recipe
from PIL import Image
from safetensors.torch import load_file, save_file

NAMES = ["llava_v1", "sharegpt4v", "yi_vl", "internvl_chat"]


def picture(size=(31, 20), seed=0):
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(0, 256, (*size[::-1], 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(colours.numpy())


@torch.no_grad()
def compared(original, lvlm, template="chat"):
    """(found, wanted): logits of the converted model and of the original's arithmetic."""
    encoded = lvlm.encode(picture(), ["the red mug on the left"], Recipe(template=template))
    ids, image = encoded.token_ids[0], list(encoded.layout.all_tokens or encoded.layout.tokens)
    assert image == list(range(image[0], image[-1] + 1))
    pixels = encoded.image_inputs["pixel_values"]
    wanted = originals.logits(original, ids[: image[0]], pixels, ids[image[-1] + 1 :])
    found = lvlm.model(input_ids=ids[None], **encoded.image_inputs).logits[0]
    return found[:, : wanted.shape[1]], wanted


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_the_original(name, tmp_path):
    original = originals.make(name, seed=3)
    source = originals.write(original, tmp_path / "original")
    lvlm = models.load(models.convert(source, tmp_path / "out"), device="cpu")
    found, wanted = compared(original, lvlm)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert wanted.std() > 0.5  # not flat, or the comparison would say little


@pytest.fixture(scope="module")
def lvlms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    made = {}
    for name in NAMES:
        source = originals.write(originals.make(name), folder / name)
        made[name] = models.load(models.convert(source, folder / f"{name}-out"), device="cpu")
    return made


@pytest.mark.parametrize(
    ("name", "plain", "chat"),
    [
        ("llava_v1", "A chat between", "USER: <im_start><image><im_end>\na. ASSISTANT:"),
        ("sharegpt4v", "A chat between", "USER: <image>\na. ASSISTANT:"),
        ("internvl_chat", "A chat between", "USER: <image>\na. ASSISTANT:"),
        ("yi_vl", "This is a chat between", "\n\n### Human: <image>\na.\n### Assistant:"),
    ],
)
def test_words_are_those_that_the_model_was_taught(lvlms, name, plain, chat):
    lvlm = lvlms[name]
    before, after = lvlm.words(Recipe())
    mark = "<im_start><image><im_end>" if name == "llava_v1" else "<image>"
    assert before.startswith(plain) and before.endswith(f"{mark}\n") and after == ""
    before, after = lvlm.words(Recipe(template="chat"))
    assert (before + "a." + after).startswith(plain)
    assert (before + "a." + after).endswith(chat)


@pytest.mark.parametrize("name", NAMES)
def test_images_are_padded_to_a_square_and_the_class_token_is_left_out(lvlms, name):
    lvlm = lvlms[name]
    layout = lvlm.encode(picture((32, 20)), ["a"], Recipe()).layout
    assert layout.grid == (4, 4) and layout.all_tokens is None
    assert layout.cell_size == (8.0, 8.0)
    assert layout.origin == (0.0, -6.0)
    # The cell at row 1, column 2 begins 6 pixels of padding higher than without.
    box = layout.to_pixels(torch.tensor([[2.0, 1.0, 3.0, 2.0]]))
    assert box.tolist() == [[16.0, 2.0, 24.0, 10.0]]
    padding = lvlm.encode(picture((32, 20)), ["a"], Recipe()).image_inputs["pixel_values"]
    assert padding[0, :, 0].abs().max() < 0.02  # the mean colour, which becomes nearly zero


def test_an_intern_vit_is_shown_larger_images_than_it_has_positions_for(tmp_path, monkeypatch):
    monkeypatch.setattr(towers, "INTERN_VIT_SIDES", {16: 24})
    original = originals.make("internvl_chat", seed=1)
    source = originals.write(original, tmp_path / "original")
    lvlm = models.load(models.convert(source, tmp_path / "out"), device="cpu")
    assert lvlm.encode(picture(), ["a"], Recipe()).layout.grid == (6, 6)
    found, wanted = compared(original, lvlm)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_a_tower_that_was_trained_along_is_taken_before_its_own_checkpoint(tmp_path):
    original = originals.make("sharegpt4v")
    source = originals.write(original, tmp_path / "original")
    trained = originals.make("sharegpt4v", seed=9).tower_weights
    inside = {f"model.vision_tower.vision_tower.{name}": t for name, t in trained.items()}
    save_file(inside, source / "model-00002-of-00002.safetensors")
    lvlm = models.load(models.convert(source, tmp_path / "out"), device="cpu")
    found, other = compared(original, lvlm)
    assert (found - other).abs().max() > 0.1
    original.tower_weights = trained
    found, wanted = compared(original, lvlm)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_features_with_the_class_token(tmp_path):
    original = originals.make("sharegpt4v")
    original.config["mm_vision_select_feature"] = "cls_patch"
    source = originals.write(original, tmp_path / "original")
    lvlm = models.load(models.convert(source, tmp_path / "out"), device="cpu")
    layout = lvlm.encode(picture(), ["a"], Recipe()).layout
    assert len(layout.all_tokens) == 17 and layout.tokens == layout.all_tokens[1:]


def test_yi_vl_in_its_community_port(tmp_path):
    """Older transformers names, and norms that are called linear_2 and linear_4."""
    original = originals.make("yi_vl", seed=5)
    tower = original.tower["vision_config"]
    original.tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    image, rows = original.tokenizer.convert_tokens_to_ids("<image>"), 8
    renamed = {f"vision_tower.{n}": t for n, t in original.tower_weights.items()}
    for name, tensor in original.weights.items():
        if name.startswith("model.mm_projector."):
            number, kind = name.split(".")[2:]
            number = {"0": 1, "1": 2, "3": 3, "4": 4}[number]
            renamed[f"multi_modal_projector.linear_{number}.{kind}"] = tensor
        else:
            if "embed_tokens" in name or "lm_head" in name:
                tensor = torch.cat([tensor, torch.randn(rows, tensor.shape[1])])
            renamed[f"language_model.{name}"] = tensor
    text = {k: v for k, v in original.config.items() if not k.startswith("mm_")}
    config = {
        "model_type": "llava", "is_yi_vl_derived_model": True, "image_token_index": image,
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
        "vision_config": tower,
        "text_config": text | {"model_type": "llama", "vocab_size": text["vocab_size"] + rows},
    }  # fmt: skip
    port = tmp_path / "port"
    port.mkdir()
    (port / "config.json").write_text(json.dumps(config))
    original.tokenizer.save_pretrained(port)
    save_file(renamed, port / "model.safetensors")
    with pytest.raises(ValueError, match=r"convert its folder once with fastground\.models\."):
        models.load(port)
    lvlm = models.load(models.convert(port, tmp_path / "out"), device="cpu")
    assert type(lvlm).__name__ == "YiVL"
    found, wanted = compared(original, lvlm)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_a_checkpoint_keeps_its_dtype_and_its_answers(tmp_path):
    original = originals.make("llava_v1")
    rows = len(original.weights["lm_head.weight"])
    original.weights = {name: t.half() for name, t in original.weights.items()}
    out = models.convert(originals.write(original, tmp_path / "original"), tmp_path / "out")
    stored = {}
    for file in out.glob("*.safetensors"):
        stored |= load_file(file)
    assert stored["model.language_model.norm.weight"].dtype == torch.float16
    assert stored["model.vision_tower.post_layernorm.weight"].dtype == torch.float32
    second = stored["model.multi_modal_projector.linear_2.weight"]
    assert torch.equal(second, torch.eye(64, dtype=torch.float16))
    for table in ("lm_head.weight", "model.language_model.embed_tokens.weight"):
        assert len(stored[table]) == rows + 1
        assert torch.equal(stored[table][-1], stored[table][original.tokenizer.unk_token_id])
    loaded = models.load(out, device="cpu", dtype=torch.float16)
    assert loaded.model.dtype == torch.float16


def published(tmp_path, name="sharegpt4v", **config):
    """A folder in the original layout, with its config.json changed; None leaves an entry out."""
    original = originals.make(name)
    original.config = {k: v for k, v in (original.config | config).items() if v is not None}
    return originals.write(original, tmp_path / "original")


def test_the_original_layout_is_not_loaded_but_shown_the_way(tmp_path):
    with pytest.raises(ValueError, match=r"layout, but .*convert its folder once"):
        models.load(published(tmp_path))


def test_a_delta_is_refused(tmp_path):
    original = originals.make("llava_v1")
    original.weights = {name: t * 0.01 for name, t in original.weights.items()}
    source = originals.write(original, tmp_path / "LLaVA-7b-delta-v1-1")
    with pytest.raises(ValueError, match=r"only the differences to a LLaMA.*apply_delta"):
        models.convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "llava_mpt"}, "original layout .* has model_type 'llava_mpt'"),
        ({"mm_projector_type": "mlp3x_gelu"}, "one of the projectors linear, .*mlp3x_gelu"),
        ({"image_aspect_ratio": "anyres"}, "one view of an image.*use the llava-hf checkpoints"),
        ({"mm_use_im_start_end": True}, "a tokenizer that knows <im_start> and <im_end>"),
        ({"num_hidden_layers": 4}, "weights that its configuration says, but 9 differ, such as"),
    ],
)
def test_what_cannot_be_converted_is_named(tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        models.convert(published(tmp_path, **config), tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()


def test_folders_that_lack_something(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must hold a config\.json"):
        models.convert(tmp_path / "nowhere", tmp_path / "out")
    source = published(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"must hold a config\.json"):
        models.convert(source, tmp_path / "out", vision_tower=tmp_path / "nowhere")
    (source / "tower").rename(tmp_path / "elsewhere")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"mm_vision_tower": "no//tower"}))
    with pytest.raises(ValueError, match=r"vision_tower must be given: .* names 'no//tower'"):
        models.convert(source, tmp_path / "out")
    out = models.convert(source, tmp_path / "out", vision_tower=tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="out must be a new folder"):
        models.convert(source, out, vision_tower=tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "config.json").write_text(json.dumps({"model_type": "eva"}))
    with pytest.raises(ValueError, match=r"must be a CLIP or an InternViT-6B, but .* 'eva'"):
        models.convert(source, tmp_path / "other", vision_tower=tmp_path / "elsewhere")
    for file in source.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ValueError, match="must hold weights"):
        models.convert(source, tmp_path / "other", vision_tower=tmp_path / "elsewhere")


def test_the_tokenizer_is_asked_for(tmp_path):
    source = published(tmp_path)
    for file in source.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"must hold a tokenizer, but .*sentencepiece"):
        models.convert(source, tmp_path / "out")


def test_known_towers_need_no_configuration():
    config = towers.config(None, "openai/clip-vit-large-patch14-336")
    assert (config.image_size, config.hidden_size, config.num_hidden_layers) == (336, 1024, 24)
    settings = towers.image_settings(config, [])
    assert settings["crop_size"] == {"height": 336, "width": 336}
