"""A query of the filter language as SQL over the store's tables, for SQLite and PostgreSQL alike.

What a key is asked of stands in one table, COLUMNS: a new column is one line there. The tenant is not in here: whoever asks
adds it to every select, and a query cannot name it.
"""

from __future__ import annotations

import datetime as dt
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from observability.cards import BEYOND
from observability.cursor import Cursor
from observability.dossier import JUDGEMENTS, WITHDRAWN
from observability.query import META, And, Not, Operator, Or, Prefix, Query, Term, Text, Value
from observability.queue import FLAG, PASS, is_waiting
from observability.states import STATES, has_a_row, none_newer, with_a_row
from observability.tables import Key, card_steps, change_outcomes, change_requests, grades, human_labels, job_cards, review_queue, reviews

Clause: TypeAlias = sa.ColumnElement[bool]
Expression: TypeAlias = sa.ColumnElement[Any]
FullText: TypeAlias = Callable[[Sequence[Text]], Clause]
"""True of a card in whose text all of these stand. They come together, so that the index is asked once."""


class Among(NamedTuple):
    """What a key is asked of where a card has several: the term holds when it does for one of them."""

    table: sa.Table
    values: tuple[Expression, ...]
    """As whichever of these it may be named."""
    only: tuple[Clause, ...] = ()
    """Rows that count."""
    few: bool = False
    """Most cards have none."""


Either: TypeAlias = Mapping[str, Clause]
"""What a key is asked of whose values are questions of their own. Every card has one."""


def _of_card(table: sa.Table) -> Clause:
    return sa.and_(table.c.rollout_id == job_cards.c.rollout_id, table.c.tenant == job_cards.c.tenant)


def _newest(grade: Expression) -> Expression:
    """Of the card's newest grade."""
    return sa.select(grade).where(_of_card(grades)).order_by(grades.c.entry.desc()).limit(1).correlate(job_cards).scalar_subquery()


def _unless_empty(column: sa.Column[str]) -> Expression:
    """For a column whose empty text says that there is none."""
    return sa.func.nullif(column, "", type_=column.type)


def _came_of_it() -> Expression:
    """The newest outcome of a change request."""
    mine = change_outcomes.c.request == change_requests.c.id
    newest = sa.select(change_outcomes.c.outcome).where(mine).order_by(change_outcomes.c.entry.desc()).limit(1)
    return sa.func.coalesce(newest.correlate(change_requests).scalar_subquery(), "open", type_=sa.String())


_passed = _newest(grades.c.passed)
_says_pass = sa.func.coalesce(human_labels.c.score >= PASS, human_labels.c.label == "pass")
_is_flag = sa.and_(review_queue.c.reason >= FLAG, review_queue.c.reason < FLAG + BEYOND)
_judges = reviews.c.verdict.in_(JUDGEMENTS)
_tokens = sa.cast(job_cards.c.context_tokens, sa.BigInteger) + job_cards.c.sampled_tokens

COLUMNS: dict[str, Expression | Among | Either] = {
    "id": job_cards.c.rollout_id,
    "kind": job_cards.c.kind,
    "run": job_cards.c.run_id,
    "row": job_cards.c.row_id,
    "step": job_cards.c.step,
    "sample": job_cards.c.sample_index,
    "task": job_cards.c.task_type,
    "difficulty": job_cards.c.difficulty,
    "started": job_cards.c.started_at,
    "recorded": job_cards.c.recorded_at,
    "state": STATES,
    "ending": job_cards.c.ending,
    "failed": _unless_empty(job_cards.c.failed_part),
    "tool": Among(card_steps, (card_steps.c.name,)),
    "error": Among(card_steps, (card_steps.c.error,)),
    "calls": job_cards.c.tool_calls,
    "tokens": _tokens,
    "seconds": job_cards.c.seconds,
    "tool_seconds": job_cards.c.tool_seconds,
    "grade": _newest(grades.c.reward),
    "passed": sa.case((_passed.is_(True), "yes"), (_passed.is_(False), "no")),
    "grader": Among(grades, (grades.c.grader, grades.c.grader + "@" + grades.c.version)),
    "advantage": job_cards.c.advantage,
    "review": Among(reviews, (reviews.c.verdict,), (_judges, none_newer(reviews, lambda newer: newer.c.verdict.in_(JUDGEMENTS))), few=True),
    "label": Among(
        human_labels,
        (sa.case((_says_pass, "pass"), else_="fail"),),
        (sa.func.coalesce(human_labels.c.label, "") != WITHDRAWN, none_newer(human_labels, same=("labeller",))),
        few=True,
    ),
    "queue": Among(review_queue, (review_queue.c.reason,), (is_waiting(),), few=True),
    "flag": Among(review_queue, (sa.func.substr(review_queue.c.reason, len(FLAG) + 1, type_=sa.String()),), (_is_flag,), few=True),
    "change": Among(change_requests, (change_requests.c.target, _came_of_it()), few=True),
    "checkpoint": _unless_empty(job_cards.c.checkpoint),
    "dataset": _unless_empty(job_cards.c.dataset),
    "tool_set": _unless_empty(job_cards.c.tool_set),
    "code": job_cards.c.code,
    "seed": job_cards.c.seed,
}
COMPARISONS: dict[Operator, Callable[[Any, Any], Any]] = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def newest_first(select: sa.Select[Any], limit: int, after: Cursor | None = None) -> sa.Select[Any]:
    """One page of a select from job_cards, in the order of its index read backwards."""
    place = job_cards.c.started_at, job_cards.c.rollout_id
    if after is not None:
        shown = sa.literal(after.started_at, place[0].type), sa.literal(after.rollout_id, place[1].type)
        select = select.where(sa.tuple_(*place) < sa.tuple_(*shown))
    return select.order_by(*(column.desc() for column in place)).limit(limit)


