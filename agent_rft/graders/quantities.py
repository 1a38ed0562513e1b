"""Reads a text that is one number and nothing else: "$842 million dollars", "(1,234)", "13.4 %", "**-$5.2bn**".

Every character must be accounted for. A word that is no unit, a hedge, a second number: then it is not a plain number,
and the answer is None rather than a guess.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import Literal

import msgspec

MAX_CHARS = 80
"""Nobody needs more for one number; longer texts are not looked into."""
MAX_EXPONENT = 30

DOLLARS = frozenset({"USD", "CAD", "AUD", "NZD", "HKD", "SGD"})
CURRENCIES: dict[str, frozenset[str]] = {
    **dict.fromkeys(("$", "dollar", "dollars"), DOLLARS),
    **dict.fromkeys(("us", "usd"), frozenset({"USD"})),
    **{code.lower(): frozenset({code}) for code in DOLLARS - {"USD"}},
    **dict.fromkeys(("€", "eur", "euro", "euros"), frozenset({"EUR"})),
    **dict.fromkeys(("£", "gbp", "pound", "pounds", "sterling"), frozenset({"GBP"})),
    "¥": frozenset({"JPY", "CNY"}),
    **dict.fromkeys(("jpy", "yen"), frozenset({"JPY"})),
    **dict.fromkeys(("cny", "rmb", "yuan", "renminbi"), frozenset({"CNY"})),
    **dict.fromkeys(("chf", "franc", "francs"), frozenset({"CHF"})),
    **dict.fromkeys(("₹", "inr", "rupee", "rupees"), frozenset({"INR"})),
    **dict.fromkeys(("₩", "krw", "won"), frozenset({"KRW"})),
}
"""Which currencies a word or sign may mean."""
SUBUNITS: dict[str, frozenset[str]] = {
    **dict.fromkeys(("¢", "cent", "cents"), DOLLARS | {"EUR"}),
    **dict.fromkeys(("penny", "pence"), frozenset({"GBP"})),
}
MAGNITUDES: dict[str, int] = {
    **dict.fromkeys(("k", "thousand", "thousands"), 10**3),
    **dict.fromkeys(("m", "mn", "mm", "mio", "million", "millions"), 10**6),
    **dict.fromkeys(("b", "bn", "billion", "billions"), 10**9),
    **dict.fromkeys(("t", "tn", "trn", "trillion", "trillions"), 10**12),
}
RATIOS: dict[str, Fraction] = {
    **dict.fromkeys(("%", "percent", "per cent", "pct", "pp", "percentage point", "percentage points"), Fraction(1, 100)),
    **dict.fromkeys(("bp", "bps", "basis point", "basis points"), Fraction(1, 10_000)),
}
MINUS_WORDS = frozenset({"minus", "negative"})

_DASHES = dict.fromkeys(map(ord, "−–‒‐‑﹣－"), "-")
_FULL_WIDTH = {ord("％"): "%", ord("＄"): "$", ord("．"): ".", ord("，"): ",", **{ord("０") + d: str(d) for d in range(10)}}
_WRAPPED = re.compile(r"(?:(?<=\s)|^)(\*\*|__|\*|_|`|\"|')(\S(?:.*?\S)?)\1(?=[\s.%]|$)")
_LABEL = re.compile(r"(?:the )?(?:final )?(?:answer|result|value)\s*:\s*")
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>(?:[1-9]\d{0,2}(?P<group>[,\ '’])\d{3}(?:(?P=group)\d{3})*(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?)
    | (?P<mark>[-+()])
    | (?P<word>per\ cent|percentage\ points?|basis\ points?|[a-z]+|[^\sa-z0-9])
    )""",
    re.VERBOSE | re.ASCII,
)


class Quantity(msgspec.Struct, frozen=True):
    """An exact value, and how it was written as far as that matters."""

    value: Fraction
    resolution: Fraction
    """What one step of the last digit written is worth: 13.4% -> 0.001, $842M -> 1,000,000."""
    significant: int
    """Digits written, leading zeros aside: 13.4 -> 3, 0.05 -> 1, 840 -> 3."""
    currencies: frozenset[str] = frozenset()
    """What the currency may be; empty where none is named."""
    is_ratio: bool = False
    """Written as percent or basis points."""

    def unit_contradicts(self, other: Quantity) -> bool:
        """Both name a unit, and not the same. A unit left out contradicts nothing; the value still has to match."""
        if self.currencies and other.currencies:
            return not self.currencies & other.currencies
        return (self.is_ratio and bool(other.currencies)) or (bool(self.currencies) and other.is_ratio)


