"""GRPO, top to bottom: sample, score, compare within the group, step, hand the new weights to the sampler.

python train.py --preset cpu      # built-in model, one addition problem, two minutes on a laptop
python train.py --preset l4       # Qwen2.5-Math-1.5B with LoRA on 24 GB
python train.py --preset h100     # all weights on 80 GB
"""

from __future__ import annotations

import sys
import time

import torch
from rewards.summary import summarize

from grpo import checkpoint, experience
from grpo.clock import Clock
from grpo.config import Command, Config, parse_args
from grpo.errors import UserError
from grpo.evaluate import evaluate_problems
from grpo.learner import Learner
from grpo.plot import plot_run
from grpo.policy import load_policy
from grpo.problems import draw, load_problems
from grpo.rollout import Sampling, make_engine, rollout
from grpo.run import Run
from rewards import make_reward, self_test


def train(config: Config, resume: str | None = None) -> Run:
    device = choose_device(config)
    policy = load_policy(config, device)
    problems = load_problems(
        config.data, policy.tokenizer, config.prompt, config.rollout.max_prompt_tokens, config.data_dir
    )
    draw(problems, config.rollout.problems, config.seed, step=1)  # fails now rather than after loading the engine
    reward = make_reward(config.reward.name, weights=(config.reward.alpha, config.reward.beta, config.reward.gamma))
    self_test(reward, sorted({problem.ground_truth for problem in problems}))
    evaluate = Evaluation(config, policy)
    learner = Learner(
        policy,
        config.learner,
        temperature=config.rollout.temperature,
        max_new_tokens=config.rollout.max_new_tokens,
        gap_limit=config.rollout.gap_limit,
        steps=config.steps,
    )
    engine = make_engine(config, device)
    engine.sync(policy)
    sampling = Sampling(config.rollout.max_new_tokens, config.rollout.temperature)

    run, clock, started = Run.create(config), Clock(), time.perf_counter()
    before = evaluate.test(engine)
    run.log({"step": 0} | evaluate.validation(engine))

    for step in range(1, config.steps + 1):
        with clock("rollout"):
            drawn = draw(problems, config.rollout.problems, config.seed, step)
            groups = rollout(engine, drawn, config.rollout.group, sampling, config.seed, step)
        with clock("reward"):
            texts = experience.decode(policy.tokenizer, groups)
            scores = experience.score(reward, groups, texts)
            advantages = experience.compare(scores, reward.weights, config.learner.advantage)
        with clock("learn"):
            engine.sleep()
            metrics = learner.update(experience.samples(groups, advantages, config.learner.truncated))
        with clock("sync"):
            engine.sync(policy)

        last = step == config.steps
        if config.eval.every and (step % config.eval.every == 0 or last):
            with clock("eval"):
                metrics |= evaluate.validation(engine)
        if last or (config.checkpoint.every and step % config.checkpoint.every == 0):
            checkpoint.save(run.checkpoints, step, policy, learner, reward, config.checkpoint.keep)
        run.save_completions(step, groups, texts, scores, advantages)
        run.log({"step": step} | summarize(scores) | experience.completion_metrics(groups) | metrics | clock.read())

    after = evaluate.test(engine)
    run.finish({"before": before, "after": after, "steps": config.steps, "seconds": time.perf_counter() - started})
    plot_run(run.folder)
    return run


class Evaluation:
    """Held-out accuracy, sampled as in training and greedy, on the validation and the test problems."""

    def __init__(self, config: Config, policy):
        self.config, self.tokenizer = config, policy.tokenizer
        self.judge = make_reward("multi_signal")  # whatever the run is paid for, it is judged on the truth
        self.problems = {name: self._load(name) for name in ("data", "test")}

    def _load(self, name: str):
        path = getattr(self.config.eval, name)
        if path is None:
            return []
        config = self.config
        loaded = load_problems(path, self.tokenizer, config.prompt, config.rollout.max_prompt_tokens, config.data_dir)
        return loaded[: config.eval.limit]

    def _measure(self, engine, problems) -> dict[str, float]:
        if not problems:
            return {}
        rollout = self.config.rollout
        sampled, greedy = (
            evaluate_problems(
                engine,
                self.tokenizer,
                problems,
                self.judge,
                Sampling(rollout.max_new_tokens, temperature),
                self.config.seed,
            )
            for temperature in (rollout.temperature, 0.0)
        )
        return {
            "sampled_accuracy": sampled["accuracy"],
            "greedy_accuracy": greedy["accuracy"],
            **{name: sampled[name] for name in ("format_rate", "verdict_accuracy", "wrong_verdict_rate")},
        }

    def validation(self, engine) -> dict[str, float]:
        return {f"eval/{name}": value for name, value in self._measure(engine, self.problems["data"]).items()}

    def test(self, engine) -> dict[str, float]:
        return self._measure(engine, self.problems["test"])


def choose_device(config: Config) -> torch.device:
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "device is cuda but torch sees no CUDA device; use --device cpu, or --preset cpu for the built-in model"
        )
    return torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")


def default_preset() -> str:
    """What fits this machine, when no preset is named."""
    if not torch.cuda.is_available():
        return "cpu"
    return "h100" if torch.cuda.get_device_properties(0).total_memory > 60e9 else "l4"


def main(argv: list[str]) -> int:
    try:
        command: Command = parse_args(argv, default_preset())
        run = train(command.config, command.resume)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"run folder  {run.folder}\nplot        {run.folder / 'plot.png'}\nmodel       {checkpoint.checkpoints(run.checkpoints)[-1]}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
