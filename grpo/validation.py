"""Held-out accuracy during training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from statistics import fmean
from typing import TYPE_CHECKING

from data.tasks import item_of
from grpo.engines.base import Engine, SamplingParams
from grpo.rollout import decode, rollout, score
from grpo.settings import Config
from grpo.types import Problem
from rewards import Score, make_reward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Validator:
    """Accuracy on the validation sets (the curve) and on the test problems, whatever reward the run trains on.

    `reward.verifier` selects the answer, as in training.
    """

    def __init__(
        self,
        config: Config,
        tokenizer: PreTrainedTokenizerBase,
        sets: Mapping[str, list[Problem]],
        test_problems: list[Problem],
        clock: Callable[[str], AbstractContextManager],
    ):
        """sets: name -> validation problems. clock: `with clock("eval"):` measures the time."""
        self.config = config
        self.tokenizer = tokenizer
        self.clock = clock
        self.sets = sets
        self.test_problems = test_problems
        reward = config.reward
        self.reward = make_reward(
            "multi_signal", verifier=reward.verifier, workers=reward.workers, timeout_s=reward.timeout_s
        )

    @property
    def held_out(self) -> dict[str, list[Problem]]:
        """The validation sets, and the test problems as eval.test."""
        return {**self.sets, "eval.test": self.test_problems}

    def close(self) -> None:
        """Ends the verifier's workers."""
        self.reward.close()

    def evaluate(self, engine: Engine, step: int) -> dict[str, float]:
        """`eval/*` at step 0, every `eval.every` steps and at the last step; else nothing.

        The first set has plain names (eval/greedy_accuracy), a further set its label in them (eval/aime24/format_rate).
        """
        every = self.config.eval.every
        if not every or (step % every and step != self.config.steps):
            return {}
        figures: dict[str, float] = {}
        with self.clock("eval"):
            for index, (name, problems) in enumerate(self.sets.items()):
                prefix = f"eval/{name}/" if index else "eval/"
                figures |= {prefix + key: value for key, value in self._measure(engine, problems).items()}
        return figures

    def test(self, engine: Engine) -> dict[str, float]:
        """The figures of the test problems; nothing without eval.test."""
        return self._measure(engine, self.test_problems)

    def _measure(self, engine: Engine, problems: list[Problem]) -> dict[str, float]:
        """The accuracy of each way of sampling, and the other shares of the first way.

        With the mean score of each way where a task's own scorer may give partial credit.
        """
        if not problems:
            return {}
        config = self.config
        figures: dict[str, float] = {}
        shares: dict[str, float] = {}
        temperatures = {"sampled": config.rollout.temperature} if config.eval.sampling == "both" else {}
        for way, temperature in (temperatures | {"greedy": 0.0}).items():
            sampling = SamplingParams(config.rollout.max_new_tokens, temperature)
            groups = rollout(engine, problems, 1, sampling, config.seed)
            scores = score(self.reward, groups, decode(self.tokenizer, groups))
            summary = summarise([only for (only,) in scores])
            figures[f"{way}_accuracy"] = summary.pop("accuracy")
            mean_score = summary.pop("mean_score")
            if any(item_of(problem.extra) for problem in problems):
                figures[f"{way}_mean_score"] = mean_score
            shares = shares or summary
        return figures | shares


def summarise(scores: Sequence[Score]) -> dict[str, float]:
    """Shares of all completions. A missing verdict counts as not accurate.

    accuracy: the answer is right. mean_score: the mean of the verify signal, which differs from accuracy by partial
    credit alone. format_rate: the format signal. verdict_accuracy: there is an answer and a true verdict on it.
    wrong_verdict_rate: the verdict is "wrong", whatever the truth.
    """
    return {
        "accuracy": fmean(score.correct for score in scores),
        "mean_score": fmean(score.verify for score in scores),
        "format_rate": fmean(score.signals["format"] for score in scores),
        "verdict_accuracy": fmean(score.signals["reflect"] for score in scores),
        "wrong_verdict_rate": fmean(score.verdict == "wrong" for score in scores),
    }
