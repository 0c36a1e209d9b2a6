"""Batched sampling in plain PyTorch, for any causal language model of transformers on any device.

It samples with the policy's own weights, so they cannot be stale. Every distinct prompt is read once and its KV cache
copied for its completions; rows that have finished are dropped from the batch.

Randomness is a function of (request seed, position) alone: one uniform number per token, drawn by hashing, picks the
token from the cumulative distribution. A completion therefore does not depend on what else is in the batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from grpo.logprob import addmm
from grpo.policy import Policy
from grpo.rollout import Sampling
from grpo.types import Completion, FinishReason, Request

CACHE_BLOCK = 64
COMPACT_BELOW = 0.75


class TorchEngine:
    def __init__(self, max_sequences: int = 512):
        self.max_sequences, self.version = max_sequences, 0
        self._policy: Policy | None = None

    def sync(self, policy: Policy) -> None:
        self._policy = policy
        self.version += 1

    def sleep(self) -> None:
        """Nothing is held between calls: the KV cache lives inside `generate`."""

    def close(self) -> None:
        self._policy = None

    @torch.no_grad()
    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        if self._policy is None:
            raise RuntimeError("the engine has no weights yet: call sync(policy) before generate")
        groups = [[Draft(r.prompt_ids, r.seed + i) for i in range(r.n)] for r in requests]
        drafts = [draft for group in groups for draft in group]
        with self._policy.sampling():
            for start in range(0, len(drafts), self.max_sequences):
                _write(self._policy, drafts[start : start + self.max_sequences], sampling, progress)
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


def _write(policy: Policy, drafts: Sequence[Draft], sampling: Sampling, progress: Callable[[int], None] | None) -> None:
    """Fills in all drafts, one token each at a time."""
    stop = () if sampling.ignore_eos else policy.stop_ids
    context, going = Context(policy, [draft.prompt_ids for draft in drafts]), drafts
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
        before, going = len(going), [row for row, draft in enumerate(drafts) if draft.finish_reason is None]
        if progress is not None:
            progress(before - len(going))
        if not going:
            return
        if len(going) < COMPACT_BELOW * len(drafts):
            drafts, tokens = [drafts[row] for row in going], tokens[going]
            context.select(going)
        context.read(tokens)


class Context:
    """What the network has read so far, one text a row, left-padded to one length. Equal prompts are read once."""

    hidden: torch.Tensor
    """[B, H] the last token's hidden states"""

    def __init__(self, policy: Policy, prompts: Sequence[tuple[int, ...]]):
        self.policy, device = policy, policy.device
        row = {text: i for i, text in enumerate(dict.fromkeys(prompts))}
        texts = list(row)
        longest = max(map(len, texts))
        pad = policy.stop_ids[0] if policy.stop_ids else 0
        ids = torch.tensor([[pad] * (longest - len(text)) + list(text) for text in texts], device=device)
        self.lengths = torch.tensor([len(text) for text in texts], device=device)
        columns, padding = torch.arange(longest, device=device), longest - self.lengths[:, None]
        self.real = columns >= padding  # [B, longest] bool
        self.ragged = bool(padding.any())  # else no mask is needed: attention is plainly causal
        self.cache = KVCache(longest + CACHE_BLOCK)
        # A padding token may see itself, or its softmax would be over nothing.
        causal, itself = columns[:, None] >= columns, torch.eye(longest, dtype=torch.bool, device=device)
        self._forward(ids, (columns - padding).clamp(min=0), (causal & self.real[:, None] | itself)[:, None])
        self.select([row[prompt] for prompt in prompts])

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may be named more than once."""
        index = torch.tensor(rows, device=self.policy.device)
        self.cache.select(index)
        self.lengths, self.real, self.hidden = self.lengths[index], self.real[index], self.hidden[index]

    def read(self, tokens: torch.Tensor) -> None:
        """[B] one more token for every row."""
        self.real = torch.cat([self.real, self.real.new_ones(len(tokens), 1)], 1)
        self._forward(tokens[:, None], self.lengths[:, None], self.real[:, None, None])
        self.lengths = self.lengths + 1

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor) -> None:
        """[B, T] ids and positions, [B, 1, T, texts so far] bool: what each token may look at."""
        network = self.policy.network
        backbone = getattr(network, network.base_model_prefix)
        self.cache.begin(ids.shape[1])
        self.hidden = backbone(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask if self.ragged else None,
            past_key_values=self.cache,
            use_cache=True,
            segments=None,
        ).last_hidden_state[:, -1]


def _pick(policy: Policy, hidden: torch.Tensor, u: np.ndarray, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """[B] tokens and [B] their log-probabilities under the distribution they were drawn from."""
    head = policy.network.get_output_embeddings().weight
    logits = hidden.new_empty(len(hidden), len(head), dtype=torch.promote_types(hidden.dtype, torch.float32))
    addmm(logits, hidden, head.T, beta=0)  # in float32, as the trainer's
    if sampling.temperature == 0:
        logp = torch.log_softmax(logits, -1)
        tokens = logits.argmax(-1)
    else:
        logp = torch.log_softmax(logits.div_(sampling.temperature), -1)
        if sampling.top_p < 1:
            logp = _nucleus(logp, sampling.top_p)
        tokens = draw(logp, torch.from_numpy(u).to(logp.device))
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


def _nucleus(logp: torch.Tensor, top_p: float) -> torch.Tensor:
    """The smallest set of likeliest tokens that holds `top_p` of the probability, renormalised."""
    ordered, order = logp.sort(-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    dropped = torch.zeros_like(logp, dtype=torch.bool).scatter(-1, order, before >= top_p)
    return torch.log_softmax(logp.masked_fill(dropped, -torch.inf), -1)


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


class KVCache:
    """Keys and values of every layer, [B, kv_heads, capacity, D], written in place and grown by blocks."""

    def __init__(self, capacity: int):
        self.capacity, self.start, self.end = capacity, 0, 0
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def begin(self, tokens: int) -> None:
        """Announce a forward pass over so many tokens."""
        self.start, self.end = self.end, self.end + tokens
        if self.end > self.capacity:
            self.capacity = max(self.end, self.capacity + max(CACHE_BLOCK, self.capacity // 2))
            self.layers = [(self._grown(k), self._grown(v)) for k, v in self.layers]

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int, *_, **__) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by the model's attention: adds the new tokens' and returns all of them so far."""
        if layer == len(self.layers):
            self.layers.append((self._grown(key[:, :, :0]), self._grown(value[:, :, :0])))
        keys, values = self.layers[layer]
        keys[:, :, self.start : self.end] = key
        values[:, :, self.start : self.end] = value
        return keys[:, :, : self.end], values[:, :, : self.end]

    def get_seq_length(self, layer: int = 0) -> int:
        return self.start

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows of the batch, in this order; a row may be named more than once."""
        self.layers = [(k[rows], v[rows]) for k, v in self.layers]

    def _grown(self, old: torch.Tensor) -> torch.Tensor:
        new = old.new_empty(*old.shape[:2], self.capacity, old.shape[3])
        new[:, :, : old.shape[2]] = old
        return new
