"""Out of here: `python -m grpo.export verl --preset h100 --gpus 8 --out DIR` writes what verl 0.9 needs to go on.

    DIR/train.parquet    the problems in verl's schema, the system message in front of each
    DIR/reward.py        the reward, loadable by its path from anywhere; DIR/rewards is the code behind it
    DIR/run.sh           every setting as verl's override; in its comments what verl has no counterpart for

verl divides batches over GPUs and starts its own servers, so the numbers of a run will not be the same to the bit.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from grpo.config import Config, build, changed, flat, parse, read_yaml, typed
from grpo.errors import UserError
from grpo.problems import training_problems

ACTOR, ROLLOUT, MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.model"
SAME: dict[str, tuple[str, ...]] = {
    "model": (f"{MODEL}.path",),
    "steps": ("trainer.total_training_steps",),
    "seed": ("data.seed",),
    "policy.lora_rank": (f"{MODEL}.lora_rank",),
    "policy.trust_remote_code": (f"{MODEL}.trust_remote_code",),
    "rollout.problems": ("data.train_batch_size",),
    "rollout.group": (f"{ROLLOUT}.n",),
    "rollout.temperature": (f"{ROLLOUT}.temperature",),
    "rollout.top_p": (f"{ROLLOUT}.top_p",),
    "rollout.max_prompt_tokens": ("data.max_prompt_length",),
    "rollout.max_new_tokens": ("data.max_response_length",),
    "rollout.max_sequences": (f"{ROLLOUT}.max_num_seqs",),
    "rollout.sleep": (f"{ROLLOUT}.free_cache_engine",),
    "learner.lr": (f"{ACTOR}.optim.lr",),
    "learner.warmup": (f"{ACTOR}.optim.lr_warmup_steps",),
    "learner.weight_decay": (f"{ACTOR}.optim.weight_decay",),
    "learner.grad_clip": (f"{ACTOR}.grad_clip",),
    "learner.clip_low": (f"{ACTOR}.clip_ratio", f"{ACTOR}.clip_ratio_low"),
    "learner.clip_high": (f"{ACTOR}.clip_ratio_high",),
    "learner.kl_coef": (f"{ACTOR}.kl_loss_coef",),
    "learner.entropy_coef": (f"{ACTOR}.entropy_coeff",),
    "learner.token_budget": (f"{ACTOR}.ppo_max_token_len_per_gpu",),
}
"""Ours -> verl's, the value unchanged."""
AGGREGATION = {"token": "token-mean", "sequence": "seq-mean-token-mean", "constant": "seq-mean-token-sum-norm"}
OTHER: dict[str, Callable[[Any, Config], dict[str, Any]]] = {
    "policy.lora_alpha": lambda v, c: {f"{MODEL}.lora_alpha": int(v)},
    "policy.gradient_checkpointing": lambda v, c: {f"{MODEL}.enable_gradient_checkpointing": v != "false"},
    "rollout.top_k": lambda v, c: {f"{ROLLOUT}.top_k": -1 if v == 0 else v},
    "learner.beta1": lambda v, c: {f"{ACTOR}.optim.betas": f"[{c.learner.beta1},{c.learner.beta2}]"},
    "learner.beta2": lambda v, c: {},
    "learner.advantage": lambda v, c: {
        "algorithm.adv_estimator": "grpo",
        "algorithm.norm_adv_by_std_in_grpo": v != "no_std",
    },
    "learner.aggregation": lambda v, c: {f"{ACTOR}.loss_agg_mode": AGGREGATION[v]},
    "learner.minibatches_per_rollout": lambda v, c: {f"{ACTOR}.ppo_mini_batch_size": c.rollout.problems // v},
    "learner.sampler_correction": lambda v, c: (
        {
            "algorithm.rollout_correction.rollout_is": "token",
            "algorithm.rollout_correction.rollout_is_threshold": v,
            f"{ROLLOUT}.calculate_log_probs": True,
        }
        if v
        else {}
    ),
    "eval.every": lambda v, c: {"trainer.test_freq": v or -1, "trainer.val_before_train": False},
    "checkpoint.every": lambda v, c: {"trainer.save_freq": v or c.steps},
    "checkpoint.keep": lambda v, c: {"trainer.max_actor_ckpt_to_keep": v},
}
"""Ours -> a function of the value and all settings that gives verl's."""
IN_FILES = (
    "data",
    "data_dir",
    "data_columns",
    "data_limit",
    "prompt",
    "bad_rows.limit",
    "reward.name",
    "reward.alpha",
    "reward.beta",
    "reward.gamma",
    "reward.verifier",
    "reward.workers",
    "reward.timeout_s",
    "reward.random_needs_box",
)
"""What train.parquet and reward.py hold."""
HERE_ONLY = ("preset", "mode", "device", "threads", "name", "out", "quiet", "show_every", "tracker")
"""Of this program's own running."""


def overrides(config: Config, out: Path, gpus: int, nodes: int) -> dict[str, Any]:
    """verl's settings for this run."""
    found = {theirs: value for ours, value in flat(config).items() for theirs in SAME.get(ours, ())}
    for name, function in OTHER.items():
        found |= function(flat(config)[name], config)
    return found | {
        "data.train_files": str(out / "train.parquet"),
        "data.val_files": str(out / "train.parquet"),
        "data.truncation": "error",
        f"{MODEL}.use_remove_padding": True,
        f"{ACTOR}.use_dynamic_bsz": True,
        f"{ACTOR}.use_kl_loss": config.learner.kl_coef > 0,
        f"{ACTOR}.kl_loss_type": "low_var_kl",
        f"{ROLLOUT}.name": "vllm",
        "reward.custom_reward_function.path": str(out / "reward.py"),
        "reward.custom_reward_function.name": "compute_score",
        "trainer.n_gpus_per_node": gpus,
        "trainer.nnodes": nodes,
        "trainer.total_epochs": config.steps,
        "trainer.logger": "[console]",
        "trainer.project_name": "one-shot-grpo",
        "trainer.experiment_name": config.name or config.preset,
    }


def left_out(config: Config) -> list[str]:
    """The settings that verl has no counterpart for, or that its defaults decide."""
    known = {*SAME, *OTHER, *IN_FILES, *HERE_ONLY}
    names = [name for name in flat(config) if name not in known]
    return [f"{name} {typed(flat(config)[name])}" for name in names]


def check(config: Config, gpus: int, nodes: int) -> None:
    """UserError for what cannot be carried over without changing the experiment."""
    o = config.learner
    if config.reward.name == "hybrid" or ":" in config.reward.name:
        raise UserError(f"reward.name {config.reward.name} is not exported; write verl's reward file by hand")
    if o.schedule != "constant" or o.advantage == "per_signal":
        raise UserError(
            f"learner.schedule {o.schedule} and learner.advantage {o.advantage}: verl has constant or cosine rates, "
            "and no advantage by signal; choose constant, and std or no_std"
        )
    if gpus < 1 or nodes < 1 or config.rollout.problems * config.rollout.group % (gpus * nodes):
        raise UserError(
            f"{config.rollout.problems} x {config.rollout.group} completions do not divide over {gpus} x {nodes} GPUs"
        )


def rows(config: Config) -> list[dict[str, Any]]:
    """The training data in verl's schema, with our system message in front; unusable rows are left out."""
    problems, _ = training_problems(config, None)
    found = [
        {
            "data_source": problem.source or "one_shot_grpo",
            "prompt": problem.chat,
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": problem.ground_truth},
            "extra_info": {"index": problem.index, "split": "train"},
        }
        for problem in problems
    ]
    least = config.rollout.problems  # verl drops a batch that is not full
    return [found[i % len(found)] for i in range(max(len(found), least))]


REWARD = '''"""The reward of this run for verl: reward.custom_reward_function.path is this file, .name compute_score."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from rewards import make_reward

REWARD = make_reward({arguments})


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):
    score = REWARD(solution_str, ground_truth)
    return {{"score": score.total, "acc": score.verify, **score.signals}}
'''


def write(config: Config, out: Path, gpus: int, nodes: int) -> None:
    """The folder. Nothing is written where something is wrong."""
    check(config, gpus, nodes)
    if out.exists():
        raise UserError(f"{out} exists; choose another --out")
    table = pa.Table.from_pylist(rows(config))
    out.mkdir(parents=True)
    pq.write_table(table, out / "train.parquet")
    r = config.reward
    arguments = f"{r.name!r}, weights={(r.alpha, r.beta, r.gamma)}, verifier={r.verifier!r}, seed={config.seed}, "
    arguments += f"workers={r.workers}, timeout_s={r.timeout_s}, random_needs_box={r.random_needs_box}"
    (out / "reward.py").write_text(REWARD.format(arguments=arguments))
    code = Path(__file__).resolve().parents[2] / "rewards"
    shutil.copytree(code, out / "rewards", ignore=shutil.ignore_patterns("__pycache__"))
    settings = overrides(config, out.resolve(), gpus, nodes)
    lines = [f"    {shlex.quote(f'{key}={value}')} \\" for key, value in settings.items()]
    (out / "run.sh").write_text(
        "#!/usr/bin/env bash\n# Settings that verl has no counterpart for, or that its defaults decide:\n"
        + "".join(f"#   {line}\n" for line in left_out(config))
        + "set -euo pipefail\npython3 -m verl.trainer.main_ppo \\\n"
        + "\n".join(lines)
        + '\n    "$@"\n'
    )


def main(argv: list[str]) -> int:
    cli = argparse.ArgumentParser(prog="python -m grpo.export", description="A run's settings for another trainer.")
    cli.add_argument("target", choices=["verl"])
    cli.add_argument("run", nargs="?", type=Path, metavar="RUN", help="run folder whose settings are exported")
    cli.add_argument("--preset", help="or a preset's")
    cli.add_argument("--gpus", type=int, default=8, help="on each node (%(default)s)")
    cli.add_argument("--nodes", type=int, default=1)
    cli.add_argument("--data-dir", help="folder with local copies of the published data sets")
    cli.add_argument("--out", type=Path, required=True, metavar="DIR")
    args = cli.parse_args(argv)
    try:
        if (args.run is None) == (args.preset is None):
            raise UserError("name a run folder or a --preset, one of the two")
        config = build(args.preset, {}) if args.preset else parse(read_yaml(args.run / "config.yaml"))
        if args.data_dir:
            config = changed(config, {"data_dir": args.data_dir})
        write(config, args.out, args.gpus, args.nodes)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}/run.sh starts it where verl 0.9 is installed; its first lines say what is not carried over")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
