"""Every speed benchmark runs, at a tiny size. No test asserts a time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2ForCausalLM

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from benchmarks import common, gpu, learner, step, versus_trl  # noqa: E402
from grpo.plan import duration as flops  # noqa: E402


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(common.make_model("tiny", tmp_path_factory.mktemp("model")))


def test_step_times_every_phase_of_real_steps(model: str, capsys):
    size = ["--problems", "2", "--group", "3", "--tokens", "4", "--steps", "1"]
    figures = step.main(["--model", model, *size, "--ignore-eos", "--json"])
    assert figures["tokens"] == 2 * 3 * 4  # EOS ignored: every completion is full
    phases = sum(figures[f"time/{phase}"] for phase in ("rollout", "reward", "learn", "sync", "eval", "other"))
    assert figures["time/step"] == pytest.approx(phases)
    assert figures["time/learn"] > 0
    assert capsys.readouterr().out.startswith("{")


def test_learner_counts_a_shared_prompt_once(model: str, tmp_path: Path):
    lengths = tmp_path / "lengths.json"
    lengths.write_text("[5, 1, 3, 7]")
    arguments = ["--model", model, "--lengths", str(lengths), "--group", "2", "--prompt-tokens", "10", "--updates", "1"]
    # 16 completion tokens; 2 prompts of 10 when the 2 groups share theirs, 4 when nobody shares.
    assert learner.main(arguments)["packed_tokens"] == 16 + 2 * 10
    assert learner.main([*arguments, "--unshared"])["packed_tokens"] == 16 + 4 * 10


def test_the_gpu_command_runs_on_a_cpu(monkeypatch):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)  # without TRL, wherever this runs
    results = gpu.main(["--size", "tiny", "--json"])
    assert results["packed_minus_alone"] < 1e-5
    assert results["chunked_minus_plain"] < 1e-5
    assert {"h100/utilisation", "h100/peak_gib", "l4/tokens_per_second"} <= set(results)


def test_the_gpu_command_notices_a_leak(model: str, monkeypatch):
    config = gpu.settings("h100", small=True)
    policy = gpu.make_policy("tiny", config, torch.device("cpu"))
    torch.nn.init.normal_(policy.network.model.embed_tokens.weight)  # the initial weights hardly look at their context
    groups = gpu.groups_of([6] * 8, policy, 8)
    assert gpu.check_packing(policy, groups) < 1e-5
    whole = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        "grpo.attention._run_by_run",
        lambda q, k, v, scaling, _: whole(q, k, v, is_causal=True, scale=scaling, enable_gqa=True).transpose(1, 2),
    )
    assert gpu.check_packing(policy, groups) > 1e-5


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
    assert formula(config, tokens=12, pairs=12 * 12) == counter.get_total_flops()


def test_frozen_weights_and_unpredicted_tokens_cost_less():
    config = common.make_config("1m")
    every = flops.forward_flops(config, 100, 5050)
    head = 2 * 128 * 96
    assert every - flops.forward_flops(config, 100, 5050, predicted=40) == 60 * head
    attention = flops.forward_flops(config, 0, 5050)
    assert flops.training_flops(config, 100, 5050, frozen=True) == 3 * attention + 2 * (every - attention)
    assert flops.causal_pairs(3, prefix=2) == 3 + 4 + 5  # each of 3 tokens sees the prefix, its elders and itself
