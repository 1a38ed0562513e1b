"""Releases: what is on trial, everything that was decided of it, and where sessions are sent by that.

The newest event of a release says where it stands, and nothing else does: whoever decides writes an event, and whoever acts reads it
back. An event is written only if the newest one is the one that its writer decided on, so of two who decide at once one is refused.
Releases take turns, across tenants too: they are few, and a reader who knows the newest event's number knows that none came before it.

A policy that a newer version wrote may have rules that this one does not know. Lists, routes and a rollback go by what is known of it, and
tell; whoever would move the release by its policy is refused.
"""

from __future__ import annotations

import datetime as dt
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa
import structlog

from agent_rft.contracts.agents import Route
from agent_rft.contracts.errors import Fault, FaultsFound, UserError
from agent_rft.contracts.releases import OPEN_STAGES, Act, Event, Policy, Release, Stage
from observability.book import Book
from observability.dossier import NotThere
from observability.halves import release_event_halves, release_halves
from observability.outbox import put
from observability.records import Values
from observability.registry import agents_in
from observability.release_tables import release_events, releases
from observability.store import Store, take_turns
from observability.texts import storable

SERVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}")
ON_TRIAL = ("shadow", "canary")
"""Stages in which the candidate is given something to do."""
TURNS = "releases"
"""What all who write events queue on."""
log = structlog.get_logger(__name__)


class Stale(UserError):
    """Something else happened to the release meanwhile."""


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of a release, before it has."""

    act: Act
    stage: Stage
    share: float = 0.0
    held: bool = False
    cut: bool = False
    why: str
    figures: dict[str, Any] = {}


class Standing(NamedTuple):
    """Where a release stands: all that routing needs to know of it."""

    release: int
    tenant: str
    service: str
    candidate: str
    live: str
    event: int
    stage: Stage
    share: float
    cut: bool
    policy: Policy


# --- reading --------------------------------------------------------------------------------------------------------------


def current(store: Store, tenant: str | None = None) -> list[tuple[Release, Event]]:
    """Of each service what is on trial, what is live, and the newest that was rolled back; in the order in which they were made."""
    with store.reading() as connection:
        every = _with_newest(connection, _of(tenant))
    newest = {(release.tenant, release.service): release.id for release, _ in every}
    return [
        (release, event)
        for release, event in every
        if event.stage in (*OPEN_STAGES, "full") or (event.stage == "rolled_back" and newest[release.tenant, release.service] == release.id)
    ]


def watched(store: Store) -> list[tuple[Release, Event]]:
    """Those that figures may still move, of all tenants: on trial, or live."""
    with store.reading() as connection:
        return _with_newest(connection, (release_events.c.stage.in_((*OPEN_STAGES, "full")),))


def events(store: Store, tenant: str, release_id: int) -> list[Event]:
    """Oldest first."""
    with store.reading() as connection:
        return events_in(connection, _as_far_as_known(connection, tenant, release_id))


def release_of(store: Store, tenant: str, release_id: int) -> Release:
    """With its whole policy, or refused."""
    with store.reading() as connection:
        return release_of_id(connection, tenant, release_id)


def release_of_id(connection: sa.Connection, tenant: str, release_id: int) -> Release:
    return _release(_row_of(connection, tenant, release_id))


def _as_far_as_known(connection: sa.Connection, tenant: str, release_id: int) -> Release:
    return _release(_row_of(connection, tenant, release_id), _policy_as_far_as_known)


def _row_of(connection: sa.Connection, tenant: str, release_id: int) -> Values:
    row = connection.execute(sa.select(releases).where(releases.c.id == release_id, releases.c.tenant == tenant)).mappings().first()
    if row is None:
        raise NotThere(f"there is no release {release_id}", "`rft release status` and GET /v1/releases show those that are there")
    return dict(row)


def events_in(connection: sa.Connection, release: Release) -> list[Event]:
    select = sa.select(release_events).where(release_events.c.release == release.id).order_by(release_events.c.id)
    return [_event(dict(row)) for row in connection.execute(select).mappings()]


def live_agent(store: Store, tenant: str, service: str) -> str:
    """The id of the agent that answers for the service; empty where none does yet."""
    return next((route.live for route in routes(store, tenant) if route.service == service), "")


# --- where sessions are sent ---------------------------------------------------------------------------------------------------


def newest_event(store: Store) -> int:
    """Of all tenants' releases. While it is the same, so are the routes."""
    with store.reading() as connection:
        return connection.scalar(sa.select(sa.func.max(release_events.c.id))) or 0


