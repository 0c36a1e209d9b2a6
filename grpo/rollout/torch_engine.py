"""Batched sampling in plain PyTorch, for any causal language model of transformers on any device.

It samples with the policy's own weights, so they cannot be stale. Every distinct prompt is read once and its KV cache
copied for its completions; rows that have finished are dropped from the batch.

Randomness is a function of (request seed, position) alone: one uniform number per token, drawn by hashing, picks the
token from the cumulative distribution. A completion therefore does not depend on what else is in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from grpo.policy import Policy
from grpo.rollout import Sampling
from grpo.types import Completion, Request

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
        rows = [(request.prompt_ids, request.seed + i) for request in requests for i in range(request.n)]
        network = self._policy.network
        was_training = network.training
        network.eval()
        try:
            done: list[Completion] = []
            for start in range(0, len(rows), self.max_sequences):
                done += _decode(self._policy, rows[start : start + self.max_sequences], sampling, progress)
        finally:
            network.train(was_training)
        flat = iter(done)
        return [[next(flat) for _ in range(request.n)] for request in requests]


def _decode(
    policy: Policy,
    rows: Sequence[tuple[tuple[int, ...], int]],
    sampling: Sampling,
    progress: Callable[[int], None] | None,
) -> list[Completion]:
    """One completion for each (prompt ids, seed)."""
    device, stop = policy.device, set() if sampling.ignore_eos else set(policy.stop_ids)
    prompts = list(dict.fromkeys(ids for ids, _ in rows))
    hidden, cache, mask, lengths = _read_prompts(policy, prompts, sampling.max_new_tokens)
    of_row = torch.tensor([prompts.index(ids) for ids, _ in rows], device=device)
    cache.select(of_row)
    hidden, lengths = hidden[of_row], lengths[of_row]
    mask = None if mask is None else mask[of_row]
    seeds = np.array([seed for _, seed in rows], dtype=np.uint64)
    alive = np.arange(len(rows))  # which completion each row of the batch belongs to
    ids: list[list[int]] = [[] for _ in rows]
    logprobs: list[list[float]] = [[] for _ in rows]
    finish: list[str] = ["length"] * len(rows)
    running = len(rows)
    for position in range(sampling.max_new_tokens):
        tokens, chosen = _pick(policy, hidden, uniforms(seeds[alive], position), sampling)
        going = []
        for row, (completion, token, logprob) in enumerate(zip(alive, tokens.tolist(), chosen.tolist(), strict=True)):
            if finish[completion] == "stop":
                continue
            ids[completion].append(token)
            logprobs[completion].append(logprob)
            if token in stop:
                finish[completion] = "stop"
            else:
                going.append(row)
        cut = position + 1 == sampling.max_new_tokens
        if progress is not None:
            progress(running - (0 if cut else len(going)))
        running = len(going)
        if cut or not going:
            break
        if len(going) < COMPACT_BELOW * len(alive):
            keep = torch.tensor(going, device=device)
            cache.select(keep)
            tokens, lengths = tokens[keep], lengths[keep]
            mask = None if mask is None else mask[keep]
            alive = alive[going]
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        hidden = _forward(
            policy, tokens[:, None], lengths[:, None], cache, None if mask is None else mask[:, None, None]
        )
        lengths = lengths + 1
    return [Completion(tuple(i), tuple(p), f) for i, p, f in zip(ids, logprobs, finish, strict=True)]


def _read_prompts(policy: Policy, prompts: Sequence[tuple[int, ...]], max_new_tokens: int):
    """[P, H] last hidden states, their KV cache, [P, longest] bool mask of real tokens (None: all) and [P] lengths."""
    longest = max(map(len, prompts))
    pad = policy.stop_ids[0] if policy.stop_ids else 0
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=policy.device)
    lengths = torch.tensor([len(p) for p in prompts], device=policy.device)
    columns = torch.arange(longest, device=policy.device)
    positions = (columns - (longest - lengths[:, None])).clamp(min=0)
    mask = attend = None
    if int(lengths.min()) < longest:  # ragged: padding goes to the left, where nothing may look
        mask = columns >= longest - lengths[:, None]
        causal = columns[:, None] >= columns
        # A padding token may see itself, or its softmax would be over nothing.
        attend = (causal & mask[:, None, :] | torch.eye(longest, dtype=torch.bool, device=policy.device))[:, None]
    cache = KVCache(longest + min(max_new_tokens, CACHE_BLOCK))
    return _forward(policy, ids, positions, cache, attend), cache, mask, lengths


def _forward(policy: Policy, ids, positions, cache: KVCache, mask) -> torch.Tensor:
    """[B, T] ids -> [B, H] hidden states of the last token, with keys and values added to the cache."""
    network = policy.network
    backbone = getattr(network, network.base_model_prefix)
    cache.begin(ids.shape[1])
    out = backbone(
        input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=cache, use_cache=True, segments=None
    )
    return out.last_hidden_state[:, -1]


def _pick(policy: Policy, hidden: torch.Tensor, u: np.ndarray, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """[B] tokens and [B] their log-probabilities under the distribution they were drawn from."""
    logits = policy.network.get_output_embeddings()(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if sampling.temperature == 0:
        logp = torch.log_softmax(logits, -1)
        tokens = logits.argmax(-1)
    else:
        logp = torch.log_softmax(logits.div_(sampling.temperature), -1)
        if sampling.top_p < 1:
            logp = _nucleus(logp, sampling.top_p)
        tokens = _draw(logp, torch.from_numpy(u).to(logp.device))
    return tokens, logp.gather(-1, tokens[:, None])[:, 0]


def _draw(logp: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """[B, V] log-probabilities, [B] numbers in [0, 1) -> [B] tokens: where the cumulative distribution passes u.

    Searched in blocks of about sqrt(V) tokens, first the block and then the token in it, so that only their sums are
    taken in float64: in float32, a cumulative sum over a large vocabulary loses the rare tokens.
    """
    rows, vocabulary = logp.shape
    block = math.isqrt(vocabulary - 1) + 1
    p = logp.new_zeros(rows, -(-vocabulary // block) * block)
    torch.exp(logp, out=p[:, :vocabulary])
    p = p.view(rows, -1, block)
    sums = p.sum(-1).double()
    chosen, rest = _search(sums, u[:, None] * sums.sum(-1, keepdim=True))
    inside = p.gather(1, chosen[:, :, None].expand(-1, -1, block))[:, 0].double()
    return (chosen * block + _search(inside, rest)[0])[:, 0]


def _search(weights: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, n], [B, 1] -> [B, 1] the first entry at which the running sum exceeds `target`, and what is left of it there.

    Never an entry of weight 0, also where rounding brings the target to the end.
    """
    ends = weights.cumsum(-1)
    target = torch.minimum(target, ends[:, -1:].nextafter(torch.zeros_like(target)))
    index = torch.searchsorted(ends, target, right=True)
    return index, (target - (ends - weights).gather(1, index)).clamp(min=0)


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
