"""A chat through the gateway: who answers, what is sent on, what comes back, and that every answer has its card. Both databases."""

from __future__ import annotations

import gc
import json
import time
from types import SimpleNamespace

import httpx
import msgspec
import pytest
import sqlalchemy as sa

from agent_rft.contracts.rollouts import Ending
from agent_rft.release.assignment import arm_of
from observability.cards import cards_by_id
from observability.release_tables import release_turns


@pytest.fixture
def lib(helpers) -> SimpleNamespace:
    return SimpleNamespace(**helpers)


def card_of(world, rollout_id, seconds=5.0):
    until = time.monotonic() + seconds
    while (stored := next(cards_by_id(world.store, [rollout_id], "acme"), None)) is None and time.monotonic() < until:
        time.sleep(0.02)
    return stored


def test_the_answer_is_the_upstreams_byte_for_byte(world):
    answer = world.chat()
    fake = world.live if world.live.asked else world.second
    assert answer.status_code == 200 and answer.content == json.dumps(fake.whole()).encode()
    assert answer.headers["x-rft-arm"] == "candidate", "the agent of a service's newest full release"
    sent = fake.asked[0]
    assert sent["model"] in ("model-live", "model-second") and sent["temperature"] == 0.25 and sent["max_tokens"] == 512
    assert [said["content"] for said in sent["messages"]] == ["Be brief.", "who are you?"]


def test_a_stream_is_passed_on_byte_for_byte(world):
    with httpx.stream("POST", f"{world.url}/v1/chat/completions", json={**ask(), "stream": True}, headers=world.headers()) as answer:
        body = b"".join(answer.iter_bytes())
    fake = world.live if world.live.asked else world.second
    assert body == b"".join(fake.piece(number) for number in range(5)) + b"data: [DONE]\n\n"
    assert answer.headers["content-type"] == "text/event-stream"


def ask(**more):
    return {"model": "plain", "messages": [{"role": "user", "content": "who are you?"}], **more}


def test_a_session_stays_with_its_arm_and_both_arms_are_asked(world, lib):
    """The names are held against the rule itself."""
    seen = set()
    for number in range(6):
        expected = arm_of("acme", "trial", f"s{number}", 0.5)
        answers = [world.chat("trial", headers={"x-session-id": f"s{number}"}) for _ in range(2)]
        assert {answer.headers["x-rft-arm"] for answer in answers} == {expected}
        agent = lib.CANDIDATE if expected == "candidate" else lib.LIVE
        assert {answer.headers["x-rft-agent"] for answer in answers} == {agent.id}
        assert ("candidate" in answers[0].text) == (expected == "candidate")
        seen.add(expected)
    assert seen == {"live", "candidate"}


@pytest.mark.parametrize("named", [{"user": "s1"}, {"metadata": {"session": "s1"}}])
def test_a_session_may_be_named_in_the_body_as_openais_clients_do(world, named):
    expected = arm_of("acme", "trial", "s1", 0.5)
    assert {world.chat("trial", **named).headers["x-rft-arm"] for _ in range(3)} == {expected}


def test_what_the_caller_says_wins_over_what_the_agent_brings(world):
    world.chat(
        messages=[{"role": "developer", "content": "Sing."}, {"role": "user", "content": "x"}], temperature=1.5, max_completion_tokens=9
    )
    sent = (world.live.asked or world.second.asked)[0]
    assert [said["content"] for said in sent["messages"]] == ["Sing.", "x"] and sent["temperature"] == 1.5 and "max_tokens" not in sent


