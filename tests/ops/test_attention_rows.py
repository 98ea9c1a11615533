"""Attention of the asking tokens: one layer's rows against a loop, bad input; Triton's kernel."""

import json
import os
import random
import subprocess
import sys
from array import array
from types import SimpleNamespace
from unittest.mock import MagicMock

import attention_rows_cases as cases
import numpy as np
import pytest
import torch
from fastground import ops, reference
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def tensors(batch=2, rows=3, heads=4, key_heads=2, tokens=9, head_dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, rows, heads, head_dim, generator=generator) * 2
    return query, torch.randn(batch, key_heads, tokens, head_dim, generator=generator)


def by_loop(query, key, heads, visible, scale, softcap):
    """One number at a time, in double precision."""
    batch, rows, num_heads, _ = query.shape
    out = torch.zeros(batch, rows, len(heads), key.shape[2], dtype=torch.float64)
    for b in range(batch):
        for r in range(rows):
            for c, head in enumerate(heads):
                keys = key[b, head // (num_heads // key.shape[1])].double()
                logits = keys @ query[b, r, head].double() * scale
                if softcap is not None:
                    logits = softcap * torch.tanh(logits / softcap)
                seen = torch.ones(len(logits), dtype=torch.bool)
                if visible is not None:
                    row = visible[b] if visible.ndim == 2 else visible[b, r]
                    seen = row if row.dtype == torch.bool else row > -torch.inf
                    logits = logits if row.dtype == torch.bool else logits + row.double()
                weights = torch.exp(logits[seen] - logits[seen].max()) if seen.any() else None
                if weights is not None:
                    out[b, r, c, seen] = weights / weights.sum()
    return out


def visibility(kind, batch=2, rows=3, tokens=9):
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(batch, rows, tokens, generator=generator) > 0.4
    mask[..., 0] = True
    additive = torch.randn(batch, rows, tokens, generator=generator)
    return {
        "all": None,
        "keys": mask[:, 0],
        "rows": mask,
        "additive": additive.masked_fill(~mask, -torch.inf),
        "additive keys": additive[:, 0],
    }[kind]


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("heads", [None, [3, 0], [1, 1]])
@pytest.mark.parametrize("kind", ["all", "keys", "rows", "additive", "additive keys"])
def test_equals_a_loop(kind, heads, softcap):
    query, key = tensors()
    visible = visibility(kind)
    got = ops.attention_rows(query, key, heads=heads, visible=visible, softcap=softcap)
    want = by_loop(query, key, heads or range(4), visible, 8**-0.5, softcap)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, atol=3e-7, rtol=1e-5)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_grouped_heads_read_their_key_head(key_heads):
    query, key = tensors(key_heads=key_heads)
    repeated = key.repeat_interleave(4 // key_heads, dim=1)
    got = ops.attention_rows(query, key, scale=0.3)
    want = (torch.einsum("brhd,bhtd->brht", query, repeated) * 0.3).softmax(-1)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_is_accumulated_in_float32(dtype):
    query, key = (x.to(dtype) for x in tensors(head_dim=64))
    want = ops.attention_rows(query.float(), key.float())
    torch.testing.assert_close(ops.attention_rows(query, key), want, atol=1e-6, rtol=0)


def test_a_row_that_sees_no_key_is_zero():
    query, key = tensors()
    visible = torch.ones(2, 3, 9, dtype=torch.bool)
    visible[1, 2] = False
    for mask in (visible, torch.zeros(2, 3, 9).masked_fill(~visible, -torch.inf)):
        rows = ops.attention_rows(query, key, visible=mask)
        assert (rows[1, 2] == 0).all()
        torch.testing.assert_close(rows[0].sum(-1), torch.ones(3, 4))


def test_nan_stays_nan():
    query, key = tensors()
    query[0, 1, 2, 3] = torch.nan
    rows = ops.attention_rows(query, key)
    assert rows[0, 1, 2].isnan().all()
    assert rows[0, 0].isfinite().all()


def test_numpy_in_numpy_out_and_strides_as_they_come():
    query, key = tensors()
    want = ops.attention_rows(query, key, visible=visibility("rows"))
    got = ops.attention_rows(query.numpy(), key.numpy(), visible=visibility("rows").numpy())
    assert isinstance(got, np.ndarray)
    np.testing.assert_array_equal(got, want.numpy())
    strided = key.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert not strided.is_contiguous()
    torch.testing.assert_close(
        ops.attention_rows(query, strided, visible=visibility("rows")), want, atol=1e-6, rtol=0
    )


def test_empty_batches_and_rows_give_empty_results():
    query, key = tensors()
    assert ops.attention_rows(query[:, :0], key).shape == (2, 0, 4, 9)
    assert ops.attention_rows(query[:0], key[:0], heads=[1]).shape == (0, 3, 1, 9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.zeros(3, 4, 8)}, "query must be .batch, rows, num_heads, head_dim."),
        ({"key": torch.zeros(2, 2, 0, 8)}, "got shapes .* and .2, 2, 0, 8."),
        ({"key": torch.zeros(2, 2, 9, 7)}, "agree in batch and head_dim"),
        ({"key": torch.zeros(2, 3, 9, 8)}, "multiple of num_key_value_heads"),
        ({"heads": [0, 4]}, "heads must be None or at least one index 0 to 3, but got 4"),
        ({"heads": [-1]}, "but got -1"),
        ({"heads": []}, "but got none"),
        ({"visible": torch.ones(2, 8, dtype=torch.bool)}, r"visible must be \(2, 9\)"),
        ({"softcap": 0.0}, "softcap must be positive"),
        ({"softcap": float("inf")}, "softcap must be positive and finite, or None, but got inf"),
        ({"key": torch.zeros(2, 2, 9, 8, device="meta")}, "holds data"),
    ],
)
def test_bad_arguments_are_named(change, message):
    query, key = tensors()
    arguments = {"query": query, "key": key} | change
    with pytest.raises((ValueError, TypeError), match=message):
        ops.attention_rows(arguments.pop("query"), arguments.pop("key"), **arguments)


