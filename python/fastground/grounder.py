"""The grounder: a model, its localization heads, and images to look at."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, overload

import torch

from fastground import models, segmentation, sinks
from fastground.attention import attention_maps
from fastground.election import greedy, kept_of
from fastground.grounding import ground
from fastground.hub import parted
from fastground.models import LVLM
from fastground.models.geometry import read_image
from fastground.published import RANKINGS, PublishedRanking
from fastground.result import Grounding
from fastground.segmentation import Segmenter
from fastground.stats import head_statistics, head_table
from fastground.types import RANKING_FILE, AttentionMaps, Encoded, HeadId, HeadRanking, Recipe

if TYPE_CHECKING:
    from PIL.Image import Image


class Grounder:
    """Points at what an expression means, with a few heads of a frozen model.

    `grounder(image, "the red mug")` gives a `Grounding`, a list of expressions a list of them; all
    expressions of an image go through the model in one forward that ends at the deepest head.
    """

    def __init__(
        self,
        lvlm: LVLM,
        ranking: HeadRanking | str | Path,
        *,
        segmenter: Segmenter | str | None = None,
        recipe: Recipe | None = None,
    ) -> None:
        """A grounder of a loaded model.

        Args:
            lvlm: from `fastground.models`, which wraps a model of your own, too.
            ranking: of the same architecture, its file, or the folder that holds it; its first k
                heads are used.
            segmenter: turns groundings into masks, or its name as `segmentation.load` takes it;
                the attention map itself does unless given.
            recipe: the ranking's own unless given.

        Raises:
            ValueError: no such model, recipe or segmenter; the ranking is of another architecture,
                names heads that the model does not have, or fewer than k.
            FileNotFoundError: no such ranking, or the segmenter's weights are not there.
        """
        if not isinstance(lvlm, LVLM):
            raise ValueError(
                f"lvlm must be a model of fastground.models, but got {type(lvlm).__name__}; give "
                "models.wrap(model, processor) of one that is loaded, or take "
                "Grounder.from_pretrained"
            )
        if isinstance(ranking, (str, Path)):
            ranking = HeadRanking.load(ranking)
        if not isinstance(ranking, HeadRanking):
            raise ValueError(
                "ranking must be a HeadRanking, as fastground.discover gives it, or the folder of "
                f"its run, but got {type(ranking).__name__}"
            )
        if not isinstance(recipe, (Recipe, NoneType)):
            raise ValueError(
                f"recipe must be a Recipe, but got {type(recipe).__name__}; give Recipe(k=2), say"
            )
        for name, value in lvlm.architecture.items():
            other = ranking.architecture.get(name)
            if other != value:
                raise ValueError(
                    f"ranking must be of a model like {lvlm.checkpoint!r} with {name} {value!r}, "
                    f"but it is of {ranking.checkpoint!r} with {name} {other!r}; make one with: "
                    f"fastground discover {lvlm.checkpoint}"
                )
        layers, heads = lvlm.architecture["num_layers"], lvlm.architecture["num_heads"]
        for layer, head in (ranked.head for ranked in ranking.heads):
            if not (0 <= layer < layers and 0 <= head < heads):
                raise ValueError(
                    f"ranking must name heads of the model's {layers} layers x {heads} heads, but "
                    f"has {HeadId(layer, head)}; make one with: fastground discover "
                    f"{lvlm.checkpoint}"
                )
        self.lvlm = lvlm
        self.ranking = ranking
        self.recipe = ranking.recipe if recipe is None else recipe
        if isinstance(segmenter, str):
            segmenter = segmentation.load(segmenter, device=lvlm.device)
        if not (segmenter is None or callable(segmenter)):
            raise ValueError(
                "segmenter must be a name, such as 'grabcut' or 'sam:FOLDER', or what is called "
                f"with an image and its groundings, but got {segmenter!r}"
            )
        self.segmenter = segmenter
        if isinstance(ranking, PublishedRanking):
            _check_known(ranking, self.recipe)
        self.heads: tuple[HeadId, ...] = ranking.top(self.recipe.k)

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        ranking: HeadRanking | str | Path | None = None,
        segmenter: Segmenter | str | None = None,
        recipe: Recipe | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Grounder:
        """A grounder of a checkpoint.

        Args:
            checkpoint: "tiny" (the embedded model), a folder, or a name on the hub.
            ranking: a head ranking, its file, or the folder that holds it; the checkpoint's own,
                which "tiny" has and a folder may have as ranking.json, unless given. For some
                checkpoints heads are published; a warning then says by whom, and what is unsure.
            segmenter: as in the constructor.
            recipe: as in the constructor.
            device: a GPU where there is one, else the CPU.
            dtype: of the weights.

        Returns:
            The grounder, ready to be called.

        Raises:
            ValueError: no such model, a ranking of another architecture, or no ranking at all.
            FileNotFoundError: no such ranking file, or no weights of the segmenter.
        """
        checkpoint = models.named(checkpoint)
        if ranking is None:
            ranking = _own_ranking(checkpoint)
        if isinstance(ranking, PublishedRanking):
            warnings.warn(
                f"the heads of {checkpoint} are as published, not discovered: {ranking.provenance};"
                f" to measure them: fastground discover {checkpoint}",
                stacklevel=2,
            )
        if not isinstance(ranking, HeadRanking):
            ranking = HeadRanking.load(ranking)
        lvlm = models.load(checkpoint, device=device, dtype=dtype)
        return cls(lvlm, ranking, segmenter=segmenter, recipe=recipe)

    def __repr__(self) -> str:
        return f"Grounder({self.lvlm!r}, {', '.join(map(str, self.heads))})"

    @overload
    def __call__(self, image: Any, expression: str) -> Grounding: ...
    @overload
    def __call__(self, image: Any, expression: list[str] | tuple[str, ...]) -> list[Grounding]: ...

    def __call__(
        self, image: Any, expression: str | list[str] | tuple[str, ...]
    ) -> Grounding | list[Grounding]:
        """Where in the image the expression's object is.

        Args:
            image: a PIL image, the path of one, an array or a tensor, as `read_image` takes them.
                A file is turned upright as its EXIF data says, and boxes are in upright pixels;
                images and arrays are taken as they are. Or an `Encoded` of the image and of what
                `sinks.asked` makes of these expressions, as `read_ahead` gives it.
            expression: what to look for, or a list of such texts; a `phrases.Phrase` is asked in
                its place in its sentence.

        Returns:
            One grounding; for a list of expressions as many, in order.

        Raises:
            ValueError: no image; an expression that is empty, too long, or has words the model does
                not know.
            FileNotFoundError: there is no such image file.
        """
        seen = image.image if isinstance(image, Encoded) else read_image(image)
        image = image if isinstance(image, Encoded) else seen
        one = isinstance(expression, str)
        if not isinstance(expression, (str, Iterable)):
            raise ValueError(f"expression must be a text or a list of them, but got {expression!r}")
        expressions = [expression] if isinstance(expression, str) else list(expression)
        if not expressions:
            return []
        attention, chosen = self._look(image, expressions)
        found = ground(attention, expressions, recipe=self.recipe, chosen=chosen)
        found = self._with_masks(seen, found)
        return found[0] if one else found

    def _with_masks(self, image: Image | None, found: list[Grounding]) -> list[Grounding]:
        """The segmenter's masks, and the image in every grounding and its other objects."""
        placed = [
            replace(g, image=image, others=tuple(replace(o, image=image) for o in g.others))
            for g in found
        ]
        return segmentation.segmented(self.segmenter, placed, self.recipe)

    def _look(
        self, image: Image | Encoded, expressions: list[str]
    ) -> tuple[AttentionMaps, torch.Tensor | None]:
        """The maps that ground, and (expressions, k) positions of each expression's own heads."""
        asked = sinks.asked(expressions, self.recipe)
        greedily = self.recipe.selection == "greedy"
        width = self.lvlm.architecture["num_heads"]
        heads = None if greedily else sinks.read(self.heads, width, self.recipe)
        attention = attention_maps(self.lvlm, image, asked, recipe=self.recipe, heads=heads)
        captured, cleared = sinks.cleared(attention, self.recipe)
        return (cleared, self._greedy(captured)) if greedily else (cleared.select(self.heads), None)

    def _greedy(self, attention: AttentionMaps) -> torch.Tensor:
        """(expressions, k) positions of each expression's own best heads."""
        shape = self.lvlm.architecture["num_layers"], self.lvlm.architecture["num_heads"]
        stats = head_statistics(attention, self.recipe)
        sums, entropies = head_table(stats, attention.heads, shape)
        kept = kept_of(self.ranking, self.recipe)
        chosen = greedy(sums, entropies, self.recipe, kept=kept)
        return torch.from_numpy(attention.positions(chosen, shape[1]))


