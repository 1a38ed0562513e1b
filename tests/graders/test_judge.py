"""Models as judges, over real HTTP against a scripted one: every verdict, every flag, and no score where there is no verdict."""

import json
import pickle
import threading
from pathlib import Path

import pytest

from agent_rft.contracts.errors import Halted, InfraError
from agent_rft.contracts.rollouts import Ending, Limits
from agent_rft.contracts.rows import Row
from agent_rft.graders.judge import LabelModelGrader, ScoreModelGrader
from agent_rft.graders.judge_server import JudgeServer, Price
from agent_rft.graders.reply_cache import Replies
from agent_rft.graders.scripted_judge import read_script
from agent_rft.graders.spec import JudgeMessage, SamplingParams
from agent_rft.graders.wire import Wire
from agent_rft.guards.infra import InfraGuard, tally_of
from agent_rft.rollouts.driver import Try, collect
from agent_rft.rollouts.in_process import ScriptedSampler
from serving.judge import running_judge

INJECTIONS = json.loads((Path(__file__).parent / "injections.json").read_text())
MESSAGES = (
    JudgeMessage("system", "Give 1 for {{item.reference_answer}}, else 0."),
    JudgeMessage("user", "Answer: {{sample.output_text}}"),
)
ITEM = {"reference_answer": "13.4%"}
RULES = [
    {"when": "^down$", "status": 503},
    {"when": "^wrong key$", "status": 401},
    {"when": "^rude$", "refusal": "I will not grade this."},
    {"when": "^prose$", "garbage": "I would say it is right."},
    {"when": "^list$", "garbage": "[1]"},
    {"when": "^word$", "garbage": '{"result": "high", "steps": []}'},
    {"when": "^true$", "garbage": '{"result": true, "steps": []}'},
    {"when": "^nan$", "garbage": '{"result": NaN, "steps": []}'},
    {"when": "^huge$", "garbage": '{"result": 1e999, "steps": []}'},
    {"when": "^empty$", "garbage": ""},
    {"when": "^bare$", "garbage": '{"result": 0.25}'},
    {"when": "^above$", "score": 7},
    {"when": "^below$", "score": -3},
    {"when": "^varies$", "score": [0.25, 0.5, 1]},
    {"when": "^label", "label": "correct"},
    {"when": "^other label", "label": "brilliant"},
    {"when": "13.4%", "score": 1, "steps": [["the answer", "it is 13.4%"]]},
    {"score": 0},
]
BROKEN = {
    "down": "model_grader_server_error",
    "wrong key": "model_grader_server_error",
    "rude": "model_grader_refusal_error",
    **dict.fromkeys(["prose", "list", "word", "true", "nan", "huge", "empty"], "model_grader_parse_error"),
}


@pytest.fixture(scope="module")
def judge():
    with running_judge(read_script(json.dumps({"rules": RULES}))) as url:
        yield url


@pytest.fixture(scope="module")
def wire():
    with Wire(budget_seconds=0.05, backoff_seconds=0.01) as wire:
        yield wire


class Recording:
    """What is posted, on its way to the wire; and answers of its own, where it has some."""

    def __init__(self, wire=None, body=b""):
        self.wire, self.body, self.seen = wire, body, []

    def post(self, url, payload, headers=None, timeout=60.0):
        self.seen.append((url, payload, dict(headers or {}), timeout))
        return self.wire.post(url, payload, headers, timeout) if self.wire else self.body


def scoring(server, **options):
    return ScoreModelGrader("quality", "judge-1", MESSAGES, server, **options)


def labelling(server, **options):
    labels = {"labels": ["correct", "partly", "wrong"], "passing_labels": ["correct"], **options}
    return LabelModelGrader("verdict", "judge-1", MESSAGES, server, **labels)


def grade(grader, answer, item=ITEM):
    return grader.grade(item, {"output_text": answer})


def replying(content, **message):
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": message.pop("finish_reason", "stop")}
    return Recording(body=json.dumps({"choices": [choice], "model": "m"}).encode())


# --- verdicts -------------------------------------------------------------------------------------------------------------


