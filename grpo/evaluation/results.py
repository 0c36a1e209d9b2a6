"""What is kept of an evaluation, and how it is shown.

`evals/<model>/<bench>-<settings hash>/`: settings.json says what was asked, outputs.jsonl holds one row a completion,
scores.json the figures. The hash of the settings is in the folder's name, so rows made under other settings (another
model file, prompt, temperature, library version) can never be continued or mixed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from grpo.environment import versions_of
from grpo.errors import UserError
from grpo.evaluation.benchmarks import Protocol
from grpo.evaluation.scores import COLUMNS, by_problem, grade, paired_difference, score_rows
from grpo.run import files
from rewards import Verifier

OUTPUTS, SETTINGS, SCORES = "outputs.jsonl", "settings.json", "scores.json"
PAPER_SCORES = (
    "The paper's own figures, not ours (Wang et al. 2025, arXiv:2504.20571, Qwen2.5-Math-1.5B): math500 36.0 base, "
    "73.6 after pi1; average of its six 17.6 base, 35.7 after pi1"
)


class EvalFolder:
    """Rows are on the disk before the next are asked for; whoever opens the folder again finds them."""

    def __init__(self, path: str | Path) -> None:
        """An existing one. UserError where it is none."""
        self.path, self.outputs = Path(path), Path(path) / OUTPUTS
        try:
            self.settings = json.loads((self.path / SETTINGS).read_bytes())
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is no evaluation (evals/<model>/<bench>-<hash> is one): {error}") from None

    @classmethod
    def create(cls, root: Path, model: str, settings: dict) -> EvalFolder:
        """The folder of these settings, new or begun earlier."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        path = root / model / f"{settings['bench']}-{digest[:10]}"
        with files.writing(path):
            path.mkdir(parents=True, exist_ok=True)
            files.write(path / SETTINGS, _json(settings))
        return cls(path)

    def rows(self) -> list[dict]:
        """The rows of the problems that have all their samples, by problem and sample, each once.

        A line that is cut or damaged is not a row: its problem is to be asked again.
        """
        rows = {(row["problem"], row["sample"]): row for row in files.read_rows(self.outputs)}
        groups = by_problem([rows[key] for key in sorted(rows)]).values()
        return [row for group in groups if len(group) == self.settings["samples"] for row in group]

    def append(self, rows: Sequence[dict]) -> None:
        """On the disk before it returns. A full disk costs at most these rows."""
        with files.writing(self.path):
            files.append(self.outputs, _lines(rows))

    def replace(self, rows: Sequence[dict]) -> None:
        """All rows anew, in one step."""
        with files.writing(self.path):
            files.write(self.outputs, _lines(rows))

    def save_scores(self, rows: Sequence[dict]) -> dict:
        """The rows' figures, kept with the versions of the graders that gave them."""
        scores = score_rows(rows)
        with files.writing(self.path):
            files.write(self.path / SCORES, _json(scores | {"graded_with": versions_of(("math-verify", "sympy"))}))
        return scores


