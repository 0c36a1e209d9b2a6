r"""Which answers are compared, and by whom: ground truths as data sets have them, and the Verifier.

`Verifier` is what training and evaluation use: plain cases, bounded cache, and killable workers for the rest. `verify`
asks in this process, without a clock. `self_test` tries both before training.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from fractions import Fraction
from functools import lru_cache
from typing import Any

from rewards.equivalence.plain import MAX_CHARS, decide
from rewards.equivalence.workers import WorkerPool
from rewards.score import Reward

CACHE_SIZE = 10_000
"""Pairs whose outcome is kept; the oldest go first"""
CHUNK = 500
"""Ground truths between two calls of `progress`"""


def verify(answer: str, ground_truth: Any) -> bool:
    """Whether the content of a box equals the ground truth. In this process and without any limit of time or memory."""
    from rewards.equivalence.compare import judge  # sympy takes a second to import, and most processes never need it

    return any(judge(answer, truth) == "correct" for truth in alternatives(ground_truth))


@lru_cache(maxsize=4096)
def _from_text(text: str) -> tuple[str, ...]:
    stripped = text.strip()
    if stripped.startswith("[") and stripped.endswith("]"):
        try:
            items = json.loads(stripped, parse_int=str, parse_float=str)
        except ValueError:
            items = None
        named = '"' in stripped or (items is not None and len(items) == 1)  # [0,1] is an interval, [18] is none
        if named and items and all(isinstance(item, str) for item in items):
            return tuple(item.strip() for item in items)
    return (stripped,)


def alternatives(value: Any) -> tuple[str, ...]:
    r"""The ground truth as accepted texts: "18", 18, 12.8, '["18"]', ["18"]. Any of several counts as right.

    In a string, `["0", "1"]` and `[18]` are lists and `[0,1]` is an interval. ValueError for anything else.
    """
    if isinstance(value, str):
        return _from_text(value)
    if isinstance(value, bool | bytes) or value is None:
        raise ValueError(f"ground truth {value!r}: need a string or a number")
    if isinstance(value, list | tuple) and value and all(isinstance(item, str) for item in value):
        return tuple(item.strip() for item in value)
    if isinstance(value, Fraction):
        return (str(value),)
    try:
        as_float = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"ground truth {value!r} of type {type(value).__name__}: need a string or a number") from None
    if not math.isfinite(as_float):
        raise ValueError(f"ground truth {value!r}: not finite")
    return (str(value.item() if hasattr(value, "item") else value),)


def ground_truth_text(value: Any) -> str:
    """The ground truth as one string, as a problem stores it; ValueError where it is neither text nor number.

    Nothing is parsed: `check_ground_truths` says whether it can be graded.
    """
    texts = alternatives(value)
    return texts[0] if len(texts) == 1 else json.dumps(list(texts))


def check_ground_truths(
    truths: Sequence[Any],
    workers: int = 2,
    timeout_s: float = 5.0,
    progress: Callable[[int, int], None] | None = None,
) -> list[str | None]:
    """For each ground truth None, or one line that says why no answer can be graded against it.

    Numbers and words are read here; the rest goes to workers that are killed after `timeout_s` seconds, because some
    texts keep a parser busy for minutes. Each different text is read once. `progress(done, all)` is called on the way.
    """
    rows = [_alternatives_or_reason(value) for value in truths]
    texts = list(dict.fromkeys(text for row in rows if isinstance(row, tuple) for text in row))
    reasons: dict[str, str] = {}
    with closing(Verifier(workers, timeout_s)) as verifier:
        for start in range(0, len(texts), CHUNK):
            if progress:
                progress(start, len(texts))
            chunk = texts[start : start + CHUNK]
            reasons.update(zip(chunk, verifier.why_ungradable(chunk), strict=True))
    return [row if isinstance(row, str) else next(filter(None, map(reasons.get, row)), None) for row in rows]


def _alternatives_or_reason(value: Any) -> tuple[str, ...] | str:
    try:
        return alternatives(value)
    except ValueError as error:
        return str(error)


class Verifier:
    """Answers against ground truths, many at a time.

    `workers` processes, `timeout_s` seconds of wall clock and `memory_limit_mb` for each answer. They are started when
    the first answer needs algebra, which integers, decimals and fractions never do.
    """

    def __init__(self, workers: int = 1, timeout_s: float = 2.0, memory_limit_mb: int = 1024) -> None:
        self.pool = WorkerPool(workers, timeout_s, memory_limit_mb)
        self._cache: dict[tuple[str, str], str] = {}
        self._asked = self._known = 0

    def check_batch(self, pairs: Sequence[tuple[str | None, Any]]) -> list[str]:
        """An outcome of `rewards.OUTCOMES` for each (answer, ground truth); an answer None is "no_answer"."""
        wanted = [[(answer, text) for text in alternatives(truth)] if answer else [] for answer, truth in pairs]
        asked = [pair for options in wanted for pair in options]
        different = dict.fromkeys(asked)
        self._asked += len(asked)
        self._known += len(asked) - sum(pair not in self._cache for pair in different)
        outcomes = {pair: self._cache.get(pair) or decide(*pair) for pair in different}
        outcomes |= self._ask_workers([pair for pair, outcome in outcomes.items() if outcome is None])
        self._remember(outcomes)
        return [_best([outcomes[pair] for pair in options]) for options in wanted]

    def why_ungradable(self, truths: Sequence[str]) -> list[str]:
        """For each ground truth "", or why no answer can be graded against it."""
        plain = ("correct", "wrong")  # what can be told from 0 without algebra is a number
        hard = [(None, truth) for truth in dict.fromkeys(truths) if decide("0", truth) not in plain]
        reasons = self._ask_workers(hard)
        limits = f"not read within {self.pool.timeout_s:g} s and {self.pool.memory_limit_mb} MB"
        return [
            f"ground truth {truth[:200]!r} is unreadable: {limits if reason == 'timeout' else reason}" if reason else ""
            for truth, reason in ((truth, reasons.get((None, truth))) for truth in truths)
        ]

    def cache_hit_rate(self) -> float:
        """Share of answers already known, since the last call; 0 when nothing was asked."""
        rate = self._known / self._asked if self._asked else 0.0
        self._asked = self._known = 0
        return rate

    def close(self) -> None:
        """Ends the workers; the verifier stays usable and starts them again when it needs them."""
        self.pool.close()

    def _ask_workers(self, pairs: list[tuple[str | None, str]]) -> dict[tuple[str | None, str], str]:
        return dict(zip(pairs, self.pool.run(pairs), strict=True)) if pairs else {}

    def _remember(self, outcomes: dict[tuple[str, str], str]) -> None:
        """Timeouts are not kept: the machine may have been busy. What is too long to be read is not either."""
        self._cache |= {
            pair: outcome for pair, outcome in outcomes.items() if outcome != "timeout" and len(pair[0]) <= MAX_CHARS
        }
        for oldest in list(itertools.islice(self._cache, max(0, len(self._cache) - CACHE_SIZE))):
            del self._cache[oldest]


def _best(outcomes: list[str]) -> str:
    """The outcome over several accepted ground truths; no answer where there was none to compare."""
    if not outcomes:
        return "no_answer"
    return "correct" if "correct" in outcomes else outcomes[0]


_ALGEBRA = ((r"\frac{\sqrt{8}}{2}", r"\sqrt{2}", "correct"), (r"\frac{\sqrt{8}}{2}", r"\sqrt{3}", "wrong"))


def self_test(reward: Reward) -> None:
    """The reward's workers tell right from wrong; ValueError that says what failed.

    Rewards without a verifier (a user's own function) have nothing to test.
    """
    verifier = getattr(reward, "verifier", None)
    if verifier is None:
        return
    for (answer, truth, expected), outcome in zip(_ALGEBRA, verifier.pool.run([c[:2] for c in _ALGEBRA]), strict=True):
        if outcome != expected:
            raise ValueError(
                f"reward self-test: the answer {answer!r} against the ground truth {truth!r} gave {outcome!r}, "
                f"expected {expected!r}. The verifier does not work here, so the run does not start."
            )
