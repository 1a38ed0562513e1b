"""Calls that wait for a person: asked once, decided once, used once, and of exactly one call."""

from __future__ import annotations

import datetime as dt
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
import sqlalchemy as sa

from agent_rft.contracts.errors import FaultsFound, UserError
from observability import approvals, ledger, tool_results
from observability.access import ROLES, Caller
from observability.accesses import reading
from observability.approvals import Call, Decided
from observability.dossier import NotThere
from observability.erasure import erase
from observability.ingest import insert_cards
from observability.records import RecordedCard
from observability.release_tables import approval_uses
from observability.release_tables import tool_results as table
from observability.tool_results import Begun, Denied, Done, Go, Other, Waits

NOW = dt.datetime(2026, 11, 22, 5, tzinfo=dt.UTC)
LONG = dt.timedelta(minutes=30)
PUBLISH = Call(tenant="acme", rollout_id="r1", call_id="call-1-1", tool="publish", arguments={"name": "note.md", "text": "Hello"})
ANN = Caller("acme", "ann", "approver", ROLES["approver"], "k1")


def begin(store, call=PUBLISH, now=NOW, by="bob", waits_for=LONG):
    return tool_results.begin(store, call, by, now, waits_for)


def asked(store, call=PUBLISH, now=NOW, by="bob"):
    verdict = begin(store, call, now, by)
    assert isinstance(verdict, Waits)
    return verdict.approval


def decide(store, number, decision="approve", note="", who=ANN, now=NOW):
    return approvals.decide(store, who, number, decision, note, now)


def test_a_call_waits_is_approved_and_runs_once(store):
    first = asked(store)
    assert asked(store, now=NOW + dt.timedelta(minutes=5)) == first, "asked again it is the same approval, which ends when it did"
    assert (first.by, first.arguments, first.expires_at) == ("bob", PUBLISH.arguments, NOW + LONG)
    assert approvals.state(store, "acme", first.id, NOW) == "waiting"
    assert decide(store, first.id, note="fine").state(NOW) == "approved"
    assert begin(store) == Go()
    assert approvals.state(store, "acme", first.id, NOW) == "used"
    assert begin(store) == Begun(NOW), "it runs, or nobody knows what came of it: not again"
    tool_results.finish(store, PUBLISH, "published", None)
    assert begin(store, now=NOW + dt.timedelta(days=1)) == Done("published", None)
    assert list(ledger.verify(store, "acme")) == []
    assert [(one.action, one.subject, one.by) for one in reading(store, "acme", rollout_id="r1")] == [
        ("approve call", f"approval {first.id}, publish", "ann")
    ]


def test_two_deliveries_at_once_begin_one_call(store):
    decide(store, asked(store).id)
    with ThreadPoolExecutor(8) as pool:
        verdicts = list(pool.map(lambda _: begin(store), range(8)))
    assert sorted(type(one).__name__ for one in verdicts) == ["Begun"] * 7 + ["Go"]
    with store.reading() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(approval_uses)) == 1


@pytest.mark.parametrize("change", [{"arguments": {"name": "note.md", "text": "Hello!"}}, {"tool": "send"}, {"arguments": {}}], ids=str)
def test_an_approval_is_of_the_call_to_the_letter(store, change):
    other = msgspec.structs.replace(PUBLISH, **change)
    number = asked(store).id
    told = Other(f"approval {number} is of this call with another tool or other arguments, and allows nothing else")
    assert begin(store, other) == told
    decide(store, number)
    assert begin(store, other) == told
    assert begin(store) == Go()
    assert begin(store, other) == Other("call call-1-1 of this rollout was made before, with another tool or other arguments")


@pytest.mark.parametrize("change", [{"rollout_id": "r2"}, {"call_id": "call-2-1"}, {"tenant": "beta"}], ids=str)
def test_the_same_arguments_elsewhere_are_another_call_and_ask_anew(store, change):
    first = asked(store)
    decide(store, first.id)
    assert asked(store, msgspec.structs.replace(PUBLISH, **change)).id != first.id


def test_the_order_of_keys_makes_no_other_call():
    assert msgspec.structs.replace(PUBLISH, arguments={"text": "Hello", "name": "note.md"}).hash == PUBLISH.hash


