"""Batched sampling in plain PyTorch, for any causal language model of transformers on any device.

It samples with the policy's own weights, so they cannot be stale. Every distinct prompt is read once and its KV cache
copied for its completions; rows that have finished are dropped from the batch.

Randomness is a function of (request seed, position) alone: one uniform number per token, drawn by hashing, picks the
token from the cumulative distribution. A completion therefore does not depend on what else is in the batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import DynamicCache

from grpo.engines.base import EngineCosts, SamplingParams
from grpo.policy import Policy
from grpo.settings import Config
from grpo.types import Completion, FinishReason, Request

COMPACT_BELOW = 0.75


class TorchEngine:
    name = "torch"
    costs = EngineCosts(
        logit_bytes=36,  # float32 copies, and cumulative sums in float64
        logit_traffic=60,
        step_s=12e-3,  # Python calls every kernel
        host_token_s=0.0,
        start_s=20.0,
        batch=64,
        reserves_cache=False,
        shares_weights=True,
    )

    def __init__(self, max_num_seqs: int = 512):
        self.max_num_seqs, self.version = max_num_seqs, 0
        self._policy: Policy | None = None
        self._drafts: list[Draft] = []

    @classmethod
    def start(cls, config: Config, device: torch.device) -> TorchEngine:
        return cls(config.rollout.max_num_seqs)

    @classmethod
    def problems(cls, device: str) -> list[str]:
        return []

    @classmethod
    def notices(cls) -> list[str]:
        return []

    def sync(self, policy: Policy) -> None:
        self._policy = policy
        self.version += 1

    def sleep(self) -> None:
        """Nothing is held between calls: the KV cache lives inside `generate`."""

    def close(self) -> None:
        self._policy = None

    def progress(self) -> str:
        finished = sum(draft.finish_reason is not None for draft in self._drafts)
        return f"{finished}/{len(self._drafts)}" if self._drafts else ""

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[list[Completion]]:
        if self._policy is None:
            raise RuntimeError("the engine has no weights yet: call sync(policy) before generate")
        groups = [[Draft(r.prompt_ids, r.seed + i) for i in range(r.n)] for r in requests]
        self._drafts = drafts = [draft for group in groups for draft in group]
        with self._policy.sampling():
            for start in range(0, len(drafts), self.max_num_seqs):
                _write(self._policy, drafts[start : start + self.max_num_seqs], sampling)
        return [[Completion(tuple(d.ids), tuple(d.logprobs), d.finish_reason) for d in group] for group in groups]


@dataclass(eq=False, slots=True)
class Draft:
    """A completion while it is written."""

    prompt_ids: tuple[int, ...]
    seed: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    """None: it is still written"""


def _write(policy: Policy, drafts: Sequence[Draft], sampling: SamplingParams) -> None:
    """Fills in all drafts, one token each at a time."""
    stop = () if sampling.ignore_eos else policy.stop_ids
    context = Context(policy, [draft.prompt_ids for draft in drafts])
    for position in itertools.count():
        u = uniforms(np.array([draft.seed for draft in drafts], dtype=np.uint64), position)
        tokens, logprobs = _pick(policy, context.hidden, u, sampling)
        for draft, token, logprob in zip(drafts, tokens.tolist(), logprobs.tolist(), strict=True):
            if draft.finish_reason is None:
                draft.ids.append(token)
                draft.logprobs.append(logprob)
                if token in stop:
                    draft.finish_reason = "stop"
                elif len(draft.ids) == sampling.max_new_tokens:
                    draft.finish_reason = "length"
        going = [row for row, draft in enumerate(drafts) if draft.finish_reason is None]
        if not going:
            return
        if len(going) < COMPACT_BELOW * len(drafts):
            drafts, tokens = [drafts[row] for row in going], tokens[going]
            context.select(going)
        context.read(tokens[:, None])


class Context:
    """What the network has read so far, one text a row, left-padded to one length. Equal prompts are read once."""

    hidden: torch.Tensor
    """[B, H] the last token's hidden states"""

    def __init__(self, policy: Policy, prompts: Sequence[tuple[int, ...]]):
        self.policy, self.cache = policy, DynamicCache()
        texts = list(dict.fromkeys(prompts))
        longest = max(map(len, texts))
        padded = [[0] * (longest - len(text)) + list(text) for text in texts]
        self.padding = torch.tensor([longest - len(text) for text in texts], device=policy.device)  # [B] tokens
        self.ragged = bool(self.padding.any())  # else no mask is needed: attention is plainly causal
        self.read(torch.tensor(padded, device=policy.device))
        row = {text: i for i, text in enumerate(texts)}
        self.select([row[prompt] for prompt in prompts])

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may be named more than once."""
        index = torch.tensor(rows, device=self.policy.device)
        self.cache.batch_select_indices(index)
        self.padding, self.hidden = self.padding[index], self.hidden[index]

    def read(self, ids: torch.Tensor) -> None:
        """[B, T] the next T tokens of every row."""
        columns = torch.arange(self.cache.get_seq_length() + ids.shape[1], device=ids.device)
        new = columns[-ids.shape[1] :]
        # A token sees the real ones up to itself. Padding may see itself, or its softmax would be over nothing.
        real, itself = columns >= self.padding[:, None, None], columns == new[:, None]  # [B, 1, K], [T, K]
        seen = real & (columns <= new[:, None]) | itself  # [B, T, K], K columns read so far
        network = self.policy.network
        backbone = getattr(network, network.base_model_prefix)
        self.hidden = backbone(
            input_ids=ids,
            position_ids=(new - self.padding[:, None]).clamp(min=0),
            attention_mask=seen[:, None] if self.ragged else None,
            past_key_values=self.cache,
            use_cache=True,
            segments=None,
        ).last_hidden_state[:, -1]


def _pick(
    policy: Policy, hidden: torch.Tensor, u: np.ndarray, sampling: SamplingParams
) -> tuple[torch.Tensor, torch.Tensor]:
    """[B] tokens and [B] their log-probabilities under the distribution they were drawn from."""
    logits = policy.logits(hidden)
    greedy = sampling.temperature == 0
    logp = torch.log_softmax(logits if greedy else logits.div_(sampling.temperature), -1)
    tokens = logits.argmax(-1) if greedy else draw(logp, torch.from_numpy(u).to(logp.device))
    return tokens, logp.gather(-1, tokens[:, None])[:, 0]


def draw(logp: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """[B, V] log-probabilities, [B] numbers in [0, 1) -> [B] tokens: the first whose cumulative probability exceeds u.

    This is what torch.multinomial does, with a number u of our own. The sum is float64: near 1, a float32 sum moves in
    steps of 6e-8 and would give the rare tokens of a large vocabulary wrong shares.
    """
    cumulative = logp.exp().cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    # Rounding may take u * total up to the total, which no token exceeds: then the last possible token is drawn.
    target = torch.minimum(u[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True)[:, 0]


def uniforms(seeds: np.ndarray, position: int) -> np.ndarray:
    """[B] numbers in [0, 1), a pure function of (seed, position): two rounds of splitmix64's finaliser."""
    with np.errstate(over="ignore"):
        x = _mix(seeds + np.uint64(0x9E3779B97F4A7C15))
        x = _mix(x + np.uint64(position + 1) * np.uint64(0x9E3779B97F4A7C15))
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


ENGINE = TorchEngine
