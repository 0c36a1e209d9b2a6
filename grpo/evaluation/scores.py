"""Scores of an evaluation: grades in two columns, and statistics with their intervals.

strict: the answer as the training reward reads it (`rewards.signals`), compared exactly.
flexible: the answer by the rules of the paper's harness (Qwen2.5-Math's `extract_answer` and `math_equal`), where
numbers within 1e-4 or off by a factor of 100 count as equal. The gap between the columns is format, not mathematics.

Intervals are over problems, because a score is a sample of the benchmark's problems. The samples of one problem stay
together: they are not independent evidence about the model.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from statistics import NormalDist, fmean
from typing import Any

import numpy as np

from rewards import Verifier, last_box
from rewards.signals import AnswerFrom, read

COLUMNS = {"strict": "answer", "flexible": "flexible_answer"}
"""Column -> the field of a row that holds its answer"""
NUMBER = re.compile(r"-?\d*\.?\d+")
RELATIVE_TOLERANCE = 1e-4
RESAMPLES = 10_000
CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)  # 1.96


def new_verifier(workers: int = 2) -> Verifier:
    """A verifier with more time than in training: 10 s of processor time for an answer, not 2."""
    return Verifier(workers=workers, timeout_s=10.0)


# ---- grading


def grade(rows: Sequence[dict], verifier: Verifier, answer_from: AnswerFrom = "box") -> list[dict]:
    """The rows with the grades of their completions: both answers, whether each is right, and the outcome of the strict
    one (correct, wrong, no_answer, unparsed or timeout). `answer_from` is the run's `reward.verifier`."""
    truths = [row["ground_truth"] for row in rows]
    strict = [read(row["completion"], answer_from).answer for row in rows]
    tags = strict if answer_from == "answer_tag" else [None] * len(rows)
    flexible = [flexible_answer(row["completion"], tag) for row, tag in zip(rows, tags, strict=True)]
    answers = [*strict, *(answer or None for answer in flexible)]
    graded = verifier.check_batch(list(zip(answers, truths * 2, strict=True)))
    outcomes, flexible_outcomes = graded[: len(rows)], graded[len(rows) :]
    return [
        row
        | {
            "answer": answer,
            "strict": outcome == "correct",
            "flexible_answer": loose,
            "flexible": loose_outcome == "correct" or close_numbers(loose, row["ground_truth"]),
            "outcome": outcome,
        }
        for row, answer, loose, outcome, loose_outcome in zip(
            rows, strict, flexible, outcomes, flexible_outcomes, strict=True
        )
    ]


def flexible_answer(text: str, tag: str | None = None) -> str:
    """The harness's rules, in its order; "" if the text holds nothing that could be an answer.

    `tag`, the content of an <answer> block, replaces the rules: the harness knows no such block.
    """
    if tag:
        answer = last_box(tag) or tag
    elif "final answer is $" in text and "$. I hope" in text:  # Minerva's few-shot form
        answer = text.partition("final answer is $")[2].partition("$. I hope")[0]
    elif "boxed" in text:
        answer = _after_last_boxed(text)
    elif "he answer is" in text:
        answer = text.rpartition("he answer is")[2]
    elif "final answer is" in text:
        answer = text.rpartition("final answer is")[2]
    elif "答案是" in text:
        answer = text.split("答案是")[1].strip().partition("\n\n")[0].removesuffix("。")
    else:
        answer = next(reversed(NUMBER.findall(text.replace(",", ""))), "")
    answer = re.sub(r"\n\s*", "", answer.strip()).removeprefix(":").removesuffix(".").removesuffix("/")
    return answer.replace("\\$", "").replace("$", "").strip()


def _after_last_boxed(text: str) -> str:
    """The content of the braces after the last "boxed", up to the end if they never close; without braces, up to $."""
    rest = text.rpartition("boxed")[2]
    if not rest.startswith("{"):
        return rest.partition("$")[0].strip()
    inside = last_box("\\boxed" + rest)
    return rest[1:] if inside is None else inside


def close_numbers(answer: str, truth: str) -> bool:
    """True if both are plain numbers and equal within 1e-4, as they are or 100 times each other (percent)."""
    a, b = _number(answer), _number(truth)
    if not (math.isfinite(a) and math.isfinite(b)):
        return False
    return any(math.isclose(a, b * factor, rel_tol=RELATIVE_TOLERANCE) for factor in (0.01, 1, 100))


