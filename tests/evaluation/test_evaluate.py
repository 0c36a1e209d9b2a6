"""Evaluation during training: shares by hand, seeds that belong to the problem."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from grpo.config import build
from grpo.evaluation.held_out import HeldOut, evaluate_problems, summarise
from grpo.rollout import Sampling, load_reward, request_seed
from grpo.types import Completion, Problem


def score(outcome: str, verdict: str | None = None, answer: str | None = "1", **signals: float) -> SimpleNamespace:
    return SimpleNamespace(total=0.0, signals=signals, answer=answer, verdict=verdict, outcome=outcome)


def test_shares_by_hand():
    rows = [
        score("correct", "correct", format=1.0),  # verdict right
        score("wrong", "wrong", format=1.0),  # verdict right, says wrong
        score("wrong", "correct", format=0.0),  # verdict wrong
        score("wrong", None, format=0.0),  # silent: never counted as accurate, though it did not say "correct"
        score("no_answer", "wrong", format=0.0),  # no answer is not correct, so "wrong" is the right verdict
    ]
    assert summarise(rows) == pytest.approx(
        {"accuracy": 1 / 5, "format_rate": 2 / 5, "verdict_accuracy": 3 / 5, "wrong_verdict_rate": 2 / 5}
    )


def test_without_a_format_signal_a_complete_box_is_the_format():
    assert summarise([score("wrong"), score("no_answer", answer=None)])["format_rate"] == 0.5


class EchoEngine:
    """Answers each prompt with its own last id, and remembers what it was asked."""

    version = 1

    def generate(self, requests, sampling, progress=None):
        self.requests = list(requests)
        return [[Completion((request.prompt_ids[-1], 0), (0.0, 0.0), "stop")] for request in requests]


def test_each_completion_meets_its_own_ground_truth_and_special_tokens_are_gone():
    problems = [Problem(index, "p", (7, index), str(index)) for index in (5, 3, 9)]
    tokenizer = SimpleNamespace(
        decode=lambda ids, skip_special_tokens: "".join(str(i) for i in ids if i or not skip_special_tokens)
    )
    seen = []

    class Exact:
        def score_batch(self, completions, truths):
            seen.extend(zip(completions, truths, strict=True))
            return [score("correct" if c == t else "wrong") for c, t in zip(completions, truths, strict=True)]

    engine = EchoEngine()
    result = evaluate_problems(engine, tokenizer, problems, Exact(), Sampling(2), seed=1)
    assert seen == [("5", "5"), ("3", "3"), ("9", "9")]
    assert result["accuracy"] == 1.0
    # The seed of row 3 is the same wherever it stands in the list, and other rows and seeds have others.
    assert engine.requests[1].seed == request_seed(1, 3)
    assert len({request.seed for request in engine.requests} | {request_seed(2, 3)}) == 4


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        evaluate_problems(EchoEngine(), None, [], None, Sampling(2), seed=1)


@pytest.mark.parametrize(("verifier", "verify"), [("box", 0.0), ("last_number", 1.0)])
def test_training_and_held_out_figures_read_the_same_answer(verifier, verify):
    """ "It is 5." has no box; its last number is right."""
    config = build("cpu", {"reward.verifier": verifier, "eval.data": None, "eval.every": 0, "eval.test": None})
    held_out = HeldOut(config, SimpleNamespace(tokenizer=None), clock=None)
    trained = load_reward(config, [Problem(0, "p", (1,), "5")])
    for judge in (held_out.judge, trained):
        assert judge("It is 5.", "5").verify == verify
        judge.close()