def standings(store: Store, tenant: str | None = None) -> list[Standing]:
    """Of all releases that still say something of where sessions go, oldest first."""
    with store.reading() as connection:
        return _standings(connection, (*_of(tenant), release_events.c.stage != "superseded"))


def routes(store: Store, tenant: str | None = None) -> list[Route]:
    return routes_of(standings(store, tenant))


def routes_of(standing: Iterable[Standing], withdrawn: Mapping[int, bool] | None = None) -> list[Route]:
    """Pure. `withdrawn`: releases whose rollback nobody could write down yet, and whether what they still say is cut."""
    by_service: defaultdict[tuple[str, str], list[Standing]] = defaultdict(list)
    unheld = set[tuple[str, str, str]]()  # agents that are live no more, and what is held against them with them
    for one in standing:
        cut = (withdrawn or {}).get(one.release)
        if cut is None and (one.tenant, one.service, one.live) in unheld:
            cut = False
        of_service = by_service[one.tenant, one.service]
        if cut is None or one.stage == "rolled_back":
            of_service.append(one)
            continue
        if one.stage == "full":  # what it was held against answers again
            unheld.add((one.tenant, one.service, one.candidate))
            of_service += [one._replace(candidate=one.live)] if one.live else []
        of_service.append(one._replace(stage="rolled_back", share=0.0, cut=cut))
    return [route for each in by_service.values() if (route := _route(each))]


def _route(of_service: Sequence[Standing]) -> Route | None:
    """From the releases of one service, oldest first. None where nothing is live."""
    full = next((one for one in reversed(of_service) if one.stage == "full"), None)
    if full is None:
        return None
    newest = of_service[-1]
    route = Route(
        tenant=full.tenant,
        service=full.service,
        live=full.candidate,
        event=newest.event,
        cut=newest.cut,
        drain_seconds=newest.policy.drain_seconds,
        graded_share=newest.policy.graded_share,
    )
    if newest.stage == "full":  # its sessions are still counted: what is live can be taken back too
        return msgspec.structs.replace(route, candidate=newest.candidate, release=newest.release, share=1.0)
    if newest.stage not in ON_TRIAL:
        return route
    share, shadow = newest.share if newest.stage == "canary" else 0.0, newest.stage == "shadow"
    return msgspec.structs.replace(route, candidate=newest.candidate, release=newest.release, share=share, shadow=shadow)


# --- writing --------------------------------------------------------------------------------------------------------------------


def create(store: Store, by: str, tenant: str, service: str, candidate: str, live: str, policy: Policy) -> Release:
    """A release on trial, held against the agent that is live; a service's first, whose `live` is empty, waits for `first`."""
    if not SERVICE.fullmatch(service):
        raise FaultsFound("the release cannot be made:", [Fault("service", f"{service[:40]!r} is no name", "letters, digits, . _ : / -")])
    with store.writing() as connection:
        take_turns(connection, TURNS)
        book = Book(connection, [tenant])
        agents_in(connection, [(tenant, one) for one in dict.fromkeys((candidate, live)) if one])
        _refuse_what_cannot_begin(_of_service(connection, tenant, service), service, candidate, live)
        now = dt.datetime.now(dt.UTC)
        row: Values = {"tenant": tenant, "service": service, "candidate": candidate, "live": live, "by": by, "at": now}
        row["policy"] = msgspec.to_builtins(policy)
        book.enter("release", service, row, release_halves(row))
        made = connection.execute(sa.insert(releases).returning(releases.c.id), [row]).scalar_one()
        release = Release(id=made, tenant=tenant, service=service, candidate=candidate, live=live, policy=policy, by=by, at=now)
        why = f"held against {live}" if live else "the service's first: it goes to full by hand"
        _enter(connection, book, release, by, Move(act="create", stage="offline" if live else "draft", why=why))
        book.close()
    return release


