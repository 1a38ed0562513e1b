"""A case as one file for someone who does not trust the store: records, ledger entries, proofs and roots, signed. Pure.

The format is described in docs/evidence.md. Halves lie in the file as the very bytes that were hashed, so that `sha256sum`
and `openssl` are enough to check one by hand.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import msgspec

from agent_rft.contracts.errors import Fault, FaultsFound, UserError
from observability.chain import Record, SignedRoot, canonical_bytes, root_statement
from observability.merkle import consistency_path, hashes_of, inclusion_path

FORMAT = "agent-rft evidence 1"
BEGINNING = (1980, 1, 1, 0, 0, 0)
"""The one time of every file in the bundle: the same case gives the same bytes."""
MOST_FILES = 60_000
"""What the verifier reads at most."""
README = b"""This is evidence from an agent-rft job-card store.

To check it, with Python 3.9 or newer and nothing else:

    python3 verify_evidence.py THIS.zip --key KEYS.json

Take KEYS.json (the store's public keys), and better also verify_evidence.py, from somewhere else than this file: whoever
can make up evidence can put a key and a verifier of their own beside it. keys.json in here tells which keys are meant.
"""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    tenant: str
    question: str
    """How the cards were chosen: a filter, ids, a person's words."""
    made_at: str
    made_by: str


class Inclusion(msgspec.Struct, frozen=True, kw_only=True):
    """That an entry stands in the tree of a root."""

    seq: int
    size: int
    path: tuple[str, ...]


class Continuation(msgspec.Struct, frozen=True, kw_only=True):
    """That the tree of one root goes on with the tree of an older one."""

    old: int
    new: int
    path: tuple[str, ...]


class Proofs(msgspec.Struct, frozen=True, kw_only=True):
    roots: tuple[SignedRoot, ...]
    """Those that prove something, by size."""
    inclusions: tuple[Inclusion, ...]
    continuations: tuple[Continuation, ...]


class Signer(msgspec.Struct, frozen=True, kw_only=True):
    """What signing takes here: keys stay with whoever has them."""

    key: str
    """Its id."""
    public_keys: bytes
    """As `signing.public_keys` writes them."""
    sign: Callable[[bytes], bytes]


def prove(seqs: Iterable[int], roots: Iterable[SignedRoot], hashes: Iterable[str]) -> Proofs:
    """Proofs for these entries, each against the first root that covers it, from one pass over the hashes of entry 1, 2, ..."""
    wanted, by_size = sorted(set(seqs)), {root.size: root for root in sorted(roots, key=lambda root: root.at, reverse=True)}
    sizes = sorted(by_size)
    uncovered = [seq for seq in wanted if not sizes or seq > sizes[-1]]
    if uncovered:
        faults = [Fault(f"entry {seq}", "no signed root covers it yet") for seq in uncovered]
        raise FaultsFound("not everything in this case can be proven", faults, "sign a root of the ledger as it is now, then try again")
    chosen = {seq: next(size for size in sizes if size >= seq) for seq in wanted}
    used = sorted(set(chosen.values()))
    paths = {seq: inclusion_path(seq - 1, size) for seq, size in chosen.items()}
    joints = {(old, new): consistency_path(old, new) for old, new in pairwise(used)}
    spans = [span for path in (*paths.values(), *joints.values()) for span in path]
    found = {span: value.hex() for span, value in hashes_of((bytes.fromhex(one) for one in hashes), spans).items()}
    return Proofs(
        roots=tuple(by_size[size] for size in used),
        inclusions=tuple(Inclusion(seq=seq, size=chosen[seq], path=tuple(found[span] for span in paths[seq])) for seq in wanted),
        continuations=tuple(
            Continuation(old=old, new=new, path=tuple(found[span] for span in path)) for (old, new), path in joints.items()
        ),
    )


def make_bundle(
    case: Case,
    records: Sequence[Record],
    proofs: Proofs,
    graders: Sequence[Mapping[str, Any]],
    accesses: Iterable[Mapping[str, Any]],
    signer: Signer,
    verifier: bytes,
    sources: Iterable[Mapping[str, Any]] = (),
    approvals: Iterable[Mapping[str, Any]] = (),
) -> bytes:
    """The bundle as a zip. `records` are cards and all that belongs to them: grades, reviews, labels, erasures, the approvals of their
    calls, the releases that they were made under.

    `graders` are the versions that graded, `accesses` who read the cards, `verifier` the source of verify_evidence.py,
    `sources` what is missing of the tenant's cards as far as that is known, `approvals` the numbers that decisions name them by.
    """
    records = sorted(records, key=lambda record: record.entry.seq)
    files = {"README.txt": README, "verify_evidence.py": verifier, "keys.json": signer.public_keys}
    files |= {"graders.json": _plain(list(graders)), "access.jsonl": _lines(accesses), "capture.json": _plain(list(sources))}
    files |= {"approvals.jsonl": told} if (told := _lines(approvals)) else {}
    files["ledger.jsonl"] = _lines(msgspec.structs.asdict(record.entry) for record in records)
    files["inclusions.jsonl"] = _lines(msgspec.structs.asdict(one) for one in proofs.inclusions)
    files["continuations.jsonl"] = _lines(msgspec.structs.asdict(one) for one in proofs.continuations)
    for root in proofs.roots:
        files[f"roots/{root.size:012}.json"] = root_statement(root)
        files[f"roots/{root.size:012}.sig"] = bytes.fromhex(root.signature)
    for record in records:
        files |= _record_files(record)
    listed = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = canonical_bytes({"format": FORMAT, "case": msgspec.structs.asdict(case), "key": signer.key, "files": listed})
    files |= {"manifest.json": manifest, "manifest.sig": signer.sign(manifest)}
    if len(files) > MOST_FILES:
        what = f"the case {case.name} takes {len(files)} files; a bundle has at most {MOST_FILES}"
        raise UserError(what, "narrow the case, or make several")
    return _zipped(files)


def _record_files(record: Record) -> dict[str, bytes]:
    folder = f"records/{record.entry.seq:012}"
    if record.facts is None:
        raise ValueError(f"entry {record.entry.seq}: {record.entry.kind} {record.entry.subject} has no facts to show")
    files = {f"{folder}/facts.json": canonical_bytes(record.facts)}
    if record.payload is not None and record.salt is not None:
        files |= {f"{folder}/payload.json": canonical_bytes(record.payload), f"{folder}/salt": record.salt}
    return files


def _plain(value: object) -> bytes:
    return canonical_bytes(value) + b"\n"


def _lines(values: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(_plain(value) for value in values)


def _zipped(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as bundle:
        for name in sorted(files):
            member = zipfile.ZipInfo(name, BEGINNING)
            member.compress_type, member.external_attr, member.create_system = zipfile.ZIP_DEFLATED, 0o644 << 16, 3
            bundle.writestr(member, files[name])
    return out.getvalue()
