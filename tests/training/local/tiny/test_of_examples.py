"""A tiny base of somebody's own examples: what counts in practice, what is one token, and a folder that the engine takes."""

import json

import pytest

from agent_rft.cli import main
from agent_rft.contracts.messages import Message, ToolCall
from agent_rft.contracts.training import Model
from agent_rft.training.local.models import load_policy
from agent_rft.training.local.tiny.of_examples import make_base_of_examples, row_of, words_of
from agent_rft.training.local.tiny.tokenizer import TURN_END, make_tokenizer

ASKED = "Wie viele Gramm sind 5 Unzen?"


def example(amount: int = 5):
    call = ToolCall("c1", "convert", {"amount": str(amount), "unit": "Unzen"})
    return (
        Message("user", ASKED.replace("5", str(amount))),
        Message("assistant", "", (call,)),
        Message("tool", f"{amount}.75 Gramm", call_id="c1"),
        Message("assistant", f"{amount}.75 Gramm"),
    )


def test_what_the_assistant_says_counts_with_the_end_of_its_turn_and_nothing_else():
    tokenizer = make_tokenizer(words_of([example()] * 3))
    ids, weights = row_of(tokenizer, example(), 1)
    call = '<tool_call>\n{"name": "convert", "arguments": {"amount": "5", "unit": "Unzen"}}\n</tool_call>'
    assert tokenizer.decode([one for one, weight in zip(ids, weights, strict=True) if weight]) == f"{call}{TURN_END}5.75 Gramm{TURN_END}"
    assert tokenizer.decode(ids).startswith(f"<|im_start|>user\n{ASKED}{TURN_END}")
    assert ids.count(tokenizer.eos_token_id) == 4  # after each turn: a token that swallowed it would end none


def test_a_word_that_stands_three_times_is_one_token_and_a_digit_always_its_own():
    known = words_of([example(), example(), example(12), (Message("user", "Selten"), Message("assistant", "Selten"))])
    assert {" Gramm", " Unzen", "Wie", "5", "7"} <= set(known) and "Selten" not in known and not any("57" in word for word in known)


def test_practice_lowers_the_loss_and_leaves_a_folder_that_the_engine_loads(tmp_path):
    losses: list[float] = []
    out = tmp_path / "mein Modell"
    make_base_of_examples(out, [example(n) for n in range(40)], 3, steps=4, on_progress=lambda progress: losses.append(progress.loss))
    assert len(losses) == 4 and losses[-1] < 0.8 * losses[0]
    policy = load_policy(Model(path=str(out)), checkpoint=None, trainable=False)  # looks at the template and the weights
    assert policy.tokenizer.decode(policy.turn_ends) == TURN_END
    assert json.loads((out / "card.json").read_text())["examples"] == 40


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read"),
        ('{"messages": [{"role": "user", "content": "?"}]}\n{', "examples.jsonl:1: the last message is the user's"),
        ('{"messages": [{"role": "user", "content": "?"}]}\n{', "examples.jsonl:2: column 2: broken JSON"),
    ],
)
def test_examples_that_cannot_be_used_are_told_of_and_nothing_is_made(tmp_path, capsys, content, told):
    file, out = tmp_path / "examples.jsonl", tmp_path / "out"
    if content:
        file.write_text(content)
    assert main(["tiny-base", "--examples", str(file), "--out", str(out)]) != 0
    assert told in capsys.readouterr().err and not out.exists()


def test_no_model_that_is_there_is_written_over_and_the_shipped_ones_name_is_not_taken_elsewhere(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").touch()
    for taken in ("models/research-tiny", str(tmp_path / "out")):
        assert main(["tiny-base", "--examples", "x.jsonl", "--out", taken]) == 2
        assert f"{taken} holds something already" in capsys.readouterr().err


def test_who_stops_it_is_told_that_nothing_is_kept(tmp_path, capsys, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("agent_rft.commands.tiny_base.make_base_of_examples", stopped)
    file = tmp_path / "examples.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}\n')
    assert main(["tiny-base", "--examples", str(file), "--out", str(tmp_path / "out")]) == 130
    said = capsys.readouterr().err
    assert "the same command begins anew" in said and "resume" not in said
