"""Exercise 7: the ratio of a whole completion.

In exercise 2 every token has a ratio of its own. The reward, however, belongs to the whole completion. GSPO therefore
takes one ratio for the completion, and clips that. The product of the token ratios would be the exact one, but it
grows with the length: 300 tokens with a ratio of 1.01 give a factor of 20. GSPO takes the geometric mean of the n
token ratios:

    ratio = (ratio_1 * ratio_2 * ... * ratio_n) ^ (1 / n)

Products of many numbers overflow, so compute it with logarithms: the log of a token's ratio is logprob - old_logprob,
and the log of a geometric mean is the mean of the logs.

The tensors are [N, T]: N completions, padded to T tokens. `mask` is True for the tokens that the model wrote. It is
False for padding and for the output of a tool. What the log-probabilities hold there has no meaning, and these tokens
do not count in n. Every completion has at least one token with mask True.

Return one ratio for each completion. Gradient must flow to `logprobs`.

For example, a completion of two tokens with the ratios 0.5 and 2 has the ratio 1. With the ratios 4 and 1 it has 2.

In the repository: grpo/loss.py, gspo.
"""

import torch


def sequence_ratio(logprobs: torch.Tensor, old_logprobs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[N, T], [N, T], [N, T] bool -> [N] ratio of each completion."""
    ...  # your code here
