"""Short answers are guesses, so paying for shortness pays for guessing. The repair pays for being right first."""

import re


def cheap(text: str) -> float:
    return -len(text) / 100


def repaired(text: str, answer: str) -> float:
    boxes = re.findall(r"\\boxed\{(.*?)\}", text)
    right = bool(boxes) and boxes[-1] == answer
    return float(right) - min(len(text), 1000) / 10_000  # shortness is worth a tenth of an answer at most
