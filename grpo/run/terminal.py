"""What a person sees of a run, and how they stop it: lines, samples, times, alarms, Ctrl-C."""

from __future__ import annotations

import shlex
import shutil
import signal
import sys
import textwrap
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from types import FrameType

from tqdm import tqdm

from grpo.errors import printable

BAR = "step {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
BEFORE_FIGURES = len("step 2000/2000 [10:00:00<10:00:00],  ")
LONGEST = 1200
"""Characters of a completion that are shown; the rest is in completions/."""


def say(message: str) -> None:
    """One line on stderr, above the progress where there is one; on a terminal broken between words."""
    text = printable(message)
    if sys.stderr.isatty():
        width, whole = shutil.get_terminal_size().columns, {"break_long_words": False, "break_on_hyphens": False}
        text = "\n".join(textwrap.fill(line, width, **whole) for line in text.splitlines())
    tqdm.write(text, file=sys.stderr)


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
    return printable("\n".join(blocks))


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
VERDICTS = tuple(f"verdict/{truth}_says_{word}" for truth in ("right", "wrong") for word in ("correct", "wrong"))
AMOUNTS = ("reward/mean", "outcome/correct", "groups/zero_variance", "completion/tokens", "completion/length_mean")
WATCHED = AMOUNTS + VERDICTS


class Alarms:
    """Says what went wrong over the last WINDOW steps, each thing once, and only where enough was seen to claim it."""

    def __init__(self) -> None:
        self.rows: deque[dict[str, float]] = deque(maxlen=WINDOW)
        self.first: dict[str, float] = {}
        """Means over the first WINDOW steps."""
        self.best, self.said = 0.0, set()

    def __call__(self, row: dict[str, float]) -> list[str]:
        self.rows.append(row)
        if len(self.rows) < WINDOW:
            return []
        now = {name: fmean(row[name] for row in self.rows) for name in WATCHED}
        self.first = self.first or now
        found = dict(diseases(self.first, now, self.best))
        new = [text for name, text in found.items() if name not in self.said]
        self.said |= found.keys()
        self.best = max(self.best, now["reward/mean"])
        return new


def diseases(first: dict[str, float], now: dict[str, float], best: float) -> Iterator[tuple[str, str]]:
    """Name, and what to say. `best` is the highest mean reward of any window before."""
    right, reward = now["outcome/correct"], now["reward/mean"]
    if now["groups/zero_variance"] == 1 and right <= 0.95:
        yield "flat", f"for {WINDOW} steps all rewards of each group were equal: nothing was learned; see outcome/*"
    if best >= 0.05 and abs(reward) <= 0.01 * best:
        yield "fallen", f"the reward fell to 0 after a mean of {best:.2g}: lower learner.lr, or go back to a checkpoint"
    tokens, before = now["completion/length_mean"], first["completion/length_mean"]
    if tokens <= before / 4 and right <= first["outcome/correct"] + 0.05:
        shrank = f"completions shrank from {before:.0f} to {tokens:.0f} tokens"
        yield "shrunk", f"{shrank} and are right no more often: read a few"
    # The reflection signal: shares of the completions, by what is true and what the reflection says.
    right_correct, right_wrong, wrong_correct, wrong_wrong = (now[name] for name in VERDICTS)
    of_right, of_wrong = right_correct + right_wrong, wrong_correct + wrong_wrong
    if WINDOW * now["completion/tokens"] / tokens * min(of_right, of_wrong) >= ENOUGH:
        all_correct, rates = right_correct + wrong_correct, (right_correct / of_right, wrong_correct / of_wrong)
        if not 0.05 < all_correct / (of_right + of_wrong) < 0.95 and abs(rates[0] - rates[1]) <= 0.05:
            said = f"'correct' of {rates[0]:.0%} of the right and of {rates[1]:.0%} of the wrong answers"
            yield "same verdict", f"the reflection says {said}: the reflection signal is dead"


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
        self.code = 128 + number


_held = False
_waiting: Interrupted | None = None


def hold_interruptions() -> None:
    """From here on an interruption waits."""
    global _held
    _held = True


def release_interruptions() -> None:
    """Interruptions are let through again; one that has waited is raised here."""
    global _held, _waiting
    waited, _held, _waiting = _waiting, False, None
    if waited:
        raise waited


def interruptions_held() -> bool:
    return _held


@contextmanager
def interruptible() -> Iterator[None]:
    """Within it, SIGNALS raise Interrupted in the main thread, the first one only; a second SIGINT ends the process."""
    global _held, _waiting
    _held, _waiting = False, None
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        global _waiting
        received.append(number)
        if len(received) > 1:
            if number == signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
        elif _held:
            _waiting = Interrupted(number)
        else:
            raise Interrupted(number)

    caught = [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _held = False
