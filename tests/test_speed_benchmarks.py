"""Every speed benchmark runs, at a tiny size. No test asserts a time."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2ForCausalLM

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

import train  # noqa: E402
from benchmarks import common, gpu, sampling, versus_trl  # noqa: E402
from grpo.engines.torch_engine import ENGINE  # noqa: E402
from grpo.plan.hardware import GPUS  # noqa: E402
from grpo.plan.shapes import RunShape, shape_of  # noqa: E402
from grpo.plan.time import forward_flops, learning_flops  # noqa: E402
from grpo.settings import build  # noqa: E402

TINY = ["--size", "tiny", "--out"]


@pytest.mark.parametrize("part", ["step-l4", "step-h100"])
def test_two_steps_with_random_weights(part, tmp_path, monkeypatch, capsys):
    """The part's command, called in this process. tests/test_kit.py runs a part in its own."""
    monkeypatch.chdir(REPO)
    folder = common.save_model(common.make_config("tiny"), tmp_path)
    python, script, *options = gpu.command(part, gpu.Options(size="tiny"), folder)
    assert (python, script) == (sys.executable, "train.py")
    assert train.main(options) == 0
    assert "step 2/2" in capsys.readouterr().out


def test_the_parts_differ_in_what_they_are_named_for():
    options = gpu.Options(size="1.5b", model=Path("model"))
    words = {part: gpu.command(part, options, "folder") for part in gpu.PARTS}
    assert "--preset=h100" in words["step-h100"]
    assert {"--preset=l4", "--policy.quant=nf4"} <= set(words["step-nf4"])
    assert "--policy.quant=none" in words["step-l4"]
    assert f"--model={Path('model').resolve()}" in words["train"]
    assert all("--model=folder" in words[part] for part in words if part != "train")


def test_a_part_that_is_in_the_file_is_not_run_again_and_one_that_failed_is(tmp_path, monkeypatch, capsys):
    for name, code in (("good", "print('fine')"), ("bad", "1 / 0")):
        (tmp_path / f"{name}.py").write_text(code)
    parts = {
        name: {"script": str(tmp_path / f"{name}.py"), "seconds": 1, "options": {}, "tiny": {}}
        for name in ("bad", "good")
    }
    monkeypatch.setattr(gpu, "PARTS", parts)
    command = [*TINY, str(tmp_path / "gpu.json")]
    assert gpu.main(command) == 1
    assert gpu.read_figures(tmp_path / "gpu.json").keys() == {"machine", "good"}
    assert "bad: failed with code 1" in capsys.readouterr().out
    (tmp_path / "bad.py").write_text("print('now')")
    assert gpu.main(command) == 0
    figures = gpu.read_figures(tmp_path / "gpu.json")
    assert (figures["bad"], figures["good"]) == (["now"], ["fine"])
    assert "good: skipped, it is in the file already" in capsys.readouterr().out


def test_a_part_without_its_package_or_model_is_skipped_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "installed", lambda package: False)
    assert gpu.main([*TINY, str(tmp_path / "x.json"), "--part", "vllm", "train"]) == 0
    printed = capsys.readouterr().out
    assert "vllm: skipped, vllm is not installed" in printed
    assert "train: skipped, it needs --model" in printed


def test_it_ends_in_time_and_the_most_telling_parts_come_first(tmp_path, monkeypatch, capsys):
    """300 s, and each look at the clock is 100 s later: two parts start, 200 and 100 s before the end."""
    clock = iter(range(0, 1000, 100))
    limits = []
    monkeypatch.setattr(gpu.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(gpu, "run", lambda words, limit: limits.append(limit) or ("stopped", []))
    monkeypatch.setattr(gpu, "installed", lambda package: True)
    words = [*TINY, str(tmp_path / "x.json"), "--minutes", "5", "--part", "step-l4", "step-h100", "step-nf4"]
    assert gpu.main(words) == 1
    assert limits == [200, 100]
    assert "step-nf4: skipped, 0 s are left and it may take 1" in capsys.readouterr().out


def test_a_part_is_stopped_when_the_time_is_up():
    assert gpu.run([sys.executable, "-c", "import time; time.sleep(60)"], 0.2) == ("stopped, the time is up", [])


def test_ratios_are_taken_round_by_round():
    rows = [
        {"round": number, "side": side, "seconds": seconds}
        for number, pair in enumerate(((1.0, 3.0), (2.0, 6.0), (4.0, 16.0)))
        for side, seconds in zip(("ours", "trl"), pair, strict=True)
    ]
    table = common.compare(rows)["seconds"]
    assert (table["median", "ours"], table["median", "trl"]) == (2, 6)
    assert [table[kind, "trl"] for kind in ("ratio", "lowest", "highest")] == [3, 3, 4]  # of 3, 3 and 4


def test_the_seconds_until_half_are_those_of_training():
    rows = pd.DataFrame({"side": "ours", "seconds": 2.0, "accuracy": [0.2, 0.6, 0.4]})
    assert versus_trl.seconds_until_half(rows)["ours"] == 4.0
    assert math.isnan(versus_trl.seconds_until_half(rows[:1])["ours"])


def test_the_sampler_takes_turns_in_a_process_of_its_own(monkeypatch, capfd):
    monkeypatch.setattr(sampling, "SIDES", ["torch"])
    words = ["--model", "data/tiny-base", "--sequences", "2", "3", "--prompt", "5", "--tokens", "4", "--rounds", "1"]
    sampling.main([*words, "--vocabulary", "128"])
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith("{")]
    assert [row["sequences"] for row in rows] == [2, 2, 3]  # the first warms up
    assert all(row["tokens_per_s"] > 0 for row in rows)


@pytest.mark.parametrize("side", ["torch", "generate", "static"])
def test_every_side_writes_what_is_asked_for(side):
    completions = sampling.SIDES[side](str(REPO / "data" / "tiny-base"))([5, 6, 7], 2, 4)
    if side == "torch":
        assert [len(completion.ids) for completion in completions[0]] == [4, 4]
    else:
        assert completions.shape == (2, 3 + 4)


@pytest.mark.peers
@pytest.mark.parametrize("case", ["tiny", "tiny-ragged"])
def test_trl_takes_its_turns(case: str):
    assert versus_trl.main(["--case", case, "--rounds", "1"])["seconds"]["ratio", "trl"] > 0


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