def where(query: Query, full_text: FullText) -> Clause:
    """True of the cards that the query asks for, in a select from job_cards."""
    match query:
        case And(parts):
            texts = [part for part in parts if isinstance(part, Text)]
            clauses = [where(part, full_text) for part in parts if not isinstance(part, Text)]
            return sa.and_(sa.true(), *clauses, *([full_text(texts)] if texts else []))
        case Or(parts):
            return sa.or_(*(where(part, full_text) for part in parts))
        case Not(part):
            return where(part, full_text).is_not(sa.true())  # what is not known, NULL, is not so: NOT would leave it out
        case Text():
            return full_text([query])
        case Term(key):
            asked = _metadata(key.removeprefix(META)) if key.startswith(META) else COLUMNS[key]
            if isinstance(asked, Mapping):
                return sa.or_(*(sa.true() if isinstance(value, Prefix) else asked[str(value)] for value in query.values))
            return _among(asked, query) if isinstance(asked, Among) else _holds(asked, query)


def _among(asked: Among, term: Term) -> Clause:
    one = sa.or_(*(_holds(value, term) for value in asked.values))
    return (with_a_row if asked.few else has_a_row)(asked.table, *asked.only, one)


def _holds(column: Expression, term: Term) -> Clause:
    if term.operator != ":":
        return COMPARISONS[term.operator](column, _bound(term.values[0]))
    whole = [_bound(value) for value in term.values if not isinstance(value, Prefix)]
    begins = [_begins(column, value.start) for value in term.values if isinstance(value, Prefix)]
    return sa.or_(*([column.in_(whole)] if whole else []), *begins)


def _begins(column: Expression, start: str) -> Clause:
    if not start:
        return column.is_not(None)
    if column.type is Key:  # sorted by code point, so what begins so stands together in its index
        return sa.and_(column >= start, column < start + BEYOND)
    return sa.func.substr(column, 1, len(start)) == start  # LIKE would not tell capitals from small letters on SQLite


def _bound(value: Value) -> Any:
    """Numbers as wide as they come: one too large for a column is found in no card, and is no error of the database's."""
    if isinstance(value, str | dt.datetime):
        return value
    return sa.literal(value, sa.BigInteger() if isinstance(value, int) else sa.Double())


# --- metadata ---------------------------------------------------------------------------------------------------------


class _Entry(FunctionElement[str]):
    """An entry of a JSON text as text: of a string its characters, of anything else its JSON, of null nothing."""

    type = sa.Text()
    inherit_cache = True


@compiles(_Entry, "postgresql")
def _entry_on_postgresql(element: _Entry, compiler: SQLCompiler, **how: Any) -> str:
    document, name = (compiler.process(one, **how) for one in element.clauses)
    return f"(CAST({document} AS JSON) ->> {name})"


@compiles(_Entry, "sqlite")
def _entry_on_sqlite(element: _Entry, compiler: SQLCompiler, **how: Any) -> str:
    document, name = (compiler.process(one, **how) for one in element.clauses)
    path = f"'$.\"' || {name} || '\"'"
    return (
        f"CASE json_type({document}, {path}) WHEN 'text' THEN json_extract({document}, {path}) WHEN 'null' THEN NULL"
        f" ELSE ({document} -> ({path})) END"
    )


def _metadata(name: str) -> Expression:
    """An entry of the card's metadata.

    PostgreSQL fails the whole query at one card whose JSON has a NUL or half a surrogate pair escaped in it. So a NUL becomes
    its picture, as in other columns, and an escaped surrogate its six characters; before that, escaped backslashes are
    spelled another way, so that what follows one is not taken for an escape.
    """
    document = sa.cast(job_cards.c.metadata, sa.Text)
    for escape, harmless in (("\\\\", "\\u005c"), ("\\u0000", "\\u2400"), ("\\ud", "\\u005cud")):
        document = sa.func.replace(document, escape, harmless)
    return _Entry(document, sa.literal(name, sa.String()))
