"""The process that `rewards.Verifier` starts: it imports sympy once and forks workers that can be killed.

A line of JSON comes in for each batch of answers, a line `[number, outcome]` goes out for each answer, and `null` ends
the batch. Two timers limit each answer: processor time, so that a verdict does not depend on what else the machine
does, and the clock, for what waits and never computes. Neither signal has a handler, so the kernel ends the worker in
the middle of C code too. That loses one answer, and another worker goes on with the next.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import resource
import signal
import sys

from rewards.equivalence.compare import judge, why_ungradable

Pair = tuple[str | None, str]
"""An answer and its ground truth; for an answer None the question is why the ground truth cannot be graded"""

PATIENCE = 60
"""Seconds of the clock for each second of processor time that an answer may take"""
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


def serve(workers: int, timeout_s: float, memory_limit_mb: int) -> None:
    """Answers batch after batch until the trainer is gone."""
    results = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no outcome
    for ending in (signal.SIGPROF, signal.SIGALRM, signal.SIGPIPE):  # past a limit; where no trainer is left
        signal.signal(ending, signal.SIG_DFL)
    judge(*WARM_UP.pop())
    for line in sys.stdin:
        grade(json.loads(line), workers, results, timeout_s, memory_limit_mb)
        os.write(results, b"null\n")
        while WARM_UP:  # the trainer need not wait for these
            judge(*WARM_UP.pop())


def grade(batch: list[Pair], workers: int, results: int, timeout_s: float, memory_limit_mb: int) -> None:
    """Writes the outcome of each pair to `results`; worker w takes the answers w, w + workers, w + 2 workers, ..."""
    upcoming = memoryview(mmap.mmap(-1, 4 * workers)).cast("i")  # [workers], shared with them: the next answer of each

    def work(worker: int) -> None:
        while (number := upcoming[worker]) < len(batch):
            upcoming[worker] += workers  # first: where this answer ends the process, the next one goes on behind it
            limit(timeout_s, memory_limit_mb)
            answer, truth = batch[number]
            outcome = why_ungradable(truth) if answer is None else judge(answer, truth)
            os.write(results, json.dumps([number, outcome[:MAX_OUTCOME]]).encode() + b"\n")

    def fork(worker: int) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                work(worker)
            finally:
                os._exit(0)  # also after a MemoryError: the next answer gets a process with all the memory there is
        return pid

    for worker in range(workers):
        upcoming[worker] = worker
    running = {fork(worker): worker for worker in range(min(workers, len(batch)))}
    while running:
        pid, status = os.wait()
        worker = running.pop(pid)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPIPE:
            sys.exit()
        if upcoming[worker] < len(batch):
            running[fork(worker)] = worker


def limit(timeout_s: float, memory_limit_mb: int) -> None:
    """From here on this process may compute for `timeout_s` seconds, before the kernel ends it."""
    signal.setitimer(signal.ITIMER_PROF, timeout_s)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE * timeout_s)
    with contextlib.suppress(ValueError, OSError):  # macOS has no address-space limit
        resource.setrlimit(resource.RLIMIT_AS, (memory_limit_mb * 2**20,) * 2)
