"""The tables of releases and the reports they rest on, of the runs that gateways have in hand, and of what a person has to allow."""

from __future__ import annotations

import sqlalchemy as sa

from observability.tables import Instant, Json, Key, Words, metadata, recorded

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")

# --- releases: what was decided, by whom, on which figures. Rows are only added ---------------------------------------------

releases = recorded(
    "releases",
    sa.Column("service", Key, nullable=False),
    sa.Column("candidate", Key, nullable=False),  # agents, registered as artifacts
    sa.Column("live", Key, nullable=False),
    sa.Column("policy", Json, nullable=False),
    sa.Index(None, "tenant", "service", "id"),
    salted=False,
)
release_events = recorded(  # of a release the newest says where it stands
    "release_events",
    sa.Column("release", sa.BigInteger, nullable=False),
    sa.Column("act", sa.String, nullable=False),
    sa.Column("stage", sa.String, nullable=False),
    sa.Column("share", sa.Double, nullable=False),
    sa.Column("held", sa.Boolean, nullable=False),
    sa.Column("cut", sa.Boolean, nullable=False),
    sa.Column("why", Words, nullable=False),
    sa.Column("figures", Json, nullable=False),
    sa.ForeignKeyConstraint(["release"], ["releases.id"], ondelete="CASCADE"),
    sa.Index(None, "release", "id"),
    salted=False,
)

agent_reports = recorded(  # what was found out offline; of a kind the newest counts
    "agent_reports",
    sa.Column("agent", Key, nullable=False),  # registered as an artifact
    sa.Column("kind", sa.String, nullable=False),  # evaluation, holdout, safety, distribution
    sa.Column("passed", sa.Boolean, nullable=False),
    sa.Column("figures", Json, nullable=False),
    sa.Index(None, "tenant", "agent", "entry"),
    salted=False,
)

# --- what decisions are made from: derived from cards, and no record themselves ------------------------------------------

