"""From boxes to masks: prompts, SAM and its kin with random weights, GrabCut, what is refused."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest
import small_world
import torch
from fastground import segmentation
from fastground.grounder import Grounder
from fastground.grounding import ground
from fastground.sam import FAMILIES, Prompt, SegmentAnything, TransformersSam
from fastground.segmentation import LIMIT, GrabCut, Prompted, segmented
from fastground.types import AttentionMaps, HeadId, ImageLayout, Recipe
from PIL import Image, ImageDraw
from random_sam import original, random_sam

BOX = torch.tensor([10.0, 12.0, 50.0, 40.0])
POINTS = torch.tensor([[20.0, 20.0], [30.5, 30.0]])


def odds(y, x):
    inside = ((y > 12) & (y < 40))[:, None] & ((x > 10) & (x < 50))
    return torch.where(inside, 3.0, -3.0) + 0.01 * y[:, None] + 0.02 * x


PROMPTS = [
    pytest.param(Prompt(BOX), id="box"),
    pytest.param(Prompt(BOX, points=POINTS), id="box+points"),
    pytest.param(Prompt(BOX, log_odds=odds), id="box+mask"),
]
needs_the_package = pytest.mark.skipif(
    find_spec("segment_anything") is None, reason="segment-anything is not installed"
)
KINDS = ["sam", "sam_hq", "sam2", "sam3_tracker"]


def noise(height, width):
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def planted(cells, size, expression="the disc", **changes):
    """A grounding of a map that is given, on an image of which it covers all."""
    cells = torch.as_tensor(cells, dtype=torch.float32)
    (grid_h, grid_w), (height, width) = cells.shape, size
    layout = ImageLayout(
        (grid_h, grid_w), tuple(range(cells.numel())), image_size=size,
        cell_size=(width / grid_w, height / grid_h),
    )  # fmt: skip
    maps = AttentionMaps(cells[None, None], cells.sum()[None, None], (HeadId(0, 0),), layout)
    return ground(maps, [expression], recipe=Recipe(sigma=0, **changes))[0]


# SAM and its kin.


@needs_the_package
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_segment_anything_and_transformers_give_the_same_logits(prompt, several):
    """Same weights, same logits; transformers' published configurations say 1e-6 for the decoder's
    layer norms where segment-anything has 1e-5, which is set here."""
    model = random_sam("sam", layer_norm_eps=1e-5)
    ours, theirs = (
        torch.cat(list(sam.logits(noise(60, 90), [prompt], several=several)))
        for sam in (TransformersSam(model), SegmentAnything(original(model)))
    )
    assert ours.shape == (3 if several else 1, 60, 90) and ours.std() > 0.5
    assert (ours - theirs).abs().max() < 1e-4


@needs_the_package
def test_logits_are_those_of_segment_anythings_own_predictor():
    """Frame, scale of the prompt and way back are the authors' own, but for their resize."""
    from fastground.sam import segment_anything

    model, image = original(random_sam("sam")), noise(50, 90)
    predictor = segment_anything().SamPredictor(model)
    size = predictor.transform.get_preprocess_shape(50, 90, 64)
    resized = image.resize(size[::-1], Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None]
    predictor.set_torch_image(pixels, (50, 90))
    wanted, _, low = predictor.predict(
        POINTS.numpy(), np.ones(2), BOX.numpy(), multimask_output=True, return_logits=True
    )
    assert low.shape == (3, 32, 32)
    (found,) = SegmentAnything(model).logits(image, [Prompt(BOX, POINTS)], several=True)
    assert np.abs(found.numpy() - wanted).max() < 1e-4


@pytest.mark.parametrize("size", [(60, 90), (90, 60), (33, 33), (200, 64)])
def test_the_frame_is_that_of_transformers_own_processor(size):
    from transformers import SamImageProcessorPil

    processor = SamImageProcessorPil(
        size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}
    )
    made = processor(noise(*size), return_tensors="pt")["pixel_values"][0]
    assert (TransformersSam(random_sam("sam")).frame(noise(*size)) - made).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["sam2", "sam3_tracker"])
