"""benchmarks/kit.sh: a joined kit equals the packed folders, or the damaged part is named."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from benchmarks import gpu

REPO = Path(__file__).resolve().parent.parent
MODEL = REPO / "data" / "tiny-base"


def kit(*words: object, size: int = 100_000, text: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [REPO / "benchmarks" / "kit.sh", *map(str, words)]
    environment = os.environ | {"PART_SIZE": str(size)}
    return subprocess.run(command, env=environment, input=text, capture_output=True, text=True)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_joined_kit_equals_the_packed_folders_and_no_part_is_too_large(tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "module.py").write_text("x = 1")
    assert kit("pack", tmp_path / "kit", MODEL, site).returncode == 0
    parts = [path for path in (tmp_path / "kit").iterdir() if path.name != "SHA256SUMS"]
    assert len(parts) > 5
    assert all(path.stat().st_size <= 100_000 for path in parts)
    assert kit("join", tmp_path / "kit", tmp_path / "there").returncode == 0
    assert tree(tmp_path / "there" / "tiny-base") == tree(MODEL)
    assert tree(tmp_path / "there" / "site") == {"module.py": b"x = 1"}


def test_a_folder_that_is_packed_again_replaces_its_parts(tmp_path):
    kit("pack", tmp_path, MODEL)
    kit("pack", tmp_path, MODEL, size=10_000_000)
    assert sorted(tree(tmp_path)) == ["SHA256SUMS", "tiny-base.000"]


@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_a_part_that_did_not_arrive_is_named(tmp_path, harm):
    kit("pack", tmp_path, MODEL)
    part = tmp_path / "tiny-base.003"
    part.unlink() if harm == "missing" else part.write_bytes(part.read_bytes()[:-1] + b"\0")
    done = kit("join", tmp_path, tmp_path / "there")
    assert done.returncode == 1
    assert "tiny-base.003: FAILED" in done.stdout
    assert "copy these parts again" in done.stderr
    assert not (tmp_path / "there").exists()


def test_packages_that_the_machine_has_are_not_packed(tmp_path):
    freeze = tmp_path / "freeze.txt"
    freeze.write_text("# comment\ntorch==2.11.0+cu130\nPyYAML==6.0\nzope.interface @ file:///x\n")
    done = kit(
        "lacking", freeze, text="torch-2.13.0\nvllm-0.26.0+cu130\npyyaml-6.1\nZope_Interface-7\nmsgspec-0.20.0\n"
    )
    assert done.stdout.split() == ["vllm==0.26.0+cu130", "msgspec==0.20.0"]


def test_the_hour_on_a_gpu_is_rehearsed_on_a_cpu(tmp_path):
    """Pack, join and benchmark with the joined model, as on the machine with the GPU; one part at tiny size."""
    kit("pack", tmp_path / "kit", MODEL)
    kit("join", tmp_path / "kit", tmp_path / "there")
    out = tmp_path / "gpu.json"
    options = ["--model", str(tmp_path / "there" / "tiny-base"), "--out", str(out)]
    assert gpu.main(["--size", "tiny", "--minutes", "8", "--part", "train", *options]) == 0
    assert any("greedy accuracy" in line and "->" in line for line in gpu.read_figures(out)["train"])