def record(store: Store, by: str, tenant: str, release_id: int, move: Move, expected_event: int) -> Event:
    """Refused where the newest event is not the one that this was decided on."""

    def if_nothing_came(_: Release, told: Sequence[Event]) -> list[Move]:
        if told[-1].id != expected_event:
            what = f"release {release_id} moved on to {told[-1].stage} meanwhile (event {told[-1].id}, not {expected_event})"
            raise Stale(what, "look at it again, then decide again")
        return [move]

    return decided(store, by, tenant, release_id, if_nothing_came)


def decided(store: Store, by: str, tenant: str, release_id: int, choose: Callable[[Release, Sequence[Event]], Sequence[Move]]) -> Event:
    """What `choose` makes of a release as it stands, written before anybody else can look at it; the newest event of it."""
    with store.writing() as connection:
        take_turns(connection, TURNS)
        book = Book(connection, [tenant])
        release = _as_far_as_known(connection, tenant, release_id)
        told = events_in(connection, release)
        for move in choose(release, told):
            told.append(_enter(connection, book, release, by, move))
            _consequences(connection, book, release, by, told[-2].stage, move)
        book.close()
    return told[-1]


def _refuse_what_cannot_begin(of_service: Sequence[Standing], service: str, candidate: str, live: str) -> None:
    if busy := [one for one in of_service if one.stage in OPEN_STAGES]:
        cure = f"wait for its end, or `rft release rollback {busy[0].release}`"
        raise UserError(f"release {busy[0].release} of {service} is on trial ({busy[0].stage}), and one at a time is", cure)
    answers = next((one.candidate for one in reversed(of_service) if one.stage == "full"), "")
    if live != answers:
        raise Stale(
            f"{service} is answered by {answers or 'nobody'} and not by {live or 'nobody'}", "look at it again, then make the release"
        )
    if candidate == live:
        raise UserError(f"{candidate} is what answers for {service} already", "name another agent; `rft agent list` shows them")


def _consequences(connection: sa.Connection, book: Book, release: Release, by: str, was: Stage, move: Move) -> None:
    """What a move means for the service's other releases: one agent is live, and a rollback from there brings back the one before."""
    others = [one for one in _of_service(connection, release.tenant, release.service, superseded=True) if one.release != release.id]

    def also(one: Standing, **told: Any) -> None:
        other = _as_far_as_known(connection, release.tenant, one.release)
        _enter(connection, book, other, by, Move(**told))

    if move.stage == "full" and was != "full":
        for one in (one for one in others if one.stage == "full"):
            also(one, act="supersede", stage="superseded", why=f"release {release.id} took its place")
    if move.stage == "rolled_back" and was == "full":
        for one in (one for one in others if one.stage in OPEN_STAGES):
            also(
                one,
                act="rollback",
                stage="rolled_back",
                cut=move.cut,
                why=f"release {release.id}, which it was held against, was rolled back",
            )
        before = [one for one in others if one.stage == "superseded" and one.candidate == release.live]
        if before:
            also(before[-1], act="resume", stage="full", share=1.0, why=f"release {release.id} was rolled back")


