"""Where the answer stands in a completion, whether it is laid out as asked, and what its reflection says.

The layout is `<think>...</think>`, then `\\boxed{...}`, then `<reflection>...</reflection>`. Every
pattern here is linear in the text, and MAX_TAGS and BOX_WINDOW bound what ten megabytes of braces can cost.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from rewards.score import SIGNALS, Score, check_weights
from rewards.verifier import Verifier

Verdict = Literal["correct", "wrong"]

_TAG = re.compile(r"</?(?:think|reflection)>")
_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)

MAX_TAGS = 1000
"""A completion with more tags than this has no answer, no format and no verdict."""
BOX_WINDOW = 100_000
"""Characters at the end of the text in which boxes are looked for; no answer is nearly that long."""
MAX_REFLECTION = 20_000
"""Characters; a longer reflection has no verdict."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What the tags of one completion say."""

    answer: str | None
    format: bool
    verdict: Verdict | None


def read(text: str) -> Layout:
    """Answer, format and verdict of one completion; any string is legal."""
    tags = [(match.group(), match.start(), match.end()) for match in islice(_TAG.finditer(text), MAX_TAGS + 1)]
    if len(tags) > MAX_TAGS:
        return Layout(None, False, None)
    segments = answer_segments(text, tags)
    found = next((inside for segment in reversed(segments) if (inside := boxes(segment))), [])
    answer = found[-1] if found else None
    return Layout(answer, well_formed(text, tags), verdict(_reflection(text, tags)))


def last_box(text: str) -> str | None:
    r"""Content of the last complete `\boxed{...}`: the one whose closing brace comes last, or None."""
    found = boxes(text)
    return found[-1] if found else None


def boxes(text: str) -> list[str]:
    r"""Contents of all complete `\boxed{...}`, by closing brace. `\{` and `\}` are printed braces and close nothing."""
    if "\\boxed" not in text:
        return []
    text = text[-BOX_WINDOW:]
    found, opened = [], []  # opened: start of the content for a box, None for any other brace
    for match in _BRACES.finditer(text):
        token = match.group()
        if token == "{":
            opened.append(None)
        elif token == "}":
            start = opened.pop() if opened else None
            if start is not None:
                found.append(text[start : match.start()])
        elif token.startswith("\\boxed"):
            opened.append(match.end())
    return found


def answer_segments(text: str, tags: list[tuple[str, int, int]]) -> list[str]:
    """The answer part: what stands before the first `<reflection>` and outside `<think>`.

    A think block that never closes hides the rest; what stands before a `</think>` that nothing opened is thought too
    (some chat templates write the opening tag themselves).
    """
    segments, start, thinking = [], 0, False
    for tag, begin, end in tags:
        if tag == "<reflection>":
            return segments if thinking else [*segments, text[start:begin]]
        if tag == "<think>" and not thinking:
            segments.append(text[start:begin])
            thinking = True
        elif tag == "</think>":
            if not thinking:
                segments.clear()
            start, thinking = end, False
    return segments if thinking else [*segments, text[start:]]


def well_formed(text: str, tags: list[tuple[str, int, int]]) -> bool:
    """Each tag once and in order, exactly one box between thought and reflection, nothing empty, nothing after."""
    if [tag for tag, _, _ in tags] != ["<think>", "</think>", "<reflection>", "</reflection>"]:
        return False
    (_, open_think, think), (_, think_end, answer), (_, answer_end, reflection), (_, reflection_end, end) = tags
    middle = text[answer:answer_end]
    box = boxes(middle)
    return (
        bool(text[think:think_end].strip())
        and middle.count("\\boxed") == 1
        and "\\boxed" not in text[:open_think]
        and len(box) == 1
        and bool(box[0].strip())
        and bool(text[reflection:reflection_end].strip())
        and not text[end:].strip()
    )


def _reflection(text: str, tags: list[tuple[str, int, int]]) -> str:
    """The content of the one reflection block; empty where there is none, or more than one."""
    inside = [(tag, begin, end) for tag, begin, end in tags if "reflection" in tag]
    if [tag for tag, _, _ in inside] != ["<reflection>", "</reflection>"]:
        return ""
    return text[inside[0][2] : inside[1][1]]


