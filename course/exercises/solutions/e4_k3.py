"""The reference comes first in the difference."""

import torch


def k3(logprobs, ref_logprobs):
    d = ref_logprobs - logprobs
    return torch.expm1(d) - d
