"""The program that trains the embedded model: packing, optimizer, resuming, export."""

import copy

import numpy as np
import pytest
import torch
from fastground.datasets import shapes
from fastground.tiny import train
from fastground.tiny.model import PATCH, TOKENS, build, processor, regrid
from fastground.tiny.questions import STARTS, Questions, Stage
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

GRID = 4
STAGE = Stage("short", GRID, 2, 1, {4: 1.0}, (0.4, 0.3, 0.3), (0.1, 0.2), 0.2, 2e-3)


def tensors(item):
    return {name: torch.as_tensor(array) for name, array in item.items()}


def test_packed_questions_equal_separate_sequences():
    torch.manual_seed(0)
    model = train.use_packed_attention(build(GRID)).eval()
    batch = tensors(Questions(STAGE, seed=5)[0])
    with torch.no_grad():
        logits, sums = train.forward(model, batch, GRID, 0.0, torch.Generator(), torch.float32)
        model.set_attn_implementation("eager")
        pixels = batch["pixels"].permute(0, 3, 1, 2).float() / 127.5 - 1
        compared = 0
        for slot in torch.flatten(batch["kinds"][0] >= 0).nonzero().flatten().tolist()[::3]:
            start, ask = int(STARTS[slot]), int(batch["asks"][0, slot])
            prefix = [TOKENS["<s>"]] + [TOKENS["<image>"]] * GRID**2
            ids = torch.tensor([prefix + batch["text"][0, start : ask + 3].tolist()])
            stock = model(input_ids=ids, pixel_values=pixels, output_attentions=True)
            row = len(prefix) + ask - start
            assert torch.allclose(stock.logits[0, row : row + 3], logits[0, slot], atol=2e-5)
            for layer, weights in enumerate(stock.attentions):
                seen = weights[0, :, row, 1 : 1 + GRID**2].sum(-1)
                assert torch.allclose(seen, sums[0, layer, :, slot], atol=1e-5)
            compared += 1
    assert compared >= 4


def test_a_question_never_holds_its_answer_or_a_place():
    item = Questions(STAGE, seed=7)[1]
    assert set(item) == {"pixels", "text", "answers", "asks", "kinds"}
    words = {number: word for word, number in TOKENS.items()}
    for slot in np.flatnonzero(item["kinds"][0] >= 0):
        start, ask = STARTS[slot], item["asks"][0, slot]
        asked = [words[t] for t in item["text"][0, start : ask + 1]]
        texture, colour, _ = (words[t] for t in item["answers"][0, slot])
        assert asked[-1] == "." and texture not in asked
        assert [words[t] for t in item["text"][0, ask + 1 : ask + 3]] == [texture, colour]


def test_batched_muon_equals_torch_muon():
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(s)) for s in [(16, 32)] * 3 + [(32, 16), (8, 8)]]
    theirs = copy.deepcopy(ours)
    batched = train.Muon(ours, weight_decay=0.05)
    stock = torch.optim.Muon(theirs, 2e-3, 0.05, adjust_lr_fn="match_rms_adamw")
    for group in batched.param_groups:
        group["lr"] = 2e-3
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        batched.step()
        stock.step()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-3)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "WRITE_EVERY", 1)
    train.train(tmp_path / "whole", "cpu", 0, (STAGE,), compiled=False)
    write = train.write

    def write_and_stop(*args):
        write(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "write", write_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train.train(tmp_path / "cut", "cpu", 0, (STAGE,), compiled=False)
    monkeypatch.setattr(train, "write", write)
    train.train(tmp_path / "cut", "cpu", 0, (STAGE,), compiled=False)
    whole = load_file(tmp_path / "whole" / "checkpoint" / "model.safetensors")
    cut = load_file(tmp_path / "cut" / "checkpoint" / "model.safetensors")
    assert set(whole) == set(cut)
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    torch.manual_seed(0)
    trained, fresh = (
        LlavaForConditionalGeneration.from_pretrained(tmp_path / "cut" / "checkpoint"),
        build(GRID),
    )
    moved = [n for n, p in trained.named_parameters() if not torch.equal(p, fresh.get_parameter(n))]
    assert len(moved) > 100


def test_regrid_keeps_everything_but_the_position_table():
    model = build(GRID)
    finer = regrid(model, 2 * GRID).state_dict()
    for name, weight in model.state_dict().items():
        if name.endswith("position_embedding.weight"):
            assert finer[name].shape == (1 + 4 * GRID**2, 128)
            assert torch.equal(finer[name][0], weight[0])
            coarse = weight[1:].mean(0)
            assert torch.allclose(finer[name][1:].mean(0), coarse, atol=5e-3)
        else:
            assert torch.equal(finer[name], weight)


def test_the_processor_writes_the_sequence_that_training_uses():
    sample = next(shapes("val", 1))
    both = processor(24)(text="<image>The red star.", images=sample.image, return_tensors="pt")
    ids = both["input_ids"][0].tolist()
    expected = [TOKENS["<s>"]] + [TOKENS["<image>"]] * 576
    assert ids == expected + [TOKENS[w] for w in ("the", "red", "star", ".")]
    assert both["pixel_values"].shape == (1, 3, 24 * PATCH, 24 * PATCH)
    pixels = torch.tensor(np.array(sample.image)).permute(2, 0, 1) / 127.5 - 1
    assert torch.allclose(both["pixel_values"][0], pixels, atol=1e-5)
