"""Loading, prompts, asking tokens, and what bad input is told."""

import json

import numpy as np
import pytest
import torch
from fastground import models
from fastground.models import wrap
from fastground.types import Recipe
from PIL import Image
from random_llava import CHAT, image_processor, random_llava

IMAGE = Image.new("RGB", (31, 20), (200, 30, 30))
RECIPE = Recipe()


@pytest.fixture(scope="module")
def lvlm():
    return wrap(*random_llava(0), checkpoint="random")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("llava")
    model, processor = random_llava(0)
    model.half().save_pretrained(path)
    processor.save_pretrained(path)
    return path


def words(lvlm, ids):
    return lvlm.processor.tokenizer.convert_ids_to_tokens(ids)


def test_plain_prompt_is_image_then_expression(lvlm):
    encoded = lvlm.encode(IMAGE, ["the red mug", "a dog."], RECIPE)
    first, second = (words(lvlm, ids) for ids in encoded.token_ids)
    assert first == ["<s>", *["<image>"] * 16, "the", "red", "mug", "."]
    assert second[17:] == ["a", "dog", "."]
    assert encoded.asking == ((20,), (19,))
    assert encoded.prefix_length == 17
    assert encoded.layout.tokens == tuple(range(1, 17))
    assert encoded.layout.grid == (4, 4)
    assert encoded.image_inputs["pixel_values"].shape == (1, 3, 16, 16)
    assert encoded.expressions == ("the red mug", "a dog.")


def test_without_a_period_the_last_word_asks(lvlm):
    encoded = lvlm.encode(IMAGE, [" the red mug "], Recipe(ensure_period=False))
    assert words(lvlm, encoded.token_ids[0])[-1] == "mug"
    assert encoded.asking == ((19,),)


@pytest.mark.parametrize(("query", "asks"), [("last_expression", "."), ("last_prompt", ":")])
def test_chat_prompt_and_its_asking_token(query, asks):
    lvlm = wrap(*random_llava(0))
    lvlm.processor.chat_template = CHAT
    encoded = lvlm.encode(IMAGE, ["a"], Recipe(template="chat", query=query))
    said = words(lvlm, encoded.token_ids[0])
    assert said[-4:] == ["a", ".", "assistant", ":"]
    assert said[encoded.asking[0][0]] == asks
    assert said[: encoded.prefix_length] == ["<s>", "user", ":", *["<image>"] * 16]


def test_models_of_chat_get_their_system_sentence_in_a_plain_prompt():
    lvlm = wrap(*random_llava(0))
    assert lvlm.words(RECIPE) == ("<image>\n", "")
    lvlm.processor.chat_template = CHAT
    before, after = lvlm.words(RECIPE)
    assert before.startswith("A chat between a curious user")
    assert before.endswith(" <image>\n")
    assert after == ""


def test_tokens_that_straddle_the_end_of_the_expression():
    from fastground.models.expressions import inside

    spans = [(0, 0), (0, 7), (8, 11), (12, 15), (15, 17), (17, 20)]
    assert inside(spans, 8, 16) == [2, 3, 4]
    assert inside(spans, 8, 15) == [2, 3]


def test_the_class_token_of_full_features_is_no_cell():
    lvlm = wrap(*random_llava(0, strategy="full"))
    layout = lvlm.encode(IMAGE, ["x"], RECIPE).layout
    assert layout.all_tokens == tuple(range(1, 18))
    assert layout.tokens == tuple(range(2, 18))


def test_load_reads_a_folder_in_float32_on_the_cpu(folder):
    loaded = models.load(folder, device="cpu")
    assert loaded.model.dtype == torch.float32
    assert not loaded.model.training
    assert loaded.checkpoint == str(folder)
    assert loaded.architecture == {"model_type": "llava", "num_layers": 3, "num_heads": 4}
    assert loaded.shares_prefix
    encoded = loaded.encode(IMAGE, ["the mug"], RECIPE)
    with torch.no_grad():
        logits = loaded.model(input_ids=encoded.token_ids[0][None], **encoded.image_inputs).logits
    assert logits.isfinite().all()
    assert "3 layers x 4 heads" in repr(loaded)


def test_load_takes_a_dtype(folder):
    loaded = models.load(str(folder), device="cpu", dtype=torch.bfloat16)
    assert loaded.encode(IMAGE, ["x"], RECIPE).image_inputs["pixel_values"].dtype == torch.bfloat16


def test_quantised_weights_are_placed_as_they_are_read(folder, tmp_path, monkeypatch):
    from transformers import AutoModelForImageTextToText

    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    asked = {}

    def from_pretrained(source, **keywords):
        asked.update(keywords)
        model = random_llava(0)[0]
        monkeypatch.setattr(type(model), "to", None)  # as those models refuse to be moved
        return model

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", from_pretrained)
    models.load(tmp_path, device="cpu")
    assert asked["device_map"] == {"": "cpu"}


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (("processor_config.json", "tokenizer.json", "tokenizer_config.json"), "with a processor"),
        (("model.safetensors",), "model's weights"),
        (("config.json",), "config.json of a transformers model"),
    ],
)
def test_an_incomplete_folder_says_what_is_missing(folder, tmp_path, missing, message):
    for file in folder.iterdir():
        if file.name not in missing:
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(ValueError, match=message):
        models.load(tmp_path, device="cpu")


