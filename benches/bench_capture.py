"""What attention maps cost beside a plain forward, in time and memory, and what packing saves.

    python benches/bench_capture.py          small models, float32, one thread of a CPU
    python benches/bench_capture.py --gpu    the 7B models' full shapes, bfloat16

Models of the true classes with random weights (speed does not depend on their values) and 576
image tokens. The peer is what one would write without fastground: eager attention with
output_attentions=True, one forward an expression. Goals: goals.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import harness
import memory
import random_lvlms
import readme_tables
import torch
from fastground import packing
from fastground.capture import capture
from fastground.models import LVLM
from fastground.types import AttentionMaps, Encoded, Recipe
from goals import CAPTURE, EAGER, HALF, PACKED, PLAIN

EXPRESSIONS = [
    "the small red circle", "the leftmost star", "the blue cross", "the green square that is small",
    "the circle left of the blue star", "the star right of the red square", "the yellow diamond",
]  # fmt: skip


RECIPE = Recipe(template="chat")


class Contenders:
    """The same question asked in several ways of one image and its expressions."""

    def __init__(self, lvlm: LVLM, encoded: Encoded) -> None:
        self.model, self.layout = lvlm.model, encoded.layout
        self.last = lvlm.architecture["num_layers"] // 2 - 1
        self.apart = self.placed(packing.separate, packing.split(encoded, max_tokens=1))
        self.packed = self.placed(packing.pack, [encoded])
        self.calls = {
            PLAIN: self.plain,
            CAPTURE: lambda: self.captured(self.apart),
            HALF: lambda: self.captured(self.apart, self.last),
            EAGER: self.eager,
        }
        if len(self.apart) > 1:
            del self.calls[HALF]
            self.calls = {PACKED: lambda: self.captured(self.packed), **self.calls}

    def placed(self, kind: Any, parts: list[Encoded]) -> list[tuple[dict[str, Any], torch.Tensor]]:
        """(inputs on the model's device, asking rows) of each forward."""
        made = (kind(part) for part in parts)
        return [({k: v.to(self.model.device) for k, v in i.items()}, rows) for i, rows in made]

    def forward(self, inputs: dict[str, Any], **more: Any) -> Any:
        """The model's own, with the logits of the last token alone."""
        return self.model(**inputs, use_cache=False, logits_to_keep=1, **more)

    @torch.no_grad()
    def plain(self) -> None:
        """No attention at all."""
        for inputs, _ in self.apart:
            self.forward(inputs)

    @torch.no_grad()
    def captured(self, asked: list[Any], last: int | None = None) -> list[AttentionMaps]:
        """Of each forward the maps of all heads, up to a layer."""
        found = []
        for inputs, rows in asked:
            with capture(self.model, rows=rows, stop_after=last, layouts=self.layout) as captured:
                self.forward(inputs)
            found.append(captured.maps)
        return found

    @torch.no_grad()
    def eager(self) -> tuple[torch.Tensor, float]:
        """(N, heads, 24, 24), and the megabytes that a forward keeps to make them."""
        self.model.set_attn_implementation("eager")
        found, kept = [], 0.0
        for inputs, rows in self.apart:
            attentions = self.forward(inputs, output_attentions=True).attentions
            kept = max(kept, sum(a.nbytes for a in attentions) / 1e6)
            asking = torch.cat([a[0, :, rows[0, 1]] for a in attentions])
            found.append(asking[:, list(self.layout.tokens)].unflatten(-1, self.layout.grid))
        self.model.set_attn_implementation("sdpa")
        return torch.stack(found).float(), kept

    def errors(self) -> tuple[dict[str, str], dict[str, float]]:
        """By contender: its largest difference from eager's maps, and the megabytes it keeps."""
        truth, kept = self.eager()
        errors, kept_mb = {}, {EAGER: kept}
        for name, call in self.calls.items():
            if name.startswith("capture"):
                found = call()
                maps = torch.cat([one.maps for one in found])
                errors[name] = f"{(maps - truth[:, : maps.shape[1]]).abs().max():.0e}"
                kept_mb[name] = max(one.maps.nbytes + one.sums.nbytes for one in found) / 1e6
        return errors, kept_mb


def measured(
    shapes: dict[str, random_lvlms.Shape],
    device: str,
    dtype: torch.dtype,
    clock: str,
    sampling: dict[str, Any],
) -> Iterator[list[harness.Row]]:
    """Of each model, with one expression and with seven."""
    for model, shape in shapes.items():
        lvlm = random_lvlms.build(model, shape, device, dtype)
        for count in (1, len(EXPRESSIONS)):
            encoded = lvlm.encode(random_lvlms.picture(), EXPRESSIONS[:count], RECIPE)
            ways = Contenders(lvlm, encoded)
            errors, kept = ways.errors()
            compared = harness.compare(
                f"{model}, {count} expression{'s' * (count > 1)}", ways.calls, items=1,
                errors=errors, clock=clock, **sampling,
            )  # fmt: skip
            for row in compared:
                row.kept_mb = kept.get(row.contender)
                row.peak_mb = memory.peak(ways.calls[row.contender], device)
            yield compared
        del lvlm, ways


def main() -> None:
    options = harness.parser("Attention maps beside a plain forward; packed beside separate.")
    options.add_argument("--gpu", action="store_true", help="the 7B models' shapes, on CUDA")
    options.add_argument("--layers", type=int, default=8, help="of the small models")
    options.add_argument("--width", type=int, default=512, help="of the small models")
    given = options.parse_args()
    shapes = random_lvlms.small(given.layers, given.width)
    device, dtype, clock, name = "cpu", torch.float32, "cpu", "capture"
    described = f"{given.layers} layers, {given.width} wide, float32, one thread, CPU time"
    if given.gpu:
        shapes, name = random_lvlms.FULL, "capture-gpu"
        device, dtype, clock = "cuda", torch.bfloat16, "cuda"
        described = "the 7B models' shapes, bfloat16"
    else:
        harness.one_thread()
    described = f"one image of 576 tokens; {described}"
    parts = measured(shapes, device, dtype, clock, harness.sampling(given))
    rows = harness.kept(name, described, parts, save=not given.no_save)
    harness.report(name, described, rows, save=not given.no_save)
    readme_tables.print_goals({name: {"rows": [vars(row) for row in rows]}}, only=name)


if __name__ == "__main__":
    main()
