"""Images and expressions a second, from a picture and words to boxes in pixels.

    python benches/bench_grounder.py          tiny, and a small LLaVA with random weights, on a CPU
    python benches/bench_grounder.py --gpu    LLaVA's full 7B shape, bfloat16

Three heads in the middle layer, or tiny's own; one and seven expressions of an image. Every
contender begins with the picture and the words, so that resizing and tokenizing are in all of them:

    plain forwards       an answer's first logits, one forward an expression, no boxes
    Grounder             one packed forward that ends at the deepest head, then the boxes
    ... whole forward    the same without the early end
    eager, SciPy         as published: output_attentions, one forward an expression, then map by map
                         gaussian_filter, label and the ConvexHull of every region

Goals: goals.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import bench_boxes
import bench_capture
import harness
import numpy as np
import random_lvlms
import readme_tables
import scipy.ndimage
import torch
from fastground import Grounder, HeadRanking, packing
from fastground.capture import capture
from fastground.grounding import ground
from fastground.models import LVLM
from fastground.types import Encoded, HeadId, RankedHead, Recipe
from goals import GROUNDER, PLAIN, PUBLISHED, WHOLE

RECIPE = Recipe(template="chat")


class Contenders:
    """The same picture and expressions asked in several ways."""

    def __init__(self, grounder: Grounder, texts: list[str]) -> None:
        self.grounder, self.texts = grounder, texts
        self.lvlm, self.recipe = grounder.lvlm, grounder.recipe
        self.model, self.image = self.lvlm.model, random_lvlms.picture()
        self.calls = {
            PLAIN: self.plain,
            GROUNDER: self.grounded,
            WHOLE: self.whole,
            PUBLISHED: self.published,
        }

    def asked(self, texts: list[str], kind: Any) -> tuple[dict[str, Any], torch.Tensor, Encoded]:
        """(inputs on the model's device, asking rows, the encoded image) of one forward."""
        encoded = self.lvlm.encode(self.image, texts, self.recipe)
        inputs, rows = kind(encoded)
        return {n: v.to(self.model.device) for n, v in inputs.items()}, rows, encoded

    def forward(self, inputs: dict[str, Any], **more: Any) -> Any:
        """The model's own, with the logits of the last token alone."""
        return self.model(**inputs, use_cache=False, logits_to_keep=1, **more)

    @torch.no_grad()
    def plain(self) -> None:
        """No boxes."""
        for text in self.texts:
            self.forward(self.asked([text], packing.separate)[0])

    def grounded(self) -> np.ndarray:
        """(N, 4) boxes, by one call."""
        return np.stack([g.box.cpu().numpy() for g in self.grounder(self.image, self.texts)])

    @torch.no_grad()
    def whole(self) -> np.ndarray:
        """The same, all layers run."""
        inputs, rows, encoded = self.asked(self.texts, packing.pack)
        heads, layout = self.grounder.heads, encoded.layout
        with capture(self.model, heads, rows, layouts=layout) as captured:
            self.forward(inputs)
        found = ground(captured.maps, self.texts, recipe=self.recipe)
        return np.stack([g.box.cpu().numpy() for g in found])

    @torch.no_grad()
    def published(self) -> np.ndarray:
        """The same without fastground behind the model's input."""
        self.model.set_attn_implementation("eager")
        boxes = []
        for text in self.texts:
            inputs, rows, encoded = self.asked([text], packing.separate)
            attentions = self.forward(inputs, output_attentions=True).attentions
            cells, grid = list(encoded.layout.tokens), encoded.layout.grid
            combined = np.zeros(grid)
            for layer, head in self.grounder.heads:
                seen = attentions[layer][0, head, rows[0, 1], cells].float().cpu().numpy()
                combined += scipy.ndimage.gaussian_filter(
                    seen.reshape(grid), self.recipe.sigma, radius=self.recipe.kernel_size // 2,
                    mode="mirror",
                )  # fmt: skip
            box = bench_boxes.scipy_per_map(combined[None])
            boxes.append(encoded.layout.to_pixels(torch.from_numpy(box))[0].numpy())
        self.model.set_attn_implementation("sdpa")
        return np.stack(boxes)

    def errors(self) -> dict[str, str]:
        """By contender: how many pixels a box's side is off those of the published way."""
        truth = self.published()
        return {
            name: f"{np.abs(call() - truth).max():.0f} px"
            for name, call in self.calls.items()
            if name not in (PLAIN, PUBLISHED)
        }


def planted(lvlm: LVLM) -> Grounder:
    """With three heads in the middle, where published models have theirs."""
    layer = lvlm.architecture["num_layers"] // 2 - 1
    heads = tuple(RankedHead(HeadId(layer, head), 1.0, 0.0, 0.5, 0.5) for head in range(3))
    ranking = HeadRanking(
        heads=heads, tau=0.0, curve=(), num_samples=1, trials=(), recipe=RECIPE,
        checkpoint=lvlm.checkpoint, architecture=lvlm.architecture, dataset="none", split="none",
    )  # fmt: skip
    return Grounder(lvlm, ranking)


def measured(
    grounders: dict[str, Grounder], clock: str, sampling: dict[str, Any]
) -> Iterator[list[harness.Row]]:
    """Of each model, with one expression and with seven."""
    for model, grounder in grounders.items():
        for count in (1, len(bench_capture.EXPRESSIONS)):
            ways = Contenders(grounder, bench_capture.EXPRESSIONS[:count])
            compared = harness.compare(
                f"{model}, {count} expression{'s' * (count > 1)}", ways.calls, items=1,
                errors=ways.errors(), clock=clock, **sampling,
            )  # fmt: skip
            for row in compared:
                row.images_per_s = 1e6 / row.time_us
                row.expressions_per_s = count * row.images_per_s
            yield compared


def main() -> None:
    options = harness.parser("From a picture and words to boxes, against a model's plain forward.")
    options.add_argument("--gpu", action="store_true", help="LLaVA's 7B shape, on CUDA")
    options.add_argument("--layers", type=int, default=8, help="of the small LLaVA")
    options.add_argument("--width", type=int, default=512, help="of the small LLaVA")
    given = options.parse_args()
    if given.gpu:
        name, clock, described = "grounder-gpu", "cuda", "LLaVA's 7B shape, bfloat16"
        lvlm = random_lvlms.build("LLaVA", random_lvlms.LLAVA_7B, "cuda", torch.bfloat16)
        grounders = {"LLaVA": planted(lvlm)}
    else:
        harness.one_thread()
        name, clock = "grounder", "cpu"
        described = f"{given.layers} layers, {given.width} wide; float32, one thread, CPU time"
        shape = random_lvlms.small(given.layers, given.width)["LLaVA"]
        grounders = {
            "tiny": Grounder.from_pretrained("tiny", device="cpu"),
            "LLaVA": planted(random_lvlms.build("LLaVA", shape, "cpu", torch.float32)),
        }
    described = f"an image and its expressions; {described}"
    parts = measured(grounders, clock, harness.sampling(given))
    rows = harness.kept(name, described, parts, save=not given.no_save)
    harness.report(name, described, rows, save=not given.no_save)
    readme_tables.print_goals({name: {"rows": [vars(row) for row in rows]}}, only=name)


if __name__ == "__main__":
    main()