def test_tools_go_through_and_their_calls_come_back_and_stand_on_the_card(world):
    call = {"id": "c1", "type": "function", "function": {"name": "search", "arguments": '{"query": "x"}'}}
    for fake in (world.live, world.second):
        fake.answer = {"content": None, "tool_calls": [call]}
    tools = [{"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}]
    answer = world.chat(tools=tools, item={"reference": "secret of graders"})
    sent = (world.live.asked or world.second.asked)[0]
    assert sent["tools"] == tools and "item" not in sent and answer.json()["choices"][0]["message"]["tool_calls"] == [call]
    card = card_of(world, answer.headers["x-request-id"]).card
    turn = card.rollout.turns[0]
    assert [(one.name, one.arguments) for one in turn.calls] == [("search", {"query": "x"})]
    assert [tool.name for tool in card.rollout.tools] == ["search"] and card.item == {"reference": "secret of graders"}


@pytest.mark.parametrize("stream", [False, True])
def test_every_answer_has_a_card_and_counts_for_its_release(world, stream):
    answer = world.chat("trial", headers={"x-session-id": "s1"}, stream=stream, item={"a": 1})
    stored = card_of(world, answer.headers["x-request-id"])
    card, arm = stored.card, arm_of("acme", "trial", "s1", 0.5)
    assert (card.kind, card.tenant, card.run_id, card.row_id) == ("production", "acme", "trial", "s1")
    assert card.metadata["arm"] == arm and card.metadata["caller"] == "ann" and card.versions.code == "c1"
    assert [message.content for message in card.rollout.opening][-1] == "who are you?" and card.rollout.ending is Ending.ANSWERED
    name = world.candidate.name if arm == "candidate" else card.rollout.answer.split()[0].rstrip("0") if stream else "live"
    said = " ".join(f"{name}{number}" for number in range(5)) + " " if stream else f"I am {name}"
    assert card.rollout.answer == said or card.rollout.answer == "I am second"
    assert card.cost.sampled_tokens == (5 if stream else 3), "counted chunks, where the upstream tells no usage"
    turn = awaited_turn(world, card.rollout_id)
    assert (turn.session, turn.arm, turn.failed, turn.shadow) == ("s1", arm, False, False)


def awaited_turn(world, rollout_id):
    """As the store has it, a moment after the answer."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        with world.store.reading() as connection:
            chosen = sa.select(release_turns).where(release_turns.c.rollout_id == rollout_id)
            if row := connection.execute(chosen).mappings().first():
                return SimpleNamespace(**row)
        time.sleep(0.02)
    raise AssertionError("no turn of it")


def test_what_is_private_is_taken_out_of_the_card_and_not_of_the_answer(world):
    for fake in (world.live, world.second):
        fake.answer = {"content": "write to jane.doe@example.com"}
    answer = world.chat()
    assert "jane.doe@example.com" in answer.text
    assert "jane.doe" not in card_of(world, answer.headers["x-request-id"]).card.rollout.answer


def test_the_models_listed_are_the_tenants_own(world, lib):
    lib.put_live(world.store, "other", "theirs")
    theirs = lib.new_key(world.store, "other").text
    until = time.monotonic() + 20
    while not world.gateway.routing.routes("other") and time.monotonic() < until:
        time.sleep(0.05)
    listed = {
        key: [model["id"] for model in httpx.get(f"{world.url}/v1/models", headers=world.headers(key)).json()["data"]]
        for key in (world.key, theirs)
    }
    assert listed == {world.key: ["plain", "trial"], theirs: ["theirs"]}
    refused = world.chat("theirs")
    assert refused.status_code == 404 and refused.json()["error"]["code"] == "model_not_found"
    assert "GET /v1/models" in refused.json()["error"]["cure"]


# --- the shadow -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mirrored(world, lib):
    """A service whose candidate is in the shadow; its turns, by arm, once both are there."""
    if world.gateway.routing.route("acme", "mirrored") is None:
        lib.put_live(world.store, "acme", "mirrored")
        lib.try_out(world.store, "acme", "mirrored", 0.0)
    until = time.monotonic() + 20
    while not getattr(world.gateway.routing.route("acme", "mirrored"), "shadow", False) and time.monotonic() < until:
        time.sleep(0.05)

    def turns(session):
        chosen = sa.select(release_turns).where(release_turns.c.session == session)
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with world.store.reading() as connection:
                if len(rows := {row["arm"]: row for row in connection.execute(chosen).mappings()}) == 2:
                    return rows
            time.sleep(0.02)
        raise AssertionError("not mirrored")

    return turns


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_is_mirrored_to_a_candidate_in_the_shadow_and_both_count_as_such(world, mirrored, stream):
    session = f"mirrored-{stream}"
    answer = world.chat("mirrored", headers={"x-session-id": session}, stream=stream, item={"reference": 1})
    assert answer.status_code == 200 and answer.headers["x-rft-arm"] == "live" and "candidate" not in answer.text
    turns = mirrored(session)
    told = {arm: (turn["shadow"], turn["failed"], turn["to_grade"]) for arm, turn in turns.items()}
    assert told == {"live": (True, False, True), "candidate": (True, False, True)}
    card = card_of(world, turns["candidate"]["rollout_id"]).card
    assert (card.kind, card.rollout.answer, card.item) == ("shadow", "I am candidate", {"reference": 1})
    (sent,) = world.candidate.asked
    assert sent["messages"][0]["content"] == "Be briefer." and "stream" not in sent and "item" not in sent


def test_a_candidate_that_fails_or_hangs_in_the_shadow_costs_the_caller_nothing(world, mirrored):
    world.candidate.status, world.candidate.wait = 400, 3
    began = time.monotonic()
    assert world.chat("mirrored", headers={"x-session-id": "mirrored-bad"}).status_code == 200
    assert time.monotonic() - began < 2.7
    assert {arm: turn["failed"] for arm, turn in mirrored("mirrored-bad").items()} == {"live": False, "candidate": True}


# --- failures ---------------------------------------------------------------------------------------------------------------


def of_candidate(before=""):
    return next(f"s{number}" for number in range(100) if arm_of("acme", "trial", f"{before}s{number}", 0.5) == "candidate")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("way", ["500", "503", "broken"])
def test_a_candidate_that_fails_is_counted_and_the_live_agent_answers(world, way, stream):
    world.candidate.status = int(way) if way.isdigit() else 200
    world.candidate.breaks_after = 0 if way == "broken" else None
    if way == "broken" and not stream:
        pytest.skip("an answer that is no stream breaks off as one that never came")
    answer = world.chat("trial", headers={"x-session-id": of_candidate()}, stream=stream)
    assert answer.status_code == 200 and answer.headers["x-rft-arm"] == "live" and "candidate" not in answer.text
    failed = failed_turns(world, of_candidate())
    assert failed and all(turn["arm"] == "candidate" for turn in failed)
    for replica in world.gateway.upstreams.for_checkpoint("weights-new").replicas:
        replica.out = False


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_only_the_candidate_refuses_is_the_candidates_failure(world, stream):
    """Such as a server that was begun without the option that tools need: it answers 400 to what the live one takes."""
    world.candidate.status = 400
    answer = world.chat("trial", headers={"x-session-id": "only-" + of_candidate("only-")}, stream=stream)
    assert answer.status_code == 200 and answer.headers["x-rft-arm"] == "live"
    failed = failed_turns(world, "only-" + of_candidate("only-"))
    assert failed and failed[0]["arm"] == "candidate"


def test_a_request_that_both_refuse_is_the_callers_fault_and_counts_for_nobody(world):
    world.candidate.status = world.live.status = world.second.status = 400
    session = "both-" + of_candidate("both-")
    assert world.chat("trial", headers={"x-session-id": session}).status_code == 400
    assert not failed_turns(world, session, seconds=0.7) and world.candidate.asked


def test_what_the_candidate_refuses_while_the_live_agent_fails_counts_for_nobody(world):
    """Whose fault it was, nobody can tell."""
    world.candidate.status, world.live.status, world.second.status = 400, 500, 500
    session = "dark-" + of_candidate("dark-")
    assert world.chat("trial", headers={"x-session-id": session}).status_code == 502
    assert not failed_turns(world, session, seconds=0.7)


def test_a_candidate_that_no_server_serves_fails_its_turns(world, lib):
    """Else the release would have no figure at all, and wait."""
    nowhere = msgspec.structs.replace(lib.CANDIDATE, checkpoint="weights-nowhere")
    lib.put_live(world.store, "acme", "unserved")
    lib.try_out(world.store, "acme", "unserved", 1.0, nowhere)
    until = time.monotonic() + 20
    while not getattr(world.gateway.routing.route("acme", "unserved"), "candidate", "") and time.monotonic() < until:
        time.sleep(0.05)
    assert world.chat("unserved", headers={"x-session-id": "nowhere-1"}).headers["x-rft-arm"] == "live"
    assert [turn["arm"] for turn in failed_turns(world, "nowhere-1")] == ["candidate"]


def failed_turns(world, session="", seconds=5.0):
    until = time.monotonic() + seconds
    chosen = sa.select(release_turns).where(release_turns.c.failed, release_turns.c.session == session if session else True)
    while time.monotonic() < until:
        with world.store.reading() as connection:
            if rows := list(connection.execute(chosen).mappings()):
                return rows
        time.sleep(0.02)
    return []


def test_a_stream_that_breaks_off_ends_with_an_error_and_its_card_says_so(world):
    for fake in (world.live, world.second):
        fake.breaks_after = 3
    answer = world.chat(stream=True)
    *pieces, last = [line for line in answer.text.split("\n\n") if line]
    assert len(pieces) == 3 and json.loads(last.removeprefix("data: "))["error"]["code"] == "upstream_failed"
    card = card_of(world, answer.headers["x-request-id"]).card
    assert card.rollout.ending is Ending.INFRA_FAILED and card.rollout.reason == "broke off in its answer"
    assert len(card.rollout.turns[0].text.split()) == 3, "what came is kept"


@pytest.mark.parametrize("said", [0, 3])
def test_what_failed_is_written_down_before_its_caller_hears_of_it_and_counted_once(world, figure, monkeypatch, said):
    for fake in (world.live, world.second):
        fake.breaks_after = said
    keep, kept = world.gateway.recorder.keep, []

    def slowly(record):
        time.sleep(0.2)
        keep(record)
        kept.append(record.rollout_id)

    monkeypatch.setattr(world.gateway.recorder, "keep", slowly)
    labels = {"tenant": "acme", "service": "plain", "arm": "candidate", "status": "502"}
    before = figure("rft_requests_total", **labels)
    answer = world.chat(stream=True)
    written = list(kept)
    assert (answer.status_code, answer.text.count("upstream_failed")) == (200 if said else 502, 1)
    until = time.monotonic() + 20
    while figure("rft_requests_total", **labels) == before and time.monotonic() < until:
        time.sleep(0.02)
    assert figure("rft_requests_total", **labels) == before + 1 and len(written) == len(kept) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("way", ["well", "broken", "500", "400"])
def test_a_request_leaves_no_garbage_that_holds_itself(world, way, stream):
    """Servers look for it seldom, and until then each would keep what it asked and was answered."""
    for fake in (world.live, world.second):
        fake.status, fake.breaks_after = (int(way), None) if way.isdigit() else (200, 2 if way == "broken" else None)
    gc.collect()
    gc.disable()
    try:
        world.chat(stream=stream)
        until = time.monotonic() + 20
        while (left := tries_in_memory()) and time.monotonic() < until:
            time.sleep(0.1)
        assert not left
    finally:
        gc.enable()
        for replica in world.gateway.upstreams.for_checkpoint("weights-live").replicas:
            replica.worked()
            replica.out = False


def tries_in_memory():
    return [type(one) for one in gc.get_objects() if type(one).__name__ == "_Try"]


@pytest.mark.parametrize("last", [(b"data: [DONE]\n\n",), (b"data: [DO", b"NE]\n", b"\n"), (b"data: [DONE]\r\n\r\n",)])
@pytest.mark.parametrize("lingers", [0.05, 30.0])
def test_a_stream_is_over_with_its_last_word_whatever_the_model_server_does_then(world, last, lingers):
    """It says more, or nothing and does not end: the caller has its answer and its card, and no part of what came after."""
    for fake in (world.live, world.second):
        fake.last, fake.lingers = last, lingers
    began = time.monotonic()
    answer = world.chat(stream=True)
    assert time.monotonic() - began < 20 and answer.text.endswith('4 "}}]}\n\n' + b"".join(last).decode())
    assert card_of(world, answer.headers["x-request-id"]).card.rollout.ending is Ending.ANSWERED
    until = time.monotonic() + 20
    while lingers > 1 and not (world.live.cut_off or world.second.cut_off) and time.monotonic() < until:
        time.sleep(0.02)
    assert world.live.cut_off + world.second.cut_off == (lingers > 1), "nobody waits for the rest"
    replicas = world.gateway.upstreams.for_checkpoint("weights-live").replicas
    while any(replica.in_flight for replica in replicas) and time.monotonic() < until:
        time.sleep(0.02)
    assert sum(replica.in_flight for replica in replicas) == sum(replica._failures for replica in replicas) == 0


def test_a_client_that_goes_away_pays_for_what_was_written(world):
    for fake in (world.live, world.second):
        fake.chunks, fake.between = 200, 0.05
    allowance = world.gateway.tenants.allowance("acme")
    spent = allowance._tokens
    with httpx.stream("POST", f"{world.url}/v1/chat/completions", json=ask(stream=True), headers=world.headers()) as answer:
        next(answer.iter_bytes())
    until = time.monotonic() + 20
    while allowance.in_flight and time.monotonic() < until:
        time.sleep(0.02)
    assert allowance._tokens > spent


def test_a_client_that_goes_away_stops_the_upstream(world):
    for fake in (world.live, world.second):
        fake.chunks, fake.between = 200, 0.05
    with httpx.stream("POST", f"{world.url}/v1/chat/completions", json=ask(stream=True), headers=world.headers()) as answer:
        next(answer.iter_bytes())
    until = time.monotonic() + 20
    while not (world.live.cut_off or world.second.cut_off) and time.monotonic() < until:
        time.sleep(0.02)
    assert world.live.cut_off + world.second.cut_off == 1
    card = card_of(world, answer.headers["x-request-id"]).card
    assert card.rollout.reason == "the client went away" and card.rollout.failed_part == "client"
