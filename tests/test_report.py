"""Figures, charts and the page: what they show, that they stand alone, that text stays text."""

import io
import re
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from fastground import charts, figures, report
from fastground.ablations import ablate
from fastground.attention import attention_maps
from fastground.comparison import compare
from fastground.grounder import Grounder
from fastground.metrics import box_iou
from fastground.report.examples import Example, grounded
from fastground.report.walk import IMAGE, Walk
from fastground.stats import head_statistics
from fastground.table import HeadTable
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
        first, ["<s>", IMAGE, "the", "red", "mug", "."], 5, maps,
        head_statistics(maps, RECIPE),
    )  # fmt: skip
    nasty = first._replace(sample=replace(first.sample, expression=NASTY))
    return report.write(
        tmp_path_factory.mktemp("page"),
        replace(ranking(), checkpoint="a&b"),
        ablations=ablate(table(), ranking(), resamples=20),
        ious=table().mean_ious,
        comparison=compare(lvlm(), table(), ranking(), samples(), draws=2),
        facts=[("of the boxes <right>", "63 %")],
        example=walk,
        galleries={
            "As they came": [nasty, *examples[1:4]],
            "Where it fails": examples[4:5],
            "Not one": [],
        },
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


CHARTS = {"curve", "frequencies", "heads", "iou-by-rank", "by-tau", "by-n"}


def held(page):
    """(kind, bytes) of every picture in a page."""
    read = Reader(page.read_text(encoding="utf-8"))
    named = [a["src"] for tag, a in read.tags if tag == "img"]
    named += [a["srcset"] for tag, a in read.tags if tag == "source"]
    found = [re.fullmatch(r"data:image/([a-z+]+);base64,([\w+/=]+)", name) for name in named]
    return [(match[1], b64decode(match[2])) for match in found]


def test_page_stands_alone(page):
    html = page.read_text(encoding="utf-8")
    read = Reader(html)
    assert not read.open
    assert not any(tag in ("script", "link", "iframe") for tag, _ in read.tags)
    html = re.sub(r"base64,[\w+/=]+", "", html)
    assert not re.search(r"https?://|//[a-z]|@import|url\(", html)
    pictures = held(page)
    assert len(pictures) > 20
    for kind, content in pictures:
        if kind == "jpeg":
            with Image.open(io.BytesIO(content)) as picture:
                assert picture.format == "JPEG" and picture.width > 20
        else:
            assert kind == "svg+xml" and b"<svg" in content
    assert all(a.get("alt") for tag, a in read.tags if tag == "img")


def test_every_picture_is_a_file_too(page):
    files = {path.stem: path for path in page.parent.glob("*.png")}
    kinds = [kind for kind, _ in held(page)]
    assert set(files) >= CHARTS
    assert len(files) - len(CHARTS) == kinds.count("jpeg")
    assert kinds.count("svg+xml") == 2 * len(CHARTS)  # by day and by night
    assert {path.name for path in page.parent.iterdir()} == {
        "index.html", *(path.name for path in files.values())
    }  # fmt: skip


def test_page_tells_the_five_steps_and_the_scores(page):
    text = " ".join(Reader(page.read_text(encoding="utf-8")).words)
    steps = ["The last token asks", "Two numbers per head", "The elbow and the election", "maps"]
    parts = ["Do the first heads localize?", "What the choice hangs on", "How well it works"]
    places = [text.index(s) for s in [*steps, "The box", *parts, "As they came", "Where it fails"]]
    assert places == sorted(places) and "Not one" not in text
    assert "2 random heads" in text and "run time" in text and "sigma 1.0" in text


def test_page_tells_what_the_table_says(page):
    text = " ".join(Reader(page.read_text(encoding="utf-8")).words)
    found = ablate(table(), ranking(), resamples=20)
    assert f" is {found.rho:.2f} over the {found.rho_heads} heads" in text
    for choice in found.by_criteria:
        heads = ", ".join(map(str, choice.heads))
        cells = f"{choice.name} {heads} {choice.shared} of 2 {choice.kept} "
        cells += f"{100 * choice.own_shared:.1f} % {choice.iou:.2f} {choice.own_iou:.2f}"
        assert cells in text
    sure = found.sureness[0]
    low, high = (100 * v for v in sure.interval)
    assert f"{low:.1f} to {high:.1f} % {100 * sure.in_top:.1f} %" in text


def test_page_keeps_text_as_text(page):
    read = Reader(page.read_text(encoding="utf-8"))
    text = "".join(read.words)
    assert NASTY in text and "of the boxes <right>" in text and "a&b" in text
    assert any(NASTY in a.get("alt", "") for tag, a in read.tags if tag == "img")


@pytest.mark.parametrize("format", ["svg", "pdf"])
def test_page_of_a_ranking_alone(tmp_path, format):
    page = report.write(tmp_path / "new", ranking(), format=format)
    text = page.read_text(encoding="utf-8")
    assert "The elbow and the election" in text and "The last token asks" not in text
    assert "What the choice hangs on" not in text and "among the first" not in text
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {"index.html", *(f"{n}.{format}" for n in ("curve", "frequencies", "heads"))}
    assert (tmp_path / "new" / f"curve.{format}").read_bytes()[:5] in (b"<?xml", b"%PDF-")


def test_page_in_another_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="format must be one of png, svg, pdf, but got 'bmp'"):
        report.write(tmp_path, ranking(), format="bmp")


