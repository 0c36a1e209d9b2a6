"""Every speed benchmark runs, at a tiny size. No test asserts a time."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2ForCausalLM

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from benchmarks import common, gpu, versus_trl  # noqa: E402
from grpo.environment import installed  # noqa: E402
from grpo.plan import time as flops  # noqa: E402
from grpo.plan.shapes import ModelShape  # noqa: E402


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
    """Random weights are never right, but 8 coins fall alike in 2 of 256 groups, and there are two groups."""
    assert figures[part]["groups/zero_variance"] < 1


def test_in_float32_packed_alone_and_chunked_are_exact(figures):
    errors = {name: value for name, value in figures["exact"].items() if name.endswith("_error")}
    assert len(errors) == 5  # packed and alone: log-probabilities, gradient; the chunked head
    assert max(errors.values()) < 1e-4, errors  # float32's rounding is 6e-8, over sums of hundreds


def test_a_leak_between_packed_sequences_is_noticed(monkeypatch, tmp_path):
    whole = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        "grpo.attention._run_by_run",
        lambda q, k, v, scaling, *_: whole(q, k, v, is_causal=True, scale=scaling, enable_gqa=True).transpose(1, 2),
    )
    assert gpu.exact(gpu.Bench("tiny", tmp_path))["packed_logprobs_error"] > 1e-2


def test_one_sequence_at_a_time_is_the_same_update_as_all_at_once(figures):
    """float32 sums in another order differ by about 1e-6. (On a GPU the second is under a cap that it does not fit.)"""
    assert figures["oom"]["grad_norm_ratio"] == pytest.approx(1, abs=1e-4)


def test_a_part_that_is_in_the_file_is_not_run_again(tmp_path, monkeypatch, capsys):
    command = ["--size", "tiny", "--out", str(tmp_path / "gpu.json"), "--part", "exact", "matmul"]

    def fails(bench):
        raise RuntimeError("cut off")

    monkeypatch.setitem(gpu.PARTS, "exact", (1, lambda bench: {"error": 0.5}))
    with monkeypatch.context() as patch:
        patch.setitem(gpu.PARTS, "matmul", (1, fails))
        with pytest.raises(SystemExit, match="failed: matmul"):
            gpu.main(command)
    first = json.loads((tmp_path / "gpu.json").read_text())
    again = gpu.main(command)
    assert again["exact"] == first["exact"]
    assert again["matmul"]["tflops"] > 0
    assert "exact: skipped, it is in the file already" in capsys.readouterr().out


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
    monkeypatch.setattr(gpu, "run_apart", lambda part, args, left: ran.append((part, left)) or True)
    gpu.main(
        ["--size", "tiny", "--out", str(tmp_path / "x.json"), "--minutes", "5", "--part", "exact", "matmul", "oom"]
    )
    assert ran == [("exact", 200), ("matmul", 100)]
    assert "oom: skipped, 0 s are left and it may take 1" in capsys.readouterr().out


@pytest.mark.parametrize("seconds", [0.5, 300])
def test_a_part_in_a_process_of_its_own_writes_its_figures_or_is_stopped(tmp_path, seconds, capsys):
    out = tmp_path / "x.json"
    args = argparse.Namespace(out=out, size="tiny", model=None)
    assert gpu.run_apart("matmul", args, seconds) is (seconds == 300)
    assert ("matmul" in gpu.read_figures(out)) is (seconds == 300)
    assert ("stopped, the time is up" in capsys.readouterr().out) is (seconds == 0.5)


def test_the_ratio_to_trl_is_taken_pair_by_pair():
    ours = [{"seconds": s, "cpu_seconds": s, "peak_gib": 1.0} for s in (1.0, 2.0, 4.0)]
    trl = [{"seconds": s, "cpu_seconds": s, "peak_gib": 3.0} for s in (3.0, 6.0, 16.0)]
    figures = versus_trl.summarise("step", ours, trl)
    assert figures["ratio/seconds"] == 3.0  # 3, 3 and 4
    assert figures["ratio/seconds_range"] == "3.00 to 4.00"
    assert figures["ratio/peak"] == 3.0


@pytest.mark.peers
@pytest.mark.parametrize("case", ["tiny", "tiny-ragged"])
def test_trl_takes_its_turns(case: str):
    figures = versus_trl.main(["--trl-python", sys.executable, "--case", case, "--rounds", "1"])
    assert figures["ratio/seconds"] > 0


def test_lognormal_lengths_keep_their_mean_and_limit():
    lengths = common.lognormal_lengths(20_000, 100, 10_000)
    assert sum(lengths) / len(lengths) == pytest.approx(100, rel=0.03)
    assert max(common.lognormal_lengths(1000, 100, 512)) == 512


def shape_of(model) -> ModelShape:
    linear = [m for m in model.model.modules() if isinstance(m, torch.nn.Linear)]
    return ModelShape(model.config, 0, tuple((m.in_features, m.out_features) for m in linear))


@pytest.mark.parametrize("backward", [False, True])
def test_the_flops_formula_counts_what_torch_counts(backward: bool):
    config = common.make_config("tiny")
    model = Qwen2ForCausalLM(config)
    model.set_attn_implementation("eager")  # computes all pairs, also those the mask hides
    with FlopCounterMode(display=False) as counter:
        logits = model(torch.zeros(1, 12, dtype=torch.long)).logits
        if backward:
            logits.sum().backward()
    formula = flops.training_flops if backward else flops.forward_flops
    assert formula(shape_of(model), tokens=12, pairs=12 * 12) == counter.get_total_flops()


def test_frozen_weights_and_unpredicted_tokens_cost_less():
    config = shape_of(Qwen2ForCausalLM(common.make_config("1m")))
    every = flops.forward_flops(config, 100, 5050)
    head = 2 * 128 * 96
    assert every - flops.forward_flops(config, 100, 5050, predicted=40) == 60 * head
    attention = flops.forward_flops(config, 0, 5050)
    assert flops.training_flops(config, 100, 5050, frozen=True) == 3 * attention + 2 * (every - attention)
    assert flops.causal_pairs(3, prefix=2) == 3 + 4 + 5  # each of 3 tokens sees the prefix, its elders and itself
