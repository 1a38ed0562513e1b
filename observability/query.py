"""The filter language of the job-card store, one for the API, the command line and the page. Pure.

    kind:eval grade<0.5 tool:search after:7d "operating margin" -error:timeout (run:a OR run:b*)

Terms that stand side by side must all hold. `OR` binds less than that: `a b OR c` is a and b, or c; parentheses say otherwise,
and `-` or `NOT` turns what follows round. A term is `key:value`, `key:a,b` for any of several, `key:"two words"`, `key:begins*`,
`key:*` for whatever has one at all (so `-key:*` for what has none), or a comparison, `key<value`. Everything else is looked for
as words in the text of the card, quotes keep words together. The tenant is no term: who asks decides it.
"""

from __future__ import annotations

import datetime as dt
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import msgspec

from agent_rft.contracts.errors import Fault, FaultsFound, did_you_mean
from agent_rft.contracts.jobcards import Kind
from agent_rft.contracts.rollouts import Ending

LENGTH = 4_000
"""Characters of a query. A query comes from anyone, so what it may cost is bounded before it is looked at."""
DEPTH = 20
"""Parentheses within parentheses."""
VALUES = 100
"""Words and values in all."""
SHOWN = 20
"""Faults that are told of one query."""
LARGEST = 2**63 - 1
"""Whole numbers beyond it fit no column."""

State = Literal["opened", "planned", "in_progress", "blocked", "needs_human", "submitted", "graded", "reviewed", "sealed"]
Review = Literal["accept", "reject", "coach"]
Wanted = Literal["dataset", "prompt", "tool", "open", "done", "declined"]
Operator = Literal[":", "<", "<=", ">", ">="]


class Key(msgspec.Struct, frozen=True):
    """What a term may ask of."""

    kind: Literal["text", "choice", "whole", "number", "moment"]
    means: str
    choices: tuple[str, ...] = ()


KEYS = {
    "id": Key("text", "the card's rollout id"),
    "kind": Key("choice", "what the rollout was for", get_args(Kind)),
    "run": Key("text", "the run it belongs to"),
    "row": Key("text", "the dataset row it tried"),
    "step": Key("whole", "the training step"),
    "sample": Key("whole", "which of its group's tries at the row, from 0"),
    "task": Key("text", "the row's task type"),
    "difficulty": Key("text", "the row's difficulty"),
    "started": Key("moment", "when it started"),
    "recorded": Key("moment", "when it reached the store"),
    "state": Key("choice", "how far the job has come", get_args(State)),
    "ending": Key("choice", "how the rollout ended", tuple(Ending)),
    "failed": Key("text", "the part of the infrastructure that failed"),
    "tool": Key("text", "a tool that it called"),
    "error": Key("text", "an error that a tool answered with"),
    "calls": Key("whole", "how many tool calls it made"),
    "tokens": Key("whole", "how many tokens it read and wrote"),
    "seconds": Key("number", "how long it took"),
    "tool_seconds": Key("number", "how long its tools took"),
    "grade": Key("number", "its newest grade"),
    "passed": Key("choice", "whether its newest grade is a pass", ("yes", "no")),
    "grader": Key("text", "a grader that graded it, NAME or NAME@VERSION"),
    "advantage": Key("number", "its advantage against its group"),
    "review": Key("choice", "what its newest review says", get_args(Review)),
    "label": Key("choice", "what a person's label says; half the score and more is a pass", ("pass", "fail")),
    "queue": Key("text", "why it waits in the review queue: audit, low_grade, disagreement, flag:NAME"),
    "flag": Key("text", "a guard's name that flagged it"),
    "change": Key("choice", "what a change that is wanted because of it is of, or what came of it", get_args(Wanted)),
    "checkpoint": Key("text", "the weights that spoke"),
    "dataset": Key("text", "the data set's hash"),
    "tool_set": Key("text", "the tool set's hash"),
    "code": Key("text", "the version of the code"),
    "seed": Key("whole", "the run's seed"),
}
META = "meta."
"""`meta.NAME` is the entry NAME of the card's metadata, whatever it is called: dots are part of the name."""
TIMES: dict[str, Operator] = {"after": ">=", "before": "<"}
"""Other names for comparisons of `started`. A moment belongs to what comes after it, so neighbouring spans share no card."""
UNITS = {"m": dt.timedelta(minutes=1), "h": dt.timedelta(hours=1), "d": dt.timedelta(days=1), "w": dt.timedelta(weeks=1)}


