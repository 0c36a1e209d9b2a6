"""Two products, the smaller of them, and a minus sign."""

import torch


def policy_loss(logprobs, old_logprobs, advantages, clip_low, clip_high):
    ratio = torch.exp(logprobs - old_logprobs)  # [N]
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)  # [N]
    return -torch.minimum(ratio * advantages, clipped * advantages)
