"""Leaks: the same question is always found, nearly the same nearly always, and other questions are left alone."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_rft.contracts.messages import Message
from agent_rft.contracts.rows import Row
from agent_rft.datasets import near
from agent_rft.datasets.filings import as_row, company_names, make_filings, make_questions
from agent_rft.datasets.leaks import find_leaks, leaks_and_turned
from agent_rft.datasets.near import Twins, near_duplicates
from agent_rft.datasets.rows_io import read_placed, validate_files
from agent_rft.datasets.split import split_rows

SHIPPED = Path(__file__).parents[2] / "data" / "research"


def placed(*prompts: str) -> list[tuple[str, Row]]:
    return [(f"f.jsonl:{n}", Row(f"r{n}", prompt, "1")) for n, prompt in enumerate(prompts, start=1)]


DIGITS = str.maketrans("123456789", "abcdefghi")
words = st.text("abcdeXYZ", min_size=1, max_size=6)
prompts = st.lists(words, min_size=1, max_size=12).map(" ".join)


@settings(max_examples=150)
@given(st.lists(prompts, min_size=1, max_size=30), st.data())
def test_the_same_question_is_always_found_whatever_its_case_spacing_and_marks(asked, data):
    said = data.draw(st.sampled_from(asked))
    looks = data.draw(st.sampled_from([str.upper, str.lower, str.swapcase]))
    spaced = data.draw(st.sampled_from(["  ", "\n", ", ", "? "])).join(looks(said).split())
    (leak,) = find_leaks(placed(*asked), placed(f"“{spaced}”!"))
    assert (leak.kind, leak.similarity, leak.row_id) == ("same", 1.0, "r1")
    assert asked[int(leak.twin.partition(":")[2]) - 1].casefold() == said.casefold()


@settings(max_examples=150)
@given(st.lists(prompts, min_size=1, max_size=30), st.data())
def test_the_same_words_in_another_order_are_always_told(asked, data):
    said = data.draw(st.sampled_from(asked))
    other_order = " ".join([*data.draw(st.permutations(said.split())), "7"])
    leaks, turned = leaks_and_turned(placed(*(f"{prompt} 7" for prompt in asked)), placed(other_order))
    assert [one.similarity for one in (*leaks, *turned)] == [1.0]


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("What was Lunar Hotels's revenue in fiscal 2024?", "How much revenue did Lunar Hotels have in fiscal 2024?"),
        ("What was the operating margin of Atlas in Q3 2025?", "Atlas Q3 2025: what was the operating margin?"),
        ("What was the operating margin of Atlas in Q3 2025?", "What was the opperating margin of Atlas in Q3 2025?"),
        ("Explain the outcome of the committee at Oslo.", "Explain the outcome of the comittee at Oslo."),
        ("Which of 1,234 and 999 is larger?", "Of 999 and 1234, which is larger?"),
    ],
)
def test_a_rewording_is_near(train, val):
    (leak,) = find_leaks(placed(train, "What is Bergen known for?"), placed(val))
    assert (leak.kind, leak.twin) == ("near", "f.jsonl:1")


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("What was Lunar Hotels's revenue in fiscal 2024?", "What was Lunar Hotels's revenue in fiscal 2023?"),  # another number
        ("What was Lunar Hotels's revenue in fiscal 2024?", "What was Lunar Motels's revenue in fiscal 2024?"),  # another name
        ("What was Lunar Hotels's revenue in fiscal 2024?", "What was Lunar Hotels's net margin in fiscal 2024?"),  # another metric
        ("What was the free cash flow of Atlas in Q3 2025?", "What was the operating cash flow of Atlas in Q3 2025?"),
        ("Solve x + 2 = 5 for x", "Solve x + 3 = 5 for x"),
        ("Solve x + 2 = 5 for x", "Solve x - 2 = 5 for x"),
        ("Is -5% a loss?", "Is 5% a loss?"),
        ("What is 13.4 plus 1?", "What is 1.34 plus 1?"),
        ("What is it?", "How much is it?"),  # nothing but filler says nothing
    ],
)
def test_another_question_is_not_near(train, val):
    assert find_leaks(placed(train), placed(val)) == []


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("How many g are 5 kg?", "How many kg are 5 g?"),
        ("How many minutes are 10 s?", "How many s are 10 minutes?"),  # s is a unit here, and no possessive
        ("What is 5 kg in g?", "How many kg are 5 g?"),  # 5 of what, in any frame
        ("Please convert 25 foot to cm.", "Convert 25 cm to foot."),
        ("Did Atlas Holding buy Oslo in 2024?", "Did Oslo buy Atlas Holding in 2024?"),
        ("Explain how the castle shaped the little harbour.", "Explain how the little harbour shaped the castle."),
        ("What is 9 minus 4?", "What is 4 minus 9?"),
    ],
)
def test_the_same_words_that_ask_another_thing_by_their_order_are_told_and_no_leak(train, val):
    leaks, (turned,) = leaks_and_turned(placed(train, "What is Bergen known for?"), placed(val))
    assert leaks == [] and (turned.kind, turned.row_id, turned.twin) == ("turned", "r1", "f.jsonl:1")


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("How many g are 5 kg?", "5 kg are how many g?"),  # what asks moved
        ("How many bridges has Porto?", "Porto has how many bridges?"),
        ("Which of Oslo and Bergen is larger?", "Which of Bergen and Oslo is larger?"),
        ("How many g are 5 kg?", "Please tell me: how many g are 5 kg"),
        ("What is 5 kg in g?", "How many g are 5 kg?"),
        ("Did Atlas buy Oslo in 2024?", "In 2024, did Atlas buy Oslo?"),  # a phrase moved
        ("Which company did Atlas buy?", "Atlas: which company did it buy?"),
        ("Compare revenue of 2024 with 2023.", "With revenue of 2023, compare 2024."),
    ],
)
def test_a_phrase_that_moved_asks_the_same(train, val):
    leaks, turned = leaks_and_turned(placed(train, "What is Bergen known for?"), placed(val))
    assert [(leak.kind, leak.twin) for leak in leaks] == [("near", "f.jsonl:1")] and turned == []


def test_a_word_put_in_after_a_number_is_no_other_order():
    letters = " ".join(f"part{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")
    train, val = (f"{letters} for 2019{more} profits" for more in ("", " overall"))
    leaks, turned = leaks_and_turned(placed(train, "What is Bergen known for?"), placed(val))
    assert [(leak.kind, leak.twin) for leak in leaks] == [("near", "f.jsonl:1")] and turned == []


def test_a_twin_that_asks_the_same_is_found_among_those_that_are_turned():
    train = placed("How many g are 5 kg?", "5 g in kg is how much?", "Convert 5 kg to g.")
    leaks, turned = leaks_and_turned(train, placed("How many kg are 5 g?"))
    assert [(leak.kind, leak.twin) for leak in leaks] == [("near", "f.jsonl:2")] and turned == []


def test_a_near_twin_that_is_straight_goes_before_a_turned_one_of_the_same_words():
    letters = [f"part{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    asked = " ".join(letters)
    turned_words = " ".join([letters[1], letters[2], letters[0], *letters[3:]])  # moved: straight
    swapped = " ".join([letters[2], letters[1], letters[0], *letters[3:]])  # changed places
    one_less = " ".join(letters[:-1])
    assert near_duplicates([swapped], [asked]) == [Twins(0, 0, 1.0, turned=True)]
    assert near_duplicates([turned_words], [asked]) == [Twins(0, 0, 1.0)]
    (twin,) = near_duplicates([swapped, one_less], [asked])
    assert (twin.train, twin.turned) == (1, False) and 0.9 <= twin.similarity < 1


def test_a_common_instruction_does_not_make_questions_alike():
    instruction = " ".join(f"instruction{letter}" for letter in "abcdefghijklmnopqrstuvwxyz" * 8)
    asked = [f"{instruction} describe the {what}" for what in ("harbour", "castle", "library", "bridge") for _ in range(20)]
    assert near_duplicates(asked[:60], [f"{instruction} describe the theatre"]) == []
    assert near_duplicates(asked[:60], ["describe the castle"]) == [Twins(0, 20, 1.0)]


def test_a_slip_that_several_rows_share_is_still_a_slip():
    train = [f"describe the general history of {town.lower()}" for town in company_names(60, random.Random(1))]
    slipped = [prompt.replace("general", "genral") for prompt in train[:3]]
    assert near_duplicates(train, slipped) == [Twins(at, at, 1.0) for at in range(3)]


def test_long_prompts_are_drawn_for_in_several_steps_with_the_same_outcome(monkeypatch):
    rng = random.Random(2)
    train = [" ".join(f"w{rng.randrange(400):03d}".replace("0", "o").translate(DIGITS) for _ in range(50)) for _ in range(40)]
    val = [prompt.rpartition(" ")[0] for prompt in train[:20]]
    at_once = near_duplicates(train, val)
    assert [(twins.val, twins.train) for twins in at_once] == [(at, at) for at in range(20)]
    monkeypatch.setattr(near, "AT_ONCE", 170)  # three prompts or so a step
    assert near_duplicates(train, val) == at_once


def test_the_shipped_data_gives_no_false_alarm():
    assert find_leaks(read_placed(SHIPPED / "train.jsonl"), read_placed(SHIPPED / "val.jsonl")) == []


def test_questions_from_three_templates_about_shared_companies_give_no_false_alarm():
    """Harder than the shipped split: both sides ask about the same forty companies, so that only the metric or the period differs."""
    rng = random.Random(3)
    questions = make_questions(make_filings(company_names(40, rng), rng), {"easy": 250, "medium": 900, "hard": 500}, 0.15, rng)
    train, val = split_rows([as_row(question, str(n)) for n, question in enumerate(questions)], 0.2, 1)
    assert len(val) == 330
    assert find_leaks([("t", row) for row in train], [("v", row) for row in val]) == []


def test_prose_with_a_word_less_or_a_wrong_letter_is_found():
    rng = random.Random(5)
    vocabulary = sorted({"".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(5, 10))) for _ in range(3000)})
    train = [" ".join(rng.choices(vocabulary, k=40)) for _ in range(1500)]
    changed: list[str] = []
    for prompt in train[:200]:
        said = prompt.split()
        del said[rng.randrange(40)]
        at = rng.randrange(39)
        said[at] = f"{said[at][:2]}x{said[at][3:]}"
        changed.append(" ".join(said))
    found = {
        twins.val: twins.train
        for twins in near_duplicates(train, [*changed, *(" ".join(rng.choices(vocabulary, k=40)) for _ in range(300))])
    }
    assert sum(found.get(at) == at for at in range(200)) >= 196  # 98%; and of the 300 others none:
    assert not [at for at in found if at >= 200]


def test_two_prompts_draw_the_same_word_as_often_as_they_are_similar():
    # weights a=1 b=2 c=3 d=4: {a,b,c} and {b,c,d} share 2+3 of 1+2+3+4: one half. Over 128 draws the standard error is 0.044.
    weights = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    draws = near._draws([("a", "b", "c"), ("b", "c", "d")], weights)
    assert abs(np.mean(draws[0] == draws[1]) - 0.5) < 4 * 0.044
    assert near._similarity(("a", "b", "c"), ("b", "c", "d"), weights) == 0.5


def test_the_conversation_is_compared_not_its_last_message():
    def chat(document: str) -> Row:
        return Row("r", "Classify this.", "1", messages=(Message("system", document), Message("user", "Classify this.")))

    assert find_leaks([("t", chat("a dog"))], [("v", chat("a cat"))]) == []


def test_near_duplicates_are_warnings_with_the_places_of_both(tmp_path):
    for name, prompt in (
        ("train", "What was the operating margin of Atlas in Q3 2025?"),
        ("val", "What was the operatng margin of Atlas in Q3 2025?"),
    ):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"id": "{name}", "prompt": "{prompt}", "reference_answer": "1%"}}\n')
    report = validate_files({split: tmp_path / f"{split}.jsonl" for split in ("train", "val")})
    assert report.faults == ()
    told = [str(warning) for warning in report.warnings if "val.jsonl" in warning.where]
    assert told == [
        f"{tmp_path}/val.jsonl:1: 'val' has the same words as training's {tmp_path}/train.jsonl:1 (take one out if they ask the same)"
    ]
    assert [(leak.kind, leak.row_id) for leak in report.leaks] == [("near", "val")]
