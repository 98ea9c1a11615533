"""The nouns that the stages exchange: frozen data, and what it tells by itself.

Conventions everywhere: layers and heads are 0-based; `grid` is (grid_h, grid_w) as the language
model sees it; `size` is (height, width) in pixels; a box is float32 x1, y1, x2, y2, pixel edges,
half-open; entropies are in nats.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastground.recipe import CHOICES, PROFILES, Recipe
from fastground.strict_json import dumps

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch
    from PIL.Image import Image

__all__ = [
    "CHOICES", "PROFILES", "RANKING_FILE", "AttentionMaps", "Encoded", "HeadId", "HeadRanking",
    "HeadStats", "ImageLayout", "RankedHead", "Recipe", "Sample",
]  # fmt: skip

RANKING_FILE = "ranking.json"
"""What a `HeadRanking` is called in the folder of a run or of a checkpoint."""


class HeadId(NamedTuple):
    """One attention head of the language model, both numbers 0-based; printed `L14 H24`."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer} H{self.head}"


def _some(heads: Sequence[HeadId]) -> str:
    """The first heads, and how many there are."""
    named = ", ".join(str(HeadId(*head)) for head in heads[:3])
    return named if len(heads) <= 3 else f"{named} and {len(heads) - 3} more"


def _between(at: torch.Tensor, cells: int) -> torch.Tensor:
    """(n, cells) float32: what each cell counts at (n,) places on the grid, linear in between."""
    import torch

    centre = (at - 0.5).clamp(0, cells - 1)
    share = 1 - (centre[:, None] - torch.arange(cells, device=at.device)).abs()
    return (share.clamp(min=0) * ((at >= 0) & (at < cells))[:, None]).float()


_NO_IMAGE = (
    "layout knows no image, so cells have no pixels; take that of "
    "fastground.models.wrap(model, processor).encode(image, [text]), which capture(layouts=) "
    "takes, too, or set image_size and cell_size"
)


