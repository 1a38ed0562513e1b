"""A tenant's own patterns: all faults at once, and none that could hold up the others."""

import time

import pytest

from agent_rft.contracts.errors import FaultsFound
from observability.redaction.detectors import BUILT_IN, custom_detectors
from observability.redaction.redact import redact


def test_a_pattern_of_ones_own_works_beside_the_others():
    own = custom_detectors({"EMPLOYEE_NO": r"\bE-\d{6}\b"})
    assert redact("E-123456 is bob@x.com, é E-654321", BUILT_IN + own).text == "[EMPLOYEE_NO] is [EMAIL], é [EMPLOYEE_NO]"


def test_every_fault_of_every_pattern_is_told_at_once_with_its_cure():
    patterns = {
        "OPEN": "(a",
        "NOTHING": "x*",
        "EDGE": r"\b",
        "AHEAD": "a(?=b)",
        "lower": "a",
        "EMAIL": "b",
        "LONG": "a" * 1001,
        "GOOD": "a",
    }
    with pytest.raises(FaultsFound) as found:
        custom_detectors(patterns, "tenants.acme.redaction")
    told = {fault.where.rpartition(".")[2]: str(fault) for fault in found.value.faults}
    assert set(told) == {"OPEN", "NOTHING", "EDGE", "AHEAD", "lower", "EMAIL", "LONG"}
    assert told["OPEN"].startswith("tenants.acme.redaction.OPEN: the pattern '(a' does not compile: missing )")
    assert "look-around" in told["AHEAD"] and "matches where nothing is" in told["NOTHING"] and "1001 characters" in told["LONG"]


def test_a_pattern_that_would_run_for_years_elsewhere_takes_no_time_here():
    own = custom_detectors({"SLOW": r"(a+)+b"})  # backtracking tries 2 ** 100,000 ways
    began = time.process_time()
    assert redact("a" * 100_000, own).removed == ()
    assert time.process_time() - began < 5
