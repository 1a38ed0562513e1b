"""The review queue: which cards a person should look at, and why.

Who writes cards must not be able to choose which are looked at. So the audit sample is drawn by a hash over each card's id and the hash
of its entry in the ledger, which holds the salt that the store drew for the card and all that was entered before: nobody knows the draw
beforehand, and whoever has the ledger can draw the same sample again (`undrawn`). The queue follows the ledger, entry by entry.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, get_args

import msgspec
import sqlalchemy as sa

from agent_rft.contracts.errors import Fault, FaultsFound, did_you_mean
from agent_rft.contracts.jobcards import Kind
from observability.access import Caller
from observability.accesses import note
from observability.chain import Finding
from observability.dossier import JUDGEMENTS, NotThere, Waiting
from observability.states import faults_of_words, none_newer
from observability.store import Store, take_turns
from observability.tables import card_states, erasures, grades, human_labels, job_cards, ledger, queue_fills, review_queue, reviews
from observability.texts import storable

AUDIT, LOW_GRADE, DISAGREEMENT, FLAG = "audit", "low_grade", "disagreement", "flag:"
URGENCY = (FLAG, DISAGREEMENT, AUDIT, LOW_GRADE)
"""Shown in this order."""
Select: TypeAlias = sa.Select[*tuple[Any, ...]]
MOST = 100_000
"""Cards that one rule may put in at once."""
AT_ONCE = 2000
"""Entries of the ledger in one look."""
WORTH = {"pass": 1.0, "fail": 0.0}
SHARES = {"production": 0.01, "eval": 0.01, "train": 0.001}
PASS = 0.5
"""A label's score from which on it says pass."""


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What goes into the queue by itself. The least that does: whoever asks for it to be filled may only have it take more."""

    shares: dict[str, float] = msgspec.field(default_factory=lambda: dict(SHARES))
    """Of each kind of card, the share that is drawn by lot."""
    at_least: int = 5
    """Drawn each time that anything came of those kinds, however little."""
    below: float = 0.5
    """A newest grade that is lower calls for a person, ..."""
    low_kinds: tuple[str, ...] = ("production", "eval")
    """... of cards of these kinds, ..."""
    most_low: int = 50
    """... the lowest so many each time: more, nobody reads."""
    apart: float = 0.5
    """A grade and a person's label that differ by so much."""


class Filled(NamedTuple):
    """How many cards were put into the queue, by the reason."""

    since: int
    until: int
    put: Mapping[str, int]


class Progress(NamedTuple):
    reason: str
    waiting: int
    done: int


class _Drawn(NamedTuple):
    draw: float
    rollout_id: str
    kind: str


class _Filling(msgspec.Struct, frozen=True):
    since: int
    until: int
    policy: Policy


class _Low(NamedTuple):
    reward: float
    rollout_id: str
    why: str


def fill_for(store: Store, caller: Caller, policy: Policy | None = None, now: dt.datetime | None = None) -> Filled:
    """By a rule that takes no less than the standing one, or who writes cards could have them left out. The rule goes into the access
    log, which the ledger covers, before anything is drawn by it."""
    policy = policy or Policy()
    _check(policy)
    if faults := [*_less(policy)]:
        raise FaultsFound("a rule may only take more cards than the standing one:", faults, exit_code=2)
    policy = msgspec.structs.replace(policy, shares=SHARES | policy.shares)
    note(store, caller, "queue filled", msgspec.json.encode(policy).decode())
    return fill(store.of(caller.tenant), caller.tenant, policy, now)


