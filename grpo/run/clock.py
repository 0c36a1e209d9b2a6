"""Time and memory of a run's phases."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PHASES = ("rollout", "reward", "learn", "sync", "eval")


class Clock:
    """Seconds by phase, and peak memory (GiB) at the ends of phases."""

    def __init__(self) -> None:
        self._peak = 0.0
        self._restart()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] += time.perf_counter() - start
            self._peak = max(self._peak, memory_in_use_gib())

    def read(self) -> dict[str, float]:
        """Seconds by phase since the last reading; `time/step` is their sum with time/other."""
        total = time.perf_counter() - self._start
        seconds = {f"time/{phase}": value for phase, value in self._seconds.items()}
        seconds |= {"time/other": total - sum(self._seconds.values()), "time/step": total}
        self._restart()
        return seconds

    def read_peak(self) -> float:
        """Peak memory in GiB since the last call."""
        peak = max(self._peak, memory_in_use_gib())
        self._peak = 0.0
        return peak

    def _restart(self) -> None:
        self._start = time.perf_counter()
        self._seconds = dict.fromkeys(PHASES, 0.0)


def memory_in_use_gib() -> float:
    """Memory of the GPU, torch's cache, vLLM's pool and other processes included; without a GPU this process's peak."""
    if torch.cuda.is_initialized():
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
