"""A tracker can be missing, unreachable, broken or hanging: the run neither fails nor waits, and loses nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from small_runs import Child, arguments, rows, start, wait_until

import train
from grpo.run import files, trackers
from grpo.run.checkpoint import TrainingState
from grpo.settings import build

needs_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="pip install wandb")


@pytest.fixture(autouse=True)
def no_plot(monkeypatch, tmp_path):
    monkeypatch.setattr(train, "plot_run", lambda folder: None)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # no key of the user's


def fake(folder: Path, code: str, monkeypatch) -> None:
    """A package of that name that is imported instead."""
    folder.mkdir()
    (folder / "wandb.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(sys.modules, "wandb", None)
    del sys.modules["wandb"]  # and whatever the run imports goes again when the test ends


BROKEN = {
    "on import": "raise ImportError('half installed')",
    "in init": "class errors:\n    Error = KeyError\ndef Settings(**k): 1 / 0",
    "in log": "class errors:\n    Error = KeyError\ndef Settings(**k): pass\n"
    "class init:\n    def __init__(self, **k): pass\n    def log(self, row, step): 1 / 0",
}


@pytest.mark.parametrize("where", BROKEN)
def test_a_tracker_that_breaks_is_reported_once_and_the_run_continues(tmp_path, monkeypatch, capsys, where):
    fake(tmp_path / "fake", BROKEN[where], monkeypatch)
    assert train.main(arguments(tmp_path, "run", steps=2, tracker="wandb")) == 0
    assert capsys.readouterr().err.count("the run continues without it") == 1
    assert len(rows(tmp_path / "run")) == 3


def test_one_that_is_missing_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert train.main(arguments(tmp_path, "run", steps=1, tracker="wandb")) == 0
    assert "wandb: ModuleNotFoundError" in capsys.readouterr().err


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
    """The rows sent: every row of metrics.jsonl under its own names, under one id, none twice."""
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
    assert [line["exit"] for line in record if "exit" in line] == [0]  # a kill leaves no time to tell


class Server(BaseHTTPRequestHandler):
    """W&B's server, as far as a run needs it, until `hang` is set: from then on it takes requests and never answers.

    With `refuse` it takes nothing from the start.
    """

    hang, refuse = threading.Event(), False

    def do_POST(self) -> None:
        query = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode(errors="replace")
        if self.refuse:
            self.send_error(403)
            return
        while self.hang.is_set():
            time.sleep(0.1)
        me, project = {"id": "e", "name": "me"}, {"id": "p", "name": "x"}
        run = {"id": "r", "name": "r", "displayName": "r", "config": "{}", "project": project | {"entity": me}}
        data = {"viewer": {"id": "v", "entity": "me", "flags": "{}", "teams": {"edges": []}}, "model": None}
        data |= {"upsertBucket": {"bucket": run, "inserted": True}} if "psertBucket" in query else {}
        answer = json.dumps({"data": data | {"serverInfo": {"features": []}}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_PUT = do_POST

    def log_message(self, *words) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[type[Server]]:
    kind = type("Own", (Server,), {"hang": threading.Event()})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{http.server_port}")
        yield kind
        kind.hang.clear()
        http.shutdown()


@needs_wandb
def test_a_server_that_stops_answering_holds_no_step(tmp_path, monkeypatch, server):
    """It answers the start, then never again: 300 rows with a table each are taken all the same.

    Were one held until the network's time limit, it would be a minute and the log would not be through.
    """
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    (tmp_path / "run_id").write_text("0123456789abcdef")

    def work() -> int:
        tracker = trackers.Tracker(tmp_path, build("cpu", {"tracker": "wandb", "show_every": 1000}))
        (tmp_path / "started").touch()
        while not (tmp_path / "hangs").exists():
            time.sleep(0.01)
        for step in range(300):
            begun = time.monotonic()
            tracker.log({"step": step, "reward/mean": 0.5, "text": "x" * 5000})
            assert time.monotonic() - begun < 20  # a request's own time limit
        return 0 if tracker._run else 1

    child = Child(work, tmp_path / "log")
    wait_until((tmp_path / "started").exists, child)
    server.hang.set()
    (tmp_path / "hangs").touch()
    assert child.wait() == 0, child.output()


@needs_wandb
@pytest.mark.parametrize("key", [None, "0" * 40], ids=["no key", "a key, but no server that takes it"])
def test_the_real_package_offline(tmp_path, monkeypatch, server, key):
    server.refuse = True
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    child = start(arguments(tmp_path, "run", steps=2, tracker="wandb", checkpoint__every=1), tmp_path / "log")
    assert child.wait() == 0, child.output()
    run_id = files.run_id(tmp_path / "run")
    assert len(list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{run_id}"))) == 1
    if key:
        return
    assert start(["--resume", str(tmp_path / "run"), "--steps", "3"], tmp_path / "log").wait() == 0
    assert files.run_id(tmp_path / "run") == run_id
    assert len(list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{run_id}"))) == 2


@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="pip install trackio")
def test_the_real_trackio_offline(tmp_path, monkeypatch):
    """Its own database on this machine: every row once, also after a resume, under one name."""
    import sqlite3

    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    assert train.main(arguments(tmp_path, "run", steps=2, tracker="trackio")) == 0
    assert train.main(["--resume", str(tmp_path / "run"), "--steps", "3"]) == 0
    with sqlite3.connect(next((tmp_path / "trackio").glob("*.db"))) as database:
        sent = database.execute("select run_name, step from metrics order by step").fetchall()
    assert [step for _, step in sent] == [0, 1, 2, 3]
    assert {name for name, _ in sent} == {f"run-{files.run_id(tmp_path / 'run')[:4]}"}


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="pip install tensorboard")
def test_the_real_tensorboard(tmp_path):
    """Every row once, also after a resume; as TensorBoard itself reads it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train.main(arguments(tmp_path, "run", steps=2, tracker="tensorboard")) == 0
    assert train.main(["--resume", str(tmp_path / "run"), "--steps", "3"]) == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload().Scalars("reward/mean")
    written = files.read_rows(tmp_path / "run" / "metrics.jsonl")[1:]
    assert [(event.step, event.value) for event in events] == [
        (row["step"], pytest.approx(row["reward/mean"])) for row in written
    ]
