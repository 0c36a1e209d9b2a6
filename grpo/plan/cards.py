"""What a card can hold and how fast it is: data sheets for the plan, and the machine at hand."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace

import psutil
import torch

from grpo.config import nearest
from grpo.errors import UserError

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Card:
    name: str
    memory: float
    """bytes: what torch reports as total, a little under the name's figure; on this machine, what is free"""
    flops: float
    """dense bf16 operations per second with float32 sums, by the data sheet (CPU: fp32, a rough figure)"""
    bandwidth: float
    """bytes per second of the card's own memory"""
    sustained: float = 0.7
    """share of `flops` that matrix products keep up; measured on an H100 (649 of 989 over 3 s), else assumed: an L4 is
    bound by its 72 W"""
    here: bool = False
    """in this machine, not only in the table"""
    bf16: bool = True
    """computes in bfloat16"""

    @property
    def is_cpu(self) -> bool:
        return self.name.startswith("CPU")


def _gpu(name: str, gib: float, teraflops: float, gigabytes_per_second: float, sustained: float = 0.7) -> Card:
    return Card(name, gib * GIB, teraflops * 1e12, gigabytes_per_second * 1e9, sustained)


CARDS = {
    "l4": _gpu("L4", 22.0, 121, 300, 0.5),
    "a10": _gpu("A10", 22.0, 125, 600),
    "a10g": _gpu("A10G", 22.0, 70, 600),
    "l40s": _gpu("L40S", 44.4, 362, 864),
    "3090": _gpu("3090", 23.6, 71, 936),
    "4090": _gpu("4090", 23.5, 165, 1008),
    "a1000": _gpu("A1000", 7.8, 27, 192),
    "a100": _gpu("A100", 79.2, 312, 1935),
    "h100": _gpu("H100", 79.1, 989, 3350, 0.66),
    "h100-pcie": _gpu("H100 PCIe", 79.1, 756, 2000),
    "h200": _gpu("H200", 139.8, 989, 4800, 0.66),
    "b200": _gpu("B200", 178.0, 2250, 8000),
}
UNKNOWN = "a10"
"""whose speed a card is planned with that is not in the table"""
CPU_FLOPS_PER_CORE = 20e9
CPU_BANDWIDTH = 10e9


def card_named(name: str) -> Card:
    """From the table, or `cpu`: this machine's processor."""
    if name.lower() == "cpu":
        return _cpu(psutil.virtual_memory().total)
    if name.lower() not in CARDS:
        names = [*CARDS, "cpu"]
        raise UserError(f"no data sheet for {name!r}; there are {', '.join(names)}{nearest(name.lower(), names)}")
    return CARDS[name.lower()]


def this_card(device: torch.device) -> Card:
    """The device a run would use, with the memory that is free now."""
    if device.type != "cuda":
        return _cpu(psutil.virtual_memory().available)
    free, _ = torch.cuda.mem_get_info(device)
    name = torch.cuda.get_device_name(device).removeprefix("NVIDIA ")
    bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
    return replace(known(name) or CARDS[UNKNOWN], name=name, memory=float(free), here=True, bf16=bf16)


def known(name: str) -> Card | None:
    """The card of the table whose name is in the device's as whole words: an L40S is no L4, an RTX A1000 no A100."""
    fitting = [card for card in CARDS.values() if re.search(rf"\b{card.name}\b", name)]
    return max(fitting, key=lambda card: len(card.name), default=None)


def _cpu(memory: float) -> Card:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Card(f"CPU, {cores} cores", float(memory), cores * CPU_FLOPS_PER_CORE, CPU_BANDWIDTH, 1.0, here=True)
