"""Packed questions about scenes: what the embedded model is trained on.

Twenty questions share one image prefix:

             image prefix     question 1   question 2  ...
    image    causal           -            -
    q. 1     visible          causal       -
    q. 2     visible          -            causal

numerically the same as twenty sequences, and several times cheaper.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fastground.datasets.shapes import KINDS, TEXTURE_PERIOD, choose, expressions, render, scene
from fastground.tiny.model import PATCH, TOKENS

GROUPS = 4
SLOTS = (9, 9, 9, 12, 12) * GROUPS
"""Tokens of each question's branch: the expression, ".", and the first two answer words.

Branches attend in groups of five, so that few keys are only masked away.
"""
TEXT = sum(SLOTS)
STARTS = np.cumsum((0, *SLOTS[:-1]))


@dataclass(frozen=True)
class Stage:
    """A stretch of training under one set of choices."""

    name: str
    grid: int
    steps: int
    images: int
    counts: dict[int, float]
    """How many objects a scene holds, and how often."""
    mix: tuple[float, float, float]
    """Share of attribute, location and relation questions."""
    pressure: tuple[float, float]
    """Weight of the attention-sum cost, from the first step to the last."""
    hidden: float
    """Share of the image tokens that a question does not see."""
    rate: float
    """Learning rate."""
    period: float = TEXTURE_PERIOD
    """Of the textures, in pixels."""
    words: tuple[float, float, float] = (1.0, 0.5, 0.5)
    """Weights of the losses of texture, colour and shape."""
    decay: float = 0.0
    """Share of the steps, at the end, over which the rate falls linearly to zero."""


class Questions(torch.utils.data.Dataset):
    """Batches of packed questions; item `step` is a pure function of (stage, step)."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self.stage, self.seed = stage, seed

    def __len__(self) -> int:
        return self.stage.steps

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        stage, batch = self.stage, self.stage.images
        side = stage.grid * PATCH
        pixels = np.empty((batch, side, side, 3), np.uint8)
        text = np.full((batch, TEXT), TOKENS["<pad>"])
        answers = np.full((batch, len(SLOTS), 3), TOKENS["<pad>"])
        asks = np.zeros((batch, len(SLOTS)), np.int64)
        kinds = np.full((batch, len(SLOTS)), -1)
        for b in range(batch):
            this, rng = scene("train", self.seed, step * batch + b, stage.counts)
            pixels[b] = render(this, side, stage.period)[0]
            found = expressions(this)
            taken: set[str] = set()
            free = list(range(len(SLOTS)))
            for _ in range(3 * len(SLOTS)):
                wanted = KINDS[rng.choice(3, p=stage.mix)]
                chosen = choose(found, wanted, rng, taken)
                if chosen is None or not free:
                    break
                kind, target, words = chosen
                taken.add(words)
                thing = this.things[target]
                answer = [TOKENS[w] for w in (thing.texture, thing.colour, thing.shape)]
                tokens = [TOKENS[w] for w in (*words.split(), ".")]
                slot = next((s for s in free if SLOTS[s] >= len(tokens) + 2), None)
                if slot is None:
                    continue
                free.remove(slot)
                start = STARTS[slot]
                text[b, start : start + len(tokens) + 2] = tokens + answer[:2]
                answers[b, slot], asks[b, slot] = answer, start + len(tokens) - 1
                kinds[b, slot] = KINDS.index(kind)
        return {"pixels": pixels, "text": text, "answers": answers, "asks": asks, "kinds": kinds}


def branch_mask() -> torch.Tensor:
    """(TEXT, TEXT / GROUPS) bool: of its group, a text token sees its own branch, causally."""
    branch = torch.from_numpy(np.repeat(np.arange(len(SLOTS)), SLOTS)).view(GROUPS, -1)
    return (branch[:, :, None] == branch[:, None, :]).tril().flatten(0, 1)
