"""Cards as files for other programs: JSON lines, CSV and Parquet. Pure: cards in, bytes out, a few cards in memory at a time.

JSON lines hold the whole card and can be read back. CSV holds COLUMNS, what a spreadsheet can use. Parquet holds COLUMNS and
the whole card as JSON beside them.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

import msgspec

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.grades import Grade
from observability.otlp.export import spans_of
from observability.otlp.json_form import write_json
from observability.records import StoredCard

Cell: TypeAlias = str | int | float | bool | dt.datetime | None
ROW_GROUP = 500
"""Cards of a Parquet row group, which is written in one piece: what is in memory at a time."""
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""How a text begins that a spreadsheet would run; the last four are the wide forms of the first."""
TEXT_MARK = "'"


class Column(NamedTuple):
    name: str
    kind: type
    means: str
    value: Callable[[StoredCard], Cell]


class Export(NamedTuple):
    """One format."""

    suffix: str
    media_type: str
    write: Callable[[Iterable[StoredCard]], Iterator[bytes]]


def _newest(stored: StoredCard) -> Grade | None:
    return stored.grades[-1].grade if stored.grades else None


def _grader(stored: StoredCard) -> str | None:
    newest = _newest(stored)
    return newest and f"{newest.grader.name}@{newest.grader.version}"


def _asked(stored: StoredCard) -> str | None:
    return next((message.content for message in reversed(stored.card.rollout.opening) if message.role == "user"), None)


def _tools(stored: StoredCard) -> str:
    return ", ".join(dict.fromkeys(call.name for turn in stored.card.rollout.turns for call in turn.calls))


def _errors(stored: StoredCard) -> str:
    results = (result for turn in stored.card.rollout.turns for result in turn.results.values())
    return ", ".join(dict.fromkeys(result.error for result in results if result.error))


def _started(stored: StoredCard) -> dt.datetime | None:
    return dt.datetime.fromisoformat(stored.card.started_at).astimezone(dt.UTC) if stored.card.started_at else None


def _erased(stored: StoredCard) -> dt.datetime | None:
    return stored.erased and stored.erased.at.astimezone(dt.UTC)


COLUMNS = (
    Column("rollout_id", str, "the card's id", lambda one: one.card.rollout_id),
    Column("kind", str, "prior, train, eval, shadow or production", lambda one: one.card.kind),
    Column("tenant", str, "whose card it is", lambda one: one.card.tenant),
    Column("run_id", str, "the run it belongs to", lambda one: one.card.run_id),
    Column("step", int, "training step, empty outside training", lambda one: one.card.step),
    Column("row_id", str, "the dataset row", lambda one: one.card.row_id),
    Column("sample_index", int, "which of the group's tries at the row, from 0", lambda one: one.card.sample_index),
    Column("started_at", dt.datetime, "when the rollout started, UTC", _started),
    Column("recorded_at", dt.datetime, "when the store took it, UTC", lambda one: one.recorded_at.astimezone(dt.UTC)),
    Column("question", str, "the last message of the user before the agent spoke", _asked),
    Column("answer", str, "the agent's claim", lambda one: one.card.rollout.answer),
    Column("reference_answer", str, "the row's reference answer, as JSON", lambda one: _json(one.card.reference_answer)),
    Column("metadata", str, "the row's metadata, as JSON", lambda one: _json(one.card.metadata)),
    Column("ending", str, "how the rollout ended, empty if it did not", lambda one: one.card.rollout.ending),
    Column("reason", str, "why it ended so", lambda one: one.card.rollout.reason),
    Column("failed_part", str, "the part of the infrastructure that failed", lambda one: one.card.rollout.failed_part),
    Column("tools", str, "the tools that were called, each once", _tools),
    Column("tool_errors", str, "the errors that tools answered with, each once", _errors),
    Column("reward", float, "the newest grade, 0 to 1", lambda one: (newest := _newest(one)) and newest.reward),
    Column("passed", bool, "whether the newest grade is a pass", lambda one: (newest := _newest(one)) and newest.passed),
    Column("graded_by", str, "who gave the newest grade, NAME@VERSION", _grader),
    Column("grades", int, "how many grades it was ever given", lambda one: len(one.grades)),
    Column("advantage", float, "against its group", lambda one: one.card.advantage),
    Column("context_tokens", int, "tokens read", lambda one: one.card.cost.context_tokens),
    Column("sampled_tokens", int, "tokens written", lambda one: one.card.cost.sampled_tokens),
    Column("tool_calls", int, "calls sent out", lambda one: one.card.cost.tool_calls),
    Column("seconds", float, "from start to end", lambda one: one.card.cost.seconds),
    Column("tool_seconds", float, "of these, in tools", lambda one: one.card.cost.tool_seconds),
    Column("code", str, "version of the code", lambda one: one.card.versions.code),
    Column("checkpoint", str, "which weights spoke", lambda one: one.card.versions.checkpoint),
    Column("dataset", str, "the data set's hash", lambda one: one.card.versions.dataset),
    Column("tool_set", str, "the tool set's hash", lambda one: one.card.versions.tool_set),
    Column("seed", int, "the run's seed", lambda one: one.card.versions.seed),
    Column("erased_at", dt.datetime, "when its words were erased, UTC; empty where they stand", _erased),
)
WHOLE_CARD = Column("card", str, "the whole card, as its line of the JSON export", lambda one: card_line(one).decode())


