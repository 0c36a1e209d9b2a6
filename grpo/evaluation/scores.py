"""From completions to figures: grading in two columns, and the statistics with their intervals.

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
from collections.abc import Sequence
from itertools import groupby
from statistics import NormalDist, fmean

import numpy as np

from rewards import Verifier, last_box
from rewards.signals import read

COLUMNS = {"strict": "answer", "flexible": "flexible_answer"}
"""Column -> the field of a row that holds its answer"""
NUMBER = re.compile(r"-?\d*\.?\d+")
ANNOUNCED = ("he answer is", "final answer is")
RELATIVE_TOLERANCE = 1e-4
RESAMPLES = 10_000
CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)  # 1.96


def new_verifier(workers: int = 2) -> Verifier:
    """More patient than in training (2 s of processor time an answer)."""
    return Verifier(workers=workers, timeout_s=10.0)


# ---- grading


def grade(rows: Sequence[dict], verifier: Verifier) -> list[dict]:
    """The rows, each with the grades of its completion: both answers, whether they are right, and `outcome`, which says
    of the strict one: correct, wrong, no_answer, unparsed, timeout."""
    truths = [row["ground_truth"] for row in rows]
    strict = [read(row["completion"]).answer for row in rows]
    flexible = [flexible_answer(row["completion"]) for row in rows]
    outcomes = verifier.check_batch(list(zip(strict, truths, strict=True)))
    other = verifier.check_batch([(answer or None, truth) for answer, truth in zip(flexible, truths, strict=True)])
    return [
        row
        | {
            "answer": answer,
            "strict": outcome == "correct",
            "flexible_answer": loose,
            "flexible": outcome_loose == "correct" or close_numbers(loose, row["ground_truth"]),
            "outcome": outcome,
        }
        for row, answer, loose, outcome, outcome_loose in zip(rows, strict, flexible, outcomes, other, strict=True)
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
    inside = last_box("\\boxed" + rest)
    return rest[1:] if inside is None else inside


def close_numbers(answer: str, truth: str) -> bool:
    """Both are plain numbers, and equal to 1e-4 relative, times 100 or divided by 100 (percent) included."""
    a, b = _number(answer), _number(truth)
    if not (math.isfinite(a) and math.isfinite(b)):
        return False
    return any(math.isclose(a, b * factor, rel_tol=RELATIVE_TOLERANCE) for factor in (0.01, 1, 100))


def _number(text: str) -> float:
    """Its value; NaN where it is no plain number."""
    text = text.replace(",", "").strip()
    try:
        value = float(text.removesuffix("%").removesuffix("\\"))
    except ValueError:
        return math.nan
    return value / 100 if text.endswith("%") else value


# ---- statistics


def pass_at_k(correct: Sequence[bool], k: int) -> float:
    """The chance that k of a problem's n samples, drawn without replacement, hold a correct one.

    The unbiased estimator 1 - C(n - c, k) / C(n, k) of Chen et al. 2021 (arXiv:2107.03374), eq. 1.
    """
    return 1 - math.comb(len(correct) - sum(correct), k) / math.comb(len(correct), k)


def majority(answers: Sequence[str | None], correct: Sequence[bool]) -> float:
    """Is the commonest answer of a problem's samples correct? Samples without an answer (None) do not vote.

    Answers vote by their text, and a tie gives each tied answer its share: the expectation over fair tie-breaking.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    winners = [answer for answer, count in votes.items() if count == max(votes.values())]
    truth = dict(zip(answers, correct, strict=True))
    return sum(truth[winner] for winner in winners) / len(winners) if winners else 0.0


def figure(values: Sequence[float]) -> dict[str, float]:
    """The mean over problems with its 95% interval: {"mean", "low", "high"}.

    Wilson's (1927) where every problem is right or wrong altogether: it keeps a width at 0 and 100%, where 0 of 30 is
    compatible with 11%. Else the percentile bootstrap.
    """
    values = np.asarray(values, dtype=np.float64)
    whole = np.isin(values, (0.0, 1.0)).all()
    low, high = wilson(int(values.sum()), len(values)) if whole else bootstrap(values)
    return {"mean": float(values.mean()), "low": low, "high": high}


def wilson(right: int, total: int) -> tuple[float, float]:
    """95% score interval of a share: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)."""
    share, spread = right / total, Z**2 / total
    middle = share + spread / 2
    width = math.sqrt(share * (1 - share) * spread + spread**2 / 4)
    return max(0.0, (middle - width) / (1 + spread)), min(1.0, (middle + width) / (1 + spread))


def bootstrap(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Percentiles of the mean over problems drawn again with replacement; seeded, so it repeats itself."""
    generator, shape = np.random.default_rng(seed), (RESAMPLES // 10, len(values))
    means = [values[generator.integers(0, len(values), shape)].mean(axis=1) for _ in range(10)]
    low, high = np.quantile(np.concatenate(means), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def paired_difference(a: dict[int, list[dict]], b: dict[int, list[dict]], column: str) -> dict:
    """Mean of b - a over the same problems with its interval, and the problems that were gained and lost.

    The pairs are resampled together: what is common to both (hard problems are hard for both) cancels, so the interval
    is much narrower than the two scores' own.
    """
    gains = {
        problem: fmean(row[column] for row in b[problem]) - fmean(row[column] for row in a[problem]) for problem in a
    }
    differences = np.asarray(list(gains.values()))
    low, high = bootstrap(differences)
    return {
        "mean": float(differences.mean()),
        "low": low,
        "high": high,
        "gained": [problem for problem, gain in gains.items() if gain > 0],
        "lost": [problem for problem, gain in gains.items() if gain < 0],
    }


def by_problem(rows: Sequence[dict]) -> dict[int, list[dict]]:
    """Problem -> its samples. The rows stand in the order of the problems."""
    return {problem: list(group) for problem, group in groupby(rows, key=lambda row: row["problem"])}


def score_rows(rows: Sequence[dict]) -> dict:
    """The figures of one benchmark. Both columns as {"mean", "low", "high"} of avg@k; pass@k for powers of two.

    truncated: share of completions cut by the length limit; no_box: share without a complete box (strict: wrong).
    continued, in an audit: share of completions that begin with the words that were cut off the question.
    """
    groups = list(by_problem(rows).values())
    samples = len(groups[0])
    result = {
        "problems": len(groups),
        "samples": samples,
        "truncated": fmean(row["finish_reason"] == "length" for row in rows),
        "no_box": fmean(row["answer"] is None for row in rows),
    }
    if "rest" in rows[0]:  # of an audit
        result["continued"] = figure([float(_begins(row["completion"], row["rest"])) for row in rows])
    for column, answer in COLUMNS.items():
        result[column] = figure([fmean(row[column] for row in group) for group in groups])
        if samples > 1:
            correct = [[row[column] for row in group] for group in groups]
            answers = [[row[answer] or None for row in group] for group in groups]
            powers = [2**power for power in range(samples.bit_length())]
            result[column]["pass"] = {str(k): figure([pass_at_k(flags, k) for flags in correct]) for k in powers}
            result[column]["maj"] = figure(list(map(majority, answers, correct)))
    return result


def _begins(completion: str, rest: str) -> bool:
    """Whether the completion goes on with exactly these words, however they are spaced."""
    words = rest.split()
    return completion.split()[: len(words)] == words
