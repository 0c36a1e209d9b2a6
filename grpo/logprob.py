"""Log-probability and entropy of tokens without ever holding tokens x vocabulary.

With 152k tokens in the vocabulary the logits are the largest tensor of the step by far. Here they exist for `chunk`
tokens at a time, in the forward pass and again, recomputed, in the backward pass, where the gradient has a closed form:

    z = logits / T    log p = z - logsumexp(z)    H = -sum p log p
    d log p_t / d z_j = [j = t] - p_j             d H / d z_j = -p_j (log p_j + H)
"""

from __future__ import annotations

import torch


def token_logprobs(
    hidden: torch.Tensor,
    head: torch.Tensor,
    targets: torch.Tensor,
    temperature: float,
    chunk: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, H] hidden states, [V, H] head, [N] targets -> [N] log p(target), [N] entropy in nats; at least float32.

    Of the distribution that was sampled: logits divided by `temperature`. Gradient flows to `hidden` and `head`.
    """
    return _TokenLogprobs.apply(hidden, head, targets, temperature, chunk)


def _buffers(hidden: torch.Tensor, head: torch.Tensor, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two [chunk, V] in float32 (float64 for float64 input): bfloat16 would put an error of percents into the ratio.

    They serve every chunk: on a CPU, memory fresh from the system costs more time than what is computed in it.
    """
    shape = min(chunk, len(hidden)), len(head)
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    return tuple(torch.empty(shape, dtype=dtype, device=hidden.device) for _ in range(2))


def _log_softmax(hidden, head, temperature: float, buffers) -> tuple[torch.Tensor, torch.Tensor]:
    """[n, V] log-probabilities in one of the buffers, and the other to compute in."""
    logits, logp = (buffer[: len(hidden)] for buffer in buffers)
    if hidden.dtype == logits.dtype:
        torch.mm(hidden, head.T, out=logits)
    else:
        logits.copy_(hidden @ head.T)
    return torch.log_softmax(logits.div_(temperature), -1, out=logp), logits


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, head, targets, temperature, chunk):
        buffers = _buffers(hidden, head, chunk)
        logprobs, entropy = (buffers[0].new_empty(len(targets)) for _ in range(2))
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            logp, scratch = _log_softmax(hidden[part], head, temperature, buffers)
            logprobs[part] = logp.gather(-1, targets[part, None])[:, 0]
            entropy[part] = -torch.exp(logp, out=scratch).mul_(logp).sum(-1)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, head, targets, entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx, grad_logprobs, grad_entropy):
        hidden, head, targets, entropy = ctx.saved_tensors
        buffers = _buffers(hidden, head, ctx.chunk)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # Summed over chunks in float32: in bfloat16 the late chunks would be rounded away.
        grad_head = torch.zeros_like(head, dtype=entropy.dtype) if ctx.needs_input_grad[1] else None
        g = (torch.zeros_like(entropy) if grad_logprobs is None else grad_logprobs)[:, None]
        for start in range(0, len(targets), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            logp, p = _log_softmax(hidden[part], head, ctx.temperature, buffers)
            torch.exp(logp, out=p)
            if grad_entropy is None:
                grad = p.mul_(-g[part])
            else:  # -p (g + dH (log p + H))
                inner = logp.add_(entropy[part, None]).mul_(grad_entropy[part, None]).add_(g[part])
                grad = p.mul_(inner.neg_())
            grad = grad.scatter_add_(-1, targets[part, None], g[part]).div_(ctx.temperature).to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad, head, out=grad_hidden[part])
            if grad_head is not None:
                _add_product(grad_head, grad.T, hidden[part])
        return grad_hidden, None if grad_head is None else grad_head.to(head.dtype), None, None, None


def _add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """total += a @ b, without rounding the product to the precision of a and b first."""
    if total.device.type == "cuda" and a.dtype != total.dtype:
        total += torch.mm(a, b, out_dtype=total.dtype)
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))