def test_wrong_kinds_are_named():
    query, key = tensors()
    with pytest.raises(TypeError, match="query must be floating, but got int64"):
        ops.attention_rows(query.long(), key)
    with pytest.raises(TypeError, match="visible must be bool or floating"):
        ops.attention_rows(query, key, visible=torch.ones(2, 9, dtype=torch.int64))


def test_reference_is_what_runs_on_the_cpu():
    query, key = tensors()
    assert torch.equal(ops.attention_rows(query, key), reference.attention_rows(query, key))
    assert ops.implementations()["attention_rows"]["cpu"] == "reference (PyTorch)"


def test_products_are_float32_under_autocast():
    # Which would make them of bfloat16, and the softmax with them.
    torch.manual_seed(0)
    query, key = torch.randn(1, 2, 4, 16) * 3, torch.randn(1, 2, 40, 16)
    want = ops.attention_rows(query, key)
    for heads in (None, (0, 1, 2, 3)):
        with torch.autocast("cpu", torch.bfloat16):
            found = ops.attention_rows(query, key, heads=heads)
        torch.testing.assert_close(found, want, atol=1e-6, rtol=0)


# The Triton kernel: interpreted, compiled without a GPU, and on one.


def run(tmp_path, *mode, **environment):
    """Checks in a process of their own, each a line of JSON."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, cases.__file__, *mode],
        env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_kernel_is_exact_in_triton_s_interpreter(tmp_path):
    pytest.importorskip("hypothesis")
    (worst,) = run(tmp_path, "interpret", TRITON_INTERPRET="1")
    assert worst.pop("calls") == 50
    assert set(worst) == {"torch.float32", "torch.float16", "torch.bfloat16"}
    assert max(worst.values()) < 1e-6


def test_offsets_beyond_32_bits_are_right_in_triton_s_interpreter(tmp_path):
    (errors,) = run(tmp_path, "far", TRITON_INTERPRET="1")
    assert set(errors) == {"batch", "head", "token", "dimension", "layer", "block"}
    assert max(errors.values()) < 1e-6


def test_layers_of_any_strides_are_right_in_triton_s_interpreter(tmp_path):
    (errors,) = run(tmp_path, "layouts", TRITON_INTERPRET="1")
    assert set(errors) == set(cases.LAYOUTS)
    assert max(errors.values()) < 1e-6


@pytest.fixture
def kernel():
    pytest.importorskip("triton")
    from fastground.kernels import attention_rows

    return attention_rows


class NewBytes(TorchDispatchMode):
    """The size of the largest new storage inside the block."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        known = {x.untyped_storage().data_ptr() for x in tree_leaves(args) if torch.is_tensor(x)}
        made = function(*args, **(kwargs or {}))
        for storage in (x.untyped_storage() for x in tree_leaves(made) if torch.is_tensor(x)):
            if storage.data_ptr() not in known:
                self.most = max(self.most, storage.nbytes())
        return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("how", dict.fromkeys(cases.LAYOUTS))
