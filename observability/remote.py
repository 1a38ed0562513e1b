"""Records job cards on a card server, over a spool on this machine's disk. Training waits for neither.

`record` only queues. One thread redacts the cards and puts them into the spool, so that nothing unredacted is sent; a card that cannot
be redacted is kept as it came, in a file beside the spool which its owner alone may read. Another thread empties the spool into the server.
A card counts as acknowledged once the server says that it is durable there; until then a kill of this process loses none that is
spooled, and whoever records to the same server and tenant next sends what was left behind.
"""

from __future__ import annotations

import atexit
import datetime as dt
import http.client
import itertools
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import msgspec
import structlog

from agent_rft.contracts.errors import Fault, InfraError, UserError
from agent_rft.contracts.jobcards import JobCard
from agent_rft.contracts.retries import TryAgain
from observability.ingest import BATCH, LONGEST_PAUSE, WARN_WAITING, redacted, rescue
from observability.records import RecordedCard, without_token_ids
from observability.redaction.detectors import detectors_of
from observability.sources import source_name
from observability.spool import Patience, Sender, Spool, SpoolFull
from observability.spooling import Position, Refused, judge
from observability.texts import storable

KEY_VARIABLE = "RFT_KEY"
ROUTE = "/v1/cards"
SAID = b"said "
"""What a line of the spool begins with that is no card, but what the source says of itself."""
SPOOL_BYTES = 4 * 2**30
PATIENCE = Patience(longest_seconds=10.0, idle_seconds=0.05)
LOOK = 0.02  # seconds between looks at whether the server has everything
T = TypeVar("T")
log = structlog.get_logger(__name__)


# --- the server -----------------------------------------------------------------------------------------------------------


class _Refusal(msgspec.Struct):
    rollout_id: str
    why: str


class _Answer(msgspec.Struct):
    stored: int
    known: int
    refused: list[_Refusal]


class _Error(msgspec.Struct):
    error: str
    faults: list[Fault] = []


class CardServer:
    """The far end of POST /v1/cards, over one connection that is kept. For one thread."""

    def __init__(self, url: str, key: str, timeout_seconds: float = 60.0) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise UserError(f"'{url}' is no address: {error}", "https://host:port") from None
        if parts.scheme not in ("http", "https") or not host or parts.path.strip("/") or parts.username or parts.query:
            raise UserError(f"'{url}' is no card server's address", "https://host:port, and the key in the environment, RFT_KEY")
        self.address = f"{parts.scheme}://{parts.netloc}"
        self._recipe = (url, key, timeout_seconds)
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(host, port, timeout=timeout_seconds)

    def __reduce__(self) -> tuple[type[CardServer], tuple[str, str, float]]:
        return CardServer, self._recipe

    def __call__(self, lines: Sequence[bytes]) -> Mapping[int, str]:
        """What the spool's sender posts with."""
        cards = [place for place, line in enumerate(lines) if not line.startswith(SAID)]
        refused = self._take([lines[place] for place in cards]) if cards else {}
        for line in lines:
            if line.startswith(SAID):
                self._post(b'{"cards":[],"source":' + line.removeprefix(SAID) + b"}")
        return {cards[place]: why for place, why in refused.items()}

    def check(self) -> None:
        """A key or an address that will never do is the user's to mend, now and not when a day's cards wait. A server that is away
        may come back."""
        try:
            self._post(b'{"cards":[]}')
        except Refused as error:
            raise UserError(f"{self.address}{ROUTE} is no card server: {error}", "look at store.url") from None
        except TryAgain as error:
            if isinstance(error, _NotMine):
                raise UserError(f"{self.address} {error}", "look at store.url and at RFT_KEY; `rft key new` makes a key") from None
            log.warning("the card server is away; cards wait in the spool", server=self.address, why=str(error))

    def _take(self, cards: Sequence[bytes]) -> dict[int, str]:
        answer = self._post(b'{"cards":[' + b",".join(cards) + b"]}")
        why = {one.rollout_id: one.why for one in answer.refused}
        ids = [json.loads(card)["card"]["rollout_id"] for card in cards] if why else []
        return {place: why[rollout_id] for place, rollout_id in enumerate(ids) if rollout_id in why}

    def _post(self, body: bytes) -> _Answer:
        """Over a connection that was open the server may just have hung up, so that is tried twice: cards may come twice."""
        kept = self._connection.sock is not None
        try:
            status, headers, text = self._asked(body)
        except (http.client.HTTPException, OSError) as error:
            self._connection.close()
            if not kept or isinstance(error, TimeoutError):
                raise TryAgain(f"{self.address} does not answer: {error or type(error).__name__}") from error
            return self._post(body)
        if status in (401, 403, 404):
            raise _NotMine(f"does not take cards: HTTP {status}: {_reason(text)}")
        judge(status, headers, _reason(text), time.time())
        try:
            return msgspec.json.decode(text, type=_Answer)
        except msgspec.MsgspecError as error:
            raise TryAgain(f"{self.address} answers like no card server: {error}") from error

    def _asked(self, body: bytes) -> tuple[int, str, bytes]:
        self._connection.request("POST", ROUTE, body, self._headers)
        answer = self._connection.getresponse()
        return answer.status, answer.headers.get("Retry-After", ""), answer.read()