@dataclass(frozen=True)
class ImageLayout:
    """Where an image's tokens stand in the sequence, and where their cells lie in the image."""

    grid: tuple[int, int]
    """(grid_h, grid_w) of the map, after any merging of patches."""
    tokens: tuple[int, ...]
    """Sequence positions of the grid's cells in raster order; grid_h * grid_w of them."""
    all_tokens: tuple[int, ...] | None = None
    """Sequence positions of all the image's tokens where there are more than the grid's."""
    image_size: tuple[int, int] | None = None
    """(height, width) of the original image in pixels; None where only the tokens are known."""
    cell_size: tuple[float, float] | None = None
    """(x, y) extent of one cell in original pixels."""
    origin: tuple[float, float] = (0.0, 0.0)
    """(x, y) of the grid's top left corner in original pixels; negative where padding precedes."""

    def __post_init__(self) -> None:
        if len(self.tokens) != self.grid[0] * self.grid[1]:
            raise ValueError(
                f"layout.tokens must hold grid_h * grid_w = {self.grid[0]} * {self.grid[1]} "
                f"positions, but got {len(self.tokens)}"
            )

    def __repr__(self) -> str:
        whole = self.tokens if self.all_tokens is None else self.all_tokens
        image = "no image" if self.image_size is None else "{} x {} pixels".format(*self.image_size)
        return (
            f"ImageLayout({self.grid[0]} x {self.grid[1]} cells, {len(whole)} tokens from "
            f"{min(whole, default=0)} on, {image})"
        )

    def to_pixels(self, boxes: torch.Tensor) -> torch.Tensor:
        """Boxes in original pixels, clipped to the image.

        Args:
            boxes: (..., 4) x1, y1, x2, y2 in grid units.

        Returns:
            (..., 4) float32 in pixels.

        Raises:
            ValueError: the layout does not know its image.
        """
        import torch

        if self.image_size is None or self.cell_size is None:
            raise ValueError(_NO_IMAGE)
        like = {"dtype": torch.float32, "device": boxes.device}
        scale = torch.tensor(self.cell_size * 2, **like)  # type: ignore[arg-type]
        shift = torch.tensor(self.origin * 2, **like)  # type: ignore[arg-type]
        limit = torch.tensor(self.image_size[::-1] * 2, **like)  # type: ignore[arg-type]
        return (boxes.float() * scale + shift).clamp(min=0).minimum(limit)

    def valid(self) -> torch.Tensor:
        """(grid_h, grid_w) bool: the cells whose centre lies in the image, so not padding.

        A centre on the image's edge is in it, however that was rounded. Where an image is so thin
        that no row or column of centres does, those that it touches.
        """
        import torch

        if self.image_size is None or self.cell_size is None:
            return torch.ones(self.grid, dtype=torch.bool, device="cpu")

        def inside(axis: int) -> torch.Tensor:
            size, cell = self.image_size[axis], self.cell_size[1 - axis]  # type: ignore[index]
            place = torch.arange(self.grid[axis], dtype=torch.float64, device="cpu") + 0.5
            centre = self.origin[1 - axis] + place * cell
            within = (centre > -1e-6 * cell) & (centre < size + 1e-6 * cell)
            return within if within.any() else (centre > -cell / 2) & (centre < size + cell / 2)

        return inside(0)[:, None] & inside(1)

    def on_image(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps at every pixel of the image, linear between the centres of cells.

        Args:
            maps: (..., grid_h, grid_w).

        Returns:
            (..., height, width) float32, in the maps' own unit; 0 where the model sees no pixel.

        Raises:
            ValueError: maps of another grid, or the layout does not know its image.
        """
        if tuple(maps.shape[-2:]) != self.grid:
            raise ValueError(
                f"maps must be (..., {self.grid[0]}, {self.grid[1]}), as the layout's grid, but "
                f"got shape {tuple(maps.shape)}"
            )
        rows, columns = (
            _between(at, cells).to(maps.device)
            for at, cells in zip(self.pixel_centers(), self.grid, strict=True)
        )
        return rows @ maps.float() @ columns.T

    def pixel_centers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the image's pixel centres lie on the grid.

        Returns:
            (height,) and (width,) float64 in grid units; the floor is a pixel's cell, and what
            falls outside [0, grid_h) or [0, grid_w) has none.

        Raises:
            ValueError: the layout does not know its image.
        """
        import torch

        if self.image_size is None or self.cell_size is None:
            raise ValueError(_NO_IMAGE)
        y, x = (torch.arange(n, dtype=torch.float64, device="cpu") + 0.5 for n in self.image_size)
        return (y - self.origin[1]) / self.cell_size[1], (x - self.origin[0]) / self.cell_size[0]


@dataclass(frozen=True)
class Encoded:
    """One image and its expressions as a model reads them; the image comes before the words."""

    expressions: tuple[str, ...]
    """As the user wrote them."""
    token_ids: tuple[torch.Tensor, ...]
    """Per expression its whole prompt, (tokens,) int64."""
    asking: tuple[tuple[int, ...], ...]
    """Per expression the indices in its prompt of the tokens that ask; their maps are averaged."""
    prefix_length: int
    """How many first tokens all prompts share; they end with the image's last token."""
    image_inputs: dict[str, torch.Tensor]
    """What the model reads beside tokens, once; the first axis counts images, tiles or patches."""
    layout: ImageLayout
    """Where the image's tokens stand, in every prompt alike."""
    prefix_positions: torch.Tensor | None = None
    """(axes, prefix_length) int64 where the model counts positions in several axes (M-RoPE); the
    words after the prefix go on from the largest, on all axes alike. None: 0, 1, 2, ..."""
    image: Image | None = field(default=None, repr=False)
    """In RGB, upright; None where only the model looks at it."""
    counted: dict[str, int] = field(default_factory=dict)
    """Those that number patches, and of how many: other images' come before; negative: nothing."""
    axes: dict[str, int] = field(default_factory=dict)
    """Those of which another axis than the first counts these, and which."""
    pads: bool = True
    """Whether it may be padded to a larger image's size, to share a forward with that."""


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """What the asking tokens see of the image, head by head."""

    maps: torch.Tensor
    """(expressions, heads, grid_h, grid_w) float32; softmax over all visible keys, so not sum 1."""
    sums: torch.Tensor
    """(expressions, heads) float32 in [0, 1]: the attention on all of the image's tokens."""
    heads: tuple[HeadId, ...]
    """The heads, in the order of the second dimension."""
    layout: ImageLayout
    """The image the maps lie on."""

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.maps.shape))
        return f"AttentionMaps({shape}, {_some(self.heads)}, {self.maps.device}, {self.layout!r})"

    def select(self, heads: tuple[HeadId, ...] | list[HeadId]) -> AttentionMaps:
        """The same maps for these heads only, in this order.

        Raises:
            ValueError: a head that was not captured.
        """
        where = {head: i for i, head in enumerate(self.heads)}
        missing = [str(HeadId(*h)) for h in heads if HeadId(*h) not in where]
        if missing:
            raise ValueError(f"heads must have been captured, but {', '.join(missing)} were not")
        index = [where[HeadId(*h)] for h in heads]
        kept = tuple(HeadId(*h) for h in heads)
        return AttentionMaps(self.maps[:, index], self.sums[:, index], kept, self.layout)

    def positions(self, flat: np.ndarray, heads: int) -> np.ndarray:
        """Where these heads are in `self.heads`.

        Args:
            flat: integers, layer * heads + head.
            heads: of a layer of the model.

        Raises:
            ValueError: a head that was not captured.
        """
        import numpy as np

        numbers = np.array([layer * heads + head for layer, head in self.heads])
        order = numbers.argsort()
        found = order[np.searchsorted(numbers, flat, sorter=order).clip(max=len(order) - 1)]
        wrong = numbers[found] != flat
        if wrong.any():
            missing = HeadId(*divmod(int(np.asarray(flat)[wrong][0]), heads))
            raise ValueError(f"heads must have been captured, but {missing} was not")
        return found


class HeadStats(NamedTuple):
    """The two numbers of every map."""

    attention_sum: torch.Tensor
    """(...) float32."""
    entropy: torch.Tensor
    """(...) float32, nats; +inf where no cell exceeds the cut."""


