"""The judge whose words stand in a file: which rule counts, what goes out, and which scripts are refused."""

import json

import pytest

from agent_rft.contracts.errors import FaultsFound
from agent_rft.graders.fence import fenced
from agent_rft.graders.scripted_judge import ScriptedJudge, read_script
from agent_rft.graders.spec import JudgeMessage


def asked(*rules, answer="13.4%", rubric="Grade it.", seed=0, request=None):
    judge = ScriptedJudge(read_script(json.dumps({"rules": rules, "seed": seed})))
    messages = fenced([JudgeMessage("user", rubric + " {{sample.output_text}}")], {}, {"output_text": answer})
    return judge.complete({"model": "m", "messages": messages, **(request or {})})


def verdict(said):
    return json.loads(said.body["choices"][0]["message"]["content"])


def test_the_first_rule_that_fits_counts():
    rules = [{"when": "nothing like it", "score": 0.1}, {"when": "13", "score": 0.2}, {"when": "13.4", "score": 0.3}]
    assert verdict(asked(*rules)) == {"steps": [], "result": 0.2}


@pytest.mark.parametrize(("where", "answer", "rubric", "fits"), [
    ("graded", "magic", "Grade it.", True), ("graded", "x", "magic", False),
    ("rubric", "magic", "Grade it.", False), ("rubric", "x", "magic", True),
    ("all", "magic", "Grade it.", True), ("all", "x", "magic", True), ("all", "x", "x", False),
])  # fmt: skip
def test_a_pattern_is_looked_for_where_the_rule_says(where, answer, rubric, fits):
    said = asked({"when": "magic", "in": where, "score": 1}, {"score": 0}, answer=answer, rubric=rubric)
    assert verdict(said)["result"] == float(fits)


def test_a_label_comes_with_its_steps():
    assert verdict(asked({"label": "good", "steps": [["a", "b"]]})) == {
        "steps": [{"description": "a", "conclusion": "b"}],
        "result": "good",
    }


def test_several_scores_follow_the_seed_of_the_question():
    rule = {"score": [0.1, 0.2, 0.3]}
    assert [verdict(asked(rule, request={"seed": seed}))["result"] for seed in (0, 1, 2, 3)] == [0.1, 0.2, 0.3, 0.1]
    assert verdict(asked(rule))["result"] == 0.1


def test_a_refusal_is_no_content_and_garbage_is_sent_as_it_is():
    message = asked({"refusal": "No."}).body["choices"][0]["message"]
    assert (message["content"], message["refusal"]) == (None, "No.")
    message = asked({"garbage": "{"}).body["choices"][0]["message"]
    assert (message["content"], message["refusal"]) == ("{", None)


def test_a_judge_that_came_to_its_limit_says_so():
    (choice,) = asked({"cut_off": '{"steps": [{"de'}).body["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ('{"steps": [{"de', "length")
    (choice,) = asked({"garbage": '{"steps": [{"de'}).body["choices"]
    assert choice["finish_reason"] == "stop"


def test_a_failure_has_its_status_and_may_ask_to_wait():
    said = asked({"status": 429, "retry_after": 3, "delay": 0.5})
    assert (said.status, said.retry_after, said.delay) == (429, 3, 0.5)


def test_silence_is_a_failure_and_no_score():
    said = asked({"when": "nothing like it", "score": 1})
    assert said.status == 400 and "no rule" in said.body["error"]["message"]


def test_a_rate_is_kept_and_the_same_seed_draws_the_same():
    def statuses(seed):
        judge = ScriptedJudge(read_script(json.dumps({"rules": [{"status": 503, "rate": 0.2}, {"score": 1}], "seed": seed})))
        return [judge.complete({"messages": []}).status for _ in range(1000)]

    assert statuses(5) == statuses(5) != statuses(6)
    assert 150 < statuses(5).count(503) < 250  # 200 expected, 12.6 its standard deviation


def test_words_are_counted_as_tokens():
    usage = (
        ScriptedJudge(read_script('{"rules": [{"refusal": "I will not."}]}'))
        .complete({"messages": [{"content": "two words"}]})
        .body["usage"]
    )
    assert usage == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}


@pytest.mark.parametrize("messages", [None, "x", [1], [{"role": "user"}], [{"content": None}], [{"content": [{"type": "text"}]}]])
def test_what_is_no_conversation_is_refused(messages):
    assert ScriptedJudge(read_script('{"rules": [{"score": 1}]}')).complete({"messages": messages}).status == 400


def test_as_an_endpoint_it_scores_the_sample_by_the_same_rules():
    rules = [{"when": "^magic$", "score": [0.5, 1]}, {"when": "open", "in": "rubric", "score": 1}, {"when": "^odd$", "garbage": "?"}]
    judge = ScriptedJudge(read_script(json.dumps({"rules": rules})))

    def scored(text, item=None):
        said = judge.score({"sample": {"output_text": text}, "item": item or {}, "trace_id": "t"})
        return said.status, said.body

    assert scored("magic") == (200, {"score": 0.5})
    assert scored("x", {"door": "open"}) == (200, {"score": 1.0})
    assert scored("odd") == (200, {"garbage": "?"})
    assert scored("other")[0] == judge.score({}).status == judge.score({"sample": {}}).status == 400


def test_every_fault_of_a_script_is_told_at_once_with_its_place():
    rules = [
        {"score": 1},
        {"when": "("},
        {"score": 1, "refusal": "x"},
        {"scor": 1},
        {"status": 200},
        {"score": 1, "rate": 2, "in": "graded"},
        {"score": 1, "in": "answer"},
        {"score": []},
    ]
    with pytest.raises(FaultsFound) as caught:
        read_script(json.dumps({"rules": rules, "seeds": 1, "seed": "x"}), "judge.json")
    told = str(caught.value)
    for piece in [
        "judge.json: seeds: is no key", "seed: is not a whole number", "rules[1]: has no outcome",
        "rules[1].when: is no regular expression",
        "rules[2]: has score and refusal", "rules[3]: Object contains unknown field `scor`", "rules[4].status: 200 is no failure",
        "rules[5].rate: 2 is not from 0 to 1", "rules[6]: Invalid enum value 'answer'", "rules[7].score: is empty",
    ]:  # fmt: skip
        assert piece in told
    assert "rules[0]" not in told


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"rules": 1}', "\ufeff"])
def test_what_is_no_script_is_said_in_one_line(text):
    with pytest.raises(FaultsFound, match="no script of a judge"):
        read_script(text)