def _reason(answer: bytes) -> str:
    """A server of ours says it in words and names each fault; another's answer is shown as it is."""
    try:
        told = msgspec.json.decode(answer, type=_Error)
    except msgspec.MsgspecError:
        return answer[:300].decode(errors="replace")
    return "; ".join([told.error, *(f"{fault.where}: {fault.what}" for fault in told.faults)])


class _NotMine(TryAgain):
    """The key or the address is wrong. Somebody may mend that on the other side, so cards wait; but it is told at the start."""


# --- the recorder ----------------------------------------------------------------------------------------------------------


def spool_folder(runs: Path, address: str, tenant: str) -> Path:
    """One for each server and tenant: a key that is another tenant's would have the cards refused."""
    return runs / "spool" / quote(urlsplit(address).netloc, safe="") / quote(tenant, safe="")


def card_line(recorded: RecordedCard) -> bytes:
    """As the server reads it. Half a surrogate pair, which is no text, is replaced here as the store would replace it."""
    try:
        return msgspec.json.encode(recorded, enc_hook=repr)
    except UnicodeEncodeError:
        return storable(json.dumps(msgspec.to_builtins(recorded, enc_hook=repr), ensure_ascii=False)).encode()


def _spool_in(folder: Path, spool_bytes: int) -> Spool:
    try:
        return Spool(folder, spool_bytes)
    except OSError as error:
        raise UserError(f"no card can be spooled in {folder}: {error.strerror}", "make room there, or name another run.folder") from None


