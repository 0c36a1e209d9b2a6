"""Before training: does the verifier work, in the workers that training uses and on the problems it trains on?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rewards.judge import read
from rewards.leaf import word
from rewards.numbers import number
from rewards.score import Reward
from rewards.verify import alternatives

_ALGEBRA = ((r"\frac{\sqrt{8}}{2}", r"\sqrt{2}", "correct"), (r"\frac{\sqrt{8}}{2}", r"\sqrt{3}", "wrong"))


def self_test(reward: Reward, ground_truths: Iterable[Any]) -> None:
    """Each ground truth verifies against itself and a mutated one does not; ValueError that says what failed.

    Rewards without a verifier (a user's own function) have nothing to test.
    """
    verifier = getattr(reward, "verifier", None)
    if verifier is None:
        return
    truths = list(dict.fromkeys(text for value in ground_truths for text in alternatives(value)))
    cases = list(_ALGEBRA)
    for truth in truths:
        cases += [(truth, truth, "correct"), (mutate(truth), truth, "wrong")]
    outcomes = verifier.pool.run([(answer, truth) for answer, truth, _ in cases])
    for (answer, truth, expected), outcome in zip(cases, outcomes, strict=True):
        if (outcome == "correct") != (expected == "correct"):
            raise ValueError(
                f"reward self-test: the answer {answer!r} against the ground truth {truth!r} gave {outcome!r}, "
                f"expected {expected!r}. The verifier does not work for this problem, so the run does not start."
            )


def mutate(truth: str) -> str:
    """An answer that is surely wrong for this ground truth and as easy to read."""
    cleaned = read(truth)[0]
    if (value := number(cleaned)) is not None:
        return str(value + 1)
    if word(cleaned) is not None:
        return "1"
    position = next((index for index in range(len(truth) - 1, -1, -1) if truth[index] in "0123456789"), None)
    if position is None:
        return f"{truth}+1" if "," not in truth else "1"
    return f"{truth[:position]}{(int(truth[position]) + 1) % 10}{truth[position + 1 :]}"
