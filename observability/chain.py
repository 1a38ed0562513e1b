"""The ledger: every record of the store leaves a numbered entry that names the one before it by hash. Pure.

An entry holds no words, only digests of the record's two halves: the facts, kept for ever, and the payload, salted, which may
be erased. Who changes a record must change its entry, then every entry after it, and then no longer has the roots that were
signed and written outside the store.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import msgspec

from observability.merkle import Tree
from observability.texts import storable

GENESIS = "0" * 64
"""What the first entry names as the one before it."""
SALT_BYTES = 16
FARTHEST = 16
"""Entries taken out in one go that are recognised behind a renumbering."""
REMEMBERED = 1000
"""Misplaced entries that are kept in mind to tell a swap from two edits."""
PLAIN = frozenset({str, int, bool, type(None)})
SORTED = msgspec.json.Encoder(order="sorted")

What = Literal[
    "edited", "removed", "inserted", "swapped", "gap", "wrong tenant", "tail cut", "chain replaced", "not in the index", "not erased"
]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a tenant's ledger."""

    tenant: str
    seq: int
    """From 1, without gaps."""
    at: str
    """UTC, ISO 8601. The writer's clock, which may step back: the order is that of seq."""
    kind: str
    """What was recorded: card, grade, review, label, erasure, hold, ..."""
    subject: str
    """Which one: its id."""
    facts: str
    """SHA-256 of the canonical facts, in hex."""
    payload: str
    """SHA-256 of the salt and the canonical payload, in hex; empty where there is none."""
    previous: str
    """The hash of the entry before."""
    hash: str
    """SHA-256 of the canonical JSON of all the others."""


class SignedRoot(msgspec.Struct, frozen=True, kw_only=True):
    """The Merkle root over the hashes of entries 1 to size. A line of the file outside the store."""

    tenant: str
    size: int
    root: str
    at: str
    key: str
    """The id of the key that signed."""
    signature: str
    """Ed25519 over `root_statement`, in hex."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """An entry, and what the store holds of its subject."""

    entry: Entry
    facts: Mapping[str, Any] | None
    """None where the store has lost it."""
    payload: Mapping[str, Any] | None = None
    salt: bytes | None = None
    erased: bool = False
    """Whether the ledger holds an erasure of it."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is not as it was recorded."""

    tenant: str
    seq: int
    kind: str
    subject: str
    what: What
    words: str
    """For a reviewer."""

    def __str__(self) -> str:
        about = f", {self.kind} {self.subject}" if self.subject else ""
        return f"tenant {self.tenant}, entry {self.seq}{about}: {self.what}: {self.words}"


# --- digests ----------------------------------------------------------------------------------------------------------


def canonical_bytes(value: object) -> bytes:
    """JSON with sorted keys, no spaces, UTF-8. Text that no store can hold counts as what a store makes of it (`Words`)."""
    if _is_plain(value):
        try:
            written = SORTED.encode(value)
            if b"\\u0000" not in written:
                return written
        except UnicodeEncodeError:
            pass
    text = _canonical_text(value)
    try:
        if "\\u0000" not in text:
            return text.encode()
    except UnicodeEncodeError:
        pass  # half a surrogate pair
    return _canonical_text(_all_storable(value)).encode()


def _is_plain(value: object) -> bool:
    """Whether msgspec, which is ten times as fast, writes it as Python's json does: all but floats that Python gives an exponent."""
    ahead: list[Any] = [value]  # what is inside of what, and grows on the way: most values of most records never come into it
    for one in ahead:
        kind: type[Any] = type(one)
        if kind is dict:
            for name, inner in one.items():
                if type(name) is not str:
                    return False
                if type(inner) not in PLAIN:
                    ahead.append(inner)
        elif kind is list or kind is tuple:
            ahead += [inner for inner in one if type(inner) not in PLAIN]
        elif kind is float:
            if one and not 1e-4 <= abs(one) < 1e16:
                return False
        elif kind not in PLAIN:
            return False
    return True


def _canonical_text(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _all_storable(value: object) -> object:
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, Mapping):
        return {_all_storable(key): _all_storable(one) for key, one in cast(Mapping[str, object], value).items()}
    if isinstance(value, list | tuple):
        return [_all_storable(one) for one in cast(Sequence[object], value)]
    return value


def facts_digest(facts: Mapping[str, Any]) -> str:
    return _digest(facts)


