"""Compares answers with ground truths: trivial cases inline, then a cache, then worker processes.

Training and evaluation use `Verifier`. `verify` compares in this process and without limits.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rewards.equivalence.plain import MAX_CHARS, alternatives, decide
from rewards.score import RewardError

CACHE_SIZE = 10_000
"""Pairs whose outcome is kept; the oldest go first"""
PATIENCE = 60
"""Seconds of the clock for each second of processor time that an answer may take"""
STARTS = 3
"""Times that a server is started for one batch"""


def verify(answer: str, ground_truth: Any) -> bool:
    """True if the content of a box equals the ground truth. Runs in this process, without a limit of time or memory."""
    from rewards.equivalence.compare import judge  # sympy takes a second to import, and most processes never need it

    return any(judge(answer, truth) == "correct" for truth in alternatives(ground_truth))


class Verifier:
    """Compares many answers with their ground truths; from any thread, and in a forked process too.

    Integers, decimals and fractions are compared inline. The first answer that needs algebra starts a server
    (equivalence/server.py) with `workers` processes ("auto": one for each core). Each answer may use `timeout_s`
    seconds of processor time and `memory_limit_mb`; all answers of a batch together may use `budget_s` seconds of
    processor time (None is no limit).
    """

    def __init__(
        self,
        workers: int | str = 1,
        timeout_s: float = 2.0,
        memory_limit_mb: int = 1024,
        budget_s: float | None = None,
    ) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.limits = (cores if workers == "auto" else workers, timeout_s, memory_limit_mb, budget_s)
        self.silence_s = 60 + 2 * PATIENCE * timeout_s  # longer than any answer may take
        self._cache: dict[tuple[str, str], str] = {}
        self._asked = self._known = 0
        self._lock = threading.RLock()
        self._server: subprocess.Popen | None = None
        self._owner = 0  # the process that started the server

    def check_batch(self, pairs: Sequence[tuple[str | None, Any]]) -> list[str]:
        """Returns the outcome (`rewards.score.OUTCOMES`) of each (answer, ground truth); of None it is "no_answer"."""
        options = [[(answer, text) for text in alternatives(truth)] if answer else [] for answer, truth in pairs]
        with self._lock:
            outcomes = self._graded([pair for row in options for pair in row])
        return [_best([outcomes[pair] for pair in row]) for row in options]

    def _graded(self, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
        """Returns the outcome of each pair. Time-outs are remembered too: each costs its limit, at every step."""
        different = dict.fromkeys(pairs)
        self._asked += len(pairs)
        self._known += len(pairs) - sum(pair not in self._cache for pair in different)
        outcomes = {pair: self._cache.get(pair) or decide(*pair) or "" for pair in different}
        hard = [pair for pair, outcome in outcomes.items() if not outcome]
        outcomes |= zip(hard, self.ask(hard), strict=True)
        for pair, outcome in outcomes.items():
            if outcome != "over_budget" and len(pair[0]) <= MAX_CHARS:
                self._cache[pair] = outcome
        while len(self._cache) > CACHE_SIZE:
            del self._cache[next(iter(self._cache))]
        return outcomes

    def cache_hit_rate(self) -> float:
        """Returns the share of answers whose outcome was known, since the last call; 0 without any answer."""
        with self._lock:
            rate = self._known / self._asked if self._asked else 0.0
            self._asked = self._known = 0
        return rate

    def ask(self, pairs: Sequence[tuple[str | None, str]]) -> list[str]:
        """Returns the workers' outcome of each (answer, ground truth), in order.

        For an answer None the outcome is the reason why the ground truth cannot be graded, "" where it can. An answer
        whose worker was killed from outside is graded again, once, and then counts as "timeout".
        """
        outcomes: dict[int, str] = {}
        with self._lock:
            try:
                for _ in range(2):
                    missing = [number for number in range(len(pairs)) if number not in outcomes]
                    if missing:
                        answers = self._exchange([pairs[number] for number in missing])
                        outcomes |= {missing[place]: outcome for place, outcome in answers.items()}
            except BaseException:  # Ctrl-C in the middle: the next batch must not read this batch's outcomes
                self._stop()
                raise
        return [outcomes.get(number, "timeout") for number in range(len(pairs))]

    def _exchange(self, pairs: Sequence[tuple[str | None, str]]) -> dict[int, str]:
        """Returns the outcomes by place in `pairs`. Restarts a server that ended or stays silent, STARTS times."""
        batch = json.dumps(pairs).encode() + b"\n"
        for _ in range(STARTS):
            server = self._started()
            outcomes: dict[int, str] = {}
            for message in self._messages(server, batch):
                if message is None:  # the end of the batch
                    return outcomes
                outcomes.setdefault(*message)
            self._stop()
        raise RewardError(
            f"the processes that grade answers ended or stopped {STARTS} times (last exit code {server.returncode}). "
            "Likely causes: not enough memory, or a signal from outside. "
            "`python -c 'import rewards.equivalence.server'` shows whether they can start"
        )

    def _messages(self, server: subprocess.Popen, batch: bytes) -> Iterator[Any]:
        """Sends a batch and yields the server's lines, until it ends or is silent for `silence_s`."""
        assert server.stdin is not None  # it was started with pipes
        assert server.stdout is not None
        # A stopped server does not read, and a long batch does not fit into the pipe: the write needs a limit as well.
        watchdog = threading.Timer(self.silence_s, os.killpg, (server.pid, signal.SIGKILL))
        watchdog.start()
        with contextlib.suppress(BrokenPipeError):
            server.stdin.write(batch)
            server.stdin.flush()
        watchdog.cancel()
        rest = b""
        while select.select([server.stdout], [], [], self.silence_s)[0]:
            chunk = os.read(server.stdout.fileno(), 1 << 16)
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            yield from map(json.loads, lines)

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
