"""The laptop's model: what stops the build is one line and leaves nothing behind. (The build itself needs PyPI.)"""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest

from tools import smollm2


@pytest.fixture(autouse=True)
def with_gguf(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


def failure(tmp_path, capsys) -> str:
    assert smollm2.main(["--out", str(tmp_path / "models" / "smol")]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert not list((tmp_path / "models").glob("*"))
    return message


def test_another_file_is_not_converted(tmp_path, capsys, monkeypatch):
    def install(words, **_):
        file = Path(words[words.index("--target") + 1], smollm2.GGUF)
        file.parent.mkdir()
        file.write_bytes(b"GGUF of somebody else")
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(subprocess, "run", install)
    assert "it was changed" in failure(tmp_path, capsys)


def test_pip_that_cannot_is_one_line_that_names_the_other_way(tmp_path, capsys, monkeypatch):
    refused = subprocess.CompletedProcess([], 1, "", "looking\nno index\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: refused)
    assert "(no index); PIP_FIND_LINKS" in failure(tmp_path, capsys)


def test_without_gguf_the_command_that_installs_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install gguf" in failure(tmp_path, capsys)


def test_a_folder_that_is_there_stays(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert smollm2.main(["--out", str(tmp_path / "file")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"