# A negation reaches a verdict word over these words only, so that "I did not check; it is correct" stays "correct".
_BETWEEN = (
    r"(?:a|all|always|an|answer|as|at|be|been|being|believe|box|boxed|completely|consider|considered|entirely|even|exactly|"
    r"feel|final|fully|given|has|have|in|indeed|is|it|mathematically|mine|my|necessarily|our|quite|really|result|say|seem|"
    r"seems|simply|solution|that|the|this|think|to|totally|truly|was|were|value|yet)"
)
_GAP = r"[^\w.,;:!?]+"  # within one clause
_VERDICT = re.compile(
    r"(?P<negation>(?:\b(?:not|never|neither|nor|nothing|cannot|hardly|by no means|in no way|far from|anything but)\b"
    r"|\b(?:is|was|are|ca|wo|do|does|did|could|should|would)nt\b"
    rf"|n['’]t\b)(?:{_GAP}{_BETWEEN}){{0,7}}{_GAP})?"
    r"(?<!\w)(?:(?P<correct>correct|right|accurate)|(?P<wrong>wrong|in[- ]?correct|inaccurate|mistaken|false))(?!\w)"
    r"(?!\W+(?:triangles?|angles?|angled|hand|side|sides)\b)",
    re.IGNORECASE,
)
_DOUBT = re.compile(r"(?:\bnot|n['’]t)\s+(?:\w+\s+)?(?:sure|certain|clear|confident|know)\b", re.IGNORECASE)


def verdict(reflection: str) -> Verdict | None:
    """ "correct", "wrong", or None where the reflection says neither, both, or that it does not know."""
    if len(reflection) > MAX_REFLECTION or _DOUBT.search(reflection):
        return None
    said = set()
    for match in _VERDICT.finditer(reflection):
        said.add((match["correct"] is not None) == (match["negation"] is None))
    if len(said) != 1:
        return None
    return "correct" if said.pop() else "wrong"


class MultiSignalMathReward:
    """Scores one completion by three signals, each 0 or 1.

    verify: the answer equals the ground truth. format: the completion is laid out as asked. reflect: the reflection's
    verdict on the answer is true. Workers are started when the first answer needs one; `close` ends them.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 0.5,
        gamma: float = 0.5,
        *,
        verifier: Verifier | None = None,
        **verifier_options: Any,
    ) -> None:
        self.weights = dict(zip(SIGNALS, check_weights((alpha, beta, gamma)), strict=True))
        self.verifier = verifier or Verifier(**verifier_options)

    def __call__(self, completion: str, ground_truth: Any) -> Score:
        return self.score_batch([completion], [ground_truth])[0]

    def score_batch(
        self, completions: Sequence[str], ground_truths: Sequence[Any], prompts: Sequence[str] | None = None
    ) -> list[Score]:
        """Scores in order. The prompts are never read: tags and boxes of a prompt earn nothing."""
        layouts = [read(completion) for completion in completions]
        pairs = [(layout.answer, truth) for layout, truth in zip(layouts, ground_truths, strict=True)]
        outcomes = self.verifier.check_batch(pairs)
        return [self._score(layout, outcome) for layout, outcome in zip(layouts, outcomes, strict=True)]

    def _score(self, layout: Layout, outcome: str) -> Score:
        correct = outcome == "correct"
        true_verdict = layout.verdict == ("correct" if correct else "wrong")
        signals = {"verify": float(correct), "format": float(layout.format), "reflect": float(true_verdict)}
        total = sum(self.weights[name] * signals[name] for name in SIGNALS)
        return Score(total, signals, layout.answer, layout.verdict, outcome)

    def cache_hit_rate(self) -> float:
        return self.verifier.cache_hit_rate()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            raise ValueError(
                f"this reward keeps no state, but the checkpoint holds {sorted(state)}: another reward's run?"
            )

    def close(self) -> None:
        self.verifier.close()
