"""Numbers of people: phones, payment cards, bank accounts, national ids.

A filing is full of figures, so a number is taken only where its grouping and its check digit say what it is, or where the words
before it do. Runs of digits are found first; everything else looks only inside these.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator

import msgspec
import re2

from observability.redaction.check_digits import (
    IBAN_LENGTHS,
    is_ahv,
    is_iban,
    is_nino,
    is_nir,
    is_payment_card,
    is_ssn,
    is_steuer_id,
)
from observability.redaction.detector import Detector, Found
from observability.redaction.secrets import without_surrogates

GAP = " .\\-/\u00a0\u202f\u2011"
RUN = re.compile(rf"[0-9(](?:[{GAP}()]{{0,3}}[0-9]){{6,}}")
"""A stretch that could hold a number of a person: a figure's comma or a letter ends it."""
NO_DIGIT = re.compile(r"[^0-9]+")
WORDS_BEFORE = 48
LIKE_A_FIGURE = re.compile("[0-9]{1,3}(?:[ .\u00a0\u202f][0-9]{3})+")
"""Only such a one goes on after a comma; a field of a list ends there."""
ONLY_SPACED = re.compile("[0-9 ]+")
COLUMN_BEFORE, COLUMN_AFTER = re.compile(r"[0-9][0-9)%]* {1,3}\Z"), re.compile(r" {1,3}[0-9]")
MONEY_BEFORE = re.compile(r"(?:[$€£¥₹]|\b(?:USD|EUR|CHF|GBP|JPY|Fr\.|Rs\.?))[ \u00a0\u202f]?[-+(]?\Z")
MONEY_AFTER = re.compile(
    r"\)?[ \u00a0\u202f]?(?:[$€£¥₹%]|(?:USD|EUR|CHF|GBP|JPY|SEK|NOK|DKK|PLN|[Mm]io|[Mm]rd|million|billion|thousand|"
    r"shares|Aktien|units|bytes|tokens)\b)"
)
FIGURES = (
    "totals?|revenues?|turnover|sales|income|assets|liabilities|equity|debt|cash|profits?|earnings|ebitda|ebit|expenses|costs?|amounts?|"
    "shares|umsatz|summe|betrag|gewinn|bilanzsumme"
)
FIGURE_BEFORE = re.compile(rf"(?i)(?<![a-z])(?:{FIGURES})[\"']?(?: (?:is|was|of|de|von|war))?[ :=]{{1,3}}\Z")
"""Where a number has no groups, or those of a figure, such a word says what it is."""


def _whole(shape: str) -> re.Pattern[str]:
    """No digit before it and none after: a long number is looked at once, not at each of its places."""
    return re.compile(rf"(?<![0-9])(?:{shape})(?![0-9])")


class Shape(msgspec.Struct, frozen=True):
    kind: str
    pattern: re.Pattern[str]
    """A bounded one: it is tried at each place of a run."""
    holds: Callable[[str], bool]
    """Whether these digits are such a number."""
    after: re.Pattern[str] | None = None
    """Where its shape alone could be a figure's: the words that must come right before it."""


def _always(digits: str) -> bool:
    return True


def _words(words: str, link: str = r"[\s\"'.:=#(]*") -> re.Pattern[str]:
    return re.compile(rf"(?i)(?:{words}){link}\Z")


# --- phones -----------------------------------------------------------------------------------------------------------

CALLING_CODE = re.compile(
    r"1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|2[1-69]\d|3[578]\d|42\d|5[09]\d|6[7-9]\d|8[0578]\d|9[679]\d"
)
PHONE_CALLED = (
    r"(?:tel|tél|téléphone|telefon|telefono|teléfono|telephone|phone|fax|telefax|mobile|mobil|cell|cellular|handy|portable|natel|"
    r"whatsapp|hotline|dial|call|text|ring|rufen sie|appelez(?:-nous)?|reach (?:me|us|him|her)|llame|电话|電話)"
)
PHONE_WORDS = _words(
    rf"(?<![a-z]){PHONE_CALLED}",
    r"(?:(?:[.:=)_\"'\s]|number|num[ée]ro|nummer|no\b|nr\b|is\b|ist\b|est\b|es\b|me\b|us\b|him\b|her\b|on\b|at\b|au\b|unter\b|al\b|the\b|our\b|"
    r"office\b|desk\b|line\b){1,12})",
)


