"""Scores of an evaluation: grades in two columns, and statistics with their intervals.

strict: the answer as the training reward reads it (`rewards.signals`), compared exactly.
flexible: the answer by the rules of the paper's harness (Qwen2.5-Math's `extract_answer` and `math_equal`), where
numbers within 1e-4 or off by a factor of 100 count as equal. The gap between the columns is format, not mathematics.

Intervals are over problems, because a score is a sample of the benchmark's problems. The samples of one problem stay
together: they are not independent evidence about the model.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from data import tasks
from grpo.environment import versions_of
from grpo.problems import user_errors
from rewards import Verifier, last_box, signals
from rewards.signals import AnswerFrom, grade_answers, read, says_nothing
from rewards.truths import rules_digest

COLUMNS = {"strict": "answer", "flexible": "flexible_answer"}
"""Column -> the field of a row that holds its answer"""
GRADERS = ("math-verify", "latex2sympy2_extended", "sympy")
NUMBER = re.compile(r"-?\d*\.?\d+")
RELATIVE_TOLERANCE = 1e-4
RESAMPLES = 10_000
CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)  # 1.96


def new_verifier(workers: int = 2) -> Verifier:
    """A verifier with more time than in training: 10 s of processor time for an answer, not 2."""
    return Verifier(workers=workers, timeout_s=10.0)


# ---- grading


@cache
def grader() -> dict[str, str]:
    """Identifies the grader: the versions of its libraries, and the digest of the source that reads and compares."""
    digest = hashlib.sha256(rules_digest().encode())
    for module in (__file__, signals.__file__):
        digest.update(Path(module).read_bytes())
    return versions_of(GRADERS) | {"rules": digest.hexdigest()[:16]}


@user_errors()
def grade(rows: Sequence[dict], verifier: Verifier, answer_from: AnswerFrom = "box") -> list[dict]:
    """The rows with the grades of their completions: both answers, whether each is right, the outcome of the strict one
    (correct, wrong, no_answer, unparsed or timeout), and the grader. `answer_from` is the run's `reward.verifier`.

    A row that names the item of a task is graded by the task's own scorer, as in training.
    """
    truths = [row["ground_truth"] for row in rows]
    answers = [read(row["completion"], answer_from).answer for row in rows]
    tags = answers if answer_from == "answer_tag" else [None] * len(rows)
    loose = [flexible_answer(row["completion"], tag) for row, tag in zip(rows, tags, strict=True)]
    scorers = [tasks.scorer_of(row) for row in rows]
    strict, flexible = (grade_answers(texts, truths, verifier, scorers) for texts in (answers, loose))
    return [
        row
        | {
            "answer": answers[i],
            "outcome": strict[i][0],
            "strict": strict[i][0] == "correct",
            "flexible_answer": loose[i],
            "flexible": flexible[i][0] == "correct" or (not scorers[i] and close_numbers(loose[i], truths[i])),
            "graded_with": grader(),
        }
        for i, row in enumerate(rows)
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
    try:
        a, b = _number(answer), _number(truth)
    except ValueError:
        return False
    factors = (0.01, 1, 100) if math.isfinite(a) else ()
    return any(math.isclose(a, b * factor, rel_tol=RELATIVE_TOLERANCE) for factor in factors)


def _number(text: str) -> float:
    """The value of a plain number. Raises ValueError for any other text."""
    text = text.replace(",", "").strip()
    return float(text.removesuffix("%").removesuffix("\\")) * (0.01 if text.endswith("%") else 1)


# ---- statistics


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that k of a problem's samples, drawn without replacement, hold one of the right ones.

    The unbiased estimator 1 - C(n - c, k) / C(n, k) of Chen et al. 2021 (arXiv:2107.03374), eq. 1.
    """
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def majority(answers: pd.Series, right: pd.Series) -> float:
    """1 if the most frequent answer of a problem's samples is right, else 0. Samples without an answer do not vote.

    Answers vote by their text, and a tie gives each tied answer its share: the expectation over fair tie-breaking.
    """
    silent = ~right & answers.map(lambda answer: not isinstance(answer, str) or says_nothing(answer))
    votes = answers.mask(silent)
    return float(right[votes.isin(votes.mode())].mean()) if votes.notna().any() else 0.0


