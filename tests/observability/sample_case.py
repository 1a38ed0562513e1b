"""A case to show and to forge: three cards, one of them erased, with what belongs to them, in a ledger among others."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from observability import verify_evidence
from observability.chain import Entry, Record, SignedRoot, canonical_bytes, facts_digest, next_entry, payload_digest
from observability.evidence import Case, Proofs, Signer, make_bundle, prove
from observability.merkle import Tree
from observability.signing import SigningKeys, public_keys, sign_root

TENANT = "acme"
CASE = Case(
    name="complaint 7", tenant=TENANT, question="run:research-42 grade<0.5", made_at="2026-11-23T00:00:00.000000+00:00", made_by="ann"
)
GRADER = {"name": "numeric", "version": "2", "hash": "a1b2c3d4e5f60718", "spec": {"type": "numeric"}}
READ = {"by": "ann", "action": "read", "subject": "card-1", "at": "2026-11-21T05:00:00.000000+00:00"}
ACCESS = {"rollout_id": "card-1", "entry": 12} | READ
VERIFIER = Path(verify_evidence.__file__).read_bytes()


class Sample(NamedTuple):
    keys: SigningKeys
    entries: list[Entry]
    records: list[Record]
    roots: list[SignedRoot]

    @property
    def signer(self) -> Signer:
        return Signer(key=self.keys.id, public_keys=public_keys(self.keys), sign=self.keys.sign)

    def proofs(self) -> Proofs:
        return prove((record.entry.seq for record in self.records), self.roots, (entry.hash for entry in self.entries))

    def bundle(self) -> bytes:
        return make_bundle(CASE, self.records, self.proofs(), [GRADER], [ACCESS], self.signer, VERIFIER)


def make_sample(keys: SigningKeys, erase: bool = True, root_sizes: tuple[int, ...] = (4, 9, 13)) -> Sample:
    entries: list[Entry] = []
    records: list[Record] = []

    def add(kind: str, subject: str, facts: dict[str, Any], payload: dict[str, Any] | None, shown: bool = True, gone: bool = False) -> None:
        salt, facts = hashlib.sha256(subject.encode()).digest()[:16], {"tenant": TENANT} | facts
        digest = payload_digest(payload, salt) if payload is not None else ""
        at = f"2026-11-21T04:00:{len(entries):02}.000000+00:00"
        entry = next_entry(
            entries[-1] if entries else None, tenant=TENANT, at=at, kind=kind, subject=subject, facts=facts_digest(facts), payload=digest
        )
        entries.append(entry)
        held, kept = (None, None) if gone or payload is None else (payload, salt)
        if shown:
            records.append(Record(entry=entry, facts=facts, payload=held, salt=kept, erased=gone))

    def card(rollout_id: str, **how: Any) -> None:
        facts = {"rollout_id": rollout_id, "kind": "production", "started_at": "2026-11-21T04:00:12+00:00", "ending": "answered"}
        add("card", rollout_id, facts, {"answer": "13.4% \u20ac", "steps": [{"said": "I look it up."}]}, **how)

    def grade(number: int, rollout_id: str, **how: Any) -> None:
        facts = {"rollout_id": rollout_id, "grader": "numeric", "version": "2", "hash": GRADER["hash"], "reward": 0.0}
        add("grade", str(number), facts, {"parts": {"found": "13.4%"}, "errors": {}}, **how)

    card("card-0", shown=False)
    card("card-1")
    grade(1, "card-1")
    card("card-2", gone=erase)
    grade(2, "card-2", gone=erase)
    card("card-9", shown=False)
    grade(3, "card-1")
    add("review", "1", {"rollout_id": "card-1", "verdict": "reject"}, {"note": "wrong quarter"})
    card("card-8", shown=False)
    if erase:
        add("erasure", "1", {"rollout_id": "card-2", "by": "bob", "why": "asked for by the person"}, None)
    else:
        card("card-7", shown=False)
    card("card-3")
    add("access", "read", {**READ, "cards": 1, "cards_digest": hashlib.sha256(b'["card-1"]').hexdigest()}, None)
    card("card-5", shown=False)
    tree, roots = Tree(), list[SignedRoot]()
    for entry in entries:
        tree.append(bytes.fromhex(entry.hash))
        if tree.size in root_sizes:
            roots.append(sign_root(keys, TENANT, tree.size, tree.root(), f"2026-11-22T00:00:{tree.size:02}.000000+00:00"))
    return Sample(keys, entries, records, roots)


def files_of(bundle: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(bundle)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def zip_of(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in files.items():
            made.writestr(name, content)
    return out.getvalue()


def resealed(files: dict[str, bytes], sign: Callable[[bytes], bytes]) -> dict[str, bytes]:
    """With a manifest that lists the files as they are now, signed: what one who has the key could make."""
    inner = {name: content for name, content in files.items() if name not in ("manifest.json", "manifest.sig")}
    manifest = json.loads(files["manifest.json"])
    manifest["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in inner.items()}
    content = canonical_bytes(manifest)
    return inner | {"manifest.json": content, "manifest.sig": sign(content)}
