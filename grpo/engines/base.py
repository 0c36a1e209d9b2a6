"""The sampler's interface: sampling parameters, the `Engine` protocol, and the choice of a device and an engine.

Engine NAME is the class `ENGINE` of grpo/engines/NAME_engine.py. To add one, write that file and add its name to
`rollout.engine` in grpo/settings.py.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from grpo.errors import UserError
from grpo.machine import DRIVER, driver_problem, driver_version
from grpo.settings import ENGINES
from grpo.types import Completion, Request

if TYPE_CHECKING:  # eval.py answers --help and mistakes before torch is imported, which takes seconds
    import torch
    from transformers import PreTrainedConfig

    from grpo.policy import Policy
    from grpo.settings import Config

ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling always draws from the model's whole distribution, because the loss differentiates that."""

    max_new_tokens: int
    temperature: float = 1.0
    """0 means greedy: the likeliest token, the lowest id on a tie"""
    ignore_eos: bool = False
    """Run every completion to `max_new_tokens`; for benchmarks"""

    @classmethod
    def of_training(cls, config: Config) -> SamplingParams:
        """Those of the completions that a run trains on."""
        return cls(config.rollout.max_new_tokens, config.rollout.temperature)


@dataclass(frozen=True, slots=True)
class EngineCosts:
    """Memory and time of an engine on a GPU, for the plan."""

    logit_bytes: int
    """held for each logit of the running sequences while sampling"""
    logit_traffic: int
    """bytes moved for each logit of the running sequences in a decoding step"""
    step_s: float
    """fixed overhead of a decoding step, in seconds"""
    host_token_s: float
    """seconds of the host's thread for a token, while the GPU works"""
    start_s: float
    """seconds from loading to the first token"""
    batch: int
    """completions that eval.py requests at once; a kill loses at most these"""
    reserves_cache: bool
    """The KV cache has a fixed size, which the plan chooses. Else it grows as it fills."""
    shares_weights: bool
    """samples with the policy's own tensors"""
    sleeps: bool = False
    """can give its memory back between rollouts"""
    batched_tokens: int = 0
    """prompt tokens read at once"""
    graph_bytes: int = 0
    """CUDA graphs, which stay while the engine sleeps"""
    kept_logit_bytes: int = 0
    """held for each logit of the running sequences even while the engine sleeps"""


class Engine(Protocol):
    """Samples completions with a copy of the policy's weights.

    Only `sync` sets weights, and `version` counts its calls. A fresh engine has version 0 and may not generate before
    its first sync. A subclass inherits the methods that have a body here.
    """

    name: ClassVar[str]
    costs: ClassVar[EngineCosts]
    version: int

    @classmethod
    def start(cls, config: Config, device: torch.device) -> Engine: ...

    @classmethod
    def problems(cls, device: str) -> list[str]:
        """One line for each reason why the engine cannot run on this machine's `device` (cpu or cuda)."""
        return []

    def sync(self, policy: Policy) -> None:
        """Takes the policy's present weights and drops everything that was cached under the old ones."""
        ...

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[list[Completion]]:
        """Returns `requests[i].n` completions for each request, in order."""
        ...

    def sleep(self) -> None:
        """Gives accelerator memory to the learner until the next `sync`. Does nothing without memory of its own."""
        return

    def progress(self) -> str:
        """Progress of the current `generate`, finished/total such as 12/62; empty if unknown."""
        return ""

    def close(self) -> None: ...


def kv_elements(model: PreTrainedConfig) -> int:
    """Numbers that the KV cache holds for one token, over all layers of a text model."""
    width = getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads
    heads = getattr(model, "num_key_value_heads", None) or model.num_attention_heads
    return 2 * model.num_hidden_layers * heads * width


def choose_device(setting: str = "auto", driver: Path = DRIVER) -> torch.device:
    """Chooses where to train, evaluate and sample: cuda where torch can use it, unless `setting` is cpu.

    Raises UserError if torch cannot use a GPU although `setting` asks for one or an NVIDIA `driver` is loaded.
    """
    import torch

    usable = torch.cuda.is_available()
    if setting == "cpu" or (setting == "auto" and not usable and not driver.exists()):
        return torch.device("cpu")
    if usable:
        return torch.device("cuda")
    built = f"torch {torch.__version__}" + (f" (CUDA {torch.version.cuda})" if torch.version.cuda else " (no CUDA)")
    cure = "use --device cpu"
    if not driver.exists():
        reason = "no NVIDIA driver is loaded"
    elif line := driver_problem(driver_version(driver)):
        reason = line
    elif "CUDA_VISIBLE_DEVICES" in os.environ:
        reason = f"CUDA_VISIBLE_DEVICES is {os.environ['CUDA_VISIBLE_DEVICES']!r}"
    else:
        reason = "an NVIDIA driver is loaded"
        cure = "check nvidia-smi, run make gpu, or use --device cpu"
    raise UserError(f"{built} finds no CUDA device: {reason}; {cure}")


def engine_type(name: str) -> type[Engine]:
    """The engine class of that name, which need not be able to run here."""
    return import_module(f"grpo.engines.{name}_engine").ENGINE


def choose_engine(setting: str, device: str) -> type[Engine]:
    """The engine of that name; for auto, the last of ENGINES that can run on this machine's `device`."""
    if setting != "auto":
        return engine_type(setting)
    return next(engine for engine in map(engine_type, reversed(ENGINES)) if not engine.problems(device))


def make_engine(config: Config, device: torch.device) -> Engine:
    """Starts the sampler that `rollout.engine` names. Raises UserError if it cannot run."""
    engine = choose_engine(config.rollout.engine, device.type)
    if problems := engine.problems(device.type):
        raise UserError("\n".join(problems))
    sleeps = config.rollout.sleep and engine.costs.sleeps
    if device.type == "cuda" and not sleeps and not any(name in os.environ for name in ALLOCATOR_VARIABLES):
        import torch

        # Growing segments leave no gaps between allocations. The memory pool of an engine that sleeps forbids them.
        torch._C._accelerator_setAllocatorSettings("expandable_segments:True")
    return engine.start(config, device)