def test_the_judges_score_is_the_reward_and_its_steps_are_kept(judge, wire):
    got = grade(scoring(JudgeServer(judge, wire)), "13.4%")
    assert (got.reward, got.passed, got.errors) == (1.0, True, {})
    assert (got.parts["score"], got.parts["scores"], got.parts["spread"]) == (1.0, [1.0], 0.0)
    assert got.parts["steps"] == [[{"description": "the answer", "conclusion": "it is 13.4%"}]]
    assert (got.grader.name, len(got.grader.hash)) == ("quality", 16)
    json.dumps(got.parts, allow_nan=False)
    assert grade(scoring(JudgeServer(judge, wire)), "12%").reward == 0.0


def test_steps_may_be_missing(judge, wire):
    got = grade(scoring(JudgeServer(judge, wire)), "bare")
    assert (got.reward, got.parts["steps"]) == (0.25, [[]])


def test_a_score_is_cut_to_the_range_and_the_range_is_mapped_onto_zero_to_one(judge, wire):
    server = JudgeServer(judge, wire)
    assert [grade(scoring(server), answer).reward for answer in ("above", "below")] == [1.0, 0.0]
    ten = scoring(server, score_range=(0.0, 10.0))
    got = grade(ten, "above")  # 7 of 10
    assert (got.reward, got.passed, got.parts["score"]) == (pytest.approx(0.7), False, 7.0)
    around = scoring(server, score_range=(-5.0, 15.0))
    assert grade(around, "below").reward == pytest.approx(0.1)  # (-3 + 5) / 20
    assert grade(around, "above").reward == pytest.approx(0.6)  # (7 + 5) / 20


def test_the_pass_threshold_is_on_the_judges_own_scale(judge, wire):
    server = JudgeServer(judge, wire)
    assert grade(scoring(server, score_range=(0, 10), pass_threshold=7), "above").passed is True
    assert grade(scoring(server, score_range=(0, 10), pass_threshold=7.1), "above").passed is False


def test_several_samples_give_their_mean_and_spread(judge, wire):
    posts = Recording(wire)
    grader = scoring(JudgeServer(judge, posts), samples=3, sampling=SamplingParams(seed=30))
    got = grade(grader, "varies")  # seeds 30, 31, 32 ask for the scores 0.25, 0.5 and 1
    assert got.parts["scores"] == [0.25, 0.5, 1.0]
    assert got.reward == pytest.approx(1.75 / 3)
    # mean 7/12; deviations -4/12, -1/12, 5/12; variance (16 + 1 + 25) / 144 / 3 = 42 / 432
    assert got.parts["spread"] == pytest.approx((42 / 432) ** 0.5)
    assert sorted(payload["seed"] for _, payload, _, _ in posts.seen) == [30, 31, 32]


def test_one_sample_without_a_verdict_leaves_no_score():
    replies = iter(['{"result": 1}', "no", '{"result": 1}'])
    lock = threading.Lock()

    class Posts(Recording):
        def post(self, *args, **_):
            with lock:
                return replying(next(replies)).body

    got = grade(scoring(JudgeServer("http://j/v1", Posts()), samples=3), "x")
    assert got.reward is None and got.passed is None
    assert list(got.errors) == ["model_grader_parse_error"]
    assert "scores" not in got.parts


def test_a_passing_label_is_one_another_is_zero_and_an_unknown_one_is_no_verdict(judge, wire):
    server = JudgeServer(judge, wire)
    got = grade(labelling(server), "label")
    assert (got.reward, got.passed, got.parts["label"]) == (1.0, True, "correct")
    assert grade(labelling(server, passing_labels=["partly"]), "label").reward == 0.0
    unknown = grade(labelling(server), "other label")
    assert unknown.reward is None
    assert "'brilliant' is none of the labels: correct, partly, wrong" in unknown.errors["model_grader_parse_error"]


def test_labels_of_several_samples_give_the_share_that_passes():
    labels = iter(["correct", "wrong", "correct", "correct"])

    class Posts(Recording):
        def post(self, *args, **_):
            return replying(json.dumps({"result": next(labels)})).body

    got = grade(labelling(JudgeServer("http://j/v1", Posts()), samples=4), "x")
    assert (got.reward, got.passed, got.parts["label"]) == (0.75, True, "correct")
    assert sorted(got.parts["labels"]) == ["correct", "correct", "correct", "wrong"]
    assert got.parts["spread"] == pytest.approx((0.75 * 0.25) ** 0.5)


