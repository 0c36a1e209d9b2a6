"""Exercise 3: one normaliser for the whole step.

The loss of a step is the mean of the losses of all its completion tokens. The completions of a step rarely fit into
memory at once, so they are cut into micro-batches. The cut is a matter of memory. It must not change the result.

A micro-batch is a pair of tensors, `losses` and `mask`, both [n, T]: n completions, padded to T tokens. `mask` is
True for the tokens of the completion. It is False for padding, where the values of `losses` have no meaning.

Return the mean over all tokens with mask True, of all micro-batches together. Every such token counts the same,
whichever micro-batch and whichever completion it is in. Micro-batches may differ in n and in T. Return a tensor,
through which gradient flows to the losses.

For example, a micro-batch with the losses 3 (one token) and a micro-batch with the losses 1, 1, 1 (three tokens) give
(3 + 1 + 1 + 1) / 4 = 1.5. The mean of their means would be 2.

In the repository: grpo/loss.py, token_weights.
"""

import torch


def step_loss(micro_batches: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """List of ([n, T] losses, [n, T] bool mask) -> the loss of the step, a tensor with one number."""
    ...  # your code here
