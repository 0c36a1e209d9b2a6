"""benchmarks/kit.py: what is packed here is whole there, or a part is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import kit

REPO = Path(__file__).resolve().parent.parent


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_packed_and_joined_is_the_same_and_no_part_is_too_large(tmp_path):
    model, size = REPO / "data" / "tiny-base", 100_000
    parts = kit.pack(model, tmp_path / "kit", "model", size)
    assert len(parts) > 5
    assert all((tmp_path / "kit" / part).stat().st_size <= size for part in parts)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "module.py").write_text("x = 1")
    kit.pack(tmp_path / "site", tmp_path / "kit", "site", size)
    kit.main(["join", str(tmp_path / "kit"), "--to", str(tmp_path / "there")])
    assert tree(tmp_path / "there" / "model") == tree(model)
    assert tree(tmp_path / "there" / "site") == {"module.py": b"x = 1"}
    kit.pack(tmp_path / "site", tmp_path / "kit", "model", size)  # packed again: the old parts are not joined
    assert [part for part in kit.read_manifest(tmp_path / "kit") if part.startswith("model")] == ["model.000"]


@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_a_part_that_did_not_arrive_is_named(tmp_path, harm):
    parts = list(kit.pack(REPO / "data" / "tiny-base", tmp_path, "model", 100_000))
    part = tmp_path / parts[3]
    part.unlink() if harm == "missing" else part.write_bytes(part.read_bytes()[:-1] + b"\0")
    with pytest.raises(ValueError, match=rf"{parts[3]} is missing or damaged"):
        kit.join(tmp_path, tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_what_the_machine_has_is_left_out():
    freeze = "# comment\ntorch==2.11.0+cu130\nPyYAML==6.0\nzope.interface @ file:///x\n"
    assert kit.installed_names(freeze) == {"torch", "pyyaml", "zope-interface"}


def test_the_card_rehearsed_on_a_cpu(tmp_path):
    """Pack, join and benchmark with the joined model, as on the machine with the GPU; 2 parts at tiny size."""
    model = REPO / "data" / "tiny-base"
    kit.pack(model, tmp_path / "kit", "model", 500_000)
    command = [sys.executable, "benchmarks/kit.py", "join", str(tmp_path / "kit"), "--to", str(tmp_path / "there")]
    subprocess.run(command, cwd=REPO, check=True)
    out = tmp_path / "gpu.json"
    command = [sys.executable, "benchmarks/gpu.py", "--size", "tiny", "--minutes", "8", "--part", "train", "matmul"]
    command += ["--model", str(tmp_path / "there" / "model"), "--out", str(out)]
    done = subprocess.run(command, cwd=REPO, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    from benchmarks.gpu import read_figures

    figures = read_figures(out)
    assert figures["train"]["device"] == "cpu"
    assert {"before/greedy_accuracy", "after/greedy_accuracy"} <= set(figures["train"])
    assert figures["matmul"]["tflops"] > 0
