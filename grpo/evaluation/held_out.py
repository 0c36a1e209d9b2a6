"""What the model can do on problems it is not trained on, while it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from grpo.config import Config
from grpo.policy import Policy
from grpo.problems import load_problems
from grpo.rollout import Engine, Sampling, request_seed
from grpo.run.terminal import Clock
from grpo.types import Completion, Problem, Request
from rewards import Reward, Score, make_reward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHARES = ("format_rate", "verdict_accuracy", "wrong_verdict_rate")


class HeldOut:
    """Accuracy sampled as in training and greedy, on the validation problems (the curve) and the test problems."""

    def __init__(self, config: Config, policy: Policy, clock: Clock):
        self.config, self.tokenizer, self.clock = config, policy.tokenizer, clock
        self.judge = make_reward(
            "multi_signal", verifier=config.reward.verifier
        )  # whatever the run is paid for, it is judged on the truth
        self.validation_problems, self.test_problems = self._load(config.eval.data), self._load(config.eval.test)

    def validation(self, engine: Engine, step: int) -> dict[str, float]:
        """`eval/*` where step is one to evaluate: 0, every `eval.every` and the last; else nothing."""
        every = self.config.eval.every
        if not every or (step % every and step != self.config.steps):
            return {}
        with self.clock("eval"):
            return {f"eval/{name}": value for name, value in self._measure(engine, self.validation_problems).items()}

    def test(self, engine: Engine) -> dict[str, float]:
        return self._measure(engine, self.test_problems)

    def _load(self, path: str | None) -> list[Problem]:
        if path is None:
            return []
        config = self.config
        problems = load_problems(path, self.tokenizer, config.prompt, config.rollout.max_prompt_tokens, config.data_dir)
        return problems[: config.eval.limit]

    def _measure(self, engine: Engine, problems: list[Problem]) -> dict[str, float]:
        if not problems:
            return {}
        rollout, seed = self.config.rollout, self.config.seed
        sampled, greedy = (
            evaluate_problems(
                engine, self.tokenizer, problems, self.judge, Sampling(rollout.max_new_tokens, temperature), seed
            )
            for temperature in (rollout.temperature, 0.0)
        )
        accuracy = {"sampled_accuracy": sampled["accuracy"], "greedy_accuracy": greedy["accuracy"]}
        return accuracy | {name: sampled[name] for name in SHARES}


def evaluate_problems(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    reward: Reward,
    sampling: Sampling,
    seed: int,
) -> dict[str, float]:
    """One completion a problem, scored with a reward. The engine has already been synced. For use while training.

    Returns shares in [0, 1], see `summarise`. `sampling.temperature` 0 is the greedy figure, 1 the sampled one.
    """
    if not problems:
        raise ValueError("no problems to evaluate: the list is empty")
    groups = ask(engine, problems, 1, sampling, seed)
    texts = [tokenizer.decode(group[0].ids, skip_special_tokens=True) for group in groups]
    return summarise(reward.score_batch(texts, [problem.ground_truth for problem in problems]))


def summarise(scores: Sequence[Score]) -> dict[str, float]:
    """Shares over all completions: a missing verdict counts as not accurate, so that silence never looks good.

    accuracy: the last complete box holds the answer. format_rate: the reward's format signal, or the share with a
    complete box where the reward has no such signal. verdict_accuracy: the reflection's verdict agrees with the truth.
    wrong_verdict_rate: the verdict says "wrong", whatever the truth.
    """
    counts = {
        "accuracy": sum(score.outcome == "correct" for score in scores),
        "format_rate": sum(score.signals.get("format", float(score.answer is not None)) for score in scores),
        "verdict_accuracy": sum(
            score.verdict is not None and (score.verdict == "correct") == (score.outcome == "correct")
            for score in scores
        ),
        "wrong_verdict_rate": sum(score.verdict == "wrong" for score in scores),
    }
    return {name: count / len(scores) for name, count in counts.items()}


def ask(
    engine: Engine, problems: Sequence[Problem], samples: int, sampling: Sampling, seed: int
) -> list[list[Completion]]:
    """[problems][samples]. A completion follows from the seed, its problem's row number and its place in the row."""
    requests = [Request(problem.prompt_ids, samples, request_seed(seed, problem.index)) for problem in problems]
    return engine.generate(requests, sampling)