def test_page_without_masks_or_boxes(examples, tmp_path):
    """Neither IoUs nor verdicts where there is no truth to hold anything against."""
    blind = HeadTable.of({"sums": table().sums, "entropies": table().entropies}, recipe=RECIPE)
    unboxed = replace(examples[0].sample, box=None, mask=None)
    page = report.write(
        tmp_path, ranking(), ablations=ablate(blind, ranking(), resamples=5), ious=blind.mean_ious,
        galleries={"Seen": grounded(Grounder(lvlm(), ranking()), [unboxed])},
    )  # fmt: skip
    text = " ".join(Reader(page.read_text(encoding="utf-8")).words)
    assert "What the choice hangs on" in text and unboxed.expression in text
    assert "IoU" not in text and "nan" not in text and "localize?" not in text
    assert not (tmp_path / "iou-by-rank.png").exists()


def test_examples_are_what_the_grounder_finds(examples):
    grounder = Grounder(lvlm(), ranking())
    found = list(grounded(grounder, samples()))
    assert [e.sample.sample_id for e in found] == list(range(11))
    for example, other in zip(found, examples, strict=True):
        torch.testing.assert_close(example.grounding.box, other.grounding.box)
        assert example.iou == box_iou(example.grounding.box.numpy(), example.sample.box)


# Charts.


def test_curve_shows_both_elbows():
    for elbow, others in (("chord", ["curvature"]), (0.2, ["chord", "curvature"])):
        made = replace(ranking(), recipe=RECIPE.replace(elbow=elbow))
        drawn = charts.attention_sum_curve(made)
        labels = [text.get_text() for text in drawn.axes[0].get_legend().get_texts()]
        assert f"τ = {made.tau:.2f}" in labels[0] and "of 12 heads reach it" in labels[0]
        taus = [float(charts.elbow(np.array(made.curve), method)) for method in others]
        assert labels[1:] == [f"{t:.2f} by {m}" for t, m in zip(taus, others, strict=True)]
        heights = [line.get_ydata()[0] for line in drawn.axes[0].get_lines()[1:4]]
        assert heights[: len(taus) + 1] == pytest.approx([made.tau, *taus])


def test_bars_are_the_frequencies_and_their_deviations():
    axis = charts.frequencies(ranking()).axes[0]
    shown = [h for h in ranking().heads if h.frequency >= 0.01]
    assert [bar.get_height() for bar in axis.patches] == [h.frequency for h in shown]
    assert [label.get_text() for label in axis.get_xticklabels()] == [str(h.head) for h in shown]
    (bars,) = axis.containers[1:] or axis.containers
    ends = np.array(bars.errorbar.lines[2][0].get_segments())[:, :, 1]
    np.testing.assert_allclose((ends[:, 1] - ends[:, 0]) / 2, [h.frequency_std for h in shown])
    colours = {tuple(bar.get_facecolor()) for bar in axis.patches[:2]}
    assert len(colours) == 1 and tuple(axis.patches[2].get_facecolor()) not in colours


