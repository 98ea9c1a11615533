"""Any family without an adapter of its own, as far as it says where its image tokens lie.

What a model must have: `config.image_token_id`, and a processor that puts one view of an image, one
image token a cell, in raster order. Marks around and between the rows may be there too.

    processor says     image_grid_thw, merge_size        rows x columns of merged patches
    or model says      patch_size, and how many patches  pixels / (patch * merged)
                       a token is merged from
    processor puts     <start> # # # <line> # # # <line> <end>     as many # as cells, or refused

Where a cell lies in the image is what one of the known kinds of image processors would do
(geometry.py), and then looked at: the processor is given an image that brightens from left to right
and one from top to bottom, and every cell must be as bright as its place says. Nothing is guessed,
and what cannot be told is refused, mostly when the model is wrapped.

Who sees what in such a model is not known, so that expressions never share an image.
"""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any

from PIL import Image

from fastground.models.geometry import Frame, frame, letterbox
from fastground.models.lvlm import LVLM, Seen
from fastground.types import ImageLayout, Recipe

if TYPE_CHECKING:
    import torch

MERGED = (
    "spatial_merge_size", "downsample_factor", "downsample_ratio", "scale_factor",
    "pixel_shuffle_ratio", "hidden_stride",
)  # fmt: skip
"""Configuration fields that say how many patches a side become a token, or one over it."""

AROUND = (
    ("vision_start_token_id", "vision_end_token_id"),
    ("image_start_token_id", "image_end_token_id"),
    ("boi_token_id", "eoi_token_id"),
)
"""Configuration fields that name the tokens around an image."""

MARKS_IMAGE = ("token_type_ids", "mm_token_type_ids")
"""Inputs that are 1 where a token is the image's."""

KINDS = (
    lambda images, size, made: letterbox(images, size),
    lambda images, size, made: frame(images, size),
    lambda images, size, made: Frame(made, (0.0, 0.0), (size[1] / made[1], size[0] / made[0])),
)
"""What may be done to an image: DeepSeek's way, CLIP's way, or each side resized for itself."""


