"""The display on a terminal: at any width, with its reader gone, when it is closed; and the alarms."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from small_runs import REPO, SMALL, arguments, rows, start, wait_until

import train
from grpo.run import display
from grpo.run.alarms import ENOUGH, WINDOW, Alarms

EVALUATED = {
    "reward.name": "multi_signal",
    "eval.every": 2,
    "eval.limit": 2,
    "eval.data": str(Path(SMALL["data"]).with_name("validation.parquet")),
    "show_every": 99,
}


@pytest.mark.parametrize("columns", [80, 200])
def test_held_out_figures_show_at_any_width_and_no_word_is_broken(tmp_path, monkeypatch, columns):
    """In a real pseudo-terminal. The progress is one line, rewritten: it never runs over, and its figures are whole.

    Its width is that of stderr's terminal: stdout may be a file.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    monkeypatch.setenv("COLUMNS", "60")  # as pytest-xdist or a shell sets it: it may be of another terminal
    child = start(arguments(tmp_path, "run", **EVALUATED, steps=5), tmp_path / "log", lambda: os.dup2(theirs, 2))
    os.close(theirs)
    shown = b""
    while chunk := read(ours):
        shown += chunk
    assert child.wait() == 0, shown
    lines = [line.strip() for line in re.split(r"[\r\n]+", shown.decode()) if re.match(r"step \d+/5 \[", line)]
    assert lines
    assert max(map(len, lines)) <= columns
    after = [line for line in lines if not line.startswith("step 0/5")]
    for line in after:  # also those of steps 3 and 5, in which nothing was evaluated: the figures of the last time
        assert re.fullmatch(
            r"step \d/5 \[\d\d:\d\d<[\d:?]+, sampled\* [\d.]+  greedy\* [\d.]+  reward [\d.]+(  [\w/]+ [\d.,]+)*\]?",
            line.replace("], ", ", "),
        ), line
    if columns == 200:
        assert "tokens/s" in after[-1]
    assert "\nlook       python -m grpo.report" in child.output()


def read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux's way to say that the other end is closed
        return b""