def _number(text: str) -> float:
    """The value of a plain number; NaN for any other text."""
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
    """1 if the most frequent answer of a problem's samples is correct, else 0. Samples without an answer do not vote.

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
    means = np.asarray(values, dtype=np.float64)
    whole = np.isin(means, (0.0, 1.0)).all()
    low, high = wilson(int(means.sum()), len(means)) if whole else bootstrap(means)
    return {"mean": float(means.mean()), "low": low, "high": high}


def wilson(right: int, total: int) -> tuple[float, float]:
    """95% score interval of a share: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)."""
    share = right / total
    spread = Z**2 / total
    middle = share + spread / 2
    width = math.sqrt(share * (1 - share) * spread + spread**2 / 4)
    return max(0.0, (middle - width) / (1 + spread)), min(1.0, (middle + width) / (1 + spread))


def bootstrap(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95% percentile interval of the mean, from problems drawn again with replacement. The seed makes it repeatable."""
    generator = np.random.default_rng(seed)
    means = values[generator.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def paired_difference(a: dict[int, list[dict]], b: dict[int, list[dict]], column: str) -> dict:
    """Mean of b - a over the same problems with its 95% interval, and the problems that were gained and lost.

    Pairs stay together: problems that are hard for both cancel, so the interval is narrower than the scores' own.
    """
    sides = [
        np.array([fmean(row[column] for row in side[problem]) for problem in a], dtype=np.float64) for side in (a, b)
    ]
    gains = sides[1] - sides[0]
    whole = all(np.isin(side, (0.0, 1.0)).all() for side in sides)
    low, high = newcombe(*sides) if whole else bootstrap(gains)
    return {
        "mean": float(gains.mean()),
        "low": low,
        "high": high,
        "method": "Newcombe's score interval" if whole else "bootstrap over problems",
        "gained": [problem for problem, gain in zip(a, gains, strict=True) if gain > 0],
        "lost": [problem for problem, gain in zip(a, gains, strict=True) if gain < 0],
    }


def newcombe(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """95% interval of mean(b) - mean(a) for paired 0/1 values: Newcombe 1998 (Stat. Med. 17:2635), method 10.

    Wilson's intervals of the two shares, joined by their correlation phi. It keeps a width where nothing flips.
    """
    n = len(a)
    both = float((a * b).sum())
    p, q = a.mean(), b.mean()
    (low_p, high_p), (low_q, high_q) = wilson(int(a.sum()), n), wilson(int(b.sum()), n)
    covariance = both * (n * (1 - p - q) + both) - (n * p - both) * (n * q - both)
    if covariance > 0:
        covariance = max(covariance - n / 2, 0.0)  # continuity correction
    variance = n**4 * p * (1 - p) * q * (1 - q)
    phi = covariance / math.sqrt(variance) if variance > 0 else 0.0

    def distance(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x**2 - 2 * phi * x * y + y**2))

    return float(q - p - distance(q - low_q, high_p - p)), float(q - p + distance(high_q - q, p - low_p))


def by_problem(rows: Sequence[dict]) -> dict[int, list[dict]]:
    """Problem -> its samples, from rows sorted by problem."""
    return {problem: list(group) for problem, group in groupby(rows, key=lambda row: row["problem"])}


def score_rows(rows: Sequence[dict]) -> dict:
    """The figures of one benchmark. Both columns as {"mean", "low", "high"} of avg@k; pass@k for powers of two.

    truncated, no_answer: shares of completions that the length limit cut, or that hold no strict answer.
    continued, in an audit: share of completions that begin with the words that were cut off the question.
    """
    groups = list(by_problem(rows).values())
    samples = len(groups[0])
    result: dict[str, Any] = {
        "problems": len(groups),
        "samples": samples,
        "truncated": fmean(row["finish_reason"] == "length" for row in rows),
        "no_answer": fmean(row["answer"] is None for row in rows),
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
    """True if the completion begins with these words, however they are spaced."""
    words = rest.split()
    return completion.split()[: len(words)] == words
