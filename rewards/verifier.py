"""Answers against ground truths: decided here where that is plain, else known already, else by workers.

`Verifier` is what training and evaluation use. `verify` asks in this process and without limits.
`check_ground_truths` says which ground truths nobody can be graded against, and `self_test` tries the workers.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rewards.equivalence.plain import MAX_CHARS, alternatives, decide
from rewards.score import Reward

CACHE_SIZE = 10_000
"""Pairs whose outcome is kept; the oldest go first"""
CHUNK = 500
"""Ground truths between two calls of `progress`"""


def verify(answer: str, ground_truth: Any) -> bool:
    """Whether the content of a box equals the ground truth. In this process and without any limit of time or memory."""
    from rewards.equivalence.compare import judge  # sympy takes a second to import, and most processes never need it

    return any(judge(answer, truth) == "correct" for truth in alternatives(ground_truth))


class Verifier:
    """Answers against ground truths, many at a time; from any thread, and in a forked process too.

    Integers, decimals and fractions are compared here. The first answer that needs algebra starts a server
    (equivalence/server.py) with `workers` processes, `timeout_s` seconds of processor time and `memory_limit_mb` for
    each answer.
    """

    def __init__(self, workers: int = 1, timeout_s: float = 2.0, memory_limit_mb: int = 1024) -> None:
        self.limits = (workers, timeout_s, memory_limit_mb)
        self._cache: dict[tuple[str, str], str] = {}
        self._asked = self._known = 0
        self._lock = threading.Lock()
        self._server: subprocess.Popen | None = None
        self._owner = 0  # the process that started the server

    def check_batch(self, pairs: Sequence[tuple[str | None, Any]]) -> list[str]:
        """An outcome of `rewards.score.OUTCOMES` for each (answer, ground truth); an answer None is "no_answer"."""
        wanted = [[(answer, text) for text in alternatives(truth)] if answer else [] for answer, truth in pairs]
        asked = [pair for options in wanted for pair in options]
        different = dict.fromkeys(asked)
        self._asked += len(asked)
        self._known += len(asked) - sum(pair not in self._cache for pair in different)
        outcomes = {pair: self._cache.get(pair) or decide(*pair) for pair in different}
        hard = [pair for pair, outcome in outcomes.items() if outcome is None]
        outcomes.update(zip(hard, self.ask(hard), strict=True))
        for pair, outcome in outcomes.items():
            if outcome != "timeout" and len(pair[0]) <= MAX_CHARS:  # a killed worker may know it the next time
                self._cache[pair] = outcome
        while len(self._cache) > CACHE_SIZE:
            del self._cache[next(iter(self._cache))]
        return [_best([outcomes[pair] for pair in options]) for options in wanted]

    def cache_hit_rate(self) -> float:
        """Share of answers already known, since the last call; 0 when nothing was asked."""
        rate = self._known / self._asked if self._asked else 0.0
        self._asked = self._known = 0
        return rate

    def ask(self, pairs: Sequence[tuple[str | None, str]]) -> list[str]:
        """The workers' outcome of each (answer, ground truth), in order; "timeout" past the limit of time or memory.

        For an answer None, why the ground truth cannot be graded ("" where it can).
        """
        if not pairs:
            return []
        with self._lock:
            try:
                return self._exchange(json.dumps(pairs).encode() + b"\n", len(pairs))
            except BaseException:  # Ctrl-C in the middle: the next batch must not read this batch's outcomes
                self._stop()
                raise

    def _exchange(self, batch: bytes, count: int) -> list[str]:
        """A server that was killed from outside is started anew and asked once more."""
        for _ in range(2):
            server = self._started()
            outcomes = ["timeout"] * count
            with contextlib.suppress(BrokenPipeError):
                server.stdin.write(batch)
                server.stdin.flush()
            for line in server.stdout:
                message = json.loads(line)
                if message is None:  # the end of the batch
                    return outcomes
                outcomes[message[0]] = message[1]
            self._stop()
        raise RuntimeError(
            f"the reward workers ended (exit code {server.returncode}); "
            "run `python -c 'import rewards.equivalence.server'` to see why"
        )

    def _started(self) -> subprocess.Popen:
        if self._server is None or self._owner != os.getpid():
            package = str(Path(__file__).resolve().parent.parent)
            path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
            # -P: neither the working directory nor a user's own modules in it
            code = f"from rewards.equivalence.server import serve; serve{self.limits}"
            self._server = subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C reaches the trainer alone, which then closes the workers
            )
            self._owner = os.getpid()
        return self._server

    def _stop(self) -> None:
        if self._server is not None and self._owner == os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGKILL)  # the server and its workers
            self._server.communicate()  # closes the pipes and waits
        self._server = None

    def close(self) -> None:
        """Ends the workers; the verifier stays usable and starts them again when it needs them."""
        with self._lock:
            self._stop()


def _best(outcomes: list[str]) -> str:
    """The outcome over several accepted ground truths; no answer where there was none to compare."""
    if not outcomes:
        return "no_answer"
    return "correct" if "correct" in outcomes else outcomes[0]


def check_ground_truths(
    truths: Sequence[Any],
    workers: int = 2,
    timeout_s: float = 5.0,
    progress: Callable[[int, int], None] | None = None,
) -> list[str | None]:
    """For each ground truth None, or one line that says why no answer can be graded against it.

    Each different text is read once, in workers, because some texts keep a parser busy for minutes.
    `progress(done, all)` is called on the way. ValueError for what is neither text nor number.
    """
    rows = [alternatives(truth) for truth in truths]
    texts = dict.fromkeys(text for row in rows for text in row)
    hard = [text for text in texts if decide("0", text) not in ("correct", "wrong")]  # the others are numbers
    reasons: dict[str, str] = {}
    with contextlib.closing(Verifier(workers, timeout_s)) as verifier:
        for start in range(0, len(hard), CHUNK):
            if progress:
                progress(start, len(hard))
            chunk = hard[start : start + CHUNK]
            for text, reason in zip(chunk, verifier.ask([(None, text) for text in chunk]), strict=True):
                if reason:
                    reason = f"not read within {timeout_s:g} s" if reason == "timeout" else reason
                    reasons[text] = f"ground truth {text[:200]!r} is unreadable: {reason}"
    return [next(filter(None, map(reasons.get, row)), None) for row in rows]


def self_test(reward: Reward) -> None:
    """The reward's workers tell right from wrong; ValueError that says what failed.

    Rewards without a verifier (a user's own function) have nothing to test.
    """
    if reward.verifier is None:
        return
    answer = r"\frac{\sqrt{8}}{2}"
    truths = {r"\sqrt{2}": "correct", r"\sqrt{3}": "wrong"}
    outcomes = reward.verifier.ask([(answer, truth) for truth in truths])
    for (truth, expected), outcome in zip(truths.items(), outcomes, strict=True):
        if outcome != expected:
            raise ValueError(
                f"reward self-test: the answer {answer!r} against the ground truth {truth!r} gave {outcome!r}, "
                f"expected {expected!r}. The verifier does not work here, so the run does not start."
            )
