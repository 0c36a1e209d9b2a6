"""GPUs by their data sheets, and this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml

from grpo.environment import cpu_cores, main_memory
from grpo.errors import UserError
from grpo.machine import GIB
from grpo.settings import nearest

KNOWN = yaml.safe_load(Path(__file__).with_name("hardware.yaml").read_text(encoding="utf-8"))
"""GPUs and models, for a plan without either"""
CPU_FLOPS_PER_CORE = 20e9
CPU_BANDWIDTH = 10e9


@dataclass(frozen=True, slots=True)
class Hardware:
    """A GPU, or this machine's processor."""

    name: str
    memory: float
    """bytes in all; the free bytes if it is in this machine"""
    flops: float
    """dense bf16 operations a second with float32 sums, by the data sheet (CPU: float32, a rough figure)"""
    bandwidth: float
    """bytes a second, from and to its own memory"""
    sustained: float
    """share of `flops` that matrix products sustain"""
    here: bool = False
    """True if it is in this machine"""
    bf16: bool = True
    """computes in bfloat16"""
    device: str = "cuda"
    """torch's name for its kind"""

    @property
    def is_cpu(self) -> bool:
        return self.device == "cpu"


GPUS = {
    key: Hardware(gpu["name"], gpu["gib"] * GIB, gpu["teraflops"] * 1e12, gpu["gigabytes"] * 1e9, gpu["sustained"])
    for key, gpu in KNOWN["gpus"].items()
}
FALLBACK = "a10"
"""GPU whose speed stands in for one missing from the table"""


def hardware_named(name: str) -> Hardware:
    """A GPU of the table, or `cpu`: this machine's processor. Raises UserError for another name."""
    if name.lower() == "cpu":
        return _cpu(main_memory()[0])
    if name.lower() not in GPUS:
        names = [*GPUS, "cpu"]
        raise UserError(f"no data sheet for {name!r}; there are {', '.join(names)}{nearest(name.lower(), names)}")
    return GPUS[name.lower()]


def this_hardware(device: torch.device) -> Hardware:
    """The device of a run, with the memory that is free now."""
    if device.type != "cuda":
        return _cpu(main_memory()[1])
    free, _ = torch.cuda.mem_get_info(device)
    name = torch.cuda.get_device_name(device).removeprefix("NVIDIA ")
    bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
    return replace(data_sheet(name) or GPUS[FALLBACK], name=name, memory=free, here=True, bf16=bf16)


def data_sheet(name: str) -> Hardware | None:
    """The GPU of the table whose name is part of the device's name, as whole words: an L40S is not an L4."""
    matching = [gpu for gpu in GPUS.values() if re.search(rf"\b{gpu.name}\b", name)]
    return max(matching, key=lambda gpu: len(gpu.name), default=None)


def _cpu(memory: float) -> Hardware:
    cores = cpu_cores()
    flops = cores * CPU_FLOPS_PER_CORE
    return Hardware(f"CPU, {cores} cores", memory, flops, CPU_BANDWIDTH, 1.0, here=True, device="cpu")
