"""--check and what it is made of: every trap is set here and must be found; a sound run must pass."""

from __future__ import annotations

import re
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train
from benchmarks.families import tiny_model
from data.tiny_base import make_tokenizer
from grpo import hub
from grpo.engines import vllm_engine
from grpo.evaluation.benchmarks import held_out_sets
from grpo.machine import GIB
from grpo.plan import preflight as traps
from grpo.plan.hardware import GPUS, hardware_named
from grpo.plan.memory import disk_parts
from grpo.plan.planner import Plan, decide
from grpo.settings import build
from rewards import Verifier

REPO = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    """The cpu preset names its files from there; and the tests' own environment is no trap."""
    monkeypatch.chdir(REPO)
    monkeypatch.delenv("REWARD_WEIGHTS", raising=False)


def cpu(**options):
    return build("cpu", {key.replace("__", "."): str(value) for key, value in options.items()})


def on(preset: str, card: str, **options) -> Plan:
    overrides = {"policy.quant": "none"} | {key.replace("__", "."): value for key, value in options.items()}
    return decide(build(preset, overrides), hardware_named(card))


def check(config, device: torch.device, resumed: Path | None = None) -> int:
    return traps.check(config, device, held_out_sets(config), resumed)


def machine_blockers(plan: Plan) -> list[str]:
    lines = traps.machine_blockers(plan, [])
    return [line for line in lines if not line.startswith("not on this machine")]


# ---- the whole report


def test_a_sound_run_is_ready(capsys):
    assert check(cpu(), CPU) == 0
    out = capsys.readouterr().out
    places = [out.index(f"\n{name}\n") for name in ("machine", "data", "reward", "plan")]
    assert places == sorted(places)
    assert f"torch {torch.__version__}" in out
    assert "128 rows; ground truths: 1; longest prompt" in out
    assert "self-test passed" in out
    assert "1 verify + 0.5 format + 0.5 reflect" in out
    assert out.endswith("ready to run\n")


def test_the_model_is_proved_and_nothing_written(tmp_path, capsys):
    assert check(cpu(out=tmp_path / "runs"), CPU) == 0
    assert "model proved against its own forward pass" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("place", ["grpo.plan.preflight.load_policy", "grpo.model_check._differences"])
def test_a_model_that_does_not_fit_is_a_line(place, monkeypatch, capsys):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(place, full)
    assert check(cpu(), CPU) == 1
    assert re.search(r"PROBLEM: .*out of memory.*2\.00 GiB", capsys.readouterr().out)


@pytest.mark.parametrize(("family", "line"), [("gpt2", "ready to run"), ("gemma2", "PROBLEM: .*takes softcap")])
def test_a_model_that_is_not_computed_exactly_is_found(family: str, line: str, tmp_path, capsys):
    """GPT-2's configuration has neither key heads nor the width of its feed-forward layers."""
    tiny_model(family).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    options = {"rollout__max_prompt_tokens": 40, "rollout__max_new_tokens": 20}
    assert check(cpu(model=tmp_path / "model", **options), CPU) == (family == "gemma2")
    assert re.search(line, capsys.readouterr().out)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"data": "nowhere/x.parquet"}, "no data file at nowhere/x.parquet"),
        ({"prompt": "poem"}, "poem"),
        ({"rollout__max_prompt_tokens": 4}, "more than rollout.max_prompt_tokens 4"),
        ({"rollout__max_new_tokens": 4090}, "has positions for 4096 tokens; use --rollout.max_new_tokens 4032"),
        ({"rollout__engine": "vllm"}, "vLLM is not installed"),
        ({"learner__logit_chunk": 10**8, "learner__microbatch_tokens": 10**8}, "does not fit CPU"),
        ({"reward__name": "nothing"}, "unknown reward 'nothing'"),
    ],
)
def test_what_would_fail_is_found(options, says, capsys, monkeypatch):
    monkeypatch.setattr(vllm_engine, "versions_of", lambda packages: {})
    if "reward__name" not in options:
        monkeypatch.setattr(traps, "_reward", lambda *_: iter(()))  # starts a process
    assert check(cpu(**options), CPU) == 1
    out = capsys.readouterr().out
    assert says in out
    assert out.rstrip().endswith("the run would fail")


