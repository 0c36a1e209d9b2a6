"""Odd machines: file systems without locks, terminals that cannot write a character, closed streams, hidden folders."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import REPO, arguments, rows, start


def train(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess:
    """train.py as a process of its own, for two steps."""
    args = arguments(tmp_path, "run", steps=2, reward__name="format_only", reward__workers=1)
    command = [sys.executable, str(REPO / "train.py"), *args]
    return subprocess.run(command, cwd=REPO, env=os.environ | environment, capture_output=True, timeout=300)


@pytest.fixture(scope="session")
def shim(tmp_path_factory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    library = tmp_path_factory.mktemp("shim") / "unsupported.so"
    source = Path(__file__).with_name("unsupported.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library


def test_a_file_system_without_locks_and_fsync_works_with_one_warning_each(tmp_path, shim):
    done = train(tmp_path, LD_PRELOAD=str(shim), UNSUPPORTED="flock fsync")
    error = done.stderr.decode()
    assert done.returncode == 0, error
    assert error.count("has no locks") == error.count("has no fsync") == 1
    assert len(rows(tmp_path / "run")) == 3


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_character_that_the_output_cannot_write_ends_nothing(tmp_path, encoding):
    def narrow() -> None:
        sys.stdout.reconfigure(encoding=encoding)
        sys.stderr.reconfigure(encoding=encoding, errors="backslashreplace")  # as Python opens it

    out = tmp_path / "größe→"
    child = start(arguments(out, "run", steps=2), tmp_path / "log", narrow)
    assert child.wait() == 0, child.output()
    assert "\\u2192" in child.output()
    assert len(rows(out / "run")) == 3


def test_closed_streams_end_nothing_beside_a_python_that_leaves_the_script_folder_out(tmp_path):
    def close() -> None:
        for number in range(3):
            os.close(number)

    args = arguments(tmp_path, "run", steps=2, reward__name="format_only", reward__workers=1)
    process = subprocess.Popen([sys.executable, "-P", str(REPO / "train.py"), *args], cwd=REPO, preexec_fn=close)
    assert process.wait(300) == 0
    assert len(rows(tmp_path / "run")) == 3


def test_a_folder_whose_name_is_not_utf8_is_one_line(tmp_path):
    done = train(tmp_path / os.fsdecode(b"r\xff"))
    error = done.stderr.decode(errors="replace")
    assert done.returncode == 2, error
    assert error.count("error: ") == 1
    assert "UTF-8" in error
    assert "Traceback" not in error


def test_a_machine_that_hides_proc_trains(tmp_path):
    """A mount of its own over /proc, in a name space of its own."""
    args = arguments(tmp_path, "run", steps=2, reward__name="format_only", reward__workers=1)
    words = ["sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh", sys.executable, str(REPO / "train.py"), *args]
    done = subprocess.run(["unshare", "-m", *words], cwd=REPO, capture_output=True, text=True, timeout=300)
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"needs the right to mount: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / "run")) == 3
