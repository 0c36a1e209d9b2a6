"""The three signals, as a table to learn the rules from, and over any text at all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.errors import one_line
from grpo.rollout import score as score_groups
from grpo.types import Completion, Group, Problem
from rewards import (
    MultiSignalMathReward,
    Reward,
    RewardError,
    make_reward,
    weight_warnings,
    weights_from_env,
)

GOOD = r"<think>8 * 1.6</think> So \boxed{12.8}. <reflection>The answer is correct.</reflection>"

# completion, ground truth, (verify, format, reflect)
TABLE = [
    (GOOD, "12.8", (1, 1, 1)),
    (GOOD + "\n \t\n", "12.8", (1, 1, 1)),
    (GOOD, "13", (0, 1, 0)),
    # an honest wrong answer earns the reflection, a sure one does not
    (r"<think>a</think>\boxed{13}<reflection>This is wrong.</reflection>", "12.8", (0, 1, 1)),
    (r"<think>a</think>\boxed{12.8}<reflection>This is wrong.</reflection>", "12.8", (1, 1, 0)),
    (r"<think>a</think>\boxed{13}<reflection>The answer is incorrect.</reflection>", "12.8", (0, 1, 1)),
    (r"<think>a</think>\boxed{13}<reflection>It may be right or wrong.</reflection>", "12.8", (0, 1, 0)),
    (r"<think>a</think>\boxed{13}<reflection>Hm.</reflection>", "12.8", (0, 1, 0)),
    # without tags the last box counts
    (r"First \boxed{13}, no: \boxed{12.8}", "12.8", (1, 0, 0)),
    (r"First \boxed{12.8}, no: \boxed{13}", "12.8", (0, 0, 0)),
    (r"\boxed{12.8} then \boxed 3", "12.8", (1, 0, 0)),
    (r"\boxed{12.8} then \boxed{3", "12.8", (1, 0, 0)),
    ("12.8", "12.8", (0, 0, 0)),
    ("", "12.8", (0, 0, 0)),
    # a box only inside <think> or only inside <reflection> is no answer
    (r"<think>\boxed{12.8}</think> so it is. <reflection>correct</reflection>", "12.8", (0, 0, 0)),
    (r"<think>\boxed{12.8}</think> so it is. <reflection>wrong</reflection>", "12.8", (0, 0, 0)),
    (r"<think>a</think> b <reflection>\boxed{12.8} is correct</reflection>", "12.8", (0, 0, 0)),
    (r"<think>a</think> b <reflection>hm</reflection> \boxed{12.8}", "12.8", (0, 0, 0)),
    (r"<think>a \boxed{12.8}", "12.8", (0, 0, 0)),
    (r"a \boxed{12.8}</think>", "12.8", (0, 0, 0)),
    (r"<think>\boxed{13}</think>\boxed{12.8}<reflection>\boxed{13}? It is correct</reflection>", "12.8", (1, 1, 1)),
    (r"\boxed{12.8}<think>a</think>", "12.8", (1, 0, 0)),
    # each tag once, in order, nothing empty, nothing after
    (GOOD + "x", "12.8", (1, 0, 1)),
    (r"<think> </think>\boxed{12.8}<reflection>correct</reflection>", "12.8", (1, 0, 1)),
    (r"<think>a</think>\boxed{12.8}<reflection> </reflection>", "12.8", (1, 0, 0)),
    (r"<think>a</think>\boxed{ }<reflection>wrong</reflection>", "12.8", (0, 0, 0)),
    (r"<think>a</think>\boxed{12.8}<reflection>correct", "12.8", (1, 0, 0)),
    (r"<think>a</think><think>b</think>\boxed{12.8}<reflection>correct</reflection>", "12.8", (1, 0, 1)),
    (GOOD + GOOD, "12.8", (1, 0, 0)),
    (r"</think>a<think>\boxed{12.8}<reflection>correct</reflection>", "12.8", (0, 0, 0)),
    (r"<reflection>correct</reflection>\boxed{12.8}<think>a</think>", "12.8", (0, 0, 0)),
    (r"<think>a</reflection>\boxed{12.8}<reflection>wrong</reflection>", "12.8", (0, 0, 0)),
    (r"<think>a</think>\boxed{12.8}\boxed{13}<reflection>wrong</reflection>", "12.8", (0, 0, 1)),
    (r"\boxed{1}<think>a</think>\boxed{12.8}<reflection>correct</reflection>", "12.8", (1, 0, 1)),
    (r"<Think>a</Think>\boxed{12.8}<reflection>correct</reflection>", "12.8", (1, 0, 1)),
    # ground truths as data sets have them
    (r"\boxed{18}", '["18"]', (1, 0, 0)),
    (r"\boxed{18}", 18, (1, 0, 0)),
    (r"\boxed{12.8}", 12.8, (1, 0, 0)),
    (r"\boxed{[0,1]}", "[0,1]", (1, 0, 0)),
    (r"\boxed{\{1,2\}}", "1,2", (1, 0, 0)),
]


@pytest.fixture(scope="module")
def reward():
    reward = MultiSignalMathReward(timeout_s=20)
    yield reward
    reward.close()


@pytest.mark.parametrize(("completion", "truth", "expected"), TABLE)
def test_table(reward, completion, truth, expected):
    score = reward(completion, truth)
    assert tuple(score.signals.values()) == expected
    # R = 1.0 * verify + 0.5 * format + 0.5 * reflect
    assert score.total == 1.0 * expected[0] + 0.5 * expected[1] + 0.5 * expected[2]


def test_batch_equals_one_by_one_and_keeps_the_order(reward):
    completions, truths = [row[0] for row in TABLE], [row[1] for row in TABLE]
    assert reward.score_batch(completions, truths) == [reward(*pair) for pair in zip(completions, truths, strict=True)]


def test_lists_of_different_length_are_an_error(reward):
    with pytest.raises(ValueError, match="zip"):
        reward.score_batch(["a", "b"], ["1"])


def test_what_the_log_wants(reward):
    score = reward(GOOD, "12.8")
    assert (score.answer, score.verdict, score.outcome) == ("12.8", "correct", "correct")
    assert reward("no box", "12.8").outcome == "no_answer"
    assert reward(r"\boxed{}", "12.8").outcome == "no_answer"
    assert reward(r"\boxed{12.8 / / 3}", "12.8").outcome == "unparsed"
    assert reward(r"\boxed{" + "9" * 2000 + "}", "12.8").outcome == "unparsed"
    assert isinstance(reward, Reward)


def test_the_prompt_earns_nothing(reward):
    """The prompt shows perfect tags and the gold; the completion is empty."""
    assert reward.score_batch([""], ["12.8"], [{"question": GOOD, "prompt": GOOD}])[0].total == 0.0


def test_weights():
    reward = MultiSignalMathReward(alpha=2.0, beta=0.25, gamma=0.125)
    assert reward(GOOD, "12.8").total == 2.375
    assert reward.weights == {"verify": 2.0, "format": 0.25, "reflect": 0.125}
    for bad in ((-1, 0, 0), (float("nan"), 0, 0), (float("inf"), 0, 0)):
        with pytest.raises(ValueError, match="three finite numbers"):
            MultiSignalMathReward(*bad)


def test_weights_from_the_environment(monkeypatch):
    monkeypatch.delenv("REWARD_WEIGHTS", raising=False)
    assert weights_from_env() == (1.0, 0.5, 0.5)
    monkeypatch.setenv("REWARD_WEIGHTS", "2, 0.5,0")
    assert weights_from_env() == (2.0, 0.5, 0.0)


@pytest.mark.parametrize("text", ["", "1", "1,2", "1,2,3,4", "1,2,x", "1,2,-3", "1,2,nan", "1,2,inf", "1;2;3"])
def test_a_wrong_environment_names_its_value(monkeypatch, text):
    monkeypatch.setenv("REWARD_WEIGHTS", text)
    with pytest.raises(ValueError, match="REWARD_WEIGHTS") as error:
        weights_from_env()
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    ("weights", "count"),
    [((1.0, 0.5, 0.5), 0), ((1.0, 0.2, 0.2), 0), ((1.0, 0.6, 0.5), 1), ((0.5, 0.0, 0.5), 1), ((0.5, 0.5, 0.5), 2)],
)
def test_weights_that_pay_for_the_wrong_thing_are_named(weights, count):
    """gamma >= alpha: sabotage pays. beta + gamma > alpha: a wrong answer may outrank a right one."""
    assert len(weight_warnings(MultiSignalMathReward(*weights).weights)) == count


PIECES = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<reflection>",
        "</reflection>",
        r"\boxed{",
        "}",
        "{",
        "12.8",
        "correct",
        "wrong",
        "not ",
        " ",
        "\\",
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.text(), st.lists(PIECES, max_size=25).map("".join)), st.sampled_from(["12.8", r"\text{east}", "(1,2)"])
)
def test_any_text_gives_signals_of_zero_or_one(completion, truth):
    score = ANY(completion, truth)
    assert set(score.signals) == {"verify", "format", "reflect"}
    assert set(score.signals.values()) <= {0.0, 1.0}
    assert score.total == score.verify + 0.5 * score.signals["format"] + 0.5 * score.signals["reflect"]
    assert not (score.outcome == "correct") ^ (score.verify == 1.0)


ANY = MultiSignalMathReward(timeout_s=20)


@pytest.fixture(scope="module", autouse=True)
def _close():
    yield
    ANY.close()


SILENT = [
    "", " ", "?", "??", "...", r"\ldots", r"\text{?}", "-", "___", r"\square", r"\text{unknown}", "Unknown.", "idk",
    "not sure", "I don't know", "no answer", r"\text{answer}", "your answer here", "\u200b", r"\boxed{?}",
]  # fmt: skip
SPEAKING = [
    "0", "x", r"\pi", r"\infty", "no", "No", "yes", "A", r"\emptyset", "∅", "undefined", "no solution", "-1", r"\alpha",
    "nothing to do 5", "answer 5", "None",
]  # fmt: skip


@pytest.mark.parametrize(("answers", "reflect"), [(SILENT, 0.0), (SPEAKING, 1.0)])
def test_an_answer_that_says_nothing_earns_no_reflection(reward, answers, reflect):
    r"""beta + gamma for a wrong answer that is admitted, beta alone for `\boxed{?}`; nothing to be wrong about."""
    for answer in answers:
        score = reward(rf"<think>a</think>\boxed{{{answer}}}<reflection>wrong</reflection>", "7.25")
        assert (answer, score.signals["reflect"]) == (answer, reflect)
        assert score.outcome == "no_answer" if reflect == 0 else score.outcome in ("wrong", "unparsed")


def test_a_ground_truth_that_looks_like_no_answer_can_be_met(reward):
    score = reward(r"<think>a</think>\boxed{\text{unknown}}<reflection>correct</reflection>", r"\text{unknown}")
    assert score.total == 2.0


@pytest.mark.parametrize(
    "blank", ["\u200b", "\u2060", "\u00ad", "\u3164", "\u2800", "\ufeff", "\u0301", "\x07", "\u00a0"]
)
def test_a_blank_character_fills_nothing(reward, blank):
    text = "<think>{}</think>\\boxed{{5}}<reflection>{}</reflection>"
    assert reward(text.format("a", "correct"), "5").signals["format"] == 1.0
    assert reward(text.format(blank, "correct"), "5").signals["format"] == 0.0
    assert reward(text.format("a" + blank, "correct"), "5").signals["format"] == 1.0
    assert make_reward("format_only", verifier="last_number")(rf"5 \boxed{{{blank}}}", "5").total == 0.0


def test_only_multi_signal_warns_of_its_weights(tmp_path, monkeypatch):
    """Not a function whose signals are called format and reflect, nor a control: each is meant to pay what it pays."""
    (tmp_path / "named.py").write_text("def f(a, b): return {'format': 1.0, 'reflect': 0.0}")
    monkeypatch.syspath_prepend(tmp_path)
    function = make_reward("named:f")
    function.self_test({})
    for quiet in (function, make_reward("format_only"), make_reward("random"), make_reward("multi_signal")):
        assert list(quiet.warnings) == []
    assert len(make_reward("multi_signal", alpha=0.5).warnings) == 2


def test_the_docs_arithmetic_of_the_strategies(reward):
    r"""alpha = beta + gamma: a bare right answer and an admitted wrong one tie at 1; `\boxed{?}` earns beta."""
    laid_out = r"<think>a</think>\boxed{%s}<reflection>%s</reflection>"
    texts = [r"\boxed{5}", laid_out % ("0", "wrong"), laid_out % ("?", "wrong"), laid_out % ("5", "correct")]
    assert [score.total for score in reward.score_batch(texts, ["5"] * 4)] == [1.0, 1.0, 0.5, 2.0]


def test_a_fault_of_a_reward_keeps_its_traceback(reward, monkeypatch):
    """A ValueError that is not a RewardError is a bug: the trainer turns only the latter into one line."""

    def broken(text, answer_from):
        raise ValueError("a bug")

    monkeypatch.setattr("rewards.signals.read", broken)
    group = Group(Problem(0, "p", (1,), "5"), (Completion((2,), (0.0,), "length"),))
    main = one_line()(lambda argv: score_groups(reward, [group], [["text"]]))
    with pytest.raises(ValueError, match="a bug"):
        main([])

    def misused(text, answer_from):
        raise RewardError("not like this")

    monkeypatch.setattr("rewards.signals.read", misused)
    assert main([]) == 2
