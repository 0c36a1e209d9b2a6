"""A run: everything it writes after each step, so that it can stop at any moment and continue exactly."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grpo.problems import BadRow
from grpo.run import files
from grpo.run.alarms import Alarms
from grpo.run.checkpoint import Checkpoints, TrainingState
from grpo.run.clock import Clock, memory_in_use_gib
from grpo.run.display import WHY_NO_LOSS, Progress, before_and_after, measured_time, show_samples
from grpo.run.interrupts import Interrupts
from grpo.run.resume import decisive, digest_reward, new_folder, rewind
from grpo.run.trackers import Tracker
from grpo.settings import Config
from grpo.terminal import command, notify
from grpo.types import Group
from rewards import Score, right_shares, summarize


class Run:
    """One run and its folder. Nothing is written before `recording`."""

    def __init__(self, config: Config, resumed: Path | None = None, interrupts: Interrupts | None = None):
        """Takes the folder to continue in, or names a new one. Raises UserError where the folder cannot be used."""
        self.config = config
        self.folder = resumed or new_folder(config)
        self.resumed = resumed is not None
        self.interrupts = interrupts or Interrupts()
        self.clock = Clock(memory_in_use_gib)
        self.checkpoints = Checkpoints(self.folder / "checkpoints", config.checkpoint.keep)
        self.accuracy: dict[int, float] = {}
        """Step -> the figure that chooses the best checkpoint."""
        self.best_by = "eval/sampled_accuracy" if config.eval.sampling == "both" else "eval/greedy_accuracy"
        self.progress = Progress(config.steps, config.quiet)
        self._known: set[int] = set()
        self._alarms = Alarms()
        if self.resumed:
            self._lock = files.lock(self.folder)

    # ---- the start

    @contextmanager
    def recording(self, state: TrainingState, bad_rows: Sequence[BadRow]) -> Iterator[None]:
        """Owns the run folder. On any exit, saves the last complete step and prints the resume command."""
        finished = False
        self._begin(state, bad_rows)
        try:
            yield
            finished = True
        except BaseException:  # also SystemExit, which a user's reward may raise
            self._save_last_step()
            notify(f"resume with: {command('train.py --resume', self.folder)}")
            raise
        finally:
            self.progress.close()
            self._tracker.close(finished)
            self._lock.close()

    def _begin(self, state: TrainingState, bad_rows: Sequence[BadRow]) -> None:
        """Makes the folder, or rewinds it to its last complete checkpoint."""
        self.state = state
        with files.writing(self.folder):
            if not self.resumed:
                self._lock = files.create(self.folder, self.config)
            state.identity |= {
                "run": files.run_id(self.folder),
                "settings": decisive(self.config),
                "reward_source": digest_reward(self.config.reward.name),
            }
            last_logged = self._restore() if self.resumed else -1
            if bad_rows:
                files.write(self.folder / "bad_rows.jsonl", files.lines(map(dataclasses.asdict, bad_rows)))
        for warning in state.reward.warnings:
            notify(warning)
        self._tracker = Tracker(self.config.tracker, self.folder, self.config, last_logged)
        self.clock.read()  # the time of loading belongs to no step

    def _restore(self) -> int:
        """Rewinds the folder to its last complete checkpoint. Returns the last step that had been logged before."""
        logged = [row["step"] for row in self.rows()]
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
        files.write_config(self.folder, self.config)
        if changes := files.write_versions(self.folder, f"versions_after_{self.step:06d}.json"):
            notify(f"changed since the start of the run, so figures may differ: {', '.join(changes)}")
        return max(logged, default=-1)

    @property
    def step(self) -> int:
        """The last complete step."""
        return self.state.step

    @property
    def unlogged(self) -> bool:
        """True while metrics.jsonl lacks the last complete step."""
        return self.state.row is not None

    # ---- step by step

    def steps(self) -> Iterator[int]:
        """The steps that are still to be done."""
        self.progress.begin(self.step)
        yield from range(self.step + 1, self.config.steps + 1)

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
        """Records a step that the weights have taken. From here on it is not lost when the run stops."""
        self.interrupts.hold()  # the learner does before its step; one that was skipped took none
        completions = files.completion_rows(step, groups, texts, scores, advantages)
        files.write_completions(self.folder, step, completions)
        self._write_problems(groups)
        row = {"step": step, "accuracy": right_shares([group.problem.index for group in groups], scores)}
        files.append(self.folder / "accuracy.jsonl", files.lines([row]))
        metrics = summarize(scores) | completion_metrics(groups) | learned
        metrics["groups/zero_variance"] = (advantages == 0).all(1).double().mean().item()  # exact zeros, no tolerance
        metrics["verifier/cache_hit_rate"] = self.state.reward.cache_hit_rate()
        self.state.complete(step, {"step": step} | metrics | self.clock.read())
        if not self.progress.bar.disable and step % self.config.show_every == 0:
            show_samples(completions, [group.problem.ground_truth for group in groups])
        if step == 1 and not self.config.quiet:
            notify(WHY_NO_LOSS)
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
        """Writes the last step's row to metrics.jsonl, tracker and terminal; saves a checkpoint if one is due."""
        row = self._finished_row() | evaluation
        step = self.step
        every = self.config.checkpoint.every
        files.append(self.folder / "metrics.jsonl", files.lines([row]))
        self.state.row = None
        if row.get(self.best_by) is not None:
            self.accuracy[step] = row[self.best_by]
        self._tracker.log(row)
        self.progress.step(row, self.config.eval.limit)
        if step == 2 and (line := measured_time(row["time/step"], self.config.steps - step)):  # the first warms up
            notify(line)
        if step and (step == self.config.steps or (every and step % every == 0)):
            self.save()

    def _finished_row(self) -> dict[str, Any]:
        assert self.state.row is not None  # a step is logged once
        row = dict(self.state.row)
        for name, seconds in self.clock.read().items():
            row[name] = row.get(name, 0.0) + seconds
        if self.step:
            row["speed/tokens_per_second"] = row.pop("completion/tokens") / (row["time/step"] - row["time/eval"])
        row |= {"memory/peak_gib": self.clock.read_peak(), "time": time.time()}
        return {name: value if math.isfinite(value) else None for name, value in row.items()}  # JSON has no NaN

    def save(self) -> None:
        self.checkpoints.save(self.step, self.state.write, self.accuracy)

    def save_bad_batch(self, batch: dict) -> None:
        """The samples of a step that was skipped because its loss or gradient was not finite."""
        step = self.step + 1
        path = self.folder / "bad_batches.jsonl"
        files.append(path, files.lines([{"step": step} | batch]))
        notify(f"step {step}: loss or gradient is not finite; weights left as they are, batch kept in {path}")

    def rows(self) -> list[dict]:
        """The rows of metrics.jsonl."""
        return files.read_rows(self.folder / "metrics.jsonl")

    # ---- the end

    def _save_last_step(self) -> None:
        """Does nothing while the weights are ahead of the record; then the previous checkpoint is the last."""
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
        """Writes summary.json with the test figures of the final weights. Returns them beside those before, as text."""
        seconds = sum(row["time/step"] for row in self.rows())
        summary = {"before": self.state.notes["before"], "after": after, "steps": self.step, "seconds": seconds}
        summary["limit"] = self.config.eval.limit
        if (best := self.checkpoints.best(self.accuracy)) is not None:
            summary["best"] = {"step": best, self.best_by: self.accuracy[best]}
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
