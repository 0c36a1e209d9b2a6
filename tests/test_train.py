"""The loop itself: what it opens, it closes."""

from __future__ import annotations

import pytest
from small_runs import arguments

import train
from grpo.engines.torch_engine import TorchEngine


@pytest.mark.parametrize("fails", [None, "generate", "sync"])
def test_engine_and_reward_are_closed_however_the_run_ends(fails: str | None, tmp_path, monkeypatch):
    closed = []

    def load_reward(*given, load=train.load_reward, **settings):
        reward = load(*given, **settings)
        monkeypatch.setattr(reward, "close", lambda: closed.append("reward"))
        return reward

    def stop(*_):
        raise RuntimeError("no more")

    monkeypatch.setattr(train, "load_reward", load_reward)
    monkeypatch.setattr(train, "prove", lambda *_: "")  # it has an engine of its own
    monkeypatch.setattr(TorchEngine, "close", lambda self: closed.append("engine"))
    if fails is None:
        assert train.main(arguments(tmp_path, steps=1)) == 0
    else:
        monkeypatch.setattr(TorchEngine, fails, stop)
        with pytest.raises(RuntimeError, match="no more"):
            train.main(arguments(tmp_path, steps=1))
    assert closed == ["engine", "reward"]
