"""Chunked log-probability and entropy: the plain ones in value and gradient, without tokens x vocabulary."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from grpo.logprob import token_logprobs

N, HIDDEN, VOCABULARY = 13, 8, 50


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, HIDDEN, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    head = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(VOCABULARY, (N,), generator=generator)
    return hidden, head, targets


def plain(hidden, head, targets, temperature):
    logp = torch.log_softmax(hidden @ head.T / temperature, -1)
    return logp.gather(-1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


@pytest.mark.parametrize("chunk", [1, 5, 13, 100])
@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_equals_the_plain_one_in_value_and_gradient(chunk: int, temperature: float):
    hidden, head, targets = inputs()
    weights = torch.linspace(-1, 2, N, dtype=torch.float64)
    results = []
    for function in (plain, lambda *a: token_logprobs(*a, chunk)):
        logprobs, entropy = function(hidden, head, targets, temperature)
        gradients = torch.autograd.grad((weights * logprobs + 0.3 * weights.flip(0) * entropy).sum(), (hidden, head))
        results.append((logprobs, entropy, *gradients))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_only_one_of_the_outputs_may_have_a_gradient():
    hidden, head, targets = inputs()
    for output in (0, 1):
        expected = torch.autograd.grad(plain(hidden, head, targets, 0.6)[output].sum(), (hidden, head))
        found = torch.autograd.grad(token_logprobs(hidden, head, targets, 0.6, 4)[output].sum(), (hidden, head))
        torch.testing.assert_close(found, expected)


def test_a_frozen_head_gets_no_gradient():
    hidden, head, targets = inputs()
    logprobs, _ = token_logprobs(hidden, head.detach(), targets, 1.0, 4)
    (gradient,) = torch.autograd.grad(logprobs.sum(), hidden)
    assert gradient.shape == hidden.shape


def test_temperature_scales_the_gaps_between_tokens_by_its_inverse():
    # log p(a) - log p(b) = (z_a - z_b) / T, so halving T doubles every gap.
    hidden, head, _ = inputs()
    one = hidden[:1].expand(VOCABULARY, -1)
    everything = torch.arange(VOCABULARY)
    at_one, _ = token_logprobs(one, head, everything, 1.0, 7)
    at_half, _ = token_logprobs(one, head, everything, 0.5, 7)
    torch.testing.assert_close(at_half - at_half[0], 2 * (at_one - at_one[0]))


def test_bfloat16_input_gives_float32_output_close_to_the_exact_one():
    hidden, head, targets = inputs(torch.bfloat16)
    logprobs, entropy = token_logprobs(hidden, head, targets, 1.0, 4)
    assert logprobs.dtype == entropy.dtype == torch.float32
    # The logits are bfloat16, as the matrix product gives them; what follows must not round a second time.
    exact = torch.log_softmax((hidden @ head.T).double(), -1).gather(-1, targets[:, None])[:, 0]
    assert (logprobs - exact).abs().max() < 1e-5


class LargestTensor(TorchDispatchMode):
    """Remembers the largest output of any operation, forward and backward."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_no_tensor_of_tokens_times_vocabulary_ever_exists():
    generator = torch.Generator().manual_seed(0)
    tokens, vocabulary, chunk = 64, 1000, 8
    hidden = torch.randn(tokens, HIDDEN, generator=generator, requires_grad=True)
    head = torch.randn(vocabulary, HIDDEN, generator=generator, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    with LargestTensor() as largest:
        logprobs, entropy = token_logprobs(hidden, head, targets, 1.0, chunk)
        (logprobs.sum() + entropy.sum()).backward()
    assert largest.numel == max(chunk * vocabulary, vocabulary * HIDDEN)
