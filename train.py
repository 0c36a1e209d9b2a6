"""GRPO, top to bottom: sample, score, compare within the group, step, hand the new weights to the sampler.

python train.py --preset cpu      # built-in model, one addition problem, half a minute on a laptop
python train.py --preset l4       # Qwen2.5-Math-1.5B with LoRA on 24 GB
python train.py --preset h100     # all weights on 80 GB
"""

from __future__ import annotations

import sys

sys.path.insert(0, __file__.rpartition("/")[0] or ".")  # python -P leaves the script's folder out

from grpo.early import answer_early

answer_early(__name__)  # run as a command, it answers --help and wrong arguments before torch is imported

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import set_seed

from grpo.advantage import compute_advantages
from grpo.chat_template import describe_prompt
from grpo.cli import default_preset, parse_args
from grpo.engines.base import Engine, SamplingParams, choose_device, make_engine
from grpo.errors import one_line
from grpo.evaluation.benchmarks import held_out_problems, held_out_sets
from grpo.learner import Learner
from grpo.model_check import prove
from grpo.packing import to_training_samples
from grpo.plan.planner import planned_and_measured
from grpo.plan.preflight import check, plan_run
from grpo.policy import Policy, load_policy
from grpo.problems import training_problems
from grpo.report.plot import plot_run
from grpo.rollout import calibrate, decode, draw, replace_flat_groups, request_seed, reward_row, rollout, score
from grpo.run.checkpoint import TrainingState, is_finished
from grpo.run.display import next_commands
from grpo.run.interrupts import Interrupts
from grpo.run.resume import resolve_run
from grpo.run.run import Run
from grpo.settings import Config
from grpo.terminal import escape_control, notify
from grpo.types import Problem
from grpo.validation import Validator
from rewards import Reward, load_reward


def train(config: Config, resumed: Path | None = None, interrupts: Interrupts | None = None) -> Run:
    """Trains in a new run folder, or continues in the folder `resumed`."""
    with set_up(config, resumed, interrupts) as (config, run, policy, problems, engine, reward, learner, validator):
        clock = run.clock
        sampling = SamplingParams.of_training(config)
        for step in run.steps():
            set_seed(request_seed(config.seed, step) % 2**32)  # a reward's own draws repeat after a resume
            # 1. Sample: a group of completions for each problem.
            with clock("rollout"):
                drawn = draw(problems, config.rollout.prompts_per_step, config.seed, step)
                groups = rollout(engine, drawn, config.rollout.group_size, sampling, config.seed, step)
            # 2. Score each completion, then compare it with the others of its group.
            with clock("reward"):
                texts = decode(policy.tokenizer, groups)
                scores = score(reward, groups, texts)
            replaced = replace_flat_groups(  # none without rollout.resample_flat_groups
                engine, reward, policy.tokenizer, problems, groups, texts, scores, config, step, clock
            )
            advantages = compute_advantages(scores, reward.weights, config.learner.advantage)
            # 3. Step: raise the probability of what did better than its group.
            with clock("learn"):
                engine.sleep()
                learned = learner.update(to_training_samples(groups, advantages, config.learner.mask_truncated))
            run.record(step, groups, texts, scores, advantages, learned, replaced)  # from here on it cannot be lost
            # 4. Hand the new weights to the sampler.
            with clock("sync"):
                engine.sync(policy)
            # 5. Evaluate if due, log the step, save if due.
            run.log(validator.evaluate(engine, step))
        if figures := run.finish(after=validator.test(engine)):
            print(figures)
    return run


class Parts(NamedTuple):
    """The parts of a run that the loop works with. No setting of `config` is auto any more."""

    config: Config
    run: Run
    policy: Policy
    problems: list[Problem]
    engine: Engine
    reward: Reward
    learner: Learner
    validator: Validator


@contextmanager
def set_up(config: Config, resumed: Path | None, interrupts: Interrupts | None) -> Iterator[Parts]:
    """Plans the run, makes its parts and evaluates the untrained model, or restores the checkpoint of `resumed`.

    Closes everything on any exit.
    """
    torch.set_num_threads(config.threads or torch.get_num_threads())
    device = choose_device(config.device)
    plan = plan_run(config, device, held_out_sets(config), resumed)  # refuses a run that cannot fit
    config = plan.config
    run = Run(config, resumed, interrupts)
    set_seed(config.seed)
    run.progress.phase("loading the model")
    policy = load_policy(config, device)
    if policy.attention_note:
        notify(policy.attention_note)
    if plan.keep_sums:
        policy.keep_sums()
    notify(prove(policy, config.rollout.longest_sequence))
    problems, bad_rows = training_problems(config, policy.tokenizer)
    for line in describe_prompt(problems[0], config, policy.tokenizer, policy.network.generation_config):
        notify(line)
    sets, test_problems = held_out_problems(config, policy.tokenizer)
    learner = Learner(policy, config, notify, run.interrupts.hold, run.save_bad_batch)

    run.progress.phase("starting the reward and the sampler")
    with (
        closing(load_reward(reward_row(problems[0]), config.seed, device.type, **config.reward.model_dump())) as reward,
        closing(make_engine(plan.engine_config, device)) as engine,
        closing(Validator(config, policy.tokenizer, sets, test_problems, run.clock)) as validator,
        run.recording(TrainingState(policy, learner, reward, problems, validator.held_out), bad_rows),
    ):
        engine.sync(policy)
        calibrate(reward, engine, policy.tokenizer, problems, config)
        if run.step == 0:
            run.progress.phase("evaluating the untrained model", engine.progress)
            run.note(before=validator.test(engine))
        if run.unlogged:  # step 0, or a step whose evaluation was cut off
            run.log(validator.evaluate(engine, run.step))
        yield Parts(config, run, policy, problems, engine, reward, learner, validator)
    if device.type == "cuda":
        print(planned_and_measured(plan, run.rows()))


@one_line()  # an OSError keeps its traceback: it may come from a reward or a compiler
def main(argv: list[str]) -> int:
    with Interrupts() as interrupts:
        preset, why = default_preset()
        command = parse_args(argv, preset)
        config, folder = resolve_run(command, preset)
        if command.preset is None and folder is None:
            print(f"no --preset given: {preset}, {why}")
        if command.check:
            return check(config, choose_device(config.device), held_out_sets(config), folder)
        if folder and is_finished(folder, config.steps):
            print(escape_control(f"{folder} is finished: {config.steps} steps"))
        else:
            folder = train(config, folder, interrupts).folder
        plot_run(folder)
    print(escape_control(f"run folder {folder}\n{next_commands(folder, config)}"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