def _is_na_phone(digits: str) -> bool:
    """North America: neither the area nor the exchange begins with 0 or 1."""
    last = digits[-10:]
    return len(digits) in {10, 11} and digits[:-10] in {"", "1"} and last[0] > "1" and last[3] > "1"


def _is_international(digits: str) -> bool:
    if digits.startswith("1"):
        return len(digits) == 11 and _is_na_phone(digits)
    return 8 <= len(digits) <= 15 and CALLING_CODE.match(digits) is not None


def is_called(digits: str) -> bool:
    """Where the words before it say that it is a phone's."""
    return 7 <= len(digits) <= 15 and len(set(digits)) > 1


INTERNATIONAL = re.compile(rf"\+[1-9](?:[{GAP}()]{{0,3}}[0-9]){{7,14}}")
SIGNED_FIGURE = re.compile(r"\+[0-9]{1,3}(?:\.[0-9]+|(?:[.\u00a0\u202f][0-9]{3})+)\Z")
PHONE_SHAPES = (
    r"(?:1[-. ])?(?:\([2-9][0-9]{2}\)[ \u00a0]?|[2-9][0-9]{2}[-\u2011])[2-9][0-9]{2}[-.\u2011][0-9]{4}",
    r"(?:1[-. ])?[2-9][0-9]{2}\.[2-9][0-9]{2}\.[0-9]{4}",
    r"\([2-9][0-9]{2}\) ?[2-9][0-9]{2} [0-9]{4}",
)
"""North America's."""
NATIONAL_SHAPES = (
    r"0[1-9]([ .\u00a0-])[0-9]{2}(?:\1[0-9]{2}){3}",
    r"\(0[1-9][0-9]{1,3}\) ?[0-9]{3,4}[ -]?[0-9]{3,4}",
    r"02[0-9] [0-9]{4} [0-9]{4}",
    r"07[0-9]{3} [0-9]{3} ?[0-9]{3}",
    r"0[1-9][0-9]{1,3}(?:/| / )[0-9]{3,8}(?:[ -][0-9]{2,5}){0,3}",
    r"01[567][0-9][ -][0-9]{7,8}",
    r"0[1-9][0-9] [0-9]{3} [0-9]{2} [0-9]{2}",
    r"00[1-9][0-9][ /-][0-9]{1,4}(?:[ /-][0-9]{2,4}){1,4}",
    r"00[1-9][0-9] [0-9]{2,4} [0-9]{5,8}",
)
"""Those that begin with the 0 of a trunk line, which no figure does: France's, Britain's, Germany's, Switzerland's."""
PHONES = (
    *(Shape("PHONE", _whole(shape), _is_na_phone) for shape in PHONE_SHAPES),
    *(Shape("PHONE", _whole(shape), _always) for shape in NATIONAL_SHAPES),
    Shape("PHONE", _whole(rf"\(?[0-9](?:[{GAP}()]{{0,2}}[0-9]){{6,14}}"), is_called, PHONE_WORDS),
)

# --- cards and national ids -------------------------------------------------------------------------------------------

