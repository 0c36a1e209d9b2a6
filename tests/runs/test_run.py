"""The run folder and the terminal: all that a run leaves behind, and nothing where the input is bad."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import termios
from pathlib import Path

import pytest
import torch
import yaml
from small_runs import REPO, SMALL, arguments, rows, start

import train
from grpo.environment import versions
from grpo.errors import UserError
from grpo.run import clock, files
from grpo.run.display import before_and_after, figures, good_and_bad, next_commands
from grpo.run.files import read_completions, read_rows
from grpo.settings import build
from grpo.terminal import escape_control

FULL = {
    "steps": 2,
    "reward.name": "multi_signal",
    "eval.every": 1,
    "eval.limit": 2,
    "eval.data": str(Path(SMALL["data"]).with_name("validation.parquet")),
    "eval.test": str(Path(SMALL["data"]).with_name("test.parquet")),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A finished run with everything switched on."""
    out = tmp_path_factory.mktemp("runs")
    assert train.main(arguments(out, "run", **FULL)) == 0
    return out / "run"


def test_everything_is_there(folder):
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.yaml", "versions.json", "metrics.jsonl", "completions", "checkpoints", "summary.json"}
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["name"] == "run"
    assert config["learner"]["clip_low"] == 0.2  # resolved: also what nobody set
    found = json.loads((folder / "versions.json").read_text())
    assert found["torch"] == torch.__version__
    assert {"python", "transformers", "cpu", "cpu_cores", "os"} <= found.keys()
    if (REPO / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", found["commit"])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary.keys() == {"before", "after", "steps", "seconds", "best", "limit"}
    assert summary["steps"] == 2


def test_peak_memory_is_the_most_at_the_end_of_a_phase(monkeypatch):
    in_use = iter([3.0, 7.0, 5.0, 4.0])  # after the rollout, after learning, at the first reading, at the second
    monkeypatch.setattr(clock, "memory_in_use_gib", lambda: next(in_use))
    own = clock.Clock()
    with own("rollout"):
        pass
    own.read()  # seconds are read in between
    with own("learn"):
        pass
    assert (own.read_peak(), own.read_peak()) == (7.0, 4.0)


def test_a_row_a_step_and_every_completion(folder):
    rows = read_rows(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    for step in (1, 2):
        completions = read_completions(folder, step)
        assert len(completions) == 2 * 4  # problems x group
        row = rows[step]
        assert row["reward/mean"] == pytest.approx(sum(c["reward"] for c in completions) / 8)
        assert row["completion/length_mean"] == sum(c["tokens"] for c in completions) / 8
        tokens = sum(c["tokens"] for c in completions)
        assert row["speed/tokens_per_second"] == pytest.approx(tokens / (row["time/step"] - row["time/eval"]))
        assert row["time/step"] == pytest.approx(
            sum(row[f"time/{phase}"] for phase in ("rollout", "reward", "learn", "sync", "eval", "other"))
        )
        assert 0.05 < row["memory/peak_gib"] < 100
        for completion in completions:
            assert set(completion["signals"]) == {"verify", "format", "reflect"}
            assert "\n" not in json.dumps(completion)


def test_every_metric_is_documented_once_and_every_documented_one_exists(folder):
    text = (REPO / "docs" / "metrics.md").read_text()
    documented = re.findall(r"^\| `([a-z_/]+)` \|", text, re.MULTILINE)
    assert len(documented) == len(set(documented))
    written = {name for row in read_rows(folder / "metrics.jsonl") for name in row}
    elsewhere = {"groups/further_draws", "eval/sampled_mean_score", "eval/greedy_mean_score"}  # other settings, tasks
    assert written | elsewhere == set(documented)


def test_the_history_of_accuracies_has_the_groups_that_were_replaced(tmp_path):
    """Every group is all wrong: two are drawn, then two more in each of two rounds; two stay."""
    flat = {"data": REPO / "data" / "arithmetic" / "16_r8.parquet", "reward__name": "verify_only", "steps": 1}
    assert train.main(arguments(tmp_path, "run", **flat, rollout__resample_flat_groups=2)) == 0
    (history,) = read_rows(tmp_path / "run" / "accuracy.jsonl")
    assert list(history["accuracy"].values()) == [0.0] * 6
    kept = {completion["problem"] for completion in read_completions(tmp_path / "run", 1)}
    assert len(kept) == 2
    assert kept < set(map(int, history["accuracy"]))
    row = read_rows(tmp_path / "run" / "metrics.jsonl")[-1]
    assert row["groups/further_draws"] == 2


def test_the_best_and_the_newest_checkpoints_stay(folder):
    best = json.loads((folder / "summary.json").read_text())["best"]
    rows = read_rows(folder / "metrics.jsonl")
    assert best["eval/sampled_accuracy"] == max(row["eval/sampled_accuracy"] for row in rows[1:])
    assert (folder / "checkpoints" / f"step_{best['step']:06d}").is_dir()


def test_one_line_a_step_where_there_is_no_terminal(tmp_path, capsys):
    assert train.main(arguments(tmp_path, "run", steps=2)) == 0
    shown = capsys.readouterr()
    lines = [line for line in shown.out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["0/2", "1/2", "2/2"]
    assert re.search(r"reward [\d.]+  spread [\d.]+  tokens [\d.]+  tokens/s \S+  [\d.]+ s$", lines[1])
    assert "\r" not in shown.err + shown.out  # no bar
    assert "of the step" not in shown.err + shown.out  # no samples


@pytest.mark.parametrize("quiet", [False, True])
def test_a_bar_and_samples_on_a_terminal(tmp_path, quiet):
    """In a real pseudo-terminal: the bar, and every show_every steps one good and one bad completion."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))

    def on_terminal() -> None:
        os.dup2(theirs, 1)
        os.dup2(theirs, 2)

    args = arguments(tmp_path, "run", steps=2, show_every=2, quiet=str(quiet).lower())
    child = start(args, tmp_path / "log", on_terminal)
    os.close(theirs)
    shown = b""
    while chunk := read(ours):
        shown += chunk
    assert child.wait() == 0, shown
    text = shown.decode(errors="replace")
    assert ("best of step 2: reward" in text) is not quiet
    assert ("worst of step 2: reward" in text) is not quiet
    assert ("step 2/2 [" in text) is not quiet  # the counter and times
    assert ("step 2/2  " in text) is quiet


def read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux's way to say that the other end is closed
        return b""


EVIL = "\x1b]0;owned\x07\x1b[2J\rright\x08\x9b31m\u202egnorw\u2028\ud800\x00<script>alert(1)</script>"


def test_nothing_a_model_writes_steers_the_terminal():
    shown = escape_control(EVIL)
    assert re.sub(r"[\x20-\x7e]", "", shown) == ""  # only plain characters are left
    assert "\\x1b[2J\\rright" in shown
    assert "\\u202e" in shown
    assert escape_control("Größe ≤ 5\n\tπ 数") == "Größe ≤ 5\n\tπ 数"


def test_samples_are_the_best_and_the_worst_and_harmless(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    same = {"step": 1, "ground_truth": EVIL, "signals": {"verify": 0.0}, "answer": EVIL, "tokens": 3}
    same["finish_reason"] = "stop"
    rows = [
        same | {"reward": reward, "completion": text}
        for reward, text in ((0.5, "middle"), (2.0, EVIL), (0.0, "lowest" * 1000))
    ]
    shown = good_and_bad(rows)
    best, worst = shown.split("--- worst")
    assert "reward 2" in best
    assert "<script>" in best
    assert "\x1b" not in shown
    assert "reward 0" in worst
    assert "characters] ..." in worst  # cut, or one completion fills the terminal
    assert len(worst) < 2000
    assert all(len(line) <= 80 for line in shown.splitlines())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = good_and_bad(rows)
    assert re.findall(r"\x1b\[\d+m", coloured) == ["\x1b[32m", "\x1b[0m", "\x1b[31m", "\x1b[0m"]  # ours alone
    assert re.sub(r"\x1b\[\d+m", "", coloured) == shown


def test_the_line_has_the_parts_of_the_reward():
    row = {"reward/mean": 0.5, "signal/verify": 1.0, "signal/verify_group_std": 9.0, "step": 3, "other": 1}
    assert figures(row) == ["reward 0.5", "verify 1"]


def test_figures_of_a_few_problems_are_marked():
    row = {"eval/sampled_accuracy": 0.5, "eval/greedy_accuracy": 1.0}
    assert figures(row, limit=8) == ["sampled* 0.5", "greedy* 1"]
    assert figures(row) == ["sampled 0.5", "greedy 1"]
    summary = {"before": {"greedy_accuracy": 0.0}, "after": {"greedy_accuracy": 1.0}, "limit": 8}
    marked, note = before_and_after(summary).splitlines()
    assert marked == "test greedy accuracy*         0.0% -> 100.0%"
    assert note == "*: smoke figures, of at most the first 8 problems of each file (eval.limit)"
    assert before_and_after(summary | {"limit": None}) == "test greedy accuracy          0.0% -> 100.0%"


def test_a_mean_score_is_no_percentage():
    summary = {"before": {"greedy_mean_score": 0.25}, "after": {"greedy_mean_score": 0.7067}, "limit": None}
    assert before_and_after(summary) == "test greedy mean score       0.250 -> 0.707"


def test_the_commands_after_a_run_are_those_that_it_can_take():
    """A linear schedule forbids more steps; without held-out sets eval.py needs a benchmark."""

    def commands(**changes: object) -> str:
        return next_commands(Path("runs/x"), build("cpu", {key.replace("__", "."): changes[key] for key in changes}))

    assert re.search(r"^continue .* --resume \S+ --steps 120$", commands(), re.MULTILINE)
    assert commands(learner__schedule="linear") == commands().rpartition("\n")[0]
    bare = commands(eval__data="none", eval__test="none", eval__every=0)
    assert re.search(r"^evaluate .* --run \S+ --bench math500$", bare, re.MULTILINE)
    assert "--bench" not in commands()
    trusted = commands(policy__trust_remote_code=True)
    assert re.search(r"^evaluate .* --trust-remote-code$", trusted, re.MULTILINE)
    assert re.search(r"^continue .* --policy.trust_remote_code true --steps 120$", trusted, re.MULTILINE)


def test_the_printed_command_continues_a_run_from_the_folder_of_its_reward(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "of_this_run.py").write_text("def f(completion, ground_truth): return {'length': len(completion)}\n")
    assert train.main(arguments("runs", "run", steps=1, reward__name="of_this_run:f")) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("continue ")
    subprocess.run(line.removeprefix("continue ").strip(), shell=True, check=True)
    assert [row["step"] for row in rows(tmp_path / "runs" / "run")] == [0, 1, 2]


def test_bad_rows_are_in_the_folder_and_one_row_fills_a_step(tmp_path, capsys):
    """1 of 2 rows is left out; the other is drawn 4 times, each time with completions of its own."""
    good = '{"question": "1+1=?", "answer": "2", "level": 3}'
    (tmp_path / "rows.jsonl").write_text(good + '\n{"question": "1+1=?"}\n')
    changes = {"data": tmp_path / "rows.jsonl", "rollout.prompts_per_step": 4, "bad_rows.limit": 0.5, "steps": 1}
    args = arguments(tmp_path, "run", **{key.replace(".", "__"): value for key, value in changes.items()})
    assert train.main(args) == 0
    assert "1 of 2 rows cannot be used (line 2: no ground truth" in capsys.readouterr().err
    (bad,) = map(json.loads, (tmp_path / "run" / "bad_rows.jsonl").read_text().splitlines())
    assert (bad["place"], bad["row"]) == ("line 2", {"question": "1+1=?"})
    assert json.loads((tmp_path / "run" / "problems.jsonl").read_text())["extra"] == {"level": 3}
    groups = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert groups["completion/unique"] > 0.5  # were the groups copies, at most a quarter


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": str(REPO / "docs")}, "docs"),
        ({"data": "missing.jsonl"}, "missing.jsonl"),
        ({"rollout.group_size": 1}, "rollout.group_size is '1'"),
        ({"rollout.max_prompt_tokens": 1}, "max_prompt_tokens 1"),
        ({"reward.name": "nonsense"}, "nonsense"),
        ({"device": "cuda"}, "no CUDA device"),
    ],
)
def test_bad_input_writes_nothing(tmp_path, capsys, changed, message):
    if "device" in changed and torch.cuda.is_available():
        pytest.skip("here it is good input")
    args = arguments(tmp_path / "runs", "run", **{key.replace(".", "__"): value for key, value in changed.items()})
    assert train.main(args) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert len([line for line in shown.splitlines() if line.startswith("error: ")]) == 1
    assert not (tmp_path / "runs").exists()


def test_an_existing_folder_is_never_written_over(folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert train.main(arguments(folder.parent, "run", **FULL)) == 2
    assert "exists; choose another --name, or continue it with --resume" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_the_versions_of_a_resume_are_kept_beside_those_of_the_start(folder, capsys):
    (folder / "versions.json").write_text('{"torch": "1.0"}')
    assert train.main(["--resume", str(folder), "--steps", "3"]) == 0
    assert f"changed since the start of the run, so figures may differ: torch 1.0 -> {torch.__version__}" in (
        capsys.readouterr().err
    )
    assert (folder / "versions.json").read_text() == '{"torch": "1.0"}'
    assert json.loads((folder / "versions_after_000002.json").read_text()) == versions()


def test_half_a_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step"')
    assert read_rows(path) == [{"step": 1}, {"step": 2}]
    path.write_bytes(b'{"step": 1}\n\x00\x00\x00\n{"step": 3}\n')  # a block that never reached the disk
    damaged = []
    assert read_rows(path, damaged) == [{"step": 1}, {"step": 3}]
    assert damaged == [b"\x00\x00\x00\n"]


def test_no_link_is_written_through(tmp_path):
    """In a folder that somebody sent: links that have the names of our files, and of what they are written as first."""
    target = tmp_path / "precious"
    target.write_text("mine")
    for name in ("report.html", ".report.html.partial", "metrics.jsonl", ".lock"):
        (tmp_path / name).symlink_to(target)
    files.write(tmp_path / "report.html", "the report")
    assert (tmp_path / "report.html").read_text() == "the report"
    assert not (tmp_path / "report.html").is_symlink()
    with pytest.raises(UserError, match="symbolic links"):
        files.append(tmp_path / "metrics.jsonl", "a row")
    with pytest.raises(UserError, match="cannot write to"):
        files.lock(tmp_path)
    assert target.read_text() == "mine"


def test_what_a_killed_start_left_is_in_nobodys_way_and_other_folders_are_kept(tmp_path, capsys):
    (tmp_path / ".run.0123abcd.partial" / "completions").mkdir(parents=True)
    (tmp_path / ".run.0123abcd.partial" / "config.yaml").write_text("half")
    (tmp_path / "mine" / "completions").mkdir(parents=True)
    (tmp_path / "mine" / "completions" / "notes.txt").write_text("mine")
    assert train.main(arguments(tmp_path, "run", steps=1)) == 0
    assert train.main(arguments(tmp_path, "mine", steps=1)) == 2
    assert "mine exists; choose another --name" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").rglob("*")] == ["completions", "notes.txt"]


@pytest.mark.parametrize("name", ["..", "x" * 300, "a/b", ".hidden"])
def test_a_name_that_is_none(tmp_path, capsys, name):
    assert train.main(arguments(tmp_path / "runs", name)) == 2
    assert capsys.readouterr().err.startswith("error: name is ")
    assert not (tmp_path / "runs").exists()


def test_a_reward_in_the_current_folder_is_found_and_a_missing_one_is_refused_before_the_model_is_loaded(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lies_here.py").write_text("def length(completion, ground_truth): return {'length': len(completion)}\n")
    assert train.main(arguments(tmp_path, "run", steps=1, reward__name="lies_here:length")) == 0
    capsys.readouterr()
    assert train.main(arguments(tmp_path, "other", steps=1, reward__name="lies_there:length")) == 2
    shown = capsys.readouterr()
    assert "No module named 'lies_there'; the file must lie in the current folder" in shown.err
    assert "model proved" not in shown.out + shown.err