def test_keys_are_read_where_they_lie(kernel, how, layers, dtype, monkeypatch):
    launched = []
    for name in ("_logits", "_weights"):
        start = MagicMock()
        start.__getitem__.return_value = lambda *given, **_: launched.append(given)
        monkeypatch.setattr(kernel, name, start)
    keys = [cases.laid(torch.randn(2, 2, 300, 64, dtype=dtype), how, n) for n in range(layers)]
    queries = [torch.randn(2, 1, 4, 64) for _ in keys]
    with NewBytes() as new:
        kernel.attention_rows(queries, keys, scale=0.1, tokens=range(9))
    assert 0 < new.most < keys[0].nbytes / 4
    key, table = launched[0][1], launched[0][3]
    assert key.data_ptr() == keys[0].data_ptr() and len(launched) == 2
    if layers > 1:
        size = key.element_size()
        places = [(each.data_ptr() - key.data_ptr()) // size for each in keys]
        assert table.view(layers, 5)[:, 0].tolist() == places
        assert table.view(layers, 5)[:, 1:].tolist() == [list(each.stride()) for each in keys]


def test_a_table_is_made_anew_in_a_graph_that_does_not_know_it(kernel, monkeypatch):
    # Nothing here touches a GPU: that a copy from the host cannot be captured is known before.
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    uploaded, gpu = kernel._uploaded, torch.device("cuda", 0)
    numbers = array("q", (3, 1 << 40, -1)).tobytes()
    with pytest.raises(LookupError):
        uploaded(numbers, torch.int64, gpu)
    monkeypatch.setattr(kernel, "_uploaded", lambda *of: uploaded(*of[:2], gpu))
    table = kernel._there(numbers, torch.int64, torch.device("cpu"))
    assert table.dtype == torch.int64 and table.tolist() == [3, 1 << 40, -1]


def test_a_default_device_does_not_take_the_tables(kernel):
    with torch.device("meta"):
        table = kernel._there(array("i", (5, 6)).tobytes(), torch.int32, torch.device("cpu"))
    assert table.tolist() == [5, 6]


def test_another_stream_waits_for_a_table_and_no_host_does(kernel, monkeypatch):
    done = []
    table = SimpleNamespace(record_stream=lambda stream: done.append(("kept for", stream)))
    event = SimpleNamespace(wait=lambda stream: done.append(("waited for by", stream)))
    monkeypatch.setattr(kernel, "_uploaded", lambda *_: (table, "first", event))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for stream in ("first", "second"):
        monkeypatch.setattr(torch.cuda, "current_stream", lambda stream=stream: stream)
        assert kernel._there(b"", torch.int64, torch.device("cuda", 0)) is table
    assert done == [("waited for by", "second"), ("kept for", "second")]


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(40))
def test_drawn_calls_are_exact_on_a_gpu(seed):
    query, key, keywords = cases.case(random.Random(seed).choice, "cuda", large=seed % 2 == 0)
    want = cases.exact(query, key, **keywords)
    dtype = (query[0] if isinstance(query, list) else query).dtype
    found = ops.attention_rows(query, key, **keywords)
    assert all(part.is_cuda for part in cases.parts(found))
    assert cases.off(found, want) < (2e-6 if dtype == torch.float32 else 1e-5)