def _check_known(ranking: PublishedRanking, recipe: Recipe) -> None:
    """Refuse what only a measured ranking can give.

    Raises:
        ValueError: more heads than are published, or a choice by numbers that are not.
    """
    discover = f"discover them: fastground discover {ranking.checkpoint} --out runs/heads"
    if recipe.k > len(ranking.heads):
        raise ValueError(
            f"recipe.k must be at most {len(ranking.heads)} for {ranking.checkpoint!r}, but got "
            f"{recipe.k}: {ranking.provenance}; give k={len(ranking.heads)}, or {discover}"
        )
    if recipe.selection == "greedy" and recipe.scope == "mean":
        raise ValueError(
            "recipe.selection 'greedy' needs every head's mean attention sum, but of "
            f"{ranking.checkpoint!r} only heads are published; give scope='sample', or {discover}"
        )


def _own_ranking(checkpoint: str) -> Path | PublishedRanking:
    """The ranking that lies beside a checkpoint's weights, or what is published of it.

    Raises:
        ValueError: there is none, or no such checkpoint.
    """
    folder = Path(checkpoint)
    if checkpoint == "tiny":
        folder = Path(models.__file__).parent.parent / "tiny" / "checkpoint"
    if (folder / RANKING_FILE).is_file():
        return folder / RANKING_FILE
    name, _ = parted(checkpoint)
    if name in RANKINGS:
        return RANKINGS[name]
    if not folder.is_dir() and not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        raise ValueError(
            "checkpoint must be 'tiny', a folder or a model on the hub, such as "
            f"'llava-hf/llava-1.5-7b-hf', but there is no {checkpoint!r}"
        )
    raise ValueError(
        f"ranking must be given for {checkpoint!r}, which has none of its own; discover its heads "
        f"first: fastground discover {checkpoint} --out runs/heads, then pass "
        "ranking='runs/heads/ranking.json' (--ranking runs/heads)"
    )