def test_ranks_stand_over_their_ious():
    ious = table().mean_ious
    drawn = charts.iou_by_rank(ranking(), ious, 0.5)
    points = np.concatenate([line.get_xydata() for line in drawn.axes[0].get_lines()])
    shown = [h.head for h in ranking().heads if h.frequency >= 0.01]
    expected = [(rank, ious[head]) for rank, head in enumerate(shown, start=1)]
    np.testing.assert_allclose(sorted(points.tolist()), expected)


@pytest.mark.parametrize("masks", [True, False])
def test_dots_are_the_chosen_heads(masks):
    found = ablate(table(), ranking(), resamples=5)
    choices = found.by_n
    if not masks:
        choices = tuple(replace(c, iou=float("nan"), own_iou=float("nan")) for c in choices)
    drawn = charts.chosen_heads(choices, ranking(), "N")
    axis = drawn.axes[-1]
    rows = [label.get_text() for label in axis.get_yticklabels()]
    dots = {
        (int(x), rows[int(y)])
        for line in axis.get_lines()
        if line.get_marker() == "o"
        for x, y in line.get_xydata()
    }
    assert dots == {(x, str(h)) for x, choice in enumerate(choices) for h in choice.heads}
    assert [label.get_text() for label in axis.get_xticklabels()] == list(map(str, range(1, 15)))
    assert len(drawn.axes) == 1 + masks
    if masks:
        lines = [line.get_ydata() for line in drawn.axes[0].get_lines()]
        np.testing.assert_allclose(
            lines, [[getattr(c, n) for c in choices] for n in ("iou", "own_iou")]
        )


def test_svg_has_the_same_bytes_twice(tmp_path):
    for name in ("a.svg", "b.svg"):
        figures.save(charts.attention_sum_curve(ranking()), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_overlay_lights_the_cell_that_is_looked_at():
    map = torch.zeros(4, 4)
    map[3, 0] = 1.0
    lit = np.asarray(figures.overlay(Image.new("RGB", (32, 32)), map, LAYOUT)).sum(-1)
    assert lit.shape == (32, 32)
    assert (
        np.unravel_index(lit.argmax(), lit.shape)[0] >= 24 and lit[:, :8].sum() > lit[:, 8:].sum()
    )
    array = map.numpy()
    array.flags.writeable = False
    assert (
        np.asarray(figures.overlay(Image.new("RGB", (32, 32)), array, LAYOUT)).sum(-1) == lit
    ).all()


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
    titles = [axis.get_title().replace("\n", " ") for axis in drawn.axes]
    assert titles[:3] == [e.sample.expression for e in some]
    figures.save(drawn, tmp_path / "new" / "sheet.png")
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert sheet.width > 400
    with pytest.raises(ValueError, match="at least one, but got 0, 0 and 0"):
        figures.contact_sheet([], [])


@pytest.mark.parametrize("size", [(192, 192), (640, 300), (100, 300)])
def test_long_expressions_are_whole_in_pictures(size):
    """In lines above their image, on which they do not lie, within the figure."""
    image = Image.new("RGB", size, "white")
    found = Grounder(lvlm(), ranking())(image, "x")
    found = replace(found, expression="the thing left of the blue cross " * 9)
    sheet = figures.contact_sheet([found] * 3, [image] * 3)
    strip = figures.figure(found, image)
    for drawn, names in ((sheet, [a.title for a in sheet.axes]), (strip, [strip._suptitle])):
        drawn.draw_without_rendering()
        for name in names:
            there = name.get_window_extent()
            assert name.get_text().count("\n") >= 1
            assert there.x0 >= 0 and there.x1 <= drawn.bbox.x1 and there.y1 <= drawn.bbox.y1
            assert there.y0 >= max(a.get_window_extent().y1 for a in drawn.axes)


def test_every_chosen_head_is_named_where_it_lies():
    sums = (0.9, 0.1, 0.89)
    heads = [replace(h, attention_sum=s) for h, s in zip(ranking().heads, sums, strict=False)]
    first, second, third = (str(h.head) for h in heads)
    made = replace(
        ranking(), heads=tuple(heads), curve=(0.1, 0.5, 0.89, 0.9), recipe=RECIPE.replace(k=3)
    )
    (axis,) = charts.attention_sum_curve(made).axes
    said = {text.get_text(): text.xy for text in axis.texts}
    assert said == {f"{first},  {third}": (3, 0.9), second: (1, 0.1)}