def test_a_row_without_ground_truth_is_found(capsys, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1=?", "answer": "2"}\n{"prompt": "1+1=?"}\n')
    assert check(cpu(data=str(tmp_path / "rows.jsonl"), rollout__prompts_per_step=1), CPU) == 1
    assert "line 2: no ground truth" in capsys.readouterr().out


def test_a_broken_verifier_is_found(capsys, monkeypatch):
    monkeypatch.setattr(Verifier, "ask", lambda self, pairs: ["wrong"] * len(pairs))
    assert check(cpu(), CPU) == 1
    assert "reward self-test" in capsys.readouterr().out


def test_the_real_data_is_checked_against_its_checksum(data_dir, tmp_path, capsys):
    shutil.copy(data_dir / "pi1_r128.parquet", tmp_path)
    options = {"model": "data/tiny-base", "rollout.engine": "torch", "data_dir": str(tmp_path)}
    options |= {"eval.every": "0", "eval.data": "none"}
    assert check(build("l4", options), CPU) == 0
    assert "pi1_r128.parquet: 128 rows, sha256 75a7a6eec9da verified; ground truths: 1" in capsys.readouterr().out
    with (tmp_path / "pi1_r128.parquet").open("ab") as file:
        file.write(b"x")
    assert check(build("l4", options), CPU) == 1
    assert "damaged or another version" in capsys.readouterr().out


def test_from_the_command_line(tmp_path, capsys):
    assert train.main(["--preset", "cpu", "--check", "--data", "x.parquet", "--out", str(tmp_path)]) == 1
    assert "no data file at x.parquet" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_taken_and_an_out_that_is_a_file(tmp_path, capsys, monkeypatch):
    for slow in ("_data", "_reward"):
        monkeypatch.setattr(traps, slow, lambda *_: iter(()))
    (tmp_path / "run").mkdir()
    assert check(cpu(out=tmp_path, name="run"), CPU) == 0  # empty, and so nobody's
    (tmp_path / "run" / "config.yaml").touch()
    assert check(cpu(out=tmp_path, name="run"), CPU) == 1
    assert "exists; choose another --name" in capsys.readouterr().out
    assert check(cpu(out=tmp_path, name="run"), CPU, resumed=tmp_path / "run") == 0
    (tmp_path / "file").touch()
    assert check(cpu(out=tmp_path / "file" / "runs"), CPU) == 1
    assert "where nothing can be written" in capsys.readouterr().out


def test_a_model_that_the_hub_does_not_give_out_is_found(monkeypatch, capsys):
    """Its shape is in hardware.yaml, so the plan alone would pass."""
    for slow in ("_data", "_reward"):
        monkeypatch.setattr(traps, slow, lambda *_: iter(()))
    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(hub, "is_cached", lambda model: False)

    def gated(name, **options):
        raise OSError("You are trying to access a gated repo.\nMore lines.")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", gated)
    assert check(build("laptop", {}), CPU) == 1
    [line] = [line for line in capsys.readouterr().out.splitlines() if traps.PROBLEM in line]
    assert "HuggingFaceTB/SmolLM2-135M-Instruct: You are trying to access a gated repo.; give" in line


# ---- the traps, one by one


@pytest.mark.parametrize(
    ("version", "fits"),
    [("0.32.0", True), ("0.33rc1", True), ("1.0.dev7+g12ab", True), ("0.31.2", False), ("0.9rc1", False)],
)
def test_versions_of_vllm(version, fits, monkeypatch):
    monkeypatch.setattr(vllm_engine, "versions_of", lambda packages: {"vllm": version})
    monkeypatch.setattr(vllm_engine, "compiler_problems", lambda: [])
    problems = vllm_engine.VLLMEngine.problems("cuda")
    assert problems == [] if fits else "0.32 is needed" in problems[0]


def test_what_this_machine_cannot_do(monkeypatch):
    """A card without bfloat16, and 128 x 65,536 completions of 4096 tokens at 120 bytes."""
    monkeypatch.setattr(vllm_engine, "versions_of", lambda packages: {"vllm": "0.32.0"})
    monkeypatch.setattr(vllm_engine, "compiler_problems", lambda: [])
    old = replace(GPUS["a10"], name="Tesla T4", here=True, bf16=False)
    [line] = machine_blockers(decide(build("l4", {"policy.quant": "none"}), old))
    assert line.startswith("Tesla T4 does not compute in bfloat16")
    assert machine_blockers(decide(build("l4", {"policy.dtype": "float32"}), old)) == []
    many = build("l4", {"policy.quant": "none", "rollout.group_size": 65536})
    [line] = machine_blockers(decide(many, replace(GPUS["l4"], here=True)))
    assert "of main memory" in line  # 128 x 65536 x 4096 x 120 bytes: 3840 GiB


def test_the_presets_on_their_cards_have_no_problem_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1000 * GIB, 0, 1000 * GIB))
    for preset in ("l4", "h100"):
        plan = on(preset, preset, out=str(tmp_path))
        assert traps.blockers(plan) == []
        assert list(traps.warnings(plan)) == []


