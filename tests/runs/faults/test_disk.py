"""Full and read-only disks: small file systems in memory, mounted for the test."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_runs import arguments, same_run, start

import train
from grpo.rollout import decode
from grpo.run.checkpoint import check_whole

MIB = 2**20


class Disk:
    def __init__(self, path: Path):
        self.path = path

    def resize(self, mib: int) -> None:
        mount("-o", f"remount,size={mib}m", str(self.path))

    def read_only(self) -> None:
        mount("-o", "remount,ro", str(self.path))


def mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs the right to mount: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path) -> Iterator[Disk]:
    """A file system of its own, 64 MiB large until resized."""
    path = tmp_path / "disk"
    path.mkdir()
    mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(path))
    yield Disk(path)
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    assert start(arguments(out, "run", steps=3), out / "log").wait() == 0
    return out / "run"


@pytest.fixture(autouse=True)
def no_plot(monkeypatch):
    monkeypatch.setattr(train, "plot_run", lambda folder: None)


def filled_in_step_2(disk: Disk, left: int) -> Callable[[], None]:
    """Breaks into a child: somebody else fills the disk until `left` bytes are free."""

    def install() -> None:
        calls = []

        def decode_and_fill(*args):
            calls.append(1)
            if len(calls) == 2:
                with (disk.path / "filler").open("wb") as file, suppress(OSError):
                    while shutil.disk_usage(disk.path).free > left:
                        file.write(bytes(MIB // 4))
                        file.flush()
            return decode(*args)

        train.decode = decode_and_fill

    return install


def test_too_little_space_is_seen_before_writing(tmp_path, disk, undisturbed):
    """A checkpoint takes 5 MiB, as the first did: 3 are not enough for the second."""
    filled = filled_in_step_2(disk, 3 * MIB)
    child = start(arguments(disk.path, "run", steps=3, checkpoint__every=1), tmp_path / "log", filled)
    assert child.wait() == 2
    assert "disk full: a checkpoint takes 0.0" in child.output()
    assert "Traceback" not in child.output()
    kept = list((disk.path / "run" / "checkpoints").iterdir())
    assert [path.name for path in kept] == ["step_000001"]
    check_whole(kept[0])
    (disk.path / "filler").unlink()
    assert train.main(["--resume", str(disk.path / "run")]) == 0
    same_run(undisturbed, disk.path / "run", 3)


def test_the_disk_fills_up_in_the_middle_of_a_save(tmp_path, disk, undisturbed):
    """Quotas and network disks tell of space they do not have: here the write itself fails."""
    disk.resize(8)

    def lying() -> None:
        shutil.disk_usage = lambda path: SimpleNamespace(total=2**41, used=2**40, free=2**40)

    child = start(arguments(disk.path, "run", steps=3, checkpoint__every=1), tmp_path / "log", lying)
    assert child.wait() == 2, child.output()
    assert f"error: cannot write to {disk.path / 'run' / 'checkpoints'}: " in child.output()
    kept = list((disk.path / "run" / "checkpoints").iterdir())
    assert [path.name for path in kept] == ["step_000001"]
    check_whole(kept[0])
    disk.resize(64)
    assert train.main(["--resume", str(disk.path / "run")]) == 0
    same_run(undisturbed, disk.path / "run", 3)


def test_the_disk_is_full_when_a_step_is_recorded(tmp_path, disk, undisturbed):
    filled = filled_in_step_2(disk, 0)
    child = start(arguments(disk.path, "run", steps=3, checkpoint__every=1), tmp_path / "log", filled)
    assert child.wait() == 2, child.output()
    assert "No space left on device" in child.output()
    assert "Traceback" not in child.output()
    (disk.path / "filler").unlink()
    assert train.main(["--resume", str(disk.path / "run")]) == 0
    same_run(undisturbed, disk.path / "run", 3)


def test_a_read_only_folder(disk, capsys):
    disk.read_only()
    assert train.main(arguments(disk.path / "runs", "run")) == 2
    assert "where nothing can be written; name another folder by --out" in capsys.readouterr().err


def test_a_run_on_a_disk_that_became_read_only(disk, capsys):
    assert train.main(arguments(disk.path, "run", steps=1)) == 0
    disk.read_only()
    assert train.main(["--resume", str(disk.path / "run"), "--steps", "2"]) == 2
    assert "where nothing can be written" in capsys.readouterr().err


def test_a_file_in_the_way(tmp_path, capsys):
    (tmp_path / "runs").write_text("a file")
    assert train.main(arguments(tmp_path / "runs", "run")) == 2
    assert "where nothing can be written" in capsys.readouterr().err
