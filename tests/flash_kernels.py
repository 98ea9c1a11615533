"""flash-attn's two functions in plain PyTorch, for transformers' own flash attention on a CPU.

    transformers    masks, unpadding, sequences told apart by positions, dtypes: all as on a GPU
    flash-attn      flash_attn_func, flash_attn_varlen_func: these, by their published signatures

A kernel sees queries and keys of one sequence with their last tokens side by side, as flash-attn
2.1 and later do.
"""

from contextlib import contextmanager
from unittest.mock import patch

import torch


def _attend(q, k, v, scale, causal, window, softcap):
    """(T, heads, dim) of q (T, heads, dim) and k, v (S, key heads, dim)."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1).transpose(0, 1) for x in (k, v))
    logits = q.transpose(0, 1).float() @ k.mT.float()  # as the true ones, whatever the dtype
    logits = logits * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    own = torch.arange(q.shape[0])[:, None] + k.shape[1] - q.shape[0]
    place = torch.arange(k.shape[1])
    left, right = window
    right = 0 if causal else right
    seen = torch.ones(logits.shape[1:], dtype=torch.bool)
    seen &= place >= own - left if left >= 0 else seen
    seen &= place <= own + right if right >= 0 else seen
    rows = logits.masked_fill(~seen, -torch.inf).softmax(-1)
    return (rows.to(v.dtype) @ v).transpose(0, 1)


def flash_attn_func(
    q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
    alibi_slopes=None, deterministic=False, return_attn_probs=False,
):  # fmt: skip
    """(batch, T, heads, dim) of q so and k, v (batch, S, key heads, dim)."""
    assert dropout_p == 0 and alibi_slopes is None and not return_attn_probs
    each = [
        _attend(*one, softmax_scale, causal, window_size, softcap)
        for one in zip(q, k, v, strict=True)
    ]
    return torch.stack(each)


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0,
    softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
    deterministic=False, return_attn_probs=False, block_table=None,
):  # fmt: skip
    """The same of sequences laid end to end: q (all tokens, heads, dim), with where each begins."""
    assert dropout_p == 0 and alibi_slopes is None and block_table is None
    lengths = [cu.diff().tolist() for cu in (cu_seqlens_q, cu_seqlens_k)]
    assert [max(each) for each in lengths] == [int(max_seqlen_q), int(max_seqlen_k)]
    parts = zip(q.split(lengths[0]), *(x.split(lengths[1]) for x in (k, v)), strict=True)
    each = [_attend(*one, softmax_scale, causal, window_size, softcap) for one in parts]
    return torch.cat(each)


@contextmanager
def installed():
    """Inside the block transformers' flash_attention_2 and 3 run, with these for kernels."""
    from transformers import modeling_flash_attention_utils as flash
    from transformers.integrations import flash_attention as integration

    made = (flash_attn_func, flash_attn_varlen_func, None, flash._pad_input, flash._unpad_input)
    with (
        patch.object(flash, "_lazy_imports", lambda *_, **__: made),
        patch.object(flash, "_loaded_implementation", None),
        patch.object(integration, "_use_top_left_mask", False),
    ):
        yield
