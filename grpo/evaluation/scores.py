"""From completions to figures: grading in two columns, the statistics with their intervals, tables and curves.

strict: the last complete box of the answer part, as the training reward reads it (`rewards.signals`), compared exactly.
flexible: what the paper's harness does (Qwen2.5-Math's evaluation, `extract_answer` and `math_equal`): without a box it
takes what follows "answer is", else the last number in the text, and numbers within 1e-4 or off by a factor of 100
count as equal. The gap between the two is format, not mathematics.

Intervals are over problems: the benchmark's own problems are what a score is a sample of. The samples of one problem
stay together, because they are not independent evidence about the model.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from grpo.evaluation.benchmarks import PAPER_PROTOCOL
from rewards import Verifier
from rewards.signals import read

PAPER = "Wang et al. 2025 (arXiv:2504.20571), Qwen2.5-Math-1.5B"
PAPER_SCORES = {"math500": (36.0, 73.6), "average": (17.6, 35.7)}
"""Percent: base, and after 1-shot RLVR on pi1. The paper's own figures, from its abstract; not measured here."""
COLUMNS = ("strict", "flexible")
NUMBER = re.compile(r"-?\d*\.?\d+")
ANNOUNCED = ("he answer is", "final answer is")
RELATIVE_TOLERANCE = 1e-4
RESAMPLES = 10_000
CONFIDENCE, Z = 0.95, 1.959964
BEST_RULE = "highest strict mean over the benchmarks evaluated, the earliest on a tie"


def new_verifier(workers: int = 2) -> Verifier:
    """More patient than in training (2 s): a benchmark's figure should not depend on how busy the machine was."""
    return Verifier(workers=workers, timeout_s=10.0)


@dataclass(frozen=True, slots=True)
class Grade:
    answer: str | None
    strict: bool
    flexible_answer: str
    flexible: bool
    outcome: str
    """of the strict answer: correct, wrong, no_answer, unparsed, timeout"""


def grade(texts: Sequence[str], truths: Sequence[str], verifier: Verifier) -> list[Grade]:
    """One Grade a completion, in order."""
    strict = [read(text).answer for text in texts]
    flexible = [flexible_answer(text) for text in texts]
    outcomes = verifier.check_batch(list(zip(strict, truths, strict=True)))
    other = verifier.check_batch([(answer or None, truth) for answer, truth in zip(flexible, truths, strict=True)])
    return [
        Grade(s, outcome == "correct", f, outcome_f == "correct" or close_numbers(f, truth), outcome)
        for s, f, truth, outcome, outcome_f in zip(strict, flexible, truths, outcomes, other, strict=True)
    ]


def flexible_answer(text: str) -> str:
    """The paper's rule, in its order; "" where the text holds nothing that could be an answer."""
    if "boxed" in text:
        answer = _after_last_boxed(text)
    elif phrase := next((phrase for phrase in ANNOUNCED if phrase in text), None):
        answer = text.split(phrase)[-1].strip()
    else:
        numbers = NUMBER.findall(text.replace(",", ""))
        answer = numbers[-1] if numbers else ""
    answer = re.sub(r"\n\s*", "", answer).removeprefix(":").removesuffix(".").removesuffix("/")
    return answer.replace("\\$", "").replace("$", "").strip()


def _after_last_boxed(text: str) -> str:
    """Inside the braces after the last "boxed", to the end where they never close; without braces, up to the next $."""
    rest = text.rpartition("boxed")[2]
    if not rest.startswith("{"):
        return rest.partition("$")[0].strip()
    depth = 0
    for place, char in enumerate(rest):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return rest[1:place]
    return rest[1:]


def close_numbers(answer: str, truth: str) -> bool:
    """Both are plain numbers, and equal to 1e-4 relative, times 100 or divided by 100 (percent) included."""
    a, b = _number(answer), _number(truth)
    if a is None or b is None:
        return False
    return any(math.isclose(a, b * factor, rel_tol=RELATIVE_TOLERANCE) for factor in (0.01, 1, 100))


