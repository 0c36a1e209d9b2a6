"""Two steps of the real presets on the real pi1 example, with vLLM's CPU build and the built-in tiny model.

Cut for two CPU cores: the model (0.3M parameters), steps, rollout.prompts_per_step and group (128 x 8 or 32 -> 8 x 4),
rollout.max_new_tokens (3072 -> 96) and the KV cache; every other setting is the preset's own.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import train
from data.tiny_base import FOLDER
from grpo.run.files import read_completions, read_rows
from rewards.score import OUTCOMES

PROBLEMS, GROUP, LENGTH = 8, 4, 96
RUNS = {"l4": ["--preset", "l4"], "l4-nf4": ["--preset", "l4", "--quant", "nf4"], "h100": ["--preset", "h100"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data_dir) -> dict[str, Path]:
    pytest.importorskip("vllm.version", reason="make test-vllm makes an environment with vLLM's CPU build")
    out = tmp_path_factory.mktemp("runs")
    cut = ["--model", FOLDER, "--data-dir", data_dir, "--rollout.engine", "vllm", "--steps", 2, "--out", out]
    cut += ["--rollout.prompts_per_step", PROBLEMS, "--rollout.group_size", GROUP, "--rollout.max-new-tokens", LENGTH]
    cut += ["--rollout.kv-gib", 0.125, "--eval.limit", 2, "--quiet"]
    for name, options in RUNS.items():
        assert train.main([*options, *map(str, cut), "--name", name]) == 0
    return {name: out / name for name in RUNS}


def completions(run: Path, step: int) -> list[str]:
    return [row["completion"] for row in read_completions(run, step)]


@pytest.mark.vllm
@pytest.mark.parametrize("name", RUNS)
def test_two_steps_come_out_sane(runs, name: str):
    steps = [row for row in read_rows(runs[name] / "metrics.jsonl") if row["step"] > 0]
    assert [row["step"] for row in steps] == [1, 2]
    for row in steps:
        assert row["logprob_diff/mean"] < 1e-4, "float32 on both sides"
        assert row["logprob_diff/max"] < 1e-3
        assert 0 <= row["reward/mean"] <= 2  # 1 verify + 0.5 format + 0.5 reflect
        shares = [row[f"outcome/{outcome}"] for outcome in OUTCOMES]
        assert sum(shares) == pytest.approx(1)
        assert 1 <= row["completion/length_mean"] <= row["completion/tokens_max"] <= LENGTH
        assert row["completion/unique"] > 0.5, "32 samples with seeds of their own"
        assert row["policy/entropy"] > 0
        assert row["policy/grad_norm"] > 0  # the entropy bonus acts also where every reward of a group is equal
        assert row["learner/skipped_steps"] == 0
        assert row["time/sync"] < row["time/step"]
    first, second = (row["policy/kl"] for row in steps)
    # Before the first update policy and reference are the same; h100's second optimiser step comes after one.
    assert abs(first) < (1e-3 if name == "h100" else 1e-9)
    assert second > 0, "the sampled tokens of step 2 are those of moved weights"
    assert len(completions(runs[name], 1)) == PROBLEMS * GROUP


@pytest.mark.vllm
def test_the_same_seeds_give_the_same_completions_in_two_presets(runs):
    """Step 1 of both samples the untouched model with temperature 0.6: a fresh adapter, merged, is exactly it."""
    assert completions(runs["l4"], 1) == completions(runs["h100"], 1)
    assert completions(runs["l4"], 1) != completions(runs["l4"], 2)
    assert completions(runs["l4"], 1) != completions(runs["l4-nf4"], 1), "NF4 is another model"
