"""Chooses the run folder. For --resume: checks that nothing relevant changed and rewinds to the last complete step."""

from __future__ import annotations

import hashlib
import inspect
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from grpo.cli import Command
from grpo.errors import UserError
from grpo.hub import located
from grpo.run.files import STARTED, append, lines, numbered, read_rows, write
from grpo.settings import Config, build, changed, dotted, fields, flat, parse, read_yaml, typed
from grpo.terminal import notify
from grpo.types import Problem

PATHS = {"model", "data", "data_dir", "prompt", "reward.hybrid.model", "eval.data", "eval.test"}
"""Files that may have moved when a run is continued: the last part of the path has to be the same."""
WHERE = {"name", "out", "data_dir", "quiet", "show_every", "tracker"}
HOW_LONG = {
    "steps",
    "bad_rows.limit",
    "learner.max_nonfinite_steps",
    "eval.every",
    "checkpoint.every",
    "checkpoint.keep",
}
HOW_FAST = {"rollout.logprob_diff_limit", "rollout.kv_gib", "rollout.sleep", "reward.workers"}
ROUNDING = {
    *("threads", "policy.gradient_checkpointing", "rollout.max_num_seqs"),
    *("learner.microbatch_tokens", "learner.logit_chunk"),
}
"""They change the order of sums: the same run, but no longer bit for bit."""
FREE = {"preset", "template_date", "policy.trust_remote_code"} | WHERE | HOW_LONG | HOW_FAST | ROUNDING
"""May differ when a run is continued. The other settings, the preset's included, decide the result."""
ROW_FILES = ("metrics.jsonl", "accuracy.jsonl", "bad_batches.jsonl", "problems.jsonl")
"""Files with a row for each step; problems.jsonl with one for each problem."""


def resolve_run(command: Command, default_preset: str) -> tuple[Config, Path | None]:
    """The settings to run with, and the folder to continue in (None: a new one).

    Raises UserError when there is no such run, or with the list of settings that differ in what matters.
    """
    if command.resume is None:
        return command.config, None
    folder = Path(command.resume)
    if command.resume == "auto":
        fresh = build(command.preset or default_preset, command.overrides)
        newest = newest_run(fresh)
        if newest is None:
            notify(f"--resume auto: no run in {fresh.out} yet; starting one")
            return fresh, None
        folder = newest
    saved = read_config(folder)
    wanted = changed(saved, command.overrides)
    if command.preset:  # its settings must be the run's; the number of steps stays the run's unless it is given
        wanted = build(command.preset, {"steps": str(saved.steps)} | command.overrides)
    trusted = command.overrides.get("policy.trust_remote_code", "false")  # never on the word of a folder
    kept = {"name": saved.name, "out": str(folder.parent), "preset": saved.preset, "policy.trust_remote_code": trusted}
    for name in ("policy.quant", "policy.gradient_checkpointing"):
        if flat(wanted)[name] == "auto":  # decided at the start of the run
            kept[name] = flat(saved)[name]
    wanted = changed(wanted, kept)
    check_same(saved, wanted, folder)
    return relocate_paths(wanted, folder), folder


def new_folder(config: Config) -> Path:
    """The folder of a new run. Raises UserError where it exists: nothing of an earlier run is ever overwritten."""
    name = config.name or f"{config.preset}-{Path(config.data).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = Path(config.out) / name
    if any(path.name not in STARTED and path.suffix != ".partial" for path in folder.rglob("*")):
        resume = f"--resume {shlex.quote(str(folder))}"
        raise UserError(f"{folder} exists; choose another --name, or continue it with {resume}")
    return folder


def newest_run(config: Config) -> Path | None:
    """The named run, else the one written to last; None without any run."""
    runs = [path.parent for path in Path(config.out).glob(f"{config.name or '[!.]*'}/config.yaml")]

    def last_written(folder: Path) -> float:  # by the run itself: a report or a note in its folder does not count
        own = [folder / "config.yaml", folder / "metrics.jsonl", *numbered(folder / "checkpoints").values()]
        return max(path.stat().st_mtime for path in own if path.exists())

    return max(runs, key=last_written, default=None)


def read_config(folder: Path) -> Config:
    """The settings of a run. Raises UserError where one is missing or wrong; how the file is laid out is free."""
    path = folder / "config.yaml"
    tree = read_yaml(path)
    if missing := fields().keys() - dotted(tree).keys():
        raise UserError(f"{path} was cut off, or written by another version: it has no {min(missing)}; restore it")
    try:
        return parse(tree)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def relocate_paths(config: Config, folder: Path) -> Config:
    """Finds files that were named from the folder in which the run was started, from any other folder."""
    named = {name: value for name, value in flat(config).items() if name in PATHS and value}
    moved = {
        name: located(value, folder) if isinstance(value, str) else tuple(located(each, folder) for each in value)
        for name, value in named.items()
    }
    return changed(config, moved)


