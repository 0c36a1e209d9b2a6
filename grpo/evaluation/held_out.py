"""What the model can do on problems it is not trained on, while it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from grpo.config import Config
from grpo.errors import UserError
from grpo.evaluation import benchmarks
from grpo.policy import Policy
from grpo.rollout import Engine, Sampling, request_seed
from grpo.run.terminal import Clock, say
from grpo.types import Completion, Problem, Request
from rewards import Reward, Score, make_reward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHARES = ("format_rate", "verdict_accuracy", "wrong_verdict_rate")


class HeldOut:
    """Accuracy on the validation sets (the curve) and the test problems, whatever the run itself is paid for.

    An answer is where `reward.verifier` says: a model that does not box is not judged by its boxes.
    """

    def __init__(self, config: Config, policy: Policy, clock: Clock):
        self.config, self.tokenizer, self.clock = config, policy.tokenizer, clock
        self.judge = make_reward("multi_signal", verifier=config.reward.verifier)
        self.sets = {benchmarks.label(name): self._load(name) for name in benchmarks.names(config.eval.data)}
        self.test_problems = self._load(config.eval.test) if config.eval.test else []

    def validation(self, engine: Engine, step: int) -> dict[str, float]:
        """`eval/*` where step is one to evaluate: 0, every `eval.every` and the last; else nothing.

        The first set's figures have the plain names (eval/greedy_accuracy); a further one's have its own in between
        (eval/aime24/greedy_accuracy).
        """
        every = self.config.eval.every
        if not every or (step % every and step != self.config.steps):
            return {}
        figures = {}
        with self.clock("eval"):
            for place, (name, problems) in enumerate(self.sets.items()):
                prefix = f"eval/{name}/" if place else "eval/"
                figures |= {prefix + key: value for key, value in self._measure(engine, problems).items()}
        return figures

    def test(self, engine: Engine) -> dict[str, float]:
        return self._measure(engine, self.test_problems)

    def _load(self, name: str) -> list[Problem]:
        """The set's problems; those whose prompt the sampler has no room for are left out, and the run says so."""
        config, longest = self.config, self.config.rollout.max_prompt_tokens
        problems = benchmarks.load(name, self.tokenizer, config.prompt, config.data_dir, config.eval.limit)
        kept = [problem for problem in problems if len(problem.prompt_ids) <= longest]
        if not kept:
            raise UserError(f"{name}: every prompt is longer than rollout.max_prompt_tokens {longest}; raise the limit")
        if left_out := len(problems) - len(kept):
            say(
                f"{name}: {left_out} of {len(problems)} problems are left out of the held-out figures: their prompts "
                f"are longer than rollout.max_prompt_tokens {longest}"
            )
        return kept

    def _measure(self, engine: Engine, problems: list[Problem]) -> dict[str, float]:
        """The accuracy of each way of sampling, and the other shares of the first of them."""
        if not problems:
            return {}
        config, shares = self.config, {}
        ways = {"sampled": config.rollout.temperature} if config.eval.sampling == "both" else {}
        for way, temperature in (ways | {"greedy": 0.0}).items():
            sampling = Sampling(config.rollout.max_new_tokens, temperature)
            shares[way] = evaluate_problems(engine, self.tokenizer, problems, self.judge, sampling, config.seed)
        first = next(iter(shares.values()))
        accuracy = {f"{way}_accuracy": found["accuracy"] for way, found in shares.items()}
        return accuracy | {name: first[name] for name in SHARES}


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
    complete box where the reward has no such signal. verdict_accuracy: there is an answer and a true verdict on it.
    wrong_verdict_rate: the verdict says "wrong", whatever the truth.
    """
    counts = {
        "accuracy": sum(score.outcome == "correct" for score in scores),
        "format_rate": sum(score.signals.get("format", float(score.answer is not None)) for score in scores),
        "verdict_accuracy": sum(
            score.verdict == ("correct" if score.outcome == "correct" else "wrong") and score.outcome != "no_answer"
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