@pytest.mark.gpu
def test_offsets_beyond_32_bits_are_right_on_a_gpu():
    assert max(cases.far(ops.attention_rows, "cuda").values()) < 1e-5


@pytest.mark.gpu
def test_layers_of_any_strides_are_right_on_a_gpu():
    assert max(cases.layouts(ops.attention_rows, "cuda").values()) < 1e-5


@pytest.mark.gpu
def test_mixed_devices_are_refused_on_a_gpu():
    query, key = torch.zeros(1, 1, 2, 16), torch.zeros(1, 2, 8, 16)
    with pytest.raises(ValueError, match="query and key must share a device"):
        ops.attention_rows(query.cuda(), key)
    with pytest.raises(ValueError, match="query and visible must share a device"):
        ops.attention_rows(query.cuda(), key.cuda(), visible=torch.ones(1, 8, dtype=torch.bool))


@pytest.mark.gpu
def test_a_cuda_graph_can_hold_it_on_a_gpu():
    torch.manual_seed(0)
    query, keys = torch.randn(1, 2, 4, 64).cuda(), torch.randn(3, 1, 2, 300, 64).cuda()
    want = ops.attention_rows([query] * 3, list(keys), tokens=range(9, 200))  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = ops.attention_rows([query] * 3, list(keys), tokens=range(9, 200))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(found.rows, want.rows) and torch.equal(found.sums, want.sums)


@pytest.mark.gpu
def test_a_cuda_graph_may_make_the_keys_itself_on_a_gpu():
    torch.manual_seed(0)
    query, keys = torch.randn(1, 2, 4, 64).cuda(), torch.randn(3, 1, 2, 300, 64).cuda()

    def call():
        return ops.attention_rows([query] * 3, [key * 2 for key in keys])

    want = call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call()
    keys.neg_()
    graph.replay()
    assert torch.equal(found, call()) and not torch.equal(found, want)


@pytest.mark.gpu
def test_keys_of_new_addresses_do_not_wait_for_a_gpu():
    torch.manual_seed(0)
    query, keys = torch.randn(1, 2, 4, 64).cuda(), torch.randn(3, 1, 2, 300, 64).cuda()
    want = ops.attention_rows([query] * 3, list(keys))
    others = [list(keys.clone()) for _ in range(3)]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        ops.attention_rows([query] * 3, list(keys))  # so that its memory is there
    tables = [torch.zeros(3, 5, dtype=torch.int64).pin_memory() for _ in others]
    del tables  # so that the host's is, too: CUDA may wait where it has to ask for more
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            found = [ops.attention_rows([query] * 3, each) for each in others]
            assert not stream.query(), "the call has waited for the device"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert all(torch.equal(each, want) for each in found)
    # What one stream has uploaded another may read at once.
    assert torch.equal(ops.attention_rows([query] * 3, others[0]), want)


@pytest.mark.gpu
def test_nan_stays_nan_on_a_gpu():
    query, key = torch.randn(1, 2, 2, 64).cuda(), torch.randn(1, 2, 300, 64).cuda()
    key[0, 0, 7, 3] = torch.nan
    visible = torch.ones(1, 2, 300, dtype=torch.bool).cuda()
    visible[0, 1, 7] = False
    rows = ops.attention_rows(query, key, visible=visible)
    assert rows[0, 0, 0].isnan().all() and rows[0, 1].isfinite().all()
    assert rows[0, 0, 1].isfinite().all()