class _Token(msgspec.Struct, frozen=True):
    kind: Literal["number", "mark", "word"]
    text: str


def quantity_of(value: object) -> Quantity | None:
    """A JSON number, or a text that is one number. None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return read_quantity(str(value)) if abs(value) < 10**MAX_EXPONENT else None
    if isinstance(value, float):
        return read_quantity(f"{value:.12g}")  # what is beyond 12 digits is float noise: 0.1 + 0.2 means 0.3
    return read_quantity(value) if isinstance(value, str) else None


def read_quantity(text: str) -> Quantity | None:
    plain = plain_text(text)
    tokens = _tokens(plain) if len(plain) <= MAX_CHARS else []
    at = next((i for i, token in enumerate(tokens) if token.kind == "number"), None)
    if at is None:
        return None
    before, after = tokens[:at], tokens[at + 1 :]
    sign = _sign([t.text for t in before if _is_sign(t)], [t.text for t in after if _is_sign(t)])
    units = _units([t.text for t in before if not _is_sign(t)], [t.text for t in after if not _is_sign(t)])
    mantissa, _, exponent = tokens[at].text.partition("e")
    if sign is None or units is None or abs(int(exponent or 0)) > MAX_EXPONENT:
        return None
    scale, currencies, is_ratio = units
    digits = re.sub(r"[^\d.]", "", mantissa)
    scale *= Fraction(10) ** int(exponent or 0)
    decimals = len(digits.partition(".")[2])
    return Quantity(
        value=sign * Fraction(digits) * scale,
        resolution=scale / 10**decimals,
        significant=len(digits.replace(".", "").lstrip("0")),
        currencies=currencies,
        is_ratio=is_ratio,
    )


def plain_text(text: str) -> str:
    """Lower case, one kind of space and of minus; without emphasis, quotes, a bare label and the full stop at the end."""
    text = text.strip()
    if len(text) > 4 * MAX_CHARS:
        return text
    shown = "".join(c for c in text.translate(_DASHES).translate(_FULL_WIDTH) if unicodedata.category(c) != "Cf")
    plain = "".join(" " if c.isspace() else c for c in shown).strip().lower()
    for _ in range(2):  # **"13.4%"**
        plain = _WRAPPED.sub(r"\2", plain).strip()
    plain = _LABEL.sub("", plain, count=1) if _LABEL.match(plain) else plain
    plain = _WRAPPED.sub(r"\2", plain).strip()  # Answer: "13.4%"
    return plain.removesuffix(".").strip()


def _tokens(plain: str) -> list[_Token]:
    """Every character that is no space ends up in one: the pattern's last branch takes what the others leave."""
    found: list[_Token] = []
    for match in _TOKEN.finditer(plain):
        kind = "number" if match["number"] else "mark" if match["mark"] else "word"
        found.append(_Token(kind, match[kind]))
    return found


def _is_sign(token: _Token) -> bool:
    return token.kind == "mark" or token.text in MINUS_WORDS


def _sign(before: list[str], after: list[str]) -> int | None:
    """-1 for one minus, or for the accountant's parentheses around the number."""
    if before == ["("] and after == [")"]:
        return -1
    if after or len(before) > 1:
        return None
    return 1 if before in ([], ["+"]) else -1 if before != ["("] else None


def _units(before: list[str], after: list[str]) -> tuple[Fraction, frozenset[str], bool] | None:
    """Scale, possible currencies, whether it is a ratio. None for what is no unit (a second number, say), or does not go together."""
    if any(word not in CURRENCIES for word in before):
        return None
    words = before + after
    named = [CURRENCIES[w] for w in words if w in CURRENCIES]
    subunits = [SUBUNITS[w] for w in after if w in SUBUNITS]
    magnitudes = [MAGNITUDES[w] for w in after if w in MAGNITUDES]
    ratios = [RATIOS[w] for w in after if w in RATIOS]
    if len(named) + len(subunits) + len(magnitudes) + len(ratios) != len(words):
        return None
    if len(magnitudes) > 1 or len(ratios) + len(subunits) > 1 or (ratios and (named or magnitudes)) or (subunits and named):
        return None
    possible = frozenset[str]() if not named + subunits else frozenset.intersection(*named, *subunits)
    if named and not possible:
        return None
    scale = Fraction(magnitudes[0] if magnitudes else 1) * (ratios[0] if ratios else Fraction(1, 100) if subunits else 1)
    return scale, possible, bool(ratios)