def test_frames_of_sam_2_and_3_take_both_sides(kind):
    sam = TransformersSam(random_sam(kind))
    flat = Image.new("RGB", (90, 30), (124, 116, 104))
    frame = sam.frame(flat)
    assert frame.shape == (3, sam.side, sam.side)
    mean, std = FAMILIES[kind].normalisation
    for channel, value in enumerate((124, 116, 104)):
        wanted = torch.full(frame[channel].shape, (value - mean[channel]) / std[channel])
        assert torch.allclose(frame[channel], wanted, atol=1e-5)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_models_own_forward(kind, prompt, several):
    sam = TransformersSam(random_sam(kind))
    image = noise(60, 90)
    (found,) = sam.logits(image, [prompt], several=several)
    side = sam.side
    height, width = (side, side) if sam.both_sides else (round(side * 60 / 90), side)
    scale = torch.tensor([width / 90, height / 60])
    given = {"input_boxes": (BOX * scale.repeat(2))[None, None]}
    if prompt.points is not None:
        given["input_points"] = (POINTS * scale)[None, None]
    if prompt.log_odds is not None:
        place = (torch.arange(sam.mask_side) + 0.5) * side / sam.mask_side
        given["input_masks"] = odds(place / scale[1], place / scale[0])[None, None]
    with torch.no_grad():
        low = sam.model(sam.frame(image)[None], **given, multimask_output=several).pred_masks[0]
    resize = torch.nn.functional.interpolate
    if not sam.both_sides:
        low = resize(low, (side, side), mode="bilinear")[..., :height, :width]
    wanted = resize(low, (60, 90), mode="bilinear")[0]
    assert found.shape == (3 if several else 1, 60, 90)
    assert torch.allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_encoded_once_for_all_expressions(kind, monkeypatch):
    sam = TransformersSam(random_sam(kind))
    seen = []
    whole = sam.encode
    monkeypatch.setattr(sam, "encode", lambda frame: seen.append(frame.shape) or whole(frame))
    grounder = Grounder(small_world.lvlm(), small_world.ranking(), segmenter=Prompted(sam))
    texts = ["the red mug", "what is x", "a dog on the left"]
    image = small_world.samples()[0].image
    found = grounder(image, texts)
    assert len(seen) == 1
    for one, text in zip(found, texts, strict=True):
        assert torch.equal(one.mask, grounder(image, text).mask)
    assert len({tuple(g.mask.flatten().tolist()) for g in found}) > 1


