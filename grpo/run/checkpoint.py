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
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError

from grpo.errors import UserError, first_line
from grpo.learner import Learner
from grpo.policy import Policy
from grpo.run import files
from grpo.run.resume import check_identity, check_reward, digest_problems
from grpo.terminal import notify
from grpo.types import Problem
from rewards import Reward

MANIFEST = "manifest.json"
TRAINER = "trainer.pt"
UNFINISHED = ".unfinished_"
TORCH_WRITER = "inline_container"
"""Names the part of torch that writes the file in the RuntimeError it raises when the disk refuses."""
GIB = 2**30


class TrainingState:
    """Everything that decides how training continues, to a checkpoint and back.

    Step `step` is complete. `row` holds its figures until they are logged: its evaluation may still be missing. Weights
    and moments change in the optimiser's step alone and are written as they are. The small rest (calibration, counters)
    is copied when a step is complete, so an abandoned step leaves no trace.
    """

    def __init__(self, policy: Policy, learner: Learner, reward: Reward, problems: Sequence[Problem]):
        self.policy = policy
        self.learner = learner
        self.reward = reward
        self.identity = {
            "base": policy.digest, "data": digest_problems(problems), "signals": sorted(reward.weights),
            "run": "", "settings": {}, "reward_source": "",
        }  # fmt: skip
        """A checkpoint is only read by a run with the same identity; the run fills in the last three."""
        self.notes: dict = {}
        """Figures that the run keeps for its summary, such as the test figures before training."""
        self.complete(0, {"step": 0})

    def complete(self, step: int, row: dict[str, float]) -> None:
        self.step = step
        self.row: dict[str, float] | None = row
        counters = (self.learner.bad_steps, self.learner.microbatch_tokens)
        self._small = {"learner": counters, "reward": copy.deepcopy(self.reward.state_dict())}

    def write(self, folder: Path) -> None:
        """Writes the Hugging Face layout, and trainer.pt beside it (read back with weights_only: no pickle)."""
        saved = {"step": self.step, "row": self.row, "notes": self.notes} | self.identity | self._small
        try:
            self.policy.save(folder)
            torch.save(saved | {"optimizer": self.learner.optimizer.state_dict()}, folder / TRAINER)
        except (RuntimeError, SafetensorError) as error:  # a full disk, in the words of these libraries
            if isinstance(error, RuntimeError) and TORCH_WRITER not in str(error):
                raise
            raise OSError(first_line(error)) from error

    def read(self, folder: Path) -> None:
        """Checks everything, then changes the state.

        Raises UserError when run, settings, base model, problems or signals are not those of the checkpoint, and
        ValueError when the file cannot be a checkpoint of such a run.
        """
        try:
            saved = torch.load(folder / TRAINER, weights_only=True, map_location="cpu")
            shapes = [master.shape for master in saved["optimizer"]["masters"]]
            step, row, notes, (bad_steps, microbatch_tokens), reward = (
                saved[name] for name in ("step", "row", "notes", "learner", "reward")
            )
            if shapes != [master.shape for master in self.learner.optimizer.masters]:
                raise ValueError("it has other trained weights than this run")
            check_identity(folder, saved, self.identity)
            check_reward(folder, saved, self.identity)
        except (torch.serialization.pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
            raise ValueError(f"{TRAINER} cannot be read: {first_line(error)}") from error
        self.learner.optimizer.load_state_dict(saved["optimizer"])
        self.learner.bad_steps, self.learner.microbatch_tokens = bad_steps, microbatch_tokens
        self.reward.load_state_dict(reward)
        self.notes = notes
        self.complete(step, row)


class Checkpoints:
    """The checkpoints of one run: complete ones of the newest `keep` steps, weights of evaluated steps before them."""

    def __init__(self, folder: Path, keep: int):
        self.folder = folder
        self.keep = keep

    def path(self, step: int) -> Path:
        return self.folder / f"step_{step:06d}"

    def steps(self) -> list[int]:
        """Oldest first."""
        return [step for step, path in files.numbered(self.folder).items() if path.is_dir() and not path.is_symlink()]

    def save(self, step: int, write: Callable[[Path], None], accuracy: dict[int, float]) -> None:
        """Makes a checkpoint that `write(folder)` fills, then prunes the others.

        `accuracy` maps the evaluated steps to held-out accuracy. Raises UserError when the disk is full; the earlier
        checkpoints stay as they are.
        """
        unfinished = self.folder / f"{UNFINISHED}{step:06d}"
        with files.writing(self.folder):
            self.folder.mkdir(exist_ok=True)
            self._make_room(accuracy)
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            try:
                write(unfinished)
                seal(unfinished)
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)  # half a checkpoint would keep a full disk full
                raise
            if self.path(step).exists():
                self._remove(step)
            os.replace(unfinished, self.path(step))
            files.sync(self.folder)
            self.prune(accuracy)

    def restore(self, read: Callable[[Path], None]) -> int | None:
        """Reads the newest complete checkpoint and returns its step; None without one.

        Damaged checkpoints are reported and renamed; unfinished ones are deleted. `read` raises ValueError, before it
        changes anything, for one that does not fit; its UserError ends the search.
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
                aside = self.folder / f"damaged_{path.name}"
                notify(
                    f"checkpoint {path} is damaged ({damage}): renamed to {aside.name}; falling back to the one before"
                )
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
        return None

    def best(self, accuracy: dict[int, float]) -> int | None:
        """The step of the best kept checkpoint, the earlier one on a tie; None where no step was evaluated."""
        return max((step for step in self.steps() if step in accuracy), key=accuracy.__getitem__, default=None)

    def prune(self, accuracy: dict[int, float]) -> None:
        """Keeps complete checkpoints of the newest steps, and the weights of evaluated steps before them."""
        for step in self.steps()[: -self.keep]:
            if step not in accuracy:
                self._remove(step)
            elif (self.path(step) / TRAINER).exists():
                drop_trainer(self.path(step))

    def _remove(self, step: int) -> None:
        """Removes a checkpoint, renamed first: half of one must not look like a checkpoint."""
        away = self.folder / f"{UNFINISHED}{self.path(step).name}"
        os.replace(self.path(step), away)
        shutil.rmtree(away)

    def _make_room(self, accuracy: dict[int, float]) -> None:
        """Makes room for another checkpoint like the newest: on a short disk the oldest weights go, never the best."""
        newest = [self.path(step) for step in self.steps()[-1:]]
        needed = sum(file.stat().st_size for path in newest for file in path.rglob("*"))
        while (free := shutil.disk_usage(self.folder).free) < needed:
            old = [step for step in self.steps()[: -self.keep] if step != self.best(accuracy)]
            if not old:
                raise UserError(
                    f"disk full: a checkpoint takes {needed / GIB:.2f} GiB and {self.folder} has {free / GIB:.2f} GiB "
                    "free; free space and --resume"
                )
            notify(f"the disk is nearly full: removing the weights of step {old[0]}")
            self._remove(old[0])


def is_finished(folder: Path, last: int) -> bool:
    """True if step `last` and its figures are on disk, and rows and newest checkpoint are undamaged."""
    damaged: list[bytes] = []
    rows = files.read_rows(folder / "metrics.jsonl", damaged)
    if not (folder / "summary.json").is_file() or damaged or not rows or rows[-1]["step"] < last:
        return False
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    if not checkpoints.steps():  # removed to save space
        return True
    try:
        check_whole(checkpoints.path(last))
    except ValueError:  # restore() reports it
        return False
    return True


def seal(folder: Path) -> None:
    """Writes the manifest and flushes everything: a rename must not reach the disk before the content."""
    inside = sorted(folder.rglob("*"))
    manifest = {str(path.relative_to(folder)): size_and_digest(path) for path in inside if path.is_file()}
    files.write(folder / MANIFEST, json.dumps(manifest, indent=1))
    for path in (*inside, folder):
        files.sync(path)


def check_whole(folder: Path) -> None:
    """Raises ValueError with the first difference where a checkpoint's files are not as they were written."""
    try:
        manifest = {name: (int(size), str(digest)) for name, (size, digest) in read_manifest(folder).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        raise ValueError(f"no readable {MANIFEST}") from None
    for name, (size, digest) in manifest.items():
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        present_size, present_digest = size_and_digest(folder / name)
        if present_size != size:
            raise ValueError(f"{name} has {present_size} bytes instead of {size}")
        if present_digest != digest:
            raise ValueError(f"{name} has another checksum")


def size_and_digest(path: Path) -> tuple[int, str]:
    """The file's bytes, and the SHA-256 of its content."""
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def drop_trainer(folder: Path) -> None:
    """Removes trainer.pt, from the manifest first: a folder that does not name it there holds weights alone."""
    manifest = {name: entry for name, entry in read_manifest(folder).items() if name != TRAINER}
    files.write(folder / MANIFEST, json.dumps(manifest, indent=1))
    (folder / TRAINER).unlink()


def read_manifest(folder: Path) -> dict[str, list]:
    return json.loads((folder / MANIFEST).read_text())