def _number(text: str) -> float | None:
    text = text.replace(",", "").strip()
    percent = text.endswith("%")
    try:
        value = float(text.removesuffix("%").removesuffix("\\"))
    except ValueError:
        return None
    return None if not math.isfinite(value) else value / 100 if percent else value


def avg_at_k(correct: Sequence[Sequence[bool]]) -> list[float]:
    """[problems] share of each problem's samples that are correct; the mean over problems is avg@k."""
    return [sum(row) / len(row) for row in correct]


def pass_at_k(correct: Sequence[Sequence[bool]], k: int) -> list[float]:
    """[problems] chance that k of the n samples, drawn without replacement, hold a correct one.

    The unbiased estimator 1 - C(n - c, k) / C(n, k) of Chen et al. 2021 (arXiv:2107.03374), eq. 1.
    """
    if not 1 <= k <= min(len(row) for row in correct):
        raise ValueError(f"pass@{k} needs between 1 and {min(len(row) for row in correct)} samples a problem")
    return [1 - math.comb(len(row) - sum(row), k) / math.comb(len(row), k) for row in correct]


def maj_at_k(answers: Sequence[Sequence[Hashable | None]], correct: Sequence[Sequence[bool]]) -> list[float]:
    """[problems] is the commonest answer correct? Samples without an answer (None) do not vote.

    Answers vote by their text, and a tie gives each tied answer its share: the expectation over fair tie-breaking.
    """
    return [_majority(row, flags) for row, flags in zip(answers, correct, strict=True)]


