"""The process that `rewards.Verifier` starts: it imports sympy once and forks workers that can be killed.

Each worker serves one connection: `[answer, truth]` comes in as JSON, `[outcome, seconds]` goes out. Two timers limit
each answer: processor time, so that an outcome does not depend on the machine's load, and wall-clock time, for code
that waits and never computes. Neither signal has a handler, so the kernel ends the worker even in the middle of C code.
That costs one answer ("timeout"): the server reports it and forks another worker for the connection. If a worker is
killed or stopped from outside, its answer is unknown: all processes end, and the trainer starts them again.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import NoReturn

from rewards.equivalence.compare import judge, why_ungradable
from rewards.equivalence.tables import TABLES
from rewards.verifier import PATIENCE

OUT_OF_MEMORY = 1
"""Exit code of a worker that raised an error: only a MemoryError can escape"""
IDLE = 2
"""Exit code of a worker idle for IDLE_S; a fresh one replaces it"""
IDLE_S = 1.0


def serve(descriptors: Sequence[int], timeout_s: float, memory_limit_mb: int) -> None:
    """Keeps a worker on each connection until the trainer closes it."""
    for ending in (signal.SIGPROF, signal.SIGALRM, signal.SIGPIPE):  # past a limit, or the trainer is gone
        signal.signal(ending, signal.SIG_DFL)
    *others, first = TABLES["warm_up"]
    judge(*first)

    def fork(connection: Connection) -> int:
        pid = os.fork()
        if pid == 0:
            work(connection, timeout_s, memory_limit_mb)
        return pid

    connections = [Connection(descriptor) for descriptor in descriptors]
    workers = {fork(connection): connection for connection in connections}
    for pair in others:  # the trainer does not wait for these, which speed up later workers
        judge(*pair)
    while workers:
        pid, status = os.waitpid(-1, os.WUNTRACED)
        connection = workers.pop(pid)
        code = -signal.SIGKILL if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)
        if code in (0, -signal.SIGPIPE):  # the trainer is gone
            continue
        if code in (-signal.SIGKILL, -signal.SIGTERM):
            os.killpg(0, signal.SIGKILL)
        if code != IDLE:  # past a limit, or out of memory
            _send(connection, "timeout", timeout_s)
        workers[fork(connection)] = connection


def work(connection: Connection, timeout_s: float, memory_limit_mb: int) -> NoReturn:
    """Grades answers one by one until none has come for IDLE_S seconds or the trainer closes the connection.

    For an answer None the outcome is the reason why the ground truth cannot be graded.
    """
    code = OUT_OF_MEMORY  # the next answer gets a process with all the memory there is
    wait_s = None
    try:
        while connection.poll(wait_s):
            answer, truth = json.loads(connection.recv_bytes())
            start = time.process_time()
            limit(timeout_s, memory_limit_mb)
            outcome = why_ungradable(truth) if answer is None else judge(answer, truth)
            limit(0, memory_limit_mb)  # no limit while it waits
            _send(connection, outcome, time.process_time() - start)
            wait_s = IDLE_S
        code = IDLE
    except EOFError:
        code = 0
    finally:
        os._exit(code)


def _send(connection: Connection, outcome: str, seconds: float) -> None:
    connection.send_bytes(json.dumps([outcome, seconds]).encode())


def limit(timeout_s: float, memory_limit_mb: int) -> None:
    """Lets the kernel end this process after `timeout_s` more seconds of computing; 0: no limit."""
    signal.setitimer(signal.ITIMER_PROF, timeout_s)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE * timeout_s)
    with contextlib.suppress(ValueError, OSError):  # macOS has no address-space limit
        resource.setrlimit(resource.RLIMIT_AS, (memory_limit_mb * 2**20,) * 2)