def _json(value: object) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError:  # half a surrogate pair, which a call's arguments may hold: kept, escaped
        return json.dumps(msgspec.to_builtins(value), ensure_ascii=True, separators=(",", ":"))


# --- JSON lines -------------------------------------------------------------------------------------------------------


def card_line(stored: StoredCard) -> bytes:
    return _json(stored).encode()


def read_cards(lines: Iterable[bytes], name: str) -> Iterator[StoredCard]:
    """The cards of a file in JSON lines called `name`, each as it was exported."""
    for number, line in enumerate(lines, 1):
        try:
            yield msgspec.convert(json.loads(line), StoredCard)
        except (ValueError, RecursionError, msgspec.ValidationError) as error:
            raise UserError(f"{name}:{number}: this line is no exported card: {error}", "export the cards again") from None


def _json_lines(cards: Iterable[StoredCard]) -> Iterator[bytes]:
    yield from (card_line(stored) + b"\n" for stored in cards)


# --- CSV --------------------------------------------------------------------------------------------------------------


def _csv(cards: Iterable[StoredCard]) -> Iterator[bytes]:
    yield _csv_line([column.name for column in COLUMNS])
    yield from (_csv_line([_csv_cell(column.value(stored)) for column in COLUMNS]) for stored in cards)


def _csv_line(cells: list[Any]) -> bytes:
    line = io.StringIO()
    csv.writer(line).writerow(cells)
    return line.getvalue().encode("utf-8", "replace")


def _csv_cell(value: Cell) -> Any:
    match value:
        case bool():
            return "yes" if value else "no"
        case dt.datetime():
            return value.isoformat()
        case str():
            return guarded(value)
        case _:
            return value


def guarded(text: str) -> str:
    """The text, never a formula: what a model or a tool wrote must not run in the reviewer's spreadsheet.

    A text that has the mark of itself is given one more, so that taking one mark away always gives the text.
    """
    return TEXT_MARK + text if text.lstrip(" ").startswith((*FORMULA, TEXT_MARK)) else text


def unguarded(cell: str) -> str:
    return cell[1:] if cell.startswith(TEXT_MARK) else cell


# --- Parquet ----------------------------------------------------------------------------------------------------------


def _parquet(cards: Iterable[StoredCard]) -> Iterator[bytes]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise UserError("an export as Parquet needs pyarrow", "pip install 'agent-rft[parquet]'; or export as csv or jsonl") from None
    arrow = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), dt.datetime: pa.timestamp("us", tz="UTC")}
    columns = (*COLUMNS, WHOLE_CARD)
    schema = pa.schema([pa.field(one.name, arrow[one.kind], metadata={"means": one.means}) for one in columns])

    def pieces() -> Iterator[bytes]:
        sink = _Sink()
        with parquet.ParquetWriter(sink, schema, compression="zstd") as writer:
            for group in _in_groups(cards):
                values = {one.name: [_parquet_cell(one.value(stored)) for stored in group] for one in columns}
                writer.write_table(pa.table(values, schema=schema))
                yield sink.taken()
        yield sink.taken()

    return pieces()


def _parquet_cell(value: Cell) -> Cell:
    """Arrow keeps UTF-8, which half a surrogate pair is not."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _in_groups(cards: Iterable[StoredCard]) -> Iterator[list[StoredCard]]:
    cards = iter(cards)
    while group := [*itertools.islice(cards, ROW_GROUP)]:
        yield group


class _Sink(io.RawIOBase):
    """A file to write to whose bytes are taken away as they come; Parquet is written from front to back."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[bytes] = []
        self._length = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._pieces.append(bytes(data))
        self._length += len(self._pieces[-1])
        return len(self._pieces[-1])

    def tell(self) -> int:
        return self._length

    def taken(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


# --- OpenTelemetry ----------------------------------------------------------------------------------------------------


def _otlp(cards: Iterable[StoredCard]) -> Iterator[bytes]:
    """A trace a card, a request of OTLP's JSON a line, as the collector's file receiver reads them."""
    yield from (write_json(spans_of(stored.card, stored.grades)) + b"\n" for stored in cards)


EXPORTS = {
    "jsonl": Export(".jsonl", "application/jsonl", _json_lines),
    "csv": Export(".csv", "text/csv; charset=utf-8", _csv),
    "otlp": Export(".otlp", "application/x-ndjson", _otlp),
    "parquet": Export(".parquet", "application/vnd.apache.parquet", _parquet),
}
