"""What NeMo RL's loaders are given: the local engine's order, the template's own tokens, and nothing that is too long."""

from pathlib import Path

import pytest
from nemo_jobs import job_and_layout

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.rollouts import Limits
from agent_rft.contracts.rows import Row
from agent_rft.contracts.training import Algorithm
from agent_rft.datasets.rows_io import read_rows
from agent_rft.rollouts.templates import ChatTemplate
from agent_rft.training.nemo.prompts import Prompt, Prompts, check_room, training_order, validation_order
from agent_rft.training.pretrained import load_tokenizer, template_of
from agent_rft.training.schedule import rows_of_step

ROOT = Path(__file__).resolve().parents[3]
ROWS = tuple(read_rows(ROOT / "data/research/val.jsonl"))[:10]


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return template_of(load_tokenizer(str(ROOT / "models/research-tiny")), None)[0]


def algorithm(batch_size: int, epochs: int = 1, max_steps: int | None = None) -> Algorithm:
    """The tiny recipe's, but for these three."""
    shipped = job_and_layout("research_tiny_nemo")[0].algorithm
    rest = {name: getattr(shipped, name) for name in Algorithm.__struct_fields__}
    return Algorithm(**(rest | {"batch_size": batch_size, "epochs": epochs, "max_steps": max_steps}))


def ids(prompts: list[Prompt]) -> list[str]:
    return [prompt.row_id for prompt in prompts]


# --- order ------------------------------------------------------------------------------------------------------------


def test_training_sees_step_by_step_what_the_local_engine_would():
    """Ten rows in batches of five: four steps in two passes."""
    order = ids(training_order(ROWS, algorithm(5, epochs=2), seed=7))
    assert [order[i : i + 5] for i in range(0, 20, 5)] == [[row.id for row in rows_of_step(ROWS, step, 5, 7)] for step in range(4)]
    assert len(order) == 20


def test_batches_are_whole():
    """Of ten rows in batches of four each pass gives two; NeMo RL cannot train on the two rows that are left."""
    order = ids(training_order(ROWS, algorithm(4, epochs=2), seed=7))
    whole = [rows_of_step(ROWS, step, 4, 7) for step in (0, 1, 3, 4)]
    assert order == [row.id for batch in whole for row in batch]


def test_max_steps_counts_whole_batches():
    every = training_order(ROWS, algorithm(4, epochs=2), seed=7)
    assert training_order(ROWS, algorithm(4, epochs=2, max_steps=3), seed=7) == every[: 3 * 4]
    assert training_order(ROWS, algorithm(4, epochs=2, max_steps=99), seed=7) == every


def test_another_seed_is_another_order():
    assert training_order(ROWS, algorithm(5), seed=1) != training_order(ROWS, algorithm(5), seed=2)


def test_validation_takes_the_rows_as_they_are_each_try_beside_the_other():
    order = validation_order(ROWS[:2], 2)
    assert order == [Prompt(row.id, True, sample) for row in ROWS[:2] for sample in (0, 1)]
    assert not any(prompt.validating for prompt in training_order(ROWS, algorithm(5), seed=1))


# --- samples ----------------------------------------------------------------------------------------------------------


def test_a_sample_is_the_templates_opening_and_knows_its_row(template: ChatTemplate):
    order = validation_order(ROWS, 1)
    sample = Prompts(ROWS, order, template, ["agent-0"])[3]
    opening = template.opening_ids(ROWS[3].opening(), ROWS[3].tools)
    [message] = sample["message_log"]
    assert message["token_ids"].tolist() == opening
    assert (message["role"], message["content"]) == ("user", ROWS[3].prompt)
    assert sample["length"] == len(opening)
    assert (sample["idx"], sample["extra_env_info"], sample["loss_multiplier"]) == (3, order[3], 1.0)


def test_each_look_makes_a_fresh_one(template: ChatTemplate):
    """NeMo RL appends the turns to it, and looks again in the next pass."""
    prompts = Prompts(ROWS, validation_order(ROWS, 1), template, ["agent-0"])
    first = prompts[0]
    first["message_log"].append({"role": "assistant"})
    first["message_log"][0]["token_ids"][0] = -1
    again = prompts[0]
    assert len(again["message_log"]) == 1
    assert again["message_log"][0]["token_ids"][0] != -1


def test_samples_are_dealt_to_the_environments_in_turn(template: ChatTemplate):
    prompts = Prompts(ROWS, validation_order(ROWS, 1), template, ["agent-0", "agent-1", "agent-2"])
    assert len(prompts) == 10
    assert [prompts[i]["task_name"] for i in range(4)] == ["agent-0", "agent-1", "agent-2", "agent-0"]


# --- room -------------------------------------------------------------------------------------------------------------


def test_prompts_that_leave_the_model_no_room_are_named(template: ChatTemplate):
    lengths = {row.id: len(template.opening_ids(row.opening(), row.tools)) for row in ROWS}
    longest, length = max(lengths.items(), key=lambda each: each[1])
    check_room(ROWS, template, Limits(max_trajectory_tokens=length + 1))
    with pytest.raises(UserError, match=f"task.limits.max_trajectory_tokens={length}: ") as caught:
        check_room(ROWS, template, Limits(max_trajectory_tokens=length))
    assert f"{longest} ({length} tokens)" in caught.value.what
    assert "allow more tokens" in caught.value.cure


def test_of_many_the_first_are_named_and_the_rest_counted(template: ChatTemplate):
    rows = [Row(f"row-{i}", "?", 1) for i in range(8)]
    with pytest.raises(UserError, match=r"row-0 .*row-4 \(\d+ tokens\) and 3 more") as caught:
        check_room(rows, template, Limits(max_trajectory_tokens=1))
    assert "row-5" not in caught.value.what
