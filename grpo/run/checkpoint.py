"""What training needs to go on, and checkpoints on disk: a folder with the final name is whole, and can be shown to be.

Written beside, checksummed, flushed to the disk, renamed. `step_000040/` opens with AutoModelForCausalLM (or PEFT);
trainer.pt holds what training needs to go on, manifest.json the size and SHA-256 of every file. Older checkpoints of
evaluated steps lose trainer.pt, so that their weights can still be evaluated.
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

from grpo.errors import UserError
from grpo.learner import Learner
from grpo.policy import Policy
from grpo.run import files
from grpo.run.resume import check_identity, digest_problems, digest_weights
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
    """Everything that decides how training goes on, in a checkpoint and back.

    Step `step` is complete. `row` holds its figures until they are logged: its evaluation may still be missing. Weights
    and moments change in the optimiser's step alone and are written as they are. The small rest (calibration, counters)
    is copied when a step is complete, so an abandoned step leaves no trace.
    """

    def __init__(self, policy: Policy, learner: Learner, reward: Reward, problems: Sequence[Problem]):
        self.policy, self.learner, self.reward = policy, learner, reward
        self.identity = {"base": digest_weights(policy), "data": digest_problems(problems), "run": "", "settings": {}}
        """What a checkpoint must have been written with to be read; the run adds its own name and settings."""
        self.notes: dict = {}
        """What the run itself remembers, such as the test figures before training."""
        self.complete(0, {"step": 0})

    def complete(self, step: int, row: dict[str, float]) -> None:
        self.step, self.row = step, row
        counters = (self.learner.bad_steps, self.learner.microbatch_tokens)
        self._small = {"learner": counters, "reward": copy.deepcopy(self.reward.state_dict())}

    def write(self, folder: Path) -> None:
        """The Hugging Face layout, and trainer.pt beside it (read back with weights_only: no pickle)."""
        saved = {"step": self.step, "row": self.row, "notes": self.notes} | self.identity | self._small
        try:
            self.policy.save(folder)
            torch.save(saved | {"optimizer": self.learner.optimizer.state_dict()}, folder / TRAINER)
        except (RuntimeError, SafetensorError) as error:  # a full disk, as these libraries say it
            if isinstance(error, RuntimeError) and TORCH_WRITER not in str(error):
                raise
            raise OSError(str(error).splitlines()[0]) from error

    def read(self, folder: Path) -> None:
        """Nothing is changed before all is checked.

        UserError when run, settings, base model or problems are not those of the checkpoint; ValueError when it is none
        of such a run.
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
        except (torch.serialization.pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
            raise ValueError(f"{TRAINER} is none: {str(error).splitlines()[0]}") from error
        self.learner.optimizer.load_state_dict(saved["optimizer"])
        self.learner.bad_steps, self.learner.microbatch_tokens = bad_steps, microbatch_tokens
        self.reward.load_state_dict(reward)
        self.notes = notes
        self.complete(step, row)


class Checkpoints:
    """The checkpoints of one run: whole ones of the newest `keep` steps, weights of the best and the evaluated ones."""

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def path(self, step: int) -> Path:
        return self.folder / f"step_{step:06d}"

    def steps(self) -> list[int]:
        """Oldest first."""
        return [step for step, path in files.numbered(self.folder).items() if path.is_dir() and not path.is_symlink()]

    def save(self, step: int, write: Callable[[Path], None], accuracy: dict[int, float]) -> None:
        """`write(folder)` fills the new checkpoint.

        Then removes what need not stay: `accuracy` maps the evaluated steps to held-out accuracy. UserError when the
        disk is full; the earlier checkpoints stay as they are.
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
        """Reads the newest whole one and returns its step, None when there is none.

        Damaged ones are said and put aside under another name; leftovers are removed. `read` raises ValueError, before
        it changes anything, for one that does not fit; its UserError ends the search.
        """
        for leftover in self.folder.glob(f"{UNFINISHED}*"):
            notify(f"{leftover}: was not finished when the run ended; removed")
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
                notify(f"checkpoint {path} is damaged ({damage}): it becomes {aside.name}, the one before it is used")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
        return None

    def best(self, accuracy: dict[int, float]) -> int | None:
        """The step of the best kept checkpoint, the earlier one on a tie; None where none was evaluated."""
        return max((step for step in self.steps() if step in accuracy), key=accuracy.__getitem__, default=None)

    def prune(self, accuracy: dict[int, float]) -> None:
        """Whole checkpoints of the newest steps stay, of the evaluated steps before them the weights."""
        for step in self.steps()[: -self.keep]:
            if step not in accuracy:
                self._remove(step)
            elif (self.path(step) / TRAINER).exists():
                drop_trainer(self.path(step))

    def _remove(self, step: int) -> None:
        """Renamed first: half a removed checkpoint must not look like a checkpoint."""
        away = self.folder / f"{UNFINISHED}{self.path(step).name}"
        os.replace(self.path(step), away)
        shutil.rmtree(away)

    def _make_room(self, accuracy: dict[int, float]) -> None:
        """For one more of the newest one's size. Where the disk is short, the oldest weights go, never the best."""
        newest = [self.path(step) for step in self.steps()[-1:]]
        needed = sum(file.stat().st_size for path in newest for file in path.rglob("*"))
        while (free := shutil.disk_usage(self.folder).free) < needed:
            old = [step for step in self.steps()[: -self.keep] if step != self.best(accuracy)]
            if not old:
                raise UserError(
                    f"disk full: a checkpoint takes {needed / GIB:.2f} GiB and {self.folder} has {free / GIB:.2f} GiB "
                    "free; free space and --resume"
                )
            notify(f"the disk is nearly full: the weights of step {old[0]} make room")
            self._remove(old[0])


def seal(folder: Path) -> None:
    """The manifest, and everything on the disk: a rename must not reach it before the content does."""
    inside = sorted(folder.rglob("*"))
    manifest = {str(path.relative_to(folder)): size_and_digest(path) for path in inside if path.is_file()}
    files.write(folder / MANIFEST, json.dumps(manifest, indent=1))
    for path in (*inside, folder):
        files.sync(path)


def check_whole(folder: Path) -> None:
    """ValueError with what is wrong where a checkpoint's files are not as they were written."""
    try:
        manifest = {name: (int(size), str(digest)) for name, (size, digest) in read_manifest(folder).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        raise ValueError(f"no readable {MANIFEST}") from None
    for name, (size, digest) in manifest.items():
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        found_size, found_digest = size_and_digest(folder / name)
        if found_size != size:
            raise ValueError(f"{name} has {found_size} bytes instead of {size}")
        if found_digest != digest:
            raise ValueError(f"{name} has another checksum")


def size_and_digest(path: Path) -> tuple[int, str]:
    """Bytes, and SHA-256 of the content."""
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def drop_trainer(folder: Path) -> None:
    """The manifest first: a folder that still has the file but does not name it holds weights alone."""
    manifest = {name: entry for name, entry in read_manifest(folder).items() if name != TRAINER}
    files.write(folder / MANIFEST, json.dumps(manifest, indent=1))
    (folder / TRAINER).unlink()


def read_manifest(folder: Path) -> dict[str, list]:
    return json.loads((folder / MANIFEST).read_text())
