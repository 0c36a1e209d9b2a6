"""The number of tokens is counted over all micro-batches before any of them is divided by it."""


def step_loss(micro_batches):
    tokens = sum(mask.sum() for _, mask in micro_batches)
    return sum((losses * mask).sum() / tokens for losses, mask in micro_batches)
