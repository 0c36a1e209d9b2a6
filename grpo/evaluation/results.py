"""Evaluations on disk, and tables of their scores.

`evals/<model>/<bench>-<hash>/` holds settings.json, outputs.jsonl with one row per completion, and scores.json. The
hash is that of the settings, so rows made under other settings (another model file, prompt, day, temperature or library
version) can never be continued or mixed.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from data import tasks
from grpo.environment import versions_of
from grpo.errors import UserError
from grpo.evaluation.benchmarks import label
from grpo.evaluation.scores import COLUMNS, grade, grader, paired_difference, score_rows
from grpo.run import files
from rewards import Verifier

OUTPUTS, SETTINGS, SCORES = "outputs.jsonl", "settings.json", "scores.json"
NEEDED = {"bench", "data_sha256", "problems", "prompt", "samples", "temperature"}
ROW = {"problem", "sample", "completion", "ground_truth", "finish_reason"}
"""Fields without which a settings.json or a row of outputs.jsonl is damaged"""
GRADES = {*COLUMNS, *COLUMNS.values(), "outcome"}
SHARES = (*COLUMNS, "continued")
LABELS = ("model", "benchmark", "prompt", "sampling")
PAPER_SCORES = (
    "The paper's own figures, not ours (Wang et al. 2025, arXiv:2504.20571, Qwen2.5-Math-1.5B): math500 36.0 base, "
    "73.6 after pi1 (65.0 by format alone: 8.6 of the 37.6 points lie beyond format correction); average of its six "
    "17.6 base, 35.7 after pi1 (28.7 by format alone: 7.0 of the 18.1 points lie beyond it)"
)


class Evaluation:
    """One model with one prompt on one benchmark, on disk."""

    scores: dict[str, Any]
    """set by `save`"""

    def __init__(self, path: Path, name: str | None = None, step: int | None = None):
        """Opens an existing folder. Raises UserError if it is no evaluation.

        name: in tables [the model's folder]. step: of a run; 0 is its base model.
        """
        self.path, self.outputs, self.step = path, path / OUTPUTS, step
        self.name = name or path.resolve().parent.name
        try:
            self.settings = json.loads((self.path / SETTINGS).read_bytes())
            if missing := NEEDED.difference(self.settings):
                raise ValueError(f"{SETTINGS} lacks {min(missing)}")
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is no evaluation (evals/<model>/<bench>-<hash> is one): {error}") from None

    @classmethod
    def create(
        cls, root: Path, model: str, settings: dict, name: str | None = None, step: int | None = None
    ) -> Evaluation:
        """The folder of these settings, new or to be continued."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        path = root / model / f"{settings['bench']}-{digest[:10]}"
        with files.writing(path):
            path.mkdir(parents=True, exist_ok=True)
        _write(path / SETTINGS, settings)
        return cls(path, name, step)

    def rows(self) -> list[dict]:
        """The rows of the problems that have all their samples, sorted by problem and sample, each once.

        A damaged line is not a row, so its problem is sampled again.
        """
        rows = {(row["problem"], row["sample"]): row for row in files.read_rows(self.outputs) if row.keys() >= ROW}
        samples = Counter(problem for problem, _ in rows)
        return [rows[key] for key in sorted(rows) if samples[key[0]] == self.settings["samples"]]

    def graded_rows(self, verifier: Verifier) -> list[dict]:
        """The finished rows. Where another grader graded some of them, or none did, all are graded again."""
        rows = self.rows()
        if all(row.get("graded_with") == grader() and row.keys() >= GRADES for row in rows):
            return rows
        return self._graded(rows, verifier)

    def _graded(self, rows: Sequence[dict], verifier: Verifier) -> list[dict]:
        self.check_scorer()
        scorer = self.settings.get("scorer", {})
        if versions_of(scorer) != scorer:
            versions = ", ".join(f"{name} {version}" for name, version in scorer.items())
            raise UserError(f"{self.path} was graded by {versions}; install that version to grade it again")
        return grade(rows, verifier, self.settings.get("answer_from", "box"))

    def check_scorer(self) -> None:
        """Raises UserError for a task of an earlier version, whose rows do not name their items for the scorer."""
        if str(self.settings["bench"]).startswith(label(tasks.PREFIX)) and "scorer" not in self.settings:
            raise UserError(f"{self.path} is a task that was not graded by its own scorer; sample it again")

    def save(self, rows: Sequence[dict]) -> None:
        """Writes the graded rows, and their scores with the grader."""
        files.write(self.outputs, files.lines(rows))
        self.scores = score_rows(rows)
        _write(self.path / SCORES, self.scores | {"graded_with": rows[0]["graded_with"]})

    def regrade(self, verifier: Verifier) -> int:
        """Grades the saved completions again, without a model. Returns the number of rows that changed."""
        with files.lock(self.path):
            rows = self.rows()
            if not rows:
                raise UserError(f"{self.path} holds no finished problem")
            anew = self._graded(rows, verifier)
            self.save(anew)
        changed = (any(old.get(key) != new[key] for key in GRADES) for old, new in zip(rows, anew, strict=True))
        return sum(changed)

    def comparable_rows(self) -> list[dict]:
        """The finished rows. Raises UserError if one has no grades, or does not name its grader."""
        rows = self.rows()
        for fields, lack in ((GRADES, "have no grades"), ({"graded_with"}, "do not name their grader")):
            if not all(row.keys() >= fields for row in rows):
                raise UserError(f"{self.path}: rows {lack}; run --regrade on it")
        return rows

    @property
    def model(self) -> tuple[str, str]:
        """Its path, and the fingerprint of its weights."""
        return str(self.settings.get("model", self.name)), str(self.settings.get("weights", ""))

    def figures(self) -> dict[str, Any]:
        """A row of a table in percent: labels, scores as text, and their numbers as "strict mean", "strict low" ..."""
        settings, scores = self.settings, self.scores
        samples = f"x{scores['samples']}" if scores["samples"] > 1 else ""
        way = f"T={settings['temperature']:g}" if settings["temperature"] else "greedy"
        row = {
            "model": self.name,
            "step": self.step,
            "benchmark": settings["bench"] + ("" if settings.get("limit") is None else "*"),
            "prompt": settings["prompt"],
            "sampling": f"{scores['problems']}{samples} {way}",
            "cut": f"{100 * scores['truncated']:.1f}",
            "blank": f"{100 * scores['no_answer']:.1f}",
        }
        for share in filter(scores.__contains__, SHARES):
            percent = {key: 100 * scores[share][key] for key in ("mean", "low", "high")}
            row[share] = "{mean:.1f} [{low:.1f}, {high:.1f}]".format(**percent)
            row |= {f"{share} {key}": value for key, value in percent.items()}
        return row


def _write(path: Path, content: dict) -> None:
    files.write(path, json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


def difference(a: Evaluation, b: Evaluation) -> dict[str, dict]:
    """Column -> paired b - a, and the problems that flipped. Raises UserError if the two cannot be compared."""
    for evaluation in (a, b):
        evaluation.check_scorer()
    for key in ("bench", "data_sha256", "problems", "scorer"):
        if a.settings.get(key) != b.settings.get(key):
            raise UserError(f"{a.path} and {b.path} differ in {key}: {a.settings.get(key)} and {b.settings.get(key)}")
    rows = [evaluation.comparable_rows() for evaluation in (a, b)]
    if len({json.dumps(row["graded_with"], sort_keys=True) for row in rows[0] + rows[1]}) > 1:
        raise UserError(f"{a.path} and {b.path} were not graded by the same grader; run --regrade on both")
    before, after = (pd.DataFrame(part, columns=["problem", *COLUMNS]).groupby("problem").mean() for part in rows)
    if before.empty or not before.index.equals(after.index):
        raise UserError(f"{a.path} and {b.path} do not hold the same problems: one of them is unfinished")
    return {column: paired_difference(before[column], after[column]) for column in COLUMNS}


# ---- tables


def table(evaluations: Sequence[Evaluation]) -> str:
    """Scores in percent with 95% intervals, then notes.

    Several models are compared benchmark by benchmark. Values common to all rows of a table stand above it.
    """
    figures = frame(evaluations)
    keys = ["benchmark", "prompt"] if figures["model"].nunique() > 1 else ["model"]
    return "\n".join([*(_rows(group) for _, group in figures.groupby(keys, sort=False)), *_notes(evaluations, figures)])


def frame(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """Each evaluation's figures. Different models that share a name are called by their paths, then by fingerprint."""
    models = dict.fromkeys((evaluation.name, *evaluation.model) for evaluation in evaluations)
    names, paths = Counter(name for name, _, _ in models), Counter((name, path) for name, path, _ in models)
    rows = []
    for evaluation in evaluations:
        name, (path, fingerprint) = evaluation.name, evaluation.model
        if names[name] > 1:
            digest = fingerprint.partition("+")[0].rpartition("@")[2]
            name = path if paths[name, path] == 1 else f"{path} ({digest[:8]})"
        rows.append(evaluation.figures() | {"model": name})
    return pd.DataFrame(rows)


def _rows(figures: pd.DataFrame) -> str:
    common = [name for name in LABELS if figures[name].nunique() == 1]
    columns = [name for name in (*LABELS, *SHARES, "cut", "blank") if name in figures and name not in common]
    heading = ", ".join(f"{name} {figures[name].iloc[0]}" for name in common)
    return f"{heading}\n{figures[columns].to_string(index=False)}".lstrip()


def _notes(evaluations: Sequence[Evaluation], figures: pd.DataFrame) -> list[str]:
    notes = [
        "Percent. strict: the answer as the reward reads it. flexible: by the paper's",
        "rules (without a box the text after 'answer is', else the last number). In",
        "brackets: 95%, Wilson's interval for one sample a problem, else the bootstrap",
        "over problems. cut: at the token limit. blank: without a strict answer.",
    ]
    if "continued" in figures:
        notes.append(
            "continued: the model wrote the rest of the question word for word. A model that has not seen the text\n"
            "rarely does this; a correct answer to a cut question may be a guess."
        )
    if figures["benchmark"].str.endswith("*").any():
        notes.append("*: only the first rows (--limit): a smoke figure, not the benchmark's score.")
    if figures["benchmark"].isin(["math500", "math500*"]).any():
        notes.append(PAPER_SCORES)
    for evaluation, row in zip(evaluations, figures.itertuples(), strict=True):
        samples = evaluation.scores["samples"]
        for column in COLUMNS if samples > 1 else ():
            score = evaluation.scores[column]
            shares = {f"pass@{k}": share for k, share in score["pass"].items()} | {f"maj@{samples}": score["maj"]}
            means = "  ".join(f"{name} {100 * share['mean']:.1f}" for name, share in shares.items())
            notes.append(f"{row.model}  {row.benchmark}  {column}: {means}")
    for (model, prompt), group in figures.groupby(["model", "prompt"], sort=False):
        if len(group) > 1 and group["benchmark"].is_unique:
            notes.append(f"{model}, prompt {prompt}, average of {len(group)}: {_means(group.mean(numeric_only=True))}")
    return notes


def _means(means: pd.Series) -> str:
    return ", ".join(f"{column} {means[f'{column} mean']:.1f}" for column in COLUMNS)


def last_and_best(evaluations: Sequence[Evaluation]) -> str:
    """The last and the best checkpoint of one run by their unweighted means over benchmarks; the base is neither."""
    figures = frame(evaluations)
    text = []
    for prompt, group in figures[figures["step"] > 0].groupby("prompt", sort=False):
        steps = group.groupby("step").mean(numeric_only=True)
        chosen = {"last": steps.index[-1], "best": steps["strict mean"].idxmax()}
        of = f" with prompt {prompt}" if figures["prompt"].nunique() > 1 else ""
        text += [f"{kind}{of}: step {step}, {_means(steps.loc[step])}" for kind, step in chosen.items()]
    return "\n".join([*text, "best: the highest strict mean here, the earliest on a tie. It flatters; report last."])


def plot(evaluations: Sequence[Evaluation], path: Path) -> Path:
    """Accuracy over steps with 95% intervals, both columns; one panel a benchmark and prompt."""
    from matplotlib.figure import Figure

    figures = frame(evaluations).set_index("step")
    keys = ["benchmark", "prompt"] if figures["prompt"].nunique() > 1 else ["benchmark"]
    benches = figures.groupby(keys, sort=False)
    drawing = Figure(figsize=(4 * benches.ngroups, 3.6), layout="constrained")
    panels = drawing.subplots(1, benches.ngroups, squeeze=False)[0]
    for panel, (bench, points) in zip(panels, benches, strict=True):
        for column in COLUMNS:
            panel.plot(points[f"{column} mean"], "o-", label=column)
            panel.fill_between(points.index, points[f"{column} low"], points[f"{column} high"], alpha=0.15)
        panel.set(title=", ".join(bench), xlabel="step", ylabel="accuracy, %", ylim=(0, 100))
        panel.grid(alpha=0.3)
        panel.legend()
    drawing.suptitle(f"{path.stem}, 95% intervals", fontsize="medium")
    drawing.savefig(path, dpi=120)
    return path
