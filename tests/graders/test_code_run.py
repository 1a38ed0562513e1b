"""The model's answer as code: the share of tests passed, and no way to talk a test into passing."""

from __future__ import annotations

import shutil

import pytest

from agent_rft.contracts.errors import UserError
from agent_rft.graders.code_run import CodeRunGrader, code_of, same
from agent_rft.graders.deadline import due_within
from agent_rft.graders.sandbox import Outcome, SandboxLimits

QUICK = SandboxLimits(seconds=2.0)
DOUBLES = [{"call": "double", "args": [n], "expected": 2 * n} for n in range(4)]
PRINTS = [{"stdin": "2 3\n", "expected": "5"}, {"stdin": "10 -4\n", "expected": "6\n"}]


class Broken:
    def run(self, *arguments):
        return Outcome(error="protocol", what="gone")


def grade(sandbox, code, tests, **options):
    return CodeRunGrader(sandbox, limits=QUICK, **options).grade({"tests": tests}, {"output_text": code})


def test_the_reward_is_the_share_of_tests_passed(sandbox):
    right = grade(sandbox, "def double(n): return n + n", DOUBLES)
    assert (right.reward, right.passed, right.parts) == (1.0, True, {"tests": 4, "passed": 4, "failures": []})
    half = grade(sandbox, "def double(n): return 2 * n if n < 2 else 0", DOUBLES)
    assert (half.reward, half.passed) == (0.5, False)
    assert half.parts["failures"] == [{"test": 2, "why": "it returned 0"}, {"test": 3, "why": "it returned 0"}]


def test_a_program_is_tested_by_what_it_prints(sandbox):
    assert grade(sandbox, "a, b = map(int, input().split())\nprint(a + b)", PRINTS).reward == 1.0
    assert grade(sandbox, "a, b = map(int, input().split())\nprint(abs(a) + abs(b))", PRINTS).reward == 0.5


@pytest.mark.parametrize(
    ("language", "program", "code"),
    [
        ("javascript", "node", "const [a, b] = require('fs').readFileSync(0, 'utf8').split(' ').map(Number); console.log(a + b)"),
        ("perl", "perl", "my ($a, $b) = split ' ', <STDIN>; print $a + $b, qq(\\n);"),
    ],
)
def test_other_languages_that_are_installed(sandbox, language, program, code):
    if shutil.which(program, path="/usr/bin") is None:
        pytest.skip(f"{program} is not installed under /usr/bin")
    assert grade(sandbox, code, PRINTS, language=language).reward == 1.0


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("def double(n): return 1 / 0", "ZeroDivisionError: division by zero"),
        ("def double(n) return n", "SyntaxError: expected ':'"),
        ("I am sorry, I cannot.", "SyntaxError: invalid syntax"),
        ("", "NameError: the source defines no function 'double'"),
        ("import os\ndef double(n): os._exit(0)", "it ended before its function returned"),
        ("import os\ndef double(n): os.kill(os.getppid(), 9); return -1", "it returned -1"),
        ("def double(n): return len(bytearray(10 ** 11))", "MemoryError"),
        ("def double(n): print('x' * 10 ** 7)", "it put out more than 1,048,576 bytes"),
        ("def double(n): return 10 ** 400", "it returned 1000"),
        ("def double(n):\n    r = []\n    for _ in range(900): r = [r]\n    return r", "it returned [[[["),
        ("def double(n): return {n}", "TypeError: set has no JSON"),
        ("\ud800", "UnicodeEncodeError"),
    ],
)
def test_whatever_the_code_does_is_the_answers_fault_and_never_the_graders(sandbox, code, why):
    """A null reward would take the bad answer out of the group: no code may be able to bring one about."""
    told = grade(sandbox, code, DOUBLES[1:2])
    assert (told.reward, told.errors) == (0.0, {})
    assert told.parts["failures"][0]["why"].startswith(why)


def test_code_that_hangs_fails_its_test_and_cannot_hold_up_the_rest_for_ever(sandbox):
    told = grade(sandbox, "def double(n):\n    while n: pass\n    return 0", DOUBLES, seconds_in_all=1.5)
    assert told.reward == 0.25  # 0 is answered; 1 takes its two seconds, more than all may take; 2 and 3 have no time left
    assert [failure["why"] for failure in told.parts["failures"]] == ["it took longer than 2 s", *["no time was left for it"] * 2]


