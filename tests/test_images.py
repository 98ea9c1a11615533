"""What a user may bring as an image or an expression: it works, or one line says what to do."""

import warnings

import numpy as np
import pytest
import small_world
import torch
from fastground import figures
from fastground.grounder import Grounder
from fastground.models import wrap
from fastground.models.geometry import read_image
from PIL import Image
from random_llava import processor, random_llava


def pixels(height=24, width=30):
    """Smooth and lopsided, so that a turn or a flip is seen."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * x // width, 255 * y // height, 0 * x + 90], axis=-1).astype(np.uint8)


def grounder():
    return Grounder(small_world.lvlm(), small_world.ranking())


def test_arrays_and_tensors_are_the_same_image():
    array = pixels()
    wanted = Image.fromarray(array)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for given in (
        array, np.asfortranarray(array), array[::-1][::-1], tensor, tensor.float() / 255,
        (tensor.double() / 255).requires_grad_(), tensor.contiguous(),
    ):  # fmt: skip
        assert read_image(given).tobytes() == wanted.tobytes()
    grey = array[..., 0]
    for given in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        assert read_image(given).tobytes() == Image.fromarray(grey).convert("RGB").tobytes()
    found = grounder()(tensor, "the dog")
    expected = grounder()(wanted, "the dog")
    assert found.box.equal(expected.box) and found.image.tobytes() == wanted.tobytes()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (pixels().astype(np.int32), r"uint8 where it is an array.* scale its values to 0-255"),
        (pixels().transpose(2, 0, 1), r"put the colours last with \.transpose\(1, 2, 0\)"),
        (torch.zeros(24, 30, 3), r"put the colours first with \.permute\(2, 0, 1\)"),
        (torch.zeros(1, 3, 24, 30), "take one image of a batch"),
        (torch.full((3, 4, 4), 2.0), r"in \[0, 1\] .* undo its normalisation"),
        (torch.full((3, 4, 4), torch.nan), r"in \[0, 1\]"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), r"call \.to\(torch\.uint8\)"),
        (torch.zeros(3, 0, 4), "must have pixels"),
        (b"bytes", "must be a PIL image, a path to one, an array or a tensor, but got bytes"),
    ],
)
def test_arrays_and_tensors_that_are_no_image(given, says):
    with pytest.raises(ValueError, match=says):
        grounder()(given, "the dog")


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (2, 3)])
def test_images_of_any_shape_are_grounded_and_drawn(size, tmp_path):
    found = grounder()(pixels(*size), ["the dog", "the mug"])
    for grounding in found:
        assert grounding.mask.shape == size
        x1, y1, x2, y2 = grounding.box.tolist()
        assert 0 <= x1 <= x2 <= size[1] and 0 <= y1 <= y2 <= size[0]
    found[0].save(tmp_path / "found.png")
    with Image.open(tmp_path / "found.png") as drawn:
        assert drawn.width < 4000 and drawn.height < 2000


def test_cmyk_is_shown_in_its_colours(tmp_path):
    cyan = Image.new("CMYK", (30, 24), (255, 0, 0, 0))
    cyan.save(tmp_path / "cyan.jpg", quality=95)
    for given in (cyan, tmp_path / "cyan.jpg"):
        red, green, blue = read_image(given).getpixel((5, 5))
        assert red < 10 and green > 150 and blue > 150
    assert grounder()(tmp_path / "cyan.jpg", "the dog").mask.shape == (24, 30)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_white_shines_through_what_is_transparent(mode, tmp_path):
    image = Image.fromarray(pixels()).convert("RGBA")
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, 15, 24))
    image.putalpha(alpha)
    if mode == "P":
        image = image.quantize(16)
    elif mode == "LA":
        image = image.convert("LA")
    image.save(tmp_path / "cut.png")
    for given in (image, tmp_path / "cut.png"):
        read = read_image(given)
        assert read.mode == "RGB" and read.getpixel((3, 3)) == (255, 255, 255)
        assert read.getpixel((20, 3)) != (255, 255, 255)
    found = grounder()(image, "the dog")
    whitened = read_image(tmp_path / "cut.png")
    assert found.box.equal(grounder()(whitened, "the dog").box)


def test_an_array_with_alpha():
    array = np.dstack([pixels(), np.full((24, 30), 255, np.uint8)])
    assert read_image(array).tobytes() == Image.fromarray(pixels()).tobytes()
    array[..., 3] = 0
    assert read_image(torch.from_numpy(array).permute(2, 0, 1)).getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits_are_seen_as_eight(ending, tmp_path):
    grey = pixels()[..., 0]
    wanted = Image.fromarray(grey).convert("RGB").tobytes()
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    deep.save(tmp_path / f"deep.{ending}")
    for given in (deep, tmp_path / f"deep.{ending}", np.asarray(deep), np.asarray(deep) + 128):
        assert read_image(given).tobytes() == wanted
    big_endian = np.asarray(deep).astype(">u2")
    assert read_image(big_endian).tobytes() == wanted
    colours = pixels().astype(np.uint16) * 257
    assert read_image(colours).tobytes() == Image.fromarray(pixels()).tobytes()
    found, expected = (grounder()(given, "the dog") for given in (deep, Image.fromarray(grey)))
    assert found.box.equal(expected.box) and found.image.mode == "RGB"


@pytest.mark.parametrize("mode", ["I", "F"])
def test_brightness_without_a_known_range_is_refused(mode, tmp_path):
    deep = Image.new(mode, (30, 24), 70_000)
    deep.save(tmp_path / "deep.tif")
    for given in (deep, tmp_path / "deep.tif"):
        with pytest.raises(ValueError, match=r"8 or 16 bits a channel.* scale its values to 0-255"):
            grounder()(given, "the dog")


@pytest.mark.parametrize("ending", ["gif", "png", "webp"])
def test_of_an_animation_the_first_frame_is_seen(ending, tmp_path):
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    frames = [Image.new("RGB", (30, 24), colour) for colour in colours]
    path = tmp_path / f"moving.{ending}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    red, green, _ = read_image(path).getpixel((5, 5))
    assert red > 150 > green
    with Image.open(path) as opened:
        opened.seek(1)
        red, green, _ = read_image(opened).getpixel((5, 5))
        assert green > 150 > red
    assert grounder()(path, "the dog").mask.shape == (24, 30)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_is_set_upright(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = Image.fromarray(pixels())
    stored = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    image = upright if stored is None else upright.transpose(stored)
    image.save(tmp_path / "turned.png", exif=exif)
    assert read_image(tmp_path / "turned.png").tobytes() == upright.tobytes()
    found = grounder()(tmp_path / "turned.png", "the dog")
    assert found.mask.shape == (24, 30) and found.image.size == (30, 24)
    assert found.box.equal(grounder()(upright, "the dog").box)


@pytest.mark.parametrize("ending", ["jpg", "png", "gif", "webp"])
def test_a_file_cut_off(ending, tmp_path):
    path = tmp_path / f"half.{ending}"
    noise = np.random.default_rng(0).integers(0, 255, (99, 99, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"image must be .*get its file again"):
        grounder()(path, "the dog")
    try:
        opened = Image.open(path)
    except OSError:
        return  # Pillow says so itself before fastground sees it
    with opened, pytest.raises(ValueError, match=r"image must be whole, .* get its file again"):
        grounder()(opened, "the dog")


# Expressions.


def spelling():
    """A model whose tokenizer knows every byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*special, *letters])}
    words = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    from transformers import LlamaConfig

    def larger(**settings):
        return LlamaConfig(**settings | {"vocab_size": len(vocabulary)})

    model, _ = random_llava(seed=1, grid=6, text=larger)
    made = processor(6)
    made.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>", additional_special_tokens=["<image>"],
    )  # fmt: skip
    return Grounder(wrap(model, made, checkpoint="random"), small_world.ranking())


