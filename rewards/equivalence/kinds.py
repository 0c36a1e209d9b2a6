r"""Text of a kind: dates, times, ratios, ranges, codes, chemical formulas and words.

The shape of a text decides whether it is mathematics at all, before `-`, `/`, `:` and letters become operators. Texts
of a kind are equal when their parts are equal, in order: 20-30 is not 10-20, and CAB is not ABC.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from rewards.equivalence.tables import FUNCTIONS, TABLES
from rewards.equivalence.units import compound, quantity


class Text(NamedTuple):
    """A kind, the parts that have to be equal, and the text as it was written."""

    kind: str
    parts: tuple[str, ...]
    written: str


_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_MONTHS = TABLES["months"]
_MONTH = rf"(?:{'|'.join(_MONTHS)})(?:uary|ruary|ch|il|e|y|ust|t|tember|ober|ember)?"
_DATES = [re.compile(pattern.replace("MONTH", _MONTH), re.IGNORECASE) for pattern in TABLES["dates"]]
_TIME = re.compile(r"(1[0-2]|0?[1-9])(?::([0-9]{2}))?(?::([0-9]{2}))? ?([ap])\.? ?m\.?", re.IGNORECASE)
_NUMERAL = re.compile(r"[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?(?:\\frac\{[0-9]+\}\{[0-9]+\})?")
_SEPARATORS = [(kind, re.compile(separator), least) for kind, separator, least in TABLES["separators"]]
_SHAPES = [(kind, re.compile(pattern)) for kind, pattern in TABLES["shapes"]]
_SHELL = re.compile(r"[1-7][spdf][0-9]{1,2}(?=[1-7][spdf]|$)")
_CODE = re.compile(
    rf"(?!{FUNCTIONS})(?:[A-Za-z]+[0-9][A-Za-z0-9]*|[0-9]+[A-Za-z]+[0-9][A-Za-z0-9]*|[0-9]+[A-Z]{{2,}}|[A-Z]{{1,2}}[+-]"
    r"|(?=.*(?:[A-Z]{2}|[A-Za-z]{4}))(?=.*[0-9])[A-Za-z0-9]+(?:-[A-Za-z0-9]+)+"  # B12, 0x1F, 4AB, A+, COVID-19
    r"|[A-Za-z]{2,}(?:_[A-Za-z0-9]{2,})+|(?:[A-Z][a-z]+ ){1,2}[0-9]+)"  # snake_case, Apollo 11
)
_FORMULA = re.compile(r"(?:\^[0-9]+)?([0-9]* ?)((?:[A-Z][a-z]?[0-9]*|\(|\)[0-9]*|\\cdot ?[0-9]*)+)(\^?[0-9]*[+-])?")
_WORDS = re.compile(r"[^\W\d_](?:[^\W\d_]|(?<=[^\W\d_]{2})['’]|[ .,-](?! ))*")
_PRODUCT = re.compile(r"[A-Za-z](?:(?: |\*|\\cdot ?)[A-Za-z])+")


def textual(text: str) -> Text | None:
    """The text of a kind that a cleaned answer or ground truth is; None for mathematics."""
    plain = " ".join(_TEXT.sub(r" \1 ", text).split())
    return (
        _date(plain)
        or _time(plain)
        or _in_parts(plain)
        or _compound(plain)
        or _shaped(plain)
        or _formula(text)
        or _code(plain)
        or _words(plain, text)
    )


def _date(text: str) -> Text | None:
    for pattern in _DATES:
        if match := pattern.fullmatch(text):
            parts = [(match.groupdict().get(name) or "").lower().lstrip("0") for name in "ymd"]
            month = parts[1][:3]
            parts[1] = str(_MONTHS.index(month) + 1) if month in _MONTHS else month
            return Text("date", tuple(parts), text)
    return None


def _compound(text: str) -> Text | None:
    parts = compound(text)
    return Text("compound", parts, text) if parts else None


def _shaped(text: str) -> Text | None:
    """A year of an era, a hybrid orbital, or an electron configuration, whose shells stand in any order."""
    compact = re.sub(r"[ {}^]", "", text)
    for kind, pattern in _SHAPES:
        if match := pattern.fullmatch(text if kind == "year" else compact):
            parts = [part for part in match.groups() if part]
            shells = sorted(_SHELL.findall(parts.pop())) if kind == "configuration" else []
            return Text(kind, (*parts, *shells), text)
    return None


def _time(text: str) -> Text | None:
    """A time of day with am or pm, by the 24-hour clock."""
    if not (match := _TIME.fullmatch(text)):
        return None
    hour = int(match[1]) % 12 + (12 if match[4].lower() == "p" else 0)
    return Text("ratio", (str(hour), match[2] or "00", *filter(None, [match[3]])), text)


def _in_parts(text: str) -> Text | None:
    """Numerals between separators. Zeros before a number count in 3:05 only."""
    for kind, separator, least in _SEPARATORS:
        parts = separator.split(text.removeprefix("from "))
        if len(parts) < least or not all(map(_NUMERAL.fullmatch, parts)) or (kind == "size" and "10" in parts[1:]):
            continue
        kept = 1 if kind == "ratio" else len(parts)
        return Text(kind, (*(part.lstrip("0") or "0" for part in parts[:kept]), *parts[kept:]), text)
    return None


def _formula(text: str) -> Text | None:
    """A formula of chemistry with a number or a charge: H_2O, SO_4^{2-}. Without either it is a word."""
    if re.search(r"_\{?[01](?![0-9])|[a-z]_\{?[a-z]", text):
        return None
    plain = re.sub(r"\{\}|[{}_]|(?<![0-9]) ", "", _TEXT.sub(r"\1", text))
    match = _FORMULA.fullmatch(plain)
    if not match or not (atoms := _atoms(match[2])):
        return None
    numbered = re.search("[0-9]", match[2]) or match[3] or (match[1].isdigit() and len(atoms) > 1)
    return Text("formula", (plain.replace(" ", "").replace("^", ""),), text) if numbered else None


def _atoms(text: str) -> list[str]:
    """The elements in a text, in order; none where a part of it is no element."""
    atoms = re.findall("[A-Z][a-z]?", text)
    rest = re.sub(r"[A-Z][a-z]?|[0-9()]|\\cdot ?", "", text)
    return atoms if not rest and set(atoms) <= set(TABLES["elements"].split()) else []


def _code(text: str) -> Text | None:
    return Text("code", (text,), text) if _CODE.fullmatch(text) and not quantity(text).unit else None


def _words(plain: str, text: str) -> Text | None:
    r"""Words, or one letter. Letters alone are a word and no product: `act` is not `cat`; `xy` is `x \cdot y`."""
    inner = plain[1:-1] if plain.startswith("(") and plain.endswith(")") else plain
    inner = re.sub(r" |\*|\\cdot ?", "", inner) if _PRODUCT.fullmatch(inner) else inner.rstrip(".")
    if not _WORDS.fullmatch(inner) or re.fullmatch(FUNCTIONS, inner) or re.search(r"\b(?:and|or)\b|,", inner, re.I):
        return None
    typed = "\\text{" in text
    if len(inner) == 1:
        return Text("option" if typed or inner != plain else "letter", (inner,), inner)
    lengths = [len(part) for part in inner.split("-")]
    if len(lengths) > 1 and not typed and min(lengths) < 3 and max(lengths) < 4:  # kx-a is a difference
        return None
    key = " ".join(re.sub(r"^(?:the|an?) (?=\w)", "", re.sub("[-.]", " ", inner.lower()).strip()).split())
    key = TABLES["synonyms"].get(key, key)
    return Text("words", (key.removesuffix("s") if key.startswith("no ") else key,), inner)


def same_kind(truth: Text, answer: Text) -> bool:
    """Returns whether two texts have equal parts. Case does not count in words and options, but CO is not Co."""
    if {truth.kind, answer.kind} <= {"letter", "option"}:
        (expected,), (given,) = truth.parts, answer.parts
        choice = "option" in (truth.kind, answer.kind) or expected in "abcdABCDE"
        return expected == given or (choice and expected.upper() == given.upper())
    if truth.kind != answer.kind and "to" not in (truth.kind, answer.kind):
        return False
    atoms = [_atoms(side.written) for side in (truth, answer)]
    clash = truth.kind == "words" and all(atoms) and atoms[0] != atoms[1] and truth.parts != ("no",)
    return truth.parts == answer.parts and not clash


_SENTENCE = re.compile(
    r"\b(?:is|are|was|were|has|have|had|equals?|because|therefore|since|hence|thus|we|you|let|find|see|so|this|these|it|its|"
    r"can|will|would|should|must|be)\b",
    re.IGNORECASE,
)
_LABEL = re.compile(r"[A-Za-z][A-Za-z ]+(?: ?[0-9]+)?:|(?:answer|step|solution|question|problem|part|case) [0-9]", re.I)
MAX_WORDS = 6
"""An answer of more words is a sentence that nobody repeats"""


def why_prose(text: str) -> str:
    """Why a cleaned ground truth is a text that nobody answers; "" for others."""
    plain = " ".join(_TEXT.sub(r" \1 ", text).split())
    words = re.findall(r"(?<![\\A-Za-z])[^\W\d_]{2,}", plain)
    if plain.strip(" .!?*#<>[]()-").lower() in TABLES["junk"].split() or not re.search(r"\w|\\[A-Za-z]", plain):
        return "a placeholder, not an answer"
    if _LABEL.match(plain):
        return "a label before the answer; give the answer alone"
    if len(words) > 1 and (_SENTENCE.search(plain) or (len(words) > MAX_WORDS and not re.search(r",|\\text", text))):
        return "a sentence; give the answer alone"
    return ""
