"""The three signals: the right answer, the requested layout, and a true verdict in the reflection.

The layout is `<think>...</think>`, then `\\boxed{...}`, then `<reflection>...</reflection>`. Every
pattern here takes time linear in the text, and BOX_WINDOW bounds the search for boxes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from rewards.score import DEFAULT_WEIGHTS, SIGNALS, Reward, RewardError, Row, Score, check_weights
from rewards.verifier import Pair, Verifier

Verdict = Literal["correct", "wrong"]
AnswerFrom = Literal["box", "last_number", "answer_tag"]
"""The answer is the last box, the last number written in digits, or the last `<answer>` block"""

_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_FULL_WIDTH = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_PLAIN = str.maketrans(dict.fromkeys("\u2212\u2013\u2014\u2010\u2011\u2012", "-") | {"\u00d7": "x"} | _FULL_WIDTH)
_WHOLE = r"[0-9]{1,3}(?:(?:,|[ \u00a0\u202f\u2009]|\\,|\{,\}|,\\!)[0-9]{3})+(?![0-9])|[0-9]+"
_DECIMAL = rf"(?:{_WHOLE}|(?=\.[0-9]))(?:\.[0-9]+)?"
_POWER = r"\^(?:\{-?[0-9]+\}|-?[0-9]+)"
_NUMBERS = re.compile(
    rf"(?P<skipped>{_DECIMAL}(?:(?P<mark>[-/.:]){_DECIMAL})(?:(?P=mark){_DECIMAL})+|[0-9]+:[0-9]+"  # a date, a time
    rf"|[A-Za-z\u00b5)\]}}](?:{_POWER}|_?[0-9]+(?:\.[0-9]+)*))"  # cm^2, x2
    rf"|(?<![\w.])(?P<number>(?:(?<![\w)\]}}])-)?(?:\\[dtc]?frac\{{{_DECIMAL}\}}\{{{_DECIMAL}\}}"
    rf"|{_DECIMAL}(?:[eE][-+]?[0-9]+(?![\w.])| ?(?:x|\*|\\times|\\cdot) ?10{_POWER}|{_POWER}"
    rf"|\\[dtc]?frac\{{[0-9]+\}}\{{[0-9]+\}}| ?/ ?{_DECIMAL}(?![0-9/]))?))"
)
_NOT = re.compile(
    r"(?:\b(?:not|never|neither|nor|(?:is|was)n['’]t)|\u2260|\\neq?|!=)"
    r"(?:\s+(?:be|equals?|to|exactly|just|only|the|even))*[\s$({\[]*\Z"
)
_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)

BOX_WINDOW = 100_000
"""Characters at the end of the text that are searched for boxes; no answer is nearly that long."""
MAX_REFLECTION = 20_000
"""Characters; a longer reflection has no verdict."""
_BLANK_LETTERS = "\u115f\u1160\u2800\u3164\uffa0"
"""Invisible letters and symbols of Unicode"""


class Layout(NamedTuple):
    """Answer, layout and verdict of one completion."""

    answer: str | None
    format: bool
    verdict: Verdict | None


def read(text: str, answer_from: AnswerFrom = "box") -> Layout:
    """Reads answer, format and verdict of one completion, which may be any string."""
    find, laid_out = _ANSWERS[answer_from]
    answers = (find(part) for part in reversed(answer_parts(text)))
    answer = next((answer for answer in answers if answer is not None), None)
    reflection = _around(text, "reflection")
    return Layout(answer, laid_out(text), verdict(reflection[1]) if reflection else None)


def answer_parts(text: str) -> list[str]:
    """The parts of the text before the first `<reflection>` and outside `<think>`, in order.

    A think block that never closes hides the rest. Text before an unopened `</think>` is a thought as well: some chat
    templates write the opening tag.
    """
    parts = _THOUGHT.split(text.partition("<reflection>")[0])
    for i in reversed(range(len(parts))):
        if "</think>" in parts[i]:
            return [parts[i].rpartition("</think>")[2], *parts[i + 1 :]]
    return parts


def last_box(text: str) -> str | None:
    r"""Content of the complete `\boxed{...}` whose brace closes last, or None. Printed braces `\}` close nothing."""
    text = text[-BOX_WINDOW:]
    opened: list[int | None] = []  # where the content of a box starts, None for any other brace
    box = None
    for match in _BRACES.finditer(text):
        token = match.group()
        if token == "{":
            opened.append(None)
        elif token.startswith("\\boxed"):
            opened.append(match.end())
        elif token == "}" and opened and (start := opened.pop()) is not None:
            box = (start, match.start())
    return text[slice(*box)] if box else None


def one_box(text: str) -> bool:
    r"""Returns whether there is exactly one `\boxed`, complete and not empty."""
    return text.count("\\boxed") == 1 and visible(last_box(text) or "")


def visible(text: str) -> bool:
    """Returns whether any character is visible: spaces, marks, controls and blanks (U+200B) are not."""
    return any(unicodedata.category(letter)[0] not in "ZCM" and letter not in _BLANK_LETTERS for letter in text)


def think_box_reflection(text: str) -> bool:
    """Returns whether each tag occurs once and in order, with one box between them, nothing empty and nothing after."""
    pieces = _around(text, "think", "reflection")
    if pieces is None:
        return False
    before, thought, middle, reflection, after = pieces
    filled = visible(thought) and visible(reflection) and not after.strip()
    return filled and "\\boxed" not in before and one_box(middle)


def think_answer(text: str) -> bool:
    """Returns whether each tag occurs once and in order, with nothing empty and nothing after."""
    pieces = _around(text, "think", "answer")
    return pieces is not None and visible(pieces[1]) and visible(pieces[3]) and not pieces[4].strip()


def _around(text: str, *names: str) -> list[str] | None:
    """The pieces around <a>, </a>, <b>, </b>, ...; None unless each tag occurs once, in this order."""
    tags = [f"<{slash}{name}>" for name in names for slash in ("", "/")]
    pieces = re.split(f"({'|'.join(tags)})", text, maxsplit=len(tags) + 1)
    return pieces[::2] if pieces[1::2] == tags else None


def last_number(text: str) -> str | None:
    """The last number written in digits (-1,234.5, 3/4, 1.5e-3, 2 x 10^5), in the last box if one holds a number.

    None without one. Parts of a date, a time or a unit (cm^2) do not count, nor do numbers that the text denies
    ("not 42"). The minus of `7-5` is not a sign.
    """
    box = last_box(text)
    for part in (box, text) if box else (text,):
        part = part[-BOX_WINDOW:].translate(_PLAIN)
        matches = [match for match in _NUMBERS.finditer(part) if match["number"]]
        denied = {match["number"] for match in matches if _NOT.search(part, max(0, match.start() - 40), match.start())}
        numbers = [match["number"] for match in matches if match["number"] not in denied]
        if matches:
            return _joined(numbers[-1]) if numbers else None
    return None


def _joined(number: str) -> str:
    """Removes the spaces that group a number's digits or surround its operators."""
    groups = r"(?<=[0-9])(?:\\,|\{,\}|,\\!|\s)(?=[0-9])"
    return re.sub(rf"{groups}|(?<=[0-9]) (?=[/x*\\])|(?<=[/x*]) (?=[0-9])", "", number)


