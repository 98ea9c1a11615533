"""What attention_rows can beside one layer's rows: layers, pages, phrases, tokens and their sum."""

from types import SimpleNamespace

import attention_rows_cases as cases
import few_rows
import hypothesis
import numpy as np
import pytest
import torch
from fastground import ops
from fastground.rows import TokenRows, check_devices
from hypothesis import strategies


def tensors(batch=2, rows=3, heads=4, key_heads=2, tokens=12, head_dim=8):
    torch.manual_seed(0)
    return torch.randn(batch, rows, heads, head_dim), torch.randn(
        batch, key_heads, tokens, head_dim
    )


@hypothesis.given(strategies.data())
def test_drawn_calls_are_exact(data):
    query, key, keywords = cases.case(lambda of: data.draw(strategies.sampled_from(of)))
    assert (
        cases.off(ops.attention_rows(query, key, **keywords), cases.exact(query, key, **keywords))
        < 2e-6
    )


def test_the_sanitizer_s_calls_are_exact():
    for query, key, keywords in few_rows.calls():
        want = cases.exact(query, key, **keywords)
        assert cases.off(ops.attention_rows(query, key, **keywords), want) < 1e-5


def test_layers_without_a_chosen_head_change_nothing():
    queries, keys = zip(*(tensors() for _ in range(4)), strict=True)
    keys = [key + layer for layer, key in enumerate(keys)]
    every = ops.attention_rows(list(queries), keys)
    heads = [(3, 1), (1, 0), (3, 0)]
    keys[0] = keys[0] * torch.nan
    found = ops.attention_rows(list(queries), keys, heads=heads)
    torch.testing.assert_close(found, every[:, :, [13, 4, 12]])


def test_rows_carry_no_gradient():
    query, key = (x.requires_grad_() for x in tensors())
    assert not ops.attention_rows(query, key).requires_grad
    told = ops.attention_rows([query, query], [key, key], heads=[(1, 2)], tokens=range(3, 9))
    assert not (told.rows.requires_grad or told.sums.requires_grad)


@pytest.mark.parametrize("tokens", [range(3, 13), range(12, 3, -1), range(-1, 4), range(4, -2, -1)])
def test_tokens_of_a_range_lie_in_the_keys(tokens):
    with pytest.raises(ValueError, match="must lie in the 12 keys"):
        ops.attention_rows(*tensors(), tokens=tokens)


