"""Fuyu: patches of 8 pixels, of images made no larger than 6 x 8 of them."""

import torch
from families import WORDS, Family, sharpen
from without_torchvision import image_processor_class


def sentence_pieces():
    """A tokenizer of pieces that begin with the space before a word, as Fuyu's."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    pieces = [*special, "|SPEAKER|", "|NEWLINE|", "<0x04>", "▁", ".", ":", "\n"]
    pieces += [f"▁{word}" for word in WORDS]
    words = Tokenizer(models.Unigram([(piece, 0.0) for piece in pieces], unk_id=3))
    words.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    words.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>",
    )  # fmt: skip


def fuyu(seed):
    import transformers as hf

    words = sentence_pieces()
    config = hf.FuyuConfig(
        text_config=hf.PersimmonConfig(
            vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
            num_attention_heads=4, max_position_embeddings=2048, pad_token_id=0, bos_token_id=1,
            eos_token_id=2,
        ),
        vocab_size=64, hidden_size=64, patch_size=8, pad_token_id=0,
        image_token_id=words.convert_tokens_to_ids("|SPEAKER|"),
    )  # fmt: skip
    torch.manual_seed(seed)
    model = sharpen(hf.FuyuForCausalLM(config), seed)
    with torch.no_grad():  # queries and keys are normalised
        for layer in model.get_decoder().layers:
            layer.self_attn.q_layernorm.weight.mul_(3)
    kind = image_processor_class("fuyu.image_processing_fuyu", "FuyuImageProcessor")
    images = kind(size={"height": 48, "width": 64}, patch_size={"height": 8, "width": 8})
    return model, hf.FuyuProcessor(images, words)


FAMILIES = [Family("fuyu", fuyu)]