class HttpRecorder:
    """The recorder port over a card server. Use it as a context manager, or call `close` at the end.

    The spool is bounded. When it is full the cards wait in memory, as they do for a store that is away: dropping a card or blocking
    training would each break a promise.
    """

    def __init__(
        self,
        server: CardServer,
        folder: Path,
        redacting: bool = True,
        patterns: Mapping[str, str] | None = None,
        tenant_patterns: Mapping[str, Mapping[str, str]] | None = None,
        part: str = "recorder",
        spool_bytes: int = SPOOL_BYTES,
        patience: Patience = PATIENCE,
    ) -> None:
        self._recipe = (server, folder, redacting, patterns, tenant_patterns, part, spool_bytes, patience)
        self.folder = folder
        self.source = source_name(part)
        self.recorded = 0
        self._detectors = detectors_of(redacting, patterns, tenant_patterns)
        self._server = server
        self._spool = _spool_in(folder, spool_bytes)
        self._sender = Sender(self._spool, server, patience)
        self._waiting: deque[RecordedCard | bytes] = deque()
        self._kept: deque[tuple[Position, int]] = deque()  # where lines end that are in the spool, and how many
        self._queued = self._settled = 0
        self._changed = threading.Condition()
        self._closing, self._stopped = threading.Event(), threading.Event()
        self._full = ""
        self._unready = 0
        self._keeper = threading.Thread(target=self._keep, name="card-spooler", daemon=True)
        self._sending = threading.Thread(target=self._sender.run, args=(self._stopped,), name="card-sender", daemon=True)
        self._keeper.start()
        self._sending.start()
        atexit.register(self.close)

    def __reduce__(self) -> tuple[Callable[..., HttpRecorder], tuple[Any, ...]]:
        """Sent to another process, it is a recorder of its own there, over the same spool."""
        return HttpRecorder, self._recipe

    @property
    def acknowledged(self) -> int:
        """Records that are durable at the server."""
        return max(0, self._settled_by_now() - self.refused)

    @property
    def refused(self) -> int:
        """Cards that the server will never take: they are set aside in the spool's folder, each with the reason. And cards that could
        not be redacted, in the file beside it."""
        return self._sender.refused + self._unready

    def record(self, card: JobCard) -> None:
        kept, now = without_token_ids(card), dt.datetime.now(dt.UTC)
        with self._changed:
            if self._closing.is_set():
                raise RuntimeError("this recorder is closed")
            self.recorded += 1
            self._queue(RecordedCard(kept, now, source=self.source, number=self.recorded))
            crowded = len(self._waiting) == WARN_WAITING
        if crowded:
            log.warning("job cards pile up in memory", waiting=WARN_WAITING, spool=str(self.folder), trouble=self._full)

    def flush(self, timeout: float = 60.0) -> None:
        """Returns once every card recorded so far is durable at the server or, refused by it, set aside. Raises InfraError saying
        how many are not, and why."""
        deadline, target = time.monotonic() + timeout, self._queued
        while (waiting := target - self._settled_by_now()) > 0:
            if time.monotonic() > deadline or self._stopped.is_set():
                why = self._full or self._sender.trouble or "still being sent"
                raise InfraError("card server", f"{waiting} of {target} records are not durable there after {timeout:g} s: {why}")
            time.sleep(LOOK)

    def close(self, timeout: float = 60.0) -> None:
        """Says how many cards there were, flushes and stops. What the server did not take in that time stays in the spool."""
        if self._stopped.is_set():
            return
        self._announce()
        why = ""
        try:
            self.flush(timeout)
        except InfraError as error:
            why = error.what
        unsaved = self._stop()
        if self.refused:
            log.warning("cards refused", refused=self.refused, of=self.recorded, set_aside_in=str(self._spool.refused_file))
        safe = f"They are safe in {self.folder}, and go there with the next run, or by `rft card send`"
        if unsaved:
            where = self._put_beside(unsaved, self._full or why)
            safe = f"{len(unsaved)} did not even get into the spool: they are {f'safe in {where}' if where else 'lost'}. {safe}"
        if why:
            raise InfraError("card server", f"{why}. {safe}")

    def __enter__(self) -> HttpRecorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # --- the threads' side ------------------------------------------------------------------------------------------------

    def _queue(self, record: RecordedCard | bytes) -> None:
        self._waiting.append(record)
        self._queued += 1
        self._changed.notify_all()

    def _announce(self) -> None:
        """So that a card which was lost on its way shows, even the last. It goes the way of the cards, and survives what they do."""
        with self._changed:
            if self.recorded and not self._closing.is_set():
                self._queue(SAID + msgspec.json.encode({"name": self.source, "announced": self.recorded}))
            self._closing.set()

    def _settled_by_now(self) -> int:
        sent = self._spool.sent_up_to()
        with self._changed:
            while self._kept and self._kept[0][0] <= sent:
                self._settled += self._kept.popleft()[1]
            return self._settled

    def _stop(self) -> list[RecordedCard]:
        """Answers the cards that did not get into the spool."""
        with self._changed:
            self._stopped.set()
            self._changed.notify_all()
        for thread in (self._keeper, self._sending):
            thread.join(timeout=LONGEST_PAUSE)
        atexit.unregister(self.close)
        left = [record for record in self._waiting if isinstance(record, RecordedCard)]
        return [card for record in left if (card := self._redacted(record, lambda card: card))]

    def _keep(self) -> None:
        while batch := self._next_batch():
            lines = [line for record in batch if (line := self._line(record))]
            if not (end := self._spooled(lines)):
                return
            with self._changed:
                for _ in batch:
                    self._waiting.popleft()
                self._kept.append((end, len(batch)))

    def _spooled(self, lines: Sequence[bytes]) -> Position | None:
        """Where they end. Tried until there is room; None when it is time to stop."""
        while True:
            try:
                end = self._spool.keep(lines)
            except (SpoolFull, OSError) as error:
                if not self._full:
                    log.warning("the card spool takes nothing; cards wait in memory", why=str(error))
                self._full = str(error)
                if self._stopped.wait(LONGEST_PAUSE):
                    return None
            else:
                self._full = ""
                return end

    def _next_batch(self) -> list[RecordedCard | bytes]:
        """The oldest that wait, left in the queue until they are in the spool. Empty when it is time to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopped.is_set())
            return [] if self._stopped.is_set() else list(itertools.islice(self._waiting, BATCH))

    def _line(self, record: RecordedCard | bytes) -> bytes:
        """Nothing where a card cannot be redacted or written down."""
        return record if isinstance(record, bytes) else self._redacted(record, card_line) or b""

    def _redacted(self, record: RecordedCard, then: Callable[[RecordedCard], T]) -> T | None:
        """A card with which that does not go must hold up no other, and may not be sent as it is: it waits beside the spool, unredacted."""
        try:
            return then(redacted(record, self._detectors))
        except Exception as error:  # nobody may end this thread, neither a card nor a tenant's pattern
            self._unready += 1
            self._put_beside([record], str(error))
            return None

    def _put_beside(self, cards: Sequence[RecordedCard], why: str) -> Path | None:
        """In the file that `rft card restore` reads. A card that cannot even be written there is lost, and shows as a gap."""
        try:
            path = rescue(cards, self.folder.with_name(self.folder.name + "-unspooled.jsonl"))
        except Exception as error:
            log.error("cards are lost", cards=len(cards), first=cards[0].card.rollout_id, why=why, nor_saved=str(error))
            return None
        log.error("cards are not in the spool", cards=len(cards), first=cards[0].card.rollout_id, why=why, saved_in=str(path))
        return path


def send_spool(server: CardServer, folder: Path) -> Sender:
    """What a run left behind, sent now. Raises InfraError where the server would not take it."""
    sender = Sender(_spool_in(folder, SPOOL_BYTES), server)
    try:
        sender.drain()
    except (TryAgain, OSError) as error:
        raise InfraError("card server", f"it took not everything: {error}", f"the rest is safe in {folder}: try again") from error
    return sender
