"""The presets: their numbers, and two steps of l4 and h100 on a CPU with the tiny model and the real pi1 rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

import train
from grpo.config import PRESETS, build, flat
from grpo.plan import check
from grpo.settings import Config

REPO = Path(__file__).resolve().parents[2]

# The paper's settings (arXiv 2504.20571), and the two columns in which the presets differ.
SAME = {
    "model": "Qwen/Qwen2.5-Math-1.5B",
    "data": "pi1_r128.parquet",
    "prompt": "multi-signal",
    "rollout.engine": "vllm",
    "rollout.problems": 128,
    "rollout.max_prompt_tokens": 1024,
    "rollout.max_new_tokens": 3072,
    "rollout.temperature": 0.6,
    "rollout.top_p": 1.0,
    "learner.kl_coef": 0.001,
    "learner.entropy_coef": 0.001,
    "learner.clip_low": 0.2,
    "learner.clip_high": 0.2,
    "learner.grad_clip": 1.0,
    "learner.weight_decay": 0.01,
    "learner.skip_zero_variance": False,
    "policy.gradient_checkpointing": True,
    "policy.dtype": "auto",
    "reward.alpha": 1.0,
    "reward.beta": 0.5,
    "reward.gamma": 0.5,
}
L4 = {"steps": 500, "rollout.group": 8, "policy.lora_rank": 64, "policy.lora_alpha": 128.0, "policy.quant": "auto"}
L4 |= {"learner.lr": 1e-5, "learner.minibatches_per_rollout": 1, "rollout.sleep": True}
H100 = {"steps": 2000, "rollout.group": 32, "policy.lora_rank": 0, "policy.quant": "none"}
H100 |= {"learner.lr": 1e-6, "learner.minibatches_per_rollout": 2, "rollout.sleep": False}


@pytest.mark.parametrize(("preset", "numbers"), [("l4", SAME | L4), ("h100", SAME | H100)])
def test_the_numbers(preset, numbers):
    found = flat(build(preset, {}))
    assert {name: found[name] for name in numbers} == numbers


def test_h100_takes_64_problems_per_optimiser_step():
    h100 = build("h100", {})
    assert h100.rollout.problems // h100.learner.minibatches_per_rollout == 64


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_preset_starts_with_a_sentence_and_is_complete(path):
    text = path.read_text()
    assert text.startswith("# ")
    preset = build(path.stem, {})
    assert preset.preset == path.stem
    named = {f"{section}.{leaf}" for section, v in yaml.safe_load(text).items() if isinstance(v, dict) for leaf in v}
    assert named <= set(flat(Config()))


@pytest.mark.parametrize("preset", ["l4", "h100"])
def test_without_vllm_it_is_one_clear_error(preset, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(check, "installed", lambda package: False)
    monkeypatch.chdir(tmp_path)
    assert train.main(["--preset", preset]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: rollout.engine is vllm, which is not installed")
    assert "--preset cpu" in error
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


# What a CPU cannot do in a test, or not in seconds. Everything else is as in the preset.
CUT = {
    "model": str(REPO / "data/tiny-base"),  # 0.33 M parameters with Qwen2's architecture
    "rollout.engine": "torch",
    "steps": "2",
    "rollout.problems": "4",
    "rollout.group": "2",
    "rollout.max_new_tokens": "48",
}


@pytest.mark.parametrize("preset", ["l4", "h100"])
def test_two_steps_on_the_real_pi1_rows(preset, data_dir, tmp_path, capsys):
    options = CUT | {"data_dir": str(data_dir), "out": str(tmp_path), "name": "smoke", "quiet": "true"}
    argv = ["--preset", preset, *(word for name, value in options.items() for word in (f"--{name}", value))]
    assert train.main(argv) == 0, capsys.readouterr().err
    folder = tmp_path / "smoke"

    resolved = flat(Config.model_validate(yaml.safe_load((folder / "config.yaml").read_text())))
    expected = flat(build(preset, options)) | {"policy.quant": "none"}  # auto is decided by the plan
    assert resolved == expected

    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    for row in rows[1:]:
        assert row["mismatch/mean"] < 1e-4
        assert row["policy/entropy"] > 0
        assert row["learner/skipped_steps"] == 0
        assert 0 < row["completion/tokens_mean"] <= 48
    completions = [json.loads(line) for line in (folder / "completions/step_000001.jsonl").read_text().splitlines()]
    assert len(completions) == 8
    assert {row["ground_truth"] for row in completions} == {"12.8"}
    assert all("The pressure" in row["prompt"] for row in completions)

    last = folder / "checkpoints" / "step_000002"
    assert (last / ("adapter_model.safetensors" if preset == "l4" else "model.safetensors")).is_file()
    if preset == "h100":  # the entropy bonus alone moves weights when no reward differs
        before = load_file(REPO / "data/tiny-base/model.safetensors")
        after = load_file(last / "model.safetensors")
        assert any((after[name].float() != before[name].float()).any() for name in before)