def test_longer_than_the_models_context(monkeypatch):
    """1024 + 3072 = 4096 is all that Qwen2.5-Math has."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1000 * GIB, 0, 1000 * GIB))
    [line] = traps.blockers(on("l4", "l4", rollout__max_new_tokens=3073))
    assert "is 4097" in line
    assert "--rollout.max_new_tokens 3072" in line


def test_bitsandbytes_is_asked_for_only_where_it_is_needed(monkeypatch):
    here = replace(GPUS["l4"], here=True)
    monkeypatch.setattr(vllm_engine, "versions_of", lambda packages: {"vllm": "0.32.0"})
    monkeypatch.setattr(vllm_engine, "compiler_problems", lambda: [])
    monkeypatch.setattr(traps, "installed", lambda package: package != "bitsandbytes")
    for options, asks in (
        ({"policy.quant": "none"}, []),
        ({"policy.quant": "nf4"}, ["policy.quant nf4 needs"]),
        ({"policy.quant": "none", "learner.optimizer": "adamw_8bit"}, ["learner.optimizer adamw_8bit needs"]),
    ):
        found = machine_blockers(decide(build("l4", options), here))
        assert [line.partition(" bitsandbytes")[0] for line in found] == asks


def test_a_full_disk(monkeypatch, tmp_path):
    """LoRA: 0.28 GiB of float32 adapter, twice (weights and masters), and 0.55 of moments: 1.1 GiB a checkpoint, 3 of
    them; and 500 x 1024 completions of 768 tokens at 1.3 bytes: 0.48 GiB. 3.78 together."""
    plan = on("l4", "l4", out=str(tmp_path / "deep" / "runs"))
    checkpoint, weights, completions = disk_parts(plan)
    assert checkpoint == 16 * plan.model.adapter(64)
    assert weights == 4 * plan.model.adapter(64) * (500 // 20 - 2)  # evaluated and saved every 20 steps, 2 are whole
    assert completions == 500 * 1024 * 768 * 1.3
    for free, problems in ((3.7, 1), (3.85, 0)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: Usage(100 * GIB, 0, free * GIB))
        assert len(traps.blockers(plan)) == problems
        assert traps.blockers(plan, resumed=tmp_path) == []  # it has its files, and its saves make room


def test_a_checkpoint_of_all_weights():
    """bf16 weights 2 + masters 4 + moments 8 bytes a parameter."""
    h100 = on("h100", "h100")
    assert disk_parts(h100)[0] == 14 * h100.model.parameters


def test_lora_with_a_rate_for_all_weights():
    """In alpha x lr: 128 x 1e-6 is 1.3e-4, under all that was published; rank 32 with alpha 32 at 4e-5 is not."""
    assert list(traps.warnings(on("l4", "l4", learner__lr=5e-6))) == []
    assert list(traps.warnings(on("l4", "l4", learner__lr=4e-5, policy__lora_alpha=32))) == []
    [line] = list(traps.warnings(on("l4", "l4", learner__lr=1e-6)))
    assert line.startswith("policy.lora_alpha x learner.lr is 0.00013")
    assert list(traps.warnings(on("h100", "h100", learner__lr=1e-6))) == []
