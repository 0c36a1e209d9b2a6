r"""Text of a kind: dates, times, ratios, ranges, codes, chemical formulas and words.

The shape of a text decides whether it is mathematics at all, before `-`, `/`, `:` and letters become operators. Texts
of a kind are equal when their parts are equal, in order: 20-30 is not 10-20, and CAB is not ABC.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from rewards.equivalence.tables import FUNCTIONS, TABLES, Rules, pattern, rewrite, rules
from rewards.equivalence.units import compound, quantity


class Text(NamedTuple):
    """A kind, a key that equal texts share, and the text as it was written."""

    kind: str
    key: str
    written: str


_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_SHELL = re.compile(r"[1-7][spdf][0-9]{1,2}(?=[1-7][spdf]|$)")


def _sorted_shells(match: re.Match[str]) -> str:
    return "".join(sorted(_SHELL.findall(match[0])))


_KINDS, _COMPACT_KINDS = (
    [(kind, pattern(text), key, rules(tidy, SHELLS=_sorted_shells)) for kind, text, key, tidy in TABLES[table]]
    for table in ("kinds", "compact_kinds")
)
_CODE = re.compile(
    rf"(?!{FUNCTIONS})(?:[A-Za-z]+[0-9][A-Za-z0-9]*|[0-9]+[A-Za-z]+[0-9][A-Za-z0-9]*|[0-9]+[A-Z]{{2,}}|[A-Z]{{1,2}}[+-]"
    r"|(?=.*(?:[A-Z]{2}|[A-Za-z]{4}))(?=.*[0-9])[A-Za-z0-9]+(?:-[A-Za-z0-9]+)+"  # B12, 0x1F, 4AB, A+, COVID-19
    r"|[A-Za-z]{2,}(?:_[A-Za-z0-9]{2,})+|(?:[A-Z][a-z]+ ){1,2}[0-9]+)"  # snake_case, Apollo 11
)
_FORMULA = re.compile(r"(?:\^[0-9]+)?([0-9]* ?)((?:[A-Z][a-z]?[0-9]*|\(|\)[0-9]*|\\cdot ?[0-9]*)+)(\^?[0-9]*[+-])?")
_ATOMS = re.compile(rf"(?:(?:{'|'.join(TABLES['elements'].split())})(?![a-z])|[0-9()]|\\cdot ?)+")
_WORDS = re.compile(
    rf"(?!(?:{FUNCTIONS})$)(?!.*(?:\b(?i:and|or)\b|,))[^\W\d_](?:[^\W\d_]|(?<=[^\W\d_]{{2}})['’]|[ .,-](?! ))*"
)
_DIFFERENCE = re.compile(r"(?=(?:.*-)?[^-]{1,2}(?:-|$))[^-]{1,3}(?:-[^-]{1,3})+")  # kx-a
_WORD_KEY = rules(TABLES["words"])
_PROSE = [(reason, pattern(text)) for reason, text in TABLES["prose"]]
_TIMES = r" |\*|\\(?:cdot|times) ?"
_PRODUCT = re.compile(rf"[A-Za-z](?:(?:{_TIMES})[A-Za-z])+")


def textual(text: str) -> Text | None:
    """The text of a kind that a cleaned answer or ground truth is; None for mathematics."""
    plain = " ".join(_TEXT.sub(r" \1 ", text).split())
    compact = re.sub(r"[ {}^]", "", plain)
    return (
        _tabled(_KINDS, plain)
        or _compound(plain)
        or _tabled(_COMPACT_KINDS, compact)
        or _formula(text)
        or _code(plain)
        or _words(plain, text)
    )


def _tabled(kinds: list[tuple[str, re.Pattern[str], str, Rules]], text: str) -> Text | None:
    """A date, a time, numerals between separators, a year of an era, a hybrid orbital, an electron configuration."""
    for kind, whole, key, tidy in kinds:
        if match := whole.fullmatch(text):
            return Text(kind, rewrite(match.expand(key), tidy), text)
    return None


def _compound(text: str) -> Text | None:
    key = compound(text)
    return Text("compound", key, text) if key else None


def _formula(text: str) -> Text | None:
    """A formula of chemistry with a number or a charge: H_2O, SO_4^{2-}. Without either it is a word."""
    if re.search(r"_\{?[01](?![0-9])|[a-z]_\{?[a-z]", text):
        return None
    plain = re.sub(r"\{\}|[{}_]|(?<![0-9]) ", "", _TEXT.sub(r"\1", text))
    match = _FORMULA.fullmatch(plain)
    if not match or not (atoms := _atoms(match[2])):
        return None
    numbered = re.search("[0-9]", match[2]) or match[3] or (match[1].isdigit() and len(atoms) > 1)
    return Text("formula", plain.replace(" ", "").replace("^", ""), text) if numbered else None


def _atoms(text: str) -> list[str]:
    """The elements in a text, in order; empty if a part of it is not an element."""
    return re.findall("[A-Z][a-z]?", text) if _ATOMS.fullmatch(text) else []


def _code(text: str) -> Text | None:
    return Text("code", text, text) if _CODE.fullmatch(text) and not quantity(text).unit else None


def _words(plain: str, text: str) -> Text | None:
    r"""Words, or one letter. Letters alone are a word and no product: `act` is not `cat`; `xy` is `x \cdot y`."""
    inner = plain[1:-1] if plain.startswith("(") and plain.endswith(")") else plain
    inner = re.sub(_TIMES, "", inner) if _PRODUCT.fullmatch(inner) else inner.rstrip(".")
    typed = "\\text{" in text
    if not _WORDS.fullmatch(inner) or (_DIFFERENCE.fullmatch(inner) and not typed):
        return None
    if len(inner) == 1:
        return Text("option" if typed or inner != plain else "letter", inner, inner)
    return Text("words", rewrite(inner.lower(), _WORD_KEY), inner)


def same_kind(truth: Text, answer: Text) -> bool:
    """Returns whether two texts have equal parts. Case does not count in words and options, but CO is not Co."""
    kinds = {truth.kind, answer.kind}
    if kinds <= {"letter", "option"}:
        choice = "option" in kinds or truth.key in "abcdABCDE"
        return truth.key == answer.key or (choice and truth.key.upper() == answer.key.upper())
    if len(kinds) > 1 and "to" not in kinds:
        return False
    elements, others = _atoms(truth.written), _atoms(answer.written)
    clash = truth.kind == "words" and elements and others and elements != others and truth.key != "no"
    return truth.key == answer.key and not clash


def why_prose(text: str) -> str:
    """Why a cleaned ground truth is prose that no answer repeats; "" for others."""
    return next((reason for reason, prose in _PROSE if prose.search(text)), "")
