"""What the model can do on problems it is not trained on, while it is trained."""

from __future__ import annotations

from grpo.config import Config
from grpo.evaluation.evaluate import evaluate_problems
from grpo.policy import Policy
from grpo.problems import load_problems
from grpo.rollout import Engine, Sampling
from grpo.run.terminal import Clock
from grpo.types import Problem
from rewards import make_reward

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
