"""The presets: their numbers, and two steps of l4 and h100 on a CPU with the tiny model and the real pi1 rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

import train
from grpo.engines import vllm_engine
from grpo.plan.hardware import hardware_named
from grpo.plan.planner import decide
from grpo.plan.time import HIGH
from grpo.run.files import read_completions
from grpo.settings import PRESETS, Config, build, dotted, flat, short
from rewards import check_ground_truths

REPO = Path(__file__).resolve().parents[2]

# The paper's settings (arXiv 2504.20571), and the two columns in which the presets differ.
SAME = {
    "model": "Qwen/Qwen2.5-Math-1.5B",
    "data": "pi1_r128.parquet",
    "prompt": "multi-signal",
    "rollout.engine": "vllm",
    "rollout.prompts_per_step": 128,
    "rollout.max_prompt_tokens": 1024,
    "rollout.max_new_tokens": 3072,
    "rollout.temperature": 0.6,
    "learner.kl_coef": 0.001,
    "learner.entropy_coef": 0.001,
    "learner.clip_low": 0.2,
    "learner.clip_high": 0.2,
    "learner.grad_clip": 1.0,
    "learner.weight_decay": 0.01,
    "learner.skip_zero_variance": False,
    "policy.gradient_checkpointing": "auto",
    "policy.dtype": "auto",
    "reward.alpha": 1.0,
    "reward.beta": 0.5,
    "reward.gamma": 0.5,
}
L4 = {"steps": 500, "rollout.group_size": 8, "policy.lora_rank": 64, "policy.lora_alpha": 128.0, "policy.quant": "auto"}
L4 |= {"learner.lr": 1e-5, "learner.minibatches_per_rollout": 1, "rollout.sleep": True}
H100 = {"steps": 2000, "rollout.group_size": 32, "policy.lora_rank": 0, "policy.quant": "none"}
H100 |= {"learner.lr": 1e-6, "learner.minibatches_per_rollout": 2, "rollout.sleep": True}


@pytest.mark.parametrize(("preset", "numbers"), [("l4", SAME | L4), ("h100", SAME | H100)])
def test_the_numbers(preset, numbers):
    found = flat(build(preset, {}))
    assert {name: found[name] for name in numbers} == numbers


def test_h100_takes_64_problems_per_optimiser_step():
    h100 = build("h100", {})
    assert h100.rollout.prompts_per_step // h100.learner.minibatches_per_rollout == 64


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_preset_starts_with_a_sentence_and_is_complete(path):
    text = path.read_text()
    assert text.startswith("# ")
    preset = build(path.stem, {})
    assert preset.preset == path.stem
    assert set(dotted(yaml.safe_load(text))) <= set(flat(Config()))


@pytest.mark.parametrize("preset", ["l4", "h100"])
def test_without_vllm_it_is_one_clear_error(preset, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(vllm_engine, "versions_of", lambda packages: {})
    monkeypatch.chdir(tmp_path)
    assert train.main(["--preset", preset]) == 2
    error = capsys.readouterr().err
    lines = error.strip().splitlines()
    assert lines[0] == "error: this machine has no GPU; --preset cpu and --preset laptop run here"
    assert lines[1].startswith("rollout.engine vllm: vLLM is not installed; use --rollout.engine torch")
    assert max(map(len, lines)) < 400
    assert not list(tmp_path.iterdir())


# ---- planned on their cards

CARDS_OF = {
    "l4": "l4",
    "h100": "h100",
    "speedrun": "h100",
    "l4-hour": "l4",
    "l4-0.5b": "l4",
    "tinyllama-hybrid": "l40s",
    "llama8b-lora": "h100",
}


@pytest.mark.parametrize(("preset", "card"), CARDS_OF.items())
def test_it_fits_its_card_and_its_model(preset, card):
    plan = decide(build(preset, {}), hardware_named(card))
    assert plan.fits
    assert plan.config.rollout.longest_sequence <= plan.model.context


@pytest.mark.parametrize(("preset", "gpu"), [("speedrun", "h100"), ("l4-hour", "l4")])
def test_a_first_curve_takes_an_hour_at_most(preset, gpu):
    """At the upper end of the estimate, with start-up, and 4 evaluations of 100 problems in l4-hour."""
    plan = decide(build(preset, {}), hardware_named(gpu))
    evaluations = 4 * plan.seconds()["rollout"] * 100 / plan.completions
    assert HIGH * (plan.step_seconds * plan.config.steps + evaluations) + plan.engine.costs.start_s < 3600
    assert plan.config.rollout.temperature == 1.0
    assert plan.config.learner.kl_coef == 0


def test_the_new_presets_step_is_l4s_in_alpha_x_lr():
    l4, hour = build("l4", {}), build("l4-hour", {})
    assert hour.policy.lora_alpha == hour.policy.lora_rank
    assert hour.policy.lora_alpha * hour.learner.lr == pytest.approx(l4.policy.lora_alpha * l4.learner.lr)


@pytest.mark.parametrize("mode", ["ultra-quick", "quick", "dry-run"])
@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_a_mode_is_a_part_of_every_preset_and_the_plan_shows_it(preset, mode):
    whole, part = (decide(build(preset, o), hardware_named("h100")) for o in ({}, {"mode": mode}))
    longest = {"ultra-quick": 1, "quick": 15, "dry-run": 58}[mode]
    assert part.config.steps == min(whole.config.steps, longest)
    assert all(part.seconds()[phase] <= whole.seconds()[phase] for phase in ("rollout", "learn"))
    assert f"--mode {mode} " in short(part.config)
    assert part.config.steps == whole.config.steps or f"--steps {longest} " in short(part.config)


# What a CPU cannot do in a test, or not in seconds. Everything else is as in the preset.
CUT = {
    "model": str(REPO / "data/tiny-base"),  # 0.33 M parameters with Qwen2's architecture
    "rollout.engine": "torch",
    "steps": "2",
    "rollout.prompts_per_step": "4",
    "rollout.group_size": "2",
    "rollout.max_new_tokens": "48",
    "eval.limit": "2",
}


# ---- two steps of each on a CPU


@pytest.mark.parametrize("preset", ["l4", "h100"])
def test_two_steps_on_the_real_pi1_rows(preset, data_dir, tmp_path, capsys):
    options = CUT | {"data_dir": str(data_dir), "out": str(tmp_path), "name": "smoke", "quiet": "true"}
    argv = ["--preset", preset, *(word for name, value in options.items() for word in (f"--{name}", value))]
    assert train.main(argv) == 0, capsys.readouterr().err
    folder = tmp_path / "smoke"

    resolved = flat(Config.model_validate(yaml.safe_load((folder / "config.yaml").read_text())))
    expected = flat(build(preset, options)) | {
        "policy.quant": "none",
        "policy.gradient_checkpointing": False,
        "learner.microbatch_tokens": 16384,
    }  # decided by the plan
    assert resolved == expected

    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    for row in rows[1:]:
        assert row["logprob_diff/mean"] < 1e-4
        assert row["policy/entropy"] > 0
        assert row["learner/skipped_steps"] == 0
        assert 0 < row["completion/length_mean"] <= 48
    completions = read_completions(folder, 1)
    assert len(completions) == 8
    assert {row["ground_truth"] for row in completions} == {"12.8"}
    assert all("The pressure" in row["prompt"] for row in completions)

    last = folder / "checkpoints" / "step_000002"
    assert (last / ("adapter_model.safetensors" if preset == "l4" else "model.safetensors")).is_file()
    if preset == "h100":  # the entropy bonus alone moves weights when no reward differs
        before = load_file(REPO / "data/tiny-base/model.safetensors")
        after = load_file(last / "model.safetensors")
        assert any((after[name].float() != before[name].float()).any() for name in before)


ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LLAMA3 = (
    "<s>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n"]


def tokenizer_of(template: str, special: list[str]) -> PreTrainedTokenizerFast:
    """A token for each character, and the template's own."""
    words = ["<unk>", "</s>", "<s>", *special, *CHARACTERS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    end = special[-1] if special else "</s>"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token=end,
        pad_token="</s>",
        extra_special_tokens=["</s>", *special],
        chat_template=template,
    )


