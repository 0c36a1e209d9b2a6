"""--resume continues exactly, refuses settings of another run, and reports its actions."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from small_runs import REPO, SMALL, arguments, completions, rows, same_run, start, weights

import train
from grpo.cli import Command
from grpo.run.checkpoint import seal
from grpo.run.files import lines, read_rows, write_config
from grpo.run.resume import FREE, ROUNDING, decisive, read_config, resolve_run
from grpo.settings import Config, changed, fields, flat, parse
from tools import watch

LORA = {
    "policy.lora_rank": 4,
    "policy.lora_alpha": 8,
    "learner.skip_zero_variance": "false",
    "learner.kl_coef": 0.01,
    "reward.name": "small_runs:lots_reward",
}
RESAMPLED = {
    "data": str(REPO / "data" / "arithmetic" / "128.parquet"),
    "reward__name": "format_only",
    "rollout__resample_flat_groups": 3,
    "rollout__group_size": 2,
    "rollout__max_new_tokens": 40,
}
HARD = {
    "learner.minibatches_per_rollout": 2,
    "learner.warmup": 4,
    "policy.dtype": "bfloat16",
    "learner.skip_zero_variance": "false",
    "learner.kl_coef": 0.01,
    "learner.entropy_coef": 0.001,
    "rollout.logprob_diff_limit": 1,
    "reward.name": "random",
}
EVALUATED = {
    "eval.every": 2,
    "eval.limit": 2,
    "eval.data": str(Path(SMALL["data"]).with_name("validation.parquet")),
    "eval.test": str(Path(SMALL["data"]).with_name("test.parquet")),
}


@pytest.fixture(autouse=True)
def no_plot(monkeypatch):
    monkeypatch.setattr(train, "plot_run", lambda folder: None)


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Path:
    """A run of three steps."""
    out = tmp_path_factory.mktemp("three")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "plot_run", lambda folder: None)
        assert train.main(arguments(out, "run", steps=3)) == 0
    return out / "run"


@pytest.fixture
def copied(three, tmp_path) -> Path:
    return Path(shutil.copytree(three, tmp_path / "run"))


@pytest.fixture
def stopped(copied) -> Path:
    """The same, as if it had been killed before the end."""
    (copied / "summary.json").unlink()
    return copied


@pytest.mark.parametrize(
    "settings",
    [EVALUATED, LORA, HARD, RESAMPLED],
    ids=["full, eval", "lora, lots", "bf16, 2 updates, random", "resampled groups"],
)
def test_two_and_two_are_four(tmp_path, settings):
    """rows, texts, weights, moments and masters, bit for bit; also where a reward draws lots"""
    assert train.main(arguments(tmp_path, "four", **settings, steps=4, checkpoint__every=2)) == 0
    random.seed(), np.random.seed(), torch.seed()  # another process would start with other random states
    assert train.main(arguments(tmp_path, "both", **settings, steps=2, checkpoint__every=2)) == 0
    random.seed(), np.random.seed(), torch.seed()
    assert train.main(["--resume", str(tmp_path / "both"), "--steps", "4"]) == 0
    same_run(tmp_path / "four", tmp_path / "both", 4)
    if settings is RESAMPLED:
        assert any(row["groups/further_draws"] for row in rows(tmp_path / "four") if row["step"])
    kept = sorted((tmp_path / "both" / "checkpoints").iterdir())
    start, end = weights(kept[0]), weights(kept[-1])
    assert not all(torch.equal(start[name], end[name]) for name in start)  # or equality would say nothing
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("four", "both")]
    assert summaries[0] | {"seconds": 0} == summaries[1] | {"seconds": 0}
    assert yaml.safe_load((tmp_path / "both" / "config.yaml").read_text())["steps"] == 4


def test_what_was_written_after_the_checkpoint_is_done_again(three, tmp_path):
    """As after a power cut: rows and texts of steps 2 and 3 are there, the checkpoint is of step 1."""
    folder = tmp_path / "run"
    assert train.main(arguments(tmp_path, "run", steps=3, checkpoint__every=1, checkpoint__keep=9)) == 0
    shutil.rmtree(folder / "checkpoints" / "step_000002")
    shutil.rmtree(folder / "checkpoints" / "step_000003")
    (folder / "summary.json").unlink()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "reward/mean": 0.1')  # cut off in the middle
    (folder / "completions" / "step_000009.jsonl.gz").write_text("left over\n")
    (folder / "completions" / "step_000009_mine.txt").write_text("a note")
    assert train.main(["--resume", str(folder)]) == 0
    assert (folder / "completions" / "step_000009_mine.txt").read_text() == "a note"
    (folder / "completions" / "step_000009_mine.txt").unlink()
    same_run(three, folder, 3)


def test_without_a_whole_checkpoint_it_starts_again(three, stopped, capsys):
    shutil.rmtree(stopped / "checkpoints")
    assert train.main(["--resume", str(stopped)]) == 0
    assert "no complete checkpoint: starting again from step 1" in capsys.readouterr().err
    same_run(three, stopped, 3)


def test_a_damaged_checkpoint_is_passed_over(three, stopped, capsys):
    path = stopped / "checkpoints" / "step_000003" / "trainer.pt"
    path.write_bytes(path.read_bytes()[:-100])
    assert train.main(["--resume", str(stopped)]) == 0
    assert re.search(r"step_000003 is damaged \(trainer.pt is not as it was written\)", capsys.readouterr().err)
    same_run(three, stopped, 3)


@pytest.mark.parametrize("others", [True, False])
def test_a_kill_after_a_damaged_checkpoint_was_set_aside_ends_no_run(three, copied, others, capsys):
    """summary.json and all rows are still there, as before the kill; the weights of the last step are not."""
    last = copied / "checkpoints" / "step_000003"
    if not others:
        for other in set((copied / "checkpoints").glob("step_*")) - {last}:
            shutil.rmtree(other)
    last.rename(last.with_name(f"damaged_{last.name}"))
    assert train.main(["--resume", str(copied)]) == 0
    assert "is finished" not in capsys.readouterr().out
    same_run(three, copied, 3)


def test_a_finished_run_may_lose_its_checkpoints(copied, capsys):
    shutil.rmtree(copied / "checkpoints")
    assert train.main(["--resume", str(copied)]) == 0
    assert "is finished" in capsys.readouterr().out


def test_a_row_that_waits_for_its_evaluation_gets_it(tmp_path):
    """The checkpoint of step 3 exists, its row does not: the run ended in the evaluation."""
    assert train.main(arguments(tmp_path, "run", **EVALUATED, steps=3)) == 0
    whole, folder = rows(tmp_path / "run"), tmp_path / "run"
    state = torch.load(folder / "checkpoints" / "step_000003" / "trainer.pt", weights_only=True)
    assert state["row"] is None
    written = read_rows(folder / "metrics.jsonl")
    unfinished = {k: v for k, v in written[-1].items() if not k.startswith("eval/")} | {"completion/tokens": 9}
    torch.save(state | {"row": unfinished}, folder / "checkpoints" / "step_000003" / "trainer.pt")
    reseal(folder / "checkpoints" / "step_000003")
    (folder / "metrics.jsonl").write_text(lines(written[:-1]))
    (folder / "summary.json").unlink()
    assert train.main(["--resume", str(folder)]) == 0
    assert rows(folder) == whole
    assert "eval/sampled_accuracy" in rows(folder)[-1]


def reseal(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()
    seal(checkpoint)


def refused(folder: Path, capsys, *words: str) -> str:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}
    capsys.readouterr()
    assert train.main(["--resume", str(folder), *words]) == 2
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"} == before
    return capsys.readouterr().err


def test_other_settings_are_refused_and_listed(copied, capsys):
    message = refused(copied, capsys, "--steps", "5", "--learner.lr", "0.5", "--rollout.group_size", "16")
    assert "learner.lr 0.001 -> 0.5, rollout.group_size 4 -> 16" in message


def test_every_setting_is_either_free_or_refused():
    assert fields().keys() >= FREE
    assert ROUNDING <= FREE
    for name in ("model", "data", "prompt", "seed", "policy.lora_rank", "rollout.temperature", "reward.name"):
        assert name not in FREE


def test_steps_do_not_shrink(copied, capsys):
    assert "steps 3 -> 2" in refused(copied, capsys, "--steps", "2")


def test_steps_of_a_linear_schedule_stay(tmp_path, capsys):
    assert train.main(arguments(tmp_path, "run", steps=1, learner__schedule="linear")) == 0
    assert "steps 1 -> 5" in refused(tmp_path / "run", capsys, "--steps", "5")


def test_a_quantisation_left_to_the_plan_is_what_the_run_has(copied):
    saved = changed(read_config(copied), {"policy.lora_rank": 4})
    write_config(copied, saved)
    left_open = Command(Config(), str(copied), False, {"policy.quant": "auto"})
    assert resolve_run(left_open, "cpu")[0].policy.quant == "none"


def test_reward_weights_of_the_environment_are_compared(copied, capsys, monkeypatch):
    monkeypatch.setenv("REWARD_WEIGHTS", "1,0,0")
    assert "reward.beta 0.5 -> 0.0" in refused(copied, capsys)


def test_a_named_preset_is_compared(copied, capsys):
    assert "preset cpu -> l4" in refused(copied, capsys, "--preset", "l4")


def budget(folder: Path, step: int) -> int:
    state = torch.load(folder / "checkpoints" / f"step_{step:06d}" / "trainer.pt", weights_only=True)
    return state["learner"]["microbatch_tokens"]


def test_another_microbatch_tokens_is_used_and_reported_as_not_exact(copied, capsys):
    assert train.main(["--resume", str(copied), "--steps", "4", "--learner.microbatch_tokens", "64"]) == 0
    assert "-> 64: changed since the start" in capsys.readouterr().err
    assert budget(copied, 4) == 64


def test_a_budget_that_was_halved_is_kept_until_the_setting_changes(copied):
    """Step 3 ran out of memory and halved the budget; the setting says the same as before, then something else."""
    folder = copied / "checkpoints" / "step_000003"
    state = torch.load(folder / "trainer.pt", weights_only=True)
    state["learner"]["microbatch_tokens"] = 100
    torch.save(state, folder / "trainer.pt")
    reseal(folder)
    assert train.main(["--resume", str(copied), "--steps", "4"]) == 0
    assert budget(copied, 4) == 100
    assert train.main(["--resume", str(copied), "--steps", "5", "--learner.microbatch_tokens", "300"]) == 0
    assert budget(copied, 5) == 300


def test_no_run_folder(tmp_path, capsys):
    assert train.main(["--resume", str(tmp_path / "nothing")]) == 2
    assert "config.yaml: No such file" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("- a list")
    assert train.main(["--resume", str(tmp_path)]) == 2
    assert "holds no settings" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("!!python/object/apply:os.system [touch ran]")
    assert train.main(["--resume", str(tmp_path)]) == 2  # read without running anything
    assert not Path("ran").exists()


def test_a_finished_run_is_left_alone(copied, capsys):
    capsys.readouterr()
    assert train.main(["--resume", str(copied)]) == 0
    assert "is finished: 3 steps" in capsys.readouterr().out


def test_auto_means_the_named_run_else_the_newest_else_a_new_one(tmp_path, three, capsys):
    out = tmp_path / "runs"
    assert train.main([*arguments(out, "first", steps=1), "--resume", "auto"]) == 0
    assert "no run in" in capsys.readouterr().err
    shutil.copytree(three, out / "second")
    stamp = (out / "second" / "metrics.jsonl").stat().st_mtime + 100
    os.utime(out / "second" / "metrics.jsonl", (stamp, stamp))
    (out / "third" / "completions").mkdir(parents=True)  # a start that was killed
    assert train.main(["--resume", "auto", "--out", str(out)]) == 0
    assert "second is finished" in capsys.readouterr().out
    assert train.main([*arguments(out, "first", steps=2), "--resume", "auto"]) == 0
    assert [row["step"] for row in rows(out / "first")] == [0, 1, 2]
    assert len(completions(out / "first")) == 2 + len({"problems", "accuracy"})


def test_a_moved_run_goes_on_where_it_is(copied, tmp_path):
    there = tmp_path / "else" / "where it is now"
    there.parent.mkdir()
    copied.rename(there)
    assert train.main(["--resume", str(there), "--steps", "4"]) == 0
    assert rows(there)[-1]["step"] == 4


def edit(folder: Path, **settings) -> None:
    """As with an editor: config.yaml has another value."""
    write_config(folder, changed(read_config(folder), settings))


def foreign(copied: Path) -> None:
    """The newest checkpoint comes from another run with the same settings."""
    assert train.main(arguments(copied.parent, "other", steps=3)) == 0
    shutil.rmtree(copied / "checkpoints")
    shutil.copytree(copied.parent / "other" / "checkpoints", copied / "checkpoints")


def cut(copied: Path) -> None:
    text = (copied / "config.yaml").read_text()
    (copied / "config.yaml").write_text(text[: len(text) // 2].rpartition("\n")[0] + "\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda copied: edit(copied, **{"learner.lr": 0.1}), "learner.lr 0.001 -> 0.1"),
        (foreign, ": run "),
        (cut, "was cut off"),
    ],
)
def test_it_goes_on_only_with_what_it_was(copied, capsys, change, message):
    change(copied)
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file() and path.name != ".lock"}
    assert train.main(["--resume", str(copied), "--steps", "4"]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("name", ["eval.test", "eval.data"])
def test_held_out_problems_that_were_edited_are_refused(tmp_path, capsys, name):
    """Figures before and after would be of different problems."""
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "1+1=", "answer": "2"}\n{"prompt": "1+2=", "answer": "3"}\n')
    assert train.main(arguments(tmp_path, "run", steps=1, **EVALUATED | {name: file})) == 0
    file.write_text('{"prompt": "2+2=", "answer": "4"}\n')
    assert train.main(["--resume", str(tmp_path / "run"), "--steps", "2"]) == 2
    assert f"problems of {'eval.test' if name == 'eval.test' else 'mine'} " in capsys.readouterr().err


def test_a_set_that_is_evaluated_for_the_first_time_has_no_earlier_problems(tmp_path):
    assert train.main(arguments(tmp_path, "run", steps=1, **EVALUATED | {"eval.every": 0})) == 0
    assert train.main(["--resume", str(tmp_path / "run"), "--steps", "2", "--eval.every", "1"]) == 0
    assert rows(tmp_path / "run")[-1]["eval/greedy_accuracy"] is not None


@pytest.mark.parametrize("settings", [{}, LORA], ids=["full", "lora"])
def test_another_base_model_under_the_same_name_is_refused(tmp_path, capsys, settings):
    model = shutil.copytree(SMALL["model"], tmp_path / "model")
    assert train.main(arguments(tmp_path, "run", **settings, model=model, steps=1)) == 0
    weights_file = model / "model.safetensors"
    data = bytearray(weights_file.read_bytes())
    data[-3] ^= 1
    weights_file.write_bytes(data)
    assert train.main(["--resume", str(tmp_path / "run"), "--steps", "2"]) == 2
    assert "was started with other settings: base " in capsys.readouterr().err


def test_rows_that_were_damaged_are_kept_aside_and_named(tmp_path, stopped, capsys):
    """A hole in row 1, zeros for row 2: rows 0 and 3 stay, nothing is silent, nothing is lost."""
    path = stopped / "metrics.jsonl"
    found = path.read_bytes().splitlines(keepends=True)
    damaged = [found[1][:20] + found[1][60:], bytes(512) + b"\n"]
    path.write_bytes(b"".join([found[0], *damaged, found[3]]))
    assert train.main(["--resume", str(stopped), "--steps", "4"]) == 0
    shown = capsys.readouterr().err
    assert "2 damaged lines moved to damaged_metrics.jsonl" in shown
    assert "metrics.jsonl has no row of step 1, 2" in shown
    assert (stopped / "damaged_metrics.jsonl").read_bytes() == b"".join(damaged)
    assert [row["step"] for row in rows(stopped)] == [0, 3, 4]
    assert path.read_bytes().splitlines(keepends=True)[:2] == [found[0], found[3]]


def test_a_row_that_names_no_step_is_damaged(stopped, capsys):
    path = stopped / "metrics.jsonl"
    found = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([found[0], found[1].replace(b'"step"', b'"stop"'), *found[2:]]))
    assert watch.main([str(stopped), "--every", "0"]) == 0
    assert train.main(["--resume", str(stopped), "--steps", "4"]) == 0
    assert "metrics.jsonl has no row of step 1" in capsys.readouterr().err
    assert [row["step"] for row in rows(stopped)] == [0, 2, 3, 4]


def test_the_rate_falls_to_the_end_so_a_linear_run_keeps_its_length(tmp_path, capsys):
    assert train.main(arguments(tmp_path, "run", steps=2, learner__schedule="linear")) == 0
    assert "steps may not change with learner.schedule linear" in refused(tmp_path / "run", capsys, "--steps", "3")


def test_a_path_that_ends_in_a_slash_has_a_name():
    """Otherwise two models would be the same one."""
    first, second = (decisive(Config(model=f"/models/{name}/", device="cpu"))["model"] for name in ("one", "two"))
    assert (first, second) == ("one", "two")


def test_code_of_a_model_is_trusted_on_the_command_line_only(copied):
    edit(copied, **{"policy.trust_remote_code": True})
    asked = resolve_run(Command(Config(), str(copied), False, {"policy.trust_remote_code": "true"}), "cpu")[0]
    not_asked = resolve_run(Command(Config(), str(copied), False, {}), "cpu")[0]
    assert (asked.policy.trust_remote_code, not_asked.policy.trust_remote_code) == (True, False)


def test_files_named_from_the_folder_of_the_start_are_found_from_another(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    shutil.copytree(SMALL["model"], tmp_path / "here" / "mine" / "model")
    monkeypatch.chdir(tmp_path / "here")
    assert train.main(arguments("runs", "run", steps=1, model="mine/model")) == 0
    monkeypatch.chdir(tmp_path / "there")
    assert train.main(["--resume", str(tmp_path / "here" / "runs" / "run"), "--steps", "2"]) == 0
    saved = read_config(tmp_path / "here" / "runs" / "run")
    monkeypatch.chdir(tmp_path / "here")
    assert train.main(["--resume", "auto", "--steps", "3", "--model", saved.model]) == 0


def test_a_name_stays_a_name_although_a_file_or_folder_is_called_so(tmp_path):
    """A prompt, a benchmark or a published set; what has to be a file is no folder, and the other way round."""
    named = {"prompt": "plain", "eval.data": ("math500", "gsm8k"), "eval.test": "fresh_arithmetic", "data": "dsr_sub"}
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    write_config(run, parse(named))
    for folder in ("plain", "math500", "gsm8k", "dsr_sub", "own.jsonl"):
        (tmp_path / folder).mkdir()
    (tmp_path / "fresh_arithmetic").touch()
    (tmp_path / "runs" / "plain").write_text("another prompt")
    assert {name: flat(read_config(run))[name] for name in named} == named
    of_others = {"data": "reasoning_gym:chain_sum?size=8", "eval.data": ("org/set:main:train",)}
    write_config(run, parse(of_others))
    for folder in ("reasoning_gym", "org/set"):
        (tmp_path / folder).mkdir(parents=True)
    assert {name: flat(read_config(run))[name] for name in of_others} == of_others

    placed = {"prompt": "mine.txt", "eval.data": ("own.jsonl", "sets/own"), "data": "sets::test", "model": "models/m"}
    write_config(run, parse(placed))
    (tmp_path / "mine.txt").touch()
    (tmp_path / "sets" / "own").mkdir(parents=True)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m").touch()
    config = read_config(run)
    assert (config.prompt, config.data) == (str(tmp_path / "mine.txt"), str(tmp_path / "sets::test"))
    assert config.eval.data == ("own.jsonl", str(tmp_path / "sets/own"))  # the first is a folder
    assert config.model == "models/m"  # a file


def test_auto_goes_by_what_the_run_wrote(tmp_path, three, capsys):
    """A report written into the older run, a dangling link in it and one beside it change nothing."""
    for name, age in (("old", 200), ("new", 100)):
        folder = Path(shutil.copytree(three, tmp_path / name))
        for path in (folder / "config.yaml", folder / "metrics.jsonl", *(folder / "checkpoints").iterdir()):
            os.utime(path, (path.stat().st_mtime - age,) * 2)
    (tmp_path / "old" / "report.html").write_text("a report")
    (tmp_path / "old" / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert train.main(["--resume", "auto", "--out", str(tmp_path)]) == 0
    assert f"{tmp_path / 'new'} is finished" in capsys.readouterr().out


# ---- what an editor does between start and --resume


def test_settings_that_an_editor_rewrote_are_the_same_settings(copied):
    """Comments added, keys sorted, quotes and flow style: the run's id is in none of it."""
    path = copied / "config.yaml"
    tree = yaml.safe_load(path.read_text())
    path.write_text("# my notes\n" + yaml.safe_dump(tree, sort_keys=True, default_flow_style=True))
    assert train.main(["--resume", str(copied), "--steps", "4"]) == 0


