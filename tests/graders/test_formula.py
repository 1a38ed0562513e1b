"""The documented grammar and nothing else; whatever has no finite value is said so."""

from __future__ import annotations

import ast
import contextlib
import math
import operator
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rft.graders.formula import FormulaError, evaluate, parse_formula

VALUES = {"a": 0.5, "b": 0.25, "accuracy": 1.0}


def worth(text: str) -> float:
    return evaluate(parse_formula(text, VALUES), VALUES)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.5 * a + 0.5 * b", 0.375), ("a - b - 1", -0.75), ("8 / 4 / 2", 1), ("2 + 3 * 4", 14), ("(2 + 3) * 4", 20),
        ("2 ^ 3 ^ 2", 512), ("-2 ^ 2", -4), ("2 ^ -1", 0.5), ("(-2) ^ 2", 4), ("--a", 0.5), ("2 * -a", -1), ("a^b^1", 0.5**0.25),
        ("min(a, b, 3)", 0.25), ("max(a)", 0.5), ("abs(-a)", 0.5), ("floor(2.7)", 2), ("ceil(2.1)", 3), ("floor(-a)", -1),
        ("exp(0)", 1), ("sqrt(b)", 0.5), ("log(exp(2))", 2), ("1e-2 + .5 + 1.", 1.51), ("a\n+\tb", 0.75),
        ("(100 - abs(90 - 80)) / 100", 0.9),
    ],
)  # fmt: skip
def test_the_documented_operators_and_functions(text, value):
    assert worth(text) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("__import__('os')", "no function '__import__'"),
        ("a.real", "column 2: '.' where an operator should stand"),
        ("a.__class__", "column 2: '.'"),
        ("eval(a)", "no function 'eval'"),
        ("a(b)", "no function 'a'"),
        ("a ** 2", "column 4: '*' where"),
        ("a % 2", "column 3: '%'"),
        ("a[0]", "column 2: '['"),
        ("a if b else 0", "column 3: 'if'"),
        ("lambda: 1", "no grader 'lambda'"),
        ("'a'", "column 1: '''"),
        ("acuracy", "no grader 'acuracy' (did you mean 'accuracy'?)"),
        ("mni(a, b)", "no function 'mni' (did you mean 'min'?)"),
        ("", "ends where a number, a name or '(' should stand"),
        ("a +", "ends where"),
        ("(a", "ends where ')' should stand"),
        ("a b", "column 3: 'b' where an operator should stand"),
        ("min()", "column 5: ')'"),
        ("abs(a, b)", "abs of 2 arguments (it takes one)"),
        ("10 ^ 1000000", "too large"),
        ("9 ^ 9 ^ 9 ^ 9", "too large"),
        ("1e999", "too large"),
        ("1 / 0", "division by zero"),
        ("sqrt(-1)", "no real number"),
        ("+a", "column 1: '+'"),
        ("(" * 41 + "a" + ")" * 41, "nested too deep"),
        ("-" * 41 + "a", "nested too deep"),
        ("+".join("a" * 201), "a formula has at most 400"),
        ("a + " + "0" * 2000, "a formula has at most 2000"),
    ],
)
def test_anything_else_is_refused_when_it_is_read(text, said):
    with pytest.raises(FormulaError) as caught:
        parse_formula(text, VALUES)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("b / (a - 0.5)", "division by zero: 0.25 / 0"),
        ("(a + 10) ^ 1000000", "too large: 10.5 ^ 1e+06"),
        ("exp(2000 * a)", "too large: exp(1000)"),
        ("a * 1e308 * 100", "too large: 5e+307 * 100"),
        ("(0 - a) ^ b", "no real number: -0.5 ^ 0.25"),
        ("log(a - 0.5)", "no real number: log(0)"),
        ("(a - 0.5) ^ (0 - b)", "no real number: 0 ^ -0.25"),
    ],
)
def test_a_formula_without_a_finite_value_says_which_step_has_none(text, said):
    formula = parse_formula(text, VALUES)
    with pytest.raises(FormulaError) as caught:
        evaluate(formula, VALUES)
    assert str(caught.value) == said


def test_a_power_of_a_million_digits_costs_no_time():
    started = time.thread_time()
    with pytest.raises(FormulaError):
        worth("(a + 9) ^ 1000000 ^ 1000")
    assert time.thread_time() - started < 0.5


def test_the_longest_and_the_deepest_formula_are_worked_out():
    assert worth("+".join("a" * 200)) == 100
    assert worth("(" * 39 + "a" + ")" * 39) == 0.5


OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.Pow: operator.pow}


def by_python(node: ast.expr) -> float:
    """The same formula by Python's own parser, as the independent reference."""
    match node:
        case ast.Constant():
            return float(node.value)
        case ast.Name():
            return VALUES[node.id]
        case ast.UnaryOp():
            return -by_python(node.operand)
        case ast.BinOp():
            return OPERATORS[type(node.op)](by_python(node.left), by_python(node.right))
    raise AssertionError(node)


FORMULAS = st.recursive(
    st.sampled_from(["a", "b", "accuracy", "2", "0.5", "3"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "^"]), inner).map(" ".join),
        inner.map(lambda text: f"({text})"),
        inner.map(lambda text: f"-{text}"),
    ),
    max_leaves=12,
)


@given(FORMULAS)
def test_precedence_and_associativity_are_pythons(text):
    try:
        expected = by_python(ast.parse(text.replace("^", "**"), mode="eval").body)
    except (ZeroDivisionError, OverflowError):
        expected = math.nan
    if isinstance(expected, complex) or not math.isfinite(expected):
        with pytest.raises(FormulaError):
            worth(text)
        return
    assert worth(text) == pytest.approx(expected, rel=1e-9)


@given(st.text(max_size=60))
def test_no_text_does_anything_but_parse_or_be_refused(text):
    with contextlib.suppress(FormulaError):
        parse_formula(text, VALUES)
