"""Answers as text: one spelling for everything that TeX spells in several ways."""

from __future__ import annotations

import re
import unicodedata

from rewards.equivalence.plain import enclosed
from rewards.equivalence.tables import TABLES, rewrite, rules


def squeeze(text: str) -> str:
    """The form in which texts are compared: without white space and without braces that TeX does not need."""
    return re.sub(r"\{(\w)\}", r"\1", re.sub(r"\s", "", text))


_CHARACTERS = str.maketrans(TABLES["characters"])
_SCRIPTS, _DELIMITERS, _HARMLESS = (rules(TABLES[name]) for name in ("scripts", "delimiters", "harmless"))
_SPELLINGS = rules(
    TABLES["spellings"],
    COMMAND=lambda match: TABLES["commands"].get(match[1], match[0]),
    PLAIN=lambda match: match[0].replace(",", ""),
)


def clean(text: str) -> str:
    """One spelling of the answer, without commands that only set type; never joins two numbers."""
    text = unicodedata.normalize("NFKC", rewrite(text.translate(_CHARACTERS), _SCRIPTS)).strip()
    return _rename_integer(unwrap(rewrite(unwrap(rewrite(text, _DELIMITERS)), _SPELLINGS)))


def strip_harmless(text: str) -> str:
    """A cleaned answer without the closed list of words that may stand beside a value and do not change it."""
    return rewrite(text, _HARMLESS)


_LETTER = re.compile(r"\\[A-Za-z]+|[A-Za-z]")
_INTEGER = re.compile(r"(?<![A-Za-z\\])([A-Za-z])\\in\\mathbb\{[ZN]\}")


def _renamed(text: str, old: str, new: str) -> str:
    return _LETTER.sub(lambda letter: new if letter[0] == old else letter[0], text)


def _rename_integer(text: str) -> str:
    r"""2\pi n, n\in\mathbb{Z} with k for n: any integer may have any name that is free."""
    match = _INTEGER.search(text)
    letters = _LETTER.findall(text)
    if match and "k" not in letters and letters.count(match[1]) > 1:
        return _renamed(text, match[1], "k")
    return text


_BOUND = re.compile(r"([A-Za-z])\(([A-Za-z])\)=")
_COUNTING = re.compile(r"(?<![A-Za-z\\])[jklmn](?![A-Za-z])")


def rename_letters(truth: str, answer: str) -> str:
    r"""The answer with the truth's letters where any letter will do.

    f(m)=2m for f(n)=2n, m\pi for k\pi, k\in\mathbb{Z}.
    """
    function, other = _BOUND.match(truth), _BOUND.match(answer)
    if function and other and function[1] == other[1] and function[2] not in _LETTER.findall(answer):
        return _renamed(answer, other[2], function[2])
    letters = set(_COUNTING.findall(answer))
    if "\\in\\mathbb{Z}" in truth and "\\in" not in answer and len(letters) == 1:
        return _rename_integer(rf"{answer},{letters.pop()}\in\mathbb{{Z}}")
    return answer


_WRAPPED = re.compile(r"(?:\\boxed|\\text)?(\{.*\})", re.DOTALL)


def unwrap(text: str) -> str:
    r"""Removes braces, `\boxed{}` and `\text{}` that enclose the whole text."""
    while (match := _WRAPPED.fullmatch(text)) and enclosed(match[1]):
        text = match[1][1:-1].strip()
    return text
