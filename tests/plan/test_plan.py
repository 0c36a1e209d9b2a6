from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from grpo.errors import UserError
from grpo.machine import GIB
from grpo.plan.__main__ import main
from grpo.plan.hardware import GPUS, data_sheet, hardware_named, this_hardware
from grpo.plan.memory import sequence_bytes
from grpo.plan.planner import LEAST_SEQUENCES, Plan, decide, describe, planned_and_measured
from grpo.plan.preflight import FIXES, LORA, fit_error, plan_run, suggest_fix
from grpo.plan.time import in_words
from grpo.settings import Config, build, flat

REPO = Path(__file__).resolve().parents[2]


def plan(preset: str, gpu: str, **options) -> Plan:
    """The preset's plan with nothing auto; options with __ for the dot."""
    return decide(fixed(preset, {key.replace("__", "."): value for key, value in options.items()}), hardware_named(gpu))


def fixed(preset: str, options: dict) -> Config:
    mild = {"policy.quant": "none", "policy.gradient_checkpointing": True, "learner.microbatch_tokens": 4096}
    return build(preset, mild | options)


ALL_WEIGHTS = {"policy__lora_rank": 0, "learner__lr": 1e-6, "learner__microbatch_tokens": 4096}


# ---- what fits


def test_l4_fits_24_gb_with_margin():
    l4 = plan("l4", "l4")
    assert l4.fits
    # learning takes under half of the card; sampling leaves room for more sequences than are needed to batch well
    assert l4.totals["learn"] < 0.5 * l4.hardware.memory
    assert l4.kv_sequences >= 64
    assert l4.totals["rollout"] <= 0.93 * 22.0 * GIB


def test_all_weights_of_the_1_5b_model_do_not_fit_an_l4():
    """Weights 2 + master 4 + moments 8 + gradient 4 = 18 bytes a parameter: 25.9 GiB of the card's 22."""
    full = plan("l4", "l4", **ALL_WEIGHTS)
    assert not full.fits
    assert sum(
        full.memory["learn"][part] for part in ("weights", "float32 masters", "optimiser moments", "gradients")
    ) == (18 * 1_543_714_304)


def test_all_weights_of_the_half_b_model_do():
    half = plan("l4", "l4", model="Qwen/Qwen2.5-0.5B", **ALL_WEIGHTS)
    assert half.fits
    assert half.kv_sequences >= 64


def test_h100_fits_80_gb_and_no_smaller_card():
    assert plan("h100", "h100").fits
    assert plan("h100", "h200").fits
    assert not plan("h100", "l4").fits
    assert not plan("h100", "a10").fits


def test_a_kv_cache_that_holds_next_to_nothing_does_not_fit():
    one = LEAST_SEQUENCES * 4096 * 28 * 1024 / GIB
    assert plan("l4", "l4", rollout__kv_gib=one * 1.01).fits
    assert not plan("l4", "l4", rollout__kv_gib=one * 0.99).fits


# ---- monotone in every knob

MORE = {
    "learner.microbatch_tokens": (8192, 16384),
    "learner.logit_chunk": (4096, 8192),
    "learner.kl_coef": (0.0, 0.1),
    "policy.lora_rank": (8, 64),
    "policy.gradient_checkpointing": (True, False),
    "learner.optimizer": ("adamw_8bit", "adamw"),
    "policy.quant": ("nf4", "none"),
    "policy.dtype": ("bfloat16", "float32"),
    "model": ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-Math-1.5B"),
}


@pytest.mark.parametrize("knob", MORE)
def test_learning_takes_more(knob):
    preset = "h100" if knob == "learner.kl_coef" else "l4"  # LoRA's reference is the policy itself
    sizes = {"rollout.kv_gib": 1, "learner.microbatch_tokens": 8192}
    less, more = (decide(fixed(preset, sizes | {knob: v}), GPUS["h100"]) for v in MORE[knob])
    assert less.totals["learn"] < more.totals["learn"]


