"""What the speed benchmarks share: random models, completions of given lengths, a learner, the loop, a stopwatch."""

from __future__ import annotations

import json
import math
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from data.tiny_base import make_tokenizer
from grpo.advantage import compute_advantages
from grpo.config import Config, changed
from grpo.learner import Learner
from grpo.packing import samples
from grpo.plan.memory import causal_pairs, training_flops
from grpo.policy import Policy, compute_dtype
from grpo.problems import read_problems
from grpo.rollout import Sampling, decode, draw, make_engine, rollout, score
from grpo.run.terminal import Clock
from grpo.types import Problem, Sample
from rewards import make_reward

REPO = Path(__file__).resolve().parent.parent
GIB = 2**30

SIZES = {
    "tiny": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 32},  # vLLM's least
    "1m": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 5},
    "vocabulary": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "vocab_size": 151_936},
    "1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
    },
}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96}


def make_config(size: str, **changes: int) -> Qwen2Config:
    shape = HEADS | SIZES[size] | changes
    config = Qwen2Config(**shape, tie_word_embeddings=True, max_position_embeddings=4096, bos_token_id=None)
    config.architectures = ["Qwen2ForCausalLM"]
    return config


def make_policy(shape: Qwen2Config, config: Config, device: torch.device) -> Policy:
    """The run's policy with random weights, made on the device: no file, no wait for a CPU's random numbers."""
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(shape, dtype=compute_dtype(config, device))
    return Policy(model, make_tokenizer(), config.policy, config.learner.logit_chunk, config.learner.kl_coef > 0)


def problems(tokenizer, max_prompt_tokens: int = 1024) -> list[Problem]:
    """128 of the built-in arithmetic problems."""
    return read_problems(str(REPO / "data/arithmetic/128.parquet"), tokenizer, "plain", max_prompt_tokens)[0]


def lognormal_lengths(count: int, mean: float, longest: int, sigma: float = 0.8) -> list[int]:
    """Completion lengths as reasoning has them: most short, a few very long. `sigma` is the spread of the logarithm."""
    rng = random.Random(0)
    mu = math.log(mean) - sigma**2 / 2
    return [min(longest, max(1, round(rng.lognormvariate(mu, sigma)))) for _ in range(count)]


def make_samples(lengths: list[int], group: int, prompt_tokens: int, vocabulary: int) -> list[list[Sample]]:
    """Groups of random completions of these lengths, with advantages of +1 and -1."""
    rng = random.Random(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.choices(range(3, vocabulary), k=count))

    groups = []
    for start in range(0, len(lengths), group):
        prompt = ids(prompt_tokens)
        rows = lengths[start : start + group]
        groups.append([Sample(prompt, ids(n), (0.0,) * n, rng.choice([-1.0, 1.0])) for n in rows])
    return groups


def make_learner(policy: Policy, config: Config) -> Learner:
    # Made-up completions were not sampled from this model.
    return Learner(policy, changed(config, {"rollout.mismatch_limit": 1e9}))


def packed_work(learner: Learner, groups: list[list[Sample]]) -> tuple[int, int]:
    """Tokens that pass through the layers in one forward and backward pass, and the operations that takes."""
    batches = learner._micro_batches([sample for group in groups for sample in group])
    tokens = sum(len(batch.input_ids) for batch in batches)
    pairs = sum(
        causal_pairs(end - start, prefix_end - prefix)
        for batch in batches
        for start, end, prefix, prefix_end in batch.segments.spans
    )
    policy = learner.policy
    predicted = sum(len(batch.targets) for batch in batches)
    return tokens, training_flops(policy.network.config, tokens, pairs, predicted, frozen=policy.lora)


class Loop:
    """train.py's loop without what it records, on the built-in arithmetic problems, all completions at full length."""

    def __init__(self, config: Config, policy: Policy):
        self.config, self.policy, self.clock = config, policy, Clock()
        self.problems = problems(policy.tokenizer, config.rollout.max_prompt_tokens)
        self.reward = make_reward("multi_signal", workers=1)
        self.learner = make_learner(policy, config)
        self.engine = make_engine(config, policy.device)
        self.engine.sync(policy)
        self.sampling = Sampling(config.rollout.max_new_tokens, config.rollout.temperature, ignore_eos=True)
        self.clock.read()

    def step(self, step: int) -> dict[str, float]:
        """Seconds by phase."""
        config = self.config
        with self.clock("rollout"):
            drawn = draw(self.problems, config.rollout.problems, config.seed, step)
            groups = rollout(self.engine, drawn, config.rollout.group, self.sampling, config.seed, step)
        with self.clock("reward"):
            scores = score(self.reward, groups, decode(self.policy.tokenizer, groups))
            advantages = compute_advantages(scores, self.reward.weights, config.learner.advantage)
        with self.clock("learn"):
            self.engine.sleep()
            self.learner.update(samples(groups, advantages, config.learner.truncated))
        with self.clock("sync"):
            self.engine.sync(self.policy)
        return self.clock.read()

    def close(self) -> None:
        self.engine.close()
        self.reward.close()


def stopwatch(work: Callable[[], object]) -> dict[str, float]:
    """Wall and processor seconds of `work`; on a busy machine the second says more."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}


def peak_gib() -> float:
    """The most memory held so far: the GPU's if there is one, else this process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def show(figures: dict, as_json: bool = False) -> None:
    if as_json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<36} {value:.4g}" if isinstance(value, float) else f"{name:<36} {value}")