def last_answer_tag(text: str) -> str | None:
    """Content of the last complete `<answer>...</answer>`, or None."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return text[start + len("<answer>") : end].strip() if start >= 0 else None


_ANSWERS: dict[str, tuple[Callable[[str], str | None], Callable[[str], bool]]] = {
    "box": (last_box, think_box_reflection),
    "last_number": (last_number, one_box),
    "answer_tag": (last_answer_tag, think_answer),
}
"""`answer_from` -> function that finds the answer in a part of the text, and the check of the whole text's layout"""


_PLACEHOLDER = re.compile(
    r"(?:i )?(?:do not|don ?t|can ?not|can ?t) (?:know|tell|say)|not (?:sure|known|given)|no (?:idea|answer)"
    r"|nothing|unknown|unsure|uncertain|unclear|idk|nan|null|tbd|todo|blank|placeholder"
    r"|(?:(?:the|my|your|final|correct|insert) )*(?:answer|result|solution)(?: here)?",
    re.IGNORECASE,
)
_NO_CONTENT = re.compile(
    r"\\(?:text|mbox|mathrm|mathbf|textbf|boxed|[lcvd]?dots|quad|qquad|square|Box|underline|_|left|right|,|;|!|\s)|[^\w\\∞∅]|_"
)


def says_nothing(answer: str) -> bool:
    """Returns whether an answer is empty, punctuation, dots, a blank to be filled in, or a word such as "unknown".

    Calling such an answer wrong earns nothing. Only wrong answers are tested, so a ground truth "none" can be met.
    """
    words = " ".join(_NO_CONTENT.sub(" ", answer).split())
    return not visible(words) or bool(_PLACEHOLDER.fullmatch(words))


