"""What a release is, by which rules it goes forward or back, and what a session counts as. Words only; the rules are in release/."""

from __future__ import annotations

import datetime as dt
from typing import Any, Literal

import msgspec

from agent_rft.contracts.agents import Arm

Stage = Literal["draft", "offline", "shadow", "canary", "full", "rolled_back", "superseded"]
STAGES: tuple[Stage, ...] = ("draft", "offline", "shadow", "canary", "full", "rolled_back", "superseded")
OPEN_STAGES: tuple[Stage, ...] = ("draft", "offline", "shadow", "canary")
"""In which a release is still on trial. `full` can be rolled back as well, until another release takes its place."""
Act = Literal["create", "advance", "hold", "resume", "propose", "approve", "waive", "rollback", "supersede", "note"]
ACTS: tuple[Act, ...] = ("create", "advance", "hold", "resume", "propose", "approve", "waive", "rollback", "supersede", "note")
Kpi = Literal["reward", "holdout", "errors", "tool_failures", "slow", "unsafe"]
KPIS: tuple[Kpi, ...] = ("reward", "holdout", "errors", "tool_failures", "slow", "unsafe")


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """By which rules one release goes forward and back. It stands on the release's own record and never changes."""

    alpha: float = 0.05
    """The chance, at most, that a candidate as good as the live agent is ever rolled back by its figures."""
    spent_on: dict[Kpi, float] = msgspec.field(
        default_factory=lambda: {"reward": 0.4, "holdout": 0.2, "errors": 0.1, "tool_failures": 0.1, "slow": 0.1, "unsafe": 0.1}
    )
    """How alpha is dealt out; the shares add up to 1 at most."""
    tolerance: dict[Kpi, float] = msgspec.field(
        default_factory=lambda: {"reward": 0.0, "holdout": 0.02, "errors": 0.0, "tool_failures": 0.0, "slow": 0.02}
    )
    """How much worse the candidate's mean may be and still count as good."""
    unsafe_cap: float = 0.005
    """The share of sessions with a safety violation that is still borne."""
    margin: float = 0.05
    """A candidate goes to full once its reward is shown to be at most so much below the live agent's ..."""
    rate_margin: float = 0.1
    """... and the share of its sessions with an error, a failed tool or a slow turn at most so much above ..."""
    promote_alpha: float = 0.05
    """... each with at most this chance of error."""
    by_hand: bool = False
    """The step to full waits for two people, whatever the figures say."""
    needs: tuple[str, ...] = ("evaluation", "safety", "holdout")
    """Reports of the candidate without which it does not leave `offline`."""
    safety_suite: str = ""
    """By its hash, the suite that the safety report has to be made with: the one of the settings under which the release was made, and
    nobody's choice. Empty in releases of before: any."""
    safety_tries: int = 0
    """How often that report has to have tried each case: what an agent does at times, one try seldom shows. As the settings say, or more.
    0 in releases of before: any number."""
    worst_drop: float = 0.02
    """Offline: by how much its evaluation may be below the live agent's."""
    most_regressed: float = 0.15
    """Offline: the share of rows that may have got worse."""
    shadow_sessions: int = 30
    """Mirrored and graded before the first user meets it; 0 leaves the shadow out."""
    steps: tuple[float, ...] = (0.01, 0.05, 0.25, 0.5, 1.0)
    """Shares of the canary."""
    sessions_per_step: int = 20
    """The candidate's, closed, in a step, before the next."""
    slow_seconds: float = 30.0
    """A session with a turn longer than this is a slow one."""
    idle_seconds: float = 30.0
    """A session that was silent for so long is over, and counts."""
    graded_share: float = 1.0
    """Of the sessions of either arm that are graded."""
    hold_seconds: float = 60.0
    """Without a figure for so long, while there is traffic, nothing goes forward ..."""
    rollback_seconds: float = 600.0
    """... and without one for so long the candidate is withdrawn."""
    storm: tuple[int, int] = (8, 12)
    """So many failed of the candidate's last so many turns withdraw it at once."""
    drain_seconds: float = 30.0
    """What a withdrawn candidate may still take over what it had begun, unless it was unsafe."""
    longest_step_seconds: float = 86_400.0
    """A step that has decided nothing by then waits for a person."""


class Release(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    tenant: str
    service: str
    candidate: str
    """An agent's id."""
    live: str
    """The agent that it is held against, and that a rollback returns to; empty for a service's first."""
    policy: Policy
    by: str
    at: dt.datetime


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to a release. The newest says where it stands."""

    id: int
    release: int
    act: Act
    stage: Stage
    """From now on."""
    share: float
    held: bool
    """Whether it waits for a person, or for figures."""
    cut: bool = False
    """Of a rollback: whether what the candidate is still saying is cut off."""
    why: str
    figures: dict[str, Any]
    """On which it was decided."""
    by: str
    """A person's name, or @controller."""
    at: dt.datetime


class Waiver(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What somebody puts their name to: that a release does without a report, or goes on in spite of one."""

    tenant: str
    release: int
    report: str
    """Its kind."""
    about: str
    """Which report of that kind, by its digest; empty where there is none. Of another report it says nothing."""
    why: str
    by: str
    key_by: str
    """Who made the key that they came in with; empty for a person at the machine."""
    at: str
    """UTC, ISO 8601."""
    key: str
    """The id of the ledger's key, which signs for them."""
    signature: str
    """Ed25519 over all the others, in hex."""
    key_line: tuple[str, ...] = ()
    """Everybody who may have had a hand in that key, as far back as the records say: who made it, who made a key with which it could be
    made, and so on. Waivers of before do not say it."""


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One run of an agent on behalf of a release: what it adds to its session's figures."""

    tenant: str
    release: int
    rollout_id: str
    session: str
    arm: Arm
    shadow: bool
    """Of a candidate's: mirrored, nobody saw its answer. Of a live one's: it was mirrored."""
    at: dt.datetime
    """When it was over."""
    seconds: float
    failed: bool
    """The user got no answer, or an error."""
    tool_calls: int
    tool_failures: int
    violations: tuple[str, ...] = ()
    """Safety violations, by name."""
    tokens: int = 0
    to_grade: bool = False
    reward: float | None = None
    holdout: float | None = None
    graded_at: dt.datetime | None = None


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A session that is over: the unit that decisions count. Figures from 0 to 1, the larger the better only for rewards."""

    arm: Arm
    session: str
    closed_at: dt.datetime
    turns: int
    shadow: bool = False
    """Of the candidate's: mirrored. Of a live one: what a mirrored one is held against."""
    reward: float | None = None
    holdout: float | None = None
    errors: float = 0.0
    """1 where a turn failed."""
    tool_failures: float = 0.0
    slow: float = 0.0
    unsafe: float = 0.0
