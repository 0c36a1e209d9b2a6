"""Scores for people: the table, the curve over a run's checkpoints, and which checkpoint to call last and best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grpo.evaluation.benchmarks import PAPER, PAPER_PROTOCOL, PAPER_SCORES

BEST_RULE = "highest strict mean over the benchmarks evaluated, the earliest on a tie"


@dataclass(frozen=True, slots=True)
class Line:
    """One model on one benchmark."""

    model: str
    step: int | None
    bench: str
    protocol: str
    scores: dict
    limited: bool = False
    """only the first rows were asked: a smoke figure"""


def table(lines: Sequence[Line]) -> str:
    """The scores in percent with their 95% intervals; the paper's figures follow, marked as the paper's."""
    header = ("model", "benchmark", "n x k", "sampling", "strict", "flexible", "cut", "no box")
    body = [_cells(line) for line in lines]
    widths = [max(len(row[i]) for row in (header, *body)) for i in range(len(header))]
    text = "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *body)
    )
    notes = [
        "strict: last complete box. flexible: the paper's rule (without a box what follows 'answer is', else the last "
        "number). In brackets: 95% bootstrap over problems."
    ]
    if any(line.limited for line in lines):
        notes.append("*: only the first rows (--limit): a smoke figure, not the benchmark's score.")
    return "\n".join([text, *notes, *_paper(lines)])


def _cells(line: Line) -> tuple[str, ...]:
    scores = line.scores
    return (
        line.model,
        line.bench + ("*" if line.limited else ""),
        f"{scores['problems']} x {scores['samples']}",
        line.protocol,
        _percent(scores["strict"]),
        _percent(scores["flexible"]),
        f"{100 * scores['truncated']:.1f}%",
        f"{100 * scores['no_box']:.1f}%",
    )


def _percent(figure: dict) -> str:
    return f"{100 * figure['mean']:5.1f} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"


def more_samples(line: Line) -> str:
    """pass@k and maj@k, one line; empty for a single sample."""
    parts = []
    for column in ("strict", "flexible"):
        scores = line.scores[column]
        if "pass" in scores:
            passes = "  ".join(f"pass@{k} {100 * value['mean']:.1f}" for k, value in scores["pass"].items())
            parts.append(f"{column}: {passes}  maj@{line.scores['samples']} {100 * scores['maj']['mean']:.1f}")
    return f"{line.model} {line.bench}  " + "; ".join(parts) if parts else ""


def average(lines: Sequence[Line], column: str) -> float:
    """Unweighted mean over benchmarks, the paper's "average" when the lines are its six."""
    return float(np.mean([line.scores[column]["mean"] for line in lines]))


def by_model(lines: Sequence[Line]) -> dict[str, list[Line]]:
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(line.model, []).append(line)
    return groups


def averages(lines: Sequence[Line]) -> str:
    """One line a model, when it has more than one benchmark."""
    return "\n".join(
        f"{model}  average of {len(group)}: {_both(group)}"
        for model, group in by_model(lines).items()
        if len(group) > 1
    )


def _both(lines: Sequence[Line]) -> str:
    return f"strict {100 * average(lines, 'strict'):.1f}, flexible {100 * average(lines, 'flexible'):.1f}"


def _paper(lines: Sequence[Line]) -> list[str]:
    asked = {line.bench for line in lines}
    keys = [key for key in PAPER_SCORES if key in asked or (key == "average" and set(PAPER_PROTOCOL) <= asked)]
    figures = "; ".join(f"{key} {PAPER_SCORES[key][0]} base, {PAPER_SCORES[key][1]} after pi1" for key in keys)
    return [f"The paper's own figures, not ours ({PAPER}): {figures}"] if keys else []


def last_and_best(lines: Sequence[Line]) -> str:
    """For the checkpoints of one run; the base model (step 0) is neither."""
    steps = {group[0].step: group for group in by_model(lines).values() if group[0].step}
    last, best = max(steps), max(steps, key=lambda step: (average(steps[step], "strict"), -step))
    text = [f"{name}: step {step}, {_both(steps[step])}" for name, step in (("last", last), ("best", best))]
    return "\n".join(
        [*text, f"best is chosen by: {BEST_RULE}; on the problems that score it, so it flatters. Report last."]
    )


def plot(lines: Sequence[Line], title: str, path: Path) -> Path:
    """Accuracy over steps with 95% intervals, one panel a benchmark, both columns."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    benches = list(dict.fromkeys(line.bench for line in lines))
    figure, panels = plt.subplots(1, len(benches), figsize=(4 * len(benches), 3.6), squeeze=False, layout="constrained")
    for panel, bench in zip(panels[0], benches, strict=True):
        points = sorted((line for line in lines if line.bench == bench), key=lambda line: line.step)
        steps = [line.step for line in points]
        for column, style in (("strict", "o-"), ("flexible", "s--")):
            figures = [line.scores[column] for line in points]
            panel.plot(steps, [100 * f["mean"] for f in figures], style, label=column)
            panel.fill_between(steps, [100 * f["low"] for f in figures], [100 * f["high"] for f in figures], alpha=0.15)
        panel.set(title=bench + ("*" if points[0].limited else ""), xlabel="step", ylabel="accuracy, %", ylim=(0, 100))
        panel.grid(alpha=0.3)
        panel.legend()
    figure.suptitle(f"{title}, 95% bootstrap intervals over problems", fontsize="medium")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