@pytest.mark.parametrize("engine", ["vllm", "torch"])
@pytest.mark.parametrize(
    ("knob", "values"),
    [
        ("rollout.max_num_seqs", (64, 512)),
        ("rollout.max_new_tokens", (512, 3072)),
        ("rollout.max_prompt_tokens", (256, 1024)),
        ("policy.lora_rank", (8, 64)),
        ("model", ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-Math-1.5B")),
    ],
)
def test_sampling_takes_more(engine, knob, values):
    less, more = (decide(fixed("l4", {"rollout.engine": engine, knob: v}), GPUS["l4"]) for v in values)
    if engine == "torch":
        assert less.totals["rollout"] < more.totals["rollout"]
    elif knob != "rollout.max_num_seqs":  # fewer of them also fill less
        assert less.kv_sequences >= more.kv_sequences


@pytest.mark.parametrize(
    ("knob", "values"),
    [
        ("rollout.prompts_per_step", (16, 128)),
        ("rollout.group_size", (8, 32)),
        ("rollout.max_new_tokens", (512, 3072)),
        ("learner.kl_coef", (0.0, 0.001)),
        ("learner.minibatches_per_rollout", (1, 2)),
        ("policy.gradient_checkpointing", (False, True)),
        ("model", ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-Math-1.5B")),
    ],
)
def test_a_step_takes_longer(knob, values):
    less, more = (decide(fixed("l4", {knob: v}), GPUS["h100"]) for v in values)
    assert less.step_seconds < more.step_seconds


def test_a_faster_card_is_faster_and_a_larger_one_holds_more():
    l4, h100, h200 = (plan("l4", card) for card in ("l4", "h100", "h200"))
    assert l4.step_seconds > h100.step_seconds >= h200.step_seconds
    assert l4.kv_bytes < h100.kv_bytes <= h200.kv_bytes


def test_asleep_the_engine_leaves_its_memory_to_the_learner():
    awake, asleep = (plan("l4", "l4", rollout__sleep=sleep) for sleep in (False, True))
    weights = awake.memory["rollout"]["sampler weights"]
    assert awake.totals["learn"] - asleep.totals["learn"] == pytest.approx(weights + awake.kv_bytes)
    assert asleep.kv_bytes > awake.kv_bytes


def test_the_kv_cache_never_exceeds_what_can_run():
    small = plan("l4", "h200", rollout__max_num_seqs=4)
    assert small.kv_sequences == 4


# ---- honest about scale


def test_a_step_of_the_h100_preset_is_minutes_and_the_run_days():
    h100 = plan("h100", "h100")
    assert 60 < h100.step_seconds < 30 * 60
    assert h100.step_seconds * 2000 > 2 * 86400
    assert "days for 2000 steps" in "\n".join(describe(h100))


def test_500_steps_on_an_l4_are_a_day_and_more():
    l4 = plan("l4", "l4")
    assert l4.step_seconds * 500 > 86400
    assert sum(l4.seconds(3072).values()) > 3 * l4.step_seconds


def test_planned_beside_measured():
    """Means without the first step, which warms up; of memory the peak. Twice the time is half the utilisation."""
    l4 = plan("l4", "l4")
    seconds = l4.seconds()
    phases = {f"time/{name}": seconds[name] for name in ("rollout", "learn")}
    tokens = {"completion/length_mean": 768.0}  # a quarter of 3072, as the plan takes it
    rows = [
        {"step": 0, "time/step": 9e9},
        phases | tokens | {"step": 1, "time/step": 9e9, "memory/peak_gib": 1.0},
        phases | tokens | {"step": 2, "time/step": 40.0, "time/learn": 1.0 * seconds["learn"], "memory/peak_gib": 9.0},
        phases | tokens | {"step": 3, "time/step": 60.0, "time/learn": 3.0 * seconds["learn"], "memory/peak_gib": 8.0},
    ]
    table = {line.split()[0]: line.split()[1:] for line in planned_and_measured(l4, rows).splitlines()[1:]}
    assert table["time/step"] == [f"{l4.step_seconds:.4g}", "50"]
    assert table["memory/peak_gib"][1] == "9"
    planned, measured = map(float, table["utilisation"])
    assert 0 < planned < 1
    assert measured == pytest.approx(planned / 2, rel=1e-3)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (5, "4.0 to 6.5 s"),
        (100, "1.3 to 2.2 min"),  # 80 to 130 s
        (86400, "19.2 to 31.2 h"),
        (2 * 86400, "1.6 to 2.6 days"),
    ],
)
def test_an_estimate_is_a_range(seconds, text):
    assert in_words(seconds) == text


