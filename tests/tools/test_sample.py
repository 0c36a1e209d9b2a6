"""python -m tools.sample: base and trained model side by side, their signals, and nothing that steers the terminal."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from rich.table import Table

from grpo.settings import parse
from grpo.types import Completion
from rewards import make_reward
from tools.sample import main, side_by_side

BASE = Path(__file__).resolve().parents[2] / "data" / "tiny-base"


@pytest.fixture
def run(tmp_path) -> Path:
    """A run whose only checkpoint is the base."""
    config = parse({"model": str(BASE), "prompt": "plain", "rollout": {"max_new_tokens": 40}})
    folder = tmp_path / "demo"
    shutil.copytree(BASE, folder / "checkpoints" / "step_000003")
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return folder


def test_the_same_weights_say_the_same_on_both_sides(run, capsys):
    """Also in the order of the seeds: a completion follows from seed and place, not from the model's side."""
    assert main([str(run), "567+876=?", "--truth", "1443", "--n", "3"]) == 0
    page, reports = capsys.readouterr()
    assert reports.count("model proved") == 2
    lines = page.splitlines()
    assert lines[0].split() == ["base", "|", "step", "3"]
    cells = [line.split(" | ") for line in lines[1:] if " | " in line]
    left, right = ("".join(side).replace(" ", "") for side in zip(*cells, strict=True))  # wrapped at different places
    assert left == right
    assert left.count("tokens") == 3
    assert "verify1format1reflect1" in left  # the base knows sums


def test_signals_are_coloured_and_what_a_model_writes_is_not_obeyed():
    reward = make_reward("multi_signal")
    texts = ["\x1b[31mred\r[bold]", "<think>1</think>\\boxed{2}<reflection>correct</reflection>"]
    rows = [(text, reward(text, "2"), Completion((1,) * 5, (0.0,) * 5, "length")) for text in texts]
    reward.close()
    page = shown(side_by_side([("base", rows)], graded=True), "standard")
    assert "\\x1b[31mred\\r" in page
    assert "\x1b[31mverify 0" in page  # red
    assert "\x1b[32mverify 1" in page  # green
    assert "\x1b[31mred" not in page
    assert "[bold]" in page  # rich's markup in a completion is text
    plain = shown(side_by_side([("base", rows)], graded=False), None)
    assert "\x1b" not in plain
    assert "verify" not in plain  # without a truth there is nothing to verify


def shown(table: Table, colours: str | None) -> str:
    console = Console(width=60, highlight=False, color_system=colours, force_terminal=colours is not None)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["./nowhere", "1+1"], "there is no folder ./nowhere"),
        (["RUN", "1+1", "--n", "0"], "--n is 0; it must be from 1 to 1000"),
        (["RUN", "1+1", "--temperature", "nan"], "--temperature is nan"),
        (["RUN", "1+1", "--prompt", "nowhere"], "no prompt called 'nowhere'"),
    ],
)
def test_bad_input_is_one_line(run, capsys, words, said):
    assert main([str(run) if word == "RUN" else word for word in words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
