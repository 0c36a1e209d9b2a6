"""`--resume`: which run, whether its settings are those it was started with, and the state it goes on from."""

from __future__ import annotations

import copy
import hashlib
import random
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from grpo.arguments import Command
from grpo.config import Config, build, changed, flat, overridden, parse, read_yaml, typed
from grpo.errors import UserError
from grpo.learner import Learner
from grpo.policy import Policy
from grpo.run.checkpoint import TRAINER
from grpo.run.files import numbered, read_rows, run_id
from grpo.run.terminal import say
from grpo.types import Problem
from rewards import Reward

PATHS = {"model", "data", "data_dir", "prompt", "reward.model", "eval.data", "eval.test"}
"""May lie elsewhere when a run is continued: the last part of the name has to be the same."""
FREE = {
    "preset",  # what it stands for is compared
    "steps",
    "threads",
    "name",
    "out",
    "data_dir",
    "bad_rows.limit",  # the problems that are left are compared
    "quiet",
    "show_every",
    "tracker",
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
    trusted = command.overrides.get("policy.trust_remote_code", "false")  # never because a folder says so
    if saved.policy.trust_remote_code and trusted == "false":
        say("the run was started with --policy.trust_remote_code true, which has to be given again")
    kept = {"name": saved.name, "out": str(folder.parent), "preset": saved.preset, "policy.trust_remote_code": trusted}
    wanted = changed(wanted, kept)
    for name in ("policy.quant", "policy.gradient_checkpointing"):
        if flat(wanted)[name] == "auto":  # decided at the start of the run
            wanted = changed(wanted, {name: flat(saved)[name]})
    check_same(saved, wanted, folder)
    return relocated(wanted, folder), folder


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
    tree = read_yaml(folder / "config.yaml")
    if run_id(folder) is None:
        raise UserError(f"{folder / 'config.yaml'} was cut off: its last line does not name the run; bring it back")
    try:
        return parse(tree)
    except UserError as error:
        raise UserError(f"{folder / 'config.yaml'}: {error}") from None


def is_finished(folder: Path, config: Config) -> bool:
    """Whether all steps and the figures after them are there."""
    rows = read_rows(folder / "metrics.jsonl")
    return (folder / "summary.json").is_file() and bool(rows) and rows[-1]["step"] >= config.steps


def relocated(config: Config, folder: Path) -> Config:
    """Files that were named from the folder the run was started in are found from any other."""
    places = (Path(), *folder.absolute().parents, Path(__file__).parents[2])

    def find(name: str) -> str:
        return next((str(place / name) for place in places if (place / name).exists()), name)

    found = {name: value for name, value in flat(config).items() if name in PATHS and value}
    moved = {name: find(value) if isinstance(value, str) else tuple(map(find, value)) for name, value in found.items()}
    return changed(config, moved)


def decisive(config: Config) -> dict[str, str]:
    """The settings that decide what is learned, as a checkpoint keeps them."""
    settings = {name: typed(value) for name, value in flat(config).items() if name not in FREE}
    return {name: re.sub(r"[^,]*/", "", value) if name in PATHS else value for name, value in settings.items()}


def refuse_other(before: dict[str, str], after: dict[str, str], what: str, cure: str) -> None:
    """UserError with the list of settings that are not the same."""
    if refused := sorted(name for name in before if before[name] != after.get(name, before[name])):
        listed = ", ".join(f"{name} {before[name]} -> {after[name]}" for name in refused)
        raise UserError(f"{what} was started with other settings: {listed}. {cure}, or start a new run (--name)")


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
    refuse_other(decisive(saved), decisive(wanted), str(folder), "Leave them out to continue it")
    if inexact := sorted(differing & ROUNDING):
        say(f"{', '.join(inexact)} differs from the start of the run: it goes on, but not bit for bit the same")


def _last_written(folder: Path) -> float:
    """When the run itself last wrote: a report or a note in its folder does not make it the newest."""
    own = [folder / "config.yaml", folder / "metrics.jsonl", *numbered(folder / "checkpoints").values()]
    return max(path.stat().st_mtime for path in own if path.exists())


SMALL_FILES = 16 * 2**20
"""Bytes: tokenizer, configuration, manifest."""


class TrainingState:
    """Everything that decides how training goes on, in a checkpoint and back.

    Step `step` is complete. `row` holds its figures until they are logged: its evaluation may still be missing. Weights
    and moments change in the optimiser's step alone and are written as they are. The small rest (random states,
    calibration, counters) is copied when a step is complete, so an abandoned step leaves no trace.
    """

    def __init__(self, policy: Policy, learner: Learner, reward: Reward, problems: Sequence[Problem]):
        self.policy, self.learner, self.reward = policy, learner, reward
        self.data, self.base, self.run, self.settings = digest(problems), digest_weights(policy), "", {}
        self.step, self.row = 0, {"step": 0}
        self.notes: dict = {}
        """What the run itself remembers, such as the test figures before training."""
        self._small = self._copy_small()

    def bind(self, run: str, settings: dict[str, str]) -> None:
        """What a checkpoint must have been written by to be read: this run, with these settings."""
        self.run, self.settings = run, settings

    def complete(self, step: int, row: dict[str, float]) -> None:
        self.step, self.row = step, row
        self._small = self._copy_small()

    def write(self, folder: Path) -> None:
        """The Hugging Face layout, and trainer.pt beside it (read back with weights_only: no pickle)."""
        self.policy.save(folder)
        small = {"step": self.step, "row": self.row, "notes": self.notes}
        small |= {"data": self.data, "base": self.base, "run": self.run, "settings": self.settings}
        torch.save(small | self._small | {"optimizer": self.learner.optimizer.state_dict()}, folder / TRAINER)

    def read(self, folder: Path) -> None:
        """Nothing is changed before all is checked.

        UserError when run, settings, base model or problems are not those of the checkpoint; ValueError when it is none
        of such a run.
        """
        try:
            saved = torch.load(folder / TRAINER, weights_only=True, map_location="cpu")
            shapes = [master.shape for master in saved["optimizer"]["masters"]]
            identity = [saved[name] for name in ("run", "settings", "base", "data", "step", "learner", "reward")]
        except (torch.serialization.pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
            raise ValueError(f"{TRAINER} is none: {str(error).splitlines()[0]}") from error
        if shapes != [master.shape for master in self.learner.optimizer.masters]:
            raise ValueError("it has other trained weights than this run")
        self._check_identity(folder, *identity[:4])
        self.learner.optimizer.load_state_dict(saved["optimizer"])
        self.learner.bad_steps, self.learner.token_budget = saved["learner"]
        self.reward.load_state_dict(saved["reward"])
        set_random_state(saved["random"])
        self.notes = saved["notes"]
        self.complete(saved["step"], saved["row"])

    def _check_identity(self, folder: Path, run: str, settings: dict, base: str, data: str) -> None:
        new = "or start a new run with another --name"
        if run != self.run:
            raise UserError(f"{folder} is of another run: move it out of the checkpoints, {new}")
        refuse_other(settings, self.settings, str(folder), "config.yaml was changed: put them back")
        if base != self.base:
            raise UserError(f"{folder} belongs to another base model than this one; bring the old model back, {new}")
        if data != self.data:
            raise UserError(
                f"{folder} was trained on other problems than the data now holds (prompt, ground truth or order "
                f"differ); bring the old data back, {new}"
            )

    def bytes(self) -> int:
        """About what `write` takes: weights, and for what is trained two moments and the masters in float32."""
        trained = sum(p.numel() for p in self.policy.trainable().values())
        saved = self.policy.trainable().values() if self.policy.lora else self.policy.network.parameters()
        return sum(p.numel() * p.element_size() for p in saved) + 12 * trained + SMALL_FILES

    def _copy_small(self) -> dict:
        return {
            "learner": (self.learner.bad_steps, self.learner.token_budget),
            "reward": copy.deepcopy(self.reward.state_dict()),
            "random": random_state(),
        }


def digest(problems: Sequence[Problem]) -> str:
    """Of what training sees of the data: token ids and ground truths, in order."""
    seen = hashlib.sha256()
    for problem in problems:
        seen.update(repr((problem.prompt_ids, problem.ground_truth)).encode())
    return seen.hexdigest()


def digest_weights(policy: Policy) -> str:
    """Of the base model: what is not trained under LoRA, all weights (as they were loaded) without it."""
    seen = hashlib.sha256()
    for name, parameter in policy.network.named_parameters():
        if not (policy.lora and parameter.requires_grad):
            seen.update(name.encode())
            seen.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return seen.hexdigest()


def set_seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state() -> dict:
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict) -> None:
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
