"""Signed roots of the ledgers: each stands in the store and as a line of a file outside it, which whoever rewrites the store
does not reach."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from agent_rft.contracts.errors import UserError
from observability.book import entries_after
from observability.chain import GENESIS, SignedRoot
from observability.ledger import tenants
from observability.merkle import Tree
from observability.signing import KnownKey, SigningKeys, sign_root, why_not_signed
from observability.store import Store
from observability.tables import ledger, ledger_roots

BATCH = 5000


class LedgerFiles(NamedTuple):
    """The keys that sign, and the roots that they signed. Keep copies where nobody can change them."""

    keys: Path
    roots: Path

    @classmethod
    def of(cls, store: Store, folder: str | None) -> LedgerFiles:
        place = Path(folder) if folder else store.ledger_folder
        return cls(place / "keys.json", place / "roots.jsonl")


def sign_all(store: Store, keys: SigningKeys, file: Path, at: str) -> list[SignedRoot]:
    """A root of every ledger that has grown since its last."""
    signed = (sign(store, tenant, keys, file, at) for tenant in tenants(store))
    return [root for root in signed if root]


def sign(store: Store, tenant: str, keys: SigningKeys, file: Path, at: str) -> SignedRoot | None:
    """None where nothing was entered since the newest root.

    It goes on from the newest root in the file, whose tree the store keeps: the signature covers that tree, so it cannot have
    been changed. A ledger that does not go on from there is not signed: that would make a forgery genuine.
    """
    outside = [root for root in read_roots(file) if root.tenant == tenant]
    with store.reading() as connection:
        tree, before = _tree_of(connection, outside[-1] if outside else None, keys.known)
        grown = _grown(connection, tenant, tree, before)
    if not grown:
        return None
    root = sign_root(keys, tenant, tree.size, tree.root(), at)
    _append(root, file)
    values = msgspec.structs.asdict(root) | {"peaks": "".join(peak.hex() for peak in tree.peaks)}
    with store.writing() as connection:
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        connection.execute(insert(ledger_roots).on_conflict_do_nothing(), [values])
    return root


def read_roots(file: Path) -> list[SignedRoot]:
    """The lines of the file outside the store. None where there is no file yet."""
    try:
        lines = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"the signed roots in {file} cannot be read: {error.strerror}", "name the file that they are in") from None
    return list(_roots(lines, file))


def _roots(lines: Sequence[bytes], file: Path) -> Iterator[SignedRoot]:
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                yield msgspec.json.decode(line, type=SignedRoot)
        except msgspec.MsgspecError as error:
            raise UserError(f"{file}:{number}: this line is no signed root: {error}", "bring back the file as it was written") from None


def _tree_of(connection: sa.Connection, newest: SignedRoot | None, known: Sequence[KnownKey]) -> tuple[Tree, str]:
    """The tree under that root, and the hash of its last entry."""
    if newest is None:
        return Tree(), GENESIS
    if why := why_not_signed(newest, known):
        raise UserError(f"the newest root of {newest.tenant} is not ours: {why}", "use the keys and the file of roots that belong together")
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
            tree.append(bytes.fromhex(entry.hash))
    if tree.root().hex() != newest.root:
        raise _not_the_same(newest.tenant)
    return tree


def _grown(connection: sa.Connection, tenant: str, tree: Tree, before: str) -> bool:
    grown = False
    while batch := entries_after(connection, tenant, tree.size, BATCH):
        for entry in batch:
            if entry.previous != before or entry.seq != tree.size + 1:
                raise _not_the_same(tenant)
            tree.append(bytes.fromhex(entry.hash))
            before, grown = entry.hash, True
    return grown


def _not_the_same(tenant: str) -> UserError:
    what = f"the ledger of {tenant} does not go on from its newest signed root, so it is not signed"
    return UserError(what, "`rft ledger verify` says what was changed", exit_code=1)


def _append(root: SignedRoot, file: Path) -> None:
    """A line is durable before it counts."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as out:
        out.write(msgspec.json.encode(root) + b"\n")
        out.flush()
        os.fsync(out.fileno())
