"""What the key of a value says about it: a number alone does not tell whose it is, or that it is nobody's."""

from __future__ import annotations

import functools
import re

import msgspec

from observability.redaction.check_digits import is_ssn
from observability.redaction.numbers import FIGURES, is_called
from observability.redaction.secrets import is_secret, promised_by

LONGEST_NAME = 80
BEFORE, NUMBER = r"(?i)(?:.*[_. -])?", r"[_ ]?(?:number|no|nr|num|nummer)"
PHONE_NAME = re.compile(
    rf"{BEFORE}(?:(?:home|work|office|mobile|cell|contact|customer)?(?:t[eé]l[eé])?(?:phone|fono?)(?:{NUMBER})?|"
    rf"(?:tel|fax|whatsapp)(?:{NUMBER})?|(?:mobile|cell){NUMBER})"
)
SSN_NAME = re.compile(rf"{BEFORE}(?:ssn|social[_ ]?security(?:{NUMBER})?)")
PARTS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
FIGURE = re.compile(rf"(?:{FIGURES})")
IDENTIFIES = frozenset("id no nr number card account pan iban phone tax steuer customer".split())
ONE_NUMBER = re.compile(r"[+(]?[0-9][0-9 ().\-/\u00a0\u202f\u2011]{5,24}")
NO_DIGIT = re.compile(r"[^0-9]")


class Key(msgspec.Struct, frozen=True):
    """What a name promises of the value under it, or of each value of its list."""

    secret: str = ""
    number: str = ""
    """The kind of a person's number."""
    figure: bool = False

    def kind_of(self, value: str) -> str:
        """What a value is that no detector need recognise; nothing where it is none."""
        if self.secret and is_secret(self.secret, value):
            return "PASSWORD" if self.secret == "PASSWORD" else "KEY"
        if not self.number or not ONE_NUMBER.fullmatch(value):
            return ""
        digits = NO_DIGIT.sub("", value)
        holds = is_called(digits) if self.number == "PHONE" else len(digits) <= 9 and is_ssn(digits.zfill(9))
        return self.number if holds else ""  # a whole number has lost the zero that an SSN may begin with


def key_named(name: str, redacted: str) -> Key:
    """Secrets go by the name that was given; the rest by the redacted one, which is what a second redaction will see."""
    return Key() if max(len(name), len(redacted)) > LONGEST_NAME else _key_named(name, redacted)


@functools.lru_cache(maxsize=4096)
def _key_named(name: str, redacted: str) -> Key:
    parts = [part.lower() for part in PARTS.findall(redacted)]
    number = "PHONE" if PHONE_NAME.fullmatch(redacted) else "SSN" if SSN_NAME.fullmatch(redacted) else ""
    return Key(promised_by(name), number, any(map(FIGURE.fullmatch, parts)) and IDENTIFIES.isdisjoint(parts))
