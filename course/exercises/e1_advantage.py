"""Exercise 1: the group advantage.

A problem is given to a language model several times. Its answers are called completions, and the completions of one
problem are a group. A reward function has given each completion a number. GRPO does not ask how large that number is.
It asks how much better the completion is than the others of its group:

    advantage = (reward - mean of its group) / (standard deviation of its group + 1e-6)

The standard deviation is the sample's: the squared deviations are added up and divided by n - 1, where n is the
number of completions in the group, before the square root. The 1e-6 is there for a group in which all rewards are
equal: its deviations are 0, and 0 / (0 + 1e-6) is 0, so that nothing is learned from it.

For example, the rewards 1, 0, 0, 0 have mean 1/4. The squared deviations are 9/16, 1/16, 1/16, 1/16, together 3/4.
Divided by n - 1 = 3 this is 1/4, so the standard deviation is 1/2, and the advantages are 1.5, -0.5, -0.5, -0.5.

In PyTorch, `mean` and `std` along a row drop that dimension: [groups, n] becomes [groups]. With `keepdim=True` they
give [groups, 1], a column that lines up with the rows.

In the repository: grpo/advantage.py, group_advantages.
"""

import torch


def group_advantages(rewards: torch.Tensor) -> torch.Tensor:
    """[groups, n] rewards -> [groups, n] advantages. Each row is one group."""
    ...  # your code here
