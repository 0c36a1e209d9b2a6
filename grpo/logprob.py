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


def _log_softmax(hidden: torch.Tensor, head: torch.Tensor, temperature: float) -> torch.Tensor:
    """[n, V] in float32 (float64 for float64 input): bfloat16 would put an error of a few percent into the ratio."""
    logits = (hidden @ head.T).to(torch.promote_types(hidden.dtype, torch.float32))
    return torch.log_softmax(logits.div_(temperature), -1)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, head, targets, temperature, chunk):
        logprobs, entropy = [], []
        for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            logp = _log_softmax(h, head, temperature)
            logprobs.append(logp.gather(-1, t[:, None])[:, 0])
            entropy.append(-_rowwise_dot(logp.exp(), logp))
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.set_materialize_grads(False)
        logprobs, entropy = torch.cat(logprobs), torch.cat(entropy)
        ctx.save_for_backward(hidden, head, targets, entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx, grad_logprobs, grad_entropy):
        hidden, head, targets, entropy = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # Summed over chunks in float32: in bfloat16 the late chunks would be rounded away.
        grad_head = torch.zeros_like(head, dtype=entropy.dtype) if ctx.needs_input_grad[1] else None
        for start in range(0, len(targets), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            logp = _log_softmax(hidden[part], head, ctx.temperature)
            p = logp.exp()
            grad = torch.zeros_like(p)
            if grad_logprobs is not None:
                g = grad_logprobs[part, None]
                grad -= p * g
                grad.scatter_add_(-1, targets[part, None], g.to(grad.dtype))
            if grad_entropy is not None:
                grad -= p * (logp + entropy[part, None]) * grad_entropy[part, None]
            grad = grad.div_(ctx.temperature).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = grad @ head
            if grad_head is not None:
                grad_head += grad.T @ hidden[part]
        return grad_hidden, None if grad_head is None else grad_head.to(head.dtype), None, None, None


def _rowwise_dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[n, V] x [n, V] -> [n], without a third tensor of that size."""
    return torch.bmm(a[:, None, :], b[:, :, None])[:, 0, 0]
