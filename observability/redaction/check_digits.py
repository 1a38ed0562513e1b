"""The arithmetic by which a number tells that it is one of its kind, and not a figure that happens to look like it.

Each function takes the number without its separators.
"""

from __future__ import annotations

from collections import Counter

IBAN_LENGTHS = {
    **{"AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BI": 27, "BR": 29, "BY": 28},
    **{"CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18},
    **{"FK": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22},
    **{"IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20, "LU": 20},
    **{"LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MN": 20, "MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18},
    **{"NO": 15, "OM": 23, "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24, "SC": 31},
    **{"SD": 18, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "SO": 23, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29},
    **{"VA": 22, "VG": 24, "XK": 20, "YE": 30},
}
CARD_NETWORKS: tuple[tuple[range, int, frozenset[int]], ...] = (
    (range(4, 5), 1, frozenset({16, 19})),
    (range(51, 56), 2, frozenset({16})),
    (range(2221, 2721), 4, frozenset({16})),
    (range(34, 38, 3), 2, frozenset({15})),
    (range(300, 306), 3, frozenset({14})),
    (range(36, 37), 2, frozenset({14})),
    (range(38, 40), 2, frozenset({14})),
    (range(6011, 6012), 4, frozenset({16, 19})),
    (range(644, 660), 3, frozenset({16, 19})),
    (range(3528, 3590), 4, frozenset({16, 19})),
    (range(62, 63), 2, frozenset({16, 17, 18, 19})),
)
"""First digits, how many they are, and the lengths that the network gives out. Visa's old 13 digits are left out: they are the
length of every bar code."""


def is_iban(number: str) -> bool:
    """Moved around and read as one decimal number, it leaves 1 when divided by 97."""
    if len(number) != IBAN_LENGTHS.get(number[:2]):
        return False
    return int("".join(str(int(sign, 36)) for sign in number[4:] + number[:4])) % 97 == 1


def is_payment_card(digits: str) -> bool:
    known = any(int(digits[:count]) in first and len(digits) in lengths for first, count, lengths in CARD_NETWORKS)
    return known and len(set(digits)) > 1 and passes_luhn(digits)


def passes_luhn(digits: str) -> bool:
    """Every second digit from the right is doubled, and its own digits added."""
    values = [int(digit) for digit in reversed(digits)]
    return (sum(values[::2]) + sum(sum(divmod(2 * value, 10)) for value in values[1::2])) % 10 == 0


def is_ssn(digits: str) -> bool:
    """It has no check digit: only what was never given out is known to be none."""
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    return area not in {"000", "666"} and area < "900" and group != "00" and serial != "0000"


def is_nino(number: str) -> bool:
    return number[:2] not in {"BG", "GB", "KN", "NK", "NT", "TN", "ZZ"}


def is_steuer_id(digits: str) -> bool:
    """Of its first ten digits exactly one comes two or three times; the eleventh is ISO 7064's mod 11, 10."""
    repeated = [times for times in Counter(digits[:10]).values() if times > 1]
    if len(digits) != 11 or digits[0] == "0" or repeated not in ([2], [3]):
        return False
    product = 10
    for digit in digits[:10]:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == int(digits[10])


def is_nir(number: str) -> bool:
    """The key makes 97 with what the first thirteen leave when divided by 97. Corsica's 2A and 2B count as 19 and 18."""
    body = number[:5] + number[5:7].replace("2A", "19").replace("2B", "18") + number[7:13]
    month = int(body[3:5])
    return (1 <= month <= 12 or 20 <= month <= 42 or month >= 50) and int(number[13:]) == 97 - int(body) % 97


def is_ahv(digits: str) -> bool:
    """An article number's check digit, and 756 for Switzerland."""
    weighted = sum(int(digit) * (3 if place % 2 else 1) for place, digit in enumerate(digits))
    return len(digits) == 13 and digits.startswith("756") and weighted % 10 == 0
