"""Numbers with a unit: `5 cm`, `5\\text{ cm}`, `3 m/s^2`, `15 days`, `7 million`, `50\\%`, `12个`.

A unit is known by a table, in every spelling, and units are compared and never converted. A word that the table does
not know is no unit, so that it makes an answer another text; only a ground truth may bring a noun of its own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection
from fractions import Fraction
from typing import NamedTuple

from rewards.equivalence.plain import depths, number

Unit = frozenset[tuple[str, int]]
"""Names with their powers: m/s^2 is {("m", 1), ("s", -2)}"""
PERCENT, DEGREE, RADIAN, CENT = (frozenset({(name, 1)}) for name in ("%", "°", "rad", "cent"))
TEMPERATURES = (frozenset({("°C", 1)}), frozenset({("°F", 1)}))


class Quantity(NamedTuple):
    """A value (text), the number that words such as "million" multiply it by, and its unit."""

    value: str
    factor: Fraction
    unit: Unit


_PREFIXES = {"k": "kilo", "c": "centi", "m": "milli", "μ": "micro", "n": "nano", "p": "pico", "M": "mega", "G": "giga"}
_PREFIXES |= {"T": "tera", "d": "deci", "f": "femto", "h": "hecto"}
_PREFIXED = (
    "m=meter=metre g=gram=gramme s=second=sec A=ampere=amp K=kelvin mol=mole cd=candela Hz=hertz N=newton Pa=pascal "
    "J=joule W=watt C=coulomb V=volt F=farad Ω=ohm S=siemens Wb=weber T=tesla H=henry L=l=liter=litre eV=electronvolt "
    "bar cal=calorie Wh B=byte bit bps Bq=becquerel Sv=sievert Gy=gray M=molar"
)
_OTHERS = (
    "in=inch=inches ft=foot=feet yd=yard mi=mile nmi lb=lbs=pound oz=ounce t=ton=tonne h=hr=hour min=minute day=d "
    "week=wk month year=yr=yrs mph kph=kmh acre hectare gallon=gal quart=qt pint cup tablespoon=tbsp teaspoon=tsp atm "
    "mmHg torr psi rad=radian sr rpm amu Da D=debye dB hp au ly parsec=pc light-year century=centuries decade "
    "°=degree=deg °C=degC=celsius °F=degF=fahrenheit %=percent=pct dollar=usd=$=buck cent=¢ euro=eur=€ "
    "pound_sterling=gbp=£ yen=yuan=cny=rmb=jpy=¥=元 rupee=inr=rs 个=个 人 名 位 只 本 张 件 条 块 次 种 岁 天=天 "
    "min=分钟 s=秒 h=小时 m=米 "
    "cm=厘米 km=千米=公里 kg=千克=公斤 g=克 °=度 day=天=日 year=年 ppm ppb u person=people=persons man=men woman=women "
    "child=children student teacher player team boy girl family=families way point apple orange banana cookie marble "
    "ball book page coin card pencil pen ticket box=boxes bag seat car bus=buses game goal item object piece part "
    "pair time step term digit letter word solution choice arrangement combination permutation path triangle square "
    "rectangle circle side edge vertex=vertices face angle diagonal cube tile row column dot line egg fish dog cat "
    "chicken cow horse bird sheep animal tree flower plant leaf=leaves pizza slice cake candy=candies dish=dishes "
    "glass=glasses bottle meal shirt sock shoe hat toy worker employee friend guest member element subset set "
    "function integer prime factor divisor multiple question problem test vote electron proton neutron atom molecule "
    "ion photon bond isomer cell gene revolution cycle lap turn trip night"
)
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_SCALES |= {"千": 10**3, "万": 10**4, "亿": 10**8}
_COMPOUND = {"mph": (("mi", 1), ("h", -1)), "kph": (("km", 1), ("h", -1)), "cc": (("cm", 3),)}
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "平方": 2, "立方": 3}
_LATER_POWERS = {"squared": 2, "cubed": 3}
_NO_NOUNS = (
    "a about add after all also an and another any are as at be because before but by divide double each either "
    "equals except for from half if in incorrect infinity is it least less minus mod more most multiply nan negative "
    "never no none not of off on only or other over per plus point power root than that the then times to todo twice "
    "until was were when where with without wrong false true yes"
)
"""Words that a noun behind a number cannot be, not even in a ground truth"""


def _table() -> dict[str, str]:
    """Every spelling of a unit -> its name. Symbols keep their case, words are in lower case and singular."""
    table: dict[str, str] = {}
    for group in _OTHERS.split():
        table |= dict.fromkeys(group.split("="), group.split("=")[0])
    for group in _PREFIXED.split():
        symbol, *words = group.split("=")
        for prefix, spoken in [("", ""), *_PREFIXES.items()]:
            table.setdefault(prefix + symbol, prefix + symbol)
            table |= {(prefix if len(word) == 1 else spoken) + word: prefix + symbol for word in words}
    return table | {"unit": "", "mcg": "μg"}


_TABLE = _table()
_OPEN_VALUE = re.compile(r"(?:[-+/=^]|\\cdot|\\times)$|\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
"""What no unit stands behind: an operator, or a function of an angle in degrees"""
_START = re.compile(r"\\text\{|\\(?:degree|%|mu|Omega)(?![A-Za-z])|(?<![\\A-Za-z{_^])[A-Za-zΩμ¢€£¥]|[一-鿿]")
_TOKEN = re.compile(
    r"(?:\^\{?|(?<=[A-Za-z]))(-?[0-9])(?![0-9])\}?|([/()])|(°C|°F|[^\W\d_]+(?:-year)?|[%°$¢€£¥])|(\s+|\\cdot|[*.-])|(.)",
    re.DOTALL,
)
_SPELLINGS: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"\\text\{((?:[^{}]|\{[^{}]*\})*)\}", r" \1 "),
    (r"\\degree ?|\bdegrees? (?=[CFcf])", "°"),
    (r"°\s*([CF])(?:elsius|ahrenheit)?\b", r"°\1"),
    (r"°\s*c(?=elsius)|°\s*f(?=ahrenheit)", lambda match: match[0].strip()[-1]),
    (r"\\%", "%"),
    (r"\\mu\s*|[µμ]", "μ"),
    (r"\\Omega", "Ω"),
    (r"\bper\b|每", "/"),
    (r"平方|立方", r"\g<0> "),
]
_SPELLED = [(re.compile(pattern), replacement) for pattern, replacement in _SPELLINGS]


def quantity(text: str, nouns: Collection[str] | None = (), glued: bool = True) -> Quantity:
    """The value of a cleaned text and its unit; without a known unit the whole text is the value.

    `nouns` are words that count as units here; None allows any noun behind a plain number (for a ground truth).
    Unless `glued`, `6m` is a product: a letter alone is a unit only behind a space or in `\\text{}`.
    """
    depth = depths(text)
    for match in _START.finditer(text):
        start = match.start()
        value = text[: match.start()].strip()
        if not value or depth[start] or _OPEN_VALUE.search(value):
            continue
        bare = match[0][0] not in "\\" and text[start - 1] != " "
        alone = bare and re.match("[A-Za-z](?![A-Za-z])", text[start:])
        if alone and (not glued or number(value) is None):
            continue
        if match[0].isalpha() and re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+|\b(?:from|to|by)\b", "", value)):
            continue
        parsed = _unit(text[start:], nouns if nouns is not None or number(value) is not None else ())
        if parsed is not None:
            return Quantity(value, *parsed)
    return Quantity(text, Fraction(1), frozenset())


def _unit(text: str, nouns: Collection[str] | None) -> tuple[Fraction, Unit] | None:
    """Factor and unit that a text spells; None where one of its words is no unit."""
    for pattern, replacement in _SPELLED:
        text = pattern.sub(replacement, text)
    powers: Counter[str] = Counter()
    factor = Fraction(1)
    sign = 1
    group = 0
    wanted = 1
    last: str | None = None
    for power, mark, word, _, other in _TOKEN.findall(text):
        if other:
            return None
        if power:
            if last is None:
                return None
            powers[last] += (int(power) - 1) * (1 if powers[last] > 0 else -1)
        elif mark:
            group += {"(": 1, ")": -1}.get(mark, 0)
            sign = -1 if mark == "/" else sign if mark == "(" else 1
        elif word in _LATER_POWERS and last is not None:
            powers[last] *= _LATER_POWERS[word]
        elif word.lower() in _POWERS:
            wanted = _POWERS[word.lower()]
        elif word.lower() in _SCALES or word.lower().rstrip("s") in _SCALES:
            factor *= _SCALES.get(word.lower()) or _SCALES[word.lower().rstrip("s")]
        elif word:
            if (name := _name(word, nouns)) is None:
                return None
            for base, exponent in _COMPOUND.get(name, ((name, 1),)):
                powers[base] += sign * wanted * exponent
            last = name
            wanted = 1
            sign = sign if group else 1
    if wanted != 1 or (last is None and factor == 1):
        return None
    powers.pop("", None)
    return factor, frozenset((name, power) for name, power in powers.items() if power)


def _name(word: str, nouns: Collection[str] | None) -> str | None:
    lower = word.lower()
    for spelling in (word, lower, lower.removesuffix("s"), lower.removesuffix("es")):
        if spelling in _TABLE and (len(spelling) > 2 or spelling in (word, word.removesuffix("s"))):
            return _TABLE[spelling]
    singular = lower.removesuffix("s")
    if nouns is None:
        return singular if len(word) > 2 and word.isalpha() and lower not in _NO_NOUNS.split() else None
    return singular if singular in nouns else None
