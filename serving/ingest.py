"""POST /v1/cards and POST /v1/traces: what agents and trainers send. An answer of 200 says that it is on the disk.

The tenant is that of the key. A card or a span that names another is refused by name, and spoils nothing beside it.
"""

from __future__ import annotations

import datetime as dt
import zlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from litestar import Request, Response, post
from litestar.exceptions import ClientException
from litestar.handlers import HTTPRouteHandler

from agent_rft.contracts.errors import Fault, FaultsFound, UserError
from observability.intake import Away, Intake, Outcome, Shed
from observability.otlp.json_form import answer_json, read_json
from observability.otlp.protobuf import answer_protobuf, read_protobuf, status_protobuf
from observability.records import RecordedCard
from observability.sources import Said
from serving.gate import Gate, caller_of
from serving.refusals import Refused
from serving.threads import in_daemon_thread

MOST_BODY = 16_000_000
"""Bytes of a request, as it comes and unpacked."""
MOST_CARDS = 1000
UNPACKED = 8
"""Times its size that a packed body is taken to have, until it is unpacked."""
JSON, PROTOBUF = "application/json", "application/x-protobuf"
TAGS = ["ingest"]
Asking = Request[Any, Any, Any]
T = TypeVar("T")


class Origin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who sends, and what it says of what it records. Its cards are numbered from 1."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    sample_rate: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    announced: Annotated[int, msgspec.Meta(ge=0, lt=2**53)] | None = None


class _Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    cards: list[msgspec.Raw] = []
    source: Origin | None = None


def ingest_routes(intake: Intake, gate: Gate) -> list[HTTPRouteHandler]:
    may: dict[str, Any] = {"guards": [gate.needs("ingest")], "request_max_body_size": MOST_BODY, "status_code": 200, "tags": TAGS}

    @post("/v1/cards", summary="Store job cards: 200 once they are durable", **may)
    async def cards(request: Asking) -> Outcome:
        """A body `{"cards": [...], "source": {...}}`, each card as a line of a rescue file has it. A card that is there already is
        known, and stays as it is."""
        _content_type(request, (JSON,))
        return await _taken(request, intake, lambda body: _cards(intake, caller_of(request).tenant, body))

    @post("/v1/traces", summary="Store OpenTelemetry traces: 200 once they are durable", **may)
    async def traces(request: Asking) -> Response[bytes]:
        """An ExportTraceServiceRequest, in protobuf or in JSON."""
        kind = _content_type(request, (PROTOBUF, JSON))
        try:
            body = await _taken(request, intake, lambda body: _spans(intake, caller_of(request).tenant, body, kind))
        except (Refused, UserError) as error:
            if kind == JSON:
                raise
            return _refused_in_protobuf(error)
        return Response(body, media_type=kind)

    return [cards, traces]


# --- cards and spans ----------------------------------------------------------------------------------------------------


def _cards(intake: Intake, tenant: str, body: bytes) -> Outcome:
    cards, origin = read_batch(body)
    said = Said(tenant=tenant, source=origin.name, announced=origin.announced, sample_rate=origin.sample_rate) if origin else None
    now = dt.datetime.now(dt.UTC)  # ours, not the sender's: retention counts from it
    named = origin.name if origin else ""
    cards = [msgspec.structs.replace(card, recorded_at=now, source=card.source or named) for card in cards]
    return intake.submit(tenant, cards, said)


def read_batch(body: bytes) -> tuple[list[RecordedCard], Origin | None]:
    """Raises FaultsFound with every card that is none."""
    try:
        batch = msgspec.json.decode(body, type=_Batch)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"this is no batch of cards: {error}", 'send {"cards": [...]}') from None
    if len(batch.cards) > MOST_CARDS:
        raise UserError(f"{len(batch.cards)} cards in one request", f"send at most {MOST_CARDS}")
    cards, faults = list[RecordedCard](), list[Fault]()
    for place, raw in enumerate(batch.cards):
        try:
            cards.append(msgspec.json.decode(raw, type=RecordedCard))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            faults.append(Fault(f"cards[{place}]", str(error)))
    if faults:
        raise FaultsFound("these are no cards; nothing of the batch was stored:", faults)
    return cards, batch.source


def _spans(intake: Intake, tenant: str, body: bytes, kind: str) -> bytes:
    read, answer = (read_protobuf, answer_protobuf) if kind == PROTOBUF else (read_json, answer_json)
    return answer(intake.submit_spans(tenant, read(body)))


def _refused_in_protobuf(error: Refused | UserError) -> Response[bytes]:
    """As OTLP has it: the status as a message, in the encoding of the request."""
    what, cure = error.what, error.cure
    code, wait = (error.status_code, error.retry_after) if isinstance(error, Refused) else (400, None)
    headers = {} if wait is None else {"retry-after": str(wait)}
    return Response(status_protobuf(f"{what}: {cure}" if cure else what), status_code=code, media_type=PROTOBUF, headers=headers)


# --- a body -------------------------------------------------------------------------------------------------------------


async def _taken(request: Asking, intake: Intake, work: Callable[[bytes], T]) -> T:
    """Reads the body while there is room for it, and answers what `work` makes of it."""
    packed = _is_packed(request)
    try:
        with intake.room(_size(request, packed), caller_of(request).tenant):
            body = await _body(request)
            return await in_daemon_thread(lambda: work(unpacked(body) if packed else body))
    except Shed as error:
        raise Refused(429, "too much is waiting to be stored", "send it again later", retry_after=error.retry_after_seconds) from None
    except Away as error:
        raise Refused(503, f"not known to be stored: {error}", "send it again later", retry_after=error.retry_after_seconds) from None


async def _body(request: Asking) -> bytes:
    try:
        return await request.body()
    except ClientException as error:
        if error.status_code == 413:
            raise _too_large() from None
        raise


def _too_large() -> Refused:
    return Refused(413, f"the body is larger than {MOST_BODY} bytes, as it comes or unpacked", "send it in several requests")


def _content_type(request: Asking, takes: Sequence[str]) -> str:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in takes:
        raise Refused(415, f"the content type is '{kind[:60]}'", f"send {' or '.join(takes)}")
    return kind


def _is_packed(request: Asking) -> bool:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity", "gzip"):
        raise Refused(415, f"the content encoding is '{encoding[:60]}'", "send it as it is, or in gzip")
    return encoding == "gzip"


def _size(request: Asking, packed: bool) -> int:
    """What it will take at most, as far as its head tells."""
    told = request.headers.get("content-length", "")
    size = int(told) if told.isascii() and told.isdigit() else MOST_BODY
    return min(size * UNPACKED if packed else size, MOST_BODY)


def unpacked(body: bytes) -> bytes:
    """What the gzip holds; a bomb is put away as soon as it has grown too large."""
    parts, left = list[bytes](), MOST_BODY
    try:
        while body:
            member = zlib.decompressobj(wbits=31)
            parts.append(member.decompress(body, left + 1))
            left -= len(parts[-1])
            if left < 0:
                raise _too_large()
            if not member.eof:
                raise UserError("the body's gzip ends in the middle", "send all of it")
            body = member.unused_data
    except zlib.error as error:
        raise UserError(f"the body is no gzip: {error}", "send it as it is, or in gzip") from None
    return b"".join(parts)