def test_a_processor_without_images_is_refused(folder, tmp_path):
    for file in folder.iterdir():
        if file.name != "processor_config.json":
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(ValueError, match="processor"):
        models.load(tmp_path, device="cpu")


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"there is no '\./nowhere'"):
        models.load("./nowhere")


def test_a_tokenizer_of_another_model_is_refused():
    model, processor = random_llava(0)
    model.config.image_token_id = 60
    with pytest.raises(ValueError, match="do not belong together"):
        wrap(model, processor).encode(IMAGE, ["x", "the mug"], RECIPE)


def test_unsupported_families_are_listed(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(
        ValueError, match=r"supported families \(llava, .*\), or .* its model_type is 'b"
    ):
        models.load(tmp_path)
    with pytest.raises(ValueError, match="must be a transformers model, but got Linear"):
        wrap(torch.nn.Linear(2, 2), None)


def test_a_model_in_training_mode_is_refused():
    model, processor = random_llava(0)
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        wrap(model.train(), processor)


def test_an_unsupported_vision_tower_is_refused(monkeypatch):
    model, processor = random_llava(0)
    monkeypatch.setattr(model.config.vision_config, "model_type", "dinov2")
    with pytest.raises(ValueError, match=r"clip_vision_model with default.*but got dinov2"):
        wrap(model, processor)


@pytest.mark.parametrize(
    ("expressions", "message"),
    [
        ([], "at least one string"),
        ("the mug", "list of at least one string, but got 'the mug'"),
        (["the mug", "  "], "must say something"),
        ([3], "must say something"),
        (["the <image> mug"], "must not hold the image token"),
        (["the \ud800 mug"], "must be text in Unicode"),
        (["x", "red " * 5000], r"has 5018 tokens .16 .* reads 2048: 'red .* fewer words"),
    ],
)
def test_bad_expressions_are_named(lvlm, expressions, message):
    with pytest.raises(ValueError, match=message):
        lvlm.encode(IMAGE, expressions, RECIPE)


def test_unknown_words_are_named_with_the_known_ones(lvlm):
    with pytest.raises(
        ValueError, match=r"'the teapot by mug.' has 'teapot', 'by'; random knows: a "
    ):
        lvlm.encode(IMAGE, ["the mug", "the teapot by mug"], RECIPE)


def test_chat_needs_a_template(lvlm):
    with pytest.raises(ValueError, match="use template='plain'"):
        lvlm.encode(IMAGE, ["x"], Recipe(template="chat"))


def test_images_that_are_none_are_refused(lvlm, tmp_path, monkeypatch):
    text = tmp_path / "notes.png"
    text.write_text("no image")
    with pytest.raises(ValueError, match=r"Pillow can read .*notes.png"):
        lvlm.encode(str(text), ["x"], RECIPE)
    with pytest.raises(FileNotFoundError, match="is not there"):
        lvlm.encode(tmp_path / "absent.png", ["x"], RECIPE)
    with pytest.raises(ValueError, match=r"PIL\.Image\.open"):
        lvlm.encode(b"bytes", ["x"], RECIPE)
    with pytest.raises(ValueError, match="must have pixels"):
        lvlm.encode(Image.new("RGB", (0, 4)), ["x"], RECIPE)
    for values in (np.full((4, 4), 900, np.int32), np.full((4, 4), 0.5, np.float32)):
        with pytest.raises(ValueError, match="must have 8 or 16 bits a channel, but its mode is"):
            lvlm.encode(Image.fromarray(values), ["x"], RECIPE)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    IMAGE.save(tmp_path / "large.png")
    with pytest.raises(ValueError, match="decompression bomb"):
        lvlm.encode(tmp_path / "large.png", ["x"], RECIPE)
    monkeypatch.undo()
    half = tmp_path / "half.png"
    IMAGE.resize((300, 300)).save(half)
    half.write_bytes(half.read_bytes()[:200])
    with pytest.raises(ValueError, match="Pillow can read"):
        lvlm.encode(half, ["x"], RECIPE)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_images_of_every_mode_become_rgb(lvlm, mode, tmp_path):
    path = tmp_path / "image.tif"
    IMAGE.convert(mode).save(path)
    by_path = lvlm.encode(path, ["x"], RECIPE).image_inputs["pixel_values"]
    assert by_path.shape == (1, 3, 16, 16)
    straight = lvlm.encode(IMAGE.convert(mode), ["x"], RECIPE).image_inputs["pixel_values"]
    assert torch.equal(by_path, straight)


def test_a_processor_that_makes_other_pixels_than_it_says_is_refused(monkeypatch):
    lvlm = wrap(*random_llava(0))
    monkeypatch.setattr(lvlm, "image_processor", image_processor(24))
    encoded = lvlm.encode(IMAGE, ["x"], RECIPE)
    assert encoded.layout.grid == (6, 6)
    lies = type(lvlm.image_processor)._preprocess
    monkeypatch.setattr(
        type(lvlm.image_processor),
        "_preprocess",
        lambda self, images, **settings: lies(self, images, **settings | {"do_center_crop": False}),
    )
    lvlm.image_processor.size = {"shortest_edge": 30}
    with pytest.raises(ValueError, match=r"must make the \(24, 24\) pixels .* made \(30, 30\)"):
        lvlm.encode(IMAGE, ["x"], RECIPE)
