"""Mean and standard deviation along each row; `keepdim` keeps them one column wide, in line with the row."""

import torch


def group_advantages(rewards: torch.Tensor) -> torch.Tensor:
    mean = rewards.mean(-1, keepdim=True)  # [groups, 1]
    std = rewards.std(-1, keepdim=True)  # [groups, 1], divided by n - 1 unless told otherwise
    return (rewards - mean) / (std + 1e-6)
