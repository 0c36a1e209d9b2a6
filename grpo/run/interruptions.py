"""Ctrl-C and SIGTERM: stop soon, but never between an optimiser step and the record of it.

The trained weights change in one place only, the optimiser's step. `hold` is called right before it and `release` once
the step is on record; an interruption in between waits for `release`. Everywhere else it is raised where it arrives, so
that a rollout of minutes is abandoned at once: a spot instance may have seconds left.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end. `code` is the exit status that says so: 130 for SIGINT, 143 for SIGTERM."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number, self.code = number, 128 + number


_held = False
_pending: int | None = None


def hold() -> None:
    """From here on an interruption waits."""
    global _held
    _held = True


def release() -> None:
    """Interruptions are let through again; one that has waited is raised here."""
    global _held, _pending
    _held = False
    if _pending is not None:
        number, _pending = _pending, None
        raise Interrupted(number)


def held() -> bool:
    return _held


@contextmanager
def interruptible() -> Iterator[None]:
    """Within it, SIGINT and SIGTERM raise Interrupted in the main thread; a second SIGINT ends the process at once."""
    global _held, _pending
    _held, _pending = False, None
    if threading.current_thread() is not threading.main_thread():  # signals are delivered to the main thread alone
        yield
        return
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        global _pending
        if received:
            if number == signal.SIGINT:
                os.write(sys.stderr.fileno(), b"\ninterrupted again: ending at once\n")
                os._exit(128 + number)
            return
        received.append(number)
        if _held:
            _pending = number
        else:
            raise Interrupted(number)

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _held, _pending = False, None
