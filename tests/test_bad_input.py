"""What a user may bring that is broken or unusual: it works, or one line says what to do."""

import dataclasses
import json
import re

import numpy as np
import pytest
import small_world
import torch
from fastground import Grounder, discover, evaluate, models
from fastground.attention import attention_maps
from fastground.capture import capture
from fastground.types import HeadId, Recipe
from random_llava import CHAT, random_llava

TEXTS = ["the red mug", "a dog on the left", "x"]
CHATTING = Recipe(template="chat")
SAID = "{% for m in messages %}{% for c in m['content'] %}{{ c.get('text', '') }}{% endfor %}"


def picture():
    return small_world.samples()[0].image


def own_lvlm(chat=None, grid=6):
    """A model of this test's own, which may be spoilt."""
    model, processor = random_llava(seed=1, grid=grid)
    processor.chat_template = chat
    return models.wrap(model, processor, checkpoint="random")


# The prompt.


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (SAID + "{% endfor %}", r"put one image token .* made \[0\] .* use template='plain'"),
        (SAID + "<image>{% endfor %}", r"before the words.* or last, use template='plain'"),
        (SAID + "<image><image>{% endfor %}", r"made \[2\] of token 4"),
        ("{% for m in messages %}<image>{% endfor %}", "'random' says them 0 times"),
        ("<image>" + SAID * 2 + "{% endfor %}{% endfor %}", "says them 2 times; use template="),
        ("{{ raise_exception('roles!') }}", r"that of 'random' fails \(roles!\); use template="),
        ("{{ 'user: ' + messages[0]['content'] }}", r"fails \(can only .*list.*; use template="),
    ],
)
def test_a_chat_template_that_does_not_suit(template, says):
    with pytest.raises(ValueError, match=says):
        own_lvlm(template).encode(picture(), TEXTS[:1], CHATTING)


def test_the_suiting_template_is_taken():
    found = attention_maps(own_lvlm(CHAT), picture(), TEXTS, recipe=CHATTING)
    assert found.maps.shape == (3, 12, 6, 6) and found.sums.min() > 0


@pytest.mark.parametrize("ensure_period", [True, False])
def test_an_expression_without_tokens(ensure_period):
    """The period that is added must not ask alone."""
    from tokenizers import normalizers

    lvlm = own_lvlm()
    tokenizer = lvlm.processor.tokenizer.backend_tokenizer
    unseen = normalizers.Replace("\u200b", "")
    tokenizer.normalizer = normalizers.Sequence([unseen, normalizers.Lowercase()])
    recipe = Recipe(ensure_period=ensure_period)
    with pytest.raises(ValueError, match=r"must have tokens, but '\\u200b' has none"):
        lvlm.encode(picture(), ["\u200b"], recipe)
    asked = lvlm.encode(picture(), ["the \u200bmug", "the mug"], recipe)
    assert asked.token_ids[0].equal(asked.token_ids[1]) and asked.asking[0] == asked.asking[1]


@pytest.mark.parametrize("typed", ["</s>", "the <pad> mug", "<s> mug", "mug <video>"])
@pytest.mark.parametrize("recipe", [Recipe(), Recipe(query="phrase_mean")])
def test_special_tokens_typed_in_an_expression(typed, recipe):
    """They would end the prompt, or stand for what is not there."""
    lvlm = own_lvlm()
    lvlm.processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<video>", "<ref>"]})
    [special] = re.findall("<.+>", typed)
    with pytest.raises(ValueError, match=f"must not hold special tokens, .* has '{special}'; say"):
        lvlm.encode(picture(), ["the mug", typed], recipe)
    # InternVL and Qwen-VL were taught such marks around an expression.
    referring = lvlm.encode(picture(), ["<ref> mug"], recipe)
    assert lvlm.processor.tokenizer.convert_tokens_to_ids("<ref>") in referring.token_ids[0]


def test_a_bare_model_called_without_an_image():
    model = random_llava(0)[0]
    with pytest.raises(ValueError, match="layouts must be given"), capture(model):
        model(input_ids=torch.tensor([[1, 10, 11]]))
    assert model.config.text_config._attn_implementation == "sdpa"


@pytest.mark.parametrize("given", [None, "llava", torch.nn.Linear(2, 2)])
def test_what_is_no_model_is_not_captured(given):
    with pytest.raises(ValueError, match="model must be a transformers model, but got"):
        capture(given)


# The ranking.


@pytest.mark.parametrize("head", [(3, 0), (0, 4), (-1, 0), (0, -1)])
def test_a_ranking_with_a_head_that_the_model_does_not_have(head):
    ranking = small_world.ranking()
    wrong = dataclasses.replace(ranking.heads[-1], head=HeadId(*head))
    ranking = dataclasses.replace(ranking, heads=(*ranking.heads[:-1], wrong))
    says = rf"of the model's 3 layers x 4 heads, but has {wrong.head}; .*fastground discover random"
    with pytest.raises(ValueError, match=says):
        Grounder(small_world.lvlm(), ranking)


# The model and its processor.


@pytest.mark.parametrize("model_type", ["bert", "llama", "no_such_model"])
def test_an_architecture_that_is_not_supported(tmp_path, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    says = r"^(model must be one of the supported families|checkpoint must be).*" + model_type
    with pytest.raises(ValueError, match=says):
        Grounder.from_pretrained(tmp_path, small_world.ranking(), device="cpu")


def test_an_encoder_beside_the_decoder_is_not_captured():
    model, _ = random_llava(0)
    model.config.is_encoder_decoder = True
    with pytest.raises(ValueError, match="but 'llava' has an encoder beside its decoder"):
        capture(model)


def test_a_language_model_alone():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, pad_token_id=0,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"supported families .* its model_type is 'llama'"):
        models.wrap(LlamaForCausalLM(config).eval(), random_llava(0)[1])


