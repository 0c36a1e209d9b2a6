"""Evaluation folders on disk, and tables of their scores.

`evals/<model>/<bench>-<hash>/` holds settings.json, outputs.jsonl with one row per completion, and scores.json. The
hash is that of the settings, so rows made under other settings (another model file, prompt, day, temperature or library
version) can never be continued or mixed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from types import UnionType
from typing import NamedTuple

from grpo.environment import versions_of
from grpo.errors import UserError
from grpo.evaluation.benchmarks import Protocol
from grpo.evaluation.scores import COLUMNS, by_problem, grade, paired_difference, score_rows
from grpo.run import files
from rewards import Verifier

OUTPUTS, SETTINGS, SCORES = "outputs.jsonl", "settings.json", "scores.json"
SETTING_TYPES = {
    "bench": str, "data_sha256": str, "problems": int, "prompt": str, "samples": int, "temperature": int | float,
}  # fmt: skip
ROW_TYPES = {"problem": int, "sample": int, "completion": str, "ground_truth": str, "finish_reason": str}
"""Fields without which a settings.json or a row of outputs.jsonl is damaged"""
PAPER_SCORES = (
    "The paper's own figures, not ours (Wang et al. 2025, arXiv:2504.20571, Qwen2.5-Math-1.5B): math500 36.0 base, "
    "73.6 after pi1 (65.0 by format alone: 8.6 of the 37.6 points lie beyond format correction); average of its six "
    "17.6 base, 35.7 after pi1 (28.7 by format alone: 7.0 of the 18.1 points lie beyond it)"
)


def damage(fields: object, types: Mapping[str, type | UnionType]) -> str:
    """The first of `types` that the JSON object lacks or holds as another type; "" if it is whole."""
    if not isinstance(fields, dict):
        return "it is no JSON object"
    return next((f"{name} is missing" for name, kind in types.items() if not isinstance(fields.get(name), kind)), "")


class EvalFolder:
    """One evaluation on disk. Every row is flushed before the next is sampled."""

    def __init__(self, path: str | Path) -> None:
        """Opens an existing folder. Raises UserError if it is no evaluation."""
        self.path, self.outputs = Path(path), Path(path) / OUTPUTS
        try:
            self.settings = json.loads((self.path / SETTINGS).read_bytes())
            if problem := damage(self.settings, SETTING_TYPES):
                raise ValueError(f"{SETTINGS}: {problem}")
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} is no evaluation (evals/<model>/<bench>-<hash> is one): {error}") from None

    @classmethod
    def create(cls, root: Path, model: str, settings: dict) -> EvalFolder:
        """The folder of these settings, new or to be continued."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        path = root / model / f"{settings['bench']}-{digest[:10]}"
        with files.writing(path):
            path.mkdir(parents=True, exist_ok=True)
        files.write(path / SETTINGS, _json(settings))
        return cls(path)

    def rows(self) -> list[dict]:
        """The rows of the problems that have all their samples, sorted by problem and sample, each once.

        A damaged line is not a row: its problem will be sampled again.
        """
        whole = (row for row in files.read_rows(self.outputs) if not damage(row, ROW_TYPES))
        rows = {(row["problem"], row["sample"]): row for row in whole}
        groups = by_problem([rows[key] for key in sorted(rows)]).values()
        return [row for group in groups if len(group) == self.settings["samples"] for row in group]

    def save_scores(self, rows: Sequence[dict]) -> dict:
        """Computes the rows' scores and saves them with the graders' versions."""
        scores = score_rows(rows)
        files.write(self.path / SCORES, _json(scores | {"graded_with": versions_of(("math-verify", "sympy"))}))
        return scores


def _json(content: dict) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def regrade(folder: EvalFolder, verifier: Verifier) -> tuple[Line, int]:
    """Grades the saved completions again, without a model. Returns the line and the number of rows that changed."""
    with files.lock(folder.path):
        rows = folder.rows()
        if not rows:
            raise UserError(f"{folder.path} holds no finished problem")
        anew = grade(rows, verifier, folder.settings.get("answer_from", "box"))
        files.write(folder.outputs, files.lines(anew))
        scores = folder.save_scores(anew)
    changed = sum(old != new for old, new in zip(rows, anew, strict=True))
    return Line(folder.path.resolve().parent.name, None, folder.settings, scores), changed