@pytest.mark.parametrize("size", [(1, 1), (4000, 1), (1, 4000), (3, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_images_of_any_shape(kind, size):
    sam = TransformersSam(random_sam(kind))
    box = torch.tensor([0.0, 0.0, size[1], size[0]])
    (found,) = sam.logits(noise(*size), [Prompt(box)])
    assert found.shape == (1, *size) and bool(found.isfinite().all())


@needs_the_package
def test_torchvision_stays_as_it_was():
    from fastground.sam import segment_anything

    before = {name for name in sys.modules if name.startswith("torchvision")}
    kept = {n: sys.modules.pop(n) for n in list(sys.modules) if n.startswith("segment_anything")}
    try:
        assert segment_anything().SamPredictor and segment_anything().sam_model_registry
    finally:
        sys.modules.update(kept)
    assert {name for name in sys.modules if name.startswith("torchvision")} == before
    if find_spec("torchvision") is None:
        from transformers.utils import is_torchvision_available

        assert not is_torchvision_available()


# Prompts and proposals.


def test_the_log_odds_are_zero_at_the_cut_and_least_outside_the_box():
    cells = np.zeros((6, 8))
    cells[2:4, 3:6] = [[1.0, 2.0, 1.0], [0.4, 3.0, 0.4]]
    grounding = planted(cells, (60, 80))
    assert grounding.map_box.tolist() == [30.0, 20.0, 60.0, 40.0]
    y, x = (torch.arange(n) + 0.5 for n in (70, 80))
    found = segmentation.log_odds(grounding, Recipe())(y, x)
    assert found.shape == (70, 80) and found.dtype == torch.float32
    inside = torch.zeros(70, 80, dtype=torch.bool)
    inside[20:40, 30:60] = True
    assert (found[~inside] == -LIMIT).all() and found.max() == pytest.approx(LIMIT)
    assert torch.equal(found[:60] > 0, grounding.mask)
    at = (35.0, 35.0)  # the centre of the cell with 0.4
    value = segmentation.log_odds(grounding, Recipe())(*(torch.tensor([v]) for v in at))
    share = 0.4 / (2 * cells.mean())
    wanted = min(np.log(share / (1 - share)) if share < 1 else np.inf, LIMIT)
    assert float(value) == pytest.approx(wanted, abs=1e-5)


def test_the_points_are_the_highest_peaks_in_the_box():
    cells = np.zeros((9, 9))
    cells[1:8, 1:8] = 0.5
    for (row, column), height in {(2, 2): 5, (2, 6): 3, (6, 2): 4, (6, 6): 2}.items():
        cells[row, column] = height
    cells[0, 0] = 0.1
    grounding = planted(cells, (90, 90))
    found = segmentation.prompt(grounding, Recipe(prompt="box+points"))
    assert found.points.tolist() == [[25.0, 25.0], [25.0, 65.0], [65.0, 25.0]]
    assert found.log_odds is None and torch.equal(found.box, grounding.map_box)
    alone = segmentation.prompt(grounding, Recipe())
    assert alone.points is None and alone.log_odds is None
    with_mask = segmentation.prompt(grounding, Recipe(prompt="box+mask"))
    assert with_mask.points is None and with_mask.log_odds is not None


class Proposing:
    """A stand-in for a SAM: three discs, of which the second is the map's."""

    device = torch.device("cpu")

    def logits(self, image, prompts, *, several=False):
        y, x = torch.meshgrid(torch.arange(80), torch.arange(80), indexing="ij")
        for _ in prompts:
            discs = [
                8.0 - ((y - row).square() + (x - column).square()).sqrt()
                for row, column in ((20, 60), (20, 20), (60, 60))
            ]
            yield torch.stack(discs if several else discs[2:])


def disc_map():
    y, x = np.mgrid[0:16, 0:16] * 5 + 2.5
    return np.exp(-((y - 20) ** 2 + (x - 20) ** 2) / 60) + 0.01


def test_of_three_proposals_the_one_that_agrees_with_the_map_is_taken():
    from dataclasses import replace

    grounding = replace(planted(disc_map(), (80, 80)), image=noise(80, 80))
    segmenter = Prompted(Proposing())
    (best,) = segmented(segmenter, [grounding], Recipe(masks="best of three"))
    assert best.mask[20, 20] and not best.mask[20, 60] and not best.mask[60, 60]
    (one,) = segmented(segmenter, [grounding], Recipe())
    assert one.mask[60, 60] and not one.mask[20, 20]
    assert torch.equal(one.box, grounding.box)


def test_the_box_may_come_from_the_mask():
    from dataclasses import replace

    grounding = replace(planted(disc_map(), (80, 80)), image=noise(80, 80))
    mask = np.zeros((80, 80), dtype=bool)
    mask[3:7, 40:60] = True
    (found,) = segmented(lambda *_: [mask], [grounding], Recipe(box_from="mask"))
    assert found.box.tolist() == [40.0, 3.0, 60.0, 7.0]
    assert torch.equal(found.map_box, grounding.box)
    (empty,) = segmented(lambda *_: [mask & False], [grounding], Recipe(box_from="mask"))
    assert torch.equal(empty.box, grounding.box) and not empty.mask.any()
    (pseudo,) = segmented(None, [grounding], Recipe(box_from="mask"))
    rows, columns = (pseudo.mask.any(axis).nonzero().flatten() for axis in (1, 0))
    tight = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert pseudo.box.tolist() == [float(v) for v in tight]


def test_what_was_not_found_is_not_segmented():
    nothing = planted(np.ones((4, 4)), (40, 40))

    def never(*_):
        raise AssertionError("nothing to segment")

    (same,) = segmented(never, [nothing], Recipe(box_from="mask"))
    assert not same.found and not same.mask.any() and same.box.tolist() == [0, 0, 0, 0]


# GrabCut.


def scene(size=80):
    """A red disc on green, with noise, and its mask."""
    pytest.importorskip("cv2")
    image = Image.new("RGB", (size, size), (40, 140, 60))
    truth = Image.new("1", (size, size))
    for picture, colour in ((image, (200, 40, 30)), (truth, 1)):
        ImageDraw.Draw(picture).ellipse((8, 8, 32, 32), fill=colour)
    random = np.random.default_rng(0).integers(-20, 20, (size, size, 3))
    pixels = (np.asarray(image).astype(int) + random).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels), np.asarray(truth)


@pytest.mark.parametrize("prompt", ["box", "box+mask", "box+points"])
def test_grabcut_finds_what_has_a_colour_of_its_own(prompt):
    image, truth = scene()
    grounding = planted(disc_map(), (80, 80))
    before = (grounding.mask.numpy() & truth).sum() / (grounding.mask.numpy() | truth).sum()
    (mask,) = GrabCut()(image, [grounding], Recipe(prompt=prompt))
    iou = (mask & truth).sum() / (mask | truth).sum()
    assert mask.dtype == bool and iou > 0.9 > before
    (again,) = GrabCut()(image, [grounding], Recipe(prompt=prompt))
    assert np.array_equal(mask, again)


def test_grabcut_where_the_box_is_all_of_the_image():
    image, _ = scene()
    cells = np.eye(4) + 0.01  # one region from corner to corner
    (mask,) = GrabCut()(image, [planted(cells, (80, 80))], Recipe())
    assert mask.all()
    (dot,) = GrabCut()(noise(1, 1), [planted(np.eye(4) + 0.01, (1, 1))], Recipe())
    assert dot.shape == (1, 1)


# What is refused.


def test_names_of_segmenters(tmp_path):
    assert segmentation.load("none") is None
    pytest.importorskip("cv2")
    assert isinstance(segmentation.load("grabcut"), GrabCut)
    for wrong in ("", "grabcut:x", "none:x", "mine", "SAM:x"):
        with pytest.raises(ValueError, match="segmenter must be one of none, grabcut, sam:FOLDER"):
            segmentation.load(wrong)


def test_a_segmenter_without_weights_says_which_file_and_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"get one with: hf download facebook/sam-vit-base"):
        segmentation.load(f"sam:{tmp_path / 'nowhere'}")
    with pytest.raises(FileNotFoundError, match=r"there is no 'sam-vit-base'"):
        segmentation.load("sam:sam-vit-base")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        segmentation.load(f"sam:{tmp_path}")
    random_sam("sam").config.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no \*\.safetensors"):
        segmentation.load(f"sam:{tmp_path}")
    with pytest.raises(FileNotFoundError, match=r"curl -LO https://\S+/sam_vit_h_4b8939\.pth"):
        segmentation.load(f"segment-anything:{tmp_path / 'sam_vit_b.pth'}")


@needs_the_package
def test_weights_of_something_else(tmp_path):
    lvlm = small_world.lvlm()
    lvlm.model.save_pretrained(tmp_path / "llava")
    with pytest.raises(ValueError, match=r"model_type must be one of sam, .* but is 'llava'"):
        segmentation.load(f"sam:{tmp_path / 'llava'}")
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pth")
    for file in ("text.pth", "other.pth"):
        with pytest.raises(ValueError, match=rf"get it with: curl .*{file} is not"):
            segmentation.load(f"segment-anything:{tmp_path / file}")
    with pytest.raises(ValueError, match=r"model must be one of Sam2Model, .* LlavaForCond"):
        TransformersSam(lvlm.model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_read_as_it_was_written(kind, tmp_path):
    model = random_sam(kind)
    model.save_pretrained(tmp_path)
    read = segmentation.load(f"sam:{tmp_path}", device="cpu")
    assert type(read.model.model) is type(model)
    (found,), (wanted,) = (
        sam.logits(noise(60, 90), [Prompt(BOX, POINTS)])
        for sam in (read.model, TransformersSam(model))
    )
    assert torch.allclose(found, wanted, atol=1e-5)


@needs_the_package
def test_a_file_of_segment_anything_is_read(tmp_path, monkeypatch):
    from fastground import sam

    package = sam.segment_anything()
    model = original(random_sam("sam"))
    torch.save(model.state_dict(), tmp_path / "tiny.pth")
    monkeypatch.setitem(sam.WIDTHS, 32, "tiny")
    blank = original(random_sam("sam", seed=1))
    monkeypatch.setitem(package.sam_model_registry, "tiny", lambda: blank)
    read = segmentation.load(f"segment-anything:{tmp_path / 'tiny.pth'}", device="cpu")
    (found,), (wanted,) = (
        s.logits(noise(60, 90), [Prompt(BOX)]) for s in (read.model, SegmentAnything(model))
    )
    assert torch.allclose(found, wanted, atol=1e-5)


def test_a_segmenter_that_returns_too_few_masks():
    from dataclasses import replace

    grounding = replace(planted(disc_map(), (80, 80)), image=noise(80, 80))
    with pytest.raises(ValueError, match="a mask for each of 1 groundings, but returned 0"):
        segmented(lambda *_: [], [grounding], Recipe())
