"""The recipe: every choice that the method leaves open, and what its authors chose."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from numbers import Real
from typing import Any

CHOICES: dict[str, tuple[str, ...]] = {
    "weight": ("area", "mass"),
    "cut": ("mean", "mean+eps", "2mean+eps"),
    "empty": ("inf", "zero"),
    "scope": ("mean", "sample"),
    "criteria": ("both", "attention_sum", "entropy"),
    "selection": ("fixed", "greedy"),
    "border": ("reflect101", "reflect"),
    "region": ("hull", "component", "mass", "all"),
    "padding": ("exclude", "include"),
    "sinks": ("keep", "relative", "centre", "drop"),
    "padding_stats": ("include", "exclude"),
    "prompt": ("box", "box+mask", "box+points"),
    "masks": ("one", "best of three"),
    "box_from": ("map", "mask"),
    "blocks": ("base", "stitch"),
    "query": ("last_expression", "last_prompt", "phrase_mean", "first_generated"),
    "template": ("plain", "chat"),
}
"""Every named choice of a `Recipe` field; the first is the paper's, and the default."""

MAX_KERNEL_SIZE = 65535
"""Taps of the smoothing, at most."""


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _is_share(value: Any) -> bool:
    return _is_finite(value) and 0 < value <= 1


@dataclass(frozen=True)
class Recipe:
    """Every choice that the method leaves open, one field each; the defaults are the paper's.

    Source: Kang et al., CVPR 2025 (arXiv 2503.06287). Printed with every result.
    """

    # One attention map -> its numbers.
    weight: str = "area"
    """What a region counts in the spatial entropy: its cells, or its attention above the mean."""
    cut: str = "mean"
    """A cell is foreground where the map exceeds this; eps is 1e-3."""
    empty: str = "inf"
    """The entropy of a map without foreground: +inf (never ranks first) or 0 (as once released)."""
    bottom_row: float | None = None
    """Drop a head in a sample where a cell of the grid's last row holds more than this share of all
    attention (as once released, with 0.05): its entropy there is +inf; None keeps it."""
    padding_stats: str = "include"
    """Whether attention sum, entropy and each head's IoU with a mask see the cells of the map that
    only pad the image to its model shape; without them the last row is that of the image."""

    # Many samples -> a ranking of heads.
    elbow: str | float = "chord"
    """The attention-sum threshold: "chord" | "curvature" of the sorted curve, or the number."""
    scope: str = "mean"
    """A head passes by its mean attention sum, or in each sample by that sample's own."""
    criteria: str = "both"
    """Which of the two criteria rank the heads."""
    selection: str = "fixed"
    """One set of heads by selection frequency, or each sample's own best heads ("greedy"); where
    fewer than k pass, those of its largest attention sums follow."""
    skip_layers: int = 2
    """The first layers, left out."""
    top_n: int = 10
    """How many heads of lowest entropy a sample elects."""
    k: int = 3
    """How many heads ground an expression."""

    # k maps -> box.
    sinks: str = "keep"
    """What is done to each map against cells that draw attention whatever is asked: nothing; divide
    by the map of a `generic` prompt; subtract the mean map of its layer's heads; or set to 0 the
    cells that hold more than `sink_share` of that mean map."""
    generic: str = "Write a general description of the image."
    sink_share: float = 0.1
    kernel_size: int = 7
    """Taps of the Gaussian smoothing, odd; 1 does not smooth."""
    sigma: float = 1.0
    """Standard deviation of the smoothing, in grid cells; 0 does not smooth."""
    border: str = "reflect101"
    """Border of the smoothing: dcb|abcd|cba, or "reflect": dcba|abcd|dcba."""
    region: str = "hull"
    """Which region is kept: largest convex hull, most cells, largest mass, or all of them. Score
    and mass are of the cells whose centre is in the hull; the mask keeps to the region's own."""
    padding: str = "exclude"
    """Whether padding cells may belong to a region."""
    objects: float | None = None
    """Regions with at least this share of the foreground's attention are objects of their own, in
    `Grounding.others`; None: one expression, one object."""

    # Box -> mask, by a segmenter.
    prompt: str = "box"
    """What a segmenter is told: the box; with it the map's log-odds, 0 at the mean; or with it
    the map's highest peaks in the box, as points of the object."""
    masks: str = "one"
    """The segmenter's own choice, or that of its three proposals which agrees best with the map
    (the correlation of their cells)."""
    box_from: str = "map"
    """The kept region's box, or the tight box of the mask (where that is empty, the region's)."""

    # Which map: what of the image, and which token asks.
    blocks: str = "base"
    """Where the image is seen twice, whole and in tiles: the map of the whole, or of the tiles
    stitched together. The attention sum is over all of the image's tokens either way."""
    query: str = "last_expression"
    """The asking token: the expression's last, the prompt's last, or the first that the model
    says; or all tokens of the expression, with its final ".", over whose maps the mean is taken."""
    template: str = "plain"
    """The words around the expression: none but a system sentence, or the model's chat template."""
    ensure_period: bool = True
    """Whether an expression without a final "." gets one."""

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            self._need(name, getattr(self, name) in choices, f"one of {', '.join(choices)}")
        for name, least in (("skip_layers", 0), ("top_n", 1), ("k", 1), ("kernel_size", 1)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            self._need(name, whole and value >= least, f"an integer >= {least}")
        short = self.kernel_size <= MAX_KERNEL_SIZE
        most = "" if short else f" and at most {MAX_KERNEL_SIZE}"
        self._need("kernel_size", short and self.kernel_size % 2 == 1, f"odd{most}")
        told = self.elbow in ("chord", "curvature") or _is_finite(self.elbow)
        self._need("elbow", told, "chord, curvature or a number")
        told = self.bottom_row is None or _is_finite(self.bottom_row)
        self._need("bottom_row", told, "a number or None")
        share = "a share, 0 < share <= 1"
        self._need("sink_share", _is_share(self.sink_share), share)
        self._need("objects", self.objects is None or _is_share(self.objects), share)
        told = isinstance(self.generic, str) and bool(self.generic.strip())
        self._need("generic", told, "a prompt")
        self._need("sigma", _is_finite(self.sigma) and self.sigma >= 0, "finite and >= 0")

    def _need(self, name: str, holds: bool, need: str) -> None:
        if not holds:
            raise ValueError(f"recipe.{name} must be {need}, but got {getattr(self, name)!r}")

    @classmethod
    def profile(cls, name: str) -> Recipe:
        """The choices of the paper, or of one of its authors' two code releases.

        Raises:
            ValueError: `name` is not one of "paper", "repo-2025-06", "repo-2025-08".
        """
        if name not in PROFILES:
            raise ValueError(f"profile must be one of {', '.join(PROFILES)}, but got {name!r}")
        return PROFILES[name]

    def replace(self, **changes: Any) -> Recipe:
        """A copy with these fields changed, checked anew.

        Raises:
            ValueError: an unknown field or value.
        """
        unknown = sorted(set(changes) - {f.name for f in fields(self)})
        if unknown:
            names = ", ".join(f.name for f in fields(self))
            raise ValueError(f"recipe has no field {unknown[0]!r}; its fields are {names}")
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Every field by name, as JSON keeps it."""
        return asdict(self)


PROFILES: dict[str, Recipe] = {
    "paper": Recipe(),
    "repo-2025-06": Recipe(
        weight="mass", cut="mean+eps", empty="zero", scope="sample", skip_layers=0,
        selection="greedy",
    ),
    "repo-2025-08": Recipe(
        weight="mass", cut="2mean+eps", empty="zero", scope="sample", bottom_row=0.05,
        selection="greedy", k=5, kernel_size=9, border="reflect", region="all", padding="include",
    ),
}  # fmt: skip