SSN_WORDS = _words(r"\bssn|\bsocial security", r"(?:[\s\"'.:=#(_]|number|num|no\b|is\b|security){0,6}")
NINO_WORDS = _words(r"\bnino|\bnational insurance|\bni (?:number|no)", r"(?:[\s\"'.:=#(_]|number|num|no\b|is\b){0,6}")
CARD_GAP = r"([ \-\u00a0\u202f\u2011]?)"
CARD_SHAPE = rf"[0-9]{{4}}{CARD_GAP}[0-9]{{4}}\1[0-9]{{4}}\1[0-9]{{4}}(?:\1[0-9]{{1,3}})?|[0-9]{{4}}{CARD_GAP}[0-9]{{6}}\2[0-9]{{4,5}}"
IDS = (
    Shape("CARD", _whole(CARD_SHAPE), is_payment_card),
    Shape("SSN", _whole(r"[0-9]{3}[-\u2011][0-9]{2}[-\u2011][0-9]{4}"), is_ssn),
    Shape("SSN", _whole(r"[0-9]{3} ?[0-9]{2} ?[0-9]{4}"), is_ssn, SSN_WORDS),
    Shape("AHV", _whole(r"756([. ]?)[0-9]{4}\1[0-9]{4}\1[0-9]{2}"), is_ahv),
    Shape("STEUER_ID", _whole(r"[1-9][0-9]([ /]?)[0-9]{3}\1[0-9]{3}\1[0-9]{3}"), is_steuer_id),
    Shape("NIR", _whole(r"[12]([ .]?)[0-9]{2}\1[0-9]{2}\1[0-9]{2}\1[0-9]{3}\1[0-9]{3}[ .]?[0-9]{2}"), is_nir),
)
CORSICAN = re.compile(r"[12]( ?)[0-9]{2}\1[0-9]{2}\1(?:2A|2B)\1[0-9]{3}\1[0-9]{3} ?[0-9]{2}")
NINO = re.compile(r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]( ?)[0-9]{2}\1[0-9]{2}\1[0-9]{2}\1[A-D]")
IBAN = re.compile(r"[A-Z]{2}[0-9]{2}(?:[ \u00a0\u202f\u2011-]?[0-9A-Z]){11,30}")
SMALL_IBAN = re2.compile(r"\b[a-z]{2}[0-9]{2}(?: ?[0-9a-z]{4}){2,7}(?: ?[0-9a-z]{1,3})?\b")
IN_RUNS = IDS + PHONES


def _loose(shape: Shape) -> str:
    """Its pattern for RE2, which cannot look around or back: it matches more."""
    pattern = shape.pattern.pattern.removeprefix("(?<![0-9])").removesuffix("(?![0-9])")
    for number, gap in enumerate(re.findall(r"\((\[[^\]]*\]\??| \?)\)", pattern), 1):
        pattern = pattern.replace(f"\\{number}", gap)
    return re.sub(r"\\u([0-9a-f]{4})", r"\\x{\1}", pattern)


LOOSE = re2.Set.SearchSet()
for _shape in IN_RUNS:
    LOOSE.Add(_loose(_shape))
LOOSE.Compile()
SPOKEN_OF = re2.compile(f"(?i)(?:^|[^a-z]){PHONE_CALLED}|ssn|social security")
"""Without one of these no number is one because of the words before it."""


def find_numbers(text: str) -> Iterator[Found]:
    spoken_of: bool | None = None
    for run in RUN.finditer(text):
        for shape in [IN_RUNS[number] for number in LOOSE.Match(run[0]) or ()]:
            if shape.after is not None:
                if spoken_of is None:
                    spoken_of = SPOKEN_OF.search(without_surrogates(text)) is not None
                if not spoken_of:
                    continue
            place = run.start()
            while found := shape.pattern.search(text, place, run.end()):
                held = _holds(shape, text, found)
                if held:
                    yield Found(shape.kind, found.start(), found.end())
                place = found.end() if held else found.start() + 1


def _holds(shape: Shape, text: str, found: re.Match[str]) -> bool:
    start, end = found.span()
    if not shape.holds(NO_DIGIT.sub("", found[0])) or not _is_no_part_of_a_figure(text, start, end):
        return False
    if shape.after is not None:
        return shape.after.search(text, max(0, start - WORDS_BEFORE), start) is not None
    return not _is_in_a_row_of_figures(text, found)


def find_international_phones(text: str) -> Iterator[Found]:
    for found in INTERNATIONAL.finditer(text) if "+" in text else ():
        alone = _is_no_part_of_a_figure(text, found.start(), found.end()) and not SIGNED_FIGURE.match(found[0])
        if alone and _is_international(NO_DIGIT.sub("", found[0].replace("(0)", ""))):
            yield Found("PHONE", found.start(), found.end())


