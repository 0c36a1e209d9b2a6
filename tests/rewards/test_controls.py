"""Controls pay for one thing and log everything."""

from __future__ import annotations

import pytest

from rewards import Reward, make_reward

RIGHT = r"<think>a</think>\boxed{5}<reflection>correct</reflection>"
WRONG = r"<think>a</think>\boxed{6}<reflection>wrong</reflection>"
BARE = r"\boxed{5}"


@pytest.mark.parametrize(
    ("name", "totals"),
    [
        ("multi_signal", [2.0, 1.0, 1.0]),  # verify + format / 2 + reflect / 2
        ("verify_only", [1.0, 0.0, 1.0]),
        ("format_only", [1.0, 1.0, 0.0]),
    ],
)
def test_what_each_pays_for(name, totals):
    reward = make_reward(name)
    scores = reward.score_batch([RIGHT, WRONG, BARE], ["5"] * 3)
    assert [score.total for score in scores] == totals
    assert [score.outcome for score in scores] == ["correct", "wrong", "correct"], (
        "accuracy is logged under every control"
    )
    for score in scores:
        assert score.total == sum(reward.weights[name] * score.signals[name] for name in reward.weights)


def test_only_multi_signal_reads_the_weights():
    assert make_reward("multi_signal", alpha=3, beta=2, gamma=1)(RIGHT, "5").total == 6.0
    assert make_reward("verify_only", alpha=3, beta=2, gamma=1)(RIGHT, "5").total == 1.0


def coins(seed: int, texts: list[str], **options) -> list[float]:
    return [
        score.total for score in make_reward("random", seed=seed, random=options).score_batch(texts, ["5"] * len(texts))
    ]


def test_random_is_a_fair_seeded_coin_that_looks_at_nothing():
    texts = [RIGHT] * 2000
    tossed = coins(1, texts)
    assert tossed == coins(1, texts)
    assert tossed != coins(2, texts)
    assert set(tossed) == {0.0, 1.0}
    assert 900 < sum(tossed) < 1100  # 1000 +- 4.5 standard deviations of sqrt(2000 / 4) = 22
    assert coins(1, [RIGHT, WRONG])[0] == coins(1, [RIGHT, RIGHT])[0]


def test_random_goes_on_where_it_stopped():
    whole = coins(7, [RIGHT] * 20)
    first, second = make_reward("random", seed=7), make_reward("random", seed=7)
    head = [score.total for score in first.score_batch([RIGHT] * 12, ["5"] * 12)]
    second.load_state_dict(first.state_dict())
    assert head + [score.total for score in second.score_batch([RIGHT] * 8, ["5"] * 8)] == whole
    with pytest.raises(ValueError, match="seed 8"):
        make_reward("random", seed=8).load_state_dict(first.state_dict())


def test_a_coin_that_needs_a_box():
    """With the same seed the coins are the same, and count only where there is exactly one box."""
    texts = [RIGHT, BARE, "no box", BARE + BARE] * 20
    free, gated = coins(1, texts), coins(1, texts, needs_box=True)
    assert gated == [coin if index % 4 < 2 else 0.0 for index, coin in enumerate(free)]
    assert sum(gated) > 0


def test_every_name_is_built_and_unknown_options_are_refused():
    for name in ("multi_signal", "verify_only", "format_only", "random"):
        reward = make_reward(name)
        assert isinstance(reward, Reward)
        reward.load_state_dict(reward.state_dict())
        reward.close()
    with pytest.raises(TypeError, match="tempo"):
        make_reward("random", random={"tempo": 3})
    with pytest.raises(ValueError, match="keeps no state"):
        make_reward("multi_signal").load_state_dict({"seen": 3})
