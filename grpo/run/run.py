"""A run: everything it writes after each step, so that it can stop at any moment and continue exactly."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from grpo.environment import versions
from grpo.problems import BadRow
from grpo.rollout import Replaced
from grpo.run import files
from grpo.run.alarms import Alarms
from grpo.run.checkpoint import Checkpoints, TrainingState
from grpo.run.clock import Clock
from grpo.run.display import WHY_NO_LOSS, Progress, before_and_after, good_and_bad, resume_command
from grpo.run.interrupts import Interrupts
from grpo.run.resume import decisive, differences, digest_reward, new_folder, rewind
from grpo.run.trackers import Tracker
from grpo.settings import Config, read_yaml
from grpo.terminal import notify, print_above
from grpo.types import Group
from rewards import Score, right_shares, summarize


class Run:
    """One run and its folder. Nothing is written before `recording`."""

    def __init__(self, config: Config, resumed: Path | None = None, interrupts: Interrupts | None = None):
        """Takes the folder to continue in, or names a new one. Raises UserError if the folder cannot be used."""
        self.config = config
        self.folder = resumed or new_folder(config)
        self.resumed = resumed is not None
        self.interrupts = interrupts or Interrupts()
        self.clock = Clock()
        self.checkpoints = Checkpoints(self.folder / "checkpoints", config.checkpoint.keep)
        self.best_by = "eval/sampled_accuracy" if config.eval.sampling == "both" else "eval/greedy_accuracy"
        """The figure that chooses the best checkpoint."""
        self.progress = Progress(config.steps, config.quiet)
        self._known: set[int] = set()
        self._alarms = Alarms(config.rollout.completions_per_step)
        if self.resumed:
            self._lock = files.lock(self.folder)

    # ---- the start

    @contextmanager
    def recording(self, state: TrainingState, bad_rows: Sequence[BadRow]) -> Iterator[None]:
        """Owns the run folder. On any exit, saves the last complete step and prints the resume command."""
        self.state = state
        if not self.resumed:
            self._lock = files.create(self.folder, self.config)
        state.identity["run"] = files.run_id(self.folder)
        state.settings = decisive(self.config)
        state.reward_source = digest_reward(self.config.reward.name)
        last_logged = self._restore() if self.resumed else -1
        if bad_rows:
            files.write(self.folder / "bad_rows.jsonl", files.lines(map(asdict, bad_rows)))
        for warning in state.reward.warnings:
            notify(warning)
        self._tracker = Tracker(self.folder, self.config, last_logged)
        self.clock.read()  # loading counts for no step
        finished = False
        try:
            yield
            finished = True
        except BaseException:  # also SystemExit, which a user's reward may raise
            self._save_last_step()
            notify(f"resume with: {resume_command(self.folder, self.config)}")
            raise
        finally:
            self.progress.close()
            self._tracker.close(finished)
            self._lock.close()

    def _restore(self) -> int:
        """Rewinds the folder to its last complete checkpoint. Returns the last step that had been logged before."""
        last_logged = max((row["step"] for row in self.rows()), default=-1)
        if self.checkpoints.restore(self.state.read) is None:
            notify(f"{self.folder} has no complete checkpoint: starting again from step 1")
        else:
            notify(f"continuing {self.folder} after step {self.step}")
        accuracy = {row["step"]: row.get(self.best_by) for row in rewind(self.folder, self.step)}
        if self.step in accuracy:
            self.state.row = None
        if missing := sorted(set(range(self.step + (not self.unlogged))) - accuracy.keys()):
            notify(f"{self.folder / 'metrics.jsonl'} has no row of step {', '.join(map(str, missing))}")
        self.checkpoints.accuracy = {step: figure for step, figure in accuracy.items() if figure is not None}
        self.checkpoints.prune()
        self._known = {row["problem"] for row in files.read_rows(self.folder / "problems.jsonl")}
        files.write_config(self.folder, self.config)
        now = versions()
        before = read_yaml(self.folder / "versions.json")
        if changes := differences(before, dict.fromkeys(before) | now):
            files.write(self.folder / f"versions_after_{self.step:06d}.json", json.dumps(now, indent=2))
            notify(f"changed since the start of the run, so figures may differ: {changes}")
        return last_logged

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
        """Yields the remaining steps."""
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
        replaced: Replaced,
    ) -> None:
        """Records a step that the weights have taken. From here on it is not lost when the run stops.

        Completions and metrics are those of the groups that were trained on. accuracy.jsonl, the history by which
        examples are selected, has every group that was drawn: without the flat ones it would be censored.
        """
        self.interrupts.hold()  # the learner holds before each optimiser step, but not before a skipped one
        completions = completion_rows(step, groups, texts, scores, advantages)
        files.write_completions(self.folder, step, completions)
        problems = {group.problem.index: group.problem for group in groups if group.problem.index not in self._known}
        self._known |= problems.keys()
        self._append("problems.jsonl", step, ({"problem": index} | asdict(new) for index, new in problems.items()))
        drawn = [group.problem.index for group in (*groups, *replaced.groups)]
        accuracy = right_shares(drawn, [*scores, *replaced.scores])
        self._append("accuracy.jsonl", step, [{"accuracy": accuracy}])
        metrics = summarize(scores) | completion_metrics(groups) | learned
        metrics["groups/zero_variance"] = (advantages == 0).all(1).double().mean().item()  # exact zeros, no tolerance
        if self.config.rollout.resample_flat_groups:
            metrics["groups/further_draws"] = replaced.rounds
        metrics["verifier/cache_hit_rate"] = self.state.reward.cache_hit_rate()
        self.state.complete(step, {"step": step} | metrics | self.clock.read())
        if not self.progress.bar.disable and step % self.config.show_every == 0:
            print_above(good_and_bad(completions))
        if step == 1 and not self.config.quiet:
            notify(WHY_NO_LOSS)
        for alarm in self._alarms(metrics):
            notify(alarm)
        self.interrupts.release()

    def log(self, evaluation: dict[str, float]) -> None:
        """Writes the last step's row to metrics.jsonl, tracker and terminal; saves a checkpoint if one is due."""
        assert self.state.row is not None  # a step is logged once
        row: dict[str, Any] = self.state.row | evaluation
        for name, seconds in self.clock.read().items():
            row[name] = row.get(name, 0.0) + seconds
        if tokens := row.pop("completion/tokens", 0):
            row["speed/tokens_per_second"] = tokens / (row["time/step"] - row["time/eval"])
        row |= {"memory/peak_gib": self.clock.read_peak(), "time": time.time()}
        row = {name: value if math.isfinite(value) else None for name, value in row.items()}  # JSON has no NaN
        self._append("metrics.jsonl", self.step, [row])
        self.state.row = None
        if row.get(self.best_by) is not None:
            self.checkpoints.accuracy[self.step] = row[self.best_by]
        self._tracker.log(row)
        self.progress.step(row, self.config.eval.limit)
        every = self.config.checkpoint.every
        if self.step and (self.step == self.config.steps or (every and self.step % every == 0)):
            self.checkpoints.save(self.step, self.state.write)

    def save_bad_batch(self, batch: dict) -> None:
        """Saves the samples of a step that was skipped because its loss or gradient was not finite."""
        step = self.step + 1
        self._append("bad_batches.jsonl", step, [batch])
        notify(
            f"step {step}: loss or gradient is not finite; the weights stay unchanged, the batch is in "
            f"{self.folder / 'bad_batches.jsonl'}"
        )

    def _append(self, name: str, step: int, rows: Iterable[dict]) -> None:
        """Appends rows to a file that `rewind` cuts after a step."""
        files.append(self.folder / name, files.lines({"step": step} | row for row in rows))

    def rows(self) -> list[dict]:
        """The rows of metrics.jsonl."""
        return files.read_rows(self.folder / "metrics.jsonl")

    # ---- the end

    def _save_last_step(self) -> None:
        """Saves the last complete step, unless the weights are already past it."""
        if self.interrupts.held:
            notify(f"stopped while step {self.step + 1} was being recorded; going back to the last checkpoint")
        elif self.step and self.step not in self.checkpoints.steps():
            try:
                self.checkpoints.save(self.step, self.state.write)
            except (OSError, RuntimeError, ValueError) as error:  # the cause of the stop may prevent this too
                notify(f"step {self.step} could not be saved: {error}")
            else:
                notify(f"saved {self.checkpoints.path(self.step)}")

    def finish(self, after: dict[str, float]) -> str:
        """Writes summary.json with the test figures of the final weights. Returns them beside those before, as text."""
        seconds = sum(row.get("time/step", 0) for row in self.rows())
        summary = {"before": self.state.notes["before"], "after": after, "steps": self.step, "seconds": seconds}
        summary["limit"] = self.config.eval.limit
        if (best := self.checkpoints.best()) is not None:
            summary["best"] = {"step": best, self.best_by: self.checkpoints.accuracy[best]}
        files.write(self.folder / "summary.json", json.dumps(summary, indent=2))
        return f"test problems: {self.config.eval.test}\n{before_and_after(summary)}" if after else ""


def completion_rows(
    step: int,
    groups: Sequence[Group],
    texts: Sequence[Sequence[str]],
    scores: Sequence[Sequence[Score]],
    advantages: torch.Tensor,
) -> list[dict]:
    """One row per completion: its text, reward, signals and advantage. Everything is [groups, completions]."""
    return [
        {
            "step": step,
            "group": g,
            "sample": i,
            "problem": group.problem.index,
            "ground_truth": group.problem.ground_truth,
            "completion": text,
            "finish_reason": completion.finish_reason,
            "tokens": len(completion.ids),
            "reward": score.total,
            "signals": score.signals,
            "answer": score.answer,
            "verdict": score.verdict,
            "outcome": score.outcome,
            "advantage": advantage,
        }
        for g, (group, *columns) in enumerate(zip(groups, texts, scores, advantages.tolist(), strict=True))
        for i, (completion, text, score, advantage) in enumerate(zip(group.completions, *columns, strict=True))
    ]


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