def _majority(answers: Sequence[Hashable | None], correct: Sequence[bool]) -> float:
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [answer for answer, count in votes.items() if count == most]
    truth = dict(zip(answers, correct, strict=True))
    return sum(truth[winner] for winner in winners) / len(winners)


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95% interval of the mean over problems.

    Wilson's (1927) where every problem is right or wrong altogether: it keeps a width at 0 and 100%, where 0 of 30 is
    compatible with 11%. Else the percentile bootstrap.
    """
    values = np.asarray(values, dtype=np.float64)
    return bootstrap(values, seed) if set(np.unique(values)) - {0.0, 1.0} else wilson(int(values.sum()), len(values))


def wilson(right: int, total: int) -> tuple[float, float]:
    """95% score interval of a share: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)."""
    share, spread = right / total, Z**2 / total
    middle = share + spread / 2
    width = math.sqrt(share * (1 - share) * spread + spread**2 / 4)
    return max(0.0, (middle - width) / (1 + spread)), min(1.0, (middle + width) / (1 + spread))


def bootstrap(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Percentiles of the mean over problems drawn again with replacement; seeded, so it repeats itself."""
    generator = np.random.default_rng(seed)
    blocks = [generator.integers(0, len(values), (RESAMPLES // 10, len(values))) for _ in range(10)]
    means = np.concatenate([values[block].mean(axis=1) for block in blocks])
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def mean_with_interval(values: Sequence[float], seed: int = 0) -> dict[str, float]:
    """{"mean", "low", "high"}"""
    low, high = interval(values, seed)
    return {"mean": float(np.mean(values)), "low": low, "high": high}


def paired_difference(a: Sequence[float], b: Sequence[float], seed: int = 0) -> dict[str, float]:
    """Mean of b - a on the same problems, with its interval.

    The pairs are resampled together: what is common to both (hard problems are hard for both) cancels, so the interval
    is much narrower than the two scores' own.
    """
    if len(a) != len(b):
        raise ValueError(f"a paired difference needs the same problems on both sides, not {len(a)} and {len(b)}")
    differences = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    low, high = bootstrap(differences, seed)
    return {"mean": float(differences.mean()), "low": low, "high": high}


def score_rows(rows: Sequence[dict]) -> dict:
    """The figures of one benchmark. Both columns as {"mean", "low", "high"} of avg@k; pass@k for powers of two.

    truncated: share of completions cut by the length limit; no_box: share without a complete box (strict: wrong).
    """
    by_problem = list(_by_problem(rows).values())
    samples = len(by_problem[0])
    result = {
        "problems": len(by_problem),
        "samples": samples,
        "truncated": sum(row["finish_reason"] == "length" for row in rows) / len(rows),
        "no_box": sum(row["answer"] is None for row in rows) / len(rows),
        "tokens_mean": sum(row["tokens"] for row in rows) / len(rows),
        "outcomes": dict(Counter(row["outcome"] for row in rows)),
    }
    for column, answer in zip(COLUMNS, ("answer", "flexible_answer"), strict=True):
        correct = [[row[column] for row in group] for group in by_problem]
        result[column] = mean_with_interval(avg_at_k(correct))
        if samples > 1:
            answers = [[row[answer] or None for row in group] for group in by_problem]
            powers = [k for k in (2**power for power in range(12)) if k <= samples]
            result[column]["pass"] = {str(k): mean_with_interval(pass_at_k(correct, k)) for k in powers}
            result[column]["maj"] = mean_with_interval(maj_at_k(answers, correct))
    return result


def accuracy_by_problem(rows: Sequence[dict], column: str) -> dict[int, float]:
    """Share of each problem's samples that are correct."""
    return {problem: sum(row[column] for row in group) / len(group) for problem, group in _by_problem(rows).items()}


def _by_problem(rows: Sequence[dict]) -> dict[int, list[dict]]:
    return {problem: list(group) for problem, group in groupby(rows, key=lambda row: row["problem"])}


@dataclass(frozen=True, slots=True)
class Line:
    """One model on one benchmark."""

    model: str
    step: int | None
    bench: str
    protocol: str
    scores: dict
    limited: bool
    """only the first rows were asked: a smoke figure"""
    prompt: str


@dataclass(frozen=True, slots=True)
class Audit:
    """How much of a benchmark's text a model knows: {"mean", "low", "high"} over its questions."""

    model: str
    bench: str
    continued: dict[str, float]
    """the completion begins with the very words that were cut off"""
    answered: dict[str, float]
    """the right answer, from 60% of the question"""
    problems: int


def table(lines: Sequence[Line]) -> str:
    """The scores in percent with their 95% intervals; the paper's figures follow, marked as the paper's."""
    header = ("model", "benchmark", "prompt", "n x k", "sampling", "strict", "flexible", "cut", "no box")
    notes = [
        "strict: last complete box. flexible: the paper's rule (without a box what follows 'answer is', else the last "
        "number). In brackets: 95%, Wilson's interval for one sample a problem, else the bootstrap over problems."
    ]
    if any(line.limited for line in lines):
        notes.append("*: only the first rows (--limit): a smoke figure, not the benchmark's score.")
    return "\n".join([_columns([header, *map(_cells, lines)]), *notes, *_paper(lines)])


def audit_table(audits: Sequence[Audit]) -> str:
    """What an audit found, in percent with 95% intervals."""
    header = ("model", "benchmark", "n", "continued word for word", "right answer")
    rows = [(a.model, a.bench, str(a.problems), _percent(a.continued), _percent(a.answered)) for a in audits]
    note = (
        "Each question was cut after 60% of its tokens, and the model went on greedily. Who never saw a text does not "
        "write the rest of it word for word; a right answer can be a guess."
    )
    return f"{_columns([header, *rows])}\n{note}"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _cells(line: Line) -> tuple[str, ...]:
    scores = line.scores
    return (
        line.model,
        line.bench + ("*" if line.limited else ""),
        line.prompt,
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
    """The lines of each model with each of its prompts."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(f"{line.model}, prompt {line.prompt}", []).append(line)
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
    figure.suptitle(f"{title}, 95% intervals", fontsize="medium")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
