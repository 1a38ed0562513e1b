"""The evidence of a production card holds what let it happen: its release with the reports, decisions and waivers, and the approvals of
its calls. A stranger checks them with the script alone."""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import json
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from agent_rft.contracts.agents import Agent
from agent_rft.contracts.errors import UserError
from agent_rft.contracts.releases import Policy, Release, Turn
from observability import approvals, tool_results, verify_evidence
from observability.access import ROLES, Caller, person_at_the_machine
from observability.approvals import Call
from observability.book import Book
from observability.bundles import evidence_of
from observability.erasure import erase
from observability.halves import decision_halves, use_halves
from observability.ingest import insert_cards
from observability.records import RecordedCard
from observability.registry import register_agent, report
from observability.release_tables import approval_decisions, approval_uses, release_events, releases
from observability.releases import Move, events, record
from observability.roots import LedgerFiles
from observability.signing import open_keys, public_keys
from observability.store import Store, open_store
from observability.turns import add_turns
from serving.release import acts

TESTS = Path(__file__).parents[2]
make_card = runpy.run_path(str(TESTS / "observability/sample_cards.py"))["make_card"]
SEALING = runpy.run_path(str(TESTS / "observability/sample_case.py"))
TENANT, CARD, OTHER = "acme", "0198c2d4-0000-7000-8000-000000000001", "0198c2d4-0000-7000-8000-000000000002"
NOW = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
CALLS = [Call(tenant=TENANT, rollout_id=CARD, call_id=f"call-{n}", tool=tool, arguments={}) for n, tool in enumerate(("pay", "send"))]
Verdict = Callable[[bytes], tuple[int, list[str]]]


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def approver(name: str) -> Caller:
    return Caller(TENANT, name, "approver", ROLES["approver"], "")


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    url = request.getfixturevalue("postgres")() if request.param == "postgresql" else f"sqlite:///{tmp_path}/cards.db"
    store = open_store(url)
    yield store
    store.close()


@pytest.fixture
def files(store: Store, tmp_path: Path) -> LedgerFiles:
    (tmp_path / "ledger").mkdir()
    return LedgerFiles.of(store, str(tmp_path / "ledger"))


@pytest.fixture
def release(store: Store, files: LedgerFiles) -> Release:
    """On trial in spite of a safety report that failed: two people have signed for it. Another service has a release of its own."""
    base, tuned = (register_agent(store, TENANT, Agent(checkpoint=name, tool_set="t"), name) for name in ("base", "tuned"))
    report(store, TENANT, base, "safety", passed=True, figures={}, by="trainer")
    report(store, TENANT, tuned, "safety", passed=False, figures={"failed": ["secret-1"]}, by="trainer")
    for service in ("desk", "elsewhere"):
        acts.begin_first(store, "ann", TENANT, service, base, Policy())
    made = acts.begin(store, "ann", TENANT, "desk", tuned, Policy(needs=("safety",), shadow_sessions=0))
    for name in ("ann", "bob"):
        acts.waive(store, approver(name), made.id, "safety", f"{name} has looked", files)
    acts.to_canary(store, "ann", TENANT, made.id, None, files)
    return made


@pytest.fixture
def card(store: Store, release: Release) -> str:
    """Of the candidate's; of two calls of it one was approved and made, the other refused."""
    about = {"service": "desk", "arm": "candidate", "agent": release.candidate, "release": release.id}
    insert_cards(store, [RecordedCard(make_card(CARD, kind="production", tenant=TENANT, metadata=about), NOW)])
    insert_cards(store, [RecordedCard(make_card(OTHER, kind="production", tenant=TENANT, metadata={}), NOW)])
    told: dict[str, Any] = {"seconds": 1.0, "failed": False, "tool_calls": 1, "tool_failures": 0, "session": "s", "arm": "candidate"}
    told |= {"shadow": False}
    add_turns(store, [Turn(tenant=TENANT, release=release.id, rollout_id=CARD, at=NOW, **told)])
    for call, decision in zip(CALLS, ("approve", "refuse"), strict=True):
        asked = tool_results.begin(store, call, "carl", NOW, dt.timedelta(minutes=30))
        approvals.decide(store, approver("ann"), asked.approval.id, decision, f"I {decision} it", NOW)
    tool_results.begin(store, CALLS[0], "carl", NOW, dt.timedelta(minutes=30))
    return CARD


@pytest.fixture
def bundle(store: Store, files: LedgerFiles) -> Callable[[str], bytes]:
    return lambda card: evidence_of(store, files, person_at_the_machine(TENANT, "root"), "ann", "c", f"id:{card}", now()).content


