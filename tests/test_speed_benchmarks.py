"""Every speed benchmark runs, at a tiny size. No test asserts a time."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2ForCausalLM

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from benchmarks import common, gpu, versus_trl  # noqa: E402
from grpo.engines.torch_engine import ENGINE  # noqa: E402
from grpo.environment import installed  # noqa: E402
from grpo.errors import UserError  # noqa: E402
from grpo.plan.hardware import GPUS  # noqa: E402
from grpo.plan.shapes import RunShape, shape_of  # noqa: E402
from grpo.plan.time import forward_flops, learning_flops  # noqa: E402
from grpo.settings import build  # noqa: E402


@pytest.fixture(scope="module")
def figures(tmp_path_factory) -> dict:
    """Every part of benchmarks/gpu.py that this machine has the packages for, at a tiny size."""
    return gpu.main(["--size", "tiny", "--out", str(tmp_path_factory.mktemp("gpu") / "gpu.json")])


def test_every_part_of_the_gpu_benchmark_runs(figures):
    parts = {name for name in gpu.PARTS if name not in gpu.NEEDS or installed(gpu.NEEDS[name])} - {"train"}
    assert set(figures) == parts | {"machine"}
    for name in parts:
        numbers = [value for value in figures[name].values() if not isinstance(value, str)]
        assert numbers, name
        assert all(math.isfinite(value) for value in numbers), name


@pytest.mark.parametrize("part", ["step-l4", "step-h100"])
def test_the_step_has_something_to_learn(figures, part):
    """Random weights are never right; 8 coins are equal in 2 of 256 groups, and there are two groups."""
    assert figures[part]["groups/zero_variance"] < 1


def test_the_proof_fails_where_packed_sequences_see_each_other(monkeypatch, tmp_path):
    whole = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        "grpo.attention._run_by_run",
        lambda q, k, v, scaling, *_: whole(q, k, v, is_causal=True, scale=scaling, enable_gqa=True).transpose(1, 2),
    )
    with pytest.raises(UserError, match="packed"):
        gpu.proof(gpu.Bench("tiny", tmp_path))


def test_a_part_that_is_in_the_file_is_not_run_again(tmp_path, monkeypatch, capsys):
    command = ["--size", "tiny", "--out", str(tmp_path / "gpu.json"), "--part", "proof", "step-l4"]

    def fails(bench):
        raise RuntimeError("cut off")

    monkeypatch.setitem(gpu.PARTS, "step-l4", (1, lambda bench: {"seconds": 0.5}))
    with monkeypatch.context() as patch:
        patch.setitem(gpu.PARTS, "proof", (1, fails))
        with pytest.raises(SystemExit, match="failed: proof"):
            gpu.main(command)
    first = json.loads((tmp_path / "gpu.json").read_text())
    again = gpu.main(command)
    assert again["step-l4"] == first["step-l4"] == {"seconds": 0.5, "part_s": first["step-l4"]["part_s"]}
    assert "packed" in again["proof"]["differences"]
    assert "step-l4: skipped, it is in the file already" in capsys.readouterr().out


def test_a_part_without_its_package_or_model_is_skipped_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "installed", lambda package: False)
    out = str(tmp_path / "x.json")
    assert gpu.main(["--size", "tiny", "--out", out, "--part", "vllm", "train"]) == {}
    printed = capsys.readouterr().out
    assert "vllm: skipped, vllm is not installed" in printed
    assert "train: skipped, it needs --model" in printed


def test_it_ends_in_time_and_the_most_telling_parts_come_first(tmp_path, monkeypatch, capsys):
    """300 s, and each look at the clock is 100 s later: two parts start, 200 and 100 s before the end."""
    clock = iter(range(0, 1000, 100))
    ran = []
    monkeypatch.setattr(gpu.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(gpu, "run_apart", lambda part, options, left: ran.append((part, left)) or True)
    gpu.main(
        [
            "--size",
            "tiny",
            "--out",
            str(tmp_path / "x.json"),
            "--minutes",
            "5",
            "--part",
            "proof",
            "step-l4",
            "step-h100",
        ]
    )
    assert ran == [("proof", 200), ("step-l4", 100)]
    assert "step-h100: skipped, 0 s are left and it may take 1" in capsys.readouterr().out


@pytest.mark.parametrize("seconds", [0.5, 300])
def test_a_part_in_a_process_of_its_own_writes_its_figures_or_is_stopped(tmp_path, seconds, capsys):
    out = tmp_path / "x.json"
    options = gpu.Options(out=out, size="tiny")
    assert gpu.run_apart("proof", options, seconds) is (seconds == 300)
    assert ("proof" in gpu.read_figures(out)) is (seconds == 300)
    assert ("stopped, the time is up" in capsys.readouterr().out) is (seconds == 0.5)


def test_ratios_are_taken_round_by_round():
    rounds = [
        {"ours": {"seconds": ours}, "trl": {"seconds": trl}} for ours, trl in ((1.0, 3.0), (2.0, 6.0), (4.0, 16.0))
    ]
    assert common.compare(rounds) == {
        "ours/seconds": 2.0,
        "trl/seconds": 6.0,
        "trl/seconds_ratio": 3.0,  # of 3, 3 and 4
        "trl/seconds_ratio_range": "3.00 to 4.00",
    }


def test_the_seconds_until_half_are_those_of_training():
    turns = [{"seconds": 2.0, "accuracy": accuracy} for accuracy in (0.2, 0.6, 0.4)]
    assert versus_trl.seconds_until_half(turns) == 4.0
    assert versus_trl.seconds_until_half(turns[:1]) is None


def test_the_sampler_and_generate_take_turns():
    command = [sys.executable, "benchmarks/sampling.py", "--model", "data/tiny-base", "--sequences", "2", "3"]
    command += ["--prompt", "5", "--tokens", "4", "--vocabulary", "128", "--rounds", "1"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["sequences"] for row in rows] == [2, 3]
    assert all(row[f"{side}/tokens_per_s"] > 0 for row in rows for side in ("torch", "generate", "static"))


@pytest.mark.peers
@pytest.mark.parametrize("case", ["tiny", "tiny-ragged"])
def test_trl_takes_its_turns(case: str):
    figures = versus_trl.main(["--case", case, "--rounds", "1"])
    assert figures["trl/seconds_ratio"] > 0


def test_lognormal_lengths_keep_their_mean_and_limit():
    lengths = common.lognormal_lengths(20_000, 100, 10_000)
    assert sum(lengths) / len(lengths) == pytest.approx(100, rel=0.03)
    assert max(common.lognormal_lengths(1000, 100, 512)) == 512


@pytest.mark.parametrize("backward", [False, True])
def test_the_flops_formula_counts_what_torch_counts(backward: bool):
    """A backward pass is twice a forward pass."""
    config = common.make_config("tiny")
    model = Qwen2ForCausalLM(config)
    model.set_attn_implementation("eager")  # computes all pairs, also those the mask hides
    with FlopCounterMode(display=False) as counter:
        logits = model(torch.zeros(1, 12, dtype=torch.long)).logits
        if backward:
            logits.sum().backward()
    passes = 3 if backward else 1
    assert passes * forward_flops(shape_of(model), 12, 12 * 12, predicted=12) == counter.get_total_flops()


def test_frozen_weights_and_unpredicted_tokens_cost_less():
    shape = shape_of(Qwen2ForCausalLM(common.make_config("1m")))
    head = 2 * 128 * 96
    assert forward_flops(shape, 100, 5050, 100) - forward_flops(shape, 100, 5050, 40) == 60 * head
    settings = {"rollout.prompts_per_step": 2, "rollout.group_size": 4, "rollout.max_prompt_tokens": 16}
    full, lora = (
        RunShape(build("cpu", settings | {"policy.lora_rank": rank}), shape, GPUS["h100"], ENGINE) for rank in (0, 4)
    )
    # 2 prompts of 16 tokens once each, 8 completions of 10 tokens that see the prompt and their elders
    weights = forward_flops(shape, 2 * 16 + 8 * 10, 0, predicted=80)
    attention = forward_flops(shape, 0, 80 * (16 + 5), predicted=0)
    assert learning_flops(full, 10) == 3 * (weights + attention)
    assert learning_flops(lora, 10) == 2 * weights + 3 * attention
