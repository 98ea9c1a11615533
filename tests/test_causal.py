"""A pack's attention by the native core is that of transformers' own function."""

import math
from contextlib import suppress
from functools import wraps

import pytest
import torch
from fastground import causal, packing
from fastground.capture import capture
from fastground.causal import CausalAttention
from fastground.types import Recipe
from test_packing import TEXTS, eager_maps, make, picture
from torch import nn
from torch.autograd import forward_ad
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NEAR = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


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
    return [
        torch.randn(batch, tokens, n, 16, generator=generator).to(dtype).transpose(1, 2)
        for n in (heads, key_heads, key_heads)
    ]


@pytest.fixture
def calls(monkeypatch):
    """The calls of transformers' function, which causal.py takes for its own."""
    made = []

    @wraps(sdpa_attention_forward)
    def own(*arguments, **keywords):
        made.append((arguments, keywords))
        return sdpa_attention_forward(*arguments, **keywords)

    monkeypatch.setattr(causal, "sdpa", lambda: own)
    return own, made


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("prefix", [3, 90, 250])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", list(NEAR))
def test_equals_the_own_function(calls, heads, prefix, batch, dtype):
    own, made = calls
    mask = pack_mask(batch, prefix, [4, 3, 5])
    layer = Layer(heads[0] // heads[1])
    given = arrays(batch, *heads, mask.shape[-1], dtype)
    attention = CausalAttention()
    for scaling in (0.3, None):  # as two layers share a mask
        found, weights = attention.attend(own, layer, *given, mask, scaling=scaling, dropout=0.0)
        want, _ = sdpa_attention_forward(layer, *given, mask, scaling=scaling)
        assert weights is None and found.shape == want.shape and found.is_contiguous()
        assert found.dtype == dtype
        torch.testing.assert_close(found, want, atol=NEAR[dtype], rtol=0)
    assert not made


def test_another_mask_is_taken_anew(calls):
    own, made = calls
    layer, attention = Layer(1), CausalAttention()
    for branches in ([4, 3], [2, 5], [40]):
        mask = pack_mask(2, 60, branches)
        given = arrays(2, 4, 4, mask.shape[-1])
        found, _ = attention.attend(own, layer, *given, mask[:1])
        want, _ = sdpa_attention_forward(layer, *given, mask[:1])
        torch.testing.assert_close(found, want, atol=2e-6, rtol=0)
    assert not made


def test_one_new_token_behind_cached_ones(calls):
    own, made = calls
    mask = pack_mask(2, 60, [4, 3])
    query, key, value = arrays(2, 4, 2, 67)
    given = query[:, :, -1:], key, value, mask[:, :, -1:]
    found, _ = CausalAttention().attend(own, Layer(2), *given)
    want, _ = sdpa_attention_forward(Layer(2), *given)
    torch.testing.assert_close(found, want, atol=2e-6, rtol=0)
    assert not made


class Turned(torch.Tensor):
    """A tensor of a class of its own."""


REFUSED = {
    "no mask": {"mask": lambda mask: None},
    "additive": {"mask": lambda mask: packing.additive(mask, torch.float32)},
    "of each head": {"mask": lambda mask: mask.expand(-1, 2, -1, -1)},
    "float64": dict.fromkeys(("query", "key", "value"), torch.Tensor.double),
    "a class": {"value": lambda value: value.as_subclass(Turned)},
    "keys of one batch for all": {name: lambda array: array[:1] for name in ("key", "value")}
    | {"query": lambda query: query.repeat(2, 1, 1, 1)},
    "values of one head for all": {"value": lambda value: value[:, :1]},
    "no numbers": {"value": lambda value: value[..., :0]},
    "gradients": {"key": lambda key: key.clone().requires_grad_()},
    "dropout": {"dropout": lambda _: 0.5},
    "softcap": {"softcap": lambda _: 5.0},
    "position bias": {"position_bias": lambda _: torch.zeros(1, 2, 67, 67)},
}


@pytest.mark.parametrize("case", [*REFUSED, "autocast", "reference", "another function"])
def test_what_the_core_does_not_know_is_handed_on_as_it_is(calls, case, monkeypatch):
    own, made = calls
    mask = pack_mask(1, 60, [4, 3])
    given = dict(zip(("query", "key", "value"), arrays(1, 2, 2, 67), strict=True), mask=mask)
    keywords = {"scaling": 2.0}
    if case == "reference":
        monkeypatch.setenv("FASTGROUND_IMPLEMENTATION", "reference")
    if case == "another function":
        another = own

        def own(*arguments, **keywords):
            return another(*arguments, **keywords)

    for name, change in REFUSED.get(case, {}).items():
        target = given if name in given else keywords
        target[name] = change(target.get(name))
    if case == "position bias" and "position_bias" not in causal._others():
        pytest.skip("this transformers has no position_bias")
    layer = Layer(1)
    refusals = suppress(ValueError, RuntimeError)  # of transformers' own, from 5.24 on
    with torch.autocast("cpu", enabled=case == "autocast"), refusals:
        CausalAttention().attend(own, layer, *given.values(), **keywords)
    [(arguments, passed)] = made
    assert passed == keywords
    pairs = zip(arguments, (layer, *given.values()), strict=True)
    assert all(mine is theirs for mine, theirs in pairs)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # by torch itself
def test_forward_gradients_are_those_of_the_own_function(calls):
    own, made = calls
    query, key, value = arrays(1, 2, 2, 67)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(query, torch.ones_like(query))
        # The only kernel of PyTorch's that knows them.
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            found, _ = CausalAttention().attend(
                own, Layer(1), dual, key, value, pack_mask(1, 60, [4, 3])
            )
        assert forward_ad.unpack_dual(found).tangent.abs().max() > 0
    assert len(made) == 1


def test_numbers_that_do_not_lie_together_are_read_too(calls):
    own, made = calls
    mask = pack_mask(1, 60, [4, 3])
    query, key, value = arrays(1, 2, 2, 67)
    turned = query.mT.contiguous().mT, torch._neg_view(-key), value.expand(1, 2, 67, 16)
    found, _ = CausalAttention().attend(own, Layer(1), *turned, mask)
    want, _ = sdpa_attention_forward(Layer(1), query, key, value, mask)
    torch.testing.assert_close(found, want, atol=2e-6, rtol=0)
    assert not made and not math.isnan(float(found.sum()))


def test_capture_of_a_long_pack_equals_eager_attention_and_the_plain_forward():
    lvlm = make(grid=4, kv_heads=2)
    texts = [*TEXTS, " ".join(["the red mug on the left of a dog"] * 20), "a dog on the mug"]
    encoded = lvlm.encode(picture(), texts, Recipe())
    inputs, rows = packing.pack(encoded)
    with torch.no_grad():
        plain = lvlm.model(**inputs).logits
        with capture(lvlm.model, rows=rows, layouts=encoded.layout, packed=True) as captured:
            logits = lvlm.model(**inputs).logits
    torch.testing.assert_close(logits, plain, atol=1e-5, rtol=0)
    assert not torch.equal(logits, plain), "the core would not have been taken"
    torch.testing.assert_close(captured.maps.maps, eager_maps(lvlm, encoded), atol=2e-6, rtol=0)


def test_a_pack_that_torch_only_follows_is_left_to_the_own_function(calls):
    own, made = calls
    mask = pack_mask(1, 60, [4, 3])
    given = arrays(3, 2, 2, 67)

    def attend(query, key, value):
        one = (array[None] for array in (query, key, value))
        return CausalAttention().attend(own, Layer(1), *one, mask)[0][0]

    want, _ = sdpa_attention_forward(Layer(1), *given, mask)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # knows vmap
        found = torch.func.vmap(attend)(*given)
        torch.testing.assert_close(found, want, atol=2e-6, rtol=0)
        slope = torch.func.grad(lambda q: attend(q, given[1][0], given[2][0]).sum())(given[0][0])
    assert slope.abs().max() > 0
    assert len(made) == 2