def payload_digest(payload: Mapping[str, Any], salt: bytes) -> str:
    """The salt keeps what was erased from being guessed: without it, a digest says nothing about the words."""
    if len(salt) != SALT_BYTES:
        raise ValueError(f"a salt has {SALT_BYTES} bytes; this one has {len(salt)}")
    return hashlib.sha256(salt + canonical_bytes(payload)).hexdigest()


def entry_hash(entry: Entry) -> str:
    return _hash_as(entry, entry.seq)


def root_statement(root: SignedRoot) -> bytes:
    """The bytes that are signed. They say what they are, so that no other signed text can be passed off as a root."""
    stated = {"statement": "agent-rft ledger root 1", "tenant": root.tenant, "size": root.size, "root": root.root}
    return canonical_bytes(stated | {"at": root.at, "key": root.key})


def next_entry(
    previous: Entry | None, *, tenant: str, at: str, kind: str, subject: str, facts: str, payload: str = ""
) -> Entry:  # fmt: skip
    """The entry after `previous` in the tenant's ledger, or its first."""
    if previous is not None and previous.tenant != tenant:
        raise ValueError(f"the ledger of {previous.tenant} cannot go on with an entry of {tenant}")
    seq, before = (previous.seq + 1, previous.hash) if previous else (1, GENESIS)
    content: dict[str, Any] = {
        "tenant": tenant, "seq": seq, "at": at, "kind": kind, "subject": subject, "facts": facts, "payload": payload, "previous": before,
    }  # fmt: skip
    return Entry(**content, hash=_digest(content))


def _hash_as(entry: Entry, seq: int) -> str:
    """The hash that this entry has if it is the one numbered `seq`."""
    content = msgspec.structs.asdict(entry) | {"seq": seq}
    del content["hash"]
    return _digest(content)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_bytes(content)).hexdigest()


# --- records against their entries ------------------------------------------------------------------------------------


def check_record(record: Record) -> Finding | None:
    """Whether the store still holds what the entry says was recorded."""
    entry = record.entry
    if record.facts is None:
        return _finding(entry, "removed", "it was recorded and is gone from the store")
    if facts_digest(record.facts) != entry.facts:
        return _finding(entry, "edited", "its facts are not those that were recorded")
    if not entry.payload:
        return None
    if record.erased:
        gone = record.payload is None and record.salt is None
        return None if gone else _finding(entry, "not erased", "the ledger has an erasure of its words, and something stands there")
    if record.payload is None or record.salt is None:
        return _finding(entry, "removed", "its words are gone, and no erasure of them is recorded")
    if len(record.salt) != SALT_BYTES or payload_digest(record.payload, record.salt) != entry.payload:
        return _finding(entry, "edited", "its words are not those that were recorded")
    return None


def unrecorded(tenant: str, kind: str, subject: str) -> Finding:
    """For a row of the store that no entry names."""
    words = "it stands in the store and was never recorded"
    return Finding(tenant=tenant, seq=0, kind=kind, subject=subject, what="inserted", words=words)


def unreadable(entry: Entry, why: str) -> Finding:
    return _finding(entry, "edited", f"what the store holds of it cannot be read ({why})")


def otherwise_written(tenant: str, seq: int, kind: str, subject: str) -> Finding:
    words = "a time, a number, a verdict or a key in it stands there in a form that the store never writes, so filters miss it"
    return Finding(tenant=tenant, seq=seq, kind=kind, subject=subject, what="edited", words=words)


def otherwise_numbered(tenant: str, seq: int, kind: str, subject: str) -> Finding:
    words = "its id, or the id of what it belongs to, is not the one that was given when it was recorded"
    return Finding(tenant=tenant, seq=seq, kind=kind, subject=subject, what="edited", words=words)


def not_indexed(tenant: str, seq: int, subject: str, words: str) -> Finding:
    return Finding(tenant=tenant, seq=seq, kind="card", subject=subject, what="not in the index", words=words)


def _finding(entry: Entry, what: What, words: str) -> Finding:
    return Finding(tenant=entry.tenant, seq=entry.seq, kind=entry.kind, subject=entry.subject, what=what, words=words)


# --- the chain --------------------------------------------------------------------------------------------------------