def fill(store: Store, tenant: str, policy: Policy | None = None, now: dt.datetime | None = None) -> Filled:
    """Looks at what was entered since it last did. Twice in a row does nothing, several at once do it once."""
    policy, now = policy or Policy(), now or dt.datetime.now(dt.UTC)
    _check(policy)
    with store.writing() as connection:
        take_turns(connection, f"queue {tenant}")
        since = connection.scalar(sa.select(sa.func.max(queue_fills.c.until)).where(queue_fills.c.tenant == tenant)) or 0
        until = connection.scalar(sa.select(sa.func.max(ledger.c.seq)).where(ledger.c.tenant == tenant)) or 0
        looked_at = (ledger.c.tenant == tenant, ledger.c.seq > since, ledger.c.kind.in_(("card", "grade", "label")))
        if not connection.scalar(sa.select(sa.exists().where(*looked_at))):
            return Filled(since, since, {})
        put = {AUDIT: _put(connection, tenant, AUDIT, _audit(connection, tenant, since, until, policy), until, now)}
        low, apart = list[_Low](), dict[str, str]()
        for some in _touched(connection, tenant, since, until):
            low = heapq.nsmallest(policy.most_low, {*low, *_low(connection, tenant, some, policy)})
            apart |= _apart(connection, tenant, some, policy)
        put[LOW_GRADE] = _put(connection, tenant, LOW_GRADE, {one.rollout_id: one.why for one in low}, until, now)
        put[DISAGREEMENT] = _put(connection, tenant, DISAGREEMENT, apart, until, now)
        row = {"tenant": tenant, "until": until, "since": since, "policy": msgspec.to_builtins(policy), "at": now}
        connection.execute(sa.insert(queue_fills), [row])
    return Filled(since, until, {reason: count for reason, count in put.items() if count})


def flag_for(store: Store, caller: Caller, rollout_ids: Sequence[str], name: str, why: str) -> int:
    """With a line in the access log that says by whom."""
    added = flag(store.of(caller.tenant), caller.tenant, rollout_ids, name, why)
    note(store, caller, "queue flagged", name, rollout_ids)
    return added


def flag(store: Store, tenant: str, rollout_ids: Sequence[str], name: str, why: str, now: dt.datetime | None = None) -> int:
    """What a guard found suspicious waits for a person; how many cards that is new of. A flag stays on the card."""
    faults = faults_of_words("why", why)
    if not name or not name.isprintable() or len(name) > 100:
        faults.append(Fault("name", f"{name[:40]!r} is no name", "1 to 100 characters"))
    if faults:
        raise FaultsFound("the cards cannot be flagged:", faults, exit_code=2)
    with store.writing() as connection:
        take_turns(connection, f"queue {tenant}")
        there = _in_chunks(connection, sa.select(job_cards.c.rollout_id).where(job_cards.c.tenant == tenant), rollout_ids)
        known = {row.rollout_id for row in there}
        if missing := [one for one in rollout_ids if one not in known]:
            raise NotThere(f"no card has the id {missing[0]}", "flag cards when they are recorded")
        seq = connection.scalar(sa.select(sa.func.max(ledger.c.seq)).where(ledger.c.tenant == tenant)) or 0
        return _put(connection, tenant, FLAG + name, dict.fromkeys(rollout_ids, storable(why)), seq, now or dt.datetime.now(dt.UTC))


# --- reading it -----------------------------------------------------------------------------------------------------------


def is_waiting() -> sa.ColumnElement[bool]:
    """Of a row of the queue: nobody has judged the card since, and it is not sealed."""
    of_card = [
        (table.c.rollout_id == review_queue.c.rollout_id, table.c.tenant == review_queue.c.tenant) for table in (reviews, card_states)
    ]
    judged = sa.exists().where(*of_card[0], reviews.c.verdict.in_(JUDGEMENTS), reviews.c.entry > review_queue.c.seq)
    sealed = sa.exists().where(*of_card[1], card_states.c.state == "sealed")
    return sa.and_(~judged.correlate(review_queue), ~sealed.correlate(review_queue))


def waiting(store: Store, tenant: str, limit: int = 50, reason: str | None = None) -> list[Waiting]:
    """The most urgent reasons first, of each the oldest first. A card that waits for several is there once for each."""
    urgency = sa.case(
        *((review_queue.c.reason == one, place) for place, one in enumerate(URGENCY) if one != FLAG), else_=URGENCY.index(FLAG)
    )
    select = _told().where(review_queue.c.tenant == tenant, is_waiting())
    if reason is not None:
        select = select.where(review_queue.c.reason == storable(reason))
    ordered = select.order_by(urgency, review_queue.c.at, review_queue.c.reason, review_queue.c.rollout_id).limit(limit)
    with store.reading() as connection:
        return [Waiting(**row) for row in connection.execute(ordered).mappings()]