def own_reward(folder: Path, name: str, signal: str, factor: float) -> str:
    body = f"def f(completion, ground_truth):\n    return {{{signal!r}: {factor} * (len(completion) % 7)}}\n"
    (folder / f"{name}.py").write_text(body)
    return f"{name}:f"


@pytest.mark.parametrize(
    ("signal", "factor", "code", "message"),
    [
        ("odd", 1.0, 0, None),
        ("odd", 2.0, 0, "the reward's source was edited after step_000002"),
        ("even", 1.0, 2, "was started with other settings: signals ['odd'] -> ['even']"),
    ],
)
def test_a_reward_that_was_edited_is_reported(tmp_path, monkeypatch, signal, factor, code, message):
    """Other values are a line, other signals are refused; the same source is silent."""
    monkeypatch.syspath_prepend(tmp_path)
    name = own_reward(tmp_path, f"mine_{signal}_{int(factor)}", "odd", 1.0)
    assert start(arguments(tmp_path, "run", steps=2, reward__name=name), tmp_path / "log").wait() == 0
    own_reward(tmp_path, name.partition(":")[0], signal, factor)
    child = start(["--resume", str(tmp_path / "run"), "--steps", "3"], tmp_path / "again")
    assert child.wait() == code, child.output()
    assert (message or "") in child.output()
    assert ("was edited" in child.output()) is (factor == 2.0)