# --- a query as a tree ------------------------------------------------------------------------------------------------


class Prefix(msgspec.Struct, frozen=True):
    """Every value that begins so; the empty one stands for any value at all."""

    start: str

    def __str__(self) -> str:
        return (_spelled(self.start) if self.start else "") + "*"


Value: TypeAlias = str | int | float | dt.datetime | Prefix


class Text(msgspec.Struct, frozen=True):
    """Words that stand next to each other in the card's text."""

    words: str
    prefix: bool = False
    """The last word is only its beginning."""

    def __str__(self) -> str:
        return _spelled(self.words) + ("*" if self.prefix else "")


class Term(msgspec.Struct, frozen=True):
    key: str
    operator: Operator
    values: tuple[Value, ...]
    """Any of them will do; a comparison has one."""

    def __str__(self) -> str:
        return self.key + self.operator + ",".join(map(_value_spelled, self.values))


class Not(msgspec.Struct, frozen=True):
    part: Query

    def __str__(self) -> str:
        return f"-({self.part})" if isinstance(self.part, And | Or) else f"-{self.part}"


class And(msgspec.Struct, frozen=True):
    """All of them; of none at all, every card."""

    parts: tuple[Query, ...]

    def __str__(self) -> str:
        return " ".join(f"({part})" if isinstance(part, Or) else str(part) for part in self.parts)


class Or(msgspec.Struct, frozen=True):
    parts: tuple[Query, ...]

    def __str__(self) -> str:
        return " OR ".join(map(str, self.parts))


Query: TypeAlias = And | Or | Not | Term | Text
EVERY_CARD = And(())


def all_of(parts: Sequence[Query]) -> Query:
    flat = tuple(inner for part in parts for inner in (part.parts if isinstance(part, And) else (part,)))
    return flat[0] if len(flat) == 1 else And(flat)


def any_of(parts: Sequence[Query]) -> Query:
    flat = tuple(inner for part in parts for inner in (part.parts if isinstance(part, Or) else (part,)))
    return flat[0] if len(flat) == 1 else Or(flat)


def none_of(part: Query) -> Query:
    return part.part if isinstance(part, Not) else Not(part)


def keys_of(query: Query) -> set[str]:
    """The keys that it asks of."""
    match query:
        case And(parts) | Or(parts):
            return set[str]().union(*map(keys_of, parts))
        case Not(part):
            return keys_of(part)
        case Term(key):
            return {key}
        case Text():
            return set()


PLAIN = re.compile(r"\w[\w.@/+-]*")
WORDS = ("AND", "OR", "NOT")


def _spelled(text: str) -> str:
    if PLAIN.fullmatch(text) and text not in WORDS:
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _value_spelled(value: Value) -> str:
    match value:
        case str():
            return _spelled(value)
        case dt.datetime():
            return value.isoformat().replace("+00:00", "Z")
        case _:
            return str(value)


# --- from text to tokens ----------------------------------------------------------------------------------------------

QUOTED = r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)'  # one that nobody closes reaches to the end
TOKEN = re.compile(
    rf"""(?P<open>\() | (?P<close>\)) | (?P<not>-(?=[^\s)])|NOT(?![^\s()"])) | (?P<or>OR(?![^\s()"])) | (?P<and>AND(?![^\s()"]))
    | (?P<term>(?P<key>[A-Za-z][\w.-]*)(?P<operator>!=|<=|>=|[:=<>])(?P<values>(?:{QUOTED}|[^\s()"])*))
    | (?P<text>{QUOTED}\*?|[^\s()"]+)""",
    re.VERBOSE | re.DOTALL,
)
PIECES = re.compile(rf',|(?:{QUOTED}|[^",])+', re.DOTALL)
CLOSED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
Token: TypeAlias = re.Match[str]


