"""What a card can hold and how fast it is: data sheets for the planner, and the machine at hand."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import psutil
import torch

from grpo.config import nearest
from grpo.errors import UserError
from grpo.plan.flops import DATASHEET

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Card:
    name: str
    memory: float
    """bytes: what torch reports as total, a little under the name's figure; on this machine, what is free"""
    flops: float
    """dense bf16 products per second by the data sheet (CPU: fp32, a rough figure)"""
    bandwidth: float
    """bytes per second of the card's own memory"""
    host_bandwidth: float = 20e9
    """bytes per second to the host's memory, pinned"""
    here: bool = False
    """in this machine, not only in the table"""

    @property
    def is_cpu(self) -> bool:
        return self.name.startswith("CPU")


def _gpu(name: str, gib: float, gigabytes_per_second: float) -> Card:
    return Card(name, gib * GIB, DATASHEET[name], gigabytes_per_second * 1e9)


CARDS = {
    "l4": _gpu("L4", 22.0, 300),
    "a10": _gpu("A10", 22.0, 600),
    "a100": _gpu("A100", 79.2, 1935),
    "h100": _gpu("H100", 79.1, 3350),
    "h200": _gpu("H200", 139.8, 4800),
}
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
    name = torch.cuda.get_device_name(device)
    # The longest name of the table that occurs in the device's: "NVIDIA A100-SXM4-80GB" is an A100, not an A10.
    known = max((card for card in CARDS.values() if card.name in name), key=lambda card: len(card.name), default=None)
    return replace(known or CARDS["a100"], name=name.removeprefix("NVIDIA "), memory=float(free), here=True)


def _cpu(memory: float) -> Card:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Card(f"CPU, {cores} cores", float(memory), cores * CPU_FLOPS_PER_CORE, CPU_BANDWIDTH, here=True)
