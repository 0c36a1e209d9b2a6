"""Checkpoints: written to a temporary folder, checksummed, then renamed, so a folder with its final name is complete.

`step_000040/` opens with AutoModelForCausalLM (or PEFT). trainer.pt holds what training needs to continue,
manifest.json the size and SHA-256 of every file. Older checkpoints of evaluated steps lose trainer.pt; their weights
can still be evaluated.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from grpo.errors import UserError, first_line
from grpo.hub import MANIFEST
from grpo.learner import Learner
from grpo.machine import GIB
from grpo.policy import Policy
from grpo.run import files
from grpo.run.resume import digest_problems, refuse_other
from grpo.terminal import notify
from grpo.types import Problem
from rewards import Reward

TRAINER = "trainer.pt"
UNFINISHED = ".unfinished_"


class TrainingState:
    """The state that training needs to continue: writes it to a checkpoint and reads it back.

    Step `step` is complete. `row` holds its figures until they are logged: its evaluation may still be missing. Weights
    and moments change in the optimiser's step alone and are written as they are. The small rest (calibration, counters)
    is copied when a step is complete, so an abandoned step leaves no trace.
    """

    def __init__(
        self,
        policy: Policy,
        learner: Learner,
        reward: Reward,
        problems: Sequence[Problem],
        held_out: Mapping[str, Sequence[Problem]] | None = None,
    ):
        """held_out: name -> problems of each set that is evaluated."""
        self.policy = policy
        self.learner = learner
        self.reward = reward
        self.identity: dict[str, Any] = {"base": policy.digest, "data": digest_problems(problems)}
        """A checkpoint is only read by a run with the same identity and settings; the run adds its id."""
        self.identity |= {f"problems of {name}": digest_problems(held) for name, held in (held_out or {}).items()}
        if reward.weights:
            self.identity["signals"] = sorted(reward.weights)
        self.settings: dict[str, str] = {}
        self.reward_source = ""
        """SHA-256 of a user's own reward"""
        self.notes: dict = {}
        """Figures that the run keeps for its summary, such as the test figures before training."""
        self.complete(0, {"step": 0})

    def complete(self, step: int, row: dict[str, float]) -> None:
        self.step = step
        self.row: dict[str, float] | None = row
        self._small = {"learner": self.learner.counters(), "reward": copy.deepcopy(self.reward.state_dict())}

    def write(self, folder: Path) -> None:
        """Writes the Hugging Face layout, and trainer.pt beside it (read back with weights_only: no pickle)."""
        small = {name: getattr(self, name) for name in ("step", "row", "notes", "settings", "reward_source")}
        sections = self._small | {"identity": self.identity, "optimizer": self.learner.optimizer.state_dict()}
        self.policy.save(folder)
        torch.save(small | sections, folder / TRAINER)

    def read(self, folder: Path) -> None:
        """Raises UserError if the checkpoint belongs to another training, ValueError if it is not a checkpoint."""
        try:
            saved = torch.load(folder / TRAINER, weights_only=True, map_location="cpu")
        except torch.serialization.pickle.UnpicklingError as error:
            raise ValueError(f"{TRAINER} cannot be read: {first_line(error)}") from error
        if "identity" not in saved:
            commit = "versions.json of the run names its commit"
            raise UserError(f"{folder / TRAINER} was written by another version; continue with that one: {commit}")
        refuse_other(saved["settings"] | saved["identity"], self.settings | self.identity, folder, "Restore them")
        if saved["reward_source"] != self.reward_source:
            notify(f"the reward's source was edited after {folder.name}: from here on the run follows the new one")
        self.learner.optimizer.load_state_dict(saved["optimizer"])
        self.learner.restore(saved["learner"])
        self.reward.load_state_dict(saved["reward"])
        self.notes = saved["notes"]
        self.complete(saved["step"], saved["row"])


