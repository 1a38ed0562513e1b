"""A grader by its name; a mistake in the name or the options is told with the nearest right one."""

from __future__ import annotations

from contextlib import closing

import pytest

from agent_rft.contracts.errors import UserError
from agent_rft.graders.registry import Judges, Services, build_grader, load_grader
from agent_rft.graders.spec import read_spec


def test_numeric_with_and_without_its_option():
    assert load_grader("numeric").ref.name == "numeric"
    assert load_grader("numeric", use_row_tolerance=True).ref.hash != load_grader("numeric").ref.hash


def test_an_unknown_name_and_an_unknown_option_are_told_with_the_nearest():
    with pytest.raises(UserError, match=r"no grader named 'numerik'\n  cure: did you mean 'numeric'\?"):
        load_grader("numerik")
    with pytest.raises(UserError, match=r"has no option 'row_tolerance'\n  cure: did you mean 'use_row_tolerance'\?"):
        load_grader("numeric", row_tolerance=True)


# --- from their JSON --------------------------------------------------------------------------------------------------

JUDGED = {"type": "score_model", "name": "quality", "model": "gpt", "input": "Rate {{sample.output_text}}"}


@pytest.fixture
def services():
    with closing(Services(Judges("http://127.0.0.1:9/v1", models={"gpt": "served"}))) as opened:
        yield opened


def test_a_judges_model_is_the_one_that_the_server_has_and_the_hash_says_so(services):
    with closing(Services(Judges("http://127.0.0.1:9/v1"))) as other:
        there, here = (build_grader(read_spec(JUDGED), one) for one in (services, other))
    assert getattr(there, "waits", False) and there.ref.name == "quality"
    assert there.ref.hash != here.ref.hash


def test_without_a_judge_server_it_says_which_setting_names_one():
    with closing(Services()) as none, pytest.raises(UserError, match="asks the judge gpt") as caught:
        build_grader(read_spec({"type": "multi", "graders": {"a": JUDGED}, "calculate_output": "a"}), none)
    assert "grader.judge.url" in caught.value.cure


def test_a_caller_may_not_have_any_address_asked():
    endpoint = {"type": "endpoint", "name": "mine", "url": "https://example.org/grade"}
    with closing(Services(endpoints=False)) as guarded, pytest.raises(UserError, match="endpoint 'mine' is not asked for callers"):
        build_grader(read_spec({"type": "multi", "graders": {"a": endpoint}, "calculate_output": "a"}), guarded)


def test_code_is_graded_in_the_sandbox(sandbox):
    with closing(Services()) as opened:
        source = "def grade(sample, item): return len(sample['output_text']) / 4"
        python = build_grader(read_spec({"type": "python", "source": source}), opened)
        assert python.grade({}, {"output_text": "ab"}).reward == 0.5
        code = build_grader(read_spec({"type": "code_run", "tests_key": "cases"}), opened)
        answer = {"output_text": "```python\ndef double(x):\n    return 2 * x\n```"}
        cases = [{"call": "double", "args": [2], "expected": 4}, {"call": "double", "args": [1], "expected": 3}]
        assert code.grade({"cases": cases}, answer).reward == 0.5