release_turns = sa.Table(
    "release_turns",
    metadata,
    sa.Column("tenant", Key, primary_key=True),
    sa.Column("rollout_id", Key, primary_key=True),
    sa.Column("release", sa.BigInteger, nullable=False),
    sa.Column("session", Key, nullable=False),
    sa.Column("arm", sa.String, nullable=False),
    sa.Column("shadow", sa.Boolean, nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("failed", sa.Boolean, nullable=False),
    sa.Column("tool_calls", sa.Integer, nullable=False),
    sa.Column("tool_failures", sa.Integer, nullable=False),
    sa.Column("violations", Json, nullable=False),
    sa.Column("tokens", sa.Integer, nullable=False),
    sa.Column("to_grade", sa.Boolean, nullable=False),
    sa.Column("graded_at", Instant),
    sa.Column("reward", sa.Double),
    sa.Column("holdout", sa.Double),
    sa.Column("counted", sa.Boolean, nullable=False),  # its session is over
    sa.Column("followed", sa.Boolean, nullable=False, server_default=sa.false()),  # its session went on: a later turn tells when it is over
    sa.Index(None, "release", "arm", "at"),
    sa.Index(None, "release", "session", "arm", "at"),
)
MAY_BE_LAST = sa.and_(release_turns.c.counted.is_(False), release_turns.c.followed.is_(False))
WAITS = sa.and_(release_turns.c.to_grade.is_(True), release_turns.c.graded_at.is_(None))
IS_FIGURE = sa.or_(release_turns.c.to_grade.is_(False), release_turns.c.reward.is_not(None))
IS_UNSAFE = sa.func.json_array_length(release_turns.c.violations) > sa.literal_column("0")
"""Turns that are looked for each second among all that there ever were. Each has an index of such turns only, and a question finds it
where it says these very words."""
for _name, _which in (("last", MAY_BE_LAST), ("waiting", WAITS), ("figures", IS_FIGURE), ("unsafe", IS_UNSAFE)):
    _by = (release_turns.c.release, release_turns.c.arm, release_turns.c.at)
    sa.Index(f"ix_release_turns_{_name}", *_by, sqlite_where=_which, postgresql_where=_which)
release_sessions = sa.Table(  # those that are over, in the order in which they were counted
    "release_sessions",
    metadata,
    sa.Column("id", NUMBER, primary_key=True),
    sa.Column("tenant", Key, nullable=False),
    sa.Column("release", sa.BigInteger, nullable=False),
    sa.Column("shadow", sa.Boolean, nullable=False),
    sa.Column("session", Key, nullable=False),
    sa.Column("arm", sa.String, nullable=False),
    sa.Column("closed_at", Instant, nullable=False),
    sa.Column("turns", sa.Integer, nullable=False),
    sa.Column("reward", sa.Double),
    sa.Column("holdout", sa.Double),
    sa.Column("errors", sa.Double, nullable=False),
    sa.Column("tool_failures", sa.Double, nullable=False),
    sa.Column("slow", sa.Double, nullable=False),
    sa.Column("unsafe", sa.Double, nullable=False),
    sa.Column("step", sa.BigInteger, nullable=False),  # the event of the release that it was counted under
    sa.Index(None, "release", "id"),
    sa.Index(None, "release", "shadow", "arm", "session", unique=True),
    sqlite_autoincrement=True,
)
release_tests = sa.Table(  # the state of the sequential tests after so many sessions
    "release_tests",
    metadata,
    sa.Column("tenant", Key, primary_key=True),
    sa.Column("release", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("until", sa.BigInteger, nullable=False),  # the newest session that is in it
    sa.Column("state", Json, nullable=False),
    sa.Column("at", Instant, nullable=False),
)

# --- runs in hand ------------------------------------------------------------------------------------------------------------

agent_runs = sa.Table(  # from being accepted until its card is durable; a gateway that finds one without an owner goes on with it
    "agent_runs",
    metadata,
    sa.Column("tenant", Key, primary_key=True),
    sa.Column("rollout_id", Key, primary_key=True),
    sa.Column("client_id", Key),  # by which its caller may ask for it again
    sa.Column("service", Key, nullable=False),
    sa.Column("session", Key, nullable=False),
    sa.Column("agent", Key, nullable=False),
    sa.Column("arm", sa.String, nullable=False),
    sa.Column("release", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String, nullable=False),  # running, parked, done
    sa.Column("request", Json, nullable=False),
    sa.Column("rollout", sa.LargeBinary, nullable=False),  # packed; as of the newest command
    sa.Column("waits_for", sa.BigInteger),  # the approval that a parked one waits for
    sa.Column("owner", sa.String, nullable=False),  # which gateway drives it; empty: none
    sa.Column("lease_until", Instant, nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("changed_at", Instant, nullable=False),
    sa.Index(None, "state", "lease_until"),
    sa.Index(None, "tenant", "client_id", unique=True),
)
leases = sa.Table(  # who of several does what only one may do
    "leases",
    metadata,
    sa.Column("name", Key, primary_key=True),
    sa.Column("owner", sa.String, nullable=False),
    sa.Column("until", Instant, nullable=False),
)

# --- tool calls that change something -----------------------------------------------------------------------------------------

approvals = recorded(  # asked for
    "approvals",
    sa.Column("rollout_id", Key, nullable=False),
    sa.Column("call_id", Key, nullable=False),
    sa.Column("tool", Key, nullable=False),
    sa.Column("arguments", Json),  # null once they are erased
    sa.Column("arguments_hash", sa.String, nullable=False),
    sa.Column("expires_at", Instant, nullable=False),
    sa.Index(None, "tenant", "id"),
    sa.Index(None, "rollout_id", "id"),
)
approval_decisions = recorded(
    "approval_decisions",
    sa.Column("approval", sa.BigInteger, nullable=False),
    sa.Column("decision", sa.String, nullable=False),  # approve, refuse
    sa.Column("note", Words, nullable=False),
    sa.ForeignKeyConstraint(["approval"], ["approvals.id"], ondelete="CASCADE"),
    sa.Index(None, "approval", unique=True),  # once and for all
)
approval_uses = recorded(  # its call was let through: once, which the key sees to
    "approval_uses",
    sa.Column("approval", sa.BigInteger, nullable=False),
    sa.ForeignKeyConstraint(["approval"], ["approvals.id"], ondelete="CASCADE"),
    sa.Index(None, "approval", unique=True),
    salted=False,
)
tool_results = sa.Table(  # so that a call that is sent again changes nothing again
    "tool_results",
    metadata,
    sa.Column("tenant", Key, primary_key=True),
    sa.Column("rollout_id", Key, primary_key=True),
    sa.Column("call_id", Key, primary_key=True),
    sa.Column("tool", Key, nullable=False),
    sa.Column("body_hash", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False),  # begun, done
    sa.Column("output", Words),
    sa.Column("error", sa.String),
    sa.Column("at", Instant, nullable=False),
    sa.Index(None, "at"),
)

# --- what people have to be told ---------------------------------------------------------------------------------------------

outbox = sa.Table(  # webhooks; sent until somebody took them
    "outbox",
    metadata,
    sa.Column("id", NUMBER, primary_key=True),
    sa.Column("tenant", Key, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("subject", Words, nullable=False),
    sa.Column("body", Json, nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("next_at", Instant, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("sent_at", Instant),
    sa.Column("trouble", Words, nullable=False),
    sa.Index(None, "sent_at", "next_at"),
    sqlite_autoincrement=True,
)
alarms = sa.Table(  # of the monitors of live traffic; of one the newest row counts
    "alarms",
    metadata,
    sa.Column("id", NUMBER, primary_key=True),
    sa.Column("tenant", Key, nullable=False),
    sa.Column("service", Key, nullable=False),
    sa.Column("monitor", Key, nullable=False),
    sa.Column("alarmed", sa.Boolean, nullable=False),
    sa.Column("why", Words, nullable=False),
    sa.Column("figures", Json, nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Index(None, "tenant", "service", "monitor", "id"),
    sqlite_autoincrement=True,
)
monitor_states = sa.Table(  # how far a monitor has read, and what it knows
    "monitor_states",
    metadata,
    sa.Column("tenant", Key, primary_key=True),
    sa.Column("service", Key, primary_key=True),
    sa.Column("monitor", Key, primary_key=True),
    sa.Column("state", Json, nullable=False),
    sa.Column("at", Instant, nullable=False),
)

__all__ = [
    "agent_reports", "agent_runs", "alarms", "approval_decisions", "approval_uses", "approvals", "leases", "metadata", "monitor_states",
    "outbox", "release_events", "release_sessions", "release_tests", "release_turns", "releases", "tool_results",
]  # fmt: skip
