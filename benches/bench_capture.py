"""What attention maps cost beside a plain forward, and what packing saves.

    python benches/bench_capture.py

A LLaVA of the real classes with random weights (speed does not depend on their values), 576 image
tokens, float32, one thread. The peer is what one would write without fastground: eager attention
with output_attentions=True, one forward an expression.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import harness
import torch
from fastground import packing
from fastground.capture import capture
from fastground.models import LVLM, wrap
from fastground.tiny import model as tiny
from fastground.types import Encoded, Recipe
from PIL import Image

EXPRESSIONS = [
    "the small red circle", "the leftmost star", "the blue cross", "the green square that is small",
    "the circle left of the blue star", "the star right of the red square", "the yellow diamond",
]  # fmt: skip


def build(layers: int, width: int) -> LVLM:
    """A LLaVA with the tiny model's vision tower and tokenizer, and a wider language model."""
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    config = tiny.build(24).config
    text = LlamaConfig(
        vocab_size=64, hidden_size=width, intermediate_size=width * 8 // 3 // 8 * 8,
        num_hidden_layers=layers, num_attention_heads=16, head_dim=width // 16,
        max_position_embeddings=4096, pad_token_id=0,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=config.vision_config, text_config=text, vision_feature_layer=-1,
        image_token_index=config.image_token_id, image_seq_length=576,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():  # sharper than random attention is, so that errors mean something
        for name, weight in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                weight.mul_(6)
    return wrap(model, tiny.processor(24))


class Contenders:
    """The same question asked in several ways; every call gives maps (N, layers * heads, 576)."""

    def __init__(self, lvlm: LVLM, encoded: Encoded) -> None:
        self.model, self.encoded = lvlm.model, encoded
        self.layers = lvlm.architecture["num_layers"]
        self.packed = packing.pack(encoded)
        self.apart = [packing.separate(part) for part in packing.split(encoded, max_tokens=1)]

    @torch.no_grad()
    def plain(self) -> None:
        for inputs, _ in self.apart:
            self.model(**inputs, use_cache=False, logits_to_keep=1)

    @torch.no_grad()
    def captured(self, asked: list[Any], stop_after: int | None = None) -> torch.Tensor:
        found = []
        for inputs, rows in asked:
            with capture(
                self.model, rows=rows, stop_after=stop_after, layouts=self.encoded.layout
            ) as captured:
                self.model(**inputs, use_cache=False, logits_to_keep=1)
            found.append(captured.maps.maps.flatten(2))
        return torch.cat(found)

    @torch.no_grad()
    def eager(self) -> torch.Tensor:
        self.model.set_attn_implementation("eager")
        found = []
        for inputs, rows in self.apart:
            attentions = self.model(**inputs, use_cache=False, output_attentions=True).attentions
            whole = torch.cat(attentions, dim=1)[0, :, rows[0, 1]]
            found.append(whole[:, list(self.encoded.layout.tokens)])
        self.model.set_attn_implementation("sdpa")
        return torch.stack(found)


def main() -> None:
    options = harness.parser("Attention maps beside a plain forward; packed beside separate.")
    options.add_argument("--layers", type=int, default=8)
    options.add_argument("--width", type=int, default=256, help="of the language model")
    given = options.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lvlm = build(given.layers, given.width)
    image = Image.effect_noise((192, 192), 64)
    rows = []
    for count in (1, len(EXPRESSIONS)):
        encoded = lvlm.encode(image, EXPRESSIONS[:count], Recipe())
        ways = Contenders(lvlm, encoded)
        half = given.layers // 2 - 1
        calls: dict[str, Callable[[], object]] = {
            "plain forwards": ways.plain,
            "capture": lambda ways=ways: ways.captured(ways.apart),
            f"capture, stop after layer {half}": lambda ways=ways, half=half: ways.captured(
                ways.apart, half
            ),
            "eager, output_attentions": ways.eager,
        }
        if count > 1:
            calls = {"capture, packed": lambda ways=ways: ways.captured([ways.packed]), **calls}
        truth, errors = ways.eager(), {}
        for name, call in calls.items():
            if name.startswith("capture"):
                maps = call()
                errors[name] = f"{(maps - truth[:, : maps.shape[1]]).abs().max():.0e}"
        rows += harness.compare(
            f"{count} expression{'s' * (count > 1)}",
            calls,
            items=1,
            errors=errors,
            repeats=given.repeats,
            min_time_ms=given.min_time_ms,
        )
    described = (
        f"one image of 576 tokens, {given.layers} layers x 16 heads, {given.width} wide, float32, "
        "one thread, CPU time"
    )
    harness.report("capture", described, rows, save=not given.no_save)


if __name__ == "__main__":
    main()
