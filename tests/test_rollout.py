"""Decoding for rewards and readers: the text is what the model wrote."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from grpo.engines.base import SamplingParams
from grpo.rollout import decode, draw, replace_flat_groups, reward_row, rollout, score
from grpo.settings import build
from grpo.types import Completion, Group, Problem
from rewards import MultiSignalMathReward, Reward, Score

TAGS = ["<think>", "</think>", "<reflection>", "</reflection>"]
WORDS = ["<pad>", "<eos>", *TAGS, "a", "\\boxed{5}", "\\boxed{6}", "correct"]
PAD, EOS = 0, 1


@pytest.fixture(scope="module", params=[True, False], ids=["tags are special", "tags are words"])
def tokenizer(request) -> PreTrainedTokenizerFast:
    """A tokenizer of ten words; the tags are special tokens, as they are in DeepSeek's, or words like any other."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"additional_special_tokens": TAGS} if request.param else {}
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", **special)


def ids(text: str) -> tuple[int, ...]:
    return tuple(WORDS.index(word) for word in text.split())


def texts(tokenizer, prompt: str, *completions: Completion) -> list[str]:
    (decoded,) = decode(tokenizer, [Group(Problem(0, prompt, (), "5"), completions)])
    return decoded


LAID_OUT = "<think> a </think> \\boxed{5} <reflection> correct </reflection>"


def test_tags_that_are_special_tokens_stay_and_stop_and_pad_do_not(tokenizer):
    """A box in a thought is no answer, whether the tags are special tokens or not."""
    stopped = Completion((*ids(LAID_OUT), EOS), (), "stop")
    padded = Completion((PAD, *ids(LAID_OUT), PAD), (), "length")
    thought = Completion(ids("<think> \\boxed{5} </think>"), (), "length")
    written = texts(tokenizer, "a", stopped, padded, thought)
    assert written[:2] == [LAID_OUT, LAID_OUT]
    assert [MultiSignalMathReward()(text, "5").total for text in written] == [2.0, 2.0, 0.0]


@pytest.mark.parametrize(("prompt", "format"), [("ask <think>\n", (1.0, 0.0)), ("ask <think></think>", (0.0, 1.0))])
def test_a_thought_that_the_template_opened_belongs_to_the_completion(tokenizer, prompt, format):
    """If the template ends with <think>, a completion that begins with the thought has the layout and one that opens a
    second thought has not; where it wrote a whole (empty) thought, it is the other way round."""
    continued = Completion(ids(LAID_OUT)[1:], (), "length")
    second = Completion(ids(LAID_OUT), (), "length")
    scores = MultiSignalMathReward().score_batch(texts(tokenizer, prompt, continued, second), ["5", "5"])
    assert tuple(score.signals["format"] for score in scores) == format
    assert [score.verify for score in scores] == [1.0, 1.0]


def test_a_reward_may_know_the_row_but_columns_hide_nothing():
    problem = Problem(3, "<user>2+3?", (1,), "5", extra={"level": 2, "question": "another"}, chat=[{"content": "2+3?"}])
    row = reward_row(problem, Completion((4, 5), (), "stop"))
    assert {name: row[name] for name in row} == {
        "question": "2+3?", "prompt": "<user>2+3?", "messages": problem.chat, "completion_ids": [4, 5], "level": 2,
    }  # fmt: skip


class Odd(Reward):
    """Groups of a problem with an even number are flat; of one with an odd number, every other completion is right."""

    def __init__(self):
        self.weights = {"odd": 1.0}

    def score_batch(self, completions, ground_truths, rows=None):
        values = [float(int(truth) % 2 and index % 2) for index, truth in enumerate(ground_truths)]
        return [Score(value, {"odd": value}, None, None, "unverified") for value in values]


class Engine:
    """Writes one token for each completion, and records what it was asked for."""

    def __init__(self):
        self.prompts = []

    def generate(self, requests, sampling):
        self.prompts += [request.prompt_ids for request in requests]
        return [[Completion((6,), (0.0,), "length")] * request.n for request in requests]


@pytest.mark.parametrize(("most", "size"), [(0, 20), (1, 20), (9, 20), (9, 6)])
def test_flat_groups_are_replaced_by_further_problems(tokenizer, most, size):
    """Half of the problems are flat. Each draw asks only for what is missing, for problems new to the step. A group
    with a spread stays in its place. With few problems the draws end when they are used up."""
    problems = [Problem(index, f"p{index}", (index,), str(index)) for index in range(size)]
    config = build(
        "cpu", {"rollout.resample_flat_groups": most, "rollout.prompts_per_step": 5, "rollout.group_size": 2}
    )
    runs = []
    for _ in range(2):
        engine, reward = Engine(), Odd()
        groups = rollout(engine, draw(problems, 5, 0, 1), 2, SamplingParams(4, 1.0), 0, 1)
        after = list(groups)
        texts = decode(tokenizer, groups)
        scores = score(reward, groups, texts)
        phases = []

        def clock(phase):
            phases.append(phase)  # noqa: B023
            return nullcontext()

        replaced = replace_flat_groups(engine, reward, tokenizer, problems, after, texts, scores, config, 1, clock)
        assert phases == ["rollout", "reward"] * replaced.rounds
        runs.append((after, texts, scores, replaced, engine.prompts))
    after, texts, scores, replaced, prompts = runs[0]
    assert runs[0] == runs[1], "a function of (seed, step)"
    assert len(after) == len(texts) == len(scores) == 5
    assert len(prompts) == len(set(prompts)) <= size, "no problem twice in a step"
    kept = [group for group in groups if group.problem.index % 2]
    assert [group for group in after if group in kept] == kept
    flat = [group.problem.index for group in after if group.problem.index % 2 == 0]
    drawn = sorted(group.problem.prompt_ids for group in (*after, *replaced.groups))
    assert drawn == sorted(prompts), "every group that was drawn is kept or returned"
    assert all(score.total == 0 for group in replaced.scores for score in group), "with its own scores"
    assert (after == groups) == (most == 0)
    if (most, size) == (9, 20):
        assert not flat
        assert 1 < replaced.rounds < 9, "it stops when no group is flat"
    if size == 6:
        assert replaced.rounds == 1, "one problem is left over by the step"


def test_texts_for_reading_are_decoded_in_one_place():
    """Training, held-out figures, evaluation and the sample command share rollout.text_of."""
    root = Path(__file__).resolve().parent.parent
    paths = [*root.glob("grpo/**/*.py"), *root.glob("tools/*.py"), root / "train.py", root / "eval.py"]
    decoding = {path.name for path in paths if "skip_special_tokens" in path.read_text()}
    assert decoding == {"rollout.py", "benchmarks.py"}  # the second cuts prompts for the contamination audit
