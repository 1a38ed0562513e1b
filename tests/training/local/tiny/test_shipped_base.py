"""The model that is shipped is the one that its card tells of, is small, and copies the names of companies it never saw."""

import hashlib
import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from agent_rft.datasets.filings import METRICS, ask_one_figure
from agent_rft.datasets.research import make_world

FOLDER = Path(__file__).parents[4] / "models" / "research-tiny"


@pytest.fixture(scope="module")
def card():
    return json.loads((FOLDER / "card.json").read_text())


@pytest.fixture(scope="module")
def shipped():
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    return AutoTokenizer.from_pretrained(FOLDER), model


def say(shipped, text):
    """The model's likeliest turn."""
    tokenizer, model = shipped
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    return tokenizer.decode(model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)[0, ids.shape[1] :])


def conversation(tokenizer, *messages):
    return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)


def test_it_is_the_model_of_its_card_and_small(card):
    assert hashlib.sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest() == card["weights_sha256"]
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 8_000_000


def test_its_card_shows_a_prior_worth_training(card):
    measured = card["measured"]
    assert 0.4 <= measured["reward"] <= 0.6
    assert 6 <= measured["tool_calls"] <= 9
    assert 0.25 <= measured["sometimes"] / (measured["never"] + measured["sometimes"] + measured["always"]) <= 0.70


def test_it_first_looks_for_the_company_asked_about(shipped):
    rng = random.Random(0)
    for filing in rng.sample(make_world(), 8):
        question = ask_one_figure(filing, rng.choice(list(METRICS)), rng)
        said = say(shipped, conversation(shipped[0], {"role": "user", "content": question.prompt}))
        assert filing.company in said or filing.path.split("-10")[0] in said


def test_it_reads_a_figure_off_a_filing_it_never_saw(shipped):
    """Revenue is a metric that the teacher nearly always takes from the right line."""
    rng = random.Random(0)
    right = 0
    for filing in rng.sample(make_world(), 8):
        read = {"type": "function", "id": "1", "function": {"name": "read", "arguments": {"path": filing.path}}}
        lines = "\n".join([filing.title, *(f"{metric}: {filing.figure(metric)}" for metric in filing.order)])
        text = conversation(
            shipped[0],
            {"role": "user", "content": f"What was the revenue of {filing.company} in {filing.period}?"},
            {"role": "assistant", "content": "", "tool_calls": [read]},
            {"role": "tool", "content": lines, "tool_call_id": "1"},
        )
        tokenizer, model = shipped
        with torch.no_grad():
            logits = model(tokenizer(text, return_tensors="pt")["input_ids"]).logits[0, -1]
        figures = [tokenizer(filing.figure(metric))["input_ids"][0] for metric in METRICS]
        right += figures[int(logits[figures].argmax())] == figures[list(METRICS).index("revenue")]
    assert right >= 7
