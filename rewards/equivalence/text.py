"""Answers as text: one spelling for what TeX spells in many ways."""

from __future__ import annotations

import re
import unicodedata

from rewards.equivalence.plain import depths, enclosed
from rewards.equivalence.tables import TABLES, rewrite, rules


def squeeze(text: str) -> str:
    """The form in which texts are compared: no white space, and no braces that TeX does not need."""
    return re.sub(r"\{(\w)\}", r"\1", re.sub(r"\s", "", text))


_CHARACTERS = str.maketrans(TABLES["characters"])
_SPELLINGS = rules(
    TABLES["spellings"],
    COMMAND=lambda match: TABLES["commands"].get(match[1], match[0]),
    PLAIN=lambda match: match[0].replace(",", ""),
)
_HARMLESS = rules(TABLES["harmless"])
_RAISED, _LOWERED = (
    "".join(filter(lambda letter: unicodedata.decomposition(letter).startswith(script), map(chr, range(0x80, 0x2200))))
    for script in ("<super>", "<sub>")
)
_SCRIPTS = re.compile(f"([{_RAISED}]+)|[{_LOWERED}]+|[¼-¾⅐-⅞]")
_DELIMITERS = re.compile(r"(?<!\\)(?:\$|\\[()\[\]])")
_MONEY = re.compile(
    r"((?:\\text\{US\} ?|(?<![A-Za-z])USD? ?)?(?:\\\$|(?<!\\)\$(?=[^$]*$))"
    r"|[€£¥]|(?<![A-Za-z])(?:USD|EUR|GBP)(?= ?[0-9]))"
    r"\s*(-?[0-9](?:[0-9.]|(?:[ ,]|\{,\}|\\,)(?:\\!)?\s*(?=[0-9]{3}))*)(?: ?USD?\b)?"
)


def clean(text: str) -> str:
    """One spelling of the answer; never joins two numbers. Commands that only set type are gone."""
    text = _SCRIPTS.sub(_script, text.translate(_CHARACTERS))
    text = unicodedata.normalize("NFKC", text).strip().strip('"')
    if text.startswith("**") and text.endswith("**"):
        text = text.strip("*")
    if text.count("$") % 2 == 0:
        text = re.sub(r"(?<!\\)\$", " ", text)
    text = _MONEY.sub(lambda match: f"{match[2]} {'dollar' if '$' in match[1] else match[1]} ", text)
    text = unwrap(_DELIMITERS.sub(" ", text).replace("\\$", "").strip())
    text = _brace_arguments(rewrite(text, _SPELLINGS).strip())
    while text.endswith(".") and not text.endswith(".."):
        text = text[:-1].rstrip()
    return _rename_integer(unwrap(text))


def _brace_arguments(text: str) -> str:
    r"""\frac{a}{b} for \frac{a}b and \frac ab, \sqrt{2} for sqrt(2)."""
    text = re.sub(r"\\frac ?(\\[A-Za-z]+(?![A-Za-z{\[])|\w) ?", r"\\frac{\1}", text)
    for match in reversed(list(re.finditer(r"\\frac(?={)|\\?(?<![A-Za-z])sqrt(?=\()", text))):
        before, after = text[: match.start()], text[match.end() :]
        depth = depths(after)
        end = depth.index(0) if 0 in depth else len(after)
        if match[0] == "\\frac":
            after = after[: end + 1] + re.sub(r"^ ?(\\[A-Za-z]+|\w)(?![A-Za-z{])", r"{\1}", after[end + 1 :])
            text = f"{before}\\frac{after}"
        else:
            text = f"{before}\\sqrt{{{after[1:end]}}}{after[end + 1 :]}"
    return text


def _script(match: re.Match[str]) -> str:
    r"""10^{-3} for a run of superscripts, H_2 for one of subscripts, \frac{1}{2} for ½."""
    plain = unicodedata.normalize("NFKC", match[0]).replace("−", "-")
    above, fraction, below = plain.partition("⁄")
    if fraction:
        return rf"\frac{{{above}}}{{{below}}}"
    return ("^" if match[1] else "_") + (plain if len(plain) == 1 else f"{{{plain}}}")


def strip_harmless(text: str) -> str:
    """A cleaned answer without the closed list of words that may stand beside a value and do not change it."""
    return rewrite(text, _HARMLESS)


_LETTER = re.compile(r"\\[A-Za-z]+|[A-Za-z]")
_INTEGER = re.compile(r"(?<![A-Za-z\\])([A-Za-z])\\in\\mathbb\{[ZN]\}")


def _rename_integer(text: str) -> str:
    r"""2\pi n, n\in\mathbb{Z} with k for n: any integer may have any name that is free."""
    match = _INTEGER.search(text)
    letters = _LETTER.findall(text)
    if match is None or "k" in letters or letters.count(match[1]) < 2:
        return text
    return _LETTER.sub(lambda letter: "k" if letter[0] == match[1] else letter[0], text)


_BOUND = re.compile(r"([A-Za-z])\(([A-Za-z])\)=")
_COUNTING = re.compile(r"(?<![A-Za-z\\])[jklmn](?![A-Za-z])")


def rename_letters(truth: str, answer: str) -> str:
    r"""The answer with the truth's letters where any letter will do.

    f(m)=2m for f(n)=2n, m\pi for k\pi, k\in\mathbb{Z}.
    """
    ours, theirs = _BOUND.match(truth), _BOUND.match(answer)
    if ours and theirs and ours[1] == theirs[1] and ours[2] not in _LETTER.findall(answer):
        return _LETTER.sub(lambda letter: ours[2] if letter[0] == theirs[2] else letter[0], answer)
    letters = set(_COUNTING.findall(answer))
    if "\\in\\mathbb{Z}" in truth and "\\in" not in answer and len(letters) == 1:
        return _rename_integer(rf"{answer},{letters.pop()}\in\mathbb{{Z}}")
    return answer


_WRAPPERS = ("\\boxed{", "{", "\\text{")


def unwrap(text: str) -> str:
    r"""Takes off braces, `\boxed{}` and `\text{}` that enclose the whole text."""
    while text.endswith("}"):
        head = next((head for head in _WRAPPERS if text.startswith(head)), None)
        if head is None or not enclosed(text[len(head) - 1 :]):
            break
        text = text[len(head) : -1].strip()
    return text
