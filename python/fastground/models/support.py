"""The support table: which models work, how, and what is special to them.

A row is a family of models by its transformers `model_type`, or a model that transformers does not
know by a name of its own. Rows are read off the adapters; only what is no adapter is listed here.

    native       transformers loads it as published
    conversion   `fastground.models.convert` first writes it so that transformers does
    hooks        its authors' code loads it, `fastground.models.wrap` takes it from there
    generic      no adapter of its own: what its configuration says of its image tokens is enough
    refused      for the reason told: most have no attention over an image's cells
"""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass
from typing import Any

from fastground.models import ADAPTERS, REFUSED
from fastground.models.generic import Generic

HOW = ("native", "conversion", "hooks", "generic", "refused")

CONVERSIONS = {
    "llava_v1": ("llava", "The first LLaVA, 7B and 13B: one linear layer from patch to token"),
    "sharegpt4v": ("llava", "LLaVA-1.5's layout with a vision tower that was trained along"),
    "yi_vl": ("fastground_yi_vl", "Norms between vision and language; its community port too"),
    "internvl_chat": ("llava", "LLaVA's layout with InternViT-6B, 224 pixels shown 336"),
}
"""What `convert` reads: by name the model_type that it makes of it, and a remark."""

PAPER = {
    "DeepSeek-VL-1.3B": "deepseek_vl",
    "DeepSeek-VL-7B": "deepseek_vl_hybrid",
    "Mini-Gemini-2B": "mini_gemini",
    "InternVL-6B": "internvl_chat",
    "Yi-VL-6B": "yi_vl",
    "ShareGPT4V-7B": "sharegpt4v",
    "LLaVA-7B": "llava_v1",
    "LLaVA-13B": "llava_v1",
    "LLaVA-1.5-7B": "llava",
    "LLaVA-1.5-13B": "llava",
}
"""The ten models of the paper by the names that it gives them, and their rows."""


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    name: str
    """The model_type, with "+" and the vision tower's where that decides; or the name of what
    transformers does not know."""
    how: str
    """One of `HOW`."""
    model_types: tuple[str, ...]
    """What its configuration may call it when fastground sees it."""
    packs: bool | None
    """Whether the expressions of an image share a sequence with it, where no layer sees only the
    last so many tokens; None where there is nothing to share."""
    caches: bool | None
    """Whether they otherwise share its keys, which then are computed once, too."""
    remarks: str
    paper: tuple[str, ...] = ()
    """Its models among the paper's ten."""


def table() -> list[Row]:
    """All rows, in the order of `HOW` and then by name."""
    rows = [
        Row(
            name=name,
            how="conversion",
            model_types=(made,),
            packs=ADAPTERS[made].shares_prefix,
            caches=ADAPTERS[made].caches_prefix,
            remarks=remarks,
        )
        for name, (made, remarks) in CONVERSIONS.items()
    ]
    for kind in dict.fromkeys(ADAPTERS.values()):
        told: dict[str, Any] = {
            "how": kind.how,
            "packs": kind.shares_prefix,
            "caches": kind.caches_prefix,
            "remarks": _first_line(kind),
        }
        if kind.how == "native":
            rows += [
                Row(name=name, model_types=(name.partition("+")[0],), **told)
                for name in kind.model_types
            ]
        elif kind.how != "conversion":
            rows.append(Row(name=kind.family, model_types=kind.model_types, **told))
    rows.append(
        Row(
            "any other", Generic.how, (), packs=Generic.shares_prefix,
            caches=Generic.caches_prefix, remarks=_first_line(Generic),
        )
    )  # fmt: skip
    rows += [
        Row(name, "refused", (name,), packs=None, caches=None, remarks=reason)
        for name, reason in REFUSED.items()
    ]
    named = {row: tuple(n for n, family in PAPER.items() if family == row.name) for row in rows}
    rows = [Row(**{**vars(row), "paper": paper}) for row, paper in named.items()]
    return sorted(rows, key=lambda row: (HOW.index(row.how), row.name))


def facts() -> list[dict[str, Any]]:
    """The same as JSON holds it."""
    return [asdict(row) for row in table()]


def _first_line(kind: Any) -> str:
    return (inspect.getdoc(kind) or "").splitlines()[0].rstrip(".")
