"""A pack's attention in blocks of queries is that of the whole, and less is done for it."""

import pytest
import torch
from fastground import packing
from fastground.capture import capture
from fastground.causal import BLOCK, CausalAttention
from fastground.types import Recipe
from test_packing import TEXTS, eager_maps, make, picture
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward


class Layer(nn.Module):
    """What transformers' sdpa attention asks of a layer."""

    is_causal = True

    def __init__(self, groups):
        super().__init__()
        self.num_key_value_groups = groups


def pack_mask(batch, prefix, branches):
    """(batch, 1, T, T) bool, as `packing.pack` makes them; each sequence one token shorter."""
    length = prefix + sum(branches)
    mask = torch.eye(length, dtype=torch.bool).repeat(batch, 1, 1, 1)
    branch = torch.repeat_interleave(torch.tensor([prefix, *branches]))
    for n in range(batch):
        own = ((branch == 0) | (branch == branch[:, None])).tril()[: length - n, : length - n]
        mask[n, 0, : length - n, : length - n] = own
    return mask


def arrays(batch, heads, key_heads, tokens, dtype=torch.float32):
    generator = torch.Generator().manual_seed(tokens)
    return (
        torch.randn(batch, n, tokens, 16, generator=generator).to(dtype)
        for n in (heads, key_heads, key_heads)
    )


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("prefix", [BLOCK - 8, BLOCK, 2 * BLOCK + 20, 3 * BLOCK - 9])
@pytest.mark.parametrize("batch", [1, 3])
def test_blocks_equal_the_whole(heads, prefix, batch):
    mask = pack_mask(batch, prefix, [4, 3, 5])
    layer = Layer(heads[0] // heads[1])
    query, key, value = arrays(batch, *heads, mask.shape[-1])
    blocks, asked = CausalAttention(), []

    def own(module, query, key, value, mask, **keywords):
        asked.append((query.shape[2], key.shape[2]))
        return sdpa_attention_forward(module, query, key, value, mask, **keywords)

    for _ in range(2):  # as two layers share a mask
        found, weights = blocks.attend(own, layer, query, key, value, mask, scaling=0.3)
        want, _ = sdpa_attention_forward(layer, query, key, value, mask, scaling=0.3)
        assert weights is None and found.shape == want.shape and found.is_contiguous()
        torch.testing.assert_close(found, want, atol=2e-6, rtol=0)
    per_layer = asked[: len(asked) // 2]
    assert sum(queries for queries, _ in per_layer) == mask.shape[-1]
    assert per_layer[-1][1] == mask.shape[-1]
    done = sum(queries * keys for queries, keys in per_layer)
    assert len(per_layer) > 1 or mask.shape[-1] < BLOCK * 4 / 3
    assert done < 0.8 * mask.shape[-1] ** 2 or len(per_layer) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_another_dtype_or_mask_is_taken_anew(dtype):
    layer, blocks = Layer(1), CausalAttention()
    for branches, kind in (([4, 3], torch.float32), ([4, 3], dtype), ([2, 5], dtype)):
        mask = pack_mask(2, 2 * BLOCK, branches)
        query, key, value = arrays(2, 4, 4, mask.shape[-1], kind)
        found, _ = blocks.attend(sdpa_attention_forward, layer, query, key, value, mask)
        want, _ = sdpa_attention_forward(layer, query, key, value, mask)
        assert found.dtype == kind
        near = 2e-6 if kind == torch.float32 else 2e-2
        torch.testing.assert_close(found, want, atol=near, rtol=0)


@pytest.mark.parametrize("given", ["none", "additive", "short", "cached"])
def test_what_is_no_long_pack_is_handed_on_as_it_is(given):
    length = BLOCK if given == "short" else 2 * BLOCK
    mask = pack_mask(1, length - 7, [4, 3])
    query, key, value = arrays(1, 2, 2, length)
    if given == "none":
        mask = None
    elif given == "additive":
        mask = packing.additive(mask, torch.float32)
    elif given == "cached":
        query = query[:, :, -5:]
        mask = mask[:, :, -5:]
        key = torch.cat([key, key], dim=2)
    seen = []

    def own(*arguments, **keywords):
        seen.append((arguments, keywords))
        return "output", None

    layer = Layer(1)
    found = CausalAttention().attend(own, layer, query, key, value, mask, scaling=2.0)
    assert found == ("output", None)
    [(arguments, keywords)] = seen
    assert keywords == {"scaling": 2.0}
    pairs = zip(arguments, (layer, query, key, value, mask), strict=True)
    assert all(mine is theirs for mine, theirs in pairs)


def test_capture_of_a_long_pack_equals_eager_attention_and_the_plain_forward():
    lvlm = make(grid=4, kv_heads=2)
    texts = [*TEXTS, " ".join(["the red mug on the left of a dog"] * 20), "a dog on the mug"]
    encoded = lvlm.encode(picture(), texts, Recipe())
    inputs, rows = packing.pack(encoded)
    assert inputs["input_ids"].shape[1] > 1.5 * BLOCK
    with torch.no_grad():
        plain = lvlm.model(**inputs).logits
        with capture(lvlm.model, rows=rows, layouts=encoded.layout, packed=True) as captured:
            logits = lvlm.model(**inputs).logits
    torch.testing.assert_close(logits, plain, atol=1e-5, rtol=0)
    assert not torch.equal(logits, plain), "blocks would not have been taken"
    torch.testing.assert_close(captured.maps.maps, eager_maps(lvlm, encoded), atol=2e-6, rtol=0)
