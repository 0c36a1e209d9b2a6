"""A run: what it writes after every step, so that it can stop at any moment and go on exactly."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import resource
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from grpo.problems import BadRow
from grpo.run import files
from grpo.run.alarms import Alarms
from grpo.run.checkpoint import Checkpoints, TrainingState
from grpo.run.display import BAR, Clock, before_and_after, figures, fitted, good_and_bad
from grpo.run.interrupts import Interrupts
from grpo.run.resume import decisive, new_folder, rewind
from grpo.run.trackers import TrackerProcess
from grpo.settings import Config
from grpo.terminal import notify
from grpo.types import Group
from rewards import Score, right_shares, summarize


class Run:
    """One run and its folder. Nothing is written before `recording`."""

    def __init__(self, config: Config, resumed: Path | None = None, interrupts: Interrupts | None = None):
        """Takes the folder to continue in, or names a new one. Raises UserError where the folder cannot be used."""
        self.config, self.folder, self.resumed = config, resumed or new_folder(config), resumed is not None
        self.interrupts = interrupts or Interrupts()
        self.clock = Clock(memory_in_use_gib)
        self.checkpoints = Checkpoints(self.folder / "checkpoints", config.checkpoint.keep)
        self.accuracy: dict[int, float] = {}
        """Step -> what the best checkpoint is chosen by."""
        self.best_by = "eval/sampled_accuracy" if config.eval.sampling == "both" else "eval/greedy_accuracy"
        self._known: set[int] = set()
        self._shown: dict[str, float] = {}
        self._alarms = Alarms()
        if self.resumed:
            self._lock = files.lock(self.folder)

    # ---- the start

    @contextmanager
    def recording(self, state: TrainingState, bad_rows: Sequence[BadRow]) -> Iterator[None]:
        """Owns the run folder. On any exit, saves the last complete step and prints the resume command."""
        self._begin(state, bad_rows)
        try:
            yield
        except BaseException:  # also SystemExit, which a user's reward may raise
            self._save_last_step()
            notify(f"resume with: python train.py --resume {shlex.quote(str(self.folder))}")
            raise
        finally:
            self.bar.close()
            self._tracker.close()
            self._lock.close()

    def _begin(self, state: TrainingState, bad_rows: Sequence[BadRow]) -> None:
        """Makes the folder, or puts everything back to where its last whole checkpoint stands."""
        self.state = state
        with files.writing(self.folder):
            if not self.resumed:
                self._lock = files.create(self.folder, self.config)
            state.identity |= {"run": files.run_id(self.folder), "settings": decisive(self.config)}
            if self.resumed:
                self._restore()
            if bad_rows:
                rows = (json.dumps(dataclasses.asdict(row), default=str) + "\n" for row in bad_rows)
                files.write(self.folder / "bad_rows.jsonl", "".join(rows))
        for warning in state.reward.warnings:
            notify(warning)
        quiet, steps = self.config.quiet or not sys.stderr.isatty(), self.config.steps
        self.bar = tqdm(total=steps, initial=self.step, bar_format=BAR, dynamic_ncols=True, disable=quiet)
        self._tracker = TrackerProcess(self.config.tracker, self.folder)
        self.clock.read()  # what loading took belongs to no step

    def _restore(self) -> None:
        if self.checkpoints.restore(self.state.read) is None:
            notify(f"{self.folder} has no whole checkpoint: starting again from step 1")
        else:
            notify(f"continuing {self.folder} after step {self.step}")
        rows = rewind(self.folder, self.step, pending=self.unlogged)
        if rows and rows[-1]["step"] == self.step:
            self.state.row = None
        self.accuracy = {row["step"]: row[self.best_by] for row in rows if row.get(self.best_by) is not None}
        self._known = {row["problem"] for row in files.read_rows(self.folder / "problems.jsonl")}
        self.checkpoints.prune(self.accuracy)
        files.write_config(self.folder, self.config, self.state.identity["run"])
        if other := files.write_versions(self.folder, f"versions_after_{self.step:06d}.json"):
            notify(f"other than at the start of the run, so figures may differ: {', '.join(other)}")

    @property
    def step(self) -> int:
        """The last whole step."""
        return self.state.step

    @property
    def unlogged(self) -> bool:
        """The last whole step is not in metrics.jsonl yet."""
        return self.state.row is not None

    # ---- step by step

    def note(self, **figures: object) -> None:
        """Keeps figures in every checkpoint, for the summary at the end."""
        self.state.notes |= figures

    def record(
        self,
        step: int,
        groups: Sequence[Group],
        texts: Sequence[Sequence[str]],
        scores: Sequence[Sequence[Score]],
        advantages: torch.Tensor,
        learned: dict[str, float],
    ) -> None:
        """The weights have taken the step: keep what belongs to it. From here on it is not lost when the run stops."""
        self.interrupts.hold()  # the learner does before its step; one that was skipped took none
        completions = files.completion_rows(step, groups, texts, scores, advantages)
        with files.writing(self.folder):
            files.write_completions(self.folder, step, completions)
            self._write_problems(groups)
            row = {"step": step, "accuracy": right_shares([group.problem.index for group in groups], scores)}
            files.append(self.folder / "accuracy.jsonl", files.lines([row]))
        metrics = summarize(scores) | completion_metrics(groups) | learned
        metrics["groups/zero_variance"] = (advantages == 0).all(1).double().mean().item()  # exact zeros, no tolerance
        metrics["verifier/cache_hit_rate"] = self.state.reward.cache_hit_rate()
        self.state.complete(step, {"step": step} | metrics | self.clock.read())
        if not self.bar.disable and step % self.config.show_every == 0:
            tqdm.write(good_and_bad(completions, [group.problem.ground_truth for group in groups]), file=sys.stderr)
        for alarm in self._alarms(metrics):
            notify(alarm)
        self.interrupts.release()

    def _write_problems(self, groups: Sequence[Group]) -> None:
        """Each problem where it is drawn for the first time."""
        new = {group.problem.index: group.problem for group in groups if group.problem.index not in self._known}
        rows = [
            {"problem": index, "prompt": problem.prompt, "ground_truth": problem.ground_truth, "extra": problem.extra}
            for index, problem in new.items()
        ]
        files.append(self.folder / "problems.jsonl", files.lines(rows))
        self._known |= new.keys()

    def log(self, evaluation: dict[str, float]) -> None:
        """The last step's row, sent to metrics.jsonl and the terminal; a checkpoint is written if one is due."""
        row, step, every = self._finished_row() | evaluation, self.step, self.config.checkpoint.every
        with files.writing(self.folder):
            files.append(self.folder / "metrics.jsonl", files.lines([row]))
        self.state.row = None
        if row.get(self.best_by) is not None:
            self.accuracy[step] = row[self.best_by]
        self._show(row)
        if step and (step == self.config.steps or (every and step % every == 0)):
            self.save()

    def _finished_row(self) -> dict[str, float]:
        row = dict(self.state.row)
        for name, seconds in self.clock.read().items():
            row[name] = row.get(name, 0.0) + seconds
        if self.step:
            row["speed/tokens_per_second"] = row.pop("completion/tokens") / (row["time/step"] - row["time/eval"])
        row |= {"memory/peak_gib": self.clock.read_peak(), "time": time.time()}
        return {name: value if math.isfinite(value) else None for name, value in row.items()}  # JSON has no NaN

    def _show(self, row: dict[str, float]) -> None:
        """On a terminal the bar, which keeps the last held-out figures until there are new ones; else a line."""
        step, limit = row["step"], self.config.eval.limit
        if self.bar.disable:
            line = "  ".join(figures(row, limit))
            print(f"step {step}/{self.config.steps}  {line}  {row['time/step']:.1f} s", flush=True)
        else:
            self._shown |= row
            width = self.bar.format_dict["ncols"] or 80  # none where the terminal has gone
            self.bar.set_postfix_str(fitted(figures(self._shown, limit), width), refresh=False)
            self.bar.update(int(step > 0))

    def save(self) -> None:
        self.checkpoints.save(self.step, self.state.write, self.accuracy)

    def save_bad_batch(self, batch: dict) -> None:
        """The samples of a step that was skipped because its loss or gradient was not finite."""
        step, path = self.step + 1, self.folder / "bad_batches.jsonl"
        with files.writing(self.folder):
            files.append(path, files.lines([{"step": step} | batch]))
        notify(f"step {step}: loss or gradient is not finite; weights left as they are, batch kept in {path}")

    def rows(self) -> list[dict]:
        """The rows of metrics.jsonl."""
        return files.read_rows(self.folder / "metrics.jsonl")

    # ---- the end

    def _save_last_step(self) -> None:
        """Not while the weights are ahead of the record; then the checkpoint before stands."""
        if self.interrupts.held:
            notify(f"stopped while step {self.step + 1} was being recorded; going back to the last checkpoint")
        elif self.step and self.step not in self.checkpoints.steps():
            try:
                self.save()
            except (OSError, RuntimeError, ValueError) as error:  # what ended the run may forbid this as well
                notify(f"step {self.step} could not be saved: {error}")
            else:
                notify(f"saved {self.checkpoints.path(self.step)}")

    def finish(self, after: dict[str, float]) -> str:
        """All steps are done; `after` are the test figures of the final weights. What came of it, as text."""
        seconds = sum(row["time/step"] for row in self.rows())
        summary = {"before": self.state.notes["before"], "after": after, "steps": self.step, "seconds": seconds}
        summary["limit"] = self.config.eval.limit
        if (best := self.checkpoints.best(self.accuracy)) is not None:
            summary["best"] = {"step": best, self.best_by: self.accuracy[best]}
        with files.writing(self.folder):
            files.write(self.folder / "summary.json", json.dumps(summary, indent=2))
        return before_and_after(summary)


def set_threads(threads: int) -> None:
    """Sets torch's CPU threads; 0 keeps torch's own choice."""
    if threads:
        torch.set_num_threads(threads)


def set_seed(seed: int) -> None:
    """Python's, numpy's and torch's own random generators, which a user's reward may draw from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def completion_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Lengths in tokens, and the shares of truncated and of distinct completions."""
    completions = [completion for group in groups for completion in group.completions]
    lengths = [len(completion.ids) for completion in completions]
    return {
        "completion/tokens": sum(lengths),
        "completion/length_mean": sum(lengths) / len(lengths),
        "completion/tokens_max": max(lengths),
        "completion/truncated": sum(c.finish_reason == "length" for c in completions) / len(completions),
        "completion/unique": len({c.ids for c in completions}) / len(completions),
    }


def memory_in_use_gib() -> float:
    """Of the GPU, torch's cache and vLLM's pool and other processes included; else this process's peak so far."""
    if torch.cuda.is_initialized():
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