def reasons_of(store: Store, tenant: str, rollout_id: str) -> tuple[Waiting, ...]:
    """Why a card is or was in the queue."""
    mine = (review_queue.c.tenant == tenant, review_queue.c.rollout_id == rollout_id)
    with store.reading() as connection:
        return tuple(Waiting(**row) for row in connection.execute(_told().where(*mine).order_by(review_queue.c.reason)).mappings())


def flags_of_run(store: Store, tenant: str, run_id: str) -> dict[str, list[Waiting]]:
    """What guards flagged of a run's cards, judged since or not."""
    of_run = sa.select(job_cards.c.rollout_id).where(job_cards.c.run_id == run_id, job_cards.c.tenant == tenant)
    mine = (review_queue.c.tenant == tenant, review_queue.c.reason.startswith(FLAG), review_queue.c.rollout_id.in_(of_run))
    found: dict[str, list[Waiting]] = {}
    with store.reading() as connection:
        for row in connection.execute(_told().where(*mine).order_by(review_queue.c.at, review_queue.c.reason)).mappings():
            found.setdefault(row["rollout_id"], []).append(Waiting(**row))
    return found


def progress(store: Store, tenant: str) -> list[Progress]:
    """By reason."""
    waits = sa.func.sum(sa.case((is_waiting(), 1), else_=0))
    select = sa.select(review_queue.c.reason, waits, sa.func.count()).where(review_queue.c.tenant == tenant)
    with store.reading() as connection:
        found = connection.execute(select.group_by(review_queue.c.reason).order_by(review_queue.c.reason))
        return [Progress(row[0], int(row[1]), row[2] - int(row[1])) for row in found]


def undrawn(connection: sa.Connection, tenant: str) -> Iterator[Finding]:
    """Draws every sample again, by the rules that were kept of it: cards that should be in the queue and are not. One whose words were
    erased since has left it by right. Reads the whole ledger."""
    entered = connection.scalar(sa.select(sa.func.max(ledger.c.seq)).where(ledger.c.tenant == tenant)) or 0
    looked_at = 0
    fills = sa.select(queue_fills).where(queue_fills.c.tenant == tenant).order_by(queue_fills.c.until)
    for row in connection.execute(fills).mappings().all():
        span = f"{row['since']}-{row['until']}"
        try:
            filling = msgspec.convert({name: row[name] for name in _Filling.__struct_fields__}, _Filling)
        except msgspec.ValidationError:
            yield _taken_out(tenant, span, "what it was filled with cannot be read")
            continue
        if not looked_at == filling.since < filling.until <= entered:
            yield _taken_out(tenant, span, f"it was filled up to entry {looked_at} before, and the ledger has {entered}")
        drawn = [*_audit(connection, tenant, filling.since, min(filling.until, entered), filling.policy)]
        looked_at = filling.until
        kept: Select = sa.select(review_queue.c.rollout_id).where(review_queue.c.tenant == tenant, review_queue.c.reason == AUDIT)
        gone: Select = sa.select(erasures.c.rollout_id).where(erasures.c.tenant == tenant)
        known = {one.rollout_id for one in _in_chunks(connection, kept, drawn, review_queue.c.rollout_id)}
        known |= {one.rollout_id for one in _in_chunks(connection, gone, drawn, erasures.c.rollout_id)}
        words = "it was drawn by lot for a reviewer and is not in the queue"
        yield from (_taken_out(tenant, one, words) for one in drawn if one not in known)


def _taken_out(tenant: str, subject: str, words: str) -> Finding:
    return Finding(tenant=tenant, seq=0, kind="review queue", subject=subject, what="removed", words=words)


# --- what belongs in it ---------------------------------------------------------------------------------------------------


