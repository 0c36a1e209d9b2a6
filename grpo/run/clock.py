"""Where a step's time goes: `with clock("rollout"): ...` adds to that phase; `other` is what no phase claimed.

Durations come from a clock that only goes forward: setting the machine's time does not make a step last -3600 s.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

PHASES = ("rollout", "reward", "learn", "sync", "eval")


class Clock:
    def __init__(self) -> None:
        self._restart()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] += time.perf_counter() - start

    def read(self) -> dict[str, float]:
        """Seconds by phase since the last reading, `time/step` being all of them."""
        total = time.perf_counter() - self._start
        seconds = {f"time/{phase}": value for phase, value in self._seconds.items()}
        seconds |= {"time/other": total - sum(self._seconds.values()), "time/step": total}
        self._restart()
        return seconds

    def _restart(self) -> None:
        self._start, self._seconds = time.perf_counter(), dict.fromkeys(PHASES, 0.0)
