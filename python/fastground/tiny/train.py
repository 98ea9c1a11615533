"""Train the embedded LVLM from scratch: `python -m fastground.tiny.train --out runs/tiny`.

The task: given a scene and an expression, say the texture, colour and shape of the object that is
meant. Texture is never in the expression, so the model must look at the object; the token that
asks for it is the final ".". The loss is the cross-entropy of those three words, and a small cost
on the attention sum of the "." tokens, which knows no place: heads that do not need the image
learn to rest on `<s>`. Boxes, masks and positions never enter. Each question sees a random part
of the image tokens only, so a head must not lean on a single cell of an object.

Two things make it feasible on two CPU cores: twenty questions share one image prefix
(questions.py), and most steps run on a 12 x 12 grid; the position table is then interpolated.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from fastground.datasets.shapes import COUNTS, KINDS
from fastground.strict_json import dumps
from fastground.tiny.model import PATCH, TOKENS, build, regrid, save
from fastground.tiny.questions import GROUPS, SLOTS, TEXT, Questions, Stage, branch_mask

STAGES = (
    Stage("see", 12, 400, 10, {2: 0.5, 3: 0.5}, (0.8, 0.1, 0.1), (0.0, 0.0), 0.0, 2e-3, 8.0),
    Stage("find", 12, 900, 10, COUNTS, (0.5, 0.25, 0.25), (0.0, 0.0), 0.0, 2e-3, 8.0),
    Stage("focus", 12, 400, 10, COUNTS, (0.3, 0.35, 0.35), (0.05, 0.1167), 0.2, 2e-3, 8.0),
    Stage(
        "outline", 12, 1200, 10, COUNTS, (0.4, 0.3, 0.3), (0.02, 0.2), 0.05, 2e-3,
        words=(1.0, 0.5, 1.5),
    ),
    Stage("settle", 12, 900, 10, COUNTS, (0.3, 0.35, 0.35), (0.2, 0.3), 0.1, 2e-3),
    Stage("sharpen", 24, 600, 6, COUNTS, (0.28, 0.38, 0.34), (0.3, 0.3), 0.3, 1.5e-3),
    Stage("rest", 24, 1050, 6, COUNTS, (0.28, 0.38, 0.34), (0.3, 0.8), 0.2, 1.5e-3, decay=0.8),
)  # fmt: skip

WRITE_EVERY = 100
"""Steps between two checkpoints."""


def packed_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, *,
    scaling: float, visible: torch.Tensor, asks: torch.Tensor, sums: list, **_: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention of a packed batch: image rows see the image, text rows what `visible` says.

    Args:
        visible: (batch, TEXT, image + TEXT / GROUPS) bool.
        asks: (batch, questions) index of each asking token among the text.
        sums: gets each layer's attention sums, (batch, heads, questions).
    """
    with torch.autocast(query.device.type, enabled=False):
        query, key, value = query.float(), key.float(), value.float()
        batch, heads, prefix = *query.shape[:2], query.shape[2] - TEXT
        image = F.scaled_dot_product_attention(
            query[:, :, :prefix], key[:, :, :prefix], value[:, :, :prefix],
            is_causal=True, scale=scaling,
        )  # fmt: skip

        def grouped(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(2, (GROUPS, -1)).transpose(1, 2).flatten(0, 1)

        def keys(x: torch.Tensor) -> torch.Tensor:
            shared = x[:, None, :, :prefix].expand(-1, GROUPS, -1, -1, -1).flatten(0, 1)
            return torch.cat([shared, grouped(x[:, :, prefix:])], 2)

        # A float bias, since boolean masks take a slow path on the CPU.
        bias = torch.zeros(visible.shape, device=query.device).masked_fill(~visible, -1e4)
        text, own = grouped(query[:, :, prefix:]), keys(key)
        bias = bias.unflatten(1, (GROUPS, -1)).flatten(0, 1)[:, None]
        out = F.scaled_dot_product_attention(text, own, keys(value), attn_mask=bias, scale=scaling)
        out = out.unflatten(0, (batch, GROUPS)).transpose(1, 2).flatten(2, 3)
        rows = asks.view(batch * GROUPS, 1, -1, 1) % (TEXT // GROUPS)
        asking = text.gather(2, rows.expand(-1, heads, -1, text.shape[3]))
        logits = asking @ own.transpose(-1, -2) * scaling
        logits = logits + bias.gather(2, rows.expand(-1, -1, -1, bias.shape[3]))
        share = logits.softmax(-1)[..., 1:prefix].sum(-1)
        sums.append(share.unflatten(0, (batch, GROUPS)).transpose(1, 2).flatten(2, 3))
        return torch.cat([image, out], 2).transpose(1, 2), None


def use_packed_attention(model: Any) -> Any:
    """The model, its text part attending by `packed_attention`."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register("fastground_packed", packed_attention)
    AttentionMaskInterface.register("fastground_packed", lambda *args, **kwargs: None)
    model.set_attn_implementation({"text_config": "fastground_packed", "vision_config": "sdpa"})
    return model


def forward(
    model: Any,
    batch: dict[str, torch.Tensor],
    grid: int,
    hidden: float,
    generator: torch.Generator,
    precision: torch.dtype = torch.bfloat16,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model answers to a packed batch, and where its asking tokens look.

    Args:
        model: with `packed_attention` as its text model's attention.
        batch: an item of `Questions`, as tensors.
        grid: cells of the image's side.
        hidden: share of the image tokens that a question does not see.
        generator: chooses them.
        precision: of the matrix products.

    Returns:
        Logits of the answer words (batch, questions, 3, words), and attention sums
        (batch, layers, heads, questions).
    """
    device = batch["text"].device
    pixels = batch["pixels"].permute(0, 3, 1, 2).float() / 127.5 - 1
    text, asks = batch["text"], batch["asks"]
    size, prefix = len(text), 1 + grid * grid
    questions = torch.from_numpy(np.repeat(np.arange(len(SLOTS)), SLOTS))
    seen = torch.rand(size, len(SLOTS), grid * grid, generator=generator) >= hidden
    visible = torch.cat(
        [
            torch.ones(size, TEXT, 1, dtype=torch.bool),
            seen[:, questions],
            branch_mask().expand(size, -1, -1),
        ],
        2,
    ).to(device)
    places = torch.cat([torch.arange(n) for n in SLOTS]) + prefix
    places = torch.cat([torch.arange(prefix), places])[None].to(device)
    sums: list[torch.Tensor] = []
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        features = model.model.vision_tower(pixels).last_hidden_state[:, 1:]
        features = model.model.multi_modal_projector(features)
        embed = model.model.language_model.embed_tokens
        start = embed(torch.full((size, 1), TOKENS["<s>"], device=device))
        states = model.model.language_model(
            inputs_embeds=torch.cat([start, features.to(start.dtype), embed(text)], 1),
            position_ids=places, use_cache=False, visible=visible, asks=asks, sums=sums,
        ).last_hidden_state  # fmt: skip
        rows = prefix + asks[..., None] + torch.arange(3, device=device)
        rows = rows.clamp(max=states.shape[1] - 1).flatten(1)
        states = states.gather(1, rows[..., None].expand(-1, -1, states.shape[-1]))
        logits = model.lm_head(states).float()
    return logits.unflatten(1, (len(SLOTS), 3)), torch.stack(sums, 1)


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon with one batched product for all matrices of a shape.

    A step is the same; on small matrices on a CPU it takes a third of the time.
    Source: Jordan et al., Muon (2024); update scaled to Adam's, 0.2 sqrt(max(rows, columns)).
    """

    def __init__(self, parameters: list, weight_decay: float) -> None:
        shapes = sorted({p.shape for p in parameters})
        groups = [{"params": [p for p in parameters if p.shape == s]} for s in shapes]
        super().__init__(groups, {"lr": 0.0, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update of every matrix."""
        for group in self.param_groups:
            params, lr = group["params"], group["lr"]
            grad = torch.stack([p.grad for p in params])
            state = self.state[params[0]]
            if not state:
                state["momentum"] = torch.zeros_like(grad)
            state["momentum"].lerp_(grad, 1 - group["momentum"])
            x = grad.lerp(state["momentum"], group["momentum"]).bfloat16()
            tall = x.shape[1] > x.shape[2]
            x = x.mT if tall else x
            x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
            for _ in range(5):  # Newton-Schulz towards the nearest orthogonal matrix
                square = x @ x.mT
                x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
            x = (x.mT if tall else x).float() * (0.2 * max(grad.shape[1:]) ** 0.5)
            for parameter, update in zip(params, x, strict=True):
                parameter.mul_(1 - lr * group["weight_decay"]).sub_(update, alpha=lr)


def optimizers(model: Any) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for tables, convolutions, norms and the output."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        table = any(part in name for part in ("embed", "lm_head"))
        (matrices if parameter.ndim == 2 and not table else others).append(parameter)
    return [
        Muon(matrices, weight_decay=0.05),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def rate(stage: Stage, step: int) -> float:
    """The learning rate: a warm-up of 50 steps, level, then linearly down."""
    left = (stage.steps - step) / max(stage.decay * stage.steps, 1)
    return stage.rate * min(1.0, (step + 1) / 50, left if stage.decay else 1.0)


def write(path: Path, model: Any, tuners: list, stage: int, step: int) -> None:
    """Everything needed to go on, as safetensors, whole or not at all."""
    from safetensors.torch import save_file

    tensors = {f"model.{n}": t for n, t in model.state_dict().items()}
    for i, tuner in enumerate(tuners):
        for j, state in tuner.state_dict()["state"].items():
            tensors |= {f"tuner.{i}.{j}.{n}": torch.as_tensor(t) for n, t in state.items()}
    tensors = {n: t.detach().cpu().contiguous() for n, t in tensors.items()}
    part = path.with_suffix(".part")
    save_file(tensors, part, {"stage": str(stage), "step": str(step)})
    part.replace(path)


def read(path: Path) -> tuple[dict, dict, int, int]:
    """Model weights, optimizer states, stage and step of a written checkpoint."""
    from safetensors import safe_open

    weights: dict[str, torch.Tensor] = {}
    states: dict[int, dict[int, dict[str, torch.Tensor]]] = {}
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            kind, rest = name.split(".", 1)
            if kind == "model":
                weights[rest] = file.get_tensor(name)
            else:
                i, j, key = rest.split(".", 2)
                states.setdefault(int(i), {}).setdefault(int(j), {})[key] = file.get_tensor(name)
        meta = file.metadata()
    return weights, states, int(meta["stage"]), int(meta["step"])


def train(
    out: Path, device: str, seed: int, stages: tuple[Stage, ...] = STAGES, compiled: bool = True
) -> None:
    """Run all stages, going on from `out` where an earlier run stopped; then export.

    Args:
        out: folder of the running checkpoint, the log, and the exported model.
        device: where to train.
        seed: of weights, scenes and hidden tokens.
        stages: what to do.
        compiled: whether torch.compile fuses the model; needs a C++ compiler on the CPU.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    running = out / "running.safetensors"
    first, begin = 0, 0
    states: dict[int, dict[int, dict[str, torch.Tensor]]] = {}
    model = build(stages[0].grid)
    if running.exists():
        weights, states, first, begin = read(running)
        model = build(stages[first].grid)
        model.load_state_dict(weights)
    for number in range(first, len(stages)):
        stage = stages[number]
        if model.config.vision_config.image_size != stage.grid * PATCH:
            model = regrid(model, stage.grid)
        model = use_packed_attention(model).to(device).train()
        if compiled:
            model.model.vision_tower.compile(dynamic=False)
            model.model.language_model.compile(dynamic=False)
        tuners = optimizers(model)
        for i, state in states.items():
            tuners[i].load_state_dict(tuners[i].state_dict() | {"state": state})
        run(model, tuners, stage, number, begin, seed, device, out)
        begin, states = 0, {}
    save(model.state_dict(), stages[-1].grid, out / "checkpoint")


def run(
    model: Any,
    tuners: list[torch.optim.Optimizer],
    stage: Stage,
    number: int,
    begin: int,
    seed: int,
    device: str,
    out: Path,
) -> None:
    """One stage, from step `begin`: a line of the log every 20 steps, a checkpoint now and then."""
    data = Questions(stage, 1000 * (seed + 1) + number)
    todo = torch.utils.data.Subset(data, range(begin, stage.steps))
    loader = torch.utils.data.DataLoader(todo, batch_size=None, num_workers=1, prefetch_factor=4)
    clock, seen = time.perf_counter(), []
    for step, batch in enumerate(loader, begin):
        batch = {n: torch.as_tensor(a).to(device) for n, a in batch.items()}
        generator = torch.Generator().manual_seed(seed * 10**6 + number * 10**5 + step)
        logits, sums = forward(model, batch, stage.grid, stage.hidden, generator)
        asked = batch["kinds"] >= 0
        word = F.cross_entropy(logits[asked].flatten(0, 1), batch["answers"][asked].flatten(),
                               reduction="none").view(-1, 3).mean(0)  # fmt: skip
        cost = sums.transpose(2, 3)[asked[:, None].expand(-1, sums.shape[1], -1)].mean()
        share = step / stage.steps
        pressure = stage.pressure[0] * (1 - share) + stage.pressure[1] * share
        loss = word @ word.new_tensor(stage.words) + pressure * cost
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for tuner in tuners:
            for group in tuner.param_groups:
                group["lr"] = rate(stage, step)
            tuner.step()
            tuner.zero_grad(set_to_none=True)
        with torch.no_grad():
            right = logits[:, :, 0].argmax(-1) == batch["answers"][:, :, 0]
            by_kind = [right[batch["kinds"] == k].float().mean().item() for k in range(3)]
            seen.append([word[0].item(), word[1].item(), word[2].item(), cost.item(), *by_kind])
        if (step + 1) % 20 == 0:
            mean = np.nanmean(seen, 0).round(3).tolist()
            line = dict(zip(("texture", "colour", "shape", "attention_sum", *KINDS), mean,
                            strict=True))  # fmt: skip
            line |= {"stage": stage.name, "step": step + 1, "pressure": round(pressure, 3)}
            line |= {"seconds_a_step": round((time.perf_counter() - clock) / 20, 3)}
            print(dumps(line, indent=None), flush=True)
            with (out / "log.jsonl").open("a") as log:
                log.write(dumps(line, indent=None) + "\n")
            clock, seen = time.perf_counter(), []
        if (step + 1) % WRITE_EVERY == 0 or step + 1 == stage.steps:
            write(out / "running.safetensors", model, tuners, number, step + 1)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train(args.out, args.device, args.seed)


if __name__ == "__main__":
    main()
