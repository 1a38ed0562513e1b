"""The formula of a multi grader: + - * / ^, parentheses, numbers, names of graders, and eight functions. Nothing else.

    sum     = product (("+" | "-") product)*
    product = signed (("*" | "/") signed)*
    signed  = "-" signed | power
    power   = atom ("^" signed)?                            2^3^2 = 2^9, -2^2 = -4, 2^-1 = 0.5
    atom    = number | name | function "(" sum ("," sum)* ")" | "(" sum ")"

It is read by hand into a small tree and worked out in floats: nothing of it ever reaches Python's own interpreter. What holds
no name is worked out while it is read, so that a division by zero or a power of a million digits is refused before training.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec

from agent_rft.contracts.errors import did_you_mean

MAX_CHARS = 2000
MAX_TOKENS = 400
MAX_DEPTH = 40
"""Of parentheses, functions, powers and signs within each other."""

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": lambda *to: min(to),
    "max": lambda *to: max(to),
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
"""log is the natural logarithm."""
MANY = frozenset({"min", "max"})
"""These take any number of arguments, the others one."""

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TOKEN = re.compile(r"(\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?)|([A-Za-z_]\w*)|(\S)", re.ASCII)
_OPERATORS: dict[str, Callable[[float, float], float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "^": math.pow,
}


class FormulaError(Exception):
    """It cannot be read, or has no value."""

    def __init__(self, what: str, cure: str = "") -> None:
        super().__init__(f"{what} ({cure})" if cure else what)
        self.what = what
        self.cure = cure


class Number(msgspec.Struct, frozen=True):
    value: float


class Name(msgspec.Struct, frozen=True):
    name: str


class Apply(msgspec.Struct, frozen=True):
    """An operator or a function and what it is applied to."""

    what: str
    to: tuple[Formula, ...]


Formula = Number | Name | Apply


def parse_formula(text: str, names: Collection[str]) -> Formula:
    """Raises FormulaError for anything beyond the grammar, for a name that is none of `names`, for what can have no value."""
    if len(text) > MAX_CHARS:
        raise FormulaError(f"{len(text)} characters", f"a formula has at most {MAX_CHARS}")
    tokens = list(_TOKEN.finditer(text))
    if len(tokens) > MAX_TOKENS:
        raise FormulaError(f"{len(tokens)} numbers, names and signs", f"a formula has at most {MAX_TOKENS}")
    return _Parser(tokens, names).formula()


def evaluate(formula: Formula, values: Mapping[str, float]) -> float:
    """Raises FormulaError where there is no finite value."""
    match formula:
        case Number(value):
            return value
        case Name(name):
            return values[name]
        case Apply(what, to):
            return _applied(what, [evaluate(each, values) for each in to])


def _applied(what: str, to: list[float]) -> float:
    """Floats alone: what would be too large for one is refused and never worked out digit by digit."""
    shown = f"{what}({', '.join(f'{each:g}' for each in to)})" if what in FUNCTIONS else f" {what} ".join(f"{each:g}" for each in to)
    try:
        value = float(FUNCTIONS[what](*to) if what in FUNCTIONS else _OPERATORS[what](*to))
    except ZeroDivisionError:
        raise FormulaError(f"division by zero: {shown}") from None
    except OverflowError:
        raise FormulaError(f"too large: {shown}") from None
    except ValueError:
        raise FormulaError(f"no real number: {shown}") from None
    if not math.isfinite(value):
        raise FormulaError(f"too large: {shown}")
    return value


class _Parser:
    def __init__(self, tokens: Sequence[re.Match[str]], names: Collection[str]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0
        self._names = names

    def formula(self) -> Formula:
        read = self._sum()
        if self._at < len(self._tokens):
            raise self._unexpected("an operator")
        return read

    def _sum(self) -> Formula:
        left = self._product()
        while operator := self._taken("+", "-"):
            left = _made(operator, left, self._product())
        return left

    def _product(self) -> Formula:
        left = self._signed()
        while operator := self._taken("*", "/"):
            left = _made(operator, left, self._signed())
        return left

    def _signed(self) -> Formula:
        """Whatever nests passes here, so here it is counted how deep."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise FormulaError("nested too deep", f"at most {MAX_DEPTH} levels")
        read = _made("-", Number(0.0), self._signed()) if self._taken("-") else self._power()
        self._depth -= 1
        return read

    def _power(self) -> Formula:
        base = self._atom()
        return _made("^", base, self._signed()) if self._taken("^") else base

    def _atom(self) -> Formula:
        if self._taken("("):
            read = self._sum()
            self._expect(")")
            return read
        if self._at == len(self._tokens):
            raise self._unexpected("a number, a name or '('")
        number, name, _ = self._tokens[self._at].groups()
        if number is None and name is None:
            raise self._unexpected("a number, a name or '('")
        self._at += 1
        if number is not None:
            return _number(number)
        return self._call(name) if self._taken("(") else self._known(name)

    def _call(self, function: str) -> Formula:
        if function not in FUNCTIONS:
            raise FormulaError(f"no function '{function}'", did_you_mean(function, FUNCTIONS))
        arguments = [self._sum()]
        while self._taken(","):
            arguments.append(self._sum())
        self._expect(")")
        if len(arguments) > 1 and function not in MANY:
            raise FormulaError(f"{function} of {len(arguments)} arguments", "it takes one")
        return _made(function, *arguments)

    def _known(self, name: str) -> Formula:
        if name not in self._names:
            raise FormulaError(f"no grader '{name}'", did_you_mean(name, self._names))
        return Name(name)

    def _taken(self, *signs: str) -> str | None:
        if self._at < len(self._tokens) and self._tokens[self._at][0] in signs:
            self._at += 1
            return self._tokens[self._at - 1][0]
        return None

    def _expect(self, sign: str) -> None:
        if not self._taken(sign):
            raise self._unexpected(f"'{sign}'")

    def _unexpected(self, wanted: str) -> FormulaError:
        if self._at == len(self._tokens):
            return FormulaError(f"ends where {wanted} should stand")
        found = self._tokens[self._at]
        return FormulaError(f"column {found.start() + 1}: '{found[0]}' where {wanted} should stand")


def _number(text: str) -> Number:
    value = float(text)
    if not math.isfinite(value):
        raise FormulaError(f"too large: {text}")
    return Number(value)


def _made(what: str, *to: Formula) -> Formula:
    """Worked out at once where all of it is known."""
    known = [each.value for each in to if isinstance(each, Number)]
    return Number(_applied(what, known)) if len(known) == len(to) else Apply(what, to)
