"""Tokens drawn are those of the cumulative distribution, and never impossible ones."""

from __future__ import annotations

import pytest
import torch

from grpo.engines.torch_engine import draw


@pytest.mark.parametrize("vocabulary", [1, 2, 10, 97, 1000])
def test_the_token_is_where_the_running_sum_passes_u(vocabulary: int):
    torch.manual_seed(0)
    logp = torch.log_softmax(2 * torch.randn(2000, vocabulary, dtype=torch.float64), -1)
    u = torch.rand(2000, dtype=torch.float64)
    plain = torch.searchsorted(logp.exp().cumsum(-1), u[:, None], right=True)[:, 0].clamp(max=vocabulary - 1)
    assert torch.equal(draw(logp, u), plain)


@pytest.mark.parametrize("u", [0.0, 0.3, 1 - 2.0**-53])
def test_a_token_of_no_probability_is_neverdrawn(u: float):
    # Only tokens 7 and 12 of 20 can come, at each end of u's range as well.
    logp = torch.full((1, 20), -torch.inf)
    logp[0, [7, 12]] = torch.tensor([0.5, 0.5]).log()
    assert draw(logp, torch.tensor([u], dtype=torch.float64)).item() == (7 if u < 0.5 else 12)


def test_rounding_at_the_end_of_a_blockdraws_no_impossible_token():
    # 16 tokens make 4 blocks of 4. The float32 sum of the last block may be more than its float64 running sum, which
    # puts the largest u behind its end: onto token 15, which has no probability, unless the search is held back.
    torch.manual_seed(0)
    logp = torch.log_softmax(torch.randn(1000, 16), -1)
    logp[:, 15] = -torch.inf
    assert not (draw(logp, torch.full((1000,), 1 - 2.0**-53, dtype=torch.float64)) == 15).any()


def test_rare_tokens_of_a_large_vocabulary_keep_their_share():
    # One token holds all but 2^-12 of the probability, 2^17 others share the rest: 2^-29 each. A float32 running sum
    # near 1 moves in steps of 2^-24, so that tokens and even blocks of them would get wrong shares; here u three
    # quarters into the tail finds the token there, up to what rounding the large probability to float32 moves.
    tail = 2**17
    logp = torch.cat([torch.tensor([1 - 2.0**-12]), torch.full((tail,), 2.0**-29)]).log()[None]
    u = torch.tensor([1 - 2.0**-14], dtype=torch.float64)
    assert abs(draw(logp, u).item() - tail * 3 / 4) < tail * 1e-3
