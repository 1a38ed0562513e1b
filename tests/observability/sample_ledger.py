"""Ledgers to tamper with. A plain module, loaded by path."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from observability.chain import Entry, SignedRoot, next_entry
from observability.merkle import Tree

TENANT = "acme"


def make_ledger(size: int, tenant: str = TENANT, word: str = "") -> list[Entry]:
    """Entries of several kinds. The clock steps back an hour at every seventh."""
    made: list[Entry] = []
    for number in range(1, size + 1):
        digest = hashlib.sha256(f"{word}{number}".encode()).hexdigest()
        made.append(
            next_entry(
                made[-1] if made else None,
                tenant=tenant,
                at=f"2026-11-21T{12 - (number % 7 == 0):02}:{number % 60:02}:00.000000+00:00",
                kind=("card", "grade", "review")[number % 3],
                subject=f"subject-{word}{number}",
                facts=digest,
                payload="" if number % 3 == 1 else digest[::-1],
            )
        )
    return made


def make_root(entries: Iterable[Entry], tenant: str = TENANT) -> SignedRoot:
    """The root over these entries. Its signature is not what `check_chain` looks at."""
    tree = Tree()
    for entry in entries:
        tree.append(bytes.fromhex(entry.hash))
    root = tree.root().hex()
    return SignedRoot(tenant=tenant, size=tree.size, root=root, at=f"2026-11-22T00:00:{tree.size % 60:02}+00:00", key="k", signature="")