class _Mistake(Exception):
    """One fault in a term, on its way to the list of all."""

    def __init__(self, what: str, cure: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.cure = cure


class _Found(NamedTuple):
    at: int
    fault: Fault


def parse(text: str, now: dt.datetime) -> Query:
    """The query that the text says, or every fault in it at once. `now` is what `after:7d` counts back from."""
    if len(text) > LENGTH:
        raise FaultsFound(
            "the query cannot be read", [Fault("query", f"it has {len(text):,} characters", f"at most {LENGTH:,}")], exit_code=2
        )
    reader = _Reader(text, now)
    query = reader.read()
    if not reader.found and len(str(query)) > LENGTH:
        reader.fault(0, "its times and values written out are too long", f"at most {LENGTH:,} characters")
    if reader.found:
        faults = [one.fault for one in sorted(reader.found, key=lambda one: one.at)]
        more = [Fault("query", f"{len(faults) - SHOWN} more faults")] if len(faults) > SHOWN else []
        raise FaultsFound("the query cannot be read", faults[:SHOWN] + more, exit_code=2)
    return query


class _Reader:
    """Reads on after each fault, so that one look finds them all; what it makes of a faulty part is never used."""

    def __init__(self, text: str, now: dt.datetime) -> None:
        self.found: list[_Found] = []
        self._now = now
        self._tokens = [*TOKEN.finditer(self._readable(text))]
        self._next = 0

    def fault(self, at: int, what: str, cure: str = "") -> None:
        self.found.append(_Found(at, Fault(f"character {at + 1}", what, cure)))

    def read(self) -> Query:
        if not self._is_small():
            for token in self._tokens:
                self._leaf(token)
            return EVERY_CARD
        parts: list[Query | None] = [self._alternatives()]
        while self._kind() == "close":
            self.fault(self._take().start(), "')' closes nothing", "take it out, or open it before")
            parts.append(self._alternatives())
        return all_of([part for part in parts if part])

    def _readable(self, text: str) -> str:
        """No database takes a NUL or half a surrogate pair, and no person means a control character."""
        for at, character in enumerate(text):
            if unicodedata.category(character) in ("Cc", "Cs") and character not in "\t\n\r":
                self.fault(at, f"the character U+{ord(character):04X} cannot be looked for", "take it out")
                text = text.replace(character, "\N{REPLACEMENT CHARACTER}")
        return text

    def _is_small(self) -> bool:
        steps = [{"open": 1, "close": -1}.get(token.lastgroup or "", 0) for token in self._tokens]
        deep = next((at for at, depth in enumerate(itertools.accumulate(steps)) if depth > DEPTH), None)
        if deep is not None:
            self.fault(self._tokens[deep].start(), f"more than {DEPTH} parentheses within each other", "ask for less at once")
        values = sum(1 if token["text"] else 1 + token["values"].count(",") for token in self._tokens if token["text"] or token["term"])
        if values > VALUES:
            self.fault(0, f"it has {values} words and values", f"at most {VALUES}")
        return deep is None and values <= VALUES

    # the structure; each answers None where it finds nothing

    def _alternatives(self) -> Query | None:
        branches = [self._together()]
        while self._kind() == "or":
            at = self._take().start()
            branches.append(self._together())
            if None in branches[-2:]:
                self.fault(at, "OR stands between two terms, and one is missing", 'in quotes, to look for the word: "OR"')
        present = [branch for branch in branches if branch]
        return any_of(present) if present else None

    def _together(self) -> Query | None:
        parts: list[Query] = []
        while (kind := self._kind()) not in ("or", "close", None):
            if kind == "and":
                at = self._take().start()
                if not parts or self._kind() in ("and", "or", "close", None):
                    self.fault(at, "AND stands between two terms, and one is missing", 'in quotes, to look for the word: "AND"')
            else:
                parts.append(self._one())
        return all_of(parts) if parts else None

    def _one(self) -> Query:
        negated, at = False, 0
        while self._kind() == "not":
            negated, at = not negated, self._take().start()
        if self._kind() == "open":
            part = self._group(self._take().start())
        elif self._kind() in ("term", "text"):
            part = self._leaf(self._take())
        else:
            self.fault(at, "NOT stands before nothing", 'write what must not be; in quotes, to look for the word: "NOT"')
            part = EVERY_CARD
        return none_of(part) if negated else part

    def _group(self, at: int) -> Query:
        inner = self._alternatives()
        if self._kind() == "close":
            self._take()
        else:
            self.fault(at, "'(' is never closed", "close it: )")
        if inner is None:
            self.fault(at, "nothing stands between the parentheses", "take them out")
        return inner or EVERY_CARD

    def _kind(self) -> str | None:
        return self._tokens[self._next].lastgroup if self._next < len(self._tokens) else None

    def _take(self) -> Token:
        self._next += 1
        return self._tokens[self._next - 1]

    def _leaf(self, token: Token) -> Query:
        try:
            if token["term"]:
                return _term(token["key"], token["operator"], token["values"], self._now)
            return _text(token["text"]) if token["text"] else EVERY_CARD
        except _Mistake as mistake:
            self.fault(token.start(), mistake.what, mistake.cure)
            return EVERY_CARD


# --- terms ------------------------------------------------------------------------------------------------------------


def _text(token: str) -> Text:
    if token.startswith("@"):
        cure = f"write its terms out, or in quotes, to look for the word: {_quoted(token)}"
        raise _Mistake(f"{token} names a saved view, which is asked for by itself", cure)
    words, prefix = _unquoted(token)
    if not any(map(str.isalnum, words)):
        raise _Mistake(f"{token} has no letter or digit to look for", "write a word")
    return Text(" ".join(words.split()), prefix)


def _term(name: str, sign: str, values: str, now: dt.datetime) -> Term:
    if name in TIMES and sign in (":", "="):
        return Term("started", TIMES[name], (_moment(_single(name, values), now),))
    key = Key("text", "") if name.startswith(META) and name != META else KEYS.get(name)
    if key is None:
        raise _unknown(name, sign + values)
    operator = _operator(name, sign, values, key)
    if operator != ":":
        return Term(name, operator, (READERS[key.kind](_single(name, values), now),))
    return Term(name, operator, tuple(_value(key, piece, now) for piece in _pieces(name, values)))


def _unknown(name: str, rest: str) -> _Mistake:
    if name == "tenant":
        return _Mistake("'tenant' is no key: the cards are those of the tenant that you ask for", "take it out")
    if name in TIMES:
        return _Mistake(f"{name}{rest} compares twice", f"{name}:2026-11-01, or {name}:7d")
    known = [*KEYS, *TIMES, META + "NAME"]
    return _Mistake(f"no key '{name}'", f"{did_you_mean(name, known)}; in quotes, to look for the words: {_quoted(name + rest)}")


def _quoted(text: str) -> str:
    return '"' + text.replace('"', "") + '"'


def _operator(name: str, sign: str, values: str, key: Key) -> Operator:
    if sign == "!=":
        raise _Mistake(f"{name}!= is not of this language", f"-{name}:{values}")
    compared = key.kind in ("whole", "number", "moment")
    if sign in ("<", "<=", ">", ">=") and not compared:
        raise _Mistake(f"{name} is no number to be compared with {sign}", f"{name}:{values or 'VALUE'}")
    if sign in (":", "=") and key.kind == "moment":
        raise _Mistake(f"{name} is a moment: few cards share one", f"{name}>={values or '7d'}, {name}<...")
    operators: dict[str, Operator] = {":": ":", "=": ":", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
    return operators[sign]


def _pieces(name: str, values: str) -> list[str]:
    pieces = PIECES.findall(values)
    if len(pieces) % 2 == 0 or "," in pieces[::2]:
        raise _Mistake(f"{name} lacks a value", f"{name}:VALUE or {name}:ONE,OTHER, without a space; a comma in a value goes in quotes")
    return pieces[::2]


def _single(name: str, values: str) -> str:
    pieces = _pieces(name, values)
    if len(pieces) > 1:
        raise _Mistake(f"{name} is compared with {len(pieces)} values", "one value, or OR between comparisons")
    text, prefix = _unquoted(pieces[0])
    if prefix:
        raise _Mistake(f"{name} cannot be compared with '{pieces[0]}'", "without the *")
    return text


def _value(key: Key, piece: str, now: dt.datetime) -> Value:
    text, prefix = _unquoted(piece)
    if prefix and (key.kind == "text" or not text):
        return Prefix(text)
    if prefix:
        raise _Mistake(f"'{piece}': a beginning can be given of text only", "a whole value, or * for any at all")
    if key.choices and text not in key.choices:
        raise _Mistake(f"'{text}' is none of its values", did_you_mean(text, key.choices))
    return READERS[key.kind](text, now)


def _unquoted(piece: str) -> tuple[str, bool]:
    """The text, and whether a * after it says that it is a beginning."""
    body, prefix = (piece[:-1], True) if piece.endswith("*") else (piece, False)
    if closed := CLOSED.fullmatch(body):
        text = re.sub(r"\\(.)", r"\1", closed[1], flags=re.DOTALL)
    elif '"' in body:
        cure = 'close it: "' if body.startswith('"') else 'around the whole value: "two words"; a " within is written \\"'
        raise _Mistake("the quotes do not stand around one whole value", cure)
    elif "*" in body:
        raise _Mistake(f"'{piece}': a * stands only at the end", "in quotes, to mean the character")
    else:
        text = body
    if not text and not prefix:
        raise _Mistake("nothing stands between the quotes", "write a value, or take it out")
    return text, prefix


def _whole(text: str, _now: dt.datetime) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,19}", text) or abs(int(text)) > LARGEST:
        raise _Mistake(f"'{text}' is no whole number", "such as 0 or 1000")
    return int(text)


def _number(text: str, _now: dt.datetime) -> float:
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,3})?", text, re.IGNORECASE) or abs(float(text)) > 1e300:
        raise _Mistake(f"'{text}' is no number", "such as 0.5")
    return float(text)


