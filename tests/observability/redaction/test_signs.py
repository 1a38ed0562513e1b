"""What is told from one reading of a text must never miss what a detector would find in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from observability.redaction import numbers
from observability.redaction.detectors import BUILT_IN, custom_detectors
from observability.redaction.measured import read_sample
from observability.redaction.redact import Redacting, redact, redact_value, screen_of
from observability.redaction.secrets import without_surrogates

SAMPLE = Path(__file__).resolve().parents[3] / "data" / "redaction" / "sample.jsonl"
PIECES = st.sampled_from(
    "sk-a1b2c3d4e5f6a7b8c9 sk_live_a1b2c3d4e5f6 ghp_ AKIA ASIA xoxb- AIza hf_ npm_ SG. eyJ whsec_ :// @ : = := => is ist password "
    "Passwort API_KEY secret token bearer Basic a1b2c3d4e5 bob x.com DE89370400440532013000 de89 3704 0044 0532 0130 00 4111 1111 "
    "tel: Fax no. SSN phone the CALL "
    "4111111111111111 +41 79 123 45 67 (415) 555-2671 415-555-2671 tel call 756.9217.0769.85 219-09-9999 AB 12 34 56 C 2A 2B 1 84 12 "
    "\u00a0 \u202f \u2011 \ud800 \u00e9 [ ] [EMAIL] [KEY] \" ' { } , . / - _ ( ) 0 1 7 99 2025 a Z \n \\".split(" ")
)
TEXTS = st.lists(PIECES | st.just(" "), max_size=14).map("".join) | st.text(max_size=40)


@settings(max_examples=600)
@given(TEXTS)
@example("Bearer a1b2c3d4e5f6g7h8i9j0k1")
@example("-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC")
@example("https://bob:hunter22@example.com/")
@example("1 84 12 2A 004 023 37")
def test_no_detector_finds_anything_in_a_text_without_its_sign(text: str):
    suspects = screen_of(BUILT_IN).suspects(text)
    assert [detector.kinds for detector in BUILT_IN if detector not in suspects and list(detector.find(text))] == []


def test_every_thing_of_the_labelled_sample_has_its_sign():
    for one in read_sample(SAMPLE.read_bytes()):
        suspects = screen_of(BUILT_IN).suspects(one.text)
        assert [detector.kinds for detector in BUILT_IN if detector not in suspects and list(detector.find(one.text))] == []


@settings(max_examples=400)
@given(TEXTS)
def test_no_shape_of_a_number_is_in_a_run_that_its_loose_pattern_does_not_match(text: str):
    spoken_of = numbers.SPOKEN_OF.search(without_surrogates(text)) is not None
    for run in numbers.RUN.finditer(text):
        loose = numbers.LOOSE.Match(run[0]) or ()
        for place, shape in enumerate(numbers.IN_RUNS):
            if shape.pattern.search(text, run.start(), run.end()):
                assert place in loose
            if shape.after is not None and shape.after.search(text, 0, run.start()):
                assert spoken_of


VALUES = st.recursive(
    TEXTS | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(TEXTS | st.sampled_from(["password", "api_key", "phone", "x"]), inner, max_size=3)
        | inner.map(json.dumps)
    ),
    max_leaves=6,
)
OWN = (*BUILT_IN, *custom_detectors({"FIRST": "^a", "NUMBER": "[0-9]{2}"}))


@settings(max_examples=400)
@given(st.lists(VALUES, min_size=1, max_size=3), st.sampled_from([BUILT_IN, OWN]))
def test_a_value_that_passes_as_a_whole_has_nothing_in_it(values: list[object], detectors: tuple[object, ...]):
    """One after the other through the same memory, each against a walk through it that remembers nothing and asks every text."""
    redacting = Redacting(detectors)  # pyright: ignore[reportArgumentType]
    for value in values:
        redacting.removed.clear()
        alone = Redacting(detectors)  # pyright: ignore[reportArgumentType]
        thorough = alone._value(value, "", 0)  # pyright: ignore[reportPrivateUsage]
        assert (redacting.value(value, ""), redacting.removed) == (thorough if alone.removed else value, alone.removed)


def test_what_only_looks_like_a_number_passes_without_being_gone_through_by_its_paths(monkeypatch: pytest.MonkeyPatch):
    session = "01a20277-1567-7aa4-93d8-725124417111"
    assert screen_of(BUILT_IN).suspects(session)
    monkeypatch.setattr(Redacting, "_value", lambda *_: pytest.fail("it was gone through"))
    assert redact_value({"session": session, "asked": "It was 1 234 567.80 then."}).removed == ()


def test_a_conversation_that_repeats_itself_is_removed_from_each_time():
    said = json.dumps({"to": "bob@x.com"})
    done = redact_value([said, said, "clean", "clean"])
    assert done.value == ['{"to": "[EMAIL]"}'] * 2 + ["clean"] * 2
    assert [one.path for one in done.removed] == ["/0#/to", "/1#/to"]


@pytest.mark.parametrize("piece", ["0(", "1 ", "a@", "sk-a", "AA11 ", "password-", "aa11 ", "eyJ"])
def test_signs_are_found_at_the_end_of_a_long_hostile_text(piece: str):
    """RE2's memory is bounded: where it runs over it starts anew, and must not give up."""
    assert redact(piece * 60_000 + " bob@example.com").text.endswith(" [EMAIL]")
