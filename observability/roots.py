"""Signed roots of the ledgers: each stands in the store and as a line of a file outside it, which whoever rewrites the store
does not reach."""

from __future__ import annotations

import fcntl
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from agent_rft.contracts.errors import UserError
from observability.book import entries_after
from observability.chain import GENESIS, Entry, SignedRoot
from observability.ledger import tenants
from observability.merkle import Tree
from observability.signing import KnownKey, SigningKeys, known_keys, settle, sign_root, why_not_signed
from observability.store import Store
from observability.tables import ledger, ledger_roots

BATCH = 5000
CURE_OF_LOST = (
    "bring back roots.jsonl as it was written, its newest copy, or name its folder (--folder, store.ledger); if it is lost for good, or the"
    " store is a copy that shall have roots of its own, delete those rows of ledger_roots: what they proved is then proven no more"
)


class LedgerFiles(NamedTuple):
    """The keys that sign, and the roots that they signed. Keep copies where nobody can change them."""

    keys: Path
    roots: Path

    @classmethod
    def of(cls, store: Store, folder: str | None) -> LedgerFiles:
        place = Path(folder) if folder else _folder_of(store)
        return cls(place / "keys.json", place / "roots.jsonl")


def _folder_of(store: Store) -> Path:
    """One that no other store has: a forged store under the same name elsewhere must not go on from these roots."""
    url = store.engine.url
    database = url.database or "store"
    if store.engine.dialect.name == "sqlite":
        file = Path(database)
        return store.folder / (f"{file.stem}-ledger" if file.suffix == ".db" else f"{file.name}.ledger")
    host = url.host or ",".join(url.normalized_query.get("host", ("localhost",)))
    return Path("runs") / f"{database}@{host}-{url.port or 5432}-ledger".replace("/", "_")


def sign_all(store: Store, keys: SigningKeys, file: Path, at: str) -> list[SignedRoot]:
    """A root of every ledger that has grown since its last."""
    signed = (sign(store, tenant, keys, file, at) for tenant in tenants(store))
    return [root for root in signed if root]


def sign(store: Store, tenant: str, keys: SigningKeys, file: Path, at: str) -> SignedRoot | None:
    """None where nothing was entered since the newest root.

    It goes on from the newest root in the file, whose tree the store keeps: the signature covers that tree, so it cannot have
    been changed. A ledger that does not go on from there is not signed: that would make a forgery genuine. No root is dated
    before the one it goes on from, whatever the clock says.
    """
    if lost := lost_roots(store, file, tenant):
        raise UserError(f"the ledger of {tenant} is not signed: {lost[0]}", CURE_OF_LOST, exit_code=1)
    newest = _newest([root for root in read_roots(file) if root.tenant == tenant], keys.known)
    with store.reading() as connection:
        tree, before = _tree_of(connection, newest)
        grown = _grown(connection, tenant, tree, before)
    if not grown:
        return None
    root = sign_root(keys, tenant, tree.size, tree.root(), max(at, newest.at) if newest else at)
    if why := why_not_signed(root, keys.known):
        raise UserError(f"a root of {tenant} would count for nothing: {why}", "bring back the signing keys as they were written")
    _append(root, file)
    values = msgspec.structs.asdict(root) | {"peaks": "".join(peak.hex() for peak in tree.peaks)}
    with store.writing() as connection:
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        connection.execute(insert(ledger_roots).on_conflict_do_nothing(), [values])
    return root


def read_roots(file: Path) -> list[SignedRoot]:
    """The lines of the file outside the store. None where there is no file yet. A line that does not end was never written."""
    return list(_roots(_content(file).split(b"\n")[:-1], file))


def trusted(files: LedgerFiles) -> tuple[list[SignedRoot], list[str]]:
    """The roots that a known key signed, and what is wrong with the others."""
    signed = read_roots(files.roots)
    known = _known(files) if signed else ()
    wrong = {root: why for root in signed if (why := why_not_signed(root, known))}
    faults = [f"{files.roots}: the root of {root.tenant} over {root.size} entries counts for nothing: {why}" for root, why in wrong.items()]
    return [root for root in signed if root not in wrong], faults


def _known(files: LedgerFiles) -> Sequence[KnownKey]:
    if not files.keys.exists():
        raise UserError(f"{files.roots} holds signed roots, and {files.keys} is missing", "bring back the keys that signed them")
    return known_keys(files.keys)


def is_torn(file: Path) -> bool:
    """Whether a killed process or a full disk left a beginning of a line."""
    return bool(_content(file).rpartition(b"\n")[2])


