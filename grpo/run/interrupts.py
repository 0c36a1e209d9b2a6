"""Ctrl-C and SIGTERM: they stop a run soon, but never between an optimiser step and its record.

Interruptions are held from right before that step until it is recorded. At any other moment they are raised at once,
even in a rollout of minutes: a spot instance may have seconds left.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from grpo.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""SIGHUP: the connection to the terminal was lost. Under nohup it is ignored, and stays ignored."""


class Interrupts:
    """While entered, a first signal raises Interrupted in the main thread; a later SIGINT ends the process at once."""

    def __init__(self) -> None:
        self.held = False
        self._first: Interrupted | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def hold(self) -> None:
        """Makes interruptions wait."""
        self.held = True

    def release(self) -> None:
        """Lets interruptions through again, and raises one that has waited."""
        self.held = False
        if self._first:
            raise self._first

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._first is None:
            self._first = Interrupted(number)
            if not self.held:
                raise self._first
        elif number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
