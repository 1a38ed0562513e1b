"""The example graders: every pure type and every flag it can set, with rewards worked out by hand in each case's `why`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent_rft.contracts.errors import FaultsFound
from agent_rft.contracts.ports import Grader
from agent_rft.graders.pure import build_pure
from agent_rft.graders.spec import GraderSpec, flags_of, read_spec

EXAMPLES = Path(__file__).parents[2] / "examples" / "graders"
PURE = ("string_check", "text_similarity", "numeric", "schema", "f1_set", "trajectory", "multi", "stack")
FILES = [path for path in sorted(EXAMPLES.glob("*.json")) if json.loads(path.read_text()).get("type") in PURE]


def build(spec: GraderSpec) -> Grader:
    grader = build_pure(spec, build)
    return grader or pytest.skip("has a part that is not pure")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_case_gets_what_was_worked_out_by_hand(path):
    grader = build(read_spec(json.loads(path.read_text())))
    lines = path.with_suffix(".cases.jsonl").read_text().splitlines()
    assert len(lines) >= 2
    for line in lines:
        case = json.loads(line)
        grade = grader.grade(case["item"], case["sample"])
        if "errors" in case:
            assert (grade.reward, grade.passed, list(grade.errors)) == (None, None, case["errors"]), case["why"]
        else:
            assert grade.errors == {} and grade.reward == pytest.approx(case["reward"], abs=1e-6), case["why"]


def test_every_pure_type_has_an_example():
    assert {json.loads(path.read_text())["type"] for path in FILES} == set(PURE)


@pytest.mark.parametrize("path", sorted((EXAMPLES / "refused").glob("*.json")), ids=lambda path: path.stem)
def test_what_cannot_be_read_is_refused_with_every_fault_under_its_path(path):
    example = json.loads(path.read_text())
    with pytest.raises(FaultsFound) as caught:
        read_spec(example["grader"])
    assert sorted(fault.where for fault in caught.value.faults) == sorted(example["faults"])
    if "flags" in example:
        assert list(flags_of(caught.value)) == example["flags"]
