"""Chooses the run folder. For --resume: checks that nothing relevant changed and rewinds to the last complete step."""

from __future__ import annotations

import hashlib
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo.cli import Command
from grpo.errors import UserError
from grpo.hub import located_benchmark, located_data, located_folder, located_prompt
from grpo.run.files import NEEDED, append, lines, numbered, read_rows, write
from grpo.settings import Config, build, changed, fields, flat, parse, read_settings, typed
from grpo.terminal import notify
from grpo.types import Problem

PATHS = {
    "model": located_folder, "data": located_data, "data_dir": located_folder, "prompt": located_prompt,
    "reward.hybrid.model": located_folder, "eval.data": located_benchmark, "eval.test": located_benchmark,
}  # fmt: skip
"""Setting -> function that finds the path it names. It may have moved, but the last part must be the same."""
WHERE = {"name", "out", "data_dir", "quiet", "show_every", "tracker"}
HOW_LONG = {"steps", "eval.every", "checkpoint.every", "checkpoint.keep"}
LIMITS = {"bad_rows.limit", "learner.max_nonfinite_steps", "rollout.logprob_diff_limit", "reward.call_limit_s"}
"""They end a run and change no number."""
HOW_FAST = {"rollout.kv_gib", "rollout.sleep", "reward.workers", "reward.parallel"}
ROUNDING = {
    *("threads", "policy.gradient_checkpointing", "rollout.max_num_seqs"),
    *("learner.microbatch_tokens", "learner.logit_chunk"),
}
"""They change the order of sums: the same run, but not to the bit."""
FREE = {"template_date", "policy.trust_remote_code"} | WHERE | HOW_LONG | LIMITS | HOW_FAST | ROUNDING
"""May differ when a run is continued. The other settings, the preset's included, decide the result."""


def resolve_run(command: Command, default_preset: str) -> tuple[Config, Path | None]:
    """The settings to run with, and the folder to continue in (None: a new one).

    Raises UserError if there is no such run, or with the list of decisive settings that differ.
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
    options = command.overrides | ({"preset": command.preset} if command.preset else {})
    decided = {name: flat(saved)[name] for name, value in options.items() if value == "auto"}
    trusted = command.overrides.get("policy.trust_remote_code", "false")  # never because a run folder says so
    kept = {"name": saved.name, "out": str(folder.parent), "policy.trust_remote_code": trusted}
    config = changed(saved, options | decided | kept)
    check_same(saved, config, folder)
    return config, folder


def new_folder(config: Config) -> Path:
    """The folder of a new run. Raises UserError if it is not empty: an earlier run is never overwritten."""
    name = config.name or f"{config.preset}-{Path(config.data).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = Path(config.out) / name
    if folder.exists() and not (folder.is_dir() and next(folder.iterdir(), None) is None):
        resume = f"--resume {shlex.quote(str(folder))}"
        raise UserError(f"{folder} exists; choose another --name, or continue it with {resume}")
    return folder


def newest_run(config: Config) -> Path | None:
    """The named run, else the one written to last; None without any run."""
    runs = f"{config.name or '[!.]*'}"
    written = [path for name in ("config.yaml", "metrics.jsonl") for path in Path(config.out).glob(f"{runs}/{name}")]
    newest = max(written, key=lambda path: path.stat().st_mtime, default=None)
    return newest.parent if newest else None


def read_config(folder: Path) -> Config:
    """The settings of a run. Finds the files that they name, in whatever folder this command runs.

    Raises UserError if a setting is missing or wrong; the layout of the file is free.
    """
    path = folder / "config.yaml"
    settings = read_settings(path)
    if missing := fields().keys() - settings.keys():
        raise UserError(f"{path} was cut off, or written by another version: it has no {min(missing)}; restore it")
    for name, locate in PATHS.items():
        value = settings[name]
        if isinstance(value, str):
            settings[name] = locate(value, folder)
        elif value:
            settings[name] = [locate(each, folder) for each in value]
    return parse(settings)


def decisive(config: Config) -> dict[str, str]:
    """The settings that decide the result of learning, as a checkpoint keeps them."""
    free = FREE - {"steps"} if config.learner.schedule == "linear" else FREE  # there the rate depends on the end
    return {
        name: ",".join(Path(path).name for path in typed(value).split(",")) if name in PATHS else typed(value)
        for name, value in flat(config).items()
        if name not in free
    }


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Lists each value of `before` that differs in `after`, as `learner.lr 0.1 -> 0.5`; empty if none."""
    other = [name for name in sorted(before) if after.get(name, before[name]) != before[name]]
    return ", ".join(f"{name} {before[name]!s:.60} -> {after[name]!s:.60}" for name in other)


def refuse_other(before: Mapping[str, Any], after: Mapping[str, Any], source: Path, cure: str) -> None:
    """Raises UserError with the list of differences, if any."""
    if other := differences(before, after):
        raise UserError(f"{source} was started with other settings: {other}. {cure}, or start a new run (--name)")


def check_same(saved: Config, config: Config, folder: Path) -> None:
    """Raises UserError for settings other than the run's; reports those that change only rounding."""
    shorter = {"steps": typed(saved.steps)} if config.steps < saved.steps else {}
    after = decisive(config) | {"steps": typed(config.steps)}
    steps = "not change with learner.schedule linear" if saved.learner.schedule == "linear" else "only grow"
    refuse_other(decisive(saved) | shorter, after, folder, f"Remove these options to continue it (steps may {steps})")
    if inexact := differences({name: flat(saved)[name] for name in ROUNDING}, flat(config)):
        notify(f"{inexact}: changed since the start; the run continues but is no longer bit-identical")


def rewind(folder: Path, step: int) -> list[dict]:
    """Removes everything written after `step`; those steps are repeated. Returns the remaining rows of metrics.jsonl.

    Damaged lines are reported and moved to a file of their own.
    """
    for path in (folder / name for name in NEEDED if (folder / name).exists()):
        damaged: list[bytes] = []
        kept = [row for row in read_rows(path, damaged) if row["step"] <= step]
        if damaged:
            notify(f"{path}: {len(damaged)} damaged lines moved to damaged_{path.name}")
            append(folder / f"damaged_{path.name}", b"".join(damaged))
        write(path, lines(kept))
    later = [path for number, path in numbered(folder / "completions", ".jsonl.gz").items() if number > step]
    for path in (*later, *folder.rglob(".*.partial"), folder / "summary.json"):
        path.unlink(missing_ok=True)
    return read_rows(folder / "metrics.jsonl")


def digest_problems(problems: Sequence[Problem]) -> str:
    """Beginning of the SHA-256 of everything that training uses of the data: token ids and ground truths, in order."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(repr((problem.prompt_ids, problem.ground_truth)).encode())
    return digest.hexdigest()[:16]


def digest_reward(name: str) -> str:
    """SHA-256 of the module of a user's own reward, package.module:function; empty for a built-in reward."""
    module, colon, _ = name.partition(":")
    source = Path(getattr(sys.modules.get(module), "__file__", None) or "") if colon else Path()
    return hashlib.sha256(source.read_bytes()).hexdigest() if source.is_file() else ""
