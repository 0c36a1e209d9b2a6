"""The words of a run on a terminal: figures, samples, results, and the clock of its phases."""

from __future__ import annotations

import shlex
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path

from grpo.terminal import escape_control

BAR = "step {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
BEFORE_FIGURES = len("step 2000/2000 [10:00:00<10:00:00],  ")
LONGEST = 1200
"""Characters of a completion that are shown; the rest is in completions/."""


def fitted(parts: Sequence[str], width: int) -> str:
    """As many of them, from the first on, as fit behind the step and the times on a line of that width."""
    while len("  ".join(parts)) > width - BEFORE_FIGURES and parts:
        parts = parts[:-1]
    return "  ".join(parts)


def figures(metrics: dict[str, float], limit: int | None = None) -> list[str]:
    """The step's figures, the most telling first: held-out accuracy (starred where eval.limit is set), then reward."""
    star = "*" if limit else ""
    parts = [name for name in metrics if name.startswith("signal/") and not name.endswith("_group_std")]
    shown = {
        f"sampled{star}": "eval/sampled_accuracy",
        f"greedy{star}": "eval/greedy_accuracy",
        "reward": "reward/mean",
        **{name.removeprefix("signal/"): name for name in parts},
        "tokens": "completion/length_mean",
        "tokens/s": "speed/tokens_per_second",
    }
    return [f"{label} {metrics[key]:.3g}" for label, key in shown.items() if metrics.get(key) is not None]


def before_and_after(summary: dict) -> str:
    """The test figures of the untrained and the trained policy, a line each; empty where nothing was tested."""
    before, after = summary["before"], summary["after"]
    lines = [f"test {name.replace('_', ' '):22}{before[name]:7.1%} -> {after[name]:.1%}" for name in after]
    if lines and summary["limit"]:
        lines.append(f"*: smoke figures, of the first {summary['limit']} problems of each file (eval.limit)")
    return "\n".join(lines)


def next_commands(folder: Path, steps: int) -> str:
    """What a person does with a finished run."""
    name = shlex.quote(str(folder))
    return (
        f"look       python -m grpo.report {name}\n"
        f"evaluate   python eval.py --run {name}\n"
        f"go on      python train.py --resume {name} --steps {2 * steps}"
    )


def good_and_bad(rows: Sequence[dict], truths: Sequence[str]) -> str:
    """The step's best and worst completion, as text that is safe to print. `rows` as in completions/; truths[group]."""
    blocks = []
    for label, choose in (("best", max), ("worst", min)):
        row = choose(rows, key=itemgetter("reward"))
        signals = "  ".join(f"{name} {value:g}" for name, value in row["signals"].items())
        ending = f"truth {truths[row['group']]}, {row['tokens']} tokens, {row['finish_reason']}"
        head = f"--- {label} of the step: reward {row['reward']:g}  {signals}  ({ending})  answer {row['answer']}"
        text = row["completion"]
        if len(text) > LONGEST:
            half = LONGEST // 2
            text = f"{text[:half]} ... [{len(text) - 2 * half} characters] ... {text[-half:]}"
        blocks += [textwrap.shorten(head, 300), text]
    return escape_control("\n".join(blocks))


PHASES = ("rollout", "reward", "learn", "sync", "eval")


class Clock:
    """Seconds by phase, and the most `memory` that was in use at the end of one."""

    def __init__(self, memory: Callable[[], float] = lambda: 0.0) -> None:
        self._memory, self._peak = memory, 0.0
        self._restart()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] += time.perf_counter() - start
            self._peak = max(self._peak, self._memory())

    def read(self) -> dict[str, float]:
        """Seconds by phase since the last reading, `time/step` being all of them."""
        total = time.perf_counter() - self._start
        seconds = {f"time/{phase}": value for phase, value in self._seconds.items()}
        seconds |= {"time/other": total - sum(self._seconds.values()), "time/step": total}
        self._restart()
        return seconds

    def read_peak(self) -> float:
        """Of the memory, since the last such reading."""
        peak, self._peak = max(self._peak, self._memory()), 0.0
        return peak

    def _restart(self) -> None:
        self._start, self._seconds = time.perf_counter(), dict.fromkeys(PHASES, 0.0)