def _enter(connection: sa.Connection, book: Book, release: Release, by: str, move: Move) -> Event:
    """With the word for those who have to be told."""
    row: Values = msgspec.structs.asdict(move) | {"tenant": release.tenant, "release": release.id, "by": by, "at": dt.datetime.now(dt.UTC)}
    row |= {"why": storable(move.why), "figures": msgspec.to_builtins(move.figures)}
    book.enter("release event", str(release.id), row, release_event_halves(row))
    row["id"] = connection.execute(sa.insert(release_events).returning(release_events.c.id), [row]).scalar_one()
    event = _event(row)
    told = {name: getattr(event, name) for name in ("act", "stage", "share", "held", "why", "by")}
    body = told | {"event": event.id, "release": release.id, "service": release.service, "at": event.at.isoformat()}
    body |= {"candidate": release.candidate, "live": release.live}
    put(connection, release.tenant, "release", f"release {release.id} of {release.service}: {move.act}, {move.stage}", body)
    return event


# --- rows -------------------------------------------------------------------------------------------------------------------------


def _newest() -> sa.ColumnElement[bool]:
    newer = release_events.alias()
    newest = sa.select(sa.func.max(newer.c.id)).where(newer.c.release == releases.c.id).scalar_subquery()
    return release_events.c.id == newest


def _of(tenant: str | None) -> tuple[sa.ColumnElement[bool], ...]:
    return () if tenant is None else (releases.c.tenant == tenant,)


def _of_service(connection: sa.Connection, tenant: str, service: str, *, superseded: bool = False) -> list[Standing]:
    mine = (releases.c.tenant == tenant, releases.c.service == service)
    return _standings(connection, mine if superseded else (*mine, release_events.c.stage != "superseded"))


def _standings(connection: sa.Connection, where: Sequence[sa.ColumnElement[bool]]) -> list[Standing]:
    columns = (releases.c.id, releases.c.tenant, releases.c.service, releases.c.candidate, releases.c.live)
    told = (release_events.c.id, release_events.c.stage, release_events.c.share, release_events.c.cut, releases.c.policy)
    select = sa.select(*columns, *told).select_from(releases).join(release_events, _newest()).where(*where).order_by(releases.c.id)
    return [Standing._make([*row[:-1], _policy_as_far_as_known(row[0], row[-1])]) for row in connection.execute(select)]


def _with_newest(connection: sa.Connection, where: Sequence[sa.ColumnElement[bool]]) -> list[tuple[Release, Event]]:
    told = [column.label(f"event_{column.name}") for column in release_events.c]
    select = sa.select(releases, *told).select_from(releases).join(release_events, _newest()).where(*where).order_by(releases.c.id)
    rows = [dict(row) for row in connection.execute(select).mappings()]
    newest = [_event({name: row[f"event_{name}"] for name in Event.__struct_fields__}) for row in rows]
    return [(_release(row, _policy_as_far_as_known), event) for row, event in zip(rows, newest, strict=True)]


def _policy(release_id: int, told: Any) -> Policy:
    try:
        return msgspec.convert(told, Policy)
    except msgspec.ValidationError as error:
        what = f"the policy of release {release_id} cannot be read: {error}"
        raise UserError(what, "a newer version wrote it: update agent-rft here; `rft release rollback` works all the same") from None


def _policy_as_far_as_known(release_id: int, told: Any) -> Policy:
    try:
        return _policy(release_id, told)
    except UserError as error:
        log.warning("policy_unreadable", release=release_id, why=error.what)
    try:
        return msgspec.convert({name: told[name] for name in Policy.__struct_fields__ if name in told}, Policy)
    except (msgspec.ValidationError, TypeError):
        return Policy()


def _release(row: Mapping[str, Any], read: Callable[[int, Any], Policy] = _policy) -> Release:
    told: dict[str, Any] = {name: row[name] for name in Release.__struct_fields__}
    told["policy"] = read(told["id"], told["policy"])
    return Release(**told)


def _event(row: Mapping[str, Any]) -> Event:
    return Event(**{name: row[name] for name in Event.__struct_fields__})