def draw_of(tenant: str, rollout_id: str, entry_hash: str) -> float:
    """From 0 to 1, as evenly as SHA-256 is."""
    drawn = hashlib.sha256("\n".join(("audit", tenant, rollout_id, entry_hash)).encode()).digest()
    return int.from_bytes(drawn[:8]) / 2**64


def _audit(connection: sa.Connection, tenant: str, since: int, until: int, policy: Policy) -> dict[str, str]:
    """Those whose draw is below the share of their kind, and at least so many."""
    span = f"of entries {since + 1} to {until}"
    chosen, lowest = dict[str, str](), list[_Drawn]()
    for some in _draws(connection, tenant, since, until):
        eligible = [one for one in some if policy.shares.get(one.kind, 0.0) > 0]
        drawn = [one for one in eligible if one.draw < policy.shares[one.kind]]
        chosen |= {one.rollout_id: f"drawn by lot: {one.draw:.6f} is below {policy.shares[one.kind]:g}, {span}" for one in drawn}
        lowest = heapq.nsmallest(policy.at_least, [*lowest, *eligible])
    if len(chosen) < policy.at_least:
        chosen |= {
            one.rollout_id: f"drawn by lot: {one.draw:.6f} is among the {policy.at_least} lowest {span}"
            for one in lowest
            if one.rollout_id not in chosen
        }
    return chosen


def _draws(connection: sa.Connection, tenant: str, since: int, until: int) -> Iterator[list[_Drawn]]:
    """Of every card that was entered in between."""
    card = sa.and_(job_cards.c.rollout_id == ledger.c.subject, job_cards.c.tenant == ledger.c.tenant)
    select = sa.select(ledger.c.seq, ledger.c.subject, ledger.c.hash, job_cards.c.kind).join(job_cards, card)
    for low, high in _spans(since, until):
        mine = (ledger.c.tenant == tenant, ledger.c.seq > low, ledger.c.seq <= high, ledger.c.kind == "card")
        rows = connection.execute(select.where(*mine))
        yield [_Drawn(draw_of(tenant, row.subject, row.hash), row.subject, row.kind) for row in rows]


def _touched(connection: sa.Connection, tenant: str, since: int, until: int) -> Iterator[list[str]]:
    """Cards that got a grade or a label."""
    for low, high in _spans(since, until):
        mine = (ledger.c.tenant == tenant, ledger.c.seq > low, ledger.c.seq <= high, ledger.c.kind.in_(("grade", "label")))
        yield list(connection.scalars(sa.select(ledger.c.subject).where(*mine).distinct()))


def _low(connection: sa.Connection, tenant: str, rollout_ids: Sequence[str], policy: Policy) -> Iterator[_Low]:
    select = _newest_grades(tenant).where(grades.c.reward < policy.below, job_cards.c.kind.in_(policy.low_kinds))
    for row in _in_chunks(connection, select, rollout_ids):
        yield _Low(row.reward, row.rollout_id, f"{row.grader}@{row.version} gave {row.reward:g}, which is below {policy.below:g}")


def _apart(connection: sa.Connection, tenant: str, rollout_ids: Sequence[str], policy: Policy) -> dict[str, str]:
    """A withdrawn label says nothing."""
    worth = sa.func.coalesce(human_labels.c.score, sa.case(*((human_labels.c.label == word, one) for word, one in WORTH.items())))
    of_card = sa.and_(human_labels.c.rollout_id == job_cards.c.rollout_id, human_labels.c.tenant == job_cards.c.tenant)
    newest = none_newer(human_labels, same=("labeller",))
    select = _newest_grades(tenant).join(human_labels, of_card).add_columns(human_labels.c.labeller, worth.label("worth"))
    select = select.where(newest, sa.func.abs(worth - grades.c.reward) >= policy.apart)
    return {
        row.rollout_id: f"{row.grader}@{row.version} gave {row.reward:g}, {row.labeller} {row.worth:g}"
        for row in _in_chunks(connection, select, rollout_ids)
    }


def _newest_grades(tenant: str) -> Select:
    of_card = sa.and_(grades.c.rollout_id == job_cards.c.rollout_id, grades.c.tenant == job_cards.c.tenant)
    select: Select = sa.select(job_cards.c.rollout_id, grades.c.grader, grades.c.version, grades.c.reward).join(grades, of_card)
    return select.where(job_cards.c.tenant == tenant, none_newer(grades))


