"""Attention of the asking tokens from cached keys, against eager attention with its weights kept.

    python benches/bench_rows.py          one layer of LLaVA-1.5-7B, one thread of a CPU
    python benches/bench_rows.py --gpu    all of its layers, bfloat16, against the speed of memory

    keys (heads, 640 tokens, 128)   read once is the least that must be done
    eager attention                 (heads, 640, 640) weights, of which one row is wanted

The peer is the eager attention of transformers' Llama on the same queries and keys. On a GPU "a
copy of the keys" moves every byte twice, so that ours at the copy's bandwidth would take half of
it: a goal of 1.2 times faster than the copy is 60 % of its bandwidth. There, calls of ours are
replayed from a CUDA graph, so that the GPU's own time is measured. Goals: goals.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import harness
import memory
import numpy as np
import readme_tables
import torch
from fastground import ops
from goals import (
    BFLOAT16,
    COPY,
    EAGER,
    ONE,
    PACKED_ROWS,
    ROWS,
    SDPA,
    SDPA_ROWS,
    SEVEN,
    STACK,
    THREE,
)

IMAGE = range(35, 611)
EXPRESSION, EXPRESSIONS = 16, 7
"""Tokens of an expression's branch, and how many share the image."""
CHOSEN = [(14, 1), (14, 24), (26, 13)]


@dataclass
class Stack:
    """Queries and cached keys of some layers, of one sequence."""

    layers: int
    heads: int
    length: int = 640
    head_dim: int = 128
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        shape = 1, self.heads, self.length, self.head_dim
        # Logits of a standard deviation of 3: neither flat nor one key alone.
        self.queries = [3 * self.drawn(*shape) for _ in range(self.layers)]
        self.keys = [self.drawn(*shape) for _ in range(self.layers)]
        self.asking = [query[:, :, -1:].transpose(1, 2) for query in self.queries]
        later = torch.ones(self.length, self.length, device=self.device).triu(1).bool()
        self.mask = torch.zeros_like(later, dtype=self.dtype).masked_fill_(later, -torch.inf)
        self.mask = self.mask[None, None]
        self.nbytes = sum(key.nbytes for key in self.keys)

    def drawn(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self.device).to(self.dtype)

    def rows(self, heads: list[tuple[int, int]] | None = None) -> Any:
        """What the last token sees of the image, and its sum, in one launch for all layers."""
        if len(self.keys) == 1 and heads is None:
            return ops.attention_rows(self.asking[0], self.keys[0], tokens=IMAGE)
        return ops.attention_rows(self.asking, self.keys, heads=heads, tokens=IMAGE)

    def eager(self) -> list[torch.Tensor]:
        """The weights of every layer, (1, heads, tokens, tokens) each."""
        from transformers.models.llama.modeling_llama import eager_attention_forward

        module = SimpleNamespace(num_key_value_groups=1, training=False)
        scaling = self.head_dim**-0.5
        return [
            eager_attention_forward(module, query, key, key, self.mask, scaling=scaling)[1]
            for query, key in zip(self.queries, self.keys, strict=True)
        ]

    def sdpa(self, rows: bool) -> list[torch.Tensor]:
        """The layers' own attention, which says no weights, with the wanted rows beside it."""
        attend = torch.nn.functional.scaled_dot_product_attention
        if rows:
            self.rows()
        return [
            attend(query, key, key, is_causal=True)
            for query, key in zip(self.queries, self.keys, strict=True)
        ]

    def exact(self) -> torch.Tensor:
        """(1, 1, layers x heads, image tokens) float64, of the same bits."""
        layers = [
            (query.double() @ key.double().mT * self.head_dim**-0.5).softmax(-1)[:, :, 0]
            for query, key in zip((q[:, :, -1:] for q in self.queries), self.keys, strict=True)
        ]
        return torch.cat(layers, 1)[:, None, :, IMAGE.start : IMAGE.stop]

    def errors(self) -> dict[str, str]:
        """By contender: its largest difference from float64."""
        eager = torch.cat([each[:, :, -1] for each in self.eager()], 1)[:, None]
        found = {ROWS: self.rows().rows, EAGER: eager[..., IMAGE.start : IMAGE.stop]}
        truth = self.exact()
        return {name: f"{(rows - truth).abs().max():.0e}" for name, rows in found.items()}

    def kept(self) -> dict[str, float]:
        """By contender: megabytes that its answer holds."""
        ours = sum(part.nbytes for part in self.rows()) / 1e6
        return {ROWS: ours, EAGER: sum(each.nbytes for each in self.eager()) / 1e6}

    def packed(self, count: int) -> Callable[[], Any]:
        """A call for so many expressions of one image, whose prefix they share."""
        prefix = self.length - EXPRESSION
        length = prefix + count * EXPRESSION
        tokens = torch.arange(length, device=self.device)
        branch = (tokens - prefix).div(EXPRESSION, rounding_mode="floor")
        own = torch.arange(count, device=self.device)[:, None]
        visible = ((branch < 0) | (branch == own))[None]
        shape = 1, self.heads, length, self.head_dim
        keys = [self.drawn(*shape) for _ in range(self.layers)]
        asking = [self.drawn(1, count, self.heads, self.head_dim) * 3 for _ in range(self.layers)]
        return lambda: ops.attention_rows(asking, keys, visible=visible, tokens=IMAGE)


