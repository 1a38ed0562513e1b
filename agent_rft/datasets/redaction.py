"""What must not travel from production into training data, by its shape: addresses, numbers of phones and cards, keys.

It finds what has a shape. Names, and whatever else only a reader would recognise, stay: have a person look over what is to leave.
"""

from __future__ import annotations

import re

SHAPES = (
    ("EMAIL", re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")),
    ("KEY", re.compile(r"\b(?:sk|pk|rk|ghp|gho|xox[abp]|AKIA)[-_A-Za-z0-9]{14,}\b")),
    ("KEY", re.compile(r"(?i)\bbearer\s+[-\w.~+/]{16,}=*")),
    ("IBAN", re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b")),
    ("PHONE", re.compile(r"(?<![\w.,])\+\d{1,3}[ .-]?\(?\d{1,4}\)?(?:[ .-]?\d{2,4}){2,4}\b")),
    ("SSN", re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])")),
)
CARD_NUMBER = re.compile(r"(?<![\w.,-])\d(?:[ -]?\d){12,18}(?![\w-])")


def redact(text: str) -> str:
    for name, shape in SHAPES:
        text = shape.sub(f"[{name}]", text)
    return CARD_NUMBER.sub(lambda found: "[CARD]" if _has_check_digit(found.group()) else found.group(), text)


def _has_check_digit(number: str) -> bool:
    """Luhn's sum, which payment cards satisfy and nine in ten other numbers do not."""
    digits = [int(digit) for digit in number if digit.isdigit()][::-1]
    return sum(digits[::2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2]) in range(0, 1000, 10)
