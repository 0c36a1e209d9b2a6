"""Answers as text: one spelling for what TeX spells in many ways."""

from __future__ import annotations

import re
from collections.abc import Callable

from rewards.equivalence.plain import depths, enclosed


def squeeze(text: str) -> str:
    """What is compared where only text can be: no white space, and no braces that TeX does not need."""
    return re.sub(r"\{(\w)\}", r"\1", re.sub(r"\s", "", text))


_CHARACTERS = str.maketrans(
    {
        "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "π": r"\pi ",
        "θ": r"\theta ",
        "°": r"^\circ ", "∞": r"\infty ", "√": r"\sqrt ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ",
        "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "∓": r"\mp ", "≈": r"\approx ", "∅": r"\emptyset ", "²": "^2",
        "³": "^3", "¹": "^1", "⁰": "^0", "′": "'", "’": "'", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u200b": "",
        "…": r"\ldots ", "—": "-", "‐": "-", "‑": "-", "‒": "-", "。": ".", "、": ",", "“": "", "”": "", "µ": "μ",
        "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⟨": "(", "⟩": ")", "⁄": "/",
    }
    | {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # full width
)  # fmt: skip

_COMMANDS = {
    "dfrac": r"\frac", "tfrac": r"\frac", "cfrac": r"\frac", "leq": r"\le", "leqslant": r"\le", "geq": r"\ge",
    "geqslant": r"\ge", "neq": r"\ne", "lt": "<", "gt": ">", "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[",
    "rbrack": "]", "varnothing": r"\emptyset", "degree": r"\degree ", "langle": "(", "rangle": ")", "colon": ":",
} | dict.fromkeys(
    ["displaystyle", "textstyle", "limits", "nolimits", "hfill", "quad", "qquad", "thinspace"], " "
)  # fmt: skip
"""Commands with another spelling, and commands that only set type"""
_ORDINAL = "-?(?:st|nd|rd|th)"
_OPEN_TEXT = r",? ?(?:\\text\{)?[, ]*(?:(?:where|for|with) ?)?\}? ?"
_REWRITE_RULES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?(?=[\s()\[\]|\\.]|$)", ""),
    (r"\\([A-Za-z]+)", lambda match: _COMMANDS.get(match[1], match[0])),
    (r"\\!\s*", ""),
    (r"(?<=\w) ?(?:\{:\}|:) ?(?=\w)", ":"),
    (r"\\(?:[mh]box|text(?:rm|bf|it|normal|sf|tt)|math(?:rm|bf|it|sf)|rm|bf|ce)\s*\{", r"\\text{"),
    (r"(?<=[0-9])(?:\\[,;:]|\\ |~|\{,\})(?=[0-9]{3}(?![0-9]))", ""),  # thousands: 10\,080 and 10{,}080
    (  # 19,000 J, but not 1,200 and 3
        r"(?<![0-9,.])[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?=\s*(?:\\text\{|[A-Za-z]))"
        r"(?!\s*(?:\\text\{,?\s*)?(?:and|or)\b)",
        lambda match: match[0].replace(",", ""),
    ),
    (r"(?<!\\)\\[,;: ]|~", " "),
    (r"\^\s*(?:\\prime(?![A-Za-z])|\{\s*\\prime\s*\})", "'"),
    (
        rf"(?<=[0-9])(?:\^\{{(?:\\text\{{{_ORDINAL}\}}|{_ORDINAL})\}}|\^?\\text\{{ ?{_ORDINAL} ?\}}|{_ORDINAL}\b)",
        "",
    ),
    (r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\text\{\s*degrees?\s*\}", r"\\degree "),
    (r"\\text\{\s*(?:percent|per cent)\s*\}|(?<=[0-9])\s*percent\b|(?<!\\)%", r"\\%"),
    (r"(?<![A-Za-z\\0-9.])([0-9]+\.?[0-9]*|\.[0-9]+)[eE]([+-]?[0-9]{1,9})(?![0-9A-Za-z.])", r"\1\\times10^{\2}"),
    (r"(?<=[0-9])\s*(?:[xX*]|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*", r"\\times10^"),
    (r"\^\s*([+-]\s*[0-9]+)", r"^{\1}"),
    (r"\*\*", "^"),
    (r"\\text\{\s*\}|\s+", " "),
    (r" ?([-+*/=<>|()\[\]{}^_&]) ?", r"\1"),
    (r"\\text\{([ie])\}", r"\1"),  # the constants, set upright: no units
    (r" (?=\\)", ""),
    (r"(\\[A-Za-z]+) (?![A-Za-z])", r"\1"),
    (r"\\in(?:\\mathbb ?\{?| |\\text\{)([RQZNC])\}?(?![A-Za-z])", r"\\in\\mathbb{\1}"),
    (rf"{_OPEN_TEXT}(?:(?:any|all|every|some|an) )?integers? ?\}}? ?([a-z])\}}?$", r",\1\\in\\mathbb{Z}"),
    (
        rf"{_OPEN_TEXT}(?<![A-Za-z\\])([a-z]) ?(?:\\text\{{)? ?(?:(?:is|being|be|an|any|some) )+integer ?\}}?$",
        r",\1\\in\\mathbb{Z}",
    ),
    (
        r",? ?(?:\\text\{,? ?for (?:all|every|any)(?: real)?(?: numbers?)? ?\}|for (?:all|every|any)|\\forall) ?"
        r"(?:real )?[A-Za-z](?:\\in\\mathbb\{[RQZN]\})?$",
        "",
    ),
]
_REWRITES = [(re.compile(pattern), replacement) for pattern, replacement in _REWRITE_RULES]
_DELIMITERS = re.compile(r"(?<!\\)(?:\$|\\[()\[\]])")
_MONEY = re.compile(r"(\\\$|[€£¥]|(?<!\\)\$(?=[^$]*$))\s*(-?[0-9](?:[0-9.]|(?:,|\{,\})(?:\\!)?\s*(?=[0-9]{3}))*)")


def clean(text: str) -> str:
    """One spelling of the answer; never joins two numbers. Commands that only set type are gone."""
    text = text.translate(_CHARACTERS).strip().strip('"')
    if text.startswith("**") and text.endswith("**"):
        text = text.strip("*")
    if text.count("$") % 2 == 0:
        text = re.sub(r"(?<!\\)\$", " ", text)
    text = _MONEY.sub(lambda match: f"{match[2]} {match[1].strip(chr(92)).replace('$', 'dollar')} ", text)
    text = unwrap(_DELIMITERS.sub(" ", text).replace("\\$", "").strip())
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = _brace_arguments(text.strip())
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


_HARMLESS = re.compile(
    r"^(?:\\text\{ ?)?(?:(?:so|thus|hence|therefore|then),? )?(?:(?:the |my |our )?(?:final |correct )?"
    r"(?:answer|result|value|solution|total|sum)(?: (?:is|equals|of))*|(?:it |this )?(?:is|equals)|exactly|option|"
    r"choice)(?:: ?\} ?| ?\}:? ?|: ?| )(?=[^=])"
    r"|,? ?(?:\\text\{ ?)?(?:in total|in all|altogether|total|exactly) ?\}?$",
    re.IGNORECASE,
)


def strip_harmless(text: str) -> str:
    """A cleaned answer without the closed list of words that may stand beside a value and do not change it."""
    return _HARMLESS.sub("", text)


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