def replayed(call: Callable[[], Any], device: str) -> Callable[[], Any]:
    """The same work without Python's share of it: from a CUDA graph, where there is CUDA."""
    if device != "cuda":
        return call
    call()  # compiles, and moves what is kept
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = call()
    return lambda: (graph.replay(), answer)


def on_cpu(given: Any, stack: Stack) -> list[harness.Row]:
    """One layer, one thread."""
    calls = {
        ROWS: stack.rows,
        EAGER: stack.eager,
        SDPA: lambda: stack.sdpa(rows=False),
        SDPA_ROWS: lambda: stack.sdpa(rows=True),
    }
    rows = harness.compare(
        STACK if stack.dtype == torch.float32 else BFLOAT16, calls, items=1,
        errors=stack.errors(), floor=np.asarray(stack.keys[0].view(torch.uint8)),
        **harness.sampling(given),
    )  # fmt: skip
    return measured_memory(rows, calls, stack)


def on_gpu(given: Any, stack: Stack) -> Iterator[list[harness.Row]]:
    """All layers: against a copy and eager attention, three heads, and a packed image."""
    device, clock = stack.device, "cuda" if stack.device == "cuda" else "cpu"
    options = {"items": 1, "clock": clock, **harness.sampling(given)}
    whole = torch.stack(stack.keys)
    copy = torch.empty_like(whole)
    calls: dict[str, Callable[[], Any]] = {
        ROWS: replayed(stack.rows, device),
        COPY: lambda: copy.copy_(whole),
        f"{ROWS}, from Python": stack.rows,
        EAGER: stack.eager,
    }
    rows = harness.compare(STACK, calls, errors=stack.errors(), **options)
    read = next(row.ratio for row in rows if row.contender == COPY) / 2
    for row in rows[:1]:
        row.floor = read / row.ratio
    for row in rows:
        if row.contender == COPY:
            row.error = f"{2 * stack.nbytes / row.time_us / 1e3:.0f} GB/s"
    yield measured_memory(rows, {**calls, ROWS: stack.rows}, stack)

    heads = [(layer % stack.layers, head % stack.heads) for layer, head in CHOSEN]
    yield harness.compare(
        THREE, {ROWS: replayed(lambda: stack.rows(heads), device),
                f"{ROWS}, from Python": lambda: stack.rows(heads)}, **options,
    )  # fmt: skip
    yield harness.compare(
        PACKED_ROWS, {SEVEN: replayed(stack.packed(EXPRESSIONS), device),
                 ONE: replayed(stack.packed(1), device)}, **options,
    )  # fmt: skip


def measured_memory(
    rows: list[harness.Row], calls: dict[str, Callable[[], Any]], stack: Stack
) -> list[harness.Row]:
    kept = stack.kept()
    for row in rows:
        row.kept_mb = kept.get(row.contender)
        if row.contender in kept:
            row.peak_mb = memory.peak(calls[row.contender], stack.device)
    return rows


def main() -> None:
    options = harness.parser("Rows of attention from cached keys, beside eager attention.")
    options.add_argument("--gpu", action="store_true", help="all layers in bfloat16, on CUDA")
    given = options.parse_args()
    if given.gpu:
        stack = Stack(32, 32, device="cuda", dtype=torch.bfloat16)
        name, described = "rows-gpu", "LLaVA-1.5-7B, 32 layers of 32 heads, 640 tokens, bfloat16"
        rows = harness.kept(name, described, on_gpu(given, stack), save=not given.no_save)
    else:
        harness.one_thread()
        name, rows = "rows", []
        for dtype in (torch.float32, torch.bfloat16):
            rows += on_cpu(given, Stack(1, 32, dtype=dtype))
        described = "LLaVA-1.5-7B, one layer of 32 heads, 640 tokens, one thread"
    harness.report(name, described, rows, save=not given.no_save)
    readme_tables.print_goals({name: {"rows": [vars(row) for row in rows]}}, only=name)


if __name__ == "__main__":
    main()
