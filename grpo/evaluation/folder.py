"""What an evaluation leaves on disk: `evals/<model>/<bench>-<settings hash>/`.

settings.json says what was asked, outputs.jsonl holds one row a completion, scores.json the figures. The hash of the
settings is in the folder's name, so rows made under other settings (another model file, prompt, temperature, library
version) can never be continued or mixed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from grpo.errors import UserError

OUTPUTS, SETTINGS, SCORES = "outputs.jsonl", "settings.json", "scores.json"
GRADED_WITH = ("math-verify", "sympy")


class EvalFolder:
    """Rows are appended and flushed to the disk as they are made; whoever opens the folder again finds them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, root: Path, model: str, bench: str, settings: dict) -> EvalFolder:
        """The folder of these settings, new or begun earlier."""
        text = json.dumps(settings, sort_keys=True)
        folder = cls(root / model / f"{bench}-{hashlib.sha256(text.encode()).hexdigest()[:10]}")
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            if not (folder.path / SETTINGS).exists():
                write_json(folder.path / SETTINGS, settings)
        except OSError as error:
            raise UserError(f"cannot write to {folder.path}: {error}; choose another place by --out") from error
        return folder

    @classmethod
    def open(cls, path: str | Path) -> EvalFolder:
        """An existing one. Raises UserError where something is missing."""
        path = Path(path)
        for name in (OUTPUTS, SETTINGS):
            if not (path / name).is_file():
                raise UserError(f"{path} is no evaluation: it has no {name} (evals/<model>/<bench>-<hash> has)")
        return cls(path)

    @property
    def settings(self) -> dict:
        return read_json(self.path / SETTINGS)

    @property
    def scores(self) -> dict:
        return read_json(self.path / SCORES)

    def save_scores(self, scores: dict) -> None:
        """The figures, and the versions of the graders that gave them."""
        write_json(self.path / SCORES, scores | {"graded_with": versions(GRADED_WITH)})

    def rows(self) -> list[dict]:
        """The finished rows, by problem and sample. A line that a kill cut in two is not a row."""
        path = self.path / OUTPUTS
        if not path.exists():
            return []
        lines = path.read_bytes().split(b"\n")
        rows = []
        for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is an unfinished line, or nothing
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise UserError(
                    f"{path} line {number} is damaged ({error}); delete that line and run again: "
                    "the other rows are kept and its problem is done anew"
                ) from None
        return sorted(rows, key=lambda row: (row["problem"], row["sample"]))

    def keep_whole_problems(self, samples: int) -> list[dict]:
        """The rows of problems that have all their samples; the rest is dropped from the file, to be made again."""
        rows = self.rows()
        count = Counter(row["problem"] for row in rows)
        whole = [row for row in rows if count[row["problem"]] == samples]
        self.replace(whole)
        return whole

    def append(self, rows: Iterable[dict]) -> None:
        """Adds rows and has them on the disk before it returns. A full disk costs at most these rows."""
        path = self.path / OUTPUTS
        try:
            with path.open("ab") as file:
                file.write(b"".join(_line(row) for row in rows))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"cannot save to {path} ({error.strerror}); every row finished before is kept: "
                "make room and run the same command again, it goes on from there"
            ) from error

    def replace(self, rows: Iterable[dict]) -> None:
        """All rows anew, in one step."""
        _write(self.path / OUTPUTS, b"".join(_line(row) for row in rows))


def _line(row: dict) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; the evaluation is unfinished: run its command again") from None
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}); python eval.py --regrade {path.parent} makes scores anew"
        ) from None


def write_json(path: Path, content: dict) -> None:
    _write(path, (json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode())


def _write(path: Path, content: bytes) -> None:
    """Beside and then in place: a reader, or a kill, meets the old file or the new one."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"cannot save {path} ({error.strerror}); make room and run the same command again") from error


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Of those that are installed."""
    installed = {distribution.name.lower(): distribution.version for distribution in importlib.metadata.distributions()}
    return {package: installed[package] for package in packages if package in installed}