def decisive(config: Config) -> dict[str, str]:
    """The settings that decide the result of learning, as a checkpoint keeps them."""
    free = FREE - {"steps"} if config.learner.schedule == "linear" else FREE  # there the rate depends on the end
    settings = {name: typed(value) for name, value in flat(config).items() if name not in free}
    return {name: re.sub(r"[^,]*/", "", value) if name in PATHS else value for name, value in settings.items()}


def refuse_other(before: dict[str, str], after: dict[str, str], source: Path, cure: str) -> None:
    """Raises UserError with the list of settings that are not the same."""
    if refused := sorted(name for name in before if before[name] != after.get(name, before[name])):
        listed = ", ".join(f"{name} {before[name]} -> {after[name]}" for name in refused)
        raise UserError(f"{source} was started with other settings: {listed}. {cure}, or start a new run (--name)")


def check_same(saved: Config, wanted: Config, folder: Path) -> None:
    if wanted.steps < saved.steps:
        raise UserError(f"{folder} has steps {saved.steps}; --steps may grow, not shrink to {wanted.steps}")
    refuse_other(decisive(saved), decisive(wanted), folder, "Remove these options to continue it")
    before, after = flat(saved), flat(wanted)
    if inexact := sorted(name for name in ROUNDING if before[name] != after[name]):
        notify(f"{', '.join(inexact)} differs from the start of the run: it continues, but not bit for bit the same")


# ---- back to the last complete step


def rewind(folder: Path, step: int, pending: bool) -> list[dict]:
    """Removes everything written after `step`, which is done again. `pending`: the row of `step` is still to come.

    Returns the rows of metrics.jsonl that stay. Damaged lines are reported and moved to a file of their own.
    """
    for path in (folder / name for name in ROW_FILES if (folder / name).exists()):
        damaged: list[bytes] = []
        kept = [row for row in read_rows(path, damaged) if step and row.get("step", 0) <= step]
        if damaged:
            notify(f"{path}: {len(damaged)} damaged lines moved to damaged_{path.name}")
            append(folder / f"damaged_{path.name}", b"".join(damaged).decode(errors="backslashreplace"))
        write(path, lines(kept))
    rows = read_rows(folder / "metrics.jsonl")
    if missing := sorted(set(range(step + (not pending))) - {row["step"] for row in rows}):
        notify(f"{folder / 'metrics.jsonl'} has no row of step {', '.join(map(str, missing))}")
    for number, path in numbered(folder / "completions", r"\.jsonl\.gz").items():
        if number > step:
            path.unlink()
    for leftover in (*folder.glob(".*.partial"), *folder.glob("completions/.*.partial"), folder / "summary.json"):
        leftover.unlink(missing_ok=True)
    return rows


# ---- versions and settings of a checkpoint


def check_identity(checkpoint: Path, saved: dict, now: dict) -> None:
    """Raises UserError where run, settings, base model or problems differ from those of the checkpoint."""
    refuse_other(saved["settings"], now["settings"], checkpoint, "config.yaml was changed: restore them")
    other = {
        "run": "is of another run: move it out of the checkpoints",
        "base": "belongs to another base model than this one: restore the old model",
        "data": "was trained on other problems (prompt, ground truth or order differ): restore the old data",
    }
    for name, difference in other.items():
        if saved[name] != now[name]:
            raise UserError(f"{checkpoint} {difference}, or start a new run with another --name")


def check_reward(checkpoint: Path, saved: dict, now: dict) -> None:
    """Reports a reward whose source was edited since the checkpoint. Raises UserError where its signals differ."""
    if saved["signals"] and now["signals"] and saved["signals"] != now["signals"]:
        raise UserError(
            f"{checkpoint} was trained on the signals {', '.join(saved['signals'])}, and the reward now returns "
            f"{', '.join(now['signals'])}: restore it, or start a new run with another --name"
        )
    if saved["reward_source"] != now["reward_source"]:
        notify(f"the reward's source was edited after {checkpoint.name}: from here on the run follows the new one")


def digest_problems(problems: Sequence[Problem]) -> str:
    """SHA-256 of all that training sees of the data: token ids and ground truths, in order."""
    seen = hashlib.sha256()
    for problem in problems:
        seen.update(repr((problem.prompt_ids, problem.ground_truth)).encode())
    return seen.hexdigest()


def digest_reward(name: str) -> str:
    """SHA-256 of the module of a user's own reward, package.module:function; empty for a built-in reward."""
    module = sys.modules.get(name.partition(":")[0])
    try:
        return hashlib.sha256(inspect.getsource(module).encode()).hexdigest() if module and ":" in name else ""
    except OSError:  # its source is not on this machine
        return ""
