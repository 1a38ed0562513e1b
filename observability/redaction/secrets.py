"""Keys, tokens and passwords: by the prefix that their makers give them, or by the name they are assigned to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import msgspec
import re2

from observability.redaction.detector import Detector, Found


class Issued(msgspec.Struct, frozen=True):
    """A key that carries its maker's mark."""

    marks: tuple[str, ...]
    """One of these is in every such key: the pattern is tried only where one is in the text."""
    pattern: re.Pattern[str]
    holds: Callable[[str], bool] = lambda key: True


def _is_drawn(key: str) -> bool:
    """Names are made of words; a key that was drawn at random holds digits too."""
    return sum(sign.isdigit() for sign in key) >= 2


def _issued(marks: str, pattern: str, holds: Callable[[str], bool] = lambda key: True) -> Issued:
    return Issued(tuple(marks.split()), re.compile(rf"(?<![A-Za-z0-9_-])(?:{pattern})"), holds)


BREAK = r"(?:\\[nr]|\s)"  # a key inside a JSON string has its line ends escaped
ISSUED = (
    _issued("sk-", r"sk-[A-Za-z0-9_-]{16,400}", _is_drawn),
    _issued("_live_ _test_", r"(?:sk|pk|rk)_(?:live|test)_[A-Za-z0-9]{10,250}"),
    _issued("ghp_ gho_ ghu_ ghs_ ghr_", r"gh[pousr]_[A-Za-z0-9]{30,255}"),
    _issued("github_pat_", r"github_pat_[A-Za-z0-9_]{22,255}"),
    _issued("glpat-", r"glpat-[A-Za-z0-9_-]{20,64}"),
    _issued("AKIA ASIA", r"(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"),
    _issued("xox", r"xox[abeoprs]-[A-Za-z0-9-]{10,250}", _is_drawn),
    _issued("AIza", r"AIza[A-Za-z0-9_-]{35}"),
    _issued("hf_", r"hf_[A-Za-z0-9]{30,64}"),
    _issued("npm_", r"npm_[A-Za-z0-9]{36}"),
    _issued("SG.", r"SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{16,64}", _is_drawn),
    _issued("dop_v1_", r"dop_v1_[a-f0-9]{64}"),
    _issued("whsec_", r"whsec_[A-Za-z0-9+/]{16,100}={0,2}", _is_drawn),
    _issued("eyJ", r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"),
    Issued(
        ("PRIVATE KEY-----",),
        re.compile(
            rf"-----BEGIN [A-Z ]{{0,20}}PRIVATE KEY-----(?:{BREAK}{{1,8}}"
            rf"(?:(?:Proc-Type|DEK-Info): [^\n\\]{{1,80}}|[A-Za-z0-9+/=]{{16,}}))+"
            rf"(?:{BREAK}{{1,8}}[A-Za-z0-9+/=]{{1,16}})?(?:{BREAK}{{0,8}}-----END [A-Z ]{{0,20}}PRIVATE KEY-----)?"
        ),
    ),
)
URL_PASSWORD = re.compile(r"://[^\s:/@\"'<>]{0,100}:([^\s/@\"'<>]{1,200})@(?=[A-Za-z0-9\[_])")

# --- what is assigned -------------------------------------------------------------------------------------------------

NAMES_PASSWORD = r"passwords?|passwd|passphrase|passwort|kennwort|contraseña|contrasena|mot de passe|pwd"
NAMES_KEY = (
    r"(?:api|access|secret|private|signing|encryption|account|auth|client)[_-]?(?:access[_-]?)?key|"
    r"(?:client|app|shared|webhook|signing|api)?[_-]?secret|(?:[a-z0-9]+[_-])?token"
)
NAMED = re2.compile(
    rf"(?i)(?:(?P<password>{NAMES_PASSWORD})|{NAMES_KEY})[\\]?[\"']?(?:\s{{0,3}}(?::=|=>|[:=])\s{{0,3}}|\s(?:is|ist|est|es|lautet)\s)"
)
AUTHORIZED = re2.compile(
    r"(?i)(authorization[\\]?[\"']?\s{0,3}[:=]\s{0,3}[\\]?[\"']?)?\b((?:bearer|basic|token)\s{1,3}[A-Za-z0-9._~+/-]{8,}={0,2})"
)
SECRET_NAME = re.compile(rf"(?i)(?:.*[_-])?(?:(?P<password>{NAMES_PASSWORD})|{NAMES_KEY})")
AUTHORIZATION = re.compile("(?i)(?:proxy-)?authorization")
SCHEMED = re.compile(r"(?i)(?:bearer|basic|token)\s{1,3}[A-Za-z0-9._~+/-]{8,}={0,2}")
QUOTED = re.compile(r"\\?([\"'`])([^\s\"'`\\]{4,200}|[^\"'`\\\n]{4,60})(?=\\?\1)")
BARE = re.compile(r"[^\s\"'`,;<>{}()\[\]\\|]{4,200}")
IN_ITS_PLACE = re.compile(
    r"(?i)(?:none|null|true|false|nil|str|string|int|bool|bytes|any|optional|required|undefined|empty|redacted|hidden|secret|password|token|"
    r"your[-_ ].*|my[-_]?(?:password|secret|token|key)|example.*|change[-_]?me|placeholder|enter .*|x+|\*+|\.+|-+|•+|<.*|\$.*|%.*|\{.*)\Z"
)
WORDY = re.compile(r"[A-Za-z_-]+[.:!?]?|[A-Za-z_][\w.]*|[-+$€£]?[0-9][0-9.,%]*")
"""A word, a dotted name of a program, a figure: not a secret unless a quotation says that it is one."""
DATED = re.compile(r"(?:[A-Za-z]{2,}[_-])+(?:19|20)[0-9]{2}")
"""`operating_margin_2025` is the name of something, and no key."""
ENVIRONMENT = re.compile(r"[A-Z0-9_]+=\Z")
"""`DB_PASSWORD=hunter`: what follows is the value itself, whatever it looks like."""


HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def promised_by(name: str) -> str:
    """What a value under this name is: PASSWORD, KEY, AUTHORIZATION (a header's), or nothing."""
    if AUTHORIZATION.fullmatch(name):
        return "AUTHORIZATION"
    named = SECRET_NAME.fullmatch(name)
    return "" if named is None else "PASSWORD" if named["password"] else "KEY"


def is_secret(kind: str, value: str) -> bool:
    """Under a name that promises one. A password may be any word; a key is long and drawn at random."""
    if len(value) < 4 or IN_ITS_PLACE.match(value):
        return False
    if kind == "PASSWORD":
        return True
    if kind == "AUTHORIZATION":
        return SCHEMED.fullmatch(value) is not None
    drawn = len(value) >= 20 or (len(value) >= 8 and _is_drawn(value))
    return drawn and not re.search(r"\s", value) and not DATED.fullmatch(value)


def find_secrets(text: str) -> Iterator[Found]:
    for issued in ISSUED:
        if any(mark in text for mark in issued.marks):
            yield from (Found("KEY", *key.span()) for key in issued.pattern.finditer(text) if issued.holds(key[0]))
    for url in URL_PASSWORD.finditer(text) if "://" in text else ():
        if not IN_ITS_PLACE.match(url[1]):
            yield Found("PASSWORD", *url.span(1))
    clean = without_surrogates(text)
    yield from _authorized(clean)
    yield from _assigned(clean)


def _authorized(text: str) -> Iterator[Found]:
    """The scheme goes with the token: what is left is that somebody was authorized."""
    for found in AUTHORIZED.finditer(text):
        start, end = found.span(2)
        if found[1] or (end - start >= 21 and _is_drawn(text[start:end])):
            yield Found("KEY", start, end)


def _assigned(text: str) -> Iterator[Found]:
    for named in NAMED.finditer(text):
        before, end = text[named.start() - 1 : named.start()], named.end()
        if before.isalpha() and before.islower() and text[named.start()].islower():
            continue
        value = QUOTED.match(text, end)
        span = value.span(2) if value else _bare(text, named.start(), end)
        kind = "PASSWORD" if named["password"] else "KEY"
        if is_secret(kind, text[slice(*span)]):
            yield Found(kind, *span)


def _bare(text: str, name: int, start: int) -> tuple[int, int]:
    """An unquoted value, and an empty one where what stands there is prose or a program."""
    value = BARE.match(text, start)
    if value is None or text[value.end() : value.end() + 1] in {"(", "[", "{"}:
        return start, start
    end = value.end() - (value[0][-1] in ".:?")
    if ENVIRONMENT.search(text, max(0, name - 40), start) or not WORDY.fullmatch(value[0]) or _is_mixed(value[0]):
        return start, end
    return start, start


def _is_mixed(word: str) -> bool:
    """Letters and digits, and no dotted name."""
    return "." not in word[:-1] and any(sign.isdigit() for sign in word) and any(sign.isalpha() for sign in word)


def without_surrogates(text: str) -> str:
    """RE2 reads UTF-8, which has no halves of characters; each becomes one sign, so that places stay."""
    return text if text.isascii() else HALF_CHARACTER.sub("\N{REPLACEMENT CHARACTER}", text)


MARKS = (
    r"sk-[A-Za-z0-9_-]{16}|_(?:live|test)_[A-Za-z0-9]{10}|gh[pousr]_[A-Za-z0-9]{30}|github_pat_|glpat-|(?:AKIA|ASIA)[A-Z0-9]{16}|"
    r"xox[abeoprs]-|AIza[A-Za-z0-9_-]{35}|hf_[A-Za-z0-9]{30}|npm_[A-Za-z0-9]{36}|SG\.[A-Za-z0-9_-]{16}|dop_v1_|whsec_|"
    r"eyJ[A-Za-z0-9_-]{8}|PRIVATE KEY-----"
)
ASSIGNED = (
    rf"(?i:(?:{NAMES_PASSWORD}|key|secret|token)[\\]?[\"']?(?:\s{{0,3}}(?::=|=>|[:=])|\s(?:is|ist|est|es|lautet)\s)|"
    r"\b(?:bearer|basic|token)\s{1,3}[A-Za-z0-9._~+/-]{8})"
)
SECRETS = Detector(("KEY", "PASSWORD"), find_secrets, rf"{MARKS}|://[^\s/@\"'<>]*@|{ASSIGNED}")
