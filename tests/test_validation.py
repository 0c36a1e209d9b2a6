"""Held-out accuracy during training: shares by hand, seeds that belong to the problem."""

from __future__ import annotations

import json
from contextlib import closing
from importlib.util import find_spec
from types import SimpleNamespace

import psutil
import pytest
import torch

from grpo.engines.base import SamplingParams
from grpo.engines.torch_engine import TorchEngine
from grpo.errors import UserError
from grpo.evaluation.benchmarks import held_out_problems
from grpo.policy import load_policy
from grpo.rollout import request_seed, rollout
from grpo.run.clock import Clock
from grpo.settings import build
from grpo.types import Problem
from grpo.validation import Validator, summarise
from rewards import make_reward


def test_shares_by_hand():
    form = "<think>1+1</think>\\boxed{{{}}}<reflection>{}</reflection>"
    texts = [
        form.format(2, "correct"),  # verdict right
        form.format(3, "wrong"),  # verdict right: wrong
        r"\boxed{3}<reflection>correct</reflection>",  # verdict wrong
        r"\boxed{3}",  # silent: never counted as accurate, though it did not say "correct"
        "<reflection>wrong</reflection>",  # no answer, so there is nothing to be right about
    ]
    with closing(make_reward("multi_signal")) as reward:
        scores = reward.score_batch(texts, ["2"] * 5)
    assert summarise(scores) == pytest.approx(
        {
            "accuracy": 1 / 5,
            "mean_score": 1 / 5,
            "format_rate": 2 / 5,
            "verdict_accuracy": 2 / 5,
            "wrong_verdict_rate": 2 / 5,
        }
    )


def test_partial_credit_is_not_accuracy():
    """A task's own scorer gives 0.7 to an answer that is not right."""
    rows = [{"score_answer": {"2": 1.0, "3": 0.7}.__getitem__}] * 4
    with closing(make_reward("multi_signal")) as reward:
        scores = reward.score_batch([f"\\boxed{{{answer}}}" for answer in (2, 3, 3, 3)], ["2"] * 4, rows)
    summary = summarise(scores)
    assert (summary["accuracy"], summary["mean_score"]) == (1 / 4, pytest.approx(3.1 / 4))


def test_the_seed_of_a_row_is_its_own_wherever_it_stands():
    asked = []
    engine = SimpleNamespace(generate=lambda requests, sampling: asked.extend(requests) or [()] * len(requests))
    rollout(engine, [Problem(index, "p", (7, index), str(index)) for index in (5, 3, 9)], 1, SamplingParams(2), 1)
    assert asked[1].seed == request_seed(1, 3)
    assert len({request.seed for request in asked} | {request_seed(2, 3)}) == 4


@pytest.mark.parametrize(("verifier", "verify"), [("box", 0.0), ("last_number", 1.0)])
def test_training_and_held_out_figures_read_the_same_answer(verifier, verify):
    """ "It is 5." has no box; its last number is right."""
    config = build("cpu", {"reward.verifier": verifier, "eval.data": "none", "eval.every": 0, "eval.test": "none"})
    validator = Validator(config, None, {}, [], clock=None)
    trained = make_reward(**config.reward.model_dump())
    for judge in (validator.reward, trained):
        assert judge("It is 5.", "5").verify == verify
        judge.close()


def held_out(tmp_path, **options: str) -> tuple[Validator, TorchEngine]:
    config = build("cpu", {"eval.limit": "2", **{key.replace("__", "."): value for key, value in options.items()}})
    policy = load_policy(config, torch.device("cpu"))
    engine = TorchEngine()
    engine.sync(policy)
    return Validator(config, policy.tokenizer, *held_out_problems(config, policy.tokenizer), Clock()), engine


def test_several_sets_have_figures_each(tmp_path, data_dir):
    """The first under the plain names, a further one under its own; greedy alone where that is set."""
    sets = "arithmetic-validation,math500,data/arithmetic/test.parquet"
    judged, engine = held_out(
        tmp_path, eval__data=sets, eval__sampling="greedy", data_dir=str(data_dir), rollout__max_prompt_tokens="999"
    )
    shares = {"greedy_accuracy", "format_rate", "verdict_accuracy", "wrong_verdict_rate"}
    figures = judged.evaluate(engine, step=0)
    assert set(figures) == {f"eval/{name}{share}" for name in ("", "math500/", "test/") for share in shares}
    assert judged.evaluate(engine, step=1) == {}  # every 6 steps


@pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="the extra `tasks` is not installed")
def test_a_task_with_its_own_scorer_has_a_mean_score_beside_the_accuracy(tmp_path):
    data = {"eval__data": "reasoning_gym:gcd?size=3", "rollout__max_prompt_tokens": "400"}
    validator, engine = held_out(tmp_path, **data, eval__sampling="greedy")
    figures = validator.evaluate(engine, step=0)
    assert {"eval/greedy_accuracy", "eval/greedy_mean_score", "eval/format_rate"} < figures.keys()
    assert figures["eval/greedy_accuracy"] <= figures["eval/greedy_mean_score"]


def test_held_out_prompts_that_do_not_fit_are_left_out_and_counted(tmp_path, capsys):
    problems = tmp_path / "own.jsonl"
    rows = [{"problem": text, "answer": "2"} for text in ("1+1", "1+" * 60 + "1", "2")]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged, _ = held_out(tmp_path, eval__data=str(problems), eval__limit="3")
    assert [problem.index for problem in judged.sets["own"]] == [0, 2]  # 64 tokens is the limit
    assert "own.jsonl: 1 of 3 prompts are longer than 64 tokens" in capsys.readouterr().err
    with pytest.raises(UserError, match="3 of 3 prompts are longer than 1 tokens"):
        held_out(tmp_path, eval__data=str(problems), eval__limit="3", rollout__max_prompt_tokens="1")
    problems.write_text(problems.read_text() + '{"problem": "3"}\n')
    with pytest.raises(UserError, match=r"own.jsonl: 1 of 4 rows cannot be used \(line 4: no ground truth"):
        held_out(tmp_path, eval__data=str(problems), eval__limit="4")


def test_the_verifier_has_the_runs_limits_and_ends_with_the_run():
    """An answer that needs algebra starts a server; an answer must not time out here and be right in training."""
    config = build("cpu", {"reward.workers": 3, "reward.timeout_s": 4.5})
    with closing(Validator(config, None, {}, [], clock=None)) as validator:
        verifier = validator.reward.verifier
        assert (verifier.workers, verifier.limits[0]) == (3, 4.5)
        assert validator.reward(r"\boxed{\frac{\sqrt{8}}{2}}", r"\sqrt{2}").verify == 1.0
        server = verifier._server.pid
    assert not psutil.pid_exists(server)
