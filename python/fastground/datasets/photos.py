"""Image files whose pixels were described elsewhere: opened, and held to what was said of them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError


@dataclass(frozen=True)
class Stored:
    """An image inside a Parquet or Arrow file, read when its turn comes."""

    path: Path
    group: int
    """The row group or batch, whose images are read together."""
    row: int
    """Within the group."""
    column: str

    def __str__(self) -> str:
        return f"{self.path}, image {self.row} of row group {self.group}"

    def read(self) -> bytes:
        """The encoded image."""
        return _images(self.path, self.group, self.column)[self.row]


@lru_cache(maxsize=1)
def _images(path: Path, group: int, column: str) -> list[Any]:
    """Images of one row group; they are asked for in order, so that one group is enough."""
    import pyarrow
    from pyarrow import parquet

    if path.suffix == ".arrow":
        with pyarrow.memory_map(str(path)) as file:
            batch = next(islice(pyarrow.ipc.open_stream(file), group, None))
            cells = batch.column(column).to_pylist()
    else:
        with parquet.ParquetFile(path) as file:
            cells = file.read_row_group(group, columns=[column])[column].to_pylist()
    return [cell["bytes"] if isinstance(cell, dict) else cell for cell in cells]


@dataclass(frozen=True)
class Photo:
    """An image that has not been opened yet; small, picklable, held once by all of its samples."""

    source: Path | Stored
    told: tuple[int, int] | None = None
    """(height, width) as its annotations say; None where they do not."""
    upright: bool = False
    """As in `open_image`."""

    @cached_property
    def image(self) -> Image.Image:
        """Opened when first asked for, and kept as long as this is; errors as in `open_image`."""
        return open_image(self.source, self.told, upright=self.upright)

    @cached_property
    def size(self) -> tuple[int, int]:
        """(height, width), for which the image is opened only where nothing tells."""
        return self.told or (self.image.height, self.image.width)

    def remember(self, size: tuple[int, int]) -> None:
        """Take the (height, width) that another process saw, which has opened it."""
        self.__dict__["size"] = self.told or size

    def __getstate__(self) -> dict[str, Any]:
        """Without the pixels: who is sent this opens it anew."""
        return {"source": self.source, "told": self.told, "upright": self.upright}


def open_image(
    source: Path | Stored, size: tuple[int, int] | None = None, *, upright: bool = False
) -> Image.Image:
    """The image, decoded.

    Args:
        source: a file, or an image inside one.
        size: (height, width) it must have: its boxes and masks were drawn at that. An image that
            only has it once it is turned as its EXIF data says is turned; without a size, each is.
        upright: whether one is turned, too, that has it either way.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no image, a broken one, one of another size, or one whose pixels would fill
            the memory.
    """
    if isinstance(source, Path):
        if not source.is_file():
            raise FileNotFoundError(f"image must be a file, but there is none at {str(source)!r}")
        data = source.read_bytes()
    else:
        data = source.read()
    if not isinstance(data, bytes):
        raise ValueError(f"image must be bytes, but {source} holds {type(data).__name__}")
    try:
        image = Image.open(io.BytesIO(data))
        # Before the pixels are decoded: a bomb never gets its memory.
        if image.width * image.height > (Image.MAX_IMAGE_PIXELS or float("inf")):
            raise Image.DecompressionBombError(f"{image.width} x {image.height}")
        turn = size is None or _turned(image, size, source, upright)
        image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"image must have at most {Image.MAX_IMAGE_PIXELS:,} pixels, but {str(source)!r} "
            f"says it has more ({error}); if that is true, scale it down"
        ) from error
    except (OSError, SyntaxError, EOFError, OverflowError, MemoryError) as error:
        strange = isinstance(error, UnidentifiedImageError)  # would print an address
        raise ValueError(
            f"image must be a file that Pillow can read whole, but {str(source)!r} is not "
            f"({'of no format that it knows' if strange else error}); get it anew"
        ) from error
    return ImageOps.exif_transpose(image) if turn else image


def _turned(
    image: Image.Image, size: tuple[int, int], source: Path | Stored, upright: bool
) -> bool:
    """Whether the image has this size once it is turned, and not, or not only, as it is stored."""
    wanted = (size[1], size[0])
    orientation = image.getexif().get(0x0112, 1)
    turned = image.size[::-1] if orientation in (5, 6, 7, 8) else image.size
    if wanted not in (image.size, turned):
        raise ValueError(
            f"image must be {size[0]} high and {size[1]} wide, as its annotations say, but "
            f"{str(source)!r} is {image.height} high and {image.width} wide; get the original"
        )
    return turned == wanted and (upright or image.size != wanted)