def _put(connection: sa.Connection, tenant: str, reason: str, why: Mapping[str, str], seq: int, now: dt.datetime) -> int:
    """One that waits still keeps its place; one that was judged since waits again, unless it is there for good: drawn, or flagged.
    How many wait that did not."""
    mine = (review_queue.c.tenant == tenant, review_queue.c.reason == reason)
    select: Select = sa.select(review_queue.c.rollout_id, is_waiting().label("waits")).where(*mine)
    waits = {row.rollout_id: bool(row.waits) for row in _in_chunks(connection, select, [*why], review_queue.c.rollout_id)}
    stays = reason == AUDIT or reason.startswith(FLAG)
    again = {rollout_id for rollout_id, still in waits.items() if not (still or stays)}
    for some in _chunks([*again]):
        connection.execute(sa.delete(review_queue).where(*mine, review_queue.c.rollout_id.in_(some)))
    fresh = [rollout_id for rollout_id in why if rollout_id not in waits or rollout_id in again]
    rows = [{"tenant": tenant, "rollout_id": one, "reason": reason, "why": why[one], "seq": seq, "at": now} for one in fresh]
    if rows:
        connection.execute(sa.insert(review_queue), rows)
    return len(rows)


def _told() -> Select:
    return sa.select(*(review_queue.c[name] for name in Waiting.__struct_fields__))


def _in_chunks(
    connection: sa.Connection, select: Select, ids: Sequence[str], column: sa.Column[str] = job_cards.c.rollout_id
) -> Iterator[sa.Row[Any]]:
    """The rows of the select whose column is one of the ids."""
    for some in _chunks(ids):
        yield from connection.execute(select.where(column.in_(some))).all()


def _chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[first : first + AT_ONCE] for first in range(0, len(ids), AT_ONCE))


def _spans(since: int, until: int) -> Iterator[tuple[int, int]]:
    return ((low, min(low + AT_ONCE, until)) for low in range(since, until, AT_ONCE))


def _less(policy: Policy) -> Iterator[Fault]:
    """Where it takes less than the standing rule. A kind that is not named keeps the share that it has."""
    standing = Policy()
    for kind, share in policy.shares.items():
        if share < standing.shares.get(kind, 0.0):
            yield Fault(f"share of {kind}", f"{share:g} is less", f"{standing.shares[kind]:g} or more")
    for name in ("at_least", "below", "most_low"):
        if getattr(policy, name) < (least := getattr(standing, name)):
            yield Fault(name, f"{getattr(policy, name):g} is less", f"{least:g} or more")
    if policy.apart > standing.apart:
        yield Fault("apart", f"{policy.apart:g} takes fewer", f"{standing.apart:g} or less")
    if left_out := [kind for kind in standing.low_kinds if kind not in policy.low_kinds]:
        yield Fault("low_kinds", f"{', '.join(left_out)} is left out", "add kinds, and take none away")


def _check(policy: Policy) -> None:
    kinds = get_args(Kind)
    named = [("shares", kind) for kind in policy.shares] + [("low_kinds", kind) for kind in policy.low_kinds]
    faults = [Fault(where, f"there is no kind {kind[:40]!r}", did_you_mean(kind[:40], kinds)) for where, kind in named if kind not in kinds]
    faults += [
        Fault(f"share of {kind}", f"{share:g} is no share", "0 to 1") for kind, share in policy.shares.items() if not 0 <= share <= 1
    ]
    faults += [Fault(name, "it is no number", "such as 0.5") for name in ("below", "apart") if not math.isfinite(getattr(policy, name))]
    least = {"at_least": policy.at_least, "most_low": policy.most_low}
    faults += [Fault(name, f"{number} cards cannot be had", f"0 to {MOST:,}") for name, number in least.items() if not 0 <= number <= MOST]
    if faults:
        raise FaultsFound("the queue cannot be filled by this rule:", faults, exit_code=2)
