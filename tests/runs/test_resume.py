"""--resume continues exactly, refuses what would be another run, and says what it does."""

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
from small_runs import SMALL, arguments, completions, rows, same_run, weights

import train
from grpo.arguments import Command
from grpo.config import Config, changed, fields
from grpo.run.resume import FREE, ROUNDING, read_config, settle

LORA = {"policy.lora_rank": 4, "policy.lora_alpha": 8, "learner.skip_zero_variance": "false", "learner.kl_coef": 0.01}
HARD = {
    "learner.minibatches_per_rollout": 2,
    "learner.warmup": 4,
    "policy.dtype": "bfloat16",
    "learner.skip_zero_variance": "false",
    "learner.kl_coef": 0.01,
    "learner.entropy_coef": 0.001,
    "rollout.mismatch_limit": 1,
    "reward.name": "random",
}
EVALUATED = {
    "eval.every": 3,
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
    "settings", [{}, LORA, HARD, EVALUATED], ids=["full", "lora", "bf16, 2 updates, random", "eval"]
)
def test_three_and_three_are_six(tmp_path, settings):
    """rows, texts, weights, moments, masters and random states, bit for bit"""
    assert train.main(arguments(tmp_path, "six", **settings)) == 0
    random.seed(), np.random.seed(), torch.seed()  # another process would start with other random states
    assert train.main(arguments(tmp_path, "both", **settings, steps=3, checkpoint__every=2)) == 0
    random.seed(), np.random.seed(), torch.seed()
    assert train.main(["--resume", str(tmp_path / "both"), "--steps", "6"]) == 0
    same_run(tmp_path / "six", tmp_path / "both", 6)
    kept = sorted((tmp_path / "both" / "checkpoints").iterdir())
    start, end = weights(kept[0]), weights(kept[-1])
    assert not all(torch.equal(start[name], end[name]) for name in start)  # or equality would say nothing
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("six", "both")]
    assert summaries[0] | {"seconds": 0} == summaries[1] | {"seconds": 0}
    assert yaml.safe_load((tmp_path / "both" / "config.yaml").read_text())["steps"] == 6


def test_what_was_written_after_the_checkpoint_is_done_again(three, stopped):
    """As after a power cut: rows and texts of steps 2 and 3 are there, the checkpoint is of step 1."""
    shutil.rmtree(stopped / "checkpoints")
    assert train.main(arguments(stopped.parent, "one", steps=1)) == 0
    shutil.copytree(stopped.parent / "one" / "checkpoints", stopped / "checkpoints")
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "reward/mean": 0.1')  # cut off in the middle
    (stopped / "completions" / "step_000009.jsonl").write_text("left over\n")
    assert train.main(["--resume", str(stopped)]) == 0
    same_run(three, stopped, 3)


def test_without_a_whole_checkpoint_it_starts_again(three, stopped, capsys):
    shutil.rmtree(stopped / "checkpoints")
    assert train.main(["--resume", str(stopped)]) == 0
    assert "no whole checkpoint: starting again from step 1" in capsys.readouterr().err
    same_run(three, stopped, 3)


def test_a_damaged_checkpoint_is_passed_over(three, stopped, capsys):
    path = stopped / "checkpoints" / "step_000003" / "trainer.pt"
    path.write_bytes(path.read_bytes()[:-100])
    assert train.main(["--resume", str(stopped)]) == 0
    assert re.search(r"step_000003 is damaged \(trainer.pt has \d+ bytes instead of \d+\)", capsys.readouterr().err)
    same_run(three, stopped, 3)


def test_a_row_that_waits_for_its_evaluation_gets_it(tmp_path):
    """The checkpoint of step 3 exists, its row does not: the run ended in the evaluation."""
    assert train.main(arguments(tmp_path, "run", **EVALUATED, steps=3)) == 0
    whole, folder = rows(tmp_path / "run"), tmp_path / "run"
    state = torch.load(folder / "checkpoints" / "step_000003" / "trainer.pt", weights_only=True)
    assert state["row"] is None
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    unfinished = {k: v for k, v in json.loads(lines[-1]).items() if not k.startswith("eval/")} | {
        "completion/tokens": 9
    }
    torch.save(state | {"row": unfinished}, folder / "checkpoints" / "step_000003" / "trainer.pt")
    reseal(folder / "checkpoints" / "step_000003")
    (folder / "metrics.jsonl").write_text("".join(lines[:-1]))
    (folder / "summary.json").unlink()
    assert train.main(["--resume", str(folder)]) == 0
    assert rows(folder) == whole
    assert "eval/sampled_accuracy" in rows(folder)[-1]