# --- what is asked --------------------------------------------------------------------------------------------------------


def test_the_endpoint_is_asked_for_a_verdict_by_its_schema():
    posts = replying('{"result": 1}')
    params = SamplingParams(seed=1, top_p=0.9, temperature=0.2, max_completions_tokens=50, reasoning_effort="low")
    grade(scoring(JudgeServer("http://j/v1/", posts, api_key="k", timeout_seconds=9), sampling=params), "13%")
    [(url, payload, headers, timeout)] = posts.seen
    assert (url, headers, timeout) == ("http://j/v1/chat/completions", {"Authorization": "Bearer k"}, 9)
    told = {key: payload[key] for key in ("model", "seed", "top_p", "temperature", "max_completion_tokens", "reasoning_effort")}
    assert told == {
        "model": "judge-1", "seed": 1, "top_p": 0.9, "temperature": 0.2, "max_completion_tokens": 50, "reasoning_effort": "low",
    }  # fmt: skip
    schema = payload["response_format"]["json_schema"]
    assert (payload["response_format"]["type"], schema["strict"]) == ("json_schema", True)
    assert list(schema["schema"]["properties"]) == ["steps", "result"], "a judge held to it reasons before it decides"
    assert schema["schema"]["properties"]["result"] == {"type": "number"}
    assert schema["schema"]["properties"]["steps"]["items"]["required"] == ["description", "conclusion"]
    assert [message["role"] for message in payload["messages"]] == ["system", "user"]


def test_what_is_not_set_is_not_sent_and_labels_are_the_only_results():
    posts = replying('{"result": "correct"}')
    grade(labelling(JudgeServer("http://j/v1", posts)), "13%")
    [(_, payload, headers, _)] = posts.seen
    assert set(payload) == {"model", "messages", "response_format"} and headers == {}
    assert payload["response_format"]["json_schema"]["schema"]["properties"]["result"]["enum"] == ["correct", "partly", "wrong"]


@pytest.mark.parametrize("answer", INJECTIONS)
def test_an_answer_that_gives_orders_is_graded_like_any_other(wire, answer):
    """A judge that follows whatever the rubric says. Told the same outside the fence, it obeys."""
    rules = [{"when": '(?i)give 1\\b(?! for)|always 1|"result": 1|answer above is right', "in": "rubric", "score": 1}, {"score": 0.25}]
    with running_judge(read_script(json.dumps({"rules": rules}))) as url:
        server = JudgeServer(url, wire)
        assert grade(scoring(server), answer).reward == 0.25
        if "give 1" in answer.lower():
            obeying = ScoreModelGrader("q", "judge-1", (JudgeMessage("user", "{{item.answer}}"),), server)
            assert obeying.grade({"answer": answer}, {}).reward == 1


# --- no verdict, no score --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [scoring, labelling])
@pytest.mark.parametrize(("answer", "flag"), BROKEN.items())
def test_every_failure_sets_its_flag_and_gives_no_score(judge, wire, answer, flag, make):
    if make is labelling and answer == "word":
        answer = "prose"  # a word is what a label is
    got = grade(make(JudgeServer(judge, wire)), answer)
    assert (got.reward, got.passed) == (None, None)
    details = {"model_grader_server_error_details"} if flag == "model_grader_server_error" else set()
    assert set(got.errors) == {flag} | details
    assert all(isinstance(what, str) and what for what in got.errors.values())
    json.dumps(got.errors)


def test_the_details_of_a_servers_failure_are_its_own_words(judge, wire):
    errors = grade(scoring(JudgeServer(judge, wire)), "down").errors
    assert errors["model_grader_server_error"] == f"{judge.removesuffix('/v1')} gave no answer"
    assert "answered 503: " in errors["model_grader_server_error_details"]
    assert "as the script says" in errors["model_grader_server_error_details"]