def test_the_first_phase_of_the_start_is_named_at_once(monkeypatch):
    """Not a clock beside nothing, until the line is drawn again a second later."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    monkeypatch.setattr("sys.stderr", os.fdopen(theirs, "w"))
    progress = display.Progress(steps=3, quiet=False)
    progress.phase("loading the model", lambda: "12/62")
    progress.close()
    sys.stderr.close()  # so that reading ends
    assert b"loading the model 12/62 00:00" in b"".join(iter(lambda: read(ours), b""))


def closed_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("output", [closed_pipe, lambda: os.open("/dev/full", os.O_WRONLY)], ids=["| head", "full"])
def test_output_that_is_lost_ends_nothing(tmp_path, output):
    """`| head -1` and `> /dev/full`: the run continues to its end, without a traceback."""

    def lost() -> None:
        os.dup2(output(), 1)

    child = start(arguments(tmp_path, "run", steps=2), tmp_path / "log", lost)
    assert child.wait() == 0, child.output()
    assert "Traceback" not in child.output()
    assert len(rows(tmp_path / "run")) == 3


def test_a_lost_connection_saves_the_last_step(tmp_path):
    """The terminal goes away: SIGHUP comes, and every further write to it fails."""
    ours, theirs = pty.openpty()

    def on_terminal() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
        os.dup2(theirs, 1)
        os.dup2(theirs, 2)
        os.close(ours)
        os.close(theirs)

    args = arguments(tmp_path, "run", steps=100000, checkpoint__every=0)
    child = start(args, tmp_path / "log", on_terminal)
    os.close(theirs)
    os.set_blocking(ours, False)
    wait_until(lambda: read(ours) and (tmp_path / "run" / "completions" / "step_000003.jsonl.gz").exists(), child)
    os.close(ours)
    assert child.wait() == 128 + signal.SIGHUP
    saved = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert len(saved) == 1
    assert saved[0] >= "step_000002"


def test_nohup_is_respected(tmp_path):
    child = start(
        arguments(tmp_path, "run", steps=4), tmp_path / "log", lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    wait_until(lambda: (tmp_path / "run" / "completions" / "step_000001.jsonl.gz").exists(), child)
    child.signal(signal.SIGHUP)
    assert child.wait() == 0


@pytest.mark.parametrize("moment", [0.3, 1.2])
def test_ctrl_c_at_any_moment_of_the_start_shows_no_traceback(tmp_path, moment):
    """While the arguments are read, and while torch is imported."""
    command = [sys.executable, str(REPO / "train.py"), *arguments(tmp_path, "run", steps=2)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    time.sleep(moment)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=120)[1]
    assert "train.py" not in error  # a traceback without it is from Python's own start, before any line of ours
    assert process.returncode in (130, -signal.SIGINT, 1)  # 1: from Python's own start


# ---- a user's own reward

BROKEN = {
    "raises": "raise RuntimeError('my mistake')",
    "leaves": "import sys; sys.exit(3)",
    "nan": "return {'odd': float('nan')}",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_reward_that_breaks_keeps_the_step_before(tmp_path, monkeypatch, how):
    """It breaks in step 3, is fixed, and continues under the same name."""
    module = tmp_path / f"mine_{how}.py"
    good = "def f(completion, ground_truth):\n    return {'odd': float(len(completion) % 7)}\n"
    module.write_text(
        "from pathlib import Path\ndef f(completion, ground_truth):\n"
        f"    if len(list(Path({str(tmp_path)!r}).glob('run/completions/*.gz'))) == 2:\n        {BROKEN[how]}\n"
        "    return {'odd': float(len(completion) % 7)}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    args = arguments(tmp_path, "run", steps=4, checkpoint__every=0, reward__name=f"{module.stem}:f")
    child = start(args, tmp_path / "log")
    assert child.wait() != 0
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_000002"], child.output()
    module.write_text(good)
    again = start([*args, "--resume", "auto"], tmp_path / "again")
    assert again.wait() == 0, again.output()
    assert [row["step"] for row in rows(tmp_path / "run")] == [0, 1, 2, 3, 4]


# ---- alarms

HEALTHY = {
    "reward/mean": 1.0, "groups/zero_variance": 0.2, "outcome/correct": 0.5, "completion/length_mean": 30.0,
    "signal/verify": 0.5, "verdict/right_says_correct": 0.45, "verdict/right_says_wrong": 0.05,
    "verdict/wrong_says_correct": 0.1, "verdict/wrong_says_wrong": 0.4,
}  # fmt: skip
COMPLETIONS = 100
"""Of one step"""


def alarms(*steps: dict) -> list[str]:
    watch = Alarms(COMPLETIONS)
    return [text for step in steps for text in watch(HEALTHY | step)]


@pytest.mark.parametrize(
    ("disease", "said"),
    [
        ({"groups/zero_variance": 1.0}, "all rewards of each group were equal"),
        ({"reward/mean": 0.0}, "fell to 0 after a mean of 1"),
        ({"completion/length_mean": 7.0}, "shrank from 30 to 7 tokens"),
        (
            {"verdict/right_says_correct": 0.49, "verdict/right_says_wrong": 0.01,
             "verdict/wrong_says_correct": 0.48, "verdict/wrong_says_wrong": 0.02},
            "says 'correct' of 98% of the right and of 96% of the wrong answers",
        ),
    ],
)  # fmt: skip
def test_every_alarm_fires_on_its_disease_once_and_not_before_the_window_is_full(disease, said):
    healthy = [{}] * WINDOW
    assert alarms(*healthy, *[disease] * (WINDOW - 1)) == []
    found = alarms(*healthy, *[disease] * (3 * WINDOW))
    assert len(found) == 1
    assert said in found[0]


def test_answers_left_ungraded_are_reported_at_once():
    """One step of the last five with 25% ungraded: 5% of the window."""
    (alarm,) = alarms(*[{}] * WINDOW, {"outcome/over_budget": 0.25}, *[{}] * WINDOW)
    assert alarm.startswith("5.0% of the answers were not graded: reward.budget_s was used up")


OWN = {"outcome/correct": 0.0}
"""A user's own reward: no answer is verified."""


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            [{}] * WINDOW + [{"reward/mean": 0.4, "groups/zero_variance": 1.0}] * WINDOW,
            "equal, 0.4: nothing was learned",
        ),
        ([{"reward/mean": 0.0, "groups/zero_variance": 1.0}] * WINDOW, "equal, 0: nothing was learned"),
        (
            [{}] * WINDOW + [{"completion/length_mean": 7.0}] * WINDOW,
            "shrank from 30 to 7 tokens and earn no more",
        ),
        ([{}] * WINDOW + [{"reward/mean": 2.0, "groups/zero_variance": 1.0}] * WINDOW, None),  # solved
        ([{"groups/zero_variance": 1.0}] * 2 * WINDOW, None),  # solved from the start
        ([{"reward/mean": -1.0}] * WINDOW + [{"reward/mean": 0.0, "groups/zero_variance": 1.0}] * WINDOW, None),
        (
            [{}] * WINDOW + [{"reward/mean": 1.5, "completion/length_mean": 7.0}] * WINDOW,
            None,
        ),
    ],
)
def test_alarms_of_an_own_reward_claim_only_what_it_measured(steps, message):
    """Unverified, the reward alone tells: flat below an earlier mean, or 0 from the start, is no solved task."""
    found = alarms(*[OWN | step for step in steps])
    assert len(found) == (message is not None)
    assert message is None or message in found[0]


@pytest.mark.parametrize(
    "step",
    [
        {"groups/zero_variance": 1.0, "outcome/correct": 1.0},  # solved
        {"completion/length_mean": 7.0, "outcome/correct": 0.9},  # shorter and better
        {"completion/length_mean": 7.0, "signal/verify": 0.7},  # the same with partial credit
        {"verdict/right_says_correct": 0.99, "verdict/right_says_wrong": 0.0,  # hardly a wrong answer is left
         "verdict/wrong_says_correct": (ENOUGH - 1) / COMPLETIONS / WINDOW, "verdict/wrong_says_wrong": 0.0},
        {"reward/mean": 0.02},
    ],
)  # fmt: skip
def test_alarms_are_silent_where_their_claim_does_not_hold(step):
    assert alarms(*[{}] * WINDOW, *[step] * (3 * WINDOW)) == []


def test_alarms_are_silent_on_the_healthy_demo():
    """Three runs of `python train.py --preset cpu --seed 0 (1, 2)`: their rows, as recorded on 2026-11-26."""
    for recorded in json.loads((Path(__file__).parent / "demo_rows.json").read_text()):
        names, values = recorded["names"], recorded["rows"]
        watch = Alarms(16 * 8)
        said = [text for row in values for text in watch(dict(zip(names, row, strict=True)))]
        assert len(values) == 60
        assert said == []


def test_weights_of_zero_are_said_at_the_start(tmp_path, capsys):
    zero = {"reward.name": "multi_signal", "reward.alpha": 0, "reward.beta": 0, "reward.gamma": 0}
    assert train.main(arguments(tmp_path, "run", steps=1, **zero)) == 0
    assert "all reward weights are 0" in capsys.readouterr().err
