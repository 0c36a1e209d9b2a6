"""Log-probability and entropy of tokens without ever holding tokens x vocabulary.

With 152k tokens in the vocabulary the logits are by far the largest tensor of the step. Here they exist for `chunk`
tokens at a time in the forward pass. The backward pass computes them again and has the gradient in closed form:

    z = logits / tau    log p = z - logsumexp(z)    H = -sum p log p
    d log p_t / d z_j = [j = t] - p_j               d H / d z_j = -p_j (log p_j + H)

Logits are float32 from the matrix product on, even if the weights are bfloat16. Rounded to bfloat16, logits near 20 are
off by up to 0.06, and at temperature 0.6 the log-probability of a drawn token by about 0.05 (root mean square, normal
logits). The gradient of the head is summed in float32 for the same reason. The gradient of the logits is rounded once,
before it is multiplied by the weights.
"""

from __future__ import annotations

from typing import Any

import torch


def token_logprobs(
    hidden: torch.Tensor,
    head: torch.Tensor,
    targets: torch.Tensor,
    temperature: float,
    chunk: int,
    with_entropy: bool = True,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """[N, H] hidden states, [V, H] head, [N] targets -> [N] log p(target), [N] entropy in nats; at least float32.

    p is the distribution that was sampled: softmax((logits + `bias`) / `temperature`), with the head's [V] bias if it
    has one. Gradient flows to `hidden`, `head` and `bias`. Without `with_entropy` the second result is None, and its
    passes over the vocabulary are skipped.
    """
    if hidden.device.type == "cpu":  # no CPU product takes bfloat16 and gives float32
        wide = torch.promote_types(hidden.dtype, torch.float32)
        hidden, head = hidden.to(wide), head.to(wide)
    return _TokenLogprobs.apply(hidden, head, bias, targets, temperature, chunk, with_entropy)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, head, bias, targets, temperature, chunk, with_entropy):
        buffers = _buffers(hidden, head, chunk)
        logprobs = buffers[0].new_empty(len(targets))
        entropy = torch.empty_like(logprobs) if with_entropy else None
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            logp, scratch = _log_softmax(hidden[part], head, bias, temperature, buffers)
            logprobs[part] = logp.gather(-1, targets[part, None])[:, 0]
            if with_entropy:
                entropy[part] = -torch.exp(logp, out=scratch).mul_(logp).sum(-1)
        ctx.temperature = temperature
        ctx.chunk = chunk
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, head, bias, targets, entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx, grad_logprobs, grad_entropy):
        hidden, head, bias, targets, entropy = ctx.saved_tensors
        buffers = _buffers(hidden, head, ctx.chunk)
        grad_hidden = torch.empty_like(hidden)
        grad_head = torch.zeros_like(head, dtype=buffers[0].dtype) if ctx.needs_input_grad[1] else None
        grad_bias = buffers[0].new_zeros(len(head)) if ctx.needs_input_grad[2] else None
        if grad_logprobs is None:
            grad_logprobs = torch.zeros_like(grad_entropy)
        for start in range(0, len(targets), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            logp, scratch = _log_softmax(hidden[part], head, bias, ctx.temperature, buffers)
            p = torch.exp(logp, out=scratch)
            g = grad_logprobs[part, None] / ctx.temperature
            factor = -g  # d loss / d logits is p_j factor_j, plus g at the target
            if grad_entropy is not None:  # factor_j = -(g + dH (log p_j + H))
                dh = grad_entropy[part, None] / ctx.temperature
                factor = torch.addcmul(-(g + dh * entropy[part, None]), logp, -dh, out=logp)
            grad = _logit_gradient(p, factor, g, targets[part, None], hidden.dtype)
            torch.mm(grad, head, out=grad_hidden[part])
            if grad_head is not None:
                addmm(grad_head, grad.T, hidden[part])
            if grad_bias is not None:
                grad_bias += grad.sum(0, dtype=grad_bias.dtype)
        grad_head = None if grad_head is None else grad_head.to(head.dtype)
        grad_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, grad_head, grad_bias, None, None, None, None


def _buffers(hidden: torch.Tensor, head: torch.Tensor, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two [chunk, V] buffers, at least float32, that every chunk uses again: on a CPU, allocating fresh memory takes
    longer than the computation in it."""
    shape = min(chunk, len(hidden)), len(head)
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    first, second = (torch.empty(shape, dtype=dtype, device=hidden.device) for _ in range(2))
    return first, second


def _log_softmax(hidden, head, bias, temperature: float, buffers) -> tuple[torch.Tensor, torch.Tensor]:
    """[n, V] log-probabilities in one of the buffers, and the other buffer as scratch space."""
    logits, logp = (buffer[: len(hidden)] for buffer in buffers)
    addmm(logits, hidden, head.T, beta=0, alpha=1 / temperature)
    if bias is not None:
        logits.add_(bias, alpha=1 / temperature)
    return torch.log_softmax(logits, -1, out=logp), logits


def _logit_gradient(p, factor, g, targets, dtype: torch.dtype) -> torch.Tensor:
    """[n, V] p_j factor_j, plus g at the target, in `dtype`.

    The target's entry is summed before it is rounded, because the two terms nearly cancel where p is near 1.
    """
    at_target = g + p.gather(-1, targets) * factor.expand_as(p).gather(-1, targets)
    grad = torch.mul(p, factor, out=p if p.dtype == dtype else torch.empty_like(p, dtype=dtype))
    return grad.scatter_(-1, targets, at_target.to(dtype))


def addmm(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **scales: float) -> None:
    """total = beta * total + alpha * a @ b in place, in the precision of `total` even if a and b are bfloat16."""
    if total.device.type == "cpu":  # a CPU has no product that takes bfloat16 and gives float32
        a, b = a.to(total.dtype), b.to(total.dtype)
    options: dict[str, Any] = scales if a.dtype == total.dtype else scales | {"out_dtype": total.dtype}
    torch.addmm(total, a, b, out=total, **options)