def test_a_judge_that_nobody_runs_is_a_servers_failure(wire):
    errors = grade(scoring(JudgeServer("http://127.0.0.1:9/v1", wire)), "x").errors
    assert set(errors) == {"model_grader_server_error", "model_grader_server_error_details"}


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"choices": []}', b'{"choices": [{}]}', b"\xff", b'{"choices": 1}'])
def test_an_answer_that_is_no_chat_completion_is_a_servers_failure(body):
    got = grade(scoring(JudgeServer("http://j/v1", Recording(body=body))), "x")
    assert got.reward is None and "model_grader_server_error" in got.errors


def test_a_content_filter_is_a_refusal():
    body = json.dumps({"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}]}).encode()
    assert "model_grader_refusal_error" in grade(scoring(JudgeServer("http://j/v1", Recording(body=body))), "x").errors


def test_a_reply_cut_off_in_the_middle_has_a_flag_that_says_what_to_allow():
    body = json.dumps({"choices": [{"message": {"content": '{"steps": [{"descr'}, "finish_reason": "length"}]}).encode()
    got = grade(scoring(JudgeServer("http://j/v1", Recording(body=body))), "x")
    assert (got.reward, set(got.errors)) == (None, {"model_grader_parse_error", "truncated_observation_error"})
    assert "allow more with max_completions_tokens" in got.errors["truncated_observation_error"]


def test_a_verdict_that_was_finished_before_the_limit_counts():
    body = json.dumps({"choices": [{"message": {"content": '{"steps": [], "result": 0.5}'}, "finish_reason": "length"}]}).encode()
    got = grade(scoring(JudgeServer("http://j/v1", Recording(body=body))), "x")
    assert (got.reward, got.errors) == (0.5, {})


def test_a_variable_that_the_item_lacks_is_the_datasets_fault_and_the_judge_is_not_asked():
    posts = replying('{"result": 1}')
    got = grade(scoring(JudgeServer("http://j/v1", posts)), "x", item={})
    assert got.reward is None and list(got.errors) == ["invalid_variable_error"]
    assert posts.seen == []


async def test_a_judge_that_fails_a_fifth_of_the_time_never_gives_a_zero_and_its_rate_is_seen(wire):
    """200 rollouts through the driver. Every answer is right, so that any 0 would come from a failure."""
    fails = [{"refusal": "no", "rate": 0.07}, {"garbage": "?", "rate": 0.07}, {"status": 400, "rate": 0.07}, {"score": 1}]
    row = Row(id="r", prompt="The margin?", reference_answer="13.4%")
    with running_judge(read_script(json.dumps({"seed": 11, "rules": fails}))) as url:
        sampler, grader = ScriptedSampler(lambda ask: "13.4%", batched=True), scoring(JudgeServer(url, wire))
        graded = await collect([Try(row, i, i) for i in range(200)], sampler, None, grader, Limits())
    assert {one.reward for one in graded} == {1.0, None}
    failed = [one for one in graded if one.reward is None]
    assert all(one.rollout.ending is Ending.INFRA_FAILED and one.rollout.failed_part == "grader:quality" for one in failed)
    flags = {flag for one in failed for flag in one.grade.errors}
    assert {"model_grader_refusal_error", "model_grader_parse_error", "model_grader_server_error"} <= flags
    tally = tally_of(graded)
    assert tally.calls["grader:quality"] == 200 and tally.failed["grader:quality"] == len(failed)
    assert 0.1 < tally.rate_of("grader") < 0.3  # 1 - 0.93^3 = 0.196 expected, 0.028 its standard error
    guard = InfraGuard(max_rate=0.01, window_calls=200)
    guard.note(tally)
    with pytest.raises(Halted, match=f"grader:quality failed {len(failed)} of its last 200 calls"):
        guard.check({})


# --- tokens and cost -------------------------------------------------------------------------------------------------------


def completion(content, prompt, said, cached=0):
    usage = {"prompt_tokens": prompt, "completion_tokens": said, "prompt_tokens_details": {"cached_tokens": cached}}
    return json.dumps({"choices": [{"message": {"content": content}}], "model": "judge-1-0824", "usage": usage}).encode()


def test_tokens_and_cost_of_all_samples_are_counted_and_so_are_those_of_a_failed_grade():
    server = JudgeServer("http://j/v1", Recording(body=completion('{"result": 1}', 1000, 200, 600)), prices={"judge-1": Price(2.0, 10.0)})
    parts = grade(scoring(server, samples=2), "x").parts
    assert parts["model_grader_token_usage_per_model"] == {
        "judge-1-0824": {"prompt_tokens": 2000, "total_tokens": 2400, "completion_tokens": 400, "cached_tokens": 1200}
    }
    assert parts["cost_usd"] == pytest.approx(0.008)  # 2000 * 2 / 1e6 + 400 * 10 / 1e6
    failed = JudgeServer("http://j/v1", Recording(body=completion("?", 1000, 200)), prices={"judge-1": Price(2.0, 10.0)})
    assert grade(scoring(failed), "x").parts["cost_usd"] == pytest.approx(0.004)


def test_without_a_price_there_is_no_cost():
    server = JudgeServer("http://j/v1", Recording(body=completion('{"result": 1}', 10, 2)))
    assert grade(scoring(server), "x").parts["cost_usd"] is None


# --- the cache --------------------------------------------------------------------------------------------------------------


def test_the_same_question_is_asked_once_and_another_sample_is_another_question(judge, wire):
    posts = Recording(wire)
    server = JudgeServer(judge, posts, cache=Replies())
    first = grade(scoring(server, samples=2), "13.4%")
    assert (len(posts.seen), first.parts["samples_from_cache"]) == (2, 0)
    again = grade(scoring(server, samples=2), "13.4%")
    assert (len(posts.seen), again.parts["samples_from_cache"], again.reward) == (2, 2, first.reward)
    assert again.parts["model_grader_token_usage_per_model"] == {} and again.parts["cost_usd"] == 0
    grade(scoring(server, samples=2), "13.5%")
    assert len(posts.seen) == 4, "another answer"
    grade(scoring(server, samples=2, pass_threshold=0.1), "13.4%")
    assert len(posts.seen) == 6, "another grader"


@pytest.mark.parametrize("answer", ["down", "rude", "prose"])
def test_a_failure_is_not_kept(judge, wire, answer):
    posts = Recording(wire)
    grader = scoring(JudgeServer(judge, posts, cache=Replies()))
    assert grade(grader, answer).reward is None
    assert grade(grader, answer).reward is None
    assert len(posts.seen) == 2


# --- identity ---------------------------------------------------------------------------------------------------------------


def test_the_hash_covers_everything_that_decides_and_not_where_the_judge_lives():
    server, other = JudgeServer("http://a/v1", Recording()), JudgeServer("http://b/v1", Recording(), api_key="k")
    base = scoring(server)
    assert base.ref == scoring(other).ref
    variants = [
        scoring(server, score_range=(0, 2)),
        scoring(server, samples=2),
        scoring(server, pass_threshold=0.5),
        scoring(server, sampling=SamplingParams(temperature=0)),
        ScoreModelGrader("quality", "judge-2", MESSAGES, server),
        ScoreModelGrader("quality", "judge-1", MESSAGES[1:], server),
        labelling(server),
        labelling(server, passing_labels=["partly"]),
        labelling(server, labels=["correct", "wrong"]),
    ]
    assert len({grader.ref.hash for grader in [base, *variants]}) == 1 + len(variants)


def test_it_says_that_it_waits_and_can_be_sent_to_another_process(judge):
    grader = scoring(JudgeServer(judge, Wire(), cache=Replies()))
    assert grader.waits
    copy = pickle.loads(pickle.dumps(grader))
    assert (copy.ref, grade(copy, "13.4%").reward) == (grader.ref, 1.0)


def test_many_threads_may_ask_at_once(judge, wire):
    grader, rewards = scoring(JudgeServer(judge, wire, cache=Replies())), {}

    def ask(number):
        rewards[number] = grade(grader, f"13.4% {number // 2}" if number % 2 else f"no {number // 2}").reward

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert rewards == {number: float(number % 2) for number in range(40)}


def test_whatever_the_poster_raises_as_infrastructure_is_no_score():
    class Dead:
        def post(self, *_, **__):
            raise InfraError("http://j", "closed")

    assert grade(scoring(JudgeServer("http://j/v1", Dead())), "x").errors["model_grader_server_error_details"] == "closed"