def _json(content: dict) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _lines(rows: Sequence[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def regrade(folder: EvalFolder, verifier: Verifier) -> tuple[Line, int]:
    """Grades the saved completions anew, without a model. The line, and how many rows changed."""
    with files.lock(folder.path):
        rows = folder.rows()
        if not rows:
            raise UserError(f"{folder.path} holds no finished problem")
        anew = grade(rows, verifier)
        folder.replace(anew)
        scores = folder.save_scores(anew)
    changed = sum(old != new for old, new in zip(rows, anew, strict=True))
    return Line(folder.path.resolve().parent.name, None, folder.settings, scores), changed


def difference(a: EvalFolder, b: EvalFolder) -> dict[str, dict]:
    """Column -> paired b - a, and the problems that flipped. UserError where they were not asked the same."""
    for key in ("bench", "data_sha256", "problems"):
        if a.settings[key] != b.settings[key]:
            raise UserError(f"{a.path} and {b.path} differ in {key}: {a.settings[key]} and {b.settings[key]}")
    before, after = by_problem(a.rows()), by_problem(b.rows())
    if not before or before.keys() != after.keys():
        raise UserError(f"{a.path} and {b.path} do not hold the same problems: one of them is unfinished")
    return {column: paired_difference(before, after, column) for column in COLUMNS}


# ---- tables


class Line(NamedTuple):
    """One model with one prompt on one benchmark."""

    model: str
    step: int | None  # of a run: 0 is its base
    settings: dict
    scores: dict

    @property
    def bench(self) -> str:
        return self.settings["bench"] + "*" * (self.settings["limit"] is not None)


def table(lines: Sequence[Line]) -> str:
    """The scores in percent with 95% intervals; what several samples and sets add; the paper's figures, marked."""
    shares = [*COLUMNS, *(["continued"] if all("continued" in line.scores for line in lines) else [])]
    rows = [("model", "benchmark", "prompt", "n x k", "sampling", *shares, "cut", "no box")]
    rows += [
        (
            line.model,
            line.bench,
            line.settings["prompt"],
            f"{line.scores['problems']} x {line.scores['samples']}",
            str(Protocol(1, line.settings["temperature"])),
            *(_percent(line.scores[share]) for share in shares),
            *(f"{line.scores[share]:.1%}" for share in ("truncated", "no_box")),
        )
        for line in lines
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    text.append(
        "strict: last complete box. flexible: the paper's rule (without a box what follows 'answer is', else the last "
        "number). In brackets: 95%, Wilson's interval for one sample a problem, else the bootstrap over problems."
    )
    if "continued" in shares:
        text.append(
            "continued: the model wrote the rest of the question word for word. Who never saw a text does not; a right "
            "answer to a question that was cut can be a guess."
        )
    if any(line.settings["limit"] is not None for line in lines):
        text.append("*: only the first rows (--limit): a smoke figure, not the benchmark's score.")
    if any(line.settings["bench"] == "math500" for line in lines):
        text.append(PAPER_SCORES)
    for line in lines:
        text += [_several_samples(line, column) for column in COLUMNS if "pass" in line.scores[column]]
    for asked in dict.fromkeys((line.model, line.settings["prompt"]) for line in lines):
        group = [line for line in lines if (line.model, line.settings["prompt"]) == asked]
        if len(group) > 1:
            text.append(f"{asked[0]}, prompt {asked[1]}  average of {len(group)}: {_means(group)}")
    return "\n".join(text)


def _percent(figure: dict) -> str:
    return f"{100 * figure['mean']:5.1f} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"


def _several_samples(line: Line, column: str) -> str:
    found = {f"pass@{k}": value for k, value in line.scores[column]["pass"].items()}
    found[f"maj@{line.scores['samples']}"] = line.scores[column]["maj"]
    means = "  ".join(f"{name} {100 * value['mean']:.1f}" for name, value in found.items())
    return f"{line.model}  {line.bench}  {column}: {means}"


def _mean(lines: Sequence[Line], column: str) -> float:
    """Percent; unweighted over benchmarks: the paper's "average" when the lines are its six."""
    return 100 * sum(line.scores[column]["mean"] for line in lines) / len(lines)


def _means(lines: Sequence[Line]) -> str:
    return ", ".join(f"{column} {_mean(lines, column):.1f}" for column in COLUMNS)


def last_and_best(lines: Sequence[Line]) -> str:
    """For the checkpoints of one run, oldest first; the base model (step 0) is neither."""
    steps = {step: list(group) for step, group in groupby(lines, key=lambda line: line.step) if step}
    best = max(steps, key=lambda step: _mean(steps[step], "strict"))
    text = [f"{name}: step {step}, {_means(steps[step])}" for name, step in (("last", max(steps)), ("best", best))]
    rule = "highest strict mean over the benchmarks evaluated, the earliest on a tie"
    return "\n".join([*text, f"best is chosen by: {rule}; on the problems that score it, so it flatters. Report last."])


def plot(lines: Sequence[Line], title: str, path: Path) -> Path:
    """Accuracy over steps with 95% intervals, one panel a benchmark, both columns."""
    from matplotlib.figure import Figure

    benches = list(dict.fromkeys(line.bench for line in lines))
    drawing = Figure(figsize=(4 * len(benches), 3.6), layout="constrained")
    for panel, bench in zip(drawing.subplots(1, len(benches), squeeze=False)[0], benches, strict=True):
        points = [line for line in lines if line.bench == bench]
        steps = [line.step for line in points]
        for column, style in zip(COLUMNS, ("o-", "s--"), strict=True):
            mean, low, high = ([100 * line.scores[column][key] for line in points] for key in ("mean", "low", "high"))
            panel.plot(steps, mean, style, label=column)
            panel.fill_between(steps, low, high, alpha=0.15)
        panel.set(title=bench, xlabel="step", ylabel="accuracy, %", ylim=(0, 100))
        panel.grid(alpha=0.3)
        panel.legend()
    drawing.suptitle(f"{title}, 95% intervals", fontsize="medium")
    drawing.savefig(path, dpi=120)
    return path
