"""Chunked log-probability and entropy: the plain ones in value and gradient, without tokens x vocabulary."""

from __future__ import annotations

import pytest
import torch
from tiny_model import since_torch_2_13
from torch.utils._python_dispatch import TorchDispatchMode

from grpo.logprob import _logit_gradient, token_logprobs

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


def test_the_heads_bias_is_in_value_and_gradient():
    hidden, head, targets = inputs()
    bias = torch.linspace(-2, 2, VOCABULARY, dtype=torch.float64, requires_grad=True)
    logp = torch.log_softmax((hidden @ head.T + bias) / 0.6, -1)
    expected = logp.gather(-1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)
    found = token_logprobs(hidden, head, targets, 0.6, 5, bias=bias)
    results = []
    for logprobs, entropy in (expected, found):
        gradients = torch.autograd.grad((logprobs + 0.3 * entropy).square().sum(), (hidden, head, bias))
        results.append((logprobs, entropy, *gradients))
    for plainly, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, plainly)


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


def test_bfloat16_weights_give_the_log_probabilities_of_unrounded_logits():
    # Logits near 20. Rounded to bfloat16 they are off by up to 2^-4, and the log-probabilities by 0.04 at T = 0.6.
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(200, 64, generator=generator).bfloat16()
    head = (20 / 8 * torch.randn(500, 64, generator=generator)).bfloat16()
    targets = torch.randint(500, (200,), generator=generator)
    exact, exact_entropy = plain(hidden.double(), head.double(), targets, 0.6)
    rounded, _ = plain((hidden @ head.T).double(), torch.eye(500, dtype=torch.float64), targets, 0.6)
    logprobs, entropy = token_logprobs(hidden, head, targets, 0.6, 64)

    def rms(error):
        return error.double().pow(2).mean().sqrt()

    assert logprobs.dtype == entropy.dtype == torch.float32
    assert rms(rounded - exact) > 0.02  # what the test is there to see
    assert rms(logprobs - exact) < 1e-3
    assert rms(entropy - exact_entropy) < 1e-3


VIEWS = {"t", "transpose", "permute", "slice", "expand", "empty", "detach"}


class Operations(TorchDispatchMode):
    """Remembers (name, dtype of the output) of all operations whose output is as wide as the vocabulary."""

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary, self.seen = vocabulary, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function._overloadpacket.__name__.strip("_")
        if isinstance(out, torch.Tensor) and self.vocabulary in out.shape[-2:] and name not in VIEWS:
            self.seen.append((name, out.dtype))
        return out


@since_torch_2_13
@pytest.mark.parametrize("with_entropy", [True, False])
def test_beside_a_cpu_the_product_itself_is_float32_and_only_the_logits_gradient_is_rounded(with_entropy: bool):
    vocabulary = 96
    hidden = torch.empty(8, 16, dtype=torch.bfloat16, device="meta", requires_grad=True)
    head = torch.empty(vocabulary, 16, dtype=torch.bfloat16, device="meta", requires_grad=True)
    targets = torch.zeros(8, dtype=torch.long, device="meta")
    with Operations(vocabulary) as forward:
        logprobs, entropy = token_logprobs(hidden, head, targets, 0.6, 8, with_entropy)
    chain = ["addmm", "log_softmax", *(["exp", "mul"] if with_entropy else [])]
    assert forward.seen == [(name, torch.float32) for name in chain]
    with Operations(vocabulary) as backward:
        (logprobs.sum() + (entropy.sum() if with_entropy else 0)).backward()
    # The logits again and the gradient of the head, summed in place; the logits' gradient is rounded as it is computed.
    assert [dtype for name, dtype in backward.seen if name == "addmm"] == [torch.float32] * 2
    assert [dtype for name, dtype in backward.seen if name == "mul"] == [torch.bfloat16]


def test_without_entropy_the_log_probabilities_and_gradients_are_the_same():
    hidden, head, targets = inputs()
    logprobs, entropy = token_logprobs(hidden, head, targets, 0.6, 4, with_entropy=False)
    assert entropy is None
    assert torch.equal(logprobs, token_logprobs(hidden, head, targets, 0.6, 4)[0])
    expected = torch.autograd.grad(plain(hidden, head, targets, 0.6)[0].sum(), (hidden, head))
    torch.testing.assert_close(torch.autograd.grad(logprobs.sum(), (hidden, head)), expected)


def test_the_gradient_of_a_nearly_certain_token_is_not_lost_in_rounding():
    # p = 1 - 2e-4: the target's gradient is 1 - p. As -p rounded to bfloat16 plus 1 it would be 0 or 0.004.
    for dtype in (torch.float32, torch.bfloat16):
        p = torch.tensor([[1 - 2e-4, 2e-4]])
        grad = _logit_gradient(p, torch.tensor([[-1.0]]), torch.tensor([[1.0]]), torch.tensor([[0]]), dtype)
        torch.testing.assert_close(grad, torch.tensor([[2e-4, -2e-4]]).to(dtype), rtol=1e-3, atol=0)


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
