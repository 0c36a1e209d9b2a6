"""Arguments are answered before torch is imported; a file of settings lies between the preset and the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from grpo.cli import parse_args
from grpo.errors import UserError
from grpo.settings import build

REPO = Path(__file__).resolve().parent.parent


def train(tmp_path, torch: str, *words: str, **options) -> subprocess.Popen:
    """train.py, started where `import torch` runs these lines instead."""
    (tmp_path / "torch.py").write_text(torch)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    return subprocess.Popen(
        [sys.executable, "train.py", *words], cwd=REPO, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--preset", "cpu", "--help"], 0, "those of --preset cpu"),
        (["--preset", "cpu", "--steps", "ten"], 2, "steps is 'ten'"),
    ],
)
def test_help_and_mistakes_need_no_torch(tmp_path, words, code, said):
    process = train(tmp_path, "raise SystemExit('torch was imported')", *words)
    out, err = process.communicate()
    assert process.returncode == code
    assert said in " ".join((out if code == 0 else err).split())
    assert code == 0 or err.count("\n") == 1


def test_ctrl_c_while_torch_is_imported_leaves_no_traceback(tmp_path):
    process = train(
        tmp_path, "open('imported', 'w'); import time; time.sleep(60)".replace("imported", str(tmp_path / "imported"))
    )
    while not (tmp_path / "imported").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.communicate() == ("", "")
    assert process.returncode == -signal.SIGINT


# ---- a file of settings


def write(tmp_path, content: str | bytes) -> str:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def test_a_file_lies_between_the_preset_and_the_command_line(tmp_path, monkeypatch):
    """l4 has lr 1e-5 and group 8. The file changes lr and steps, the command line changes steps again."""
    path = write(tmp_path, "\ufeffsteps: 7\nlearner:\n  lr: 2e-4\neval:\n  limit: none\nreward: {alpha: 3}\n")
    config = parse_args(["--preset", "l4", "--config", path, "--steps", "9"]).config
    assert (config.learner.lr, config.steps, config.rollout.group_size, config.eval.limit) == (2e-4, 9, 8, None)
    assert (config.preset, config.reward.alpha) == ("l4", 3)
    monkeypatch.setenv("REWARD_WEIGHTS", "2,1,0")
    assert parse_args(["--preset", "l4", "--config", path]).config.reward.alpha == 2


def test_a_number_in_a_file_is_decimal(tmp_path):
    """To YAML 1.1, 010 is 8 and 2e-4 is text."""
    config = parse_args(["--config", write(tmp_path, "steps: 010\nseed: 10\nlearner: {lr: 2e-4}\n")], "cpu").config
    assert (config.steps, config.seed, config.learner.lr) == (10, 10, 2e-4)


def test_the_settings_of_a_run_are_such_a_file(tmp_path):
    whole = build("l4", {"learner.lr": "3e-5"})
    path = write(tmp_path, yaml.safe_dump(whole.model_dump()))
    assert parse_args(["--config", path], "cpu").config == whole
    assert parse_args(["--config", path, "--preset", "h100"], "cpu").config.preset == "h100"


def test_a_run_that_is_continued_takes_the_file_as_if_it_were_typed(tmp_path):
    path = write(tmp_path, "steps: 7\n")
    assert parse_args(["--resume", "runs/x", "--config", path], "cpu").overrides == {"steps": 7}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no settings"),
        ("# nothing\n", "holds no settings"),
        ("null", "holds no settings"),
        ("- steps", "holds no settings"),
        ("steps: 2\nlearner:\n", "learner: is empty"),
        ("learner: 3\n", "learner is a section and not 3; set learner.lr"),
        ("learner:\n  lrr: 3\n", "unknown setting learner.lrr; did you mean learner.lr?"),
        ("steps: 2\nmodel: [a]\n", "model is ['a']; it must be a valid string"),
        ("mode: [quick]\n", "mode is ['quick']; it must be"),
        ("learner:\n  lr: fast\n", "learner.lr is 'fast'; it must be a valid number"),
        ("steps: 1\nseed: 2\nsteps: 3\n", "line 3: steps is set twice"),
        ("rollout: {group_size: 2}\nsteps: 1\nrollout: {sleep: false}\n", "line 3: rollout is set twice"),
        ("seed: 1\nsteps: 1:30\n", "steps is '1:30'; it must be a valid integer"),
        ("seed: 1\nlearner: {lr: 1:30.5}\n", "learner.lr is '1:30.5'; it must be a valid number"),
        ("num_generations: 8\n", "num_generations is rollout.group_size here"),
        ("name: no\n", "name is False; it must be a valid string"),
        ("? [a, b]\n: 3\n", "line 1: found unhashable key"),
        ("learners:\n  lr: 3\n", "unknown setting learners.lr; did you mean learner.lr?"),
        ("lr: 3\n", "unknown setting lr; did you mean learner.lr?"),
        ("steps: 1\nseed: [1\n", "line 3"),
        ("steps: 1\nname: !!python/object/apply:os.system [touch ran]\n", "line 2"),
        ("name: 2026-13-45\n", "is not YAML"),
        ("[" * 3000, "is not YAML"),
        (b"name: \xff\xfe", "is not YAML: 'utf-8' codec"),
        (b"name: \x00", "is not YAML"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line_that_names_it(tmp_path, content, message):
    with pytest.raises(UserError) as raised:
        parse_args(["--config", write(tmp_path, content)], "cpu")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "mine.yaml" in str(raised.value)


def test_a_value_that_refers_to_itself_is_shown_in_part(tmp_path):
    chain = ", ".join(f"&{b} [*{a}, *{a}, *{a}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    path = write(tmp_path, f"steps: [&a [x, x, x], {chain}]\n")  # written out: 3 ** 9 times x
    with pytest.raises(UserError) as raised:
        parse_args(["--config", path], "cpu")
    assert len(str(raised.value)) < 5000
