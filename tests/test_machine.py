"""grpo/machine.py: each trap of a rented machine is one line, with what to install."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from grpo import machine

SCRIPT = Path(machine.__file__)
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def sound_machine(monkeypatch, tmp_path):
    """A GPU machine on which nothing is wrong."""
    driver = tmp_path / "driver"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Release Build\n")
    monkeypatch.setattr(machine.driver_version, "__defaults__", (driver,))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(machine.sysconfig, "get_path", lambda name: str(tmp_path))
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 9.1 * machine.GIB))
    monkeypatch.delenv("PIP_ARGS", raising=False)
    monkeypatch.delenv("CC", raising=False)


def problems(*arguments, **options) -> list[str]:
    return list(machine.problems(*arguments, **options))


def test_a_sound_machine_has_no_problem(tmp_path):
    assert problems("gpu", tmp_path / ".venv") == []


@pytest.mark.parametrize("what", ["base", "gpu"])
def test_the_packages_need_room(what, tmp_path, monkeypatch):
    """6 GiB with torch, 3 more with vLLM, and 2 where PIP_ARGS names a CPU build."""
    need = machine.GIB_OF[what]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, (need - 0.1) * machine.GIB))
    [line] = problems(what, tmp_path / "deep" / ".venv")
    assert (
        line
        == f"{tmp_path} has {need - 0.1:.1f} GiB free, and the packages take {need}: free space, or name another VENV="
    )
    (tmp_path / "base").touch()  # torch is installed
    assert problems(what, tmp_path) == []
    monkeypatch.setenv("PIP_ARGS", "--index-url https://download.pytorch.org/whl/cpu")
    assert problems(what, tmp_path / ".venv") == []


def test_what_triton_compiles_with(tmp_path, monkeypatch):
    (tmp_path / "Python.h").unlink()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    compiler, header = problems("gpu", tmp_path)
    assert "no C compiler" in compiler
    assert f"python3.{sys.version_info.minor}-dev" in header
    assert problems("base", tmp_path) == []
    monkeypatch.setenv("CC", "/opt/bin/cc")
    assert problems("gpu", tmp_path) == [header]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, "no NVIDIA driver is loaded"),
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar 5\n",
            "the NVIDIA driver is 550.54.15, CUDA 13 needs 580",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.172.08  Release\n", "570.172.08"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  590.44.01  Release\n", None),
    ],
)
def test_the_driver(text, line, tmp_path):
    driver = tmp_path / "driver"
    driver.unlink() if text is None else driver.write_text(text)
    found = problems("gpu", tmp_path)
    assert [line in each for each in found] == ([True] if line else [])


@pytest.mark.parametrize(
    ("version", "fine"), [((3, 8), False), ((3, 10, 12), False), ((3, 11), True), ((3, 15), False)]
)
def test_the_python(version, fine, tmp_path):
    lines = problems("base", tmp_path, python=version[:2])
    assert (lines == []) is fine
    assert all("3.11 to 3.14" in line and "PYTHON=python3.12" in line for line in lines)


@pytest.mark.parametrize(("libc", "fine"), [(("glibc", "2.27"), False), (("glibc", "2.28"), True), (("", ""), True)])
def test_the_libc(libc, fine, tmp_path):
    assert (problems("base", tmp_path, libc=libc) == []) is fine


def test_it_runs_alone_with_modules_named_as_the_standard_library_beside_it():
    """-I: grpo/types.py must not be taken for the standard library's."""
    done = subprocess.run([sys.executable, "-I", SCRIPT, "base", "."], capture_output=True, text=True)
    assert done.returncode == ("PROBLEM" in done.stderr)
    assert "Traceback" not in done.stderr
    source = SCRIPT.read_text()
    compile(source, str(SCRIPT), "exec", flags=0, dont_inherit=True)
    import ast

    ast.parse(source, feature_version=(3, 8))