def check_chain(tenant: str, entries: Iterable[Entry], roots: Iterable[SignedRoot] = ()) -> Iterator[Finding]:
    """What is wrong with a tenant's ledger, its entries given in the order of seq. Keeps no more than the place it is at.

    The entries alone show what was edited, removed, inserted or swapped. That the tail was cut or the chain written anew is
    seen only by roots from outside the store, whose signatures the caller has verified. The first root that does not fit
    ends the comparison with roots.
    """
    walk, held = _Walk(tenant, roots), None
    for entry in entries:
        if entry.tenant != tenant:
            yield _finding(entry, "wrong tenant", f"it belongs to another tenant and stands in the ledger of {tenant}")
            continue
        if held is not None:
            yield from walk.step(held, entry)
        held = entry
    if held is not None:
        yield from walk.step(held, None)
    yield from walk.end()


class _Walk:
    """Where `check_chain` is.

    What stood at a place is said three times: by the entry's content, by its hash, and by the entry after it, which names
    that hash. Where one of them differs, the other two and the neighbours tell what was done.
    """

    def __init__(self, tenant: str, roots: Iterable[SignedRoot]) -> None:
        self.tenant = tenant
        self.roots = sorted((root for root in roots if root.tenant == tenant), key=lambda root: root.size, reverse=True)
        self.largest = self.roots[0] if self.roots else None
        self.tree: Tree | None = Tree()  # None once it is not known what stood at some place
        self.last: Entry | None = None
        self.seq = 0
        self.hash = GENESIS  # what the next entry must name
        self.hash_before = GENESIS
        self.renumbered = 0  # how far the numbers stand above those that were written
        self.homeless: dict[str, int] = {}  # hashes whose entry was not where they are named, and where that is
        self.swapped_ahead = False
        self.proven = 0  # the size of the largest root that fitted
        self.explained = False  # whether something was found since

    def step(self, entry: Entry, following: Entry | None) -> list[Finding]:
        if self.swapped_ahead:  # told of already, with the one before it
            self.swapped_ahead = False
            return []
        fits = entry.previous == self.hash and entry.seq == self.seq + 1 and self._sound(entry) and not self._skips_back(following, 1)
        found = [] if fits else self._explain(entry, following)
        if fits:
            self._take(entry, entry.hash)
        self.explained = self.explained or bool(found)
        return found + self._against_roots()

    def end(self) -> list[Finding]:
        """After the last entry: do the signed roots know of more?"""
        written = self.seq - self.renumbered
        if self.largest is None or self.largest.size <= written:
            return []
        gone = f"entry {written + 1}" if self.largest.size == written + 1 else f"entries {written + 1} to {self.largest.size}"
        covered = f"the root signed on {self.largest.at} covers {self.largest.size} entries"
        words = f"{covered}; {gone} cut off, or the chain replaced by a shorter one"
        return [self._of_chain(written + 1, "tail cut", words)]

    def _explain(self, entry: Entry, following: Entry | None) -> list[Finding]:
        if entry.seq <= self.seq:
            return [self._out_of_order(entry, following)]
        if entry.seq > self.seq + 1:
            return self._missing_numbers(entry, following)
        if following is not None and (self._skips_back(following) or self._skips_back(following, 1)):
            return [self._pushed_between(entry, following)]
        if count := self._moved_by(entry, following):
            return [self._numbered_anew(entry, count)]
        if entry.previous == self.hash:
            self._take(entry, following.previous if following else entry.hash)
            return [_finding(entry, "edited", "its content does not give its hash")]
        return self._does_not_link(entry, following)

    def _out_of_order(self, entry: Entry, following: Entry | None) -> Finding:
        if entry.seq < self.seq:
            return _finding(entry, "swapped", f"it stands after entry {self.seq}")
        vouched = following is not None and following.previous == entry.hash and entry.previous == self.hash_before
        blamed = self.last if vouched and self.last else entry
        if vouched:
            self.tree, self.hash, self.last = None, entry.hash, entry
        return _finding(blamed, "inserted", f"two entries have the number {entry.seq}, and the chain knows only the other")

    def _missing_numbers(self, entry: Entry, following: Entry | None) -> list[Finding]:
        first, last = self.seq + 1, entry.seq - 1
        gone = f"entry {first}" if first == last else f"entries {first} to {last}"
        if entry.previous == self.hash and self._sound(entry):
            self._take(entry, entry.hash)
            return [self._of_chain(first, "gap", f"{gone}: the numbers were never given; the chain goes on without them")]
        found = [self._of_chain(first, "removed", f"{gone} missing; entry {entry.seq} does not follow on entry {self.seq}")]
        self._lost(entry, last - first + 1)
        if self._sound(entry):
            self._take(entry, entry.hash)
            return found
        self._take(entry, following.previous if following else entry.hash)
        return [*found, _finding(entry, "edited", "its content does not give its hash")]

    def _skips_back(self, following: Entry | None, more: int = 0) -> bool:
        """Whether the entry after the present one is whole and follows on the one before it."""
        return following is not None and following.previous == self.hash and self._sound(following, more)

    def _pushed_between(self, entry: Entry, following: Entry) -> Finding:
        """The entry after this one follows on the one before it: this one was put between, or the two changed places."""
        if entry.previous == following.hash and entry.seq + 1 == following.seq:
            for one in (following, entry):
                self._take(one, one.hash)
            self.seq, self.swapped_ahead = following.seq, True
            return _finding(entry, "swapped", f"it and entry {following.seq}, {following.kind} {following.subject}, changed places")
        self.seq = following.seq - 1
        if not self._sound(following) and self._sound(following, 1):
            self.renumbered += 1
        return _finding(entry, "inserted", "the entries before and after it follow on each other and know nothing of it")

    def _moved_by(self, entry: Entry, following: Entry | None) -> int:
        """How far the numbers moved just here: the content gives the hash under another number, and so for the next one."""
        if self._sound(entry) or entry.hash in self.homeless or (following is not None and self._sound(following)):
            return 0
        for count in (sign * far for far in range(1, FARTHEST + 1) for sign in (-1, 1)):
            if self._sound(entry, count) and (following is None or self._sound(following, count)):
                return count
        return 0

    def _numbered_anew(self, entry: Entry, count: int) -> Finding:
        self.renumbered += count
        if count > 0:
            self.tree = None  # its last leaves are not the ledger's
            words = f"the {count} before it were put in, and those from here on numbered anew to hide it"
            self._take(entry, entry.hash)
            return _finding(entry, "inserted", words)
        self._lost(entry, -count)
        self._take(entry, entry.hash)
        gone = "the entry" if count == -1 else f"the {-count} entries"
        return _finding(entry, "removed", f"{gone} before it missing, and those from here on numbered anew to hide it")

    def _does_not_link(self, entry: Entry, following: Entry | None) -> list[Finding]:
        named = following.previous if following else entry.hash
        if self._sound(entry) and named == entry.hash and self.last is not None:
            blamed = self.last
            self._take(entry, entry.hash)
            return [_finding(blamed, "edited", f"it was given a new hash; entry {entry.seq}, which is whole, names the old one")]
        self._take(entry, named)
        if entry.hash in self.homeless:
            return [_finding(entry, "swapped", f"it was written as number {self.homeless.pop(entry.hash)}, where another stands now")]
        if len(self.homeless) < REMEMBERED:
            self.homeless[named] = entry.seq
        return [_finding(entry, "edited", "another entry stands here than the one that was written; neither neighbour knows it")]

    def _sound(self, entry: Entry, more: int = 0) -> bool:
        """Whether the content gives the hash, the number taken back by what it was moved."""
        return _hash_as(entry, entry.seq - self.renumbered - more) == entry.hash

    def _take(self, entry: Entry, written: str) -> None:
        """Go on behind this entry, at whose place the hash `written` stood."""
        if self.tree is not None:
            try:
                self.tree.append(bytes.fromhex(written))
            except ValueError:
                self.tree = None
        self.last, self.seq, self.hash_before, self.hash = entry, entry.seq, self.hash, written

    def _lost(self, entry: Entry, count: int) -> None:
        """Entries are missing before this one. Where it is one, its hash is known all the same."""
        if count == 1 and self.last is not None:
            self._take(msgspec.structs.replace(self.last, seq=entry.seq - 1), entry.previous)
        else:
            self.tree = None

    def _against_roots(self) -> list[Finding]:
        found: list[Finding] = []
        while self.tree is not None and self.roots and self.roots[-1].size <= self.tree.size:
            root = self.roots.pop()
            if root.size == self.tree.size and root.root == self.tree.root().hex():
                self.proven, self.explained = root.size, False
                continue
            self.tree = None
            if not self.explained:
                words = f"entries {self.proven + 1} to {root.size} are well linked, but not those that were signed on {root.at}"
                found.append(self._of_chain(self.proven + 1, "chain replaced", f"{words}: they were written anew"))
        return found

    def _of_chain(self, seq: int, what: What, words: str) -> Finding:
        return Finding(tenant=self.tenant, seq=seq, kind="", subject="", what=what, words=words)
