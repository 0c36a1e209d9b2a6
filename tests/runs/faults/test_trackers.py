"""A tracker can be missing, unreachable, broken or hanging: the run neither fails nor waits, and loses nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from small_runs import arguments, rows, start

import train
from grpo.run import files, trackers
from grpo.run.checkpoint import TrainingState

needs_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="pip install wandb")


@pytest.fixture(autouse=True)
def no_plot(monkeypatch, tmp_path):
    monkeypatch.setattr(train, "plot_run", lambda folder: None)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # no key of the user's


def fake(folder: Path, code: str, monkeypatch) -> None:
    """A package of that name that the logging process imports instead."""
    folder.mkdir()
    (folder / "wandb.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(folder)


def test_it_hangs(tmp_path, monkeypatch, capsys):
    """init never returns: the run ends as usual, waits its patience and says where to look."""
    fake(tmp_path / "fake", "import time\ntime.sleep(20)\n", monkeypatch)
    monkeypatch.setattr(trackers, "PATIENCE_S", 0.2)
    assert train.main(arguments(tmp_path, "run", steps=2, tracker="wandb")) == 0
    assert "wandb is still sending" in capsys.readouterr().err
    assert len(rows(tmp_path / "run")) == 3


def test_it_crashes(tmp_path, monkeypatch, capsys):
    fake(tmp_path / "fake", "raise ImportError('half installed')\n", monkeypatch)
    assert train.main(arguments(tmp_path, "run", steps=2, tracker="wandb")) == 0
    assert "wandb ended with code 1" in capsys.readouterr().err
    assert "half installed" in (tmp_path / "run" / "tracker.log").read_text()


def test_it_is_not_installed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trackers, "installed", lambda name: False)
    assert train.main(arguments(tmp_path, "run", steps=1, tracker="wandb")) == 0
    assert "wandb is not installed" in capsys.readouterr().err


RECORDER = """
import json, os, sys
class errors:
    class Error(Exception): pass
def Settings(**k): return k
class Table:
    def __init__(self, columns, data): self.rows = len(data)
class Run:
    def log(self, row, step):
        row = {k: v.rows if isinstance(v, Table) else v for k, v in row.items()}
        print(json.dumps({"step": step, **row}), file=open(os.environ["RECORD"], "a"), flush=True)
    def finish(self, exit_code): print(json.dumps({"exit": exit_code}), file=open(os.environ["RECORD"], "a"))
def teardown(): pass
def init(id, **k):
    if k.get("mode") != "offline": raise errors.Error("no network")
    print(json.dumps({"id": id}), file=open(os.environ["RECORD"], "a"), flush=True)
    return Run()
"""


def test_the_same_names_once_each_also_after_a_kill(tmp_path, monkeypatch):
    """What is sent: every row of metrics.jsonl under its own names, under one id, none twice."""
    fake(tmp_path / "fake", RECORDER, monkeypatch)
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))

    def killed_later() -> None:
        calls, original = [], TrainingState.write

        def write(self, folder):
            calls.append(1)
            if len(calls) == 3:
                while '"step": 2' not in (tmp_path / "record").read_text():
                    time.sleep(0.02)
                os.kill(os.getpid(), signal.SIGKILL)
            original(self, folder)

        TrainingState.write = write

    args = arguments(tmp_path, "run", steps=4, tracker="wandb", show_every=2, checkpoint__every=1)
    assert start(args, tmp_path / "log", killed_later).wait() == -signal.SIGKILL
    assert train.main(["--resume", str(tmp_path / "run")]) == 0
    record = [json.loads(line) for line in (tmp_path / "record").read_text().splitlines()]
    assert len({line["id"] for line in record if "id" in line}) == 1
    sent = [line for line in record if "step" in line]
    assert [line["step"] for line in sent] == [0, 1, 2, 3, 4]
    tables = {line["step"]: line.pop("completions") for line in sent if "completions" in line}
    assert tables == {2: 8, 4: 8}
    written = files.read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [line.keys() for line in sent] == [line.keys() for line in written]
    assert [line["exit"] for line in record if "exit" in line] == [1, 0]


class Refusing(BaseHTTPRequestHandler):
    """A server that takes nothing. (Where there is none, wandb tries for 13 s and ends in the same error.)"""

    def do_POST(self) -> None:
        self.send_error(403)

    do_GET = do_POST

    def log_message(self, *words) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@needs_wandb
@pytest.mark.parametrize("key", [None, "0" * 40], ids=["no key", "a key, but no server that takes it"])
def test_the_real_package_offline(tmp_path, monkeypatch, refusing, key):
    monkeypatch.setenv("WANDB_BASE_URL", refusing)
    monkeypatch.setattr(trackers, "PATIENCE_S", 90.0)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    assert train.main(arguments(tmp_path, "run", steps=2, tracker="wandb", checkpoint__every=1)) == 0
    run_id = files.run_id(tmp_path / "run")
    log = (tmp_path / "run" / "tracker.log").read_text()
    assert len(list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{run_id}"))) == 1, log
    assert (tmp_path / "run" / "tracker_sent").read_text() == "2"
    if key:
        return
    assert train.main(["--resume", str(tmp_path / "run"), "--steps", "3"]) == 0
    assert files.run_id(tmp_path / "run") == run_id
    assert (tmp_path / "run" / "tracker_sent").read_text() == "3"
    assert len(list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{run_id}"))) == 2


@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="pip install trackio")
def test_the_real_trackio_offline(tmp_path, monkeypatch):
    """Its own database on this machine: every row once, also after a resume, under one name."""
    import sqlite3

    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setattr(trackers, "PATIENCE_S", 90.0)
    assert train.main(arguments(tmp_path, "run", steps=2, tracker="trackio")) == 0
    assert train.main(["--resume", str(tmp_path / "run"), "--steps", "3"]) == 0
    with sqlite3.connect(next((tmp_path / "trackio").glob("*.db"))) as database:
        sent = database.execute("select run_name, step from metrics order by step").fetchall()
    assert [step for _, step in sent] == [0, 1, 2, 3], (tmp_path / "run" / "tracker.log").read_text()
    assert {name for name, _ in sent} == {f"run-{files.run_id(tmp_path / 'run')[:4]}"}
