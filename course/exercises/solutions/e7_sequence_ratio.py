"""The mean of the log-ratios over the tokens that count, and one exp at the end."""

import torch


def sequence_ratio(logprobs, old_logprobs, mask):
    log_ratio = (logprobs - old_logprobs) * mask  # [N, T]
    return torch.exp(log_ratio.sum(1) / mask.sum(1))  # [N]
