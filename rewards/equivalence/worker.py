"""The worker side: `python -m rewards.equivalence.worker FD... `, one socket per worker, each served by a forked child.

This process only imports math-verify's parser, forks, and forks again whenever a child has died; a killed worker is
back in milliseconds. A child reads one JSON line per answer and writes one per outcome. It has no thread, no torch and
no signal handler; the parent watches the clock.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import sys

START_UP_PAIR = (r"\frac{\sqrt{8}}{2}", r"\sqrt{2}")


def main(arguments: list[str]) -> None:
    timeout_s, memory_limit_mb, *descriptors = arguments
    sockets = [socket.socket(fileno=int(descriptor)) for descriptor in descriptors]
    from rewards.equivalence.judge import judge

    judge(*START_UP_PAIR)  # imports sympy and builds the grammar's tables once, for all children
    children: dict[int, int] = {}
    for slot in range(len(sockets)):
        children[_fork(slot, sockets, float(timeout_s), int(memory_limit_mb))] = slot
    while children:
        pid, status = os.wait()
        slot = children.pop(pid)
        if status != 0:  # 0: the trainer has closed the socket, or is gone
            children[_fork(slot, sockets, float(timeout_s), int(memory_limit_mb))] = slot


def _fork(slot: int, sockets: list[socket.socket], timeout_s: float, memory_limit_mb: int) -> int:
    pid = os.fork()
    if pid == 0:
        for index, other in enumerate(sockets):
            if index != slot:
                other.close()
        try:
            serve(sockets[slot], timeout_s, memory_limit_mb)
        except ConnectionError:  # nobody is left to answer to
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def serve(connection: socket.socket, timeout_s: float, memory_limit_mb: int) -> None:
    """Answers requests until the parent hangs up (exit 0) or memory runs out (exit 1, after saying so)."""
    from rewards.equivalence.judge import judge, why_ungradable

    limit = memory_limit_mb * 2**20
    with contextlib.suppress(ValueError, OSError):  # macOS has no address-space limit
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    connection.setblocking(False)
    with contextlib.suppress(BlockingIOError):  # a request that the previous child left unread is not answered twice
        while connection.recv(65536):
            pass
    connection.setblocking(True)
    stream = connection.makefile("rb")
    _say(connection, {"ready": os.getpid()})
    for line in stream:
        request = json.loads(line)
        _limit_cpu(timeout_s)
        try:
            answer, truth = request["answer"], request["truth"]
            outcome = why_ungradable(truth) if answer is None else judge(answer, truth)
        except MemoryError:
            _say(connection, {"id": request["id"], "outcome": "timeout", "leaving": True})
            os._exit(1)
        _say(connection, {"id": request["id"], "outcome": outcome})
    os._exit(0)


def _limit_cpu(timeout_s: float) -> None:
    """A child whose parent was killed must not compute for ever: its processor time ends soon after its deadline."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime + timeout_s) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _say(connection: socket.socket, message: dict) -> None:
    connection.sendall(b"\n" + json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1:])