def difference(a: EvalFolder, b: EvalFolder) -> dict[str, dict]:
    """Column -> paired b - a, and the problems that flipped. Raises UserError if the two cannot be compared."""
    for key in ("bench", "data_sha256", "problems"):
        if a.settings[key] != b.settings[key]:
            raise UserError(f"{a.path} and {b.path} differ in {key}: {a.settings[key]} and {b.settings[key]}")
    rows_a, rows_b = a.rows(), b.rows()
    if ungraded := [row for row in (*rows_a, *rows_b) if not all(column in row for column in COLUMNS)]:
        raise UserError(f"{len(ungraded)} rows of {a.path} and {b.path} have no grades; run --regrade on both")
    before, after = by_problem(rows_a), by_problem(rows_b)
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
    def name(self) -> str:
        """A short name inside the table of one run."""
        if self.step is None:
            return self.model
        return f"step {self.step}" if self.step else "base"

    @property
    def bench(self) -> str:
        limited = self.settings.get("limit") is not None
        return self.settings["bench"] + ("*" if limited else "")

    @property
    def sampling(self) -> str:
        """Numbers of problems and samples, and the temperature: 500 greedy, 30x8 T=0.6."""
        samples = f"x{self.scores['samples']}" if self.scores["samples"] > 1 else ""
        return f"{self.scores['problems']}{samples} {Protocol(1, self.settings['temperature'])}"


def table(lines: Sequence[Line]) -> str:
    """Scores in percent with 95% intervals, then notes.

    Several models are compared benchmark by benchmark; what is common to a table's rows stands above it.
    """
    several = len({line.model for line in lines}) > 1
    groups: dict[tuple, list[Line]] = {}
    for line in lines:
        groups.setdefault((line.bench, line.settings["prompt"]) if several else (), []).append(line)
    return "\n".join([*map(_rows, groups.values()), *_notes(lines)])


def _rows(lines: Sequence[Line]) -> str:
    labels = {
        "model": [line.name for line in lines],
        "benchmark": [line.bench for line in lines],
        "prompt": [line.settings["prompt"] for line in lines],
        "sampling": [line.sampling for line in lines],
    }
    common = [f"{name} {values[0]}" for name, values in labels.items() if len(set(values)) == 1]
    columns = {name: values for name, values in labels.items() if len(set(values)) > 1}
    shares = [*COLUMNS, *(["continued"] if all("continued" in line.scores for line in lines) else [])]
    columns |= {share: [_percent(line.scores[share]) for line in lines] for share in shares}
    columns |= {
        name: [f"{100 * line.scores[share]:.1f}" for line in lines]
        for name, share in (("cut", "truncated"), ("blank", "no_answer"))
    }
    cells = [[name, *values] for name, values in columns.items()]
    widths = [max(map(len, column)) for column in cells]
    text = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in zip(*cells, strict=True)]
    return "\n".join([", ".join(common), *text] if common else text)


def _notes(lines: Sequence[Line]) -> list[str]:
    notes = [
        "Percent. strict: the answer as the reward reads it. flexible: by the paper's",
        "rules (without a box the text after 'answer is', else the last number). In",
        "brackets: 95%, Wilson's interval for one sample a problem, else the bootstrap",
        "over problems. cut: at the token limit. blank: without a strict answer.",
    ]
    if all("continued" in line.scores for line in lines):
        notes.append(
            "continued: the model wrote the rest of the question word for word. A model that has not seen the text\n"
            "rarely does this; a correct answer to a cut question may be a guess."
        )
    if any(line.bench.endswith("*") for line in lines):
        notes.append("*: only the first rows (--limit): a smoke figure, not the benchmark's score.")
    if any(line.settings["bench"] == "math500" for line in lines):
        notes.append(PAPER_SCORES)
    for line in lines:
        notes += [_several_samples(line, column) for column in COLUMNS if "pass" in line.scores[column]]
    for model, prompt in dict.fromkeys((line.model, line.settings["prompt"]) for line in lines):
        group = [line for line in lines if (line.model, line.settings["prompt"]) == (model, prompt)]
        if len(group) > 1:
            notes.append(f"{group[0].name}, prompt {prompt}, average of {len(group)}: {_means(group)}")
    return notes


def _percent(score: dict) -> str:
    return f"{100 * score['mean']:5.1f} [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"


def _several_samples(line: Line, column: str) -> str:
    scores = {f"pass@{k}": score for k, score in line.scores[column]["pass"].items()}
    scores[f"maj@{line.scores['samples']}"] = line.scores[column]["maj"]
    means = "  ".join(f"{name} {100 * score['mean']:.1f}" for name, score in scores.items())
    return f"{line.name}  {line.bench}  {column}: {means}"


def _mean(lines: Sequence[Line], column: str) -> float:
    """Percent, unweighted over benchmarks: the paper's "average" if the lines are its six."""
    return 100 * sum(line.scores[column]["mean"] for line in lines) / len(lines)


def _means(lines: Sequence[Line]) -> str:
    return ", ".join(f"{column} {_mean(lines, column):.1f}" for column in COLUMNS)


def last_and_best(lines: Sequence[Line]) -> str:
    """The last and the best checkpoint of one run, from lines with the oldest first; the base (step 0) is neither."""
    steps = {step: list(group) for step, group in groupby(lines, key=lambda line: line.step) if step}
    best = max(steps, key=lambda step: _mean(steps[step], "strict"))
    text = [f"{name}: step {step}, {_means(steps[step])}" for name, step in (("last", max(steps)), ("best", best))]
    return "\n".join([*text, "best: the highest strict mean here, the earliest on a tie. It flatters; report last."])


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
