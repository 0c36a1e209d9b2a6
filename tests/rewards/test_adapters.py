"""TRL's and verl's signatures."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from rewards import adapters, make_reward

RIGHT = r"<think>a</think>\boxed{5}<reflection>correct</reflection>"


def test_trl_texts_and_conversations():
    columns = {"prompts": ["1", "2"], "completion_ids": [[1], [2]], "ground_truth": ["5", "6"], "trainer_state": None}
    assert adapters.multi_signal(completions=[RIGHT, RIGHT], **columns) == [2.0, 0.5]
    conversations = [[{"role": "assistant", "content": RIGHT}]] * 2
    assert adapters.multi_signal(completions=conversations, **columns) == [2.0, 0.5]


def test_trl_with_any_reward_and_column():
    function = adapters.reward_func(make_reward("verify_only"), column="answer")
    assert function(completions=[RIGHT], answer=[5]) == [1.0]
    assert function.__name__ == "MultiSignalMathReward"
    with pytest.raises(ValueError, match=r"no column 'answer'.*\['solution'\]"):
        function(completions=[RIGHT], solution=["5"])


def test_verl_loads_the_file_by_its_path():
    """As verl does: reward.custom_reward_function.path and .name."""
    spec = importlib.util.spec_from_file_location("custom_module", Path(adapters.__file__))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result = module.compute_score(data_source="math", solution_str=RIGHT, ground_truth='["5"]', extra_info={"index": 0})
    assert result == {"score": 2.0, "acc": 1.0, "verify": 1.0, "format": 1.0, "reflect": 1.0}
    assert module.compute_score("math", "nothing", "5")["score"] == 0.0