def test_refused_expired_and_reused_each_say_so(store):
    late = NOW + dt.timedelta(minutes=31)
    refused, expired, too_late, used = (msgspec.structs.replace(PUBLISH, call_id=f"call-{n}") for n in range(4))
    decide(store, asked(store, refused).id, "refuse", "not before Monday")
    assert begin(store, refused) == Denied("ann refused this call: not before Monday")
    asked(store, expired)
    assert begin(store, expired, late) == Denied("nobody decided on this call by 2026-11-22 05:30:00 UTC")
    decide(store, asked(store, too_late).id)
    why = "this call was approved by ann, but came back only after 2026-11-22 05:30:00 UTC, when that ended"
    assert begin(store, too_late, late) == Denied(why)
    decide(store, asked(store, used).id)
    assert begin(store, used) == Go()
    with store.writing() as connection:
        connection.execute(table.delete())  # what came of it is kept for so long only
    assert begin(store, used) == Denied("the approval of this call was used already, at 2026-11-22 05:00:00 UTC: it allows one call, once")


def test_who_decides_and_what_they_must_say(store):
    number = asked(store).id
    with pytest.raises(FaultsFound) as several:
        decide(store, number, "aprove", "x" * 100_000)
    assert [fault.where for fault in several.value.faults] == ["decision", "note"]
    with pytest.raises(FaultsFound, match="refused without a reason"):
        decide(store, number, "refuse", " ")
    with pytest.raises(UserError, match="asked for by your own agent"):
        decide(store, number, who=msgspec.structs.replace(ANN, name=" Bob"))
    with pytest.raises(NotThere):
        decide(store, number, who=msgspec.structs.replace(ANN, tenant="beta"))
    with pytest.raises(NotThere):
        decide(store, 2**63)
    with pytest.raises(Decided, match="expired at 2026-11-22 05:30:00 UTC"):
        decide(store, number, now=NOW + LONG)
    decide(store, number)
    with pytest.raises(Decided, match="decided already: ann said approve"):
        decide(store, number, "refuse", "no, wait")


def test_the_inbox_has_what_waits_and_the_list_all_newest_first(store):
    numbers = [asked(store, msgspec.structs.replace(PUBLISH, call_id=f"call-{n}")).id for n in range(4)]
    asked(store, msgspec.structs.replace(PUBLISH, tenant="beta"))
    decide(store, numbers[1], "refuse", "no")
    assert [one.id for one in approvals.waiting(store, "acme", NOW)] == [numbers[3], numbers[2], numbers[0]]
    assert approvals.waiting(store, "acme", NOW + LONG) == []
    assert [one.id for one in approvals.listed(store, "acme", limit=3)] == numbers[:0:-1]
    assert [one.id for one in approvals.listed(store, "acme", before=numbers[1])] == numbers[:1]
    assert [(one.decision, one.note, one.decided_by) for one in approvals.listed(store, "acme")][2] == ("refuse", "no", "ann")


def test_what_changes_something_without_needing_a_person_begins_at_once(store):
    assert begin(store, waits_for=None) == Go()
    assert begin(store, msgspec.structs.replace(PUBLISH, tenant="beta"), waits_for=None) == Go()
    assert approvals.listed(store, "acme") == []


def test_answers_are_forgotten_in_time_and_a_call_of_which_nobody_knows_never(store):
    torn = msgspec.structs.replace(PUBLISH, call_id="torn")
    for call in (PUBLISH, torn):
        assert begin(store, call, waits_for=None) == Go()
    tool_results.finish(store, PUBLISH, "published", None)
    assert tool_results.forget(store, NOW) == 0 and tool_results.forget(store, NOW + LONG) == 1
    assert begin(store, torn, waits_for=None) == Begun(NOW)


def test_erasure_takes_the_arguments_the_note_and_the_answer_and_the_proofs_stand(store, make_card):
    insert_cards(store, [RecordedCard(make_card(one, tenant="acme"), NOW) for one in ("r1", "r2")])
    number = asked(store).id
    decide(store, number, note="Eve's own words")
    other = asked(store, msgspec.structs.replace(PUBLISH, rollout_id="r2"))
    assert begin(store) == Go()
    tool_results.finish(store, PUBLISH, "Eve's answer", None)
    assert erase(store, "acme", ["r1"], "dpo", "request 7").erased == ("r1",)
    gone = approvals.one(store, "acme", number)
    assert (gone.arguments, gone.note, gone.decision, gone.arguments_hash) == (None, "", "approve", PUBLISH.hash)
    assert approvals.one(store, "acme", other.id) == other
    assert begin(store) == Done(None, None), "it ran, and is not run again because nobody remembers what it answered"
    assert list(ledger.verify(store, "acme")) == []
    late = asked(store, msgspec.structs.replace(PUBLISH, call_id="late"))
    assert erase(store, "acme", ["r1"], "dpo", "request 8").erased == ("r1",)
    with pytest.raises(Decided, match="erased"):
        decide(store, late.id)