@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_equals_the_weights_of_eager_attention(key_heads, softcap):
    from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

    query, key = tensors(key_heads=key_heads, rows=12)
    hidden = torch.full((12, 12), -torch.inf).triu(1).expand(2, 1, 12, 12).clone()
    hidden[1, ..., :3] = torch.finfo(torch.float32).min  # left padding
    module = SimpleNamespace(num_key_value_groups=4 // key_heads, training=False)
    _, want = eager_attention_forward(
        module, query.transpose(1, 2), key, key, hidden, scaling=0.4, softcap=softcap
    )
    asking = slice(4, 9)
    got = ops.attention_rows(
        query[:, asking], key, visible=hidden[:, 0, asking], scale=0.4, softcap=softcap
    )
    torch.testing.assert_close(got, want[:, :, asking].transpose(1, 2), atol=1e-6, rtol=0)


def test_tokens_keep_the_softmax_over_all_keys():
    query, key = tensors()
    rows = ops.attention_rows(query, key)
    for tokens in (range(3, 9), [3, 4, 5, 6, 7, 8], np.arange(3, 9), torch.arange(3, 9)[None]):
        given = tokens.expand(2, 6) if isinstance(tokens, torch.Tensor) else tokens
        told = ops.attention_rows(query, key, tokens=given)
        assert isinstance(told, TokenRows)
        assert torch.equal(told.rows, rows[..., 3:9])
        assert torch.equal(told.sums, rows[..., 3:9].sum(-1))
    assert (told.sums < 1).all()
    turned = ops.attention_rows(query, key, tokens=range(8, 2, -2)).rows
    assert torch.equal(turned, rows[..., [8, 6, 4]])
    assert ops.attention_rows(query, key, tokens=[]).sums.eq(0).all()


def test_shorter_lists_of_tokens_are_filled():
    query, key = tensors()
    rows = ops.attention_rows(query, key)
    told = ops.attention_rows(query, key, tokens=[[5, 2, 11], [7, -1, -1]])
    assert torch.equal(told.rows[0], rows[0][..., [5, 2, 11]])
    assert torch.equal(told.rows[1, ..., 0], rows[1, ..., 7])
    assert (told.rows[1, ..., 1:] == 0).all()
    assert torch.equal(told.sums[1], rows[1, ..., 7])


def test_phrases_have_the_mean_of_their_rows():
    query, key = tensors()
    rows = ops.attention_rows(query, key)
    got = ops.attention_rows(query, key, phrases=[[0, 2], [2, 3], [1, 1]])
    want = torch.stack([rows[:, :2].mean(1), rows[:, 2], torch.zeros_like(rows[:, 0])], 1)
    torch.testing.assert_close(got, want, atol=1e-7, rtol=0)
    each = torch.tensor([[[0, 3]], [[1, 2]]])
    got = ops.attention_rows(query, key, phrases=each, tokens=range(4))
    torch.testing.assert_close(got.rows[0, 0], rows[0].mean(0)[:, :4], atol=1e-7, rtol=0)
    torch.testing.assert_close(got.sums[1, 0], rows[1, 1, :, :4].sum(-1), atol=1e-7, rtol=0)


def test_layers_are_the_layers_one_by_one():
    query, key = tensors()
    queries, keys = [query, query * 2, -query], [key, key.flip(2), key * 0.5]
    each = [ops.attention_rows(q, k) for q, k in zip(queries, keys, strict=True)]
    assert torch.equal(ops.attention_rows(queries, keys), torch.cat(each, 2))
    heads = [(2, 1), (0, 3), (2, 0), (2, 1)]
    want = torch.stack([each[layer][:, :, head] for layer, head in heads], 2)
    got = ops.attention_rows(queries, keys, heads=heads)
    torch.testing.assert_close(got, want, atol=1e-7, rtol=0)


def test_pages_are_the_keys_in_their_order():
    query, key = tensors()
    cache = torch.full((7, 2, 4, 8), torch.nan)
    table = torch.tensor([[6, 0, 3], [2, 5, 1]])
    for b, blocks in enumerate(table):
        for n, block in enumerate(blocks):
            cache[block] = key[b, :, 4 * n : 4 * n + 4]
    want = ops.attention_rows(query, key)
    assert torch.equal(ops.attention_rows(query, cache, block_table=table), want)
    assert torch.equal(ops.attention_rows(query, cache, block_table=table.int()), want)
    table[1, 2] = -1
    short = torch.arange(12) < torch.tensor([[12], [8]])
    got = ops.attention_rows(query, cache, block_table=table)
    torch.testing.assert_close(
        got, ops.attention_rows(query, key, visible=short), atol=1e-7, rtol=0
    )
    assert (got[1, ..., 8:] == 0).all()
    unwritten = torch.arange(12) < 10  # the rest of the last block
    cache[3, :, 2:] = torch.nan
    got = ops.attention_rows(query[:1], cache, block_table=table[:1], visible=unwritten[None])
    want = ops.attention_rows(query[:1], key[:1], visible=unwritten[None])
    torch.testing.assert_close(got, want, atol=1e-7, rtol=0)


def test_numpy_in_numpy_out():
    query, key = tensors()
    want = ops.attention_rows(query, key, tokens=range(5), phrases=[[0, 3]])
    got = ops.attention_rows(
        query.numpy(), key.numpy(), tokens=range(5), phrases=np.array([[0, 3]])
    )
    for mine, other in zip(got, want, strict=True):
        assert isinstance(mine, np.ndarray)
        np.testing.assert_array_equal(mine, other.numpy())
    assert isinstance(ops.attention_rows([query.numpy()], [key.numpy()]), np.ndarray)


def test_offsets_beyond_32_bits_are_right():
    assert max(cases.far(ops.attention_rows).values()) < 1e-6


def test_a_last_dimension_with_a_stride_is_read_right():
    query, key = tensors()
    turned = key.transpose(2, 3).contiguous().transpose(2, 3)
    wide = query.repeat_interleave(2, -1)[..., ::2]
    assert turned.stride(-1) != 1 and wide.stride(-1) != 1
    want = ops.attention_rows(query, key)
    torch.testing.assert_close(ops.attention_rows(wide, turned), want, atol=1e-6, rtol=0)


def test_empty_batches_and_rows_give_empty_results():
    query, key = tensors()
    told = ops.attention_rows(query[:0], key[:0], tokens=range(4), phrases=[[0, 1]])
    assert told.rows.shape == (0, 1, 4, 4) and told.sums.shape == (0, 1, 4)
    assert ops.attention_rows(query[:, :0], key, phrases=[[0, 0]]).eq(0).all()


def test_mixed_devices_are_refused():
    here, there = (SimpleNamespace(device=torch.device(name)) for name in ("cpu", "cuda:0"))
    check_devices(query=there, key=there)
    with pytest.raises(ValueError, match="query and key must share a device, but got cpu and cuda"):
        check_devices(query=here, key=there)


QUERY, KEY = tensors()
PAGED = torch.zeros(5, 2, 4, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": range(13)}, r"tokens must lie in the 12 keys, but got range\(0, 13\)"),
        ({"tokens": [3, 12]}, "tokens must lie in the 12 keys, or -1, but got 12"),
        ({"tokens": [-2]}, "but got -2"),
        ({"tokens": torch.zeros(3, 4).long()}, r"tokens must be \(n,\) or \(2, n\), but got shape"),
        ({"tokens": [0.5]}, "tokens must be integers, but got float64"),
        ({"phrases": [[0, 4]]}, "phrases must lie in 3 rows, but got 4"),
        ({"phrases": [0, 1]}, r"phrases must be \(n, 2\) or \(2, n, 2\), but got shape \(2,\)"),
        ({"key": PAGED, "block_table": [[0, 5], [1, 2]]}, "the 5 blocks of key, or -1, but got 5"),
        ({"key": PAGED, "block_table": [[0, 1]]}, r"block_table must be \(2, n\), but got shape"),
        ({"key": PAGED}, "agree in batch and head_dim"),
        ({"key": [KEY]}, "lists of as many, one a layer, but got no list and 1"),
        ({"query": [QUERY, QUERY], "key": [KEY]}, "but got 2 and 1"),
        ({"query": [], "key": []}, "but got 0 and 0"),
        ({"query": [QUERY] * 2, "key": [KEY, KEY[:, :, 1:]]}, "key must have one shape and dtype"),
        ({"query": [QUERY] * 2, "key": [KEY, KEY.half()]}, "call once for each kind of layers"),
        ({"query": [QUERY], "key": [KEY], "heads": [(1, 0)]}, r"up to \(0, 3\), but got \(1, 0\)"),
        ({"query": [QUERY], "key": [KEY], "heads": [(0, 4)]}, r"but got \(0, 4\)"),
        ({"query": [QUERY], "key": [KEY], "heads": [2]}, "pairs where key is a list .* but got 2"),
        ({"query": [QUERY], "key": [KEY[:, :, :0]]}, r"got shapes .* and \(2, 2, 0, 8\)"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"query": QUERY, "key": KEY} | change
    with pytest.raises((ValueError, TypeError), match=message):
        ops.attention_rows(arguments.pop("query"), arguments.pop("key"), **arguments)
