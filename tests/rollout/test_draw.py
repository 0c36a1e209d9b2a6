"""Tokens drawn in blocks are those of the cumulative distribution, and never impossible ones."""

from __future__ import annotations

import pytest
import torch

from grpo.rollout.torch_engine import _draw


@pytest.mark.parametrize("vocabulary", [1, 2, 10, 97, 1000])
def test_the_token_is_where_the_running_sum_passes_u(vocabulary: int):
    torch.manual_seed(0)
    logp = torch.log_softmax(2 * torch.randn(2000, vocabulary, dtype=torch.float64), -1)
    u = torch.rand(2000, dtype=torch.float64)
    plain = torch.searchsorted(logp.exp().cumsum(-1), u[:, None], right=True)[:, 0].clamp(max=vocabulary - 1)
    assert torch.equal(_draw(logp, u), plain)


@pytest.mark.parametrize("u", [0.0, 0.3, 1 - 2.0**-53])
def test_a_token_of_no_probability_is_never_drawn(u: float):
    # Only tokens 7 and 12 of 20 can come, at each end of u's range as well.
    logp = torch.full((1, 20), -torch.inf)
    logp[0, [7, 12]] = torch.tensor([0.5, 0.5]).log()
    assert _draw(logp, torch.tensor([u], dtype=torch.float64)).item() == (7 if u < 0.5 else 12)


def test_rare_tokens_of_a_large_vocabulary_keep_their_share():
    # One token holds all but 2^-12 of the probability, 2^17 others share the rest: 2^-29 each. A float32 running sum
    # near 1 moves in steps of 2^-24 and would skip most of them; here u in the tail's middle finds the middle token.
    tail = 2**17
    logp = torch.cat([torch.tensor([1 - 2.0**-12]), torch.full((tail,), 2.0**-29)]).log()[None]
    u = torch.tensor([1 - 2.0**-13], dtype=torch.float64)
    assert abs(_draw(logp, u).item() - tail / 2) < tail * 1e-2
