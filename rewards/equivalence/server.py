"""The process that `rewards.Verifier` starts: it imports sympy once and forks workers that can be killed.

A line of JSON comes in for each batch of answers, a line `[number, outcome]` goes out for each answer, and `null` ends
the batch. Two timers limit each answer: processor time, so that an outcome does not depend on the machine's load, and
the clock, for code that waits and never computes. Neither signal has a handler, so the kernel ends the worker in the
middle of C code too. That costs one answer ("timeout"), and another worker continues with the next. An answer whose
worker was killed or stopped from outside gets no line.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import resource
import select
import signal
import sys
import time

from rewards.equivalence.compare import judge, why_ungradable
from rewards.equivalence.tables import TABLES
from rewards.verifier import PATIENCE

Pair = tuple[str | None, str]
"""An answer and its ground truth; for an answer None the question is why the ground truth cannot be graded"""

OUT_OF_MEMORY = 1
"""Exit code of a worker that raised an error, which is a MemoryError"""
WARM_UP: list[list[str]] = TABLES["warm_up"]
"""Make sympy import what it uses and the grammar learn what it predicts, once for all workers. The last one is read
before the first batch, the others after it."""


def serve(workers: int, timeout_s: float, memory_limit_mb: int, budget_s: float | None = None) -> None:
    """Answers batch after batch until the trainer is gone."""
    results = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no outcome
    for ending in (signal.SIGPROF, signal.SIGALRM, signal.SIGPIPE):  # past a limit; where no trainer is left
        signal.signal(ending, signal.SIG_DFL)
    judge(*WARM_UP.pop())
    for line in sys.stdin:
        grade(json.loads(line), workers, results, timeout_s, memory_limit_mb, budget_s)
        os.write(results, b"null\n")
        while WARM_UP:  # the trainer need not wait for these
            judge(*WARM_UP.pop())


def grade(
    batch: list[Pair], workers: int, results: int, timeout_s: float, memory_limit_mb: int, budget_s: float | None
) -> None:
    """Writes the outcome of each pair to `results`; worker w takes the answers w, w + workers, w + 2 workers, ..."""
    # Shared with the workers: the next answer of each, and the processor time that each has used
    upcoming = memoryview(mmap.mmap(-1, 4 * workers)).cast("i")
    used = memoryview(mmap.mmap(-1, 8 * workers)).cast("d")

    def work(worker: int) -> None:
        while (number := upcoming[worker]) < len(batch):
            upcoming[worker] += workers  # first: where this answer ends the process, the next one continues behind it
            answer, truth = batch[number]
            if budget_s is not None and sum(used) >= budget_s:
                outcome = "over_budget"
            else:
                start = time.process_time()
                limit(timeout_s, memory_limit_mb)
                outcome = why_ungradable(truth) if answer is None else judge(answer, truth)
                used[worker] += time.process_time() - start
            os.write(results, _line(number, outcome))

    def fork(worker: int) -> int:
        pid = os.fork()
        if pid == 0:
            code = OUT_OF_MEMORY  # the next answer gets a process with all the memory there is
            try:
                work(worker)
                code = 0
            finally:
                os._exit(code)
        return pid

    for worker in range(workers):
        upcoming[worker] = worker
    running = {fork(worker): worker for worker in range(min(workers, len(batch)))}
    while running:
        pid, status = os.waitpid(-1, os.WUNTRACED)
        if os.WIFSTOPPED(status):  # by a signal from outside: its limits would never end it
            os.kill(pid, signal.SIGKILL)
            continue
        worker = running.pop(pid)
        code = os.waitstatus_to_exitcode(status)
        if code == -signal.SIGPIPE:  # the trainer is gone
            sys.exit()
        if code in (OUT_OF_MEMORY, -signal.SIGPROF, -signal.SIGALRM):
            used[worker] += timeout_s
            os.write(results, _line(upcoming[worker] - workers, "timeout"))
        if upcoming[worker] < len(batch):
            running[fork(worker)] = worker


def _line(number: int, outcome: str) -> bytes:
    """Returns an outcome's line, shortened to what a pipe takes whole or not at all."""
    while len(line := json.dumps([number, outcome]).encode() + b"\n") > select.PIPE_BUF:
        outcome = outcome[: len(outcome) // 2]
    return line


def limit(timeout_s: float, memory_limit_mb: int) -> None:
    """From here on this process may compute for `timeout_s` seconds, before the kernel ends it."""
    signal.setitimer(signal.ITIMER_PROF, timeout_s)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE * timeout_s)
    with contextlib.suppress(ValueError, OSError):  # macOS has no address-space limit
        resource.setrlimit(resource.RLIMIT_AS, (memory_limit_mb * 2**20,) * 2)