@pytest.fixture
def verdict(files: LedgerFiles, tmp_path: Path) -> Verdict:
    def run(content: bytes) -> tuple[int, list[str]]:
        (tmp_path / "case.zip").write_bytes(content)
        (tmp_path / "public.json").write_bytes(public_keys(open_keys(files.keys, now().isoformat())))
        with contextlib.redirect_stdout(io.StringIO()) as said:
            code = verify_evidence.main([str(tmp_path / "case.zip"), "--key", str(tmp_path / "public.json")])
        return code, said.getvalue().splitlines()

    return run


def part_of(lines: list[str], what: str) -> list[str]:
    """What is said of one card or release."""
    begin = next(at for at, line in enumerate(lines) if line.startswith(what))
    end = next(at for at, line in enumerate(lines) if at > begin and not line.startswith("  "))
    return lines[begin:end]


def test_the_evidence_of_a_production_card_tells_what_let_it_happen(store, files, release, card, bundle, verdict):
    code, lines = verdict(bundle(card))
    assert code == 0 and lines[-1].startswith("GENUINE"), lines
    mine = part_of(lines, f"card {card}")
    assert "2 approvals, 2 approval decisions, 1 approval use" in mine[0]
    assert f"  made under release {release.id}, candidate" in mine
    assert [line.partition(" on ")[0] for line in mine if "  call " in line] == [
        "  call call-0 of pay: approve by ann", "  call call-1 of send: refuse by ann", "  call call-0 of pay: let through once"
    ]  # fmt: skip
    trial = part_of(lines, f"release {release.id} ")
    assert trial[0].startswith(f"release {release.id} (desk: {release.candidate} against {release.live}): as recorded; 1 card, ")
    told = events(store, TENANT, release.id)
    assert f"{len(told)} release events" in trial[0] and len(told) >= 4
    said = [line.partition(" on 20")[0] for line in trial[1:]]
    assert said[:2] == [f"  safety of {release.live} passed,", f"  safety of {release.candidate} FAILED,"]
    assert [one.partition(":")[0].strip() for one in said[2:]] == [event.act for event in told]
    assert sum("; signed with key" in line for line in trial) == 2
    assert not any("elsewhere" in line for line in lines), "nothing of another service"


def test_a_card_of_no_release_has_none_in_its_evidence(card, bundle, verdict):
    code, lines = verdict(bundle(OTHER))
    assert code == 0 and not any("release" in line or "approval" in line for line in lines)


def test_of_an_erased_card_the_release_and_the_decisions_are_still_told(store, release, card, bundle, verdict):
    erase(store, TENANT, [card], "dpo", "request 7")
    code, lines = verdict(bundle(card))
    assert code == 0, lines
    assert any("named by no card that still has its words" in line for line in part_of(lines, f"release {release.id} "))
    erased = [line for line in part_of(lines, f"card {card}") if "erased on" in line]
    assert [kind for kind in ("approval", "approval decision") if any(f"the words of {kind} " in line for line in erased)] == [
        "approval", "approval decision"
    ]  # fmt: skip


def test_a_bundle_from_before_releases_were_in_it_is_still_genuine(store, files, card, bundle, verdict):
    """It held what was asked of a person, and nothing of the answer."""
    made, known = SEALING["files_of"](bundle(card)), open_keys(files.keys, now().isoformat())
    kept = [
        line
        for line in made["ledger.jsonl"].splitlines(keepends=True)
        if json.loads(line)["kind"] in ("card", "credit", "grade", "approval")
    ]
    seqs = {f"{json.loads(line)['seq']:012}" for line in kept}
    old = {name: content for name, content in made.items() if not name.startswith("records/") or name.split("/")[1] in seqs}
    old |= {"ledger.jsonl": b"".join(kept), "access.jsonl": b""}
    del old["approvals.jsonl"]
    code, lines = verdict(SEALING["zip_of"](SEALING["resealed"](old, known.sign)))
    assert code == 0 and "2 approvals" in part_of(lines, f"card {card}")[0], lines


