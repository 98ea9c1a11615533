"""A checkpoint's folder gives back what was saved there, with torchvision or without."""

import json

import pytest
import torch
from families import all_families
from fastground import models
from fastground.models import processors
from fastground.types import Recipe
from test_adapters import FAMILIES, TEXTS, made, picture


def reader(lvlm):
    """The image processor's class, by Pillow or by torchvision, which a checkpoint does not say."""
    return type(lvlm.processor.image_processor).__name__.removesuffix("Pil")


def same(found, want, exactly=True):
    """That two models are given the same; pixels that another library resized only come near."""
    assert found.layout == want.layout
    for mine, theirs in zip(found.token_ids, want.token_ids, strict=True):
        assert torch.equal(mine, theirs)
    assert found.image_inputs.keys() == want.image_inputs.keys()
    for name, value in want.image_inputs.items():
        if exactly or not value.is_floating_point():
            assert torch.equal(found.image_inputs[name], value), name
        else:
            torch.testing.assert_close(found.image_inputs[name], value, atol=0.15, rtol=0)
    if want.prefix_positions is not None:
        assert torch.equal(found.prefix_positions, want.prefix_positions)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_checkpoint_is_loaded_as_it_was(family, tmp_path):
    lvlm = made(family)
    lvlm.model.save_pretrained(tmp_path)
    lvlm.processor.save_pretrained(tmp_path)
    try:
        loaded = models.load(tmp_path, device="cpu")
    except ValueError as error:
        assert not family.loads, error
        assert family.refusal in str(error).replace("Torchvision", "torchvision")
        return
    assert type(loaded) is type(lvlm)
    assert loaded.architecture == lvlm.architecture
    for name, weight in lvlm.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], weight), name
    recipe = Recipe()
    exactly = type(loaded.processor.image_processor) is type(lvlm.processor.image_processor)
    assert reader(loaded) == reader(lvlm)
    same(loaded.encode(picture(), TEXTS, recipe), lvlm.encode(picture(), TEXTS, recipe), exactly)
    if lvlm.processor.chat_template:
        assert loaded.chat() == lvlm.chat()


LOADED = [pytest.param(family, id=str(family)) for family in all_families() if family.loads]


@pytest.mark.parametrize("family", LOADED)
def test_files_as_checkpoints_used_to_have_them(family, tmp_path):
    # Published ones keep their parts apart, in classes that are gone, and one is for videos.
    lvlm = made(family)
    images = lvlm.processor.image_processor
    settings = images.to_dict() | {
        "image_processor_type": type(images).__name__.removesuffix("Pil") + "Fast",
        "processor_class": type(lvlm.processor).__name__,
    }
    parts = {
        "processor_config": lvlm.processor.to_dict(),
        "preprocessor_config": settings,
        "video_preprocessor_config": settings,
        "chat_template": {"chat_template": lvlm.processor.chat_template},
    }
    parts["processor_config"].pop("image_processor")
    for name, content in parts.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    lvlm.processor.tokenizer.save_pretrained(tmp_path)
    found = processors.load(str(tmp_path), lvlm.model.config, trust_remote_code=False)
    loaded = models.wrap(lvlm.model, found, checkpoint="loaded")
    assert reader(loaded) == reader(lvlm)
    exactly = type(found.image_processor) is type(images)
    for template in ("plain", "chat") if lvlm.processor.chat_template else ("plain",):
        recipe = Recipe(template=template)
        ours, want = (each.encode(picture(), TEXTS, recipe) for each in (loaded, lvlm))
        same(ours, want, exactly)


def test_a_processor_without_videos_is_that_class():
    from transformers import Qwen2VLProcessor

    kind = processors.without_video(Qwen2VLProcessor)
    assert issubclass(kind, Qwen2VLProcessor)
    assert kind.__name__ == "Qwen2VLProcessor"
    assert "video_processor" in Qwen2VLProcessor.get_attributes()
    assert kind.get_attributes() == ["image_processor", "tokenizer"]