def test_the_parts_of_a_decoding_step_are_added():
    """One step of 64 sequences of a 1.5B model on an L4, by hand: weights, KV cache, logits and floor in turn."""
    l4 = plan("l4", "l4", rollout__max_num_seqs=64, rollout__prompts_per_step=8, rollout__max_new_tokens=48)
    bandwidth = 0.7 * 300e9
    weights = 2 * 1_543_714_304 / bandwidth
    attention = 64 * (256 + 24) * 28 * 1024 / bandwidth
    logits = 64 * 151_936 * 36 / bandwidth
    assert l4.seconds()["rollout"] == pytest.approx(48 * (weights + attention + logits + 1.5e-3))


# ---- what to do when it does not fit


def test_a_run_that_cannot_fit_names_settings_that_do():
    full = plan("l4", "l4", **ALL_WEIGHTS)
    line = fit_error(full)
    assert line.startswith("does not fit L4: learn needs ")
    assert "It fits with: --policy.lora_rank 64" in line
    assert full.with_settings(suggest_fix(full)).fits


@pytest.mark.parametrize(
    ("options", "cure"),
    [
        ({"learner__microbatch_tokens": 131072}, "learner.microbatch_tokens"),
        (
            {"policy__gradient_checkpointing": False, "learner__microbatch_tokens": 16384},
            "policy.gradient_checkpointing",
        ),
        ({"rollout__kv_gib": 40}, "rollout.kv_gib"),
        ({"rollout__engine": "torch"}, "rollout.max_num_seqs"),
    ],
)
def test_the_setting_at_fault_is_the_suggest_fix(options, cure):
    bad = plan("l4", "l4", **options)
    assert not bad.fits
    assert set(suggest_fix(bad)) == {cure}
    assert bad.with_settings(suggest_fix(bad)).fits


def test_where_nothing_helps_a_larger_card_is_named():
    assert "Use a smaller --model, or a larger GPU" in fit_error(plan("l4", "a1000", policy__dtype="float32"))


def test_every_remedy_is_a_setting():
    names = flat(build("l4", {}))
    assert names.keys() >= FIXES.keys() | LORA.keys()


def test_quant_auto_is_none_where_that_fits_and_nf4_where_it_does_not():
    auto = fixed("l4", {"policy.quant": "auto", "learner.microbatch_tokens": 8192})
    plain = decide(auto, GPUS["l4"])
    assert plain.config.policy.quant == "none"
    assert plain.note.startswith("auto: policy.quant none, of 2 choices")
    # A card on which the four bits decide: 1.22 G linear weights save 1.2 x 1.31 x (2 - 0.516) = 1.8 GiB.
    least = LEAST_SEQUENCES * sequence_bytes(plain) - plain.kv_bytes
    between = max(plain.totals["learn"], plain.totals["rollout"] + least) / 0.93 - GIB
    small = replace(GPUS["l4"], name="small", memory=between)
    packed = decide(auto, small)
    assert packed.config.policy.quant == "nf4"
    assert packed.note.startswith("auto: policy.quant nf4, of 2 choices, of which 1 fit")
    assert packed.fits
    assert decide(packed.config, small) == replace(packed, note="")


@pytest.mark.parametrize("gpu", ["l4", "a10", "h100"])
def test_checkpointing_and_micro_batches_are_decided_together(gpu):
    """auto is never slower than any fixed choice that fits, and of equally fast ones it has the largest micro-batch."""
    auto = {"policy.quant": "none", "policy.gradient_checkpointing": "auto", "learner.microbatch_tokens": "auto"}
    chosen = decide(build("l4", auto), GPUS[gpu])
    assert chosen.fits
    assert "policy.gradient_checkpointing false, learner.microbatch_tokens" in chosen.note
    for checkpointing in (True, False):
        for tokens in (4096, 5120, 8192, 16384):
            options = {"policy__gradient_checkpointing": checkpointing, "learner__microbatch_tokens": tokens}
            other = plan("l4", gpu, **options)
            assert not other.fits or (chosen.step_seconds, -chosen.config.learner.microbatch_tokens) <= (
                other.step_seconds,
                -tokens,
            )