# A negation reaches a verdict word over these words only, so that "I did not check; it is correct" stays "correct".
_BETWEEN = (
    r"(?:a|all|always|an|answer|as|at|be|been|being|believe|box|boxed|completely|consider|considered|entirely|even|exactly|"
    r"feel|final|fully|given|has|have|in|indeed|is|it|mathematically|mine|my|necessarily|our|possibly|quite|really|result|say|seem|"
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
_DOUBT = re.compile(
    r"(?:\bnot|n['’]t)\s+(?:\w+\s+)?(?:sure|certain|clear|confident|know)\b"
    r"|(?<!no )(?<!not )(?<!n['’]t )(?<!out )(?<!out a )(?<!out any )"
    r"\b(?:doubt\w*|possibly|maybe|perhaps|may|might|whether|if|either|neither|unsure|uncertain|unclear|unlikely)\b",
    re.IGNORECASE,
)
_CHOICE = re.compile(r"\bor\s+(?:not|right|correct|accurate|wrong|incorrect|inaccurate|false)\b", re.IGNORECASE)
_SENTENCE = re.compile(r"(?:[^.!?\n]|[.!?](?=\w))+[.!?\n]*")
_CLAUSE = re.compile(r"[,;:]")


def verdict(reflection: str) -> Verdict | None:
    """The last verdict word, as "correct" or "wrong"; None if all of them stand in questions and doubts.

    A doubt ("not sure", "maybe", "if") cancels the verdicts that follow it in its clause.
    """
    if len(reflection) > MAX_REFLECTION:
        return None
    last: Verdict | None = None
    for sentence in _SENTENCE.findall(reflection):
        if sentence.rstrip().endswith("?"):
            continue
        for clause in _CLAUSE.split(sentence):
            doubt = _DOUBT.search(clause)
            sure = clause[: doubt.start()] if doubt else clause
            for match in () if _CHOICE.search(clause) else _VERDICT.finditer(sure):
                last = "correct" if (match["correct"] is None) != (match["negation"] is None) else "wrong"
    return last


class MultiSignalMathReward(Reward):
    """Scores a completion by three signals, each 0 or 1 (a task's scorer may give partial credit).

    verify: the answer equals the ground truth. format: the completion has the requested layout. reflect: the
    reflection's verdict on the answer is true; 0 without an answer. `answer_from` defines the answer and the layout.
    Workers start when the first answer needs one; `close` ends them.
    """

    def __init__(
        self,
        alpha: float = DEFAULT_WEIGHTS[0],
        beta: float = DEFAULT_WEIGHTS[1],
        gamma: float = DEFAULT_WEIGHTS[2],
        *,
        answer_from: AnswerFrom = "box",
        **verifier_options: Any,
    ) -> None:
        self.weights = dict(zip(SIGNALS, check_weights((alpha, beta, gamma)), strict=True))
        self.answer_from = answer_from
        self.verifier = Verifier(**verifier_options)

    def self_test(self, row: Row) -> None:
        """Raises RewardError if the workers do not tell right from wrong."""
        pairs: list[Pair] = [(r"\frac{\sqrt{8}}{2}", r"\sqrt{2}"), (r"\frac{\sqrt{8}}{2}", r"\sqrt{3}")]
        outcomes = self.verifier.ask(pairs)
        if outcomes != ["correct", "wrong"]:
            raise RewardError(
                f"reward self-test: of the pairs {pairs} the first is correct and the second wrong, "
                f"but they were graded {outcomes}. The verifier does not work here, so the run does not start."
            )

    def score_batch(
        self, completions: Sequence[str], ground_truths: Sequence[Any], rows: Sequence[Row] | None = None
    ) -> list[Score]:
        """Returns scores in order. Question and prompt are never read: their tags and boxes earn nothing.

        A row with `score_answer` (a task's own scorer, answer -> 0 to 1) is graded by it instead of the verifier.
        """
        layouts = [read(completion, self.answer_from) for completion in completions]
        graded = grade_answers([layout.answer for layout in layouts], ground_truths, self.verifier, rows)
        return [self._scored(layout, *grade) for layout, grade in zip(layouts, graded, strict=True)]

    def _scored(self, layout: Layout, outcome: str, value: float) -> Score:
        true_verdict = {"correct": "correct", "no_answer": "", "over_budget": ""}.get(outcome, "wrong")
        reflect = float(layout.verdict == true_verdict)
        signals = {"verify": value, "format": float(layout.format), "reflect": reflect}
        total = sum(self.weights.get(name, 0.0) * value for name, value in signals.items())
        return Score(total, signals, layout.answer, layout.verdict, outcome)


def grade_answers(
    answers: Sequence[str | None], ground_truths: Sequence[Any], verifier: Verifier, rows: Sequence[Row] | None = None
) -> list[tuple[str, float]]:
    """Returns the outcome and the score, from 0 to 1, of each answer: by its row's own `score_answer`, else by the
    verifier. An answer that says nothing and is not correct is no answer."""
    scorers = [row.get("score_answer") for row in rows] if rows else [None] * len(answers)
    triples = zip(answers, ground_truths, scorers, strict=True)
    pairs = [(answer, truth) for answer, truth, scorer in triples if not callable(scorer)]
    checked = iter(verifier.check_batch(pairs))
    graded = []
    for answer, scorer in zip(answers, scorers, strict=True):
        if callable(scorer):
            outcome, value = _by_scorer(answer, scorer)
        else:
            outcome = next(checked)
            value = float(outcome == "correct")
        if outcome != "correct" and says_nothing(answer or ""):
            outcome = "no_answer"
        graded.append((outcome, value))
    return graded


def _by_scorer(answer: str | None, score_answer: Callable[[str], float]) -> tuple[str, float]:
    """Returns outcome and score; "unparsed" if the scorer fails, which any text of a model may cause."""
    if answer is None:
        return "no_answer", 0.0
    try:
        value = float(score_answer(answer))
    except Exception:  # noqa: BLE001
        return "unparsed", 0.0
    return ("correct" if value >= 1 else "wrong"), min(max(value, 0.0), 1.0)