def reseal(checkpoint: Path) -> None:
    from grpo.run.checkpoint import _seal

    (checkpoint / "manifest.json").unlink()
    _seal(checkpoint)


def refused(folder: Path, capsys, *words: str) -> str:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}
    capsys.readouterr()
    assert train.main(["--resume", str(folder), *words]) == 2
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"} == before
    return capsys.readouterr().err


def test_other_settings_are_refused_and_listed(copied, capsys):
    message = refused(copied, capsys, "--steps", "5", "--learner.lr", "0.5", "--rollout.group", "16")
    assert "learner.lr 0.001 -> 0.5, rollout.group 4 -> 16" in message


def test_every_setting_is_either_free_or_refused():
    assert fields().keys() >= FREE
    assert ROUNDING <= FREE
    for name in ("model", "data", "prompt", "seed", "policy.lora_rank", "rollout.temperature", "reward.name"):
        assert name not in FREE


def test_steps_do_not_shrink(copied, capsys):
    assert "may grow, not shrink to 2" in refused(copied, capsys, "--steps", "2")


def test_steps_of_a_linear_schedule_stay(tmp_path, capsys):
    assert train.main(arguments(tmp_path, "run", steps=1, learner__schedule="linear")) == 0
    assert "learner.schedule linear" in refused(tmp_path / "run", capsys, "--steps", "5")


def test_a_quantisation_left_to_the_plan_is_what_the_run_has(copied):
    saved = changed(read_config(copied), {"policy.lora_rank": 4})
    (copied / "config.yaml").write_text(yaml.safe_dump(saved.model_dump()))
    left_open = Command(Config(), str(copied), False, {"policy.quant": "auto"})
    assert settle(left_open, "cpu")[0].policy.quant == "none"


def test_reward_weights_of_the_environment_are_compared(copied, capsys, monkeypatch):
    monkeypatch.setenv("REWARD_WEIGHTS", "1,0,0")
    assert "reward.beta 0.5 -> 0.0" in refused(copied, capsys)


def test_a_named_preset_is_compared(copied, capsys):
    message = refused(copied, capsys, "--preset", "l4")
    assert "model " in message
    assert "policy.lora_rank 0 -> 64" in message


def test_a_smaller_token_budget_goes_on_and_says_that_it_is_not_exact(copied, capsys):
    assert train.main(["--resume", str(copied), "--steps", "4", "--learner.token_budget", "64"]) == 0
    assert "learner.token_budget differs" in capsys.readouterr().err
    assert rows(copied)[-1]["step"] == 4


def test_an_old_name_in_a_run_folder_is_named(copied, capsys):
    text = (copied / "config.yaml").read_text().replace("mismatch_limit", "gap_limit")
    (copied / "config.yaml").write_text(text)
    line = f"{copied / 'config.yaml'}: rollout.gap_limit is now called rollout.mismatch_limit"
    assert line in refused(copied, capsys)


def test_no_run_folder(tmp_path, capsys):
    assert train.main(["--resume", str(tmp_path / "nothing")]) == 2
    assert "has no config.yaml" in capsys.readouterr().err
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
    (out / ".third.starting-1").mkdir()
    assert train.main(["--resume", "auto", "--out", str(out)]) == 0
    assert "second is finished" in capsys.readouterr().out
    assert train.main([*arguments(out, "first", steps=2), "--resume", "auto"]) == 0
    assert [row["step"] for row in rows(out / "first")] == [0, 1, 2]
    assert len(completions(out / "first")) == 2


def test_a_moved_run_goes_on_where_it_is(copied, tmp_path):
    there = tmp_path / "else" / "where"
    there.parent.mkdir()
    copied.rename(there)
    assert train.main(["--resume", str(there), "--steps", "4"]) == 0
    assert rows(there)[-1]["step"] == 4
    assert yaml.safe_load((there / "config.yaml").read_text())["name"] == "where"
