"""A run on the terminal: its progress line, samples and results."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from pathlib import Path

from tqdm import tqdm

from grpo.settings import Config
from grpo.terminal import command, escape_control, notify, shorten

STARTING = "{desc} {elapsed}"
STEPS = "step {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
BEFORE_FIGURES = len("step 2000/2000 [10:00:00<10:00:00],  ")
SHOWN_CHARS = 1200
"""Characters of a completion that are shown; the rest is in completions/."""
GREEN, RED, PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[0m"
SMOKE_NOTE = "*: smoke figures, of at most the first {} problems of each file (eval.limit)"
"""The explanation of the star on held-out figures, with the limit to be filled in."""
WHY_NO_LOSS = (
    "the loss stays near 0 by construction: the advantages of a group sum to 0 and the importance ratio starts at 1. "
    "Watch reward/mean and eval/* instead"
)


class Progress:
    """One line that a terminal rewrites every second; elsewhere a line for each phase of the start and each step."""

    def __init__(self, steps: int, quiet: bool):
        self.quiet = quiet
        self.bar = tqdm(
            total=steps, bar_format=STARTING, dynamic_ncols=True, disable=quiet or not sys.stderr.isatty(), leave=False
        )
        self._describe: Callable[[], str] = str
        self._ended = threading.Event()
        self._shown: dict[str, float] = {}
        if not self.bar.disable:
            threading.Thread(target=self._refresh, daemon=True).start()

    def phase(self, text: str, count: Callable[[], str] = str) -> None:
        """Shows the start's present phase, and behind it what `count` returns at the moment."""
        self._describe = lambda: f"{text} {count()}".strip()
        self.bar.set_description_str(self._describe())
        if self.bar.disable and not self.quiet:
            notify(text)

    def _refresh(self) -> None:
        while not self._ended.wait(1.0):
            self.bar.set_description_str(self._describe())

    def begin(self, step: int) -> None:
        """Ends the start: from here on the line shows steps, times and figures."""
        self.bar.bar_format = STEPS
        self.bar.leave = True
        self.bar.reset()
        self.bar.initial = self.bar.n = step

    def step(self, row: dict[str, float], limit: int | None) -> None:
        """Shows a step's figures. On a terminal the last held-out figures stay until there are new ones."""
        if self.bar.disable:
            line = "  ".join(figures(row, limit))
            print(f"step {row['step']}/{self.bar.total}  {line}  {row['time/step']:.1f} s", flush=True)
            return
        self._shown |= row
        width = self.bar.format_dict["ncols"] or 80  # None where the terminal has gone
        shown = figures(self._shown, limit)
        while shown and len("  ".join(shown)) > width - BEFORE_FIGURES:
            shown.pop()
        self.bar.set_postfix_str("  ".join(shown), refresh=False)
        self.bar.update(int(row["step"] > 0))

    def close(self) -> None:
        self._ended.set()
        self.bar.close()


def figures(metrics: dict[str, float], limit: int | None = None) -> list[str]:
    """The step's figures, the most telling first: held-out accuracy (starred where eval.limit is set), then reward."""
    signals = signal_means(metrics)
    shown = {
        f"sampled{star(limit)}": "eval/sampled_accuracy",
        f"greedy{star(limit)}": "eval/greedy_accuracy",
        "reward": "reward/mean",
        **{name.removeprefix("signal/"): name for name in signals},
        "tokens": "completion/length_mean",
        "tokens/s": "speed/tokens_per_second",
    }
    return [f"{label} {_number(metrics[key])}" for label, key in shown.items() if metrics.get(key) is not None]


def signal_means(names: Iterable[str]) -> list[str]:
    """Those of the metrics that are a signal's mean."""
    return [name for name in names if name.startswith("signal/") and not name.endswith("_group_std")]


def star(limit: int | None) -> str:
    """The mark of held-out figures where `eval.limit` is set."""
    return "*" if limit else ""


def _number(value: float) -> str:
    """0.123, 12.3 and 11,600: three digits, and no powers of ten."""
    return f"{float(f'{value:.3g}'):,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def before_and_after(summary: dict) -> str:
    """The test figures of the untrained and the trained policy, a line each; empty where nothing was tested."""
    before, after, limit = summary["before"], summary["after"], summary["limit"]
    labels = {name: name.replace("_", " ") + star(limit) for name in after}
    lines = [
        f"test {label:22}{as_text(name, before[name]):>7} -> {as_text(name, after[name])}"
        for name, label in labels.items()
    ]
    if lines and limit:
        lines.append(SMOKE_NOTE.format(limit))
    return "\n".join(lines)


def as_text(name: str, figure: float) -> str:
    """A held-out figure: a share in percent, a mean score from 0 to 1."""
    return f"{figure:.3f}" if name.endswith("mean_score") else f"{figure:.1%}"


def next_commands(folder: Path, config: Config) -> str:
    """The commands that follow a finished run, as they can be typed here.

    A run without held-out sets needs a benchmark to be evaluated on. A linear schedule ends at the last step, so such
    a run cannot be made longer.
    """
    bench = "" if config.eval.data or config.eval.test else " --bench math500"
    trust = " --trust-remote-code" if config.policy.trust_remote_code else ""
    lines = [
        f"look       {command('-m grpo.report', folder)}",
        f"evaluate   {command('eval.py --run', folder)}{bench}{trust}",
    ]
    if config.learner.schedule != "linear":
        lines.append(f"continue   {resume_command(folder, config)} --steps {2 * config.steps}")
    return "\n".join(lines)


def resume_command(folder: Path, config: Config) -> str:
    """The command that continues the run. It allows the model's own code only if this command was allowed to run it."""
    trust = " --policy.trust_remote_code true" if config.policy.trust_remote_code else ""
    return command("train.py --resume", folder) + trust


def good_and_bad(rows: Sequence[dict]) -> str:
    """The step's best and worst completion, as text that is safe to print, wrapped to the terminal's width.

    In colours where the terminal has them.
    """
    width = shutil.get_terminal_size().columns
    colours = "NO_COLOR" not in os.environ and os.environ.get("TERM", "dumb") != "dumb"
    blocks = []
    for label, choose, colour in (("best", max, GREEN), ("worst", min, RED)):
        row = choose(rows, key=itemgetter("reward"))
        signals = "  ".join(f"{name} {value:g}" for name, value in row["signals"].items())
        paragraphs = [
            f"--- {label} of step {row['step']}: reward {row['reward']:g}  {signals}"[:300],
            f"answer {row['answer']}, truth {row['ground_truth']}, {row['tokens']} tokens, {row['finish_reason']}"[
                :300
            ],
            *shorten(row["completion"], SHOWN_CHARS).expandtabs(4).split("\n"),
        ]
        head, *wrapped = [textwrap.fill(escape_control(text), width, subsequent_indent="  ") for text in paragraphs]
        blocks += [f"{colour}{head}{PLAIN}" if colours else head, *wrapped]
    return "\n".join(blocks)
