"""The core's attention under a mask, in every instruction set, against float64."""

import math

import instruction_sets
import numpy as np
import pytest
import torch
from fastground import _core
from hypothesis import given
from hypothesis import strategies as st

_core.use_tensors(torch.Tensor)

DIMS = [1, 2, 3, 5, 8, 15, 16, 17, 24, 32, 64, 80, 96, 128]


def attention(query, key, value, mask, scale, threads=1):
    """(batch, queries, heads, value_dim) float32, as causal.py asks the core."""
    batch, heads, queries, _ = query.shape
    words = np.full((batch, -(-queries // 32), key.shape[2]), 0xDEADBEEF, np.uint32)
    _core.mask_words(mask.expand(batch, -1, -1, -1), words)
    output = torch.full((batch, queries, heads, value.shape[-1]), math.nan)
    _core.attention(query, key, value, words, scale, threads, output.numpy())
    return output


def by_float64(query, key, value, mask, scale):
    """What attention is, and how much rounding scores and weights in float32 may change of it."""
    groups = query.shape[1] // key.shape[1]
    query, key, value = query.double(), key.double(), value.double()
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = (scale * query @ key.mT).masked_fill(~mask, -math.inf)
    weights = torch.nan_to_num(scores.softmax(-1), nan=0.0)  # of rows that see nothing
    size = abs(scale) * (query.abs() @ key.abs().mT).amax(-1, keepdim=True)
    slack = (2e-6 + 1e-6 * size) * (weights @ value.abs()) + 5e-43
    return ((weights @ value).transpose(1, 2), slack.transpose(1, 2))


def laid_out(array, kind):
    """The same numbers with other strides; the numbers of a token stay side by side."""
    if kind == "turned":
        return array.transpose(1, 2).contiguous().transpose(1, 2)
    if kind == "gaps":
        batch, heads, tokens, dim = array.shape
        room = torch.full((batch, heads + 1, 2 * tokens, dim + 3), math.nan)
        view = room[:, 1:, ::2, 1 : 1 + dim]
        view.copy_(array)
        return view
    return array


def mask_of(kind, batch, queries, keys, generator):
    if kind == "random":
        return torch.rand(batch, 1, queries, keys, generator=generator) < 0.3
    mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    mask = mask.repeat(batch, 1, 1, 1)
    if kind == "pack":
        prefix = keys // 2
        branch = (torch.arange(keys) - prefix).clamp(min=-1) // 7
        own = branch[-queries:] if queries <= keys else branch[torch.arange(queries) % keys]
        mask &= (branch == -1) | (branch == own[:, None])
    if kind == "left":
        for n in range(batch):
            mask[n, ..., : n * keys // 3] = False
    return mask


@st.composite
def cases(draw):
    batch, key_heads, groups = (draw(st.integers(1, 3)) for _ in range(3))
    queries = draw(st.one_of(st.integers(1, 40), st.sampled_from([64, 65, 100])))
    keys = draw(st.one_of(st.just(queries), st.integers(1, 150)))
    dim, value_dim = draw(st.sampled_from(DIMS)), draw(st.sampled_from(DIMS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    size = draw(st.sampled_from([1e-3, 1.0, 3.0]))
    of_values = draw(st.sampled_from([1e-40, 1.0, 1e30]))
    shapes = (
        (key_heads * groups, queries, dim),
        (key_heads, keys, dim),
        (key_heads, keys, value_dim),
    )
    arrays = [
        laid_out(
            torch.randn(batch, *shape, generator=generator) * s,
            draw(st.sampled_from(["plain", "turned", "gaps"])),
        )
        for shape, s in zip(shapes, (size, size, of_values), strict=True)
    ]
    kind = draw(st.sampled_from(["causal", "pack", "left", "random"]))
    mask = mask_of(kind, draw(st.sampled_from([1, batch])), queries, keys, generator)
    if draw(st.booleans()):
        mask = mask.mT.contiguous().mT
    return *arrays, mask, draw(st.sampled_from([dim**-0.5, 0.3, -1.0]))


@given(case=cases())
def test_equals_float64(case):
    expected, slack = by_float64(*case)
    for name in instruction_sets.each():
        found = attention(*case)
        off = (found.double() - expected).abs() - slack
        assert bool((off <= 0).all()), f"{name}: {float(off.max()):.3g} beyond its rounding"


@pytest.mark.parametrize("tokens", [1, 33, 617])
def test_weights_are_exact_to_a_few_units(tokens):
    """Equal scores: the mean of what is seen, whatever their size."""
    for score in (0.0, 5.0, -1e20, 1e36):
        query, key = torch.full((1, 1, tokens, 1), score), torch.ones(1, 1, tokens, 1)
        value = torch.arange(1.0, tokens + 1).view(1, 1, tokens, 1)
        mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril()
        expected = value.flatten().cumsum(0) / torch.arange(1, tokens + 1)
        for _ in instruction_sets.each():
            found = attention(query, key, value, mask, 1.0).flatten()
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_exponentials_are_exact_and_end_at_the_least_normal_number():
    """Two keys, of which one has the score 0: the other's weight is e^x / (1 + e^x)."""
    scores = torch.linspace(-90, 90, 20001).view(1, 1, -1, 1)
    key = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1)
    value = torch.eye(2).view(1, 1, 2, 2)
    mask = torch.ones(1, 1, scores.numel(), 2, dtype=torch.bool)
    expected = torch.sigmoid(scores.double()).flatten()
    sure = (expected > 2.0**-125).numpy()
    for _ in instruction_sets.each():
        found = attention(scores, key, value, mask, 1.0)[0, :, 0, 1].double()
        rounded = 1e-7 * (2 + scores.double().abs().flatten())  # of the score itself
        off = ((found - expected) / expected).abs() / rounded
        assert float(off[sure].max()) < 1
        assert bool((found[expected < 2.0**-127] == 0).all())


def test_the_largest_of_huge_scores_has_all_the_weight():
    query = torch.tensor([1e19, -1e19]).view(1, 1, 2, 1).expand(1, 1, 2, 4)
    key = torch.tensor([1.0, -3.0, 2.0, 0.5, -2.0]).mul(1e18).view(1, 1, 5, 1).expand(1, 1, 5, 4)
    value = torch.tensor([3.0, 3e38, -3e38, 1e-38, 7.0]).view(1, 1, 5, 1)
    mask = torch.ones(1, 1, 2, 5, dtype=torch.bool)
    for _ in instruction_sets.each():
        found = attention(query.contiguous(), key.contiguous(), value, mask, 0.25)
        assert found.flatten().tolist() == [np.float32(-3e38), np.float32(3e38)]


def test_who_sees_nothing_has_nothing_as_in_torch():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 70, 16)
    mask = torch.ones(1, 1, 70, 70, dtype=torch.bool).tril()
    mask[..., [0, 5, 40, 69], :] = False
    plain = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    for _ in instruction_sets.each():
        found = attention(query, key, value, mask, 0.25)
        assert not found[:, [0, 5, 40, 69]].any()
        torch.testing.assert_close(found, plain.transpose(1, 2), atol=2e-6, rtol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_comes_out_where_it_is_seen(bad):
    torch.manual_seed(0)
    mask = torch.ones(1, 1, 50, 50, dtype=torch.bool).tril()
    for part, seen in (("query", [20]), ("key", range(20, 50)), ("value", range(20, 50))):
        arrays = dict(
            zip(("query", "key", "value"), torch.rand(3, 1, 1, 50, 16) + 0.1, strict=True)
        )
        arrays[part][0, 0, 20, 3] = bad
        for _ in instruction_sets.each():
            found = attention(*arrays.values(), mask, 0.25)[0, :, 0]
            finite = found.isfinite().all(-1)
            assert not finite[list(seen)].any()
            if part != "value":  # whose block of queries is spoilt: 0 * inf
                assert int(finite.sum()) == 50 - len(seen)


def test_number_of_threads_changes_no_bit():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 8, 300, 32)
    mask = mask_of("pack", 1, 300, 300, None)
    for _ in instruction_sets.each():
        alone = attention(query, key, value, mask, 0.2)
        for threads in (2, 5):
            shared = attention(query, key, value, mask, 0.2, threads)
            assert shared.numpy().tobytes() == alone.numpy().tobytes()


def test_what_is_no_attention_is_refused():
    query, key, value = torch.randn(3, 2, 4, 40, 8)
    words, out = np.zeros((2, 2, 40), np.uint32), np.zeros((2, 40, 4, 8), np.float32)
    _core.attention(query, key, value, words, 1.0, 1, out)
    mask = torch.ones(2, 1, 40, 40, dtype=torch.bool)
    for change, error in [
        ({0: query.double()}, ValueError),
        ({0: query.numpy()}, TypeError),
        ({0: query[0]}, ValueError),
        ({0: query[:, :3]}, ValueError),
        ({0: query[:, :0]}, ValueError),
        ({0: query.mT}, ValueError),
        ({0: query.to("meta")}, (ValueError, BufferError, RuntimeError)),
        ({1: key[..., :7]}, ValueError),
        ({1: key[:1]}, ValueError),
        ({1: key[:, :, 1:]}, ValueError),
        ({2: value[:, :2]}, ValueError),
        ({3: words[:1]}, ValueError),
        ({3: words.astype(np.uint64)}, ValueError),
        ({6: out[..., :4]}, ValueError),
        ({6: out.astype(np.float64)}, ValueError),
    ]:
        given = [query, key, value, words, 1.0, 1, out]
        for place, bad in change.items():
            given[place] = bad
        with pytest.raises(error):
            _core.attention(*given)
    for bad in (mask.float(), mask.expand(2, 3, 40, 40), mask[:1], mask[..., :0], mask[0]):
        with pytest.raises(ValueError):
            _core.mask_words(bad, words)


def test_sizes_beyond_what_memory_holds_are_refused():
    """Tensors of stride 0 have them, and 2^64 numbers would be none."""
    zero, many = torch.zeros(1, 1, 1, 1), 1 << 24
    query, value = zero.expand(1, many, many, 1), torch.zeros(1, 1, 1, 1 << 16)
    words, out = np.zeros(many // 32, np.uint32), np.zeros(0, np.float32)
    with pytest.raises(ValueError, match="fewer than 2\\^63"):
        _core.attention(query, zero, value, words, 1.0, 1, out)


def test_numbers_that_were_freed_are_refused():
    query, key, value = torch.randn(3, 1, 2, 40, 8).clone().unbind()
    freed = torch.randn(1, 2, 40, 8)
    freed.untyped_storage().resize_(0)
    words, out = np.zeros((1, 2, 40), np.uint32), np.zeros((1, 40, 2, 8), np.float32)
    for arrays in ((freed, key, value), (query, freed, value), (query, key, freed)):
        with pytest.raises(ValueError, match="hold data"):
            _core.attention(*arrays, words, 1.0, 1, out)


def test_any_byte_but_0_is_true_of_its_own_query():
    mask = torch.tensor([[0, 2, 255], [4, 0, 0], [0, 0, 128]], dtype=torch.uint8).view(torch.bool)
    words = np.zeros((1, 1, 3), np.uint32)
    _core.mask_words(mask[None, None], words)
    assert words.flatten().tolist() == [2, 1, 5]
