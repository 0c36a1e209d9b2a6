"""A rollout: draws problems, samples completions from the policy, decodes and scores them."""

from __future__ import annotations

import hashlib
import math
import re
from collections import ChainMap, Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from data import tasks
from grpo.engines.base import Engine, SamplingParams
from grpo.types import Completion, Group, Problem, Request
from rewards import Reward, Row, Score

if TYPE_CHECKING:  # eval.py answers --help and mistakes before torch is imported, which takes seconds
    from transformers import PreTrainedTokenizerBase

    from grpo.settings import Config

_OPENED = re.compile(r"<think>\s*\Z")


def draw(problems: list[Problem], count: int, seed: int, step: int) -> list[Problem]:
    """The problems of step 1, 2, ...: a function of (seed, step) alone, so a resumed run continues where it stopped.

    Each pass over the data is a new permutation. The rows left over at its end, too few for a step, are dropped. Fewer
    rows than `count` are repeated until there are enough.
    """
    repeats = math.ceil(count / len(problems))
    per_epoch = len(problems) * repeats // count
    epoch, batch = divmod(step - 1, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(len(problems) * repeats)
    return [problems[i % len(problems)] for i in order[batch * count : (batch + 1) * count]]


def rollout(engine: Engine, problems: Sequence[Problem], n: int, sampling: SamplingParams, *key: int) -> list[Group]:
    """`n` completions of each problem. The random numbers are a function of (*key, problem, sample) alone.

    `key` is (seed, step) in training, and (seed,) in an evaluation. If a step draws a problem twice, each draw gets its
    own seed.
    """
    requests = []
    seen: Counter[int] = Counter()
    for problem in problems:
        earlier_draws = (seen[problem.index],) if problem.index in seen else ()
        seen[problem.index] += 1
        requests.append(Request(problem.prompt_ids, n, request_seed(*key, problem.index, *earlier_draws)))
    completions = engine.generate(requests, sampling)
    return [Group(problem, tuple(group)) for problem, group in zip(problems, completions, strict=True)]


class Replaced(NamedTuple):
    """The groups, all of whose advantages were 0, that `replace_flat_groups` has replaced."""

    rounds: int
    groups: list[Group]
    scores: list[list[Score]]


def replace_flat_groups(
    engine: Engine,
    reward: Reward,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    groups: list[Group],
    texts: list[list[str]],
    scores: list[list[Score]],
    config: Config,
    step: int,
    clock: Callable[[str], AbstractContextManager],
) -> Replaced:
    """Replaces groups whose advantages are all 0 with groups of further problems, in place (DAPO, arXiv 2503.14476).

    Makes at most `rollout.resample_flat_groups` rounds, in an order that (seed, step) determines, and never draws a
    problem that the step already has. `clock("rollout")` and `clock("reward")` measure the time.
    """
    from grpo.advantage import compute_advantages  # imports torch

    limit = config.rollout.resample_flat_groups
    drawn = {group.problem.index for group in groups}
    order = np.random.default_rng([config.seed, step, 1]).permutation(len(problems))
    further = [problems[i] for i in order if problems[i].index not in drawn]
    sampling = SamplingParams.of_training(config)
    replaced = Replaced(0, [], [])
    while replaced.rounds < limit:
        advantages = compute_advantages(scores, reward.weights, config.learner.advantage)
        flat = [g for g, row in enumerate(advantages) if not row.any()][: len(further)]
        if not flat:
            break
        with clock("rollout"):
            new = rollout(engine, further[: len(flat)], config.rollout.group_size, sampling, config.seed, step)
        del further[: len(flat)]
        with clock("reward"):
            new_texts = decode(tokenizer, new)
            new_scores = score(reward, new, new_texts)
        for i, g in enumerate(flat):
            replaced.groups.append(groups[g])
            replaced.scores.append(scores[g])
            groups[g], texts[g], scores[g] = new[i], new_texts[i], new_scores[i]
        replaced = replaced._replace(rounds=replaced.rounds + 1)
    return replaced


def decode(tokenizer: PreTrainedTokenizerBase, groups: Sequence[Group]) -> list[list[str]]:
    """Returns the completions' texts, [groups][completions], for reading and scoring. Training uses the ids."""
    return [[text_of(tokenizer, group.problem.prompt, c) for c in group.completions] for group in groups]


def text_of(tokenizer: PreTrainedTokenizerBase, prompt: str, completion: Completion) -> str:
    """Returns a completion's text as the model wrote it, without its stop token and padding.

    Other special tokens stay: some tokenizers have <think> as one. A <think> that the chat template opened at the end
    of the prompt belongs to the completion, so that it is read with its closing tag.
    """
    written = completion.ids[:-1] if completion.finish_reason == "stop" else completion.ids
    ids = [token for token in written if token != tokenizer.pad_token_id]
    opened = _OPENED.search(prompt)
    text = tokenizer.decode(ids, skip_special_tokens=False, spaces_between_special_tokens=False)
    return (opened.group() if opened else "") + text


def score(reward: Reward, groups: Sequence[Group], texts: Sequence[Sequence[str]]) -> list[list[Score]]:
    """Returns the scores, [groups][completions]. Only completions count: tags in the prompt earn nothing."""
    scores = iter(
        reward.score_batch(
            [text for group in texts for text in group],
            [group.problem.ground_truth for group in groups for _ in group.completions],
            reward_rows(groups),
        )
    )
    return [[next(scores) for _ in group.completions] for group in groups]


def reward_rows(groups: Sequence[Group]) -> list[Row]:
    """Returns the `reward_row` of each completion, group after group."""
    return [reward_row(group.problem, completion) for group in groups for completion in group.completions]


def reward_row(problem: Problem, completion: Completion | None = None) -> Row:
    """Returns what a reward may read beside text and ground truth. The data's columns do not override these names."""
    facts: dict[str, Any] = {
        "question": question(problem),
        "prompt": problem.prompt,
        "messages": problem.chat,
        "completion_ids": list(completion.ids) if completion else [],
    }
    return ChainMap(facts | tasks.scorer_of(problem.extra), problem.extra)


def question(problem: Problem) -> str:
    """Returns the last message, as the data set has it."""
    return problem.chat[-1]["content"] if problem.chat else problem.prompt


def calibrate(
    reward: Reward, engine: Engine, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], config: Config
) -> None:
    """Fits a reward's scale, if it has one, to completions of the first problems, before training."""
    if not reward.calibration_size:
        return
    first = problems[: math.ceil(reward.calibration_size / config.rollout.group_size)]
    sampling = SamplingParams.of_training(config)
    n = math.ceil(reward.calibration_size / len(first))
    groups = rollout(engine, first, n, sampling, config.seed, 0)
    texts = [text for group in decode(tokenizer, groups) for text in group]
    reward.calibrate(texts, reward_rows(groups))


def request_seed(*key: int) -> int:
    """62 well-mixed bits. Completion i uses seed + i, so the seeds of two prompts practically never collide."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 2
