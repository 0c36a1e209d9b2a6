"""The rows of a run folder's files: one completion, one step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from grpo.types import Group
from rewards import Score


def completion_rows(
    step: int,
    groups: Sequence[Group],
    texts: Sequence[Sequence[str]],
    scores: Sequence[Sequence[Score]],
    advantages: torch.Tensor,
) -> list[dict]:
    """What was written, what it was paid for, and what it taught. `advantages` is [groups, completions]."""
    return [
        {
            "step": step,
            "group": g,
            "sample": i,
            "problem": group.problem.index,
            "prompt": group.problem.prompt,
            "completion": texts[g][i],
            "finish_reason": completion.finish_reason,
            "tokens": len(completion.ids),
            "reward": scores[g][i].total,
            "signals": scores[g][i].signals,
            "answer": scores[g][i].answer,
            "verdict": scores[g][i].verdict,
            "outcome": scores[g][i].outcome,
            "ground_truth": group.problem.ground_truth,
            "advantage": advantages[g, i].item(),
        }
        for g, group in enumerate(groups)
        for i, completion in enumerate(group.completions)
    ]


def read_rows(path: Path) -> list[dict]:
    """The whole rows of a .jsonl file; the end of one that was cut off is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        try:
            rows.append(json.loads(line))
        except ValueError:  # a block that never reached the disk: nothing after it can be trusted
            break
    return rows