def figure(values: Sequence[float] | np.ndarray | pd.Series) -> dict[str, Any]:
    """The mean over problems with its 95% interval: {"mean", "low", "high"}.

    Wilson's (1927) if every problem is entirely right or wrong: it keeps a width at 0 and 100%, because 0 of 30 is
    compatible with 11%. Else the percentile bootstrap.
    """
    means = np.asarray(values, dtype=np.float64)
    low, high = wilson(means.sum(), len(means)) if _whole(means) else bootstrap(means)
    return {"mean": float(means.mean()), "low": low, "high": high}


def _whole(means: np.ndarray) -> bool:
    """True if every problem is entirely right or entirely wrong."""
    return bool(np.isin(means, (0.0, 1.0)).all())


def wilson(right: float, total: int) -> tuple[float, float]:
    """95% score interval of a share: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)."""
    share, spread = right / total, Z**2 / total
    middle = share + spread / 2
    width = math.sqrt(share * (1 - share) * spread + spread**2 / 4)
    return max(0.0, (middle - width) / (1 + spread)), min(1.0, (middle + width) / (1 + spread))


def bootstrap(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95% percentile interval of the mean, from problems drawn again with replacement. The seed makes it repeatable."""
    draws = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def paired_difference(a: pd.Series, b: pd.Series) -> dict[str, Any]:
    """Mean of b - a with its 95% interval, and the problems that were gained and lost. a, b: problem -> mean score.

    Pairs stay together: problems that are hard for both cancel, so the interval is narrower than the scores' own.
    """
    before, after, gains = a.to_numpy(), b.to_numpy(), b - a
    whole = _whole(before) and _whole(after)
    low, high = newcombe(before, after) if whole else bootstrap(gains.to_numpy())
    return {
        "mean": float(gains.mean()),
        "low": low,
        "high": high,
        "method": "Newcombe's score interval" if whole else "bootstrap over problems",
        "gained": list(gains.index[gains > 0]),
        "lost": list(gains.index[gains < 0]),
    }


def newcombe(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """95% interval of mean(b) - mean(a) for paired 0/1 values: Newcombe 1998 (Stat. Med. 17:2635), method 10.

    Wilson's intervals of the two shares, joined by their correlation phi. It keeps a width where nothing flips.
    """
    n, right_a, right_b = len(a), a.sum(), b.sum()
    covariance = n * (a * b).sum() - right_a * right_b
    if covariance > 0:
        covariance = max(covariance - n / 2, 0.0)  # continuity correction
    variance = right_a * (n - right_a) * right_b * (n - right_b)
    phi = covariance / math.sqrt(variance) if variance else 0.0
    p, q = a.mean(), b.mean()
    (low_p, high_p), (low_q, high_q) = wilson(right_a, n), wilson(right_b, n)

    def distance(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x**2 - 2 * phi * x * y + y**2))

    return float(q - p - distance(q - low_q, high_p - p)), float(q - p + distance(high_q - q, p - low_p))


def score_rows(rows: Sequence[dict]) -> dict[str, Any]:
    """The figures of one benchmark. Both columns as {"mean", "low", "high"} of avg@k; pass@k for powers of two.

    truncated, no_answer: shares of completions that the length limit cut, or whose strict answer is missing or empty.
    continued, in an audit: share of completions that begin with the words that were cut off the question.
    """
    table = pd.DataFrame(rows)
    problems = table.groupby("problem")
    samples = len(table) // problems.ngroups
    result: dict[str, Any] = {
        "problems": problems.ngroups,
        "samples": samples,
        "truncated": float((table["finish_reason"] == "length").mean()),
        "no_answer": float((table["outcome"] == "no_answer").mean()),
    }
    if "rest" in table:  # of an audit
        result["continued"] = figure([_begins(row["completion"], row["rest"]) for row in rows])
    for column, answer in COLUMNS.items():
        result[column] = figure(problems[column].mean())
        if samples > 1:
            right, powers = problems[column].sum(), [2**power for power in range(samples.bit_length())]
            result[column]["pass"] = {str(k): figure([pass_at_k(samples, c, k) for c in right]) for k in powers}
            result[column]["maj"] = figure([majority(group[answer], group[column]) for _, group in problems])
    return result


def _begins(completion: str, rest: str) -> bool:
    """True if the completion begins with these words, however they are spaced."""
    words = rest.split()
    return completion.split()[: len(words)] == words
