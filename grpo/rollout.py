"""A rollout: draws problems, samples completions from the policy, decodes and scores them."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from grpo.engines.base import Engine, SamplingParams
from grpo.errors import UserError
from grpo.types import Group, Problem, Request
from rewards import Reward, Score, make_reward, self_test

if TYPE_CHECKING:  # eval.py answers --help and mistakes before torch is imported, which takes seconds
    from transformers import PreTrainedTokenizerBase

    from grpo.settings import Config


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
    engine: Engine, problems: Sequence[Problem], n: int, sampling: SamplingParams, seed: int, step: int
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
    first = problems[: math.ceil(wanted / config.rollout.group_size)]
    sampling = SamplingParams(config.rollout.max_new_tokens, config.rollout.temperature)
    groups = rollout(engine, first, math.ceil(wanted / len(first)), sampling, config.seed, step=0)
    texts = decode(tokenizer, groups)
    questions = [question(group.problem) for group in groups for _ in group.completions]
    reward.warm_up(questions, [text for group in texts for text in group])


def request_seed(*key: int) -> int:
    """62 well-mixed bits: the seeds of two prompts' samples (seed, seed + 1, ...) practically never meet."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 2