def llama(folder: Path, template: str, special: list[str], one_output: bool = False) -> str:
    """A random model of Llama's architecture; with `one_output` a reward model."""
    torch.manual_seed(0)
    tokenizer = tokenizer_of(template, special)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,
    )
    (LlamaForSequenceClassification if one_output else LlamaForCausalLM)(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


OTHERS = {  # preset -> chat template, its special tokens, how a rendered prompt begins and ends
    "speedrun": None,
    "l4-hour": None,
    "l4-0.5b": None,
    "tinyllama-hybrid": (ZEPHYR, [], "<|system|>\n", "</s>\n<|assistant|>\n"),
    "llama8b-lora": (LLAMA3, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<s><|start", "|>\n\n"),
}


@pytest.mark.parametrize("preset", OTHERS)
def test_a_step_of_the_other_presets(preset, tmp_path, capsys):
    """With the architecture and the chat template of the preset's model; the data is the 16 questions."""
    options = CUT | {"data": str(REPO / "data/questions16.jsonl"), "out": str(tmp_path), "name": "smoke", "steps": "1"}
    if form := OTHERS[preset]:
        options["model"] = llama(tmp_path / "model", *form[:2])
        options["reward.hybrid.model"] = llama(tmp_path / "rm", *form[:2], one_output=True)
    options |= {"quiet": "true", "rollout.max_prompt_tokens": "1500", "reward.hybrid.warmup": "16", "eval.every": "0"}
    argv = ["--preset", preset, *(word for name, value in options.items() for word in (f"--{name}", value))]
    assert train.main(argv) == 0, capsys.readouterr().err
    rows = read_completions(tmp_path / "smoke", 1)
    assert len(rows) == 8
    if form:
        prompts = {row["prompt"] for row in rows}
        assert all(prompt.startswith(form[2]) and prompt.endswith(form[3]) for prompt in prompts)


def test_the_sixteen_questions_are_read():
    rows = [json.loads(line) for line in (REPO / "data/questions16.jsonl").read_text().splitlines()]
    assert len({row["question"] for row in rows}) == 16
    assert check_ground_truths([row["answer"] for row in rows]) == [None] * 16
