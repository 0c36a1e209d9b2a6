"""Controls pay for one thing and log everything; a user's function is checked before training."""

from __future__ import annotations

import sys
import textwrap

import pytest

from rewards import Reward, Score, make_reward, self_test

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
    assert make_reward("multi_signal", weights=(3, 2, 1))(RIGHT, "5").total == 6.0
    assert make_reward("verify_only", weights=(3, 2, 1))(RIGHT, "5").total == 1.0


def coins(seed: int, texts: list[str], **options) -> list[float]:
    return [score.total for score in make_reward("random", seed=seed, **options).score_batch(texts, ["5"] * len(texts))]


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


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        textwrap.dedent(
            """
            import time
            import numpy as np
            import torch
            def length(completion, ground_truth):
                return {"short": float(len(completion) < 10), "has_truth": str(ground_truth) in completion}
            def number(completion, ground_truth): return 1.0
            def nothing(completion, ground_truth): return {}
            def text(completion, ground_truth): return {"a": "1"}
            def huge(completion, ground_truth): return {"a": 1e300}
            def leaving(completion, ground_truth): raise SystemExit(3)
            def scalars(completion, ground_truth):
                return {"numpy": np.float32(0.5), "torch": torch.tensor(2), "bool": np.bool_(True), "int": True}
            def slow(completion, ground_truth):
                time.sleep(0.3 if completion == "slow" else 0)
                return {"a": float("nan") if completion == "nan" else 1.0}
            def infinite(completion, ground_truth): return {"a": float("inf")}
            def crashing(completion, ground_truth): return {"a": 1 / len(completion)}
            def changing(completion, ground_truth): return {"a" if completion else "b": 1.0}
            value = 3
            """
        )
    )
    (tmp_path / "no_python.py").write_text("def f(:")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_rewards"
    sys.modules.pop("my_rewards", None)


def test_a_function_of_the_users_own(module):
    reward = make_reward(f"{module}:length")
    assert isinstance(reward, Reward)
    assert reward("5", "5") == Score(2.0, {"short": 1.0, "has_truth": 1.0}, None, None, "unverified")
    assert [score.total for score in reward.score_batch(["a" * 20, "5"], ["5", "6"])] == [0.0, 1.0]
    self_test(reward)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_rewards:number", "returned 1.0, need a dict"),
        ("my_rewards:nothing", "need a dict"),
        ("my_rewards:text", "signal 'a' is '1', need a finite number"),
        ("my_rewards:infinite", "need a finite number"),
        ("my_rewards:huge", "signal 'a' is 1e\\+300, need a finite number, at most 1e\\+06"),
        ("my_rewards:leaving", 'the completion "" .* SystemExit: 3'),
        ("my_rewards.py:length", "cannot be imported: ModuleNotFoundError"),
        ("my_rewards:crashing", 'the completion "" with ground truth .* ZeroDivisionError'),
        ("no_python:f", "cannot be imported: SyntaxError"),
        ("my_rewards:missing", "no attribute 'missing'"),
        ("my_rewards:value", "is 3 and no function"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("nonsense", "unknown reward 'nonsense': one of multi_signal"),
    ],
)
def test_one_clear_error_before_training(module, name, message):
    with pytest.raises(ValueError, match=message):
        make_reward(name)


def test_scalars_of_numpy_and_torch_are_numbers(module):
    score = make_reward(f"{module}:scalars")("", "")
    assert score.signals == {"numpy": 0.5, "torch": 2.0, "bool": 1.0, "int": 1.0}
    assert {type(value) for value in score.signals.values()} == {float}


def test_the_completion_that_failed_is_named(module, monkeypatch, capsys):
    monkeypatch.setattr("rewards.controls.NOTICE_S", 0.05)
    reward = make_reward(f"{module}:slow")
    assert [score.total for score in reward.score_batch(["a", "slow"], ["5"] * 2)] == [1.0, 1.0]
    assert capsys.readouterr().err == "still in my_rewards:slow, completion 1\n"
    with pytest.raises(ValueError, match="completion 2 \"nan\" with ground truth '6': ValueError: signal 'a' is nan"):
        reward.score_batch(["a", "a", "nan"], ["5", "5", "6"])


def test_a_call_may_be_limited(module):
    reward = make_reward(f"{module}:slow", call_limit_s=0.1)
    assert reward("a", "5").total == 1.0
    with pytest.raises(ValueError, match=r'completion 1 "slow" .* no result after 0\.1 s'):
        reward.score_batch(["a", "slow"], ["5"] * 2)


def test_a_coin_that_needs_a_box():
    """With the same seed the coins are the same, and count only where there is exactly one box."""
    texts = [RIGHT, BARE, "no box", BARE + BARE] * 20
    free, gated = coins(1, texts), coins(1, texts, random_needs_box=True)
    assert gated == [coin if index % 4 < 2 else 0.0 for index, coin in enumerate(free)]
    assert sum(gated) > 0


def test_signals_may_not_change_on_the_way(module):
    with pytest.raises(ValueError, match="signals"):
        make_reward(f"{module}:changing")("text", "5")


def test_every_name_is_built_and_unknown_options_are_refused():
    for name in ("multi_signal", "verify_only", "format_only", "random"):
        reward = make_reward(name)
        assert isinstance(reward, Reward)
        reward.load_state_dict(reward.state_dict())
        reward.close()
        with pytest.raises(ValueError, match="takes no options"):
            make_reward(name, tempo=3)
    with pytest.raises(ValueError, match="keeps no state"):
        make_reward("multi_signal").load_state_dict({"seen": 3})
