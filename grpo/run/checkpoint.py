"""Checkpoints on disk: a folder with the final name is whole, and can be shown to be.

Written beside, checksummed, flushed to the disk, renamed. `step_000040/` opens with AutoModelForCausalLM (or PEFT);
trainer.pt holds what training needs to go on (see resume.py), manifest.json the size and SHA-256 of every file. Older
checkpoints of evaluated steps lose trainer.pt, so that their weights can still be evaluated.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from safetensors import SafetensorError

from grpo.errors import UserError
from grpo.run import files
from grpo.run.terminal import say

MANIFEST = "manifest.json"
TRAINER = "trainer.pt"
UNFINISHED = ".unfinished_"
TORCH_WRITER = "inline_container"
"""Names the part of torch that writes the file in the RuntimeError it raises when the disk refuses."""
GIB = 2**30


class Checkpoints:
    """The checkpoints of one run: whole ones of the newest `keep` steps, weights of the best and the evaluated ones."""

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def path(self, step: int) -> Path:
        return self.folder / f"step_{step:06d}"

    def steps(self) -> list[int]:
        """Oldest first."""
        return [step for step, path in files.numbered(self.folder).items() if path.is_dir() and not path.is_symlink()]

    def save(self, step: int, write: Callable[[Path], None], needed: int, accuracy: dict[int, float]) -> Path:
        """`write(folder)` fills the new checkpoint; `needed` is about how many bytes it takes.

        Then removes what need not stay: `accuracy` maps the evaluated steps to held-out accuracy. UserError when the
        disk is full; the earlier checkpoints stay as they are.
        """
        unfinished = self.folder / f"{UNFINISHED}{step:06d}"
        with files.writing(self.folder):
            self.folder.mkdir(exist_ok=True)
            self._make_room(needed, accuracy)
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
        try:
            write(unfinished)
            _seal(unfinished)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            if isinstance(error, RuntimeError) and TORCH_WRITER not in str(error):  # not the disk's fault
                raise
            raise UserError(f"{self._not_saved(step)}: {str(error).splitlines()[0]}") from error
        with files.writing(self.folder):
            if self.path(step).exists():
                self._remove(self.path(step))
            os.replace(unfinished, self.path(step))
            files.sync_folder(self.folder)
            self.prune(accuracy)
        return self.path(step)

    def restore(self, read: Callable[[Path], None]) -> Path | None:
        """Reads the newest whole one. Damaged ones are said and put aside under another name; leftovers are removed.

        `read` raises ValueError, before it changes anything, for one that does not fit; its UserError ends the search.
        None when there is none.
        """
        for leftover in self.folder.glob(f"{UNFINISHED}*"):
            say(f"{leftover}: was not finished when the run ended; removed")
            shutil.rmtree(leftover)
        for step in reversed(self.steps()):
            path = self.path(step)
            damage = find_damage(path)
            if damage is None and not (path / TRAINER).exists():  # weights alone
                continue
            if damage is None:
                try:
                    read(path)
                    return path
                except UserError:
                    raise
                except ValueError as error:
                    damage = str(error)
            self._put_aside(path, damage)
        return None

    def _put_aside(self, path: Path, damage: str) -> None:
        aside = self.folder / f"damaged_{path.name}"
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        say(f"checkpoint {path} is damaged ({damage}); moved to {aside.name}, using the one before it")

    def best(self, accuracy: dict[int, float]) -> int | None:
        """The step of the best kept checkpoint, the earlier one on a tie; None where none was evaluated."""
        return max((step for step in self.steps() if step in accuracy), key=accuracy.__getitem__, default=None)

    def prune(self, accuracy: dict[int, float]) -> None:
        """Whole checkpoints of the newest steps stay, of the evaluated steps before them the weights."""
        for step in self.steps()[: -self.keep]:
            if step not in accuracy:
                self._remove(self.path(step))
            elif (self.path(step) / TRAINER).exists():
                _drop_trainer(self.path(step))

    def _remove(self, path: Path) -> None:
        """Renamed first: half a removed checkpoint must not look like a checkpoint."""
        away = path.with_name(f"{UNFINISHED}{path.name}")
        os.replace(path, away)
        shutil.rmtree(away)

    def _make_room(self, needed: int, accuracy: dict[int, float]) -> None:
        """Where the disk is short, old weights go: first those whose neighbours are nearest, never the best."""
        while _free(self.folder) < needed:
            steps = self.steps()
            old = [step for step in steps[: -self.keep] if step != self.best(accuracy)]
            if not old:
                raise UserError(
                    f"disk full: a checkpoint takes {needed / GIB:.2f} GiB and {self.folder} has "
                    f"{_free(self.folder) / GIB:.2f} GiB free; {self._last()}. Free space and --resume"
                )
            around = dict(zip(steps, zip([0, *steps], [*steps[1:], 0], strict=False), strict=False))
            nearest = min(old, key=lambda step: around[step][1] - around[step][0])
            say(f"the disk is nearly full: the weights of step {nearest} make room")
            self._remove(self.path(nearest))

    def _not_saved(self, step: int) -> str:
        return f"the checkpoint of step {step} could not be written ({self._last()}; free space and --resume)"

    def _last(self) -> str:
        return f"the last checkpoint is {self.path(self.steps()[-1])}" if self.steps() else "there is no checkpoint yet"


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None: every file must be as it was written."""
    try:
        manifest = {name: (int(size), str(digest)) for name, (size, digest) in _read_manifest(path).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return f"no readable {MANIFEST}"
    for name, (size, _) in manifest.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if (path / name).stat().st_size != size:
            return f"{name} has {(path / name).stat().st_size} bytes instead of {size}"
    for name, digest in _digests(path, list(manifest)).items():
        if digest != manifest[name][1]:
            return f"{name} has another checksum"
    return None


def _read_manifest(path: Path) -> dict:
    return json.loads((path / MANIFEST).read_text())


def _seal(folder: Path) -> None:
    """The manifest, and everything on the disk."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    digests = _digests(folder, names)
    manifest = {name: [(folder / name).stat().st_size, digests[name]] for name in names}
    files.write(folder / MANIFEST, json.dumps(manifest, indent=1))
    files.sync_tree(folder)


def _drop_trainer(folder: Path) -> None:
    """The manifest first: a folder that still has the file but does not name it holds weights alone."""
    manifest = _read_manifest(folder)
    manifest.pop(TRAINER, None)
    files.write(folder / MANIFEST, json.dumps(manifest, indent=1))
    (folder / TRAINER).unlink()


def _digests(folder: Path, names: Sequence[str]) -> dict[str, str]:
    def digest(name: str) -> str:
        with (folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter's lock
        return dict(zip(names, pool.map(digest, names), strict=True))


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free
