"""Seconds of real training steps, by phase.

    python benchmarks/step.py --model DIR --problems 16 --group 8 --tokens 64 --steps 5 [--ignore-eos]
                              [--engine torch|vllm] [--json]

The first step warms up and is not counted; every figure is the median over the others. --model names a model folder or
a size to make one of (see benchmarks/common.py).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import common
from grpo.advantage import compute_advantages
from grpo.config import Config, parse
from grpo.learner import Learner
from grpo.packing import samples
from grpo.policy import load_policy
from grpo.problems import draw, load_problems
from grpo.rollout import Sampling, decode, make_engine, rollout, score
from grpo.run.terminal import Clock
from rewards import make_reward


class Loop:
    """train.py's loop without what it records."""

    def __init__(self, config: Config, ignore_eos: bool):
        self.config, self.clock = config, Clock()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.policy = load_policy(config, device)
        self.problems = load_problems(
            config.data, self.policy.tokenizer, config.prompt, config.rollout.max_prompt_tokens, config.data_dir
        )
        self.reward = make_reward("multi_signal", workers=1)
        self.learner = Learner(
            self.policy,
            config.learner,
            temperature=config.rollout.temperature,
            max_new_tokens=config.rollout.max_new_tokens,
            mismatch_limit=config.rollout.mismatch_limit,
            steps=config.steps,
        )
        self.engine = make_engine(config, device)
        self.engine.sync(self.policy)
        self.sampling = Sampling(config.rollout.max_new_tokens, config.rollout.temperature, ignore_eos=ignore_eos)

    def step(self, step: int) -> dict[str, float]:
        """Seconds by phase, and the completion tokens."""
        config = self.config
        with self.clock("rollout"):
            drawn = draw(self.problems, config.rollout.problems, config.seed, step)
            groups = rollout(self.engine, drawn, config.rollout.group, self.sampling, config.seed, step)
        with self.clock("reward"):
            texts = decode(self.policy.tokenizer, groups)
            scores = score(self.reward, groups, texts)
            advantages = compute_advantages(scores, self.reward.weights, config.learner.advantage)
        with self.clock("learn"):
            self.engine.sleep()
            self.learner.update(samples(groups, advantages, config.learner.truncated))
        with self.clock("sync"):
            self.engine.sync(self.policy)
        tokens = sum(len(completion.ids) for group in groups for completion in group.completions)
        return self.clock.read() | {"tokens": tokens}

    def close(self) -> None:
        self.engine.close()
        self.reward.close()


def make_settings(model: str, args: argparse.Namespace) -> Config:
    return parse(
        {"model": model, "data": str(common.PROBLEMS), "prompt": "plain", "steps": args.steps + 1},
        {
            "rollout.problems": args.problems,
            "rollout.group": args.group,
            "rollout.max_new_tokens": args.tokens,
            "rollout.engine": args.engine,
            "learner.token_budget": args.token_budget,
            "learner.logit_chunk": args.logit_chunk,
        },
    )


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--model", required=True)
    cli.add_argument("--problems", type=int, default=16)
    cli.add_argument("--group", type=int, default=8)
    cli.add_argument("--tokens", type=int, default=64)
    cli.add_argument("--steps", type=int, default=5)
    cli.add_argument("--ignore-eos", action="store_true")
    cli.add_argument("--engine", choices=["torch", "vllm"], default="torch")
    cli.add_argument("--token-budget", type=int, default=16384)
    cli.add_argument("--logit-chunk", type=int, default=128)
    cli.add_argument("--threads", type=int, default=1)
    cli.add_argument("--json", action="store_true")
    return cli


def main(argv: list[str]) -> dict[str, float]:
    args = parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        model = args.model if args.model not in common.SIZES else str(common.make_model(args.model, Path(folder)))
        loop = Loop(make_settings(model, args), args.ignore_eos)
        steps = [loop.step(i + 1) for i in range(args.steps + 1)][1:]
        loop.close()
    figures = common.medians(steps)
    figures["tokens_per_second"] = figures["tokens"] / figures["time/step"]
    figures["peak_gib"] = common.peak_gib()
    common.show(figures, args.json)
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