def _moment(text: str, now: dt.datetime) -> dt.datetime:
    """A date is its first moment, and what does not say otherwise is UTC."""
    try:
        if ago := re.fullmatch(r"([0-9]{1,6})([mhdw])", text):
            return (now - int(ago[1]) * UNITS[ago[2]]).astimezone(dt.UTC)
        moment = dt.datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).astimezone(dt.UTC)
    except (ValueError, OverflowError):
        raise _Mistake(f"'{text}' is no moment", "2026-11-01, 2026-11-01T12:00, or 30m, 12h, 7d, 2w ago") from None


def _as_it_is(text: str, _now: dt.datetime) -> str:
    return text


READERS: dict[str, Callable[[str, dt.datetime], Value]] = {
    "text": _as_it_is,
    "choice": _as_it_is,
    "whole": _whole,
    "number": _number,
    "moment": _moment,
}


def key_lines() -> Iterator[str]:
    """What can be asked, a line a key, for help texts."""
    means = {name: key.means + (f": {', '.join(key.choices)}" if key.choices else "") for name, key in KEYS.items()}
    means |= {"after": "started at this moment or later", "before": "started earlier", META + "NAME": "this entry of the row's metadata"}
    width = max(map(len, means))
    yield from (f"{name.ljust(width)}  {meaning}" for name, meaning in means.items())
