"""Checkpoints: written beside and renamed, so that a folder with the final name is always whole.

`step_000040/` opens with AutoModelForCausalLM (or PEFT) and holds the trainer's state in `trainer.pt`: masters, moments
and step, read back without pickle.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from grpo.learner import Learner
from grpo.policy import Policy
from rewards import Reward


def save(folder: Path, step: int, policy: Policy, learner: Learner, reward: Reward, keep: int) -> Path:
    """Writes folder/step_<step> and removes all but the newest `keep`."""
    final = folder / f"step_{step:06d}"
    partial = folder / f".partial_{step:06d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    policy.save(partial)
    state = {"step": step, "optimizer": learner.optimizer.state_dict(), "reward": reward.state_dict()}
    torch.save(state, partial / "trainer.pt")
    os.replace(partial, final)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(folder.glob("step_*"))


def restore(path: Path, learner: Learner, reward: Reward) -> int:
    """Puts the trained weights, moments and calibration back; returns the step they belong to."""
    state = torch.load(path / "trainer.pt", weights_only=True, map_location=learner.policy.device)
    learner.optimizer.load_state_dict(state["optimizer"])
    reward.load_state_dict(state["reward"])
    return state["step"]
