"""Tokens drawn are those of the cumulative distribution, and never impossible ones."""

from __future__ import annotations

import pytest
import torch

from grpo.engines.torch_engine import draw


@pytest.mark.parametrize("vocabulary", [1, 2, 10, 1000, 5000])
def test_the_token_is_where_the_running_sum_passes_u(vocabulary: int):
    torch.manual_seed(0)
    p = torch.softmax(2 * torch.randn(2000, vocabulary, dtype=torch.float64), -1)
    u = torch.rand(2000, dtype=torch.float64)
    plain = torch.searchsorted(p.cumsum(-1), u[:, None], right=True)[:, 0].clamp(max=vocabulary - 1)
    assert torch.equal(draw(p, u), plain)


@pytest.mark.parametrize("u", [0.0, 0.3, 1 - 2.0**-53])
@pytest.mark.parametrize(("vocabulary", "first", "second"), [(20, 7, 12), (5000, 1500, 2500), (5000, 1030, 1031)])
def test_a_token_of_no_probability_is_never_drawn(vocabulary: int, first: int, second: int, u: float):
    # Only two tokens can come, at each end of u's range as well; of 5000 tokens in two blocks, or both in one.
    p = torch.zeros(1, vocabulary)
    p[0, [first, second]] = 0.5
    assert draw(p, torch.tensor([u], dtype=torch.float64)).item() == (first if u < 0.5 else second)


def test_rounding_at_the_end_of_a_block_draws_no_impossible_token():
    # 3000 tokens make 3 blocks of 1024. The float32 sum of the last block may be more than its float64 running sum,
    # which would put the largest u behind its end: onto token 2999, which has no probability, or onto the padding.
    torch.manual_seed(0)
    p = torch.softmax(torch.randn(1000, 3000), -1)
    p[:, 2999] = 0
    drawn = draw(p, torch.full((1000,), 1 - 2.0**-53, dtype=torch.float64))
    assert (drawn < 2999).all()
    assert (drawn > 2990).all()  # and yet one of the last


def test_rare_tokens_of_a_large_vocabulary_keep_their_share():
    # One token holds all but 2^-12 of the probability, 2^17 others share the rest: 2^-29 each. A float32 running sum
    # near 1 moves in steps of 2^-24, so that tokens and even blocks of them would get wrong shares; here u three
    # quarters into the tail finds the token there, up to what rounding the large probability to float32 moves.
    tail = 2**17
    p = torch.cat([torch.tensor([1 - 2.0**-12]), torch.full((tail,), 2.0**-29)])[None]
    u = torch.tensor([1 - 2.0**-14], dtype=torch.float64)
    assert abs(draw(p, u).item() - tail * 3 / 4) < tail * 1e-3
