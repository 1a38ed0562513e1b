"""The model's answer as code, run against the row's tests in the sandbox. The reward is the share of tests passed.

A test is {"call": "name", "args": [...], "expected": value} (python) or {"stdin": "...", "expected": "..."} (any language).
The code sees a test's input and nothing else: each test runs by itself, and what came out is compared out here, so code can
neither read what is expected nor talk the comparison into passing. Assertions run beside the answer could not promise that.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
from collections.abc import Sequence
from typing import Any, cast

import msgspec

from agent_rft.contracts.errors import UserError, did_you_mean
from agent_rft.contracts.grades import Grade
from agent_rft.graders import sandbox_worker
from agent_rft.graders.base import PASS_THRESHOLD, grader_ref
from agent_rft.graders.python_grader import failure_flags, shown
from agent_rft.graders.sandbox import Outcome, Sandbox, SandboxLimits

VERSION = "1"
TEST_LIMITS = SandboxLimits(seconds=10.0)
SECONDS_IN_ALL = 120.0
"""What one answer may take for its tests together; tests beyond that have failed."""
RELATIVE_TOLERANCE = 1e-9
"""Of numbers with a fraction: a sum in another order is no error. Whole numbers are exact."""
SHOWN_FAILURES = 5
FENCED = re.compile(r"^```[^\n`]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


class Language(msgspec.Struct, frozen=True):
    file: str
    """The name that the answer gets."""
    program: str
    """What runs it: a name under /usr/bin, or a path."""
    arguments: tuple[str, ...] = ()


LANGUAGES = {
    "python": Language("answer.py", os.path.realpath(sys.executable), ("-s", "-S", "-B")),
    "javascript": Language("answer.js", "node"),
    "perl": Language("answer.pl", "perl"),
    "ruby": Language("answer.rb", "ruby"),
    "lua": Language("answer.lua", "lua"),
    "php": Language("answer.php", "php"),
}
"""Those that one process runs from source: the sandbox allows no second one, so nothing that calls a compiler."""


class Test(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    expected: Any
    call: str | None = None
    args: list[Any] = []
    stdin: str | None = None


class CodeRunGrader:
    """Grades `sample.output_text`: its last fenced block, or all of it where there is none."""

    waits = True

    def __init__(
        self,
        sandbox: Sandbox,
        language: str = "python",
        tests_key: str = "tests",
        limits: SandboxLimits = TEST_LIMITS,
        seconds_in_all: float = SECONDS_IN_ALL,
        pass_threshold: float | None = None,
        name: str = "code_run",
    ) -> None:
        self._sandbox, self._language, self._tests_key = sandbox, language, tests_key
        self._limits, self._seconds_in_all = limits, seconds_in_all
        self._pass_threshold = PASS_THRESHOLD if pass_threshold is None else pass_threshold
        self._file, self._command = _runner(language)
        parameters = {
            "language": language,
            "tests_key": tests_key,
            "limits": msgspec.to_builtins(limits),
            "seconds_in_all": seconds_in_all,
            "pass_threshold": self._pass_threshold,
        }
        self.ref = grader_ref(name, VERSION, (sys.modules[__name__], sandbox_worker), parameters)

    def grade(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
        text = sample.get("output_text")
        if not isinstance(text, str):
            return Grade(self.ref, None, errors={"sample_parse_error": "sample.output_text is not a text"})
        tests = self._tests(item)
        if isinstance(tests, str):
            return Grade(self.ref, None, errors={"invalid_variable_error": tests})
        code, passed, left, failures = code_of(text), 0, self._seconds_in_all, list[dict[str, Any]]()
        for number, test in enumerate(tests):
            outcome = self._run(code, test) if left > 0 else Outcome(error="timeout", what="no time was left for it")
            if outcome.error in ("protocol", "due"):  # no doing of the answer's
                return Grade(self.ref, None, errors=failure_flags(outcome))
            left -= outcome.seconds
            why = outcome.what or outcome.error or _difference(outcome.value, test)
            passed += not why
            if why:
                failures.append({"test": number, "why": why})
        reward = passed / len(tests)
        parts = {"tests": len(tests), "passed": passed, "failures": failures[:SHOWN_FAILURES]}
        return Grade(self.ref, reward, reward >= self._pass_threshold, parts)

    def _run(self, code: str, test: Test) -> Outcome:
        if test.call is not None:
            return self._sandbox.run(code, test.call, test.args, self._limits)
        return self._sandbox.run_program(self._command, self._file, code, test.stdin or "", self._limits)

    def _tests(self, item: dict[str, Any]) -> list[Test] | str:
        """Or what is wrong with them: the dataset's fault, so no score."""
        where = f"item.{self._tests_key}"
        try:
            tests = msgspec.convert(item.get(self._tests_key), list[Test])
        except msgspec.ValidationError as error:
            return f"{where}: {error}"
        for number, test in enumerate(tests):
            if (test.call is None) == (test.stdin is None):
                return f"{where}[{number}]: give either call or stdin"
            if test.call is not None and self._language != "python":
                return f"{where}[{number}]: call is for python; give stdin and expected text for {self._language}"
            if test.stdin is not None and not isinstance(test.expected, str):
                return f"{where}[{number}]: expected is the printed text where stdin is given"
        return tests or f"{where}: no tests"


def code_of(text: str) -> str:
    blocks = FENCED.findall(text)
    return blocks[-1] if blocks else text


def same(found: object, expected: object) -> bool:
    """Equal as JSON: a tuple is a list, 1 is 1.0, and true is not 1."""
    if isinstance(expected, bool) or isinstance(found, bool):
        return found is expected
    if isinstance(expected, int | float) and isinstance(found, int | float):
        return found == expected or (isinstance(expected, float) and _close(found, expected))
    if isinstance(expected, list) and isinstance(found, list):
        pairs = cast(list[Any], found), cast(list[Any], expected)
        return len(pairs[0]) == len(pairs[1]) and all(map(same, *pairs))
    if isinstance(expected, dict) and isinstance(found, dict):
        theirs, ours = cast(dict[str, Any], found), cast(dict[str, Any], expected)
        return theirs.keys() == ours.keys() and all(same(theirs[key], ours[key]) for key in ours)
    return type(found) is type(expected) and found == expected


def _close(found: float, expected: float) -> bool:
    try:
        return math.isclose(found, expected, rel_tol=RELATIVE_TOLERANCE)
    except OverflowError:  # a whole number beyond any float
        return False


def _difference(found: object, test: Test) -> str:
    """Empty where the test is passed."""
    if test.call is None:
        found, expected = _lines(str(found)), _lines(test.expected)
        return "" if found == expected else "it printed something else"
    return "" if same(found, test.expected) else f"it returned {shown(found)}"


def _lines(text: str) -> list[str]:
    """Blanks at the end of a line and empty lines at the end of all are nobody's mistake."""
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _runner(language: str) -> tuple[str, Sequence[str]]:
    known = LANGUAGES.get(language)
    if known is None:
        raise UserError(f"code_run knows no language '{language}'", did_you_mean(language, LANGUAGES))
    program = shutil.which(known.program, path="/usr/bin") if os.sep not in known.program else known.program
    if program is None:
        raise UserError(f"code_run: nothing runs {language} here", f"install '{known.program}' under /usr/bin")
    return known.file, (os.path.realpath(program), *known.arguments, known.file)