def test_a_processor_without_images_or_words():
    model, processor = random_llava(0)
    for given in (None, processor.tokenizer, processor.image_processor, "llava"):
        with pytest.raises(ValueError, match=f"got {type(given).__name__}; load it with"):
            models.wrap(model, given)


def test_the_two_arguments_of_wrap_exchanged():
    model, processor = random_llava(0)
    with pytest.raises(ValueError, match="must be a transformers model, but got LlavaProcessor"):
        models.wrap(processor, model)


def test_a_model_without_weights():
    model, processor = random_llava(0)
    count = len(list(model.parameters()))
    inputs = processor(images=[picture()], text=["<image>\nthe mug."], return_tensors="pt")
    model.lm_head.to("meta")
    with torch.no_grad(), capture(model, stop_after=1) as captured:  # which does not run
        model(**inputs)
    assert captured.sums.isfinite().all()
    lvlm = models.wrap(model, processor)
    model.to("meta")
    says = f"model must have its weights, but all {count} of its parameters lie on 'meta', .*; load"
    with pytest.raises(ValueError, match=says):
        models.wrap(model, processor)
    with pytest.raises(ValueError, match=says):
        capture(model)
    with pytest.raises(ValueError, match=says):
        attention_maps(lvlm, picture(), TEXTS, recipe=Recipe())


def test_a_model_of_half_precision_on_the_cpu():
    model, processor = random_llava(seed=1, grid=6)
    found = Grounder(models.wrap(model.half(), processor), small_world.ranking())(picture(), "x")
    want = Grounder(small_world.lvlm(), small_world.ranking())(picture(), "x")
    assert found.map.dtype == torch.float32
    assert np.abs(found.map.numpy() - want.map.numpy()).max() < 0.05 * float(want.map.max())


# What is given in another's place.


@pytest.mark.parametrize(("expression", "got"), [(None, "None"), (3, "3")])
def test_an_expression_that_is_no_text(expression, got):
    grounder = Grounder(small_world.lvlm(), small_world.ranking())
    with pytest.raises(ValueError, match=f"must be a text or a list of them, but got {got}"):
        grounder(picture(), expression)


def test_several_images_at_once(tmp_path):
    grounder = Grounder(small_world.lvlm(), small_world.ranking())
    with pytest.raises(ValueError, match=r"but got list; .* give images one by one"):
        grounder([picture(), picture()], "x")
    with pytest.raises(FileNotFoundError, match=r"must be a file, but .* is a folder"):
        grounder(tmp_path, "x")


def test_a_model_or_a_recipe_of_another_kind():
    lvlm, ranking = small_world.lvlm(), small_world.ranking()
    with pytest.raises(
        ValueError, match=r"lvlm must be .* but got str; .* Grounder.from_pretrained"
    ):
        Grounder("tiny", ranking)
    with pytest.raises(ValueError, match=r"model must be .* give .model of what"):
        discover(lvlm, lvlm.processor, small_world.samples())
    with pytest.raises(ValueError, match=r"recipe must be a Recipe, but got dict; give Recipe\("):
        Grounder(lvlm, ranking, recipe={"k": 2})
    with pytest.raises(ValueError, match=r"recipe must be a Recipe, but got dict; give Recipe\("):
        discover(lvlm.model, lvlm.processor, small_world.samples(), recipe={"top_n": 5})


def test_samples_of_another_kind():
    lvlm, pairs = small_world.lvlm(), [(picture(), "x")]
    says = r"but got tuple; give Sample\(image, expression\)"
    with pytest.raises(ValueError, match=says):
        discover(lvlm.model, lvlm.processor, pairs)
    with pytest.raises(ValueError, match=says):
        evaluate(Grounder(lvlm, small_world.ranking()), pairs)
    with pytest.raises(ValueError, match=r"grounder must be .*, but got list; samples come after"):
        evaluate(pairs, Grounder(lvlm, small_world.ranking()))


@pytest.mark.parametrize("name", ["tinny", "./tinny", "/no/where"])
def test_a_checkpoint_that_is_not_there(name):
    """No advice to discover the heads of what is not there."""
    with pytest.raises(ValueError, match=f"checkpoint must be 'tiny'.* there is no '{name}'"):
        Grounder.from_pretrained(name)


@pytest.mark.parametrize("device", ["gpu", "cuda", "cuda:7", "meta:x"])
def test_a_device_that_is_not_there(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"torch has here, such as cpu, but got '{device}'"):
        Grounder.from_pretrained("tiny", device=device)


def test_a_ranking_by_its_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not there; make one with: fastground discover"):
        Grounder.from_pretrained("tiny", tmp_path)
    ranking = Grounder.from_pretrained("tiny").ranking
    ranking.save(tmp_path / "ranking.json")
    assert Grounder.from_pretrained("tiny", tmp_path).ranking == ranking


@pytest.mark.parametrize("name", ["sam", "sam:", "segment-anything"])
def test_a_segmenter_without_its_weights(name):
    with pytest.raises(ValueError, match=f"must be one of none, grabcut, .* but got '{name}'"):
        Grounder(small_world.lvlm(), small_world.ranking(), segmenter=name)