@dataclass(frozen=True)
class RankedHead:
    """One head's place in a ranking."""

    head: HeadId
    frequency: float
    """Share of samples in whose lowest-entropy heads it was."""
    frequency_std: float
    """Standard deviation of that share over the trials."""
    attention_sum: float
    """Mean over the samples."""
    entropy: float
    """Mean over the samples where it is finite, nats; +inf where it never is."""


@dataclass(frozen=True)
class HeadRanking:
    """The heads of one model by selection frequency, best first, with what they came from."""

    heads: tuple[RankedHead, ...]
    tau: float
    """The attention-sum threshold."""
    curve: tuple[float, ...]
    """The mean attention sums, ascending, whose elbow is tau."""
    num_samples: int
    """Samples behind the ranking; a trial holds num_samples // len(trials) of them."""
    trials: tuple[tuple[HeadId, ...], ...]
    """The first k heads of every trial."""
    recipe: Recipe
    checkpoint: str
    architecture: dict[str, Any]
    """model_type, num_layers, num_heads: what a model must have to use the ranking."""
    dataset: str
    split: str
    versions: dict[str, str] = field(default_factory=dict)
    revision: str = ""
    """The hub's commit that the checkpoint was read from; of a folder none."""
    ties: int = 0
    """Samples in which the last elected head shared its entropy with one left out."""

    def __repr__(self) -> str:
        where = f"{self.dataset} {self.split}".strip()
        return (
            f"HeadRanking({self.checkpoint!r}, {_some([h.head for h in self.heads])}, tau "
            f"{self.tau:.3f}, {self.num_samples:,} samples{where and f' of {where}'})"
        )

    def top(self, k: int | None = None) -> tuple[HeadId, ...]:
        """The first k heads; k is the recipe's unless given.

        Raises:
            ValueError: fewer than k heads are ranked.
        """
        k = self.recipe.k if k is None else k
        if not 0 < k <= len(self.heads):
            raise ValueError(f"k must be 1 to {len(self.heads)}, the heads ranked, but got {k}")
        return tuple(h.head for h in self.heads[:k])

    def agreement(self) -> tuple[int, int]:
        """In how many trials the first k heads are the ranking's, as a set; and of how many."""
        return sum(set(trial) == set(self.top()) for trial in self.trials), len(self.trials)

    def often(self) -> tuple[RankedHead, ...]:
        """The heads elected in at least 1 % of the samples: those whose rank and IoU may meet."""
        return tuple(h for h in self.heads if h.frequency >= 0.01)

    def to_dict(self) -> dict[str, Any]:
        """Every field by name, as JSON keeps it, and the chosen heads as `top`."""
        return {"top": [list(head) for head in self.top()], **asdict(self)}

    def save(self, path: str | Path) -> None:
        """Write the ranking as JSON, whole or not at all; an infinite entropy is null."""
        text = dumps(asdict(self))
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(path.suffix + ".part")
        part.write_text(text + "\n")
        part.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> HeadRanking:
        """Read a ranking: its file, or the folder of a run that holds it.

        Raises:
            ValueError: the file is no head ranking.
            FileNotFoundError: there is no such file.
        """
        file = Path(path) / RANKING_FILE if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise FileNotFoundError(
                f"ranking must be a file or folder written by fastground discover, but {file} is "
                "not there; make one with: fastground discover MODEL --out FOLDER"
            )
        try:
            data = json.loads(file.read_text())
            heads = tuple(
                RankedHead(
                    head=HeadId(*h.pop("head")),
                    entropy=float("inf") if (entropy := h.pop("entropy")) is None else entropy,
                    **h,
                )
                for h in map(dict, data.pop("heads"))
            )
            trials = tuple(tuple(HeadId(*h) for h in t) for t in data.pop("trials"))
            recipe = Recipe(**data.pop("recipe"))
            curve = tuple(data.pop("curve"))
            tau = float("nan") if (tau := data.pop("tau")) is None else tau
            return cls(heads=heads, trials=trials, recipe=recipe, curve=curve, tau=tau, **data)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"ranking must be a JSON file written by fastground discover, but {file} is not "
                f"({type(error).__name__}: {error}); make one with: fastground discover MODEL"
            ) from error


@dataclass(frozen=True)
class Sample:
    """One image and one expression, with the truth where it is known."""

    image: Image
    expression: str
    box: tuple[float, float, float, float] | None = None
    """x1, y1, x2, y2 in pixels."""
    mask: Any = None
    """(height, width) bool array; empty, and without a box, where there is no such object."""
    image_id: int = 0
    """Samples of one image share it and follow one another; intervals are by it, and nan of one."""
    sample_id: int = 0
    kind: str = ""
    """What the expression uses, e.g. attribute, location, relation."""
    answer: tuple[str, ...] = ()
    """What a model trained on the data set should answer."""
    ignore: Any = None
    """(height, width) bool array: pixels that count neither way; None where all count."""
    first: bool = True
    """Whether it is the first sentence about its object: published scores take all or these."""
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    """Of each object, where several are meant and told apart; `box` and `mask` are of all."""