def lost_roots(store: Store, file: Path, tenant: str | None = None) -> list[str]:
    """What the store says was signed, and the file does not. A root is in the file before it is in the store, so the store is
    read first."""
    with store.reading() as connection:
        rows = connection.execute(sa.select(ledger_roots).order_by(ledger_roots.c.tenant, ledger_roots.c.size)).mappings()
        inside = [SignedRoot(**{name: row[name] for name in SignedRoot.__struct_fields__}) for row in rows]
    outside = set(read_roots(file))
    of_size = {(root.tenant, root.size) for root in outside}
    return [
        f"the store has a root of {root.tenant} over {root.size} entries, signed on {root.at}, which {file} "
        + ("has otherwise" if (root.tenant, root.size) in of_size else "lacks")
        for root in inside
        if root not in outside and tenant in (None, root.tenant)
    ]


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise UserError(f"the signed roots in {file} cannot be read: {error.strerror}", "name the file that they are in") from None


def _roots(lines: Sequence[bytes], file: Path) -> Iterator[SignedRoot]:
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                yield msgspec.json.decode(line, type=SignedRoot)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise UserError(f"{file}:{number}: this line is no signed root: {error}", "bring back the file as it was written") from None


def _newest(outside: Sequence[SignedRoot], known: Sequence[KnownKey]) -> SignedRoot | None:
    """The one that covers most, of those that count: whoever adds a line to the file does not end the signing with it."""
    ours = [root for root in outside if not why_not_signed(root, known)]
    if outside and not ours:
        what = f"no root of {outside[-1].tenant} is ours: {why_not_signed(outside[-1], known)}"
        raise UserError(what, "use the keys and the file of roots that belong together")
    return max(ours, key=lambda root: (root.size, root.at), default=None)


def _tree_of(connection: sa.Connection, newest: SignedRoot | None) -> tuple[Tree, str]:
    """The tree under that root, and the hash of its last entry."""
    if newest is None:
        return Tree(), GENESIS
    of = (ledger_roots.c.tenant == newest.tenant, ledger_roots.c.size == newest.size)
    peaks = connection.scalar(sa.select(ledger_roots.c.peaks).where(*of)) or ""
    tree = Tree(newest.size, [bytes.fromhex(peaks[at : at + 64]) for at in range(0, len(peaks), 64)])
    last = sa.select(ledger.c.hash).where(ledger.c.tenant == newest.tenant, ledger.c.seq == newest.size)
    if tree.root().hex() == newest.root:
        return tree, connection.scalar(last) or ""
    return _tree_again(connection, newest), connection.scalar(last) or ""


def _tree_again(connection: sa.Connection, newest: SignedRoot) -> Tree:
    """From the entries, where the store has lost it."""
    tree = Tree()
    while tree.size < newest.size and (batch := entries_after(connection, newest.tenant, tree.size, min(BATCH, newest.size - tree.size))):
        for entry in batch:
            tree.append(_leaf(entry))
    if tree.root().hex() != newest.root:
        raise _not_the_same(newest.tenant)
    return tree


def _grown(connection: sa.Connection, tenant: str, tree: Tree, before: str) -> bool:
    grown = False
    while batch := entries_after(connection, tenant, tree.size, BATCH):
        for entry in batch:
            if entry.previous != before or entry.seq != tree.size + 1:
                raise _not_the_same(tenant)
            tree.append(_leaf(entry))
            before, grown = entry.hash, True
    return grown


def _leaf(entry: Entry) -> bytes:
    try:
        return bytes.fromhex(entry.hash)
    except (TypeError, ValueError):  # somebody wrote there what is no hash
        raise _not_the_same(entry.tenant) from None


def _not_the_same(tenant: str) -> UserError:
    what = f"the ledger of {tenant} does not go on from its newest signed root, so it is not signed"
    return UserError(
        what, "`rft ledger verify` says what was changed; if the store was begun anew on purpose, move its ledger folder away", exit_code=1
    )


def _append(root: SignedRoot, file: Path) -> None:
    """A line is durable before it counts, and whole or not there. What is left of one that was not finished goes first."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a+b", buffering=0) as out:
            fcntl.flock(out, fcntl.LOCK_EX)
            out.seek(0)
            content = out.read()
            if (whole := content.rfind(b"\n") + 1) < len(content):
                out.truncate(whole)
            _write(msgspec.json.encode(root) + b"\n", out, whole)
        settle(file.parent)
    except OSError as error:
        what = f"the signed root cannot be written to {file}: {error.strerror or error}"
        raise UserError(what, "make room on its disk, or name a folder that is yours to write in") from None


def _write(line: bytes, out: io.FileIO, whole: int) -> None:
    try:
        if out.write(line) != len(line):
            raise OSError("the disk took only a part")
        os.fsync(out.fileno())
    except OSError:
        out.truncate(whole)
        raise
