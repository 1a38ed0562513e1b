"""OpenAI's python grader: a number is the reward, and whatever else comes of it is no score."""

from __future__ import annotations

import pickle

import pytest

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.rollouts import Ending, Limits, Rollout
from agent_rft.contracts.rows import Row
from agent_rft.graders.apply import grade_rollout
from agent_rft.graders.python_grader import PythonGrader
from agent_rft.graders.sandbox import Outcome, Sandbox, SandboxLimits

ITEM, SAMPLE = {"reference_answer": "13.4%"}, {"output_text": "13.4%", "output_json": {"value": 0.134}}


class Broken:
    """A sandbox that does not do its work."""

    def run(self, *arguments):
        return Outcome(error="protocol", what="it ended or hung in the middle of a grading")


def grade(sandbox, body, item=ITEM, sample=SAMPLE, **options):
    return PythonGrader(f"def grade(sample, item):\n    {body}", sandbox, **options).grade(item, sample)


def test_the_functions_number_is_the_reward(sandbox):
    grader = PythonGrader("def grade(sample, item):\n    return float(sample['output_text'] == item['reference_answer'])", sandbox)
    right, wrong = grader.grade(ITEM, SAMPLE), grader.grade(ITEM, {"output_text": "12%"})
    assert (right.reward, right.passed, right.errors, right.grader) == (1.0, True, {}, grader.ref)
    assert (wrong.reward, wrong.passed) == (0.0, False)


@pytest.mark.parametrize(
    ("body", "reward"), [("return 1", 1.0), ("return True", 1.0), ("return 0.25", 0.25), ("import numpy; return numpy.float32(0.5)", 0.5)]
)
def test_whatever_is_a_number_in_python_counts(sandbox, body, reward):
    assert grade(sandbox, body).reward == reward


def test_a_threshold_of_its_own_decides_what_passes(sandbox):
    assert grade(sandbox, "return 0.5").passed is False
    assert grade(sandbox, "return 0.5", pass_threshold=0.5).passed is True


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 'good'", "grade returned 'good', which is not a number"),
        ("return None", "grade returned None, which is not a number"),
        ("pass", "grade returned None, which is not a number"),
        ("return float('nan')", "grade returned nan, which is not a number"),
        ("return [1.0]", "grade returned [1.0], which is not a number"),
        ("return 10 ** 400", "grade returned " + "1" + "0" * 79 + ", which is not a number"),
    ],
)
def test_no_number_is_no_score(sandbox, body, said):
    told = grade(sandbox, body)
    assert (told.reward, told.passed, told.errors) == (None, None, {"other_error": said})


def test_a_crash_is_no_score_and_shows_the_line(sandbox):
    told = grade(sandbox, "return sample['output_jsno']['value']")
    assert told.reward is None
    assert told.errors["python_grader_runtime_error"] == "KeyError: 'output_jsno'"
    assert "line 2, in grade" in told.errors["python_grader_runtime_error_details"]


def test_half_a_surrogate_pair_in_an_error_can_be_written(sandbox):
    told = grade(sandbox, "raise ValueError(chr(0xD800) + '!')")
    assert told.errors["python_grader_runtime_error"] == r"ValueError: \ud800!"
    assert told.errors["python_grader_runtime_error_details"].encode().endswith(b"ValueError: \\ud800!\n")


@pytest.mark.parametrize(
    "source",
    [
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass Found:\n    share: float = 0.5\n"
        "def grade(sample, item):\n    return Found().share",
        "import pickle\nclass Found:\n    share = 0.5\ndef grade(sample, item):\n    return pickle.loads(pickle.dumps(Found())).share",
    ],
)
def test_the_source_is_a_module_whose_classes_can_be_found(sandbox, source):
    assert PythonGrader(source, sandbox).grade(ITEM, SAMPLE).reward == 0.5


@pytest.mark.parametrize(
    ("body", "flag"),
    [
        ("while True: pass", "timeout: it took longer than 1 s"),
        ("return len(bytearray(10 ** 10))", "memory: MemoryError"),
        ("print('x' * 10 ** 7)", "output: it put out more than 1,048,576 bytes"),
    ],
)
def test_a_broken_limit_is_no_score(sandbox, body, flag):
    told = grade(sandbox, body, limits=SandboxLimits(seconds=1.0))
    assert (told.reward, told.errors["python_grader_runtime_error"]) == (None, flag)


def test_the_sandboxs_own_failure_has_another_flag():
    told = grade(Broken(), "return 1.0")
    assert told.reward is None
    assert told.errors == {
        "python_grader_server_error": "it ended or hung in the middle of a grading",
        "python_grader_server_error_type": "protocol",
    }


def test_a_number_outside_0_to_1_is_a_failed_grader_where_it_would_be_the_reward(sandbox):
    """Inside a multi it may be any number: the formula makes the reward of it."""
    grader = PythonGrader("def grade(sample, item): return 7", sandbox)
    assert grader.grade(ITEM, SAMPLE).reward == 7.0
    rollout = Rollout("r", (), (), Limits(), ending=Ending.ANSWERED, answer="x")
    told = grade_rollout(Row("row", "?", "x"), rollout, grader)
    assert told and (told.reward, told.errors) == (None, {"other_error": "reward 7.0 is not a number from 0 to 1"})


def test_one_grading_sees_nothing_of_another(sandbox):
    grader = PythonGrader("seen = []\ndef grade(sample, item):\n    seen.append(sample)\n    return len(seen) / 2", sandbox)
    assert [grader.grade(ITEM, SAMPLE).reward for _ in range(4)] == [0.5] * 4


def test_the_hash_covers_source_limits_and_threshold(sandbox):
    hashes = {
        PythonGrader(source, sandbox, limits=limits, pass_threshold=threshold).ref.hash
        for source in ("a", "b") for limits in (SandboxLimits(), SandboxLimits(seconds=1.0)) for threshold in (None, 0.5)
    }  # fmt: skip
    assert len(hashes) == 8
    assert PythonGrader("a", sandbox).ref == PythonGrader("a", sandbox).ref


def test_a_source_that_is_too_large_is_refused_at_once(sandbox):
    PythonGrader("#" * 262_143, sandbox)
    with pytest.raises(UserError, match=r"grader 'mine': its source has 262,144 bytes\n  cure: less than 262,144"):
        PythonGrader("#" * 262_144, sandbox, name="mine")


def test_a_source_is_checked_without_grading(sandbox):
    assert PythonGrader("def grade(sample, item): return 1 / 0", sandbox).faults("grader.source") == []
    (syntax,) = PythonGrader("def grade(sample, item) return 1", sandbox).faults("grader.source")
    assert str(syntax) == "grader.source: SyntaxError: expected ':' (define grade(sample, item), which returns a number)"
    (missing,) = PythonGrader("def score(sample, item): return 1", sandbox).faults("grader.source")
    assert missing.what == "NameError: the source defines no function 'grade'"


def test_sent_to_another_process_it_has_a_sandbox_of_its_own(sandbox):
    with Sandbox(workers=1) as one:
        grader = pickle.loads(pickle.dumps(PythonGrader("def grade(sample, item): return 0.5", one)))
    assert grader.grade(ITEM, SAMPLE).reward == 0.5
    grader._sandbox.close()
