"""Figures and the page: what they show, that they stand alone, that text stays text."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from fastground import figures, report
from fastground.attention import attention_maps
from fastground.comparison import compare
from fastground.grounder import Grounder
from fastground.report import Example, Walk
from fastground.stats import head_statistics
from fastground.types import ImageLayout
from PIL import Image
from small_world import RECIPE, lvlm, ranking, samples, table

LAYOUT = ImageLayout((4, 4), tuple(range(16)), image_size=(32, 32), cell_size=(8.0, 8.0))
NASTY = '<script>alert("x")</script> & "the mug"'


@pytest.fixture(scope="module")
def examples():
    grounder = Grounder(lvlm(), ranking())
    return [Example(s, grounder(s.image, s.expression), 0.1 * i) for i, s in enumerate(samples())]


@pytest.fixture(scope="module")
def page(examples, tmp_path_factory):
    first = examples[0]
    maps = attention_maps(lvlm(), first.sample.image, [first.sample.expression], recipe=RECIPE)
    walk = Walk(
        first, ["<s>", report.IMAGE, "the", "red", "mug", "."], 5, maps,
        head_statistics(maps, RECIPE),
    )  # fmt: skip
    nasty = first._replace(sample=replace(first.sample, expression=NASTY))
    return report.write(
        tmp_path_factory.mktemp("page"),
        replace(ranking(), checkpoint="a&b"),
        comparison=compare(lvlm(), table(), ranking(), samples(), draws=2),
        facts=[("of the boxes <right>", "63 %")],
        walk=walk,
        examples=[nasty, *examples[1:4]],
        failures=examples[4:5],
        details=[("run time", "3 s")],
    )


class Reader(HTMLParser):
    """Collects tags with their attributes, text, and whether tags nest."""

    VOID = ("meta", "img", "br", "source", "link", "hr")

    def __init__(self, html):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_page_stands_alone(page):
    html = page.read_text(encoding="utf-8")
    read = Reader(html)
    assert not read.open
    assert not any(tag in ("script", "link", "iframe") for tag, _ in read.tags)
    assert not re.search(r"https?://|//[a-z]|@import|url\(", html)
    named = [a["src"] for tag, a in read.tags if tag == "img"]
    named += [a["srcset"] for tag, a in read.tags if tag == "source"]
    assert len(named) == len(set(named)) > 20
    for name in named:
        assert "/" not in name and (page.parent / name).stat().st_size > 100
    assert all(a.get("alt") for tag, a in read.tags if tag == "img")


def test_page_tells_the_five_steps_and_the_scores(page):
    text = " ".join(Reader(page.read_text(encoding="utf-8")).words)
    steps = ["The last token asks", "Two numbers per head", "The elbow and the election", "maps"]
    places = [text.index(s) for s in [*steps, "The box", "How well it works", "Where it fails"]]
    assert places == sorted(places)
    assert "2 random heads" in text and "run time" in text and "sigma 1.0" in text


def test_page_keeps_text_as_text(page):
    read = Reader(page.read_text(encoding="utf-8"))
    text = "".join(read.words)
    assert NASTY in text and "of the boxes <right>" in text and "a&b" in text
    assert any(NASTY in a.get("alt", "") for tag, a in read.tags if tag == "img")


def test_page_of_a_ranking_alone(tmp_path):
    text = report.write(tmp_path / "new", ranking()).read_text(encoding="utf-8")
    assert "The elbow and the election" in text and "The last token asks" not in text
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "index.html", "step3-curve-dark.svg", "step3-curve.svg", "step3-heads-dark.svg",
        "step3-heads.svg",
    ]  # fmt: skip


def test_svg_has_the_same_bytes_twice(tmp_path):
    for name in ("a.svg", "b.svg"):
        figures.save(figures.attention_sum_curve(ranking()), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_overlay_lights_the_cell_that_is_looked_at():
    map = torch.zeros(4, 4)
    map[3, 0] = 1.0
    lit = np.asarray(figures.overlay(Image.new("RGB", (32, 32)), map, LAYOUT)).sum(-1)
    assert lit.shape == (32, 32)
    assert (
        np.unravel_index(lit.argmax(), lit.shape)[0] >= 24 and lit[:, :8].sum() > lit[:, 8:].sum()
    )


def test_overlay_leaves_padding_out():
    """A 16 x 32 image in a square: the rows of cells above and below it are not in the picture."""
    layout = replace(LAYOUT, image_size=(16, 32), origin=(0.0, -8.0))
    map = torch.zeros(4, 4)
    map[0] = 1.0
    map[2] = 0.5
    lit = np.asarray(figures.overlay(Image.new("RGB", (32, 16)), map, layout)).sum(-1)
    assert lit.shape == (16, 32) and lit[8:].mean() > lit[2:6].mean()


def test_overlay_needs_an_image():
    with pytest.raises(ValueError, match="layout knows no image"):
        figures.overlay(Image.new("RGB", (8, 8)), torch.ones(1, 1), ImageLayout((1, 1), (0,)))


def test_regions_have_colours_of_their_own():
    labels = torch.tensor([[1, 1, 0], [0, 0, 0], [2, 0, 3]])
    picture = np.asarray(figures.regions(torch.rand(3, 3), labels))
    zoom = picture.shape[0] // 3
    cells = picture[zoom // 2 :: zoom, zoom // 2 :: zoom]
    assert len({tuple(c) for c in cells[labels > 0].tolist()}) == 3
    assert (cells[0, 0] == cells[0, 1]).all()


def test_boxed_draws_found_and_truth():
    image = Image.new("RGB", (100, 50), "white")
    picture = np.asarray(figures.boxed(image, (10, 10, 60, 40), (20, 5, 70, 45)))
    zoom = picture.shape[1] // 100
    found = (picture == figures.BOX).all(-1)
    truth = (picture == figures.TRUTH).all(-1)
    rows, columns = found.nonzero()
    assert abs(columns.min() / zoom - 10) < 2 and abs(columns.max() / zoom - 60) < 2
    assert abs(rows.min() / zoom - 10) < 2 and abs(rows.max() / zoom - 40) < 2
    assert abs(truth.nonzero()[0].min() / zoom - 5) < 2 and truth.any()


def test_boxed_without_a_box_is_the_image():
    image = Image.new("RGB", (400, 20), "white")
    assert (np.asarray(figures.boxed(image, None)) == 255).all()
    assert figures.boxed(image, (3, 3, 3, 3)).size == (400, 20)


def test_figure_has_a_panel_for_every_head(examples):
    example = examples[0]
    drawn = figures.figure(example.grounding, example.sample.image, example.sample.box)
    titles = [axis.get_title() for axis in drawn.axes]
    assert titles[1:3] == [str(h) for h in example.grounding.heads] and len(titles) == 5


def test_contact_sheet(examples, tmp_path):
    some = examples[:3]
    drawn = figures.contact_sheet(
        [e.grounding for e in some], [e.sample.image for e in some], columns=2
    )
    assert [a.get_title() for a in drawn.axes][:3] == [e.sample.expression for e in some]
    figures.save(drawn, tmp_path / "new" / "sheet.png")
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert sheet.width > 400
    with pytest.raises(ValueError, match="at least one, but got 0, 0 and 0"):
        figures.contact_sheet([], [])