# --- what is made up ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left_out", "says"),
    [
        (("release event", "create"), "the entry after it is not the event that this release began with"),
        (("release", "desk"), "the event belongs to no release of this bundle"),
        (("access", "approve call"), "the entry after it does not say that this decision was about that call"),
        (("approval decision", "approve"), "call call-0 of pay was let through, and no approval of it is recorded before"),
    ],
)
def test_what_a_maker_leaves_out_of_the_middle_is_missed(files, card, bundle, verdict, left_out, says):
    made, known = SEALING["files_of"](bundle(card)), open_keys(files.keys, now().isoformat())
    facts = {int(name.split("/")[1]): json.loads(made[name]) for name in made if name.endswith("/facts.json")}
    kind, word = left_out
    gone = {
        entry["seq"]
        for entry in map(json.loads, made["ledger.jsonl"].splitlines())
        if entry["kind"] == kind and word in facts[entry["seq"]].values()
    }
    assert gone
    forged = {name: content for name, content in made.items() if not any(name.startswith(f"records/{seq:012}/") for seq in gone)}
    forged["ledger.jsonl"] = b"".join(
        line for line in made["ledger.jsonl"].splitlines(keepends=True) if json.loads(line)["seq"] not in gone
    )
    forged["access.jsonl"] = b"".join(
        line for line in made["access.jsonl"].splitlines(keepends=True) if json.loads(line)["entry"] not in gone
    )
    code, lines = verdict(SEALING["zip_of"](SEALING["resealed"](forged, known.sign)))
    assert code == 1 and any(says in line for line in lines), lines


def test_a_number_that_belongs_to_another_approval_is_a_fault(files, card, bundle, verdict):
    made, known = SEALING["files_of"](bundle(card)), open_keys(files.keys, now().isoformat())
    one, two = map(json.loads, made["approvals.jsonl"].splitlines())
    for said in ([one | {"number": two["number"]}, two | {"number": one["number"]}], [two | {"number": one["number"]}]):
        forged = made | {"approvals.jsonl": b"".join(json.dumps(line).encode() + b"\n" for line in said)}
        code, lines = verdict(SEALING["zip_of"](SEALING["resealed"](forged, known.sign)))
        assert code == 1 and any("FAULT" in line for line in lines)


def test_a_waiver_that_was_made_up_in_the_store_is_a_fault(store, release, card, bundle, verdict):
    """With an entry of its own: the ledger cannot tell, its signature can."""
    told = events(store, TENANT, release.id)
    real = next(event for event in told if event.act == "waive")
    made_up = {**real.figures, "waiver": {**real.figures["waiver"], "by": "eve"}}
    record(
        store,
        "eve",
        TENANT,
        release.id,
        Move(act="waive", stage=told[-1].stage, share=told[-1].share, why="", figures=made_up),
        told[-1].id,
    )
    code, lines = verdict(bundle(card))
    assert code == 1 and any("FAULT" in line and "the waiver in it: its signature is false" in line for line in lines), lines


def test_an_approval_that_was_made_up_in_the_store_is_a_fault(store, card, bundle, verdict):
    """Of the refused call, with entries of their own but without what a decision leaves in the access log."""
    with store.writing() as connection:
        book = Book(connection, [TENANT])
        said = {"tenant": TENANT, "approval": 2, "by": "eve", "at": NOW}
        connection.execute(sa.delete(approval_decisions).where(approval_decisions.c.approval == 2))
        decision = said | {"decision": "approve", "note": ""}
        book.enter("approval decision", "2", decision, decision_halves(decision))
        book.enter("approval use", "2", said, use_halves(said))
        book.close()
        connection.execute(sa.insert(approval_decisions), [decision])
        connection.execute(sa.insert(approval_uses), [said])
    with pytest.raises(UserError, match=r"approval decision 2: removed"):
        bundle(card)


def test_an_approval_that_was_used_twice_is_a_fault(store, card, bundle, verdict):
    """By who can write the database: there a key alone keeps it from being used again."""
    with store.writing() as connection:
        connection.execute(sa.text("DROP INDEX ix_approval_uses_approval"))
        book, used = Book(connection, [TENANT]), {"tenant": TENANT, "approval": 1, "by": "eve", "at": NOW}
        book.enter("approval use", "1", used, use_halves(used))
        book.close()
        connection.execute(sa.insert(approval_uses), [used])
    code, lines = verdict(bundle(card))
    faults = [line for line in part_of(lines, f"card {card}") if line.startswith("  FAULT ")]
    assert code == 1 and len(faults) == 1 and "call call-0 of pay was let through" in faults[0] and "used already" in faults[0]


@pytest.mark.parametrize(
    "change", [sa.delete(release_events), sa.update(release_events).values(why="all is well"), sa.update(releases).values(by="eve")]
)
def test_of_a_release_that_was_changed_no_evidence_is_made(store, release, card, bundle, change):
    newest = release_events.c.id == events(store, TENANT, release.id)[-1].id
    with store.writing() as connection:
        connection.execute(change.where(releases.c.id == release.id) if change.table is releases else change.where(newest))
    with pytest.raises(UserError, match="this case is not as it was recorded"):
        bundle(card)
    assert bundle(OTHER)
