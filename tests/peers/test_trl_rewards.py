"""TRL's own reward functions run unchanged, and pay what TRL's trainer would (`make test-peers`)."""

from __future__ import annotations

import importlib

import pytest

from rewards import load_reward

pytestmark = pytest.mark.peers
COMPLETIONS = [
    r"<think>\frac13 is right</think>\boxed{\frac{1}{3}}",
    r"It is \boxed{\frac{1}{2}}",
    "<think>one</think><think>two</think> nothing",
    "",
]
TRUTHS = [r"\frac{1}{3}", r"\frac{1}{3}", r"\frac{1}{3}", "a text that no parser reads as an answer \\"]
ROWS = [
    {"messages": [{"role": "user", "content": "q"}], "prompt": "q", "completion_ids": [1] * n} for n in (50, 90, 99, 3)
]
FUNCTIONS = {
    "think_format_reward": "think_format_reward",
    "accuracy_reward": "accuracy_reward",
    "overlong": "get_soft_overlong_punishment(100, 20)",
    "repetition": "get_repetition_penalty_reward(2, -1.0)",
    "cosine": "get_cosine_scaled_reward(max_len=100)",
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_trl_pays_what_trl_pays(name, tmp_path, monkeypatch):
    """TRL calls it with chat messages, ids and the column `solution`, and counts None as 0 (nansum)."""
    pytest.importorskip("trl")
    made_by = FUNCTIONS[name].partition("(")[0]
    (tmp_path / "of_trl.py").write_text(f"from trl.rewards import {made_by}\n{name} = {FUNCTIONS[name]}\n")
    monkeypatch.syspath_prepend(tmp_path)
    function = getattr(importlib.reload(importlib.import_module("of_trl")), name)
    conversations = [[{"role": "assistant", "content": text}] for text in COMPLETIONS]
    paid = function(
        prompts=[row["messages"] for row in ROWS],
        completions=conversations,
        completion_ids=[row["completion_ids"] for row in ROWS],
        solution=TRUTHS,
    )
    reward = load_reward(ROWS[0], 0, "cpu", name=f"of_trl:{name}")
    scores = reward.score_batch(COMPLETIONS, TRUTHS, ROWS)
    assert [score.total for score in scores] == [value or 0.0 for value in paid]
    assert len(set(paid)) > 1
