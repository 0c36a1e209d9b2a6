"""Everything that decides how training goes on, in a checkpoint and back.

The weights and moments change in the optimiser's step alone and are written as they are. The small rest (random
states, calibration, counters) is copied when a step is complete, so that a step that was abandoned in the middle leaves
no trace: what is saved is always the state after a whole step.
"""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from grpo.errors import UserError
from grpo.learner import Learner
from grpo.policy import Policy
from grpo.types import Problem
from rewards import Reward

TRAINER = "trainer.pt"
SMALL_FILES = 16 * 2**20
"""Bytes: tokenizer, configuration, manifest."""


class TrainingState:
    """Step `step` is complete. `row` holds its figures until they are logged: its evaluation may still be missing."""

    def __init__(self, policy: Policy, learner: Learner, reward: Reward, problems: Sequence[Problem]):
        self.policy, self.learner, self.reward = policy, learner, reward
        self.data = digest(problems)
        self.step, self.row = 0, {"step": 0}
        self.notes: dict = {}
        """What the run itself remembers, such as the test figures before training."""
        self._small = self._copy_small()

    def complete(self, step: int, row: dict[str, float]) -> None:
        self.step, self.row = step, row
        self._small = self._copy_small()

    def write(self, folder: Path) -> None:
        """The Hugging Face layout, and trainer.pt beside it (read back with weights_only: no pickle)."""
        self.policy.save(folder)
        small = {"step": self.step, "row": self.row, "notes": self.notes, "data": self.data}
        torch.save(small | self._small | {"optimizer": self.learner.optimizer.state_dict()}, folder / TRAINER)

    def read(self, folder: Path) -> None:
        """UserError when the training problems are not those of the checkpoint."""
        saved = torch.load(folder / TRAINER, weights_only=True, map_location="cpu")
        if saved["data"] != self.data:
            raise UserError(
                f"{folder} was trained on other problems than the data now holds (prompt, ground truth or order "
                "differ); bring the old data back, or start a new run with another --name"
            )
        self.learner.optimizer.load_state_dict(saved["optimizer"])
        self.learner.bad_steps, self.learner.token_budget = saved["learner"]
        self.reward.load_state_dict(saved["reward"])
        set_random_state(saved["random"])
        self.notes = saved["notes"]
        self.complete(saved["step"], saved["row"])

    def bytes(self) -> int:
        """About what `write` takes: weights, and for what is trained two moments and the masters in float32."""
        trained = sum(p.numel() for p in self.policy.trainable().values())
        saved = self.policy.trainable().values() if self.policy.lora else self.policy.network.parameters()
        return sum(p.numel() * p.element_size() for p in saved) + 12 * trained + SMALL_FILES

    def _copy_small(self) -> dict:
        return {
            "learner": (self.learner.bad_steps, self.learner.token_budget),
            "reward": copy.deepcopy(self.reward.state_dict()),
            "random": random_state(),
        }


def digest(problems: Sequence[Problem]) -> str:
    """Of what training sees of the data: token ids and ground truths, in order."""
    seen = hashlib.sha256()
    for problem in problems:
        seen.update(repr((problem.prompt_ids, problem.ground_truth)).encode())
    return seen.hexdigest()


def set_seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state() -> dict:
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict) -> None:
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