@pytest.mark.parametrize(
    "expression",
    [
        "😀",
        "the 🐕‍🦺 on the left",
        "الكلب الأحمر",
        "הכוס על השולחן",
        "die Tasse\nlinks",
        "犬",
        "e\u0301",
    ],
)
def test_any_script_is_read(expression, tmp_path):
    found = spelling()(pixels(), [expression, "the dog"])
    assert found[0].expression == expression and found[0].map.shape == (6, 6)
    assert not torch.equal(found[0].map, found[1].map)
    alone = spelling()(pixels(), expression)
    assert torch.allclose(alone.map, found[0].map, atol=1e-5)
    with warnings.catch_warnings():  # a machine's fonts may lack letters; the picture is drawn
        warnings.filterwarnings("ignore", message=r"Glyph \d+")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        found[0].save(tmp_path / "found.png")
    assert (tmp_path / "found.png").stat().st_size > 1000


@pytest.mark.parametrize("expression", ["", " ", "\n\t", "\u3000"])
def test_an_empty_expression(expression):
    with pytest.raises(ValueError, match="must say something, such as 'the red mug'"):
        spelling()(pixels(), expression)


def test_ten_thousand_words():
    with pytest.raises(ValueError, match=r"reads 2048: 'dog dog .*say it in fewer words"):
        grounder()(pixels(), " ".join(["dog"] * 10_000))
    most = 2048 - len(grounder().lvlm.encode(pixels(), ["dog"], small_world.RECIPE).token_ids[0])
    found = grounder()(pixels(), " ".join(["dog"] * (most + 1)))
    assert bool(found.map.isfinite().all())


@pytest.mark.parametrize("expression", ["the $5 note, not the $10 one", r"$\frac", "a_b^c {"])
def test_a_picture_shows_the_expression_as_it_is(expression, tmp_path):
    found = spelling()(pixels(), [expression])
    found[0].save(tmp_path / "found.png")
    figures.save(figures.contact_sheet(found, [found[0].image]), tmp_path / "sheet.png")
    assert min(f.stat().st_size for f in tmp_path.iterdir()) > 1000


def test_words_that_the_model_does_not_know():
    with pytest.raises(
        ValueError, match=r"words that the tokenizer knows, .*say it in other words"
    ):
        grounder()(pixels(), "the 🐕")