def test_where_no_choice_fits_the_plan_is_the_one_that_needs_least():
    auto = build("h100", {"policy.gradient_checkpointing": "auto", "learner.microbatch_tokens": "auto"})
    chosen = decide(auto, GPUS["l4"])
    assert not chosen.fits
    assert (chosen.config.policy.gradient_checkpointing, chosen.config.learner.microbatch_tokens) == (True, 4096)
    assert "of which 0 fit" in chosen.note


# ---- in a run, and by hand


def test_from_the_command_line_without_a_gpu_or_a_network(capsys):
    assert main(["--preset", "h100", "--gpu", "h100"]) == 0
    out = capsys.readouterr().out
    assert "Qwen/Qwen2.5-Math-1.5B (1,543,714,304 parameters, all weights trained) on H100" in out
    assert "KV cache of" in out


def test_the_command_line_refuses_what_does_not_fit(capsys):
    assert main(["--preset", "h100", "--gpu", "l4"]) == 2
    assert capsys.readouterr().err.startswith("error: does not fit L4")
    assert main(["--preset", "h100", "--gpu", "l5"]) == 2
    assert (
        capsys.readouterr().err
        == "error: no data sheet for 'l5'; there are l4, a10, a10g, l40s, 3090, 4090, a1000, a100, h100, "
        "h100-pcie, h200, b200, cpu; did you mean l4?\n"
    )


@pytest.mark.parametrize(
    ("device", "card"),
    [
        ("L4", "L4"),
        ("L40S", "L40S"),
        ("A100-SXM4-80GB", "A100"),
        ("A10G", "A10G"),
        ("RTX A1000", "A1000"),
        ("GeForce RTX 4090", "4090"),
        ("H100 80GB HBM3", "H100"),
        ("H100 PCIe", "H100 PCIe"),
        ("H200", "H200"),
        ("B200", "B200"),
        ("Quadro 1", None),
    ],
)
def test_a_device_is_its_own_card_and_no_other(device, card):
    found = data_sheet(device)
    assert (found and found.name) == card


def test_an_unknown_card_is_named():
    with pytest.raises(UserError, match=r"no data sheet for 'h101'; .*did you mean h100"):
        hardware_named("h101")


def tiny(**options):
    overrides = {"model": str(REPO / "data/tiny-base"), "rollout.engine": "torch"}
    return build("cpu", overrides | {key.replace("__", "."): value for key, value in options.items()})


def test_a_run_prints_its_plan_first(capsys):
    found = plan_run(tiny(), torch.device("cpu"), [])
    out = capsys.readouterr().out
    assert out.startswith("--preset cpu --model")
    assert "memory, GiB" in out
    assert "time, planned" not in out  # nobody plans a CPU's time; the bar shows what is measured
    assert found.engine_config == found.config  # a CPU's engine sizes its cache itself
    plan_run(tiny(quiet=True), torch.device("cpu"), [])
    assert len(capsys.readouterr().out.strip().splitlines()) == 1


def test_the_engine_gets_its_kv_cache_from_the_plan():
    l4 = plan("l4", "l4")
    assert l4.config.rollout.kv_gib is None
    assert l4.engine_config.rollout.kv_gib == pytest.approx(l4.kv_bytes / GIB, abs=0.01)
    asked = plan("l4", "l4", rollout__kv_gib=5)
    assert asked.engine_config.rollout.kv_gib == 5


def test_a_run_that_cannot_fit_stops_with_nothing_but_the_configuration(tmp_path):
    """The folder holds no weights and no tokenizer: whatever is said was known from config.json alone."""
    (tmp_path / "config.json").write_text((REPO / "data/tiny-base/config.json").read_text())
    huge = {"learner__logit_chunk": 10**8, "learner__microbatch_tokens": 10**8, "model": str(tmp_path)}
    with pytest.raises(UserError, match=r"does not fit CPU.* It fits with: --learner"):
        plan_run(tiny(**huge), torch.device("cpu"), [])


def test_this_machine_is_a_card():
    card = this_hardware(torch.device("cpu"))
    assert card.is_cpu
    assert card.here
    assert 0 < card.memory < 2**50