def find_lettered_ids(text: str) -> Iterator[Found]:
    """Those that carry letters, which end a run."""
    for found in NINO.finditer(text):
        said = found[1] or NINO_WORDS.search(text, max(0, found.start() - WORDS_BEFORE), found.start())
        if said and is_nino(found[0]) and _stands_alone(text, found.start(), found.end()):
            yield Found("NINO", found.start(), found.end())
    for found in CORSICAN.finditer(text) if "2A" in text or "2B" in text else ():
        if is_nir(found[0].replace(" ", "")) and _stands_alone(text, found.start(), found.end()):
            yield Found("NIR", found.start(), found.end())


def find_ibans(text: str) -> Iterator[Found]:
    small = SMALL_IBAN.finditer(without_surrogates(text))
    for start, grouped in [(found.start(), str(found[0])) for found in itertools.chain(IBAN.finditer(text), small)]:
        end = start + _end_of_iban(grouped.upper())
        if end > start and _stands_alone(text, start, end):
            yield Found("IBAN", start, end)


def _end_of_iban(grouped: str) -> int:
    """How far the account's number reaches; 0 where there is none."""
    length = IBAN_LENGTHS.get(grouped[:2])
    end = _end_of(grouped, length) if length else 0
    return end if end and is_iban(re.sub(r"[^0-9A-Z]", "", grouped[:end])) else 0


def _end_of(grouped: str, length: int) -> int:
    """Where the sign of this number stands, separators not counted; 0 where there are fewer."""
    places = [place for place, sign in enumerate(grouped, 1) if sign.isalnum()]
    return places[length - 1] if len(places) >= length else 0


# --- what stands around -----------------------------------------------------------------------------------------------


def _stands_alone(text: str, start: int, end: int) -> bool:
    before, after = text[start - 1 : start], text[end : end + 1]
    return not (_glues(before) or _glues(after))


def _glues(sign: str) -> bool:
    """Scripts that write without spaces do not hold a number by standing beside it."""
    return sign == "_" or (sign.isalnum() and sign < "\u2e80")


def _is_in_a_row_of_figures(text: str, found: re.Match[str]) -> bool:
    """Columns of a table stand as the groups of a number do: with one space between them."""
    if " " not in found[0] or ONLY_SPACED.fullmatch(found[0]) is None:
        return False
    return (
        COLUMN_BEFORE.search(text, max(0, found.start() - 8), found.start()) is not None
        or COLUMN_AFTER.match(text, found.end()) is not None
    )


def _is_no_part_of_a_figure(text: str, start: int, end: int) -> bool:
    """Not inside a longer number, a code with letters, an amount of money."""
    if not _stands_alone(text, start, end) or text[start - 1 : start] == "+":
        return False
    before, after = text[max(0, start - 2) : start], text[end : end + 2]
    glue = ".-/," if LIKE_A_FIGURE.fullmatch(text, start, end) else ".-/"
    if before[-1:] in set(glue) and before[:1].isalnum():
        return False
    if (after[:1] in set(glue) and after[1:].isdigit()) or (after[:1] == "-" and after[1:].isalpha()):
        return False
    if (text[start:end].isdigit() or LIKE_A_FIGURE.fullmatch(text, start, end)) and FIGURE_BEFORE.search(text, max(0, start - 24), start):
        return False
    return not (MONEY_BEFORE.search(text, max(0, start - 6), start) or MONEY_AFTER.match(text, end))


SEVEN_DIGITS = rf"[0-9(](?:[{GAP}()]{{0,3}}[0-9]){{6}}"
LETTERED = "[A-Z]{2} ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D]|[0-9]{2} ?2[AB]"
LIKE_AN_IBAN = "[A-Z]{2}[0-9]{2}(?:[ \u00a0\u202f\u2011-]?[0-9A-Z]){11}|" + r"\b[a-z]{2}[0-9]{2}(?: ?[0-9a-z]{4}){2}"
NUMBERS = Detector(("CARD", "SSN", "AHV", "STEUER_ID", "NIR", "PHONE"), find_numbers, SEVEN_DIGITS)
INTERNATIONAL_PHONES = Detector(("PHONE",), find_international_phones, r"\+[1-9]")
LETTERED_IDS = Detector(("NINO", "NIR"), find_lettered_ids, LETTERED)
IBANS = Detector(("IBAN",), find_ibans, LIKE_AN_IBAN)
