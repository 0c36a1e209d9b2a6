"""Batched sampling in plain PyTorch, for any causal language model of transformers on any device.

It samples with the policy's own weights, so they cannot be stale. It reads the prompts' common beginning once, then the
rest of each distinct prompt, and copies the KV cache for the completions. Rows that have finished leave the batch.

Randomness is a function of (request seed, position) alone: one uniform number per token, drawn by hashing, picks the
token from the cumulative distribution. A completion therefore does not depend on what else is in the batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer

from grpo.engines.base import Engine, EngineCosts, SamplingParams
from grpo.policy import Policy
from grpo.settings import Config
from grpo.types import Completion, FinishReason, Request

COMPACT_BELOW = 7 / 8
"""Finished rows are dropped once at most this share of the rows is still running."""
BLOCK = 1024
ROOM = 64
"""A KV cache that is made or grows gets room for at least this many further tokens."""


class TorchEngine(Engine):
    name: ClassVar[str] = "torch"
    costs: ClassVar[EngineCosts] = EngineCosts(
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
        self.max_num_seqs = max_num_seqs
        self.version = 0
        self._policy: Policy | None = None
        self._drafts: list[Draft] = []

    @classmethod
    def start(cls, config: Config, device: torch.device) -> TorchEngine:
        return cls(config.rollout.max_num_seqs)

    def sync(self, policy: Policy) -> None:
        self._policy = policy
        self.version += 1

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
        return [[draft.completion() for draft in group] for group in groups]


@dataclass(eq=False, slots=True)
class Draft:
    """A completion while it is written."""

    prompt_ids: tuple[int, ...]
    seed: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    """None: not finished"""

    def completion(self) -> Completion:
        assert self.finish_reason is not None
        return Completion(tuple(self.ids), tuple(self.logprobs), self.finish_reason)


def _write(policy: Policy, drafts: Sequence[Draft], sampling: SamplingParams) -> None:
    """Completes all drafts, one token at a time."""
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
        running = [row for row, draft in enumerate(drafts) if draft.finish_reason is None]
        if not running:
            return
        if len(running) <= COMPACT_BELOW * len(drafts):
            rows = context.keep(running)
            drafts = [drafts[row] for row in rows]
            tokens = tokens[rows]
        context.read(tokens[:, None])


class Context:
    """The text that the network has read so far, one row for each completion, left-padded to one length.

    The common beginning of all prompts is read once, then the rest of each distinct prompt.
    """

    hidden: torch.Tensor
    """[B, H] the last token's hidden states"""

    def __init__(self, policy: Policy, prompts: Sequence[tuple[int, ...]]):
        self.policy = policy
        self.cache = Cache(layer_class_to_replicate=Buffer)
        texts = list(dict.fromkeys(prompts))
        lengths = [len(text) for text in texts]
        longest = max(lengths)
        padding = torch.tensor([longest - length for length in lengths], device=policy.device)
        common = min(_common(texts), min(lengths) - 1) if len(texts) > 1 else 0
        if common:
            self.padding = torch.zeros(1, dtype=torch.long, device=policy.device)
            self.ragged = False
            self.read(torch.tensor([texts[0][:common]], device=policy.device))
            for layer in self.cache.layers:
                layer.spread(padding)
        padded = [[0] * (longest - len(text)) + list(text) for text in texts]
        self.padding = padding  # [B] tokens
        self.ragged = len(set(lengths)) > 1
        self.read(torch.tensor(padded, device=policy.device)[:, common:])
        row = {text: i for i, text in enumerate(texts)}
        self._select([row[prompt] for prompt in prompts])

    def _select(self, rows: Sequence[int]) -> None:
        """Makes row i a copy of row rows[i]."""
        index = torch.tensor(rows, device=self.policy.device)
        self.cache.batch_select_indices(index)
        self.padding = self.padding[index]
        self.hidden = self.hidden[index]

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Keeps only these rows and returns their new order: the last ones move into the freed rows."""
        kept = set(rows)
        last = [row for row in rows if row >= len(rows)]
        order = [row if row in kept else last.pop() for row in range(len(rows))]
        for layer in self.cache.layers:
            layer.keep(order)
        self.padding = self.padding[order]
        return order

    def read(self, ids: torch.Tensor) -> None:
        """[B, T] the next T tokens of every row."""
        start = self.cache.get_seq_length()
        columns = torch.arange(start + ids.shape[1], device=ids.device)
        new = columns[start:]
        mask = None
        if self.ragged or (start and len(new) > 1):  # without a mask, attention is causal from column 0
            # A token sees the real ones up to itself. Padding attends to itself so that its softmax has one entry.
            real = columns >= self.padding[:, None, None]  # [B, 1, K]
            mask = (real & (columns <= new[:, None]) | (columns == new[:, None]))[:, None]  # [B, 1, T, K]
        network = self.policy.network
        backbone = getattr(network, network.base_model_prefix)
        self.hidden = backbone(
            input_ids=ids,
            position_ids=(new - self.padding[:, None]).clamp(min=0),
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            segments=None,
        ).last_hidden_state[:, -1]


def _common(texts: Sequence[tuple[int, ...]]) -> int:
    """Length of the common prefix. Comparing the first and the last text in sorted order suffices."""
    first, last = min(texts), max(texts)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))


class Buffer(DynamicLayer):
    """One layer's keys and values, with room for later tokens, so a new token copies none of the earlier ones."""

    buffers: tuple[torch.Tensor, ...] = ()
    """keys, values: [rows, kv_heads, room, D], of which `keys` and `values` are the part in use"""

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_, **__) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends [B, kv_heads, T, D] and returns all [B, kv_heads, K, D]."""
        start = self.get_seq_length()
        end = start + keys.shape[2]
        if not self.buffers or end > self.buffers[0].shape[2]:
            self._grow(end + max(ROOM, end // 4), keys, values)
        for buffer, new in zip(self.buffers, (keys, values), strict=True):
            buffer[: len(new), :, start:end] = new
        self._use(len(keys), end)
        return self.keys, self.values

    def _grow(self, room: int, *like: torch.Tensor) -> None:
        buffers = tuple(new.new_empty(*new.shape[:2], room, new.shape[3]) for new in like)
        for buffer, used in zip(buffers, (self.keys, self.values), strict=True):
            if used is not None:
                buffer[:, :, : used.shape[2]] = used
        self.buffers = buffers

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.buffers = tuple(buffer[indices] for buffer in self.buffers)
        self._use(len(indices), self.get_seq_length())

    def spread(self, padding: torch.Tensor) -> None:
        """Copies the only row once for each number in `padding`, shifted right by that many columns."""
        tokens = self.get_seq_length()
        columns = torch.arange(tokens, device=padding.device) - padding[:, None]  # [B, K]
        self.buffers = tuple(buffer[0][:, columns.clamp(min=0)].transpose(0, 1) for buffer in self.buffers)
        self._use(len(padding), tokens)

    def keep(self, order: Sequence[int]) -> None:
        """Moves row order[i] to row i. order[i] is i, or lies beyond len(order)."""
        moved = [i for i, row in enumerate(order) if i != row]
        tokens = self.get_seq_length()
        if moved:
            for buffer in self.buffers:
                buffer[moved, :, :tokens] = buffer[[order[i] for i in moved], :, :tokens]
        self._use(len(order), tokens)

    def _use(self, rows: int, tokens: int) -> None:
        self.keys, self.values = (buffer[:rows, :, :tokens] for buffer in self.buffers)
        self.is_initialized = True


def _pick(
    policy: Policy, hidden: torch.Tensor, u: np.ndarray, sampling: SamplingParams
) -> tuple[torch.Tensor, torch.Tensor]:
    """[B] tokens and [B] their log-probabilities under the distribution they were drawn from."""
    logits = policy.logits(hidden)
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, torch.log_softmax(logits, -1).gather(-1, tokens[:, None])[:, 0]
    if sampling.temperature != 1:
        logits.div_(sampling.temperature)
    probabilities = torch.softmax(logits, -1)
    tokens = draw(probabilities, torch.from_numpy(u).to(logits.device))
    return tokens, probabilities.gather(-1, tokens[:, None])[:, 0].log()


def draw(weights: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """[B, V] weights, [B] numbers in [0, 1) -> [B] tokens: the first whose cumulative weight exceeds u of the total.

    The same as torch.multinomial, with u given. In a large vocabulary it draws a block of BLOCK tokens first, then the
    token in it: one pass over the weights instead of several in float64.
    """
    if weights.shape[1] <= BLOCK:
        return _search(weights, u)[0]
    if short := -weights.shape[1] % BLOCK:
        weights = torch.nn.functional.pad(weights, (0, short))
    blocks = weights.unflatten(1, (-1, BLOCK))
    block, rest = _search(blocks.sum(-1), u)
    return block * BLOCK + _search(blocks[torch.arange(len(u), device=u.device), block], rest)[0]


def _search(weights: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns [B] the first index whose cumulative weight exceeds u * total, and [B] how far into it, in [0, 1).

    The sum is float64: near 1, a float32 sum moves in steps of 6e-8 and would distort the probabilities of rare tokens.
    """
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1]
    # Rounding may raise u * total to the total, which no cumulative weight exceeds. Then the last index is drawn.
    target = torch.minimum(u * total, _below(total))[:, None]
    index = torch.searchsorted(cumulative, target, right=True)
    weight = weights.gather(1, index).double()
    into = 1 - (cumulative.gather(1, index) - target) / weight
    return index[:, 0], into[:, 0].clamp(0, 1 - 2.0**-53)


def _below(x: torch.Tensor) -> torch.Tensor:
    """The next smaller number."""
    return x.nextafter(torch.zeros_like(x))


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
