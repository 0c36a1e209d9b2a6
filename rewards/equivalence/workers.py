"""Worker processes that can be killed: an answer that keeps sympy busy costs one answer and not the run.

The trainer starts one server, which imports sympy once and forks workers for each batch of answers. A worker takes the
next answer's number from a pipe that all share. A timer ends it when the answer takes too long: the signal has no
handler, so the kernel ends the process in the middle of C code too. The server then forks another worker. The trainer
itself has no clock, no signal and no thread for this, and `run` works from any thread and after a fork.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

Pair = tuple[str | None, str]
"""An answer and its ground truth; for an answer None the question is why the ground truth cannot be graded"""

BATCH = 1000
"""Answers handed to the server at once; their numbers fit into a pipe"""
MAX_OUTCOME = 500
"""Characters: a line that fits into a pipe is written whole or not at all"""
WARM_UP = [
    (r"-1 \le x < 1", "[-1,1)"),
    (r"\sin^2 x+\cos^2 x", "1"),
    (r"\sqrt{5+2\sqrt6}", r"\sqrt2+\sqrt3"),
    (r"(x+2)(x^{2}-3)", r"x^{3}+2x^{2}-3x-6"),
    (r"\frac{2^{3.5}\pi}{4}+\sqrt[3]{5}", r"\frac{1}{4}\pi \cdot 2^{3.5}+\sqrt[3]{5}"),
    (r"\frac{\sqrt{8}}{2}", r"\sqrt{2}"),  # the last one before the first batch, the others after it
]
"""Make sympy import what it uses and the grammar learn what it predicts, once for all workers"""


class WorkerPool:
    """`workers` processes behind one lock. Started by the first `run`, started again after a fork of this process."""

    def __init__(self, workers: int = 1, timeout_s: float = 2.0, memory_limit_mb: int = 1024) -> None:
        if workers < 1 or timeout_s <= 0 or memory_limit_mb < 96:
            raise ValueError(
                f"workers={workers}, timeout_s={timeout_s}, memory_limit_mb={memory_limit_mb}: "
                "need workers >= 1, timeout_s > 0 and memory_limit_mb >= 96 (sympy alone takes about 70)"
            )
        self.size, self.timeout_s, self.memory_limit_mb = workers, timeout_s, memory_limit_mb
        self._lock = threading.Lock()
        self._server: subprocess.Popen | None = None
        self._owner = 0

    def run(self, pairs: Sequence[Pair]) -> list[str]:
        """The outcome of each (answer, ground truth), in order; "timeout" past the limit of time or memory.

        For an answer None, why the ground truth cannot be graded ("" where it can).
        """
        batches = [pairs[start : start + BATCH] for start in range(0, len(pairs), BATCH)]
        with self._lock:
            try:
                return [outcome for batch in batches for outcome in self._ask(batch)]
            except BaseException:  # Ctrl-C in the middle: the next run must not read this run's outcomes
                self._stop()
                raise

    def close(self) -> None:
        """Ends all workers; the pool starts again when used again."""
        with self._lock:
            self._stop()

    def _ask(self, batch: Sequence[Pair]) -> list[str]:
        """A server that was killed from outside is started anew and asked once more."""
        for _ in range(2):
            server = self._started()
            outcomes = ["timeout"] * len(batch)
            with contextlib.suppress(BrokenPipeError):
                server.stdin.write(json.dumps(batch).encode() + b"\n")
                server.stdin.flush()
            for line in server.stdout:
                message = json.loads(line)
                if message is None:  # the end of the batch
                    return outcomes
                outcomes[message[0]] = message[1]
            self._stop()
        raise RuntimeError(
            f"the reward workers ended (exit code {server.returncode}); "
            "run `python -c 'import rewards.equivalence.algebra'` to see why"
        )

    def _started(self) -> subprocess.Popen:
        if self._server is None or self._owner != os.getpid():
            package = str(Path(__file__).resolve().parent.parent.parent)
            limits = f"{self.size}, {self.timeout_s}, {self.memory_limit_mb}"
            # -P: neither the working directory nor a user's own modules in it
            command = [sys.executable, "-P", "-c", f"from rewards.equivalence.workers import serve; serve({limits})"]
            path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
            self._server = subprocess.Popen(
                command,
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
            self._server.wait()
            self._server.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                self._server.stdin.close()
        self._server = None


def serve(workers: int, timeout_s: float, memory_limit_mb: int) -> None:
    """The server: one line of JSON for each batch in; a line [number, outcome] for each answer and a last null out."""
    from rewards.equivalence.compare import judge

    results = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no outcome
    for ending in (signal.SIGALRM, signal.SIGPIPE):  # past the time limit, and where no trainer is left to answer to
        signal.signal(ending, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    judge(*WARM_UP.pop())
    for line in sys.stdin:
        batch = json.loads(line)
        _grade(batch, min(workers, len(batch)), results, timeout_s, memory_limit_mb)
        os.write(results, b"null\n")
        while WARM_UP:  # the trainer need not wait for these
            judge(*WARM_UP.pop())


def _grade(batch: list[Pair], workers: int, results: int, timeout_s: float, memory_limit_mb: int) -> None:
    """Writes the outcome of each pair. A worker that ends before its time is replaced."""
    from rewards.equivalence.compare import judge, why_ungradable

    current = memoryview(mmap.mmap(-1, 4 * workers)).cast("i")  # shared: the number that each worker is at, or -1
    numbers, write = os.pipe()
    os.write(write, b"".join(number.to_bytes(4, "little") for number in range(len(batch))))
    os.close(write)

    def work(slot: int, first: Sequence[int]) -> None:
        with contextlib.suppress(ValueError, OSError):  # macOS has no address-space limit
            resource.setrlimit(resource.RLIMIT_AS, (memory_limit_mb * 2**20,) * 2)
        taken = iter(lambda: os.read(numbers, 4), b"")
        for number in itertools.chain(first, (int.from_bytes(four, "little") for four in taken)):
            current[slot] = number
            answer, truth = batch[number]
            signal.setitimer(signal.ITIMER_REAL, timeout_s)
            outcome = why_ungradable(truth) if answer is None else judge(answer, truth)
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.write(results, json.dumps([number, outcome[:MAX_OUTCOME]]).encode() + b"\n")

    def fork(slot: int, *first: int) -> int:
        current[slot] = -1
        pid = os.fork()
        if pid == 0:
            try:
                work(slot, first)
                os._exit(0)
            finally:
                os._exit(1)  # a MemoryError: the next answer gets a worker with all the memory there is
        return pid

    slots = {fork(slot): slot for slot in range(workers)}
    asked_again = {-1}
    while slots:
        pid, status = os.wait()
        slot = slots.pop(pid)
        number, killed_by = current[slot], os.WIFSIGNALED(status) and os.WTERMSIG(status)
        if killed_by == signal.SIGPIPE:
            sys.exit()
        if killed_by and killed_by != signal.SIGALRM and number not in asked_again:  # short of memory, say
            asked_again.add(number)
            slots[fork(slot, number)] = slot
        elif status != 0:
            slots[fork(slot)] = slot
    os.close(numbers)
