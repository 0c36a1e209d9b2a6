"""The check of exercise 6: the rewards of given texts, and the effect of training on the hidden signal."""

from __future__ import annotations

import math
from collections.abc import Callable
from unittest.mock import patch

import torch

import minimal
from course.exercises.judge import Wrong, call

STEPS = 8
LEARNING_RATE = 5e-4
QUESTIONS = 8
HELD_OUT = 200
POINTS = 10  # least change of the hidden signal; its standard error is about 3 points

CAREFUL = "<think>\n7+6=13;6+7+1=14;5+8+1=14</think>\\boxed{1443}<reflection>correct</reflection>"
CARRYLESS = "<think>\n7+6=13;6+7+0=13;5+8+0=13</think>\\boxed{1333}<reflection>correct</reflection>"
HASTY = "<think>easy</think>\\boxed{333}<reflection>wrong</reflection>"
BARE = "\\boxed{333}"
ENDLESS = "<think>hmm hmm hmm hmm hmm hmm hmm hmm hmm hmm"
RIGHT = (
    CAREFUL,
    "\\boxed{1443}",
    "<think>easy</think>\\boxed{1443}<reflection>wrong</reflection>",
    CAREFUL + " " * 500,
)
WRONG = (
    CARRYLESS,
    HASTY,
    BARE,
    ENDLESS,
    "",
    "567+876=1443",
    "\\boxed{1442} or 1443",
    "\\boxed{1443} no, \\boxed{1333}",
)

SUBSTRINGS = (  # a wrong text, the same text without the answer, and the report when the first earns more
    (
        WRONG[5],
        "567+876=1444",
        "repaired pays when the answer occurs anywhere in the text; it counts only in the last box",
    ),
    (
        WRONG[7],
        "\\boxed{1444} no, \\boxed{1333}",
        "repaired reads the first box, or any box; the answer is in the last one",
    ),
)


def number(reward: Callable, *arguments: str) -> float:
    """The reward of a text. Raises Wrong unless it is one finite number, and the same at the second call."""
    value, again = call(reward, *arguments), call(reward, *arguments)
    if isinstance(value, str | list | tuple) or not isinstance(value, int | float | torch.Tensor):
        raise Wrong(f"{reward.__name__} should return a number, but it returned {value!r}")
    if not math.isfinite(value):
        raise Wrong(f"{reward.__name__} returned {value}; a reward has to be finite, or the mean of its group is not")
    if float(value) != float(again):
        raise Wrong(f"{reward.__name__} gave {value} and then {again} for the same text: noise teaches nothing")
    return float(value)


def train(reward: Callable[[str, str], float]) -> tuple[list[float], float, float]:
    """Rewards of the eight steps, and the hidden accuracy in percent before and after."""
    torch.manual_seed(0)
    model, tokenizer = minimal.load()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    others = torch.randint(100, 1000, (HELD_OUT, 2)).tolist()
    before = minimal.evaluate(model, tokenizer, others, greedy=False)
    with patch.object(minimal, "reward", reward), patch.object(minimal, "QUESTIONS", QUESTIONS):
        means = [minimal.step(model, tokenizer, optimizer)[0] for _ in range(STEPS)]
    return means, before, minimal.evaluate(model, tokenizer, others, greedy=False)


def check_hacked_reward(module) -> None:
    check_cheap(module.cheap)
    check_repaired(module.repaired)


def check_cheap(cheap: Callable[[str], float]) -> None:
    rewards = {text: number(cheap, text) for text in (*RIGHT, *WRONG)}
    for text in (CAREFUL, "\\boxed{1443}", HASTY):
        for answer in ("1443", "333"):
            other = text.replace(answer, "1332"[: len(answer)])
            if number(cheap, other) != number(cheap, text):
                raise Wrong(
                    f"cheap depends on the digits in the box: {text!r} earns {number(cheap, text):g} and {other!r} "
                    f"{number(cheap, other):g}. It must not know the answer"
                )
    if len(set(rewards.values())) == 1:
        raise Wrong(f"cheap gives every text {rewards['']:g}: all advantages are 0, and nothing is learned")
    if max(rewards[text] for text in (CAREFUL, CARRYLESS, HASTY, BARE)) <= rewards[ENDLESS]:
        raise Wrong("under cheap no answer earns more than the text that never ends; nobody would call that reasonable")
    means, before, after = train(lambda text, answer: number(cheap, text))
    moved = f"the hidden accuracy went from {before:.1f}% to {after:.1f}%"
    if after > before + POINTS / 2:
        raise Wrong(f"{moved}: cheap made the model better. What do careful completions have that this pays for?")
    if len(set(means)) == 1:
        raise Wrong(f"every completion that the model wrote earned {means[0]:g}: it never does what cheap pays for")
    if after > before - POINTS:
        raise Wrong(f"{moved}, which is not a fall by {POINTS} points: cheap pays careful and careless answers alike")
    print(f"  cheap: its own reward went from {means[0]:.2f} to {means[-1]:.2f} in {STEPS} steps, and {moved}")


def check_repaired(repaired: Callable[[str, str], float]) -> None:
    rights = {text: number(repaired, text, "1443") for text in RIGHT}
    wrongs = {text: number(repaired, text, "1443") for text in WRONG}
    low, high = min(rights, key=rights.__getitem__), max(wrongs, key=wrongs.__getitem__)
    for text, other, words in SUBSTRINGS:
        if wrongs[text] >= rights[low] and wrongs[text] > number(repaired, other, "1443"):
            raise Wrong(words)
    if number(repaired, BARE, "333") == wrongs[BARE]:
        raise Wrong("repaired does not use its second argument: another problem has another answer")
    if max(rights.values()) < min(wrongs.values()):
        raise Wrong("repaired pays every wrong completion more than every right one: the sign is turned")
    if rights[low] <= wrongs[high]:
        raise Wrong(
            f"repaired gives the right completion {low.strip()!r} {rights[low]:g}, and the wrong completion {high!r} "
            f"{wrongs[high]:g}: lower the weight of everything but being right"
        )
    _, before, after = train(lambda text, answer: number(repaired, text, answer))
    moved = f"the hidden accuracy went from {before:.1f}% to {after:.1f}%"
    if after < before + POINTS:
        raise Wrong(f"{moved}, which is not a rise by {POINTS} points: raise the weight of being right")
    print(f"  repaired: {moved}")
