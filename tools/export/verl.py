"""Writes a run for verl 0.9: `python -m tools.export verl --preset h100 --gpus 8 --out DIR`.

    DIR/train.parquet    the problems in verl's schema, the system message in front of each
    DIR/reward.py        the reward, loadable by its path from anywhere; DIR/rewards is the code behind it
    DIR/run.sh           every setting as verl's override; in its comments what verl has no counterpart for

verl divides batches over GPUs and starts its own servers, so the numbers of a run will not be the same to the bit.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import Environment, StrictUndefined

from data import tasks
from grpo.errors import UserError
from grpo.plan.planner import AUTO_TOKENS
from grpo.problems import training_problems
from grpo.run.resume import read_config
from grpo.settings import Config, build, changed, env_weights, flat, typed

HERE = Path(__file__).resolve().parent


def filled(template: str, config: Config, **values: Any) -> str:
    """verl.j2 or reward.j2 with the run's settings in it."""
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["repr"] = repr
    settings = {name: typed(value) for name, value in flat(config).items()}
    text = (HERE / template).read_text(encoding="utf-8")
    return environment.from_string(text).render(c=config, settings=settings, **values)


def own_scorer(data: str) -> UserError:
    return UserError(f"data {data} is graded by the task's own scorer, which the exported reward does not have")


def check(config: Config, gpus: int, nodes: int) -> None:
    """Raises UserError for settings that cannot be exported without changing the experiment."""
    o = config.learner
    if config.reward.name == "hybrid" or ":" in config.reward.name:
        raise UserError(f"reward.name {config.reward.name} is not exported; write verl's reward file by hand")
    if config.data.startswith(tasks.PREFIX):
        raise own_scorer(config.data)
    if not config.policy.lora_alpha.is_integer():
        raise UserError(f"policy.lora_alpha is {config.policy.lora_alpha}, but verl takes whole numbers; change it")
    if o.schedule != "constant" or o.advantage not in ("grpo", "dr_grpo", "rloo") or o.loss == "reinforce":
        raise UserError(
            f"learner.schedule {o.schedule}, learner.advantage {o.advantage} and learner.loss {o.loss} are not all in "
            "verl; choose constant, one of grpo, dr_grpo and rloo, and one of grpo, gspo and cispo"
        )
    lost = {"policy.quant": "nf4", "learner.optimizer": "adamw_8bit", "learner.mask_truncated": True}
    names = [name for name, value in lost.items() if flat(config)[name] == value]
    names += ["rollout.resample_flat_groups"] if config.rollout.resample_flat_groups else []
    if names:
        raise UserError(f"{', '.join(names)}: verl has no counterpart, so it would be another experiment")
    if gpus < 1 or nodes < 1 or config.rollout.completions_per_step % (gpus * nodes):
        raise UserError(
            f"{config.rollout.prompts_per_step} x {config.rollout.group_size} completions do not divide over "
            f"{gpus} x {nodes} GPUs"
        )


def rows(config: Config) -> list[dict[str, Any]]:
    """The training data in verl's schema, with our system message in front; unusable rows are skipped.

    Raises UserError if a row names the item of a task: the file is graded as the task is.
    """
    problems, _ = training_problems(config, None)
    if any(tasks.item_of(problem.extra) for problem in problems):
        raise own_scorer(config.data)
    ours = [
        {
            "data_source": problem.source or "one_shot_grpo",
            "prompt": problem.chat,
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": problem.ground_truth},
            "extra_info": {"index": problem.index, "split": "train"},
        }
        for problem in problems
    ]
    least = config.rollout.prompts_per_step  # verl drops a batch that is not full
    return [ours[i % len(ours)] for i in range(max(len(ours), least))]


def script(config: Config, out: Path, gpus: int, nodes: int) -> str:
    """run.sh for the folder `out`: verl's command with its overrides, below the comments of verl.j2."""
    tokens = AUTO_TOKENS if config.learner.microbatch_tokens == "auto" else config.learner.microbatch_tokens
    tokens = max(tokens, config.rollout.longest_sequence)  # verl refuses a sequence that is longer
    lines = filled("verl.j2", config, out=out, gpus=gpus, nodes=nodes, microbatch_tokens=tokens).splitlines()
    comments = [line for line in lines if line.startswith("#")]
    settings = [shlex.quote(line) for line in lines if not line.startswith("#")]
    command = " \\\n    ".join(["python3 -m verl.trainer.main_ppo", *settings, '"$@"'])
    return "\n".join(["#!/usr/bin/env bash", *comments, "set -euo pipefail", command, ""])


def add_arguments(cli: argparse.ArgumentParser) -> None:
    source = cli.add_mutually_exclusive_group(required=True)
    source.add_argument("run", nargs="?", type=Path, metavar="RUN", help="run folder whose settings are exported")
    source.add_argument("--preset", help="or a preset's")
    cli.add_argument("--gpus", type=int, default=8, help="on each node (%(default)s)")
    cli.add_argument("--nodes", type=int, default=1)
    cli.add_argument("--data-dir", help="folder with local copies of the published data sets")


def write(args: argparse.Namespace, folder: Path) -> str:
    config = build(args.preset, env_weights()) if args.preset else read_config(args.run)
    options = {"policy.trust_remote_code": args.trust_remote_code}  # never on the word of a folder
    config = changed(config, options | ({"data_dir": args.data_dir} if args.data_dir else {}))
    check(config, args.gpus, args.nodes)
    pq.write_table(pa.Table.from_pylist(rows(config)), folder / "train.parquet")
    (folder / "reward.py").write_text(filled("reward.j2", config) + "\n")
    shutil.copytree(HERE.parents[1] / "rewards", folder / "rewards", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "run.sh").write_text(script(config, args.out.resolve(), args.gpus, args.nodes))
    return f"{args.out}/run.sh starts it where verl 0.9 is installed; its first lines report what is not carried over"
