"""The sampler's interface, and the choice between its two implementations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from grpo.types import Completion, Request

if TYPE_CHECKING:
    from grpo.policy import Policy


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
