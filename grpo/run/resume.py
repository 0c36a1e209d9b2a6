"""`--resume`: which run, and whether the settings it is continued with are those it was started with."""

from __future__ import annotations

from pathlib import Path

import yaml

from grpo.config import Command, Config, build, changed, flat, overridden, parse, typed
from grpo.errors import UserError
from grpo.run.rows import read_rows
from grpo.run.show import say

FREE = {
    "preset",  # what it stands for is compared
    "steps",
    "threads",
    "name",
    "out",
    "data_dir",
    "quiet",
    "show_every",
    "wandb",
    "policy.gradient_checkpointing",
    "policy.trust_remote_code",
    "rollout.max_sequences",
    "rollout.mismatch_limit",
    "rollout.kv_gib",
    "rollout.sleep",
    "reward.workers",
    "learner.token_budget",
    "learner.logit_chunk",
    "learner.max_bad_steps",
    "eval.every",
    "checkpoint.every",
    "checkpoint.keep",
}
"""May differ when a run is continued: where, how fast, how long, what is shown. The rest decides what is learned."""
ROUNDING = {
    "threads",
    "policy.gradient_checkpointing",
    "rollout.max_sequences",
    "learner.token_budget",
    "learner.logit_chunk",
}
"""Of these, what changes the order of sums: the same run, but no longer bit for bit."""


def settle(command: Command, default_preset: str) -> tuple[Config, Path | None]:
    """The settings to run with, and the folder to continue in (None: a new one).

    UserError when there is no such run, or with the list of settings that differ in what matters.
    """
    if command.resume is None:
        return command.config, None
    fresh = build(command.preset or default_preset, command.overrides) if command.resume == "auto" else None
    folder = find_run(command.resume, fresh)
    if folder is None:
        say(f"--resume auto: no run in {fresh.out} yet; starting one")
        return fresh, None
    saved = read_config(folder)
    wanted = overridden(saved, command.overrides)
    if command.preset:  # its settings must be the run's; how long the run goes on is the run's own, unless asked for
        wanted = build(command.preset, {"steps": str(saved.steps)} | command.overrides)
    wanted = changed(wanted, {"name": folder.resolve().name, "out": str(folder.parent), "preset": saved.preset})
    if wanted.policy.quant == "auto":  # settled at the start of the run
        wanted = changed(wanted, {"policy.quant": saved.policy.quant})
    check_same(saved, wanted, folder)
    return wanted, folder


def find_run(resume: str, fresh: Config | None) -> Path | None:
    """The folder that `--resume` means. auto: the named run, else the one written to last; None where there is none."""
    if resume != "auto":
        if not (Path(resume) / "config.yaml").is_file():
            raise UserError(
                f"{resume} is no run folder: it has no config.yaml; a run is resumed with --resume runs/NAME"
            )
        return Path(resume)
    runs = [path.parent for path in Path(fresh.out).glob(f"{fresh.name or '[!.]*'}/config.yaml")]
    return max(runs, key=_last_written, default=None)


def read_config(folder: Path) -> Config:
    try:
        tree = yaml.safe_load((folder / "config.yaml").read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {folder / 'config.yaml'}: {str(error).splitlines()[0]}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{folder / 'config.yaml'} holds no settings")
    try:
        return parse(tree)
    except UserError as error:
        raise UserError(f"{folder / 'config.yaml'}: {error}") from None


def is_finished(folder: Path, config: Config) -> bool:
    """Whether all steps and the figures after them are there."""
    rows = read_rows(folder / "metrics.jsonl")
    return (folder / "summary.json").is_file() and bool(rows) and rows[-1]["step"] >= config.steps


def check_same(saved: Config, wanted: Config, folder: Path) -> None:
    before, after = flat(saved), flat(wanted)
    differing = {name for name in before if before[name] != after[name]}
    if "steps" in differing:
        if saved.learner.schedule == "linear":
            raise UserError(
                f"{folder} was started with steps {saved.steps} and learner.schedule linear, whose rate depends on "
                f"that number; --steps {wanted.steps} would be another run. Leave --steps out, or start a new run"
            )
        if wanted.steps < saved.steps:
            raise UserError(
                f"{folder} was started with steps {saved.steps}; --steps may grow, not shrink to {wanted.steps}"
            )
    if refused := sorted(differing - FREE):
        listed = ", ".join(f"{name} {typed(before[name])} -> {typed(after[name])}" for name in refused)
        raise UserError(
            f"{folder} was started with other settings: {listed}. Leave them out to continue it, or start a new run "
            "with another --name"
        )
    if inexact := sorted(differing & ROUNDING):
        say(f"{', '.join(inexact)} differs from the start of the run: it goes on, but not bit for bit the same")


def _last_written(folder: Path) -> float:
    return max((path.stat().st_mtime for path in folder.iterdir()), default=0.0)