class Generic(LVLM):
    """One view of the image, a token a cell, where processor and configuration agree on it."""

    model_types = ()
    how = "generic"
    shares_prefix = False
    caches_prefix = False

    def __init__(self, model: Any, processor: Any, checkpoint: str) -> None:
        super().__init__(model, processor, checkpoint)
        self._kinds: tuple[Any, ...] = KINDS
        self._looked: set[tuple[tuple[int, int], ImageLayout]] = set()
        if getattr(processor, "image_token", None) is None:
            raise ValueError(
                f"processor must name the token that marks an image (image_token), but "
                f"{type(processor).__name__} does not; {self._own}"
            )
        probe = Image.new("RGB", (300, 200))
        try:
            seen = self.look(probe, Recipe())
        except ValueError as error:
            if error.__cause__ is None:
                raise
            raise ValueError(
                f"processor must read an image where its mark {self.mark!r} stands alone, but "
                f"{type(processor).__name__} does not ({error.__cause__}); {self._own}"
            ) from error
        prompt = "a".join(self.words(Recipe()))
        [row], _ = self._tokenize([prompt])
        own = processor(images=[probe], text=[prompt], return_tensors="pt")["input_ids"]
        mark = processor.tokenizer.convert_tokens_to_ids(self.mark)
        start = row.index(mark) if mark in row else len(row)
        if row[:start] + seen.ids + row[start + 1 :] != own[0].tolist():
            raise ValueError(
                "processor must put the image's tokens in the mark's place and leave the words as "
                f"they are, but {type(processor).__name__} does not; {self._own}"
            )
        whole = self._counted(own, seen.inputs)
        if whole is not None and not whole.equal(_placed(seen.positions, start, own.shape[1])):
            raise ValueError(
                "model must count positions on from an image's, the same wherever it stands, but "
                f"{type(self.bare).__name__} does not; {self._own}"
            )

    @property
    def _own(self) -> str:
        return f"{self.model.config.model_type!r} needs an adapter of its own"

    @property
    def marked(self) -> str:
        """The mark, between the tokens that the configuration names, if any."""
        for names in AROUND:
            start, end = (getattr(self.model.config, name, None) for name in names)
            if start is not None and end is not None and start not in self._ids:
                start, end = self.processor.tokenizer.convert_ids_to_tokens([start, end])
                return f"{start}{self.mark}{end}"
        return self.mark

    def read(self, image: Image.Image) -> tuple[list[int], dict[str, torch.Tensor]]:
        """As every family.

        Raises:
            ValueError: the processor marks tokens in a way that is not known.
        """
        ids, inputs = super().read(image)
        strange = [name for name in inputs if name.endswith("token_type_ids")]
        if strange:
            raise ValueError(
                f"processor must mark tokens by {' or '.join(MARKS_IMAGE)} alone, but also makes "
                f"{', '.join(strange)}; {self._own}"
            )
        return ids, inputs

    def placed(self, made: Any) -> dict[str, torch.Tensor]:
        """As every family.

        Raises:
            ValueError: the processor makes what is no tensor, as of tiles that differ in number.
        """
        strange = [name for name, value in made.items() if not hasattr(value, "shape")]
        if strange:
            raise ValueError(
                f"processor must make tensors alone, but also makes {', '.join(strange)}; "
                f"{self._own}"
            )
        return super().placed(made)

    def look(self, image: Image.Image, recipe: Recipe) -> Seen:
        """As every family, with the positions that the model itself counts."""
        seen = super().look(image, recipe)
        self._ids = set(seen.ids)
        import torch

        [around], _ = self._tokenize([self.marked])
        mark = self.processor.tokenizer.convert_tokens_to_ids(self.mark)
        first = around.index(mark) if mark in around else len(around)
        ids = torch.tensor([around[:first] + seen.ids + around[first + 1 :]])
        positions = self._counted(ids, seen.inputs)
        if positions is None:
            return seen
        return seen._replace(positions=positions[:, first : first + len(seen.ids)] - first)

    def _counted(self, ids: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor | None:
        """(axes, tokens): the model's own count of positions; None where it has one axis."""
        import torch

        count = self.count_positions
        if count is None:
            return None
        given = {**inputs, **self.token_inputs(ids), "input_ids": ids}
        given["attention_mask"] = torch.ones_like(ids)
        takes = signature(count).parameters
        positions = count(**{name: value for name, value in given.items() if name in takes})[0]
        return positions[:, 0].long()

    def token_inputs(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """1 where a token is the image's, under the name that the model takes it by."""
        import torch

        marks = (input_ids == self.model.config.image_token_id).to(torch.long)
        takes = signature(self.bare.forward).parameters
        return {name: marks for name in MARKS_IMAGE if name in takes}

    def layout(
        self, image: Image.Image, ids: list[int], inputs: dict[str, torch.Tensor], recipe: Recipe
    ) -> ImageLayout:
        """One cell an image token.

        Raises:
            ValueError: the number of image tokens fits no grid that processor or configuration
                names, or the image does not lie in it as a known image processor lays it.
        """
        tokens = tuple(i for i, t in enumerate(ids) if t == self.model.config.image_token_id)
        size = (image.height, image.width)
        if "pixel_values" not in inputs:
            raise ValueError(
                f"processor must make pixel_values, but made {list(inputs)}; {self._own}"
            )
        grid, made, side = self._grid(len(tokens), inputs)
        for kind in self._kinds:
            try:
                lies = kind(self.processor.image_processor, size, made)
            except (AttributeError, ValueError):  # a processor of another kind
                continue
            cell = lies.scale[0] * side, lies.scale[1] * side
            layout = ImageLayout(grid, tokens, None, size, cell, lies.origin)
            known = (size, layout) in self._looked
            if lies.size == made and (known or self._lies(layout, side)):
                self._looked.add((size, layout))
                self._kinds = (kind,)
                return layout
        raise ValueError(
            f"image must lie in a grid of {len(tokens)} tokens as a known image processor lays it, "
            f"but {type(self.processor.image_processor).__name__} does not; {self._own}"
        )

    def _grid(
        self, tokens: int, inputs: dict[str, torch.Tensor]
    ) -> tuple[tuple[int, int], tuple[int, int], int]:
        """The grid of so many cells; the (height, width) that it covers and a cell's side in it."""
        pixels = inputs["pixel_values"]
        if "image_grid_thw" in inputs:
            merge = self.processor.image_processor.merge_size
            frames, *patches = inputs["image_grid_thw"].flatten().tolist()
            grid_h, grid_w = (n // merge for n in patches)
            if frames != 1 or grid_h * grid_w != tokens:
                raise ValueError(
                    f"processor must make one image token a cell, {grid_h} x {grid_w} of "
                    f"{merge} x {merge} patches, but made {tokens}; {self._own}"
                )
            return (grid_h, grid_w), (patches[0], patches[1]), merge
        if pixels.ndim != 4 or len(pixels) != 1:
            raise ValueError(
                "processor must make one view of an image, (1, channels, height, width) pixel "
                f"values, but made {tuple(pixels.shape)}; {self._own}"
            )
        height, width = pixels.shape[-2:]
        sides = self._sides()
        for side in sides:
            grid = height // side, width // side
            if grid[0] * grid[1] == tokens:
                return grid, (height, width), side
        raise ValueError(
            f"model must have one image token a cell, of {' or '.join(map(str, sides))} pixels a "
            f"side as its configuration says, but {height} x {width} pixels became {tokens} "
            f"tokens; {self._own}"
        )

    def _sides(self) -> list[int]:
        """A cell's side in pixels, for every way of merging that the configuration names."""
        vision = getattr(self.model.config, "vision_config", None)
        patch = getattr(vision, "patch_size", None)
        if isinstance(patch, (list, tuple)) and len(set(patch)) == 1:
            patch = patch[0]
        if not isinstance(patch, int):
            raise ValueError(
                f"model must name its patches in vision_config.patch_size, but has {patch!r}; "
                f"{self._own}"
            )
        named = [
            getattr(config, name, None) for config in (self.model.config, vision) for name in MERGED
        ]
        merged = [n if n >= 1 else 1 / n for n in named if isinstance(n, (int, float)) and n > 0]
        return sorted({round(patch * n) for n in (1, *merged)})

    def _lies(self, layout: ImageLayout, side: int) -> bool:
        """Whether the processor takes each cell's pixels from where the layout says."""
        import torch

        assert layout.image_size is not None and layout.cell_size is not None
        height, width = layout.image_size
        x, y = (
            (torch.arange(n) + 0.5).mul_(255 / n).round_().to(torch.uint8) for n in (width, height)
        )
        shades = [
            torch.zeros(height, width, dtype=torch.uint8), torch.full((height, width), 255),
            x.expand(height, width), y[:, None].expand(height, width),
        ]  # fmt: skip
        four = [Image.fromarray(shade.to(torch.uint8).numpy()).convert("RGB") for shade in shades]
        made = self.processor.image_processor(images=four, return_tensors="pt")
        pixels = made["pixel_values"].float()
        if "image_grid_thw" in made:  # patches of a cell follow each other
            cells = pixels.reshape(4, layout.grid[0] * layout.grid[1], -1).mean(-1)
        else:
            cells = torch.nn.functional.avg_pool2d(pixels.mean(1), side)
        black, white, right, down = cells.reshape(4, *layout.grid)
        y, x = (
            origin + (torch.arange(n) + 0.5) * cell
            for origin, n, cell in zip(
                layout.origin[::-1], layout.grid, layout.cell_size[::-1], strict=True
            )
        )
        inside = torch.ones(layout.grid, dtype=torch.bool)
        near = inside.clone()
        for place, shade, cell_px, length in (
            (y[:, None], down, layout.cell_size[1], height), (x, right, layout.cell_size[0], width),
        ):  # fmt: skip
            inside &= (place >= cell_px / 2) & (place <= length - cell_px / 2)
            found = (shade - black) / (white - black) * length
            near &= (found - place).abs() <= cell_px / 4 + length / 255 + 1
        return bool((near | ~inside).all())


def _placed(positions: torch.Tensor | None, start: int, tokens: int) -> torch.Tensor:
    """(axes, tokens): an image's positions, counted from 0, among words before and after it."""
    import torch

    assert positions is not None
    before = torch.arange(start).expand(len(positions), -1)
    rest = torch.arange(tokens - start - positions.shape[1]).expand(len(positions), -1)
    image = start + positions
    return torch.cat([before, image, image.max() + 1 + rest], dim=1)
