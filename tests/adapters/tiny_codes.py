"""Chameleon, Emu3 and Apertus: images as words, by an autoencoder of convolutions.

Of a trained one a code is what is drawn in its square. Random convolutions look as far beyond as
inside, and at edges most: here those of stride 2 take the mean of their square, and others look to
their sides little. Norms over all of the image see mostly what is the same everywhere.
Codes are what the encoder makes of squares of many colours, and words with codes that are near
each other are near each other, too: so it can be seen how much a square changed.
"""

import pytest
import torch
from families import Family, sharpen, tokenizer
from without_torchvision import image_processor_class

CODES = 256
FIRST = 64
"""The first code's word, after all others."""
CHAT = (
    "{% for m in messages %}user: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %} assistant:{% endif %}"
)
TEXT = {
    "vocab_size": FIRST + CODES + 1, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 2048, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@torch.no_grad()
def as_trained(model, vq, side, encode):
    """The autoencoder's codes and their words, for squares of so many pixels a side."""
    for name, weight in vq.encoder.named_parameters():
        if any(part in name for part in ("conv2", "proj_out", "out_proj")):
            weight.mul_(0.001)
        if "downsample" in name and weight.ndim == 4:
            mean = weight[..., :2, :2].mean((-2, -1), keepdim=True)
            weight.zero_()[..., :2, :2] = mean
        elif weight.shape[-2:] == (3, 3):
            middle = weight[..., 1, 1].clone()
            weight.mul_(0.02)[..., 1, 1] = middle
    vq.encoder.conv_in.weight.mul_(0.1 / vq.encoder.conv_in.weight[..., 1, 1].std())
    vq.encoder.conv_in.bias.normal_()
    colours = torch.rand(4, 3, 8, 8).sub_(0.5).mul_(4)
    found = []
    hook = vq.quantize.register_forward_pre_hook(lambda module, given: found.append(given[0]))
    encode(colours.repeat_interleave(side, 2).repeat_interleave(side, 3))
    hook.remove()
    codes = found[0].movedim(-3, -1).flatten(0, -2)
    vq.quantize.embedding.weight.copy_(codes)
    words = (codes - codes.mean(0)) / codes.std()
    words = words @ torch.randn(words.shape[1], TEXT["hidden_size"])
    model.get_input_embeddings().weight[FIRST : FIRST + CODES] = words


def chameleon(seed):
    """8 x 8 codes of 4 x 4 pixels, of an image squeezed to a square."""
    import transformers as hf

    marks = {"image_token": "<image>", "boi_token": "<start>", "eoi_token": "<end>"}
    words = tokenizer([*marks.values(), "<sep>"], extra_special_tokens=marks, sep_token="<sep>")
    digits = dict(zip("0123456789", "ABCDEFGHIJ", strict=True))
    named = {f"IMGIMG{''.join(digits[d] for d in str(i))}Z": FIRST + i for i in range(CODES)}
    config = hf.ChameleonConfig(
        **TEXT,
        vq_config=hf.ChameleonVQVAEConfig(
            embed_dim=16, num_embeddings=CODES, latent_channels=16, resolution=32,
            base_channels=32, channel_multiplier=[1, 1, 4], num_res_blocks=1,
        ),
        vocabulary_map={"<image>": words.image_token_id, **named},
    )  # fmt: skip
    torch.manual_seed(seed)
    model = sharpen(hf.ChameleonForConditionalGeneration(config), seed)
    as_trained(model, model.model.vqmodel, 4, model.model.vqmodel.encode)
    with torch.no_grad():  # queries and keys are normalised
        for layer in model.model.layers:
            layer.self_attn.q_norm.weight.div_(3)
    images = hf.ChameleonImageProcessorPil(
        size={"height": 32, "width": 32}, do_center_crop=False,
        crop_size={"height": 32, "width": 32},
    )  # fmt: skip
    return model, hf.ChameleonProcessor(images, words, image_seq_length=64)


def emu3(seed):
    """16 to 64 codes of 8 x 8 pixels, in the image's own shape."""
    import transformers as hf
    from tokenizers import processors

    marks = {
        "image_token": "<image>", "boi_token": "<start>", "eoi_token": "<end>",
        "image_wrapper_token": "<wrapper>", "eof_token": "<eof>",
    }  # fmt: skip
    words = tokenizer(list(marks.values()), extra_special_tokens=marks)
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    config = hf.Emu3Config(
        text_config=TEXT,
        vq_config={
            "codebook_size": CODES, "embed_dim": 16, "latent_channels": 16, "base_channels": 32,
            "channel_multiplier": [1, 1, 1, 4], "num_res_blocks": 1, "hidden_size": 128,
        },
        vocabulary_map={
            "<image>": words.image_token_id, "<|extra_200|>": FIRST + CODES,
            **{f"<|visual token {i:06}|>": FIRST + i for i in range(CODES)},
        },
    )  # fmt: skip
    torch.manual_seed(seed)
    model = sharpen(hf.Emu3ForConditionalGeneration(config), seed)
    sizes = torch.full((4, 2), 64)
    vq = model.model.vqmodel
    as_trained(model, vq, 8, lambda pixels: vq.encode(pixels, sizes))
    images = hf.Emu3ImageProcessor(min_pixels=16 * 8 * 8, max_pixels=64 * 8 * 8)
    return model, hf.Emu3Processor(images, words, chat_template=CHAT)


def apertus(seed):
    """16 to 64 codes of 8 x 8 pixels, likewise; a code is found by its angle, not its distance."""
    import transformers as hf

    if not hasattr(hf, "Apertus1p5Config"):
        pytest.skip("this transformers has no Apertus 1.5")
    marks = {
        "image_token": "<|image|>", "audio_token": "<|audio|>", "boi_token": "<start>",
        "eoi_token": "<end>", "image_wrapper_token": "<wrapper>", "eol_token": "<line>",
        "boa_token": "<hear>", "eoa_token": "<heard>",
    }  # fmt: skip
    words = tokenizer([*marks.values(), *map(str, range(17)), "*"], extra_special_tokens=marks)
    config = hf.Apertus1p5Config(
        text_config={
            **TEXT, "vocab_size": FIRST + CODES + 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        vision_config={
            "codebook_size": CODES, "embed_dim": 16, "latent_channels": 16, "base_channels": 32,
            "channel_multiplier": [1, 1, 1, 4], "num_res_blocks": 1, "resolution": 128,
        },
        audio_config={
            "codebook_size": 4, "codebook_dim": 8, "hidden_size": 8, "num_filters": 4,
            "num_lstm_layers": 1,
        },
        image_token_id=words.image_token_id, audio_token_id=words.audio_token_id,
        image_token_offset=FIRST, audio_token_offset=FIRST + CODES,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = sharpen(hf.Apertus1p5ForConditionalGeneration(config), seed)
    with torch.no_grad():  # queries and keys are normalised
        for layer in model.get_decoder().layers:
            layer.self_attn.q_norm.weight.mul_(3)
    vq = model.model.vision_tokenizer
    as_trained(model, vq, 8, vq.encode)
    codes = vq.quantize.embedding.weight.data
    vq.quant_conv.bias.data.sub_(codes.mean(0))
    codes.sub_(codes.mean(0)).div_(codes.norm(dim=1, keepdim=True))
    module = "apertus1p5.image_processing_apertus1p5"
    images = image_processor_class(module, "Apertus1p5ImageProcessor")(
        size={"min_pixels": 16 * 8 * 8, "max_pixels": 64 * 8 * 8}, spatial_factor=8
    )
    return model, hf.Apertus1p5Processor(
        images,
        hf.WavTokenizerFeatureExtractor(),
        words,
        chat_template=CHAT.replace("<image>", "<|image|>"),
    )


FAMILIES = [
    Family("chameleon", chameleon), Family("emu3", emu3),
    Family("apertus1p5", apertus, loads=False),
]  # fmt: skip
