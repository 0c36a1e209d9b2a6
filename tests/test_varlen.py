"""The attention branch of a GPU, with a stand-in for its kernel that has the kernel's own signature."""

from __future__ import annotations

import inspect

import torch
from torch.nn.attention import varlen

from data.tiny_base import make_model, make_tokenizer
from grpo.packing import pack
from grpo.policy import Policy
from grpo.types import Sample


def stand_in(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa=False):
    """Each run attends causally to the keys of its own run, aligned at the end: by the definition, in a loop."""
    assert window_size == (-1, 0)
    assert max_q == int(cu_seq_q.diff().max())
    assert max_k == int(cu_seq_k.diff().max())
    repeats = query.shape[1] // key.shape[1]
    assert enable_gqa is (repeats > 1)
    runs = []
    for run in range(len(cu_seq_q) - 1):
        q = query[cu_seq_q[run] : cu_seq_q[run + 1]]
        k, v = (x[cu_seq_k[run] : cu_seq_k[run + 1]].repeat_interleave(repeats, 1) for x in (key, value))
        scores = scale * torch.einsum("qhd,khd->hqk", q, k)
        later = torch.ones(len(q), len(k), dtype=torch.bool).triu(len(k) - len(q) + 1)
        runs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(later, -torch.inf).softmax(-1), v))
    return torch.cat(runs)


def test_the_stand_in_has_the_kernels_signature():
    parameters = inspect.signature(varlen.varlen_attn).parameters
    assert list(parameters)[:7] == list(inspect.signature(stand_in).parameters)[:7]
    assert {"scale", "window_size", "enable_gqa"} <= set(parameters)


def test_the_varlen_branch_equals_the_cpus(monkeypatch):
    """Two groups with shared prompts and ragged completions: log-probabilities and gradients."""
    monkeypatch.setattr(varlen, "varlen_attn", stand_in)
    tokenizer = make_tokenizer()
    policy = Policy(make_model(tokenizer, seed=1), tokenizer)
    samples = [
        Sample((5, 6, 7, 8 + group), tuple(range(10, 10 + length)), (0.0,) * length, 1.0)
        for group in (0, 1)
        for length in (3, 9, 1)
    ]
    (batch,) = pack(samples, [1.0] * len(samples), 10**6)
    results = []
    for policy.kernel in ("sdpa", "varlen"):
        logprobs, _ = policy.logprobs(batch, 0.6)
        results.append((logprobs, *torch.autograd.grad(logprobs.sum(), list(policy.trainable().values()))))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert policy.kernel == "varlen"