def test_tricks_that_pass_assertions_pass_nothing_here(sandbox):
    always_equal = "class Yes(int):\n    def __eq__(self, other): return True\ndef double(n): return Yes(-1)"
    patched = "import json\njson.dumps = lambda *a, **k: '{\"value\": true}'\ndef double(n): return -1"
    reads_tests = "import sys\ndef double(n):\n    f = sys._getframe()\n    while f.f_back: f = f.f_back\n    return repr(f.f_locals)"
    for code in (always_equal, patched, reads_tests):
        assert grade(sandbox, code, DOUBLES).reward == 0.0


def test_the_code_sees_no_expected_value(sandbox):
    spy = "import gc\ndef double(n): return [k for o in gc.get_objects() if isinstance(o, dict) for k in o if k == 'expected']"
    told = CodeRunGrader(sandbox).grade({"tests": [{"call": "double", "args": [1], "expected": []}]}, {"output_text": spy})
    assert told.reward == 1.0


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        (None, "item.tests: Expected `array`, got `null`"),
        ([], "item.tests: no tests"),
        ([{"call": "f"}], "item.tests: Object missing required field `expected` - at `$[0]`"),
        ([{"expected": 1}], "item.tests[0]: give either call or stdin"),
        ([{"call": "f", "stdin": "", "expected": 1}], "item.tests[0]: give either call or stdin"),
        ([{"stdin": "", "expected": 1}], "item.tests[0]: expected is the printed text where stdin is given"),
        ([{"call": "f", "expected": 1, "arg": [1]}], "item.tests: Object contains unknown field `arg` - at `$[0]`"),
    ],
)
def test_tests_that_cannot_be_used_are_the_rows_fault(sandbox, tests, said):
    told = grade(sandbox, "def f(): return 1", tests)
    assert (told.reward, told.errors) == (None, {"invalid_variable_error": said})


def test_a_call_in_another_language_and_an_answer_without_text_are_no_score(sandbox):
    if shutil.which("perl", path="/usr/bin"):
        told = grade(sandbox, "", DOUBLES, language="perl")
        assert told.errors["invalid_variable_error"].startswith("item.tests[0]: call is for python")
    assert CodeRunGrader(sandbox).grade({"tests": DOUBLES}, {}).errors == {"sample_parse_error": "sample.output_text is not a text"}


def test_the_sandboxs_own_failure_is_no_score():
    told = grade(Broken(), "def double(n): return 2 * n", DOUBLES)
    assert (told.reward, told.errors["python_grader_server_error"]) == (None, "gone")


def test_an_unknown_language_and_one_that_is_not_installed_are_told(sandbox, monkeypatch):
    with pytest.raises(UserError, match=r"no language 'pyton'\n  cure: did you mean 'python'\?"):
        CodeRunGrader(sandbox, language="pyton")
    monkeypatch.setattr(shutil, "which", lambda name, path: None)
    with pytest.raises(UserError, match=r"nothing runs lua here\n  cure: install 'lua'"):
        CodeRunGrader(sandbox, language="lua")


def test_the_last_fenced_block_is_the_code():
    assert code_of("First:\n```python\na = 1\n```\nBetter:\n```\na = 2\n```\nDone.") == "a = 2\n"
    assert code_of("a = 1\nb = '```'") == "a = 1\nb = '```'"


@pytest.mark.parametrize(
    ("found", "expected", "equal"),
    [
        (1, 1.0, True), (0.1 + 0.2, 0.3, True), (1, 1 + 1e-6, False), (True, 1, False), (1, True, False),
        (True, True, True), (10**17, 10**17 + 1, False), (10**400, 1.5, False), (float("nan"), 1.0, False), ("1", 1, False),
        (None, None, True), (None, 0, False),
        ([1, [2.0]], [1, [2]], True), ([1], [1, 2], False), ({"a": 1}, {"a": 1.0}, True), ({"a": 1}, {"b": 1}, False), ([], {}, False),
    ],
)  # fmt: skip
def test_equal_means_equal_as_json(found, expected, equal):
    assert same(found, expected) is equal


def test_where_the_grade_is_due_first_an_answer_is_not_wrong_for_want_of_time(sandbox):
    """Its own limit is broken by its own doing, and a failed test. The server's deadline is not."""
    slow = "import time\ndef f(x):\n    time.sleep(5)\n    return x\n"
    with due_within(0.5):
        got = CodeRunGrader(sandbox).grade({"tests": [{"call": "f", "args": [1], "expected": 1}]}, {"output_text": slow})
    assert got.reward is None and list(got.errors) == ["unresponsive_reward_error"]
