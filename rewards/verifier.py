"""Compares answers with ground truths: trivial cases inline, then a cache, then worker processes.

Training and evaluation use `Verifier`. `verify` compares in this process and without limits.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

from rewards.equivalence.plain import MAX_CHARS, alternatives, decide
from rewards.score import RewardError

Pair = tuple[str | None, str]
"""An answer and its ground truth; answer None: asks why the ground truth cannot be graded"""
CACHE_SIZE = 10_000
"""Pairs whose outcome is kept; the oldest go first"""
PATIENCE = 60
"""Wall-clock seconds allowed for each second of processor time of an answer"""
STARTS = 3
"""Times that a server is started for one batch"""


def verify(answer: str, ground_truth: Any) -> bool:
    """True if the content of a box equals the ground truth. Runs in this process, without a limit of time or memory."""
    from rewards.equivalence.compare import judge  # sympy takes a second to import, and most processes never need it

    return any(judge(answer, truth) == "correct" for truth in alternatives(ground_truth))


class Verifier:
    """Compares many answers with their ground truths. Works in any thread, and in a forked process.

    Integers, decimals and fractions are compared inline. The first answer that needs algebra starts a server
    (equivalence/server.py) with `workers` processes ("auto": one for each core). Each answer may use `timeout_s`
    seconds of processor time and `memory_limit_mb`; all answers of a batch together may use `budget_s` seconds of
    processor time (None: no limit).
    """

    def __init__(
        self,
        workers: int | str = 1,
        timeout_s: float = 2.0,
        memory_limit_mb: int = 1024,
        budget_s: float | None = None,
    ) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.workers = (cores or 1) if workers == "auto" else int(workers)
        self.limits = (timeout_s, memory_limit_mb)
        self.budget_s = math.inf if budget_s is None else budget_s
        self.silence_s = 60 + 2 * PATIENCE * timeout_s  # longer than any answer may take
        self._cache: dict[tuple[str, str], str] = {}
        self._asked = self._known = 0
        self._lock = threading.RLock()
        self._server: subprocess.Popen | None = None
        self._connections: list[Connection] = []  # one to each worker
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

    def ask(self, pairs: Sequence[Pair]) -> list[str]:
        """Returns the workers' outcome of each (answer, ground truth), in order.

        For an answer None the outcome is the reason why the ground truth cannot be graded, or "". If a process is
        killed from outside or stays silent, all are started again, STARTS times in all; then raises RewardError.
        """
        outcomes: dict[Pair, str] = {}
        code: int | None = None
        with self._lock:
            try:
                for _ in range(STARTS):
                    with contextlib.suppress(EOFError, OSError):  # the server ended, or stays silent
                        self._exchange(dict.fromkeys(pairs), outcomes)
                        return [outcomes[pair] for pair in pairs]
                    code = self._stop()
            except BaseException:  # Ctrl-C in the middle: the next batch must not read this batch's outcomes
                self._stop()
                raise
        raise RewardError(
            f"the processes that grade answers ended or stopped {STARTS} times (last exit code {code}). "
            "Likely causes: not enough memory, or a signal from outside. "
            "`python -c 'import rewards.equivalence.server'` shows whether they can start"
        )

    def _exchange(self, pairs: dict[Pair, None], outcomes: dict[Pair, str]) -> None:
        """Adds the missing outcomes. Each worker has one pair at a time."""
        waiting = deque(pair for pair in pairs if pair not in outcomes)
        connections = self._started() if waiting else []
        busy: dict[Connection, Pair] = {}
        used_s = 0.0
        while waiting or busy:
            for connection in connections:
                if waiting and connection not in busy:
                    busy[connection] = waiting.popleft()
                    connection.send_bytes(json.dumps(busy[connection]).encode())
            ready = wait(busy, self.silence_s)
            if not ready:
                raise TimeoutError
            for connection in [connection for connection in busy if connection in ready]:
                outcomes[busy.pop(connection)], seconds = json.loads(connection.recv_bytes())
                used_s += seconds
            if used_s >= self.budget_s:
                outcomes |= dict.fromkeys(waiting, "over_budget")
                waiting.clear()

    def _started(self) -> list[Connection]:
        """Returns a connection to each worker; starts the server if this process has none."""
        if self._server and self._owner == os.getpid() and self._server.poll() is not None:
            self._stop()  # its workers may still live, but nothing replaces them
        if self._server is None or self._owner != os.getpid():
            pipes = [Pipe() for _ in range(self.workers)]
            descriptors = [theirs.fileno() for _, theirs in pipes]
            package = str(Path(__file__).resolve().parent.parent)
            path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
            # -P: neither the working directory nor a user's own modules in it
            code = f"from rewards.equivalence.server import serve; serve({descriptors}, *{self.limits})"
            self._server = subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                stdin=subprocess.DEVNULL,
                pass_fds=descriptors,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C reaches the trainer alone, which then closes the workers
            )
            self._owner = os.getpid()
            self._connections = [ours for ours, _ in pipes]
            for _, theirs in pipes:
                theirs.close()
        return self._connections

    def _stop(self) -> int | None:
        """Kills the server and its workers; returns the server's exit code."""
        server, self._server, self._connections = self._server, None, []
        if server is None or self._owner != os.getpid():
            return None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        return server.wait()

    def close(self) -> None:
        """Ends the workers; the verifier stays usable and starts them again when it needs them."""
        with self._lock:
            self._stop()


def _best(outcomes: list[str]) -> str:
    """The outcome over several accepted ground truths; "no_answer" without any."""
    if not outcomes:
        return "no_answer"
    return "correct" if "correct" in outcomes else outcomes[0]
