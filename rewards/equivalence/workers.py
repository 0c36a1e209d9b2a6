"""Worker processes that can be killed: a hang inside C code costs one answer and not the run.

No SIGALRM, no threads: `run` waits on sockets with a clock, so it works from any thread and any process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path

START_UP_S = 120.0
"""Seconds until the first worker must have imported sympy; slow disks and busy machines included."""
ATTEMPTS = 2
"""A worker killed from outside (by the system when memory is short) costs no answer: it is asked once more."""


@dataclass(slots=True, eq=False)
class _Worker:
    connection: socket.socket
    pid: int = 0
    """0 until the child has reported"""
    job: int | None = None
    deadline: float = 0.0
    received: bytes = b""


@dataclass(slots=True)
class _Run:
    """One call of `run`: what is still to do."""

    waiting: deque[int]
    outcomes: list[str | None]
    attempts: dict[int, int] = field(default_factory=dict)


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
        self._process: subprocess.Popen | None = None
        self._owner = 0
        self._ready = False
        self._workers: list[_Worker] = []

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that have reported."""
        return [worker.pid for worker in self._workers if worker.pid]

    def run(self, pairs: Sequence[tuple[str | None, str]]) -> list[str]:
        """The outcome of each (answer, ground truth), in order; "timeout" past the limit of time or memory.

        For an answer None, why the ground truth cannot be graded ("" where it can).
        """
        if not pairs:
            return []
        with self._lock:
            run = _Run(deque(range(len(pairs))), [None] * len(pairs))
            try:
                while run.waiting or any(worker.job is not None for worker in self._workers):
                    self._start_if_needed(run)
                    self._hand_out(run, pairs)
                    self._collect(run)
                    self._kill_late(run)
            except BaseException:  # Ctrl-C in the middle: the next run must not read this run's outcomes
                self._stop()
                raise
            return ["timeout" if outcome is None else outcome for outcome in run.outcomes]

    def close(self) -> None:
        """Ends all workers; the pool starts again when used again."""
        with self._lock:
            self._stop()

    def _start_if_needed(self, run: _Run) -> None:
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return
        if self._process is not None and self._owner == os.getpid() and not self._ready:
            raise RuntimeError(
                f"the reward workers could not start (exit code {self._process.returncode}); "
                "run `python -c 'import rewards.equivalence.algebra'` to see why"
            )
        for worker in self._workers:
            self._give_back(worker, run)
        self._stop()
        pairs = [socket.socketpair() for _ in range(self.size)]
        package = str(Path(__file__).resolve().parent.parent.parent)
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        numbers = [str(theirs.fileno()) for _, theirs in pairs]
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",  # neither the working directory nor a user's own modules in it
                "-m",
                "rewards.equivalence.worker",
                str(self.timeout_s),
                str(self.memory_limit_mb),
                *numbers,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            pass_fds=[theirs.fileno() for _, theirs in pairs],
            start_new_session=True,  # Ctrl-C reaches the trainer alone, which then closes the workers
        )
        for _, theirs in pairs:
            theirs.close()
        self._owner, self._ready = os.getpid(), False
        self._workers = [_Worker(ours, deadline=time.monotonic() + START_UP_S) for ours, _ in pairs]

    def _hand_out(self, run: _Run, pairs: Sequence[tuple[str | None, str]]) -> None:
        for worker in self._workers:
            if not run.waiting:
                return
            if worker.pid and worker.job is None:
                job = run.waiting.popleft()
                answer, truth = pairs[job]
                message = json.dumps({"id": job, "answer": answer, "truth": truth}).encode() + b"\n"
                worker.job, worker.deadline = job, time.monotonic() + self.timeout_s
                run.attempts[job] = run.attempts.get(job, 0) + 1
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # noticed by _start_if_needed
                    worker.connection.sendall(message)

    def _collect(self, run: _Run) -> None:
        """Waits for news, at most until the next deadline."""
        now = time.monotonic()
        deadlines = [worker.deadline for worker in self._workers if worker.job is not None or not worker.pid]
        patience = min(max(0.0, min(deadlines, default=now) - now), 0.5)
        readable = wait([worker.connection for worker in self._workers], patience)
        for worker in self._workers:
            if worker.connection in readable:
                self._read(worker, run)

    def _read(self, worker: _Worker, run: _Run) -> None:
        try:
            data = worker.connection.recv(65536)
        except ConnectionResetError:
            data = b""
        if not data:  # the forking process is gone, and this child too
            self._give_back(worker, run)
            worker.pid, worker.deadline = 0, time.monotonic() + START_UP_S
            time.sleep(0.01)
            return
        *lines, worker.received = (worker.received + data).split(b"\n")
        for line in filter(None, lines):
            try:
                message = json.loads(line)
            except ValueError:  # the half-written line of a killed child
                continue
            if "ready" in message:
                self._give_back(worker, run)
                worker.pid, self._ready = message["ready"], True
            elif message["id"] == worker.job:
                run.outcomes[worker.job], worker.job = message["outcome"], None
                if message.get("leaving"):
                    worker.pid, worker.deadline = 0, time.monotonic() + START_UP_S

    def _kill_late(self, run: _Run) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if worker.job is not None and now > worker.deadline:
                run.outcomes[worker.job], worker.job = "timeout", None
                self._kill(worker)
            elif not worker.pid and now > worker.deadline and self._process is not None:
                self._stop()
                raise RuntimeError(f"the reward workers did not start within {START_UP_S:g} s")

    def _kill(self, worker: _Worker) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)
        worker.pid, worker.deadline = 0, time.monotonic() + START_UP_S

    def _give_back(self, worker: _Worker, run: _Run) -> None:
        """The worker died of something else than our kill: its answer is asked again, ATTEMPTS times in all."""
        job, worker.job = worker.job, None
        if job is None:
            return
        if run.attempts[job] < ATTEMPTS:
            run.waiting.appendleft(job)
        else:
            run.outcomes[job] = "timeout"

    def _stop(self) -> None:
        ours = self._owner == os.getpid()
        for worker in self._workers:
            worker.connection.close()
        if self._process is not None and ours:
            self._process.kill()  # first, or it would replace the workers
            self._process.wait()
            for pid in self.pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._process, self._workers = None, []