class Checkpoints:
    """The checkpoints of one run: complete ones of the newest `keep` steps, weights of evaluated steps before them."""

    def __init__(self, folder: Path, keep: int):
        self.folder = folder
        self.keep = keep
        self.accuracy: dict[int, float] = {}
        """Evaluated step -> held-out accuracy"""

    def path(self, step: int) -> Path:
        return self.folder / f"step_{step:06d}"

    def steps(self) -> list[int]:
        """Oldest first."""
        return [step for step, path in files.numbered(self.folder).items() if path.is_dir() and not path.is_symlink()]

    def best(self) -> int | None:
        """The step of the best kept checkpoint, the earlier one on a tie; None if no step was evaluated."""
        evaluated = [step for step in self.steps() if step in self.accuracy]
        return max(evaluated, key=self.accuracy.__getitem__, default=None)

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Makes a checkpoint that `write(folder)` fills, then prunes the others.

        Raises UserError when the disk is full; the earlier checkpoints stay as they are.
        """
        unfinished = self.folder / f"{UNFINISHED}{step:06d}"
        with files.writing(self.folder):
            self.folder.mkdir(exist_ok=True)
            self._make_room()
            try:
                unfinished.mkdir()
                write(unfinished)
                seal(unfinished)
                if self.path(step).exists():
                    self._remove(step)
                os.replace(unfinished, self.path(step))
            except (RuntimeError, SafetensorError) as error:  # a full disk, in the words of these libraries
                raise OSError(first_line(error)) from error
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)  # half a checkpoint would keep a full disk full
            files.sync(self.folder)
            self.prune()

    def restore(self, read: Callable[[Path], None]) -> int | None:
        """Reads the newest complete checkpoint and returns its step; None without one.

        Damaged checkpoints are reported and renamed; unfinished ones are deleted. For a checkpoint that does not fit,
        `read` raises ValueError before it changes anything; its UserError ends the search.
        """
        for leftover in self.folder.glob(f"{UNFINISHED}*"):
            notify(f"{leftover}: the run ended before it was complete; removed")
            shutil.rmtree(leftover)
        for step in reversed(self.steps()):
            path = self.path(step)
            try:
                check_whole(path)
                if (path / TRAINER).exists():  # else it is weights alone
                    read(path)
                    return step
            except UserError:
                raise
            except ValueError as damage:
                away = aside(path)
                notify(
                    f"checkpoint {path} is damaged ({damage}): renamed to {away.name}; falling back to the one before"
                )
                shutil.rmtree(away, ignore_errors=True)
                path.rename(away)
        return None

    def prune(self) -> None:
        """Keeps complete checkpoints of the newest steps, and the weights of evaluated steps before them."""
        for step in self.steps()[: -self.keep]:
            if step not in self.accuracy:
                self._remove(step)
            elif (self.path(step) / TRAINER).exists():
                drop_trainer(self.path(step))

    def _remove(self, step: int) -> None:
        """Removes a checkpoint, renamed first: half of one must not look like a checkpoint."""
        away = self.folder / f"{UNFINISHED}{self.path(step).name}"
        os.replace(self.path(step), away)
        shutil.rmtree(away)

    def _make_room(self) -> None:
        """Frees space for a checkpoint as large as the newest: removes the oldest weights, never the best."""
        steps = self.steps()
        needed = sum(file.stat().st_size for step in steps[-1:] for file in self.path(step).rglob("*"))
        old = [step for step in steps[: -self.keep] if step != self.best()]
        while (free := shutil.disk_usage(self.folder).free) < needed:
            if not old:
                raise UserError(
                    f"disk full: a checkpoint takes {needed / GIB:.2f} GiB and {self.folder} has {free / GIB:.2f} GiB "
                    "free; free space and --resume"
                )
            notify(f"the disk is nearly full: removing the weights of step {old[0]}")
            self._remove(old.pop(0))


def is_finished(folder: Path, last: int) -> bool:
    """True if step `last` and its figures are on disk, and its rows and checkpoint are undamaged.

    A checkpoint that was removed to save space may be missing; one that restore() set aside must be made again.
    """
    damaged: list[bytes] = []
    rows = files.read_rows(folder / "metrics.jsonl", damaged)
    path = Checkpoints(folder / "checkpoints", keep=1).path(last)
    if path.exists():
        try:
            check_whole(path)
        except ValueError:  # restore() reports it
            return False
    elif aside(path).exists():  # the run was killed after it had set it aside
        return False
    return (folder / "summary.json").is_file() and not damaged and bool(rows) and rows[-1]["step"] >= last


def aside(checkpoint: Path) -> Path:
    """The path to which a damaged checkpoint is moved."""
    return checkpoint.with_name(f"damaged_{checkpoint.name}")


def seal(folder: Path) -> None:
    """Writes the manifest and flushes everything: a rename must not reach the disk before the content."""
    inside = sorted(folder.rglob("*"))
    manifest = {str(path.relative_to(folder)): size_and_digest(path) for path in inside if path.is_file()}
    files.write(folder / MANIFEST, json.dumps(manifest, indent=1))
    for path in (*inside, folder):
        files.sync(path)


def check_whole(folder: Path) -> None:
    """Raises ValueError with the first file of a checkpoint that is not as it was written."""
    try:
        manifest = dict(json.loads((folder / MANIFEST).read_text()))
        changed = next((name for name, entry in manifest.items() if size_and_digest(folder / name) != entry), None)
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(first_line(error)) from error
    if changed:
        raise ValueError(f"{changed} is not as it was written")


def size_and_digest(path: Path) -> list:
    """The file's bytes, and the SHA-256 of its content."""
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def drop_trainer(folder: Path) -> None:
    """Removes trainer.pt, from the manifest first: a folder that does not name it there holds weights alone."""
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest[TRAINER]
    files.write(folder / MANIFEST, json.dumps(manifest, indent=1))
    (folder / TRAINER).unlink()
