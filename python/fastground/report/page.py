"""A page and its pictures: HTML that needs nothing beside it, and each picture as a file as well.

index.html            text, style, and in it every picture, encoded
NAME.png | svg | pdf  the same pictures, to be put into a paper
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastground import charts, figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

FORMATS = ("png", "svg", "pdf")
"""What a chart beside the page can be written as; photographs are PNG always."""
QUALITY = 92
STYLE = Path(__file__).with_name("page.css")


class Page:
    """Writes pictures beside the page, and gives the HTML that shows them in it."""

    def __init__(self, folder: Path, format: str = "png") -> None:
        """A page in a folder.

        Args:
            folder: made where it does not exist.
            format: of the charts' files, one of `FORMATS`.

        Raises:
            ValueError: another format.
        """
        if format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, but got {format!r}")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.format = folder, format

    def picture(self, name: str, image: Image, alt: str) -> str:
        """An image, written as PNG; the page holds it as JPEG, a fifth of the size."""
        image.save(self.folder / f"{name}.png", optimize=True)
        held = BytesIO()
        image.convert("RGB").save(held, format="jpeg", quality=QUALITY, subsampling=0)
        return (
            f'<img src="{_inside(held.getvalue(), "jpeg")}" alt="{escape(alt)}" '
            f'width="{image.width}" height="{image.height}">'
        )

    def chart(self, name: str, draw: Callable[[Any], Figure], alt: str) -> str:
        """A chart in the page's light and dark colours, written in the light ones.

        Args:
            name: of the file, without its ending.
            draw: from a theme to the figure.
            alt: what it shows, in words.
        """
        light = draw(charts.LIGHT)
        figures.save(light, self.folder / f"{name}.{self.format}")
        day, night = (_inside(figures.encoded(f, "svg"), "svg+xml") for f in (
            light, draw(charts.DARK)
        ))  # fmt: skip
        return (
            f'<picture><source srcset="{night}" media="(prefers-color-scheme: dark)">'
            f'<img src="{day}" alt="{escape(alt)}"></picture>'
        )

    def write(self, title: str, sections: list[str]) -> Path:
        """Write `index.html`; empty sections are left out."""
        path = self.folder / "index.html"
        body = "\n".join(section for section in sections if section)
        path.write_text(
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(title)}</title>\n<style>\n{STYLE.read_text()}</style>\n</head>\n"
            f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n",
            encoding="utf-8",
        )
        return path


def step(number: int, title: str, body: str) -> str:
    """One of the method's steps; one that stands alone (0) is a section without a number."""
    if not number:
        return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>"
    return (
        f'<section class="step">\n<div class="number" aria-hidden="true">{number}</div>\n<div>\n'
        f"<h2>{escape(title)}</h2>\n{body}\n</div>\n</section>"
    )


def figure(picture: str, caption: str, kind: str = "") -> str:
    """A picture, in HTML, and what is written below it, likewise."""
    mark = f' class="{kind}"' if kind else ""
    return f"<figure{mark}>{picture}<figcaption>{caption}</figcaption></figure>"


def table(names: Sequence[str], rows: Sequence[tuple[bool, Sequence[str]]]) -> str:
    """A table.

    Args:
        names: of the columns, in plain text.
        rows: whether a row is set off, and its cells in HTML; the first is the row's name.
    """
    lines = []
    for ours, (name, *cells) in rows:
        mark = ' class="ours"' if ours else ""
        values = "".join(f"<td>{cell}</td>" for cell in cells)
        lines.append(f'<tr{mark}><th scope="row">{name}</th>{values}</tr>')
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def percent(share: float) -> str:
    """A share as a percentage, a dash where there is none."""
    return f"{100 * share:.1f} %" if share == share else "&ndash;"


def fraction(number: float) -> str:
    """A number with two digits, a dash where there is none."""
    return f"{number:.2f}" if number == number else "&ndash;"


def quoted(expression: str) -> str:
    """An expression between quotation marks."""
    return f"“{escape(expression)}”"


def _inside(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{b64encode(content).decode('ascii')}"
