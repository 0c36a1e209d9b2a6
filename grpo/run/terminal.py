"""What a person sees of a run, and how they stop it: lines, samples, times, alarms, Ctrl-C."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import textwrap
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from types import FrameType
from typing import TYPE_CHECKING

from tqdm import tqdm

from grpo.errors import printable

if TYPE_CHECKING:
    from grpo.types import Group
    from rewards import Score

HELD_OUT = ("eval/sampled_accuracy", "eval/greedy_accuracy")
BAR = "step {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
BEFORE_FIGURES = len("step 2000/2000 [10:00:00<10:00:00],  ")
LONGEST = 1200
"""Characters of a completion that are shown; the rest is in completions/."""


def say(message: str) -> None:
    """One line on stderr, above the progress where there is one; on a terminal broken between words."""
    text = printable(message)
    tqdm.write(wrapped(text) if sys.stderr.isatty() else text, file=sys.stderr)


def wrapped(text: str) -> str:
    width = shutil.get_terminal_size().columns
    return "\n".join(textwrap.fill(line, width) if len(line) > width else line for line in text.split("\n"))


def fitted(parts: Sequence[str]) -> str:
    """As many of them, from the first on, as fit on the terminal's line behind the step and the times."""
    room = shutil.get_terminal_size().columns - BEFORE_FIGURES
    while len("  ".join(parts)) > room and parts:
        parts = parts[:-1]
    return "  ".join(parts)


def figures(metrics: dict[str, float], limit: int | None = None) -> list[str]:
    """The step's figures, the most telling first: held-out accuracy (starred where eval.limit is set), then reward."""
    star = "*" if limit else ""
    parts = [name for name in metrics if name.startswith("signal/") and not name.endswith("_group_std")]
    shown = {
        f"sampled{star}": HELD_OUT[0],
        f"greedy{star}": HELD_OUT[1],
        "reward": "reward/mean",
        **{name.removeprefix("signal/"): name for name in parts},
        "tokens": "completion/tokens_mean",
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


def good_and_bad(groups: Sequence[Group], texts: Sequence[Sequence[str]], scores: Sequence[Sequence[Score]]) -> str:
    """The step's best and worst completion, as text that is safe to print."""
    places = [(g, i) for g, group in enumerate(scores) for i in range(len(group))]
    ranked = sorted(places, key=lambda place: scores[place[0]][place[1]].total)
    blocks = []
    for label, (g, i) in (("best", ranked[-1]), ("worst", ranked[0])):
        score, group, completion = scores[g][i], groups[g], groups[g].completions[i]
        signals = "  ".join(f"{name} {value:g}" for name, value in score.signals.items())
        head = f"{label} of the step: reward {score.total:g}  {signals}  answer {score.answer}"
        head += f"  (truth {group.problem.ground_truth}, {len(completion.ids)} tokens, {completion.finish_reason})"
        head = printable(_clip(head, 300)).replace("\n", " ")
        blocks.append(f"--- {head}\n{printable(_clip(texts[g][i], LONGEST))}")
    return wrapped("\n".join(blocks))


def _clip(text: str, longest: int) -> str:
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]} ... [{len(text) - 2 * half} characters] ... {text[-half:]}"


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


# ---- alarms

WINDOW = 5
"""Steps over which an alarm has to hold."""
ENOUGH = 20
"""Reflections on right answers, and on wrong ones, before their rates are compared."""


class Alarms:
    """Says what went wrong over the last WINDOW steps, each thing once, and only where enough was seen to claim it."""

    def __init__(self) -> None:
        self.first: list[dict] = []
        self.last: deque[dict] = deque(maxlen=WINDOW)
        self.best, self.said = 0.0, set()

    def __call__(self, row: dict[str, float]) -> list[str]:
        self.last.append(row)
        self.first = self.first or ([] if len(self.last) < WINDOW else list(self.last))
        if not self.first:
            return []
        found = dict(self._wrong())
        new = [text for name, text in found.items() if name not in self.said]
        self.said |= found.keys()
        self.best = max(self.best, _mean(self.last, "reward/mean"))
        return new

    def _wrong(self) -> Iterator[tuple[str, str]]:
        """Name, and what to say."""
        right, reward = _mean(self.last, "outcome/correct"), _mean(self.last, "reward/mean")
        if min(row["groups/zero_variance"] for row in self.last) == 1 and right <= 0.95:
            yield (
                "flat",
                f"for {WINDOW} steps no group had completions with different rewards: every advantage was 0, nothing "
                "was learned. See outcome/* for what the completions have in common",
            )
        if self.best >= 0.05 and abs(reward) <= 0.01 * self.best:
            lower = "lower learner.lr, or go back to a checkpoint"
            yield "fallen", f"the reward fell to 0 after a mean of {self.best:.2g}: {lower}"
        before, now = _mean(self.first, "completion/tokens_mean"), _mean(self.last, "completion/tokens_mean")
        if now <= before / 4 and right <= _mean(self.first, "outcome/correct") + 0.05:
            shrank = f"completions shrank from {before:.0f} to {now:.0f} tokens"
            yield "shrunk", f"{shrank} and are right no more often: read a few"
        yield from self._same_verdict()

    def _same_verdict(self) -> Iterator[tuple[str, str]]:
        """Whether the reflection says the same of right and of wrong answers, nearly always."""
        seen = WINDOW * self.last[-1]["completion/tokens"] / self.last[-1]["completion/tokens_mean"]  # completions
        says_correct, count = {}, {}
        for truth in ("right", "wrong"):
            correct, wrong = (seen * _mean(self.last, f"verdict/{truth}_says_{word}") for word in ("correct", "wrong"))
            says_correct[truth], count[truth] = correct, correct + wrong
        if min(count.values()) < ENOUGH:
            return
        rates = {truth: says_correct[truth] / count[truth] for truth in count}
        overall = sum(says_correct.values()) / sum(count.values())
        if not 0.05 < overall < 0.95 and abs(rates["right"] - rates["wrong"]) <= 0.05:
            yield (
                "same verdict",
                f"the reflection says 'correct' of {rates['right']:.0%} of the right and of {rates['wrong']:.0%} of "
                "the wrong answers: the reflection signal is dead",
            )


def _mean(rows: Iterable[dict], name: str) -> float:
    return mean(row[name] for row in rows)


# ---- stopping

# Ctrl-C and SIGTERM stop a run soon, but never between an optimiser step and the record of it. Interruptions are held
# right before that step and released once it is on record. Everywhere else they are raised where they arrive, so that a
# rollout of minutes is abandoned at once: a spot instance may have seconds left.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""SIGHUP: the connection to the terminal was lost. Under nohup it is ignored, and stays so."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end. `code` is the exit status that says so: 130 for SIGINT, 143 for SIGTERM."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number, self.code = number, 128 + number


_held = False
_pending: int | None = None


def hold_interruptions() -> None:
    """From here on an interruption waits."""
    global _held
    _held = True


def release_interruptions() -> None:
    """Interruptions are let through again; one that has waited is raised here."""
    global _held, _pending
    _held = False
    if _pending is not None:
        number, _pending = _pending, None
        raise Interrupted(number)


def interruptions_held() -> bool:
    return _held


@contextmanager
def interruptible() -> Iterator[None]:
    """Within it, SIGNALS raise Interrupted in the main thread; a second SIGINT ends the process at once."""
    global _held, _pending
    _held, _pending = False, None
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

    caught = [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _held, _pending = False, None
