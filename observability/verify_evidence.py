#!/usr/bin/env python3
"""Checks an evidence bundle of an agent-rft job-card store, with Python 3.9 or newer and nothing else.

    python3 verify_evidence.py BUNDLE [--key KEYS] [--roots FILE]

BUNDLE is the zip, or the folder that it was unpacked to. KEYS are the store's public keys: its key file, or one key as 64 hex
digits. Take them from the store's owner, never from the bundle. FILE is the list of signed roots that is kept outside the
store. Ends with 0 if everything holds, with 1 if anything does not or no key was given.

It stands alone on purpose: it imports nothing of the store, opens no connection, writes no file and runs nothing of the
bundle. What is in the bundle may be hostile, so whatever is too large, too deep or oddly named is refused.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import stat
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

FORMAT = "agent-rft evidence 1"
ROOT_STATEMENT = "agent-rft ledger root 1"
WAIVER_STATEMENT = "agent-rft waiver 1"
MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
BELONG_TO_A_CARD = (
    "credit", "grade", "review", "label", "change", "outcome", "state", "spans", "erasure", "approval", "approval decision", "approval use"
)  # fmt: skip

MIB = 1 << 20
MOST_FILES = 60_000
MOST_ZIPPED = 512 * MIB
MOST_BYTES = 2048 * MIB  # read in all, unpacked
MOST_PARSED = 64 * MIB  # of a file that is read as JSON
MOST_DIGITS = 40
MOST_ROOTS = 10_000
MOST_SHOWN = 50  # faults of one card
CHUNK = 1 << 16
NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/")


class Refused(Exception):
    """Something that is not looked at any further."""


# --- Ed25519 (RFC 8032), verification only ------------------------------------------------------------------------------

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT_OF_MINUS_ONE = pow(2, (P - 1) // 4, P)
Point = tuple[int, int, int, int]  # X, Y, Z and T with x = X/Z, y = Y/Z, xy = T/Z
NEUTRAL: Point = (0, 1, 1, 0)


def signature_holds(public: bytes, message: bytes, signature: bytes) -> bool:
    """Strict: one signature has one form, and points of small order, under which a signature fits any text, are no keys."""
    if len(public) != 32 or len(signature) != 64:
        return False
    key, nonce, scalar = point_of(public), point_of(signature[:32]), int.from_bytes(signature[32:], "little")
    if key is None or nonce is None or scalar >= ORDER or is_small(key) or is_small(nonce):
        return False
    challenge = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % ORDER
    return same(times(scalar, BASE), plus(nonce, times(challenge, key)))


def point_of(encoded: bytes) -> Point | None:
    y = int.from_bytes(encoded, "little")
    odd, y = y >> 255, y & ((1 << 255) - 1)
    if y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * ROOT_OF_MINUS_ONE % P
    if x * x % P != square or (x == 0 and odd):
        return None
    x = P - x if x & 1 != odd else x
    return x, y, 1, x * y % P


def plus(one: Point, other: Point) -> Point:
    a, b = (one[1] - one[0]) * (other[1] - other[0]) % P, (one[1] + one[0]) * (other[1] + other[0]) % P
    c, d = 2 * one[3] * other[3] * D % P, 2 * one[2] * other[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def times(factor: int, point: Point) -> Point:
    total = NEUTRAL
    while factor:
        if factor & 1:
            total = plus(total, point)
        point, factor = plus(point, point), factor >> 1
    return total


def same(one: Point, other: Point) -> bool:
    return (one[0] * other[2] - other[0] * one[2]) % P == 0 and (one[1] * other[2] - other[1] * one[2]) % P == 0


def is_small(point: Point) -> bool:
    return same(times(8, point), NEUTRAL)


def base_point() -> Point:
    point = point_of((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))
    if point is None:
        raise AssertionError("the base point of RFC 8032 is a point")
    return point


BASE = base_point()

# --- Merkle trees (RFC 6962, verified as in RFC 9162) ---------------------------------------------------------------------


def node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def stands_in(leaf: bytes, index: int, size: int, path: list[bytes], root: bytes) -> bool:
    if not 0 <= index < size:
        return False
    at, last, value = index, size - 1, hashlib.sha256(b"\0" + leaf).digest()
    for other in path:
        if last == 0:
            return False
        if at & 1 or at == last:
            value = node(other, value)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            value = node(value, other)
        at, last = at >> 1, last >> 1
    return last == 0 and value == root


def goes_on(old_root: bytes, old: int, new_root: bytes, new: int, path: list[bytes]) -> bool:
    if not 1 <= old < new or not path:
        return False
    if old & (old - 1) == 0:
        path = [old_root, *path]
    at, last = old - 1, new - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    of_old = of_new = path[0]
    for other in path[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            of_old, of_new = node(other, of_old), node(other, of_new)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            of_new = node(of_new, other)
        at, last = at >> 1, last >> 1
    return last == 0 and of_old == old_root and of_new == new_root


# --- reading what may be hostile --------------------------------------------------------------------------------------------


class Bundle:
    """Files by name, from a folder or a zip. Nothing is ever unpacked to disk."""

    def __init__(self, path: str) -> None:
        self.path, self.left = path, MOST_BYTES
        self.zip: zipfile.ZipFile | None = None
        self.members: dict[str, zipfile.ZipInfo] = {}
        if os.path.isdir(path):
            self.names = self._files_of_folder()
        else:
            self.zip = opened_zip(path)
            self.members = members_of(self.zip)
            self.names = set(self.members)

    def chunks(self, name: str) -> Iterator[bytes]:
        if name not in self.names:
            raise Refused(f"{shown(name)} is missing")
        try:
            with self.zip.open(self.members[name]) if self.zip else open(os.path.join(self.path, *name.split("/")), "rb") as file:
                while chunk := file.read(CHUNK):
                    self.left -= len(chunk)
                    if self.left < 0:
                        raise Refused(f"the bundle holds more than {MOST_BYTES // MIB} MiB")
                    yield chunk
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise Refused(f"{name} cannot be unpacked ({type(error).__name__})") from None

    def read(self, name: str, most: int = MOST_PARSED) -> bytes:
        content = bytearray()
        for chunk in self.chunks(name):
            content += chunk
            if len(content) > most:
                raise Refused(f"{name} is larger than {most} bytes")
        return bytes(content)

    def digest(self, name: str, salt: bytes = b"") -> str:
        total = hashlib.sha256(salt)
        for chunk in self.chunks(name):
            total.update(chunk)
        return total.hexdigest()

    def _files_of_folder(self) -> set[str]:
        found = set[str]()
        for folder, inner, files in os.walk(self.path):
            for one in [*inner, *files]:
                path = os.path.join(folder, one)
                mode = os.lstat(path).st_mode
                if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                    raise Refused(f"{shown(path)} is neither a file nor a folder")
                if stat.S_ISREG(mode):
                    found.add(checked_name(os.path.relpath(path, self.path).replace(os.sep, "/")))
            if len(found) > MOST_FILES:
                raise Refused(f"the bundle has more than {MOST_FILES} files")
        return found


def opened_zip(path: str) -> zipfile.ZipFile:
    """Looks at the end of the file first: its directory is read into memory whole, so it must be small."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise Refused("the bundle is neither a file nor a folder")
    size = os.path.getsize(path)
    if size > MOST_ZIPPED:
        raise Refused(f"the bundle is larger than {MOST_ZIPPED // MIB} MiB")
    with open(path, "rb") as file:
        file.seek(max(0, size - 42))
        tail = file.read(42)
    end = tail[-22:]
    if len(end) < 22 or end[:4] != b"PK\5\6" or end[20:22] != b"\0\0":
        raise Refused("it does not end as a zip without a comment does")
    if tail[:4] == b"PK\6\7" or int.from_bytes(end[10:12], "little") > MOST_FILES:
        raise Refused(f"the bundle has more than {MOST_FILES} files")
    if int.from_bytes(end[12:16], "little") > 16 * MIB:
        raise Refused("the zip's directory is too large")
    return zipfile.ZipFile(path)


def members_of(bundle: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    members, folded = dict[str, zipfile.ZipInfo](), set[str]()
    for member in bundle.infolist():
        name = checked_name(member.orig_filename[:-1] if member.orig_filename.endswith("/") else member.orig_filename)
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Refused(f"{name} is encrypted or packed in a way that is not read here")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise Refused(f"{name} is a link")
        if name.lower() in folded:
            raise Refused(f"{name} is there twice")
        folded.add(name.lower())
        if not member.orig_filename.endswith("/"):
            members[name] = member
    return members


def checked_name(name: str) -> str:
    if len(name) > 200 or not set(name) <= NAME_LETTERS or any(part in ("", ".", "..") for part in name.split("/")):
        raise Refused(f"a file has the name {shown(name)}, which is not a plain path within the bundle")
    return name


def whole_number(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise Refused("a number has too many digits")
    return int(digits)


def no_constant(name: str) -> object:
    raise Refused(f"{name} is no JSON")


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Refused("a key is there twice")
    return found


def parsed(content: bytes, where: str) -> Any:
    try:
        return json.loads(content.decode("utf-8"), parse_int=whole_number, parse_constant=no_constant, object_pairs_hook=once)
    except RecursionError:
        raise Refused(f"{where} is nested too deep") from None
    except ValueError:
        raise Refused(f"{where} is no JSON") from None
    except Refused as why:
        raise Refused(f"{where}: {why}") from None


def list_in(content: bytes, where: str) -> list[Any]:
    value = parsed(content, where)
    if not isinstance(value, list):
        raise Refused(f"{where} is not a list")
    return value


def shaped(value: Any, where: str, **kinds: type) -> dict[str, Any]:
    """An object with exactly these keys of exactly these kinds."""
    wrong = not isinstance(value, dict) or set(value) != set(kinds) or any(type(value[key]) is not kind for key, kind in kinds.items())
    if wrong:
        raise Refused(f"{where} does not have the keys {', '.join(kinds)}, or not of the right kinds")
    return value


def lines_of(bundle: Bundle, name: str, **kinds: type) -> list[dict[str, Any]]:
    lines = bundle.read(name).split(b"\n")
    return [shaped(parsed(line, f"{name} line {number}"), f"{name} line {number}", **kinds) for number, line in enumerate(lines, 1) if line]


def digest_bytes(text: Any, where: str) -> bytes:
    try:
        value = bytes.fromhex(text)
    except (TypeError, ValueError):
        value = b""
    if len(value) != 32 or value.hex() != text:
        raise Refused(f"{where} is not 64 lower-case hex digits")
    return value


def signature_bytes(text: object) -> bytes:
    """None where it is no hex: no such signature holds."""
    try:
        return bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        return b""


def shown(value: object) -> str:
    """Text of the bundle's as it may be put on a terminal."""
    text = "".join(letter if letter.isprintable() else "?" for letter in str(value)[:201])
    return text if len(text) <= 200 else text[:199] + "\u2026"


# --- keys and roots ---------------------------------------------------------------------------------------------------------


@dataclass
class Key:
    public: bytes
    since: str
    until: str | None

    def why_not(self, message: bytes, signature: bytes, at: str) -> str:
        if not self.since <= at or (self.until is not None and at > self.until):
            return f"it is dated {shown(at)}, when its key was not in use ({shown(self.since)} to {shown(self.until or 'now')})"
        return "" if signature_holds(self.public, message, signature) else "its signature is false"


def keys_of(content: bytes, where: str) -> dict[str, Key]:
    text = content.decode("utf-8", "replace").strip()
    if len(text) == 64:
        public = digest_bytes(text.lower(), where)
        return {key_id(public): Key(public, "", None)}
    found = dict[str, Key]()
    for one in list_in(content, where):
        until = one.get("until") if isinstance(one, dict) else None
        kinds = {"id": str, "public": str, "from": str, "until": type(None) if until is None else str}
        shaped(one, f"a key of {where}", **kinds)
        public = digest_bytes(one["public"], f"a public key of {where}")
        if key_id(public) != one["id"]:
            raise Refused(f"{where}: the key {shown(one['id'])} has another id, {key_id(public)}")
        found[one["id"]] = Key(public, one["from"], until)
    return found


def key_id(public: bytes) -> str:
    return hashlib.sha256(public).hexdigest()[:16]


def outside_roots(path: str, tenant: str) -> dict[int, set[str]]:
    """The roots of this tenant in the file outside the store, by size."""
    found: dict[int, set[str]] = {}
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            root = parsed(line, f"{path} line {number}") if line.strip() else None
            if isinstance(root, dict) and root.get("tenant") == tenant and type(root.get("size")) is int:
                found.setdefault(root["size"], set()).add(str(root.get("root")))
    return found


# --- the examination --------------------------------------------------------------------------------------------------------


@dataclass
class Card:
    """A card, or a release that cards were made under."""

    subject: str
    title: str
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


class Examination:
    """One bundle, looked at from the outside in: manifest, roots, ledger entries, records, cards."""

    def __init__(self, bundle: Bundle, keys: dict[str, Key]) -> None:
        self.bundle, self.keys = bundle, keys
        self.faults: list[str] = []
        self.notes: list[str] = []
        self.case: dict[str, Any] = {}
        self.roots: dict[int, bytes] = {}
        self.signed_at: dict[int, str] = {}
        self.entries: dict[int, dict[str, Any]] = {}
        self.entry_faults: dict[int, list[str]] = {}
        self.proven_by: dict[int, int] = {}
        self.facts: dict[int, dict[str, Any]] = {}
        self.cards: dict[str, Card] = {}
        self.erasures: dict[str, int] = {}  # of a card, the last that holds
        self.releases: dict[int, Card] = {}
        self.agents: dict[str, list[Card]] = {}  # the releases that each is on trial or live in
        self.approvals: dict[int, int] = {}  # by the number that decisions name: the entry
        self.allowed = set[int]()  # uses of what was approved before, and used by none before
        self.graders: dict[tuple[str, str], str] = {}
        self.sources = 0
        self.incomplete: list[str] = []

    def run(self, outside: str | None) -> None:
        first = (self.manifest, self.read_roots, self.read_graders, self.read_capture)
        for part in (*first, self.read_entries, self.read_continuations, self.read_inclusions):
            self.attempt(part)
        if outside is not None:
            self.attempt(lambda: self.compare_outside(outside))
        for seq in self.entries:
            self.attempt(lambda seq=seq: self.read_facts(seq), seq)
        self.gather_releases()
        self.attempt(self.read_approvals)
        self.gather_uses()
        self.gather_cards()
        self.attempt(self.read_accesses)
        for seq in self.entries:
            self.attempt(lambda seq=seq: self.read_payload(seq), seq)
        for release in self.releases.values():
            if not release.counts:
                release.notes.append("named by no card that still has its words: that it belongs here is its maker's word")
        for seq in self.entries:
            self.attempt(lambda seq=seq: self.judge_decision(seq), seq)
            self.attempt(lambda seq=seq: self.judge_of_release(seq), seq)
        self.judge_cards()

    def attempt(self, part: Any, seq: int | None = None) -> None:
        """A part that cannot be read is a fault like others: what else there is, is still looked at."""
        try:
            part()
        except Refused as why:
            (self.faults if seq is None else self.entry_faults[seq]).append(str(why))

    def manifest(self) -> None:
        content = self.bundle.read(MANIFEST)
        manifest = shaped(parsed(content, MANIFEST), MANIFEST, format=str, case=dict, key=str, files=dict)
        if manifest["format"] != FORMAT:
            raise Refused(f"the bundle's format is {shown(manifest['format'])}; this reads {FORMAT}")
        self.case = shaped(manifest["case"], "the case", name=str, tenant=str, question=str, made_at=str, made_by=str)
        key = self.keys.get(manifest["key"])
        if key is None:
            self.faults.append(f"the manifest is signed with key {shown(manifest['key'])}, which is not among the known ones")
        elif why := key.why_not(content, self.bundle.read(SIGNATURE, 64), self.case["made_at"]):
            self.faults.append(f"the manifest: {why}")
        listed = manifest["files"]
        for name in sorted(self.bundle.names - set(listed) - {MANIFEST, SIGNATURE}):
            self.faults.append(f"{name} is in the bundle, and the manifest does not list it")
        for name in sorted(listed):
            if name not in self.bundle.names:
                self.faults.append(f"{shown(name)} is listed in the manifest and missing")
            elif self.bundle.digest(name) != listed[name]:
                self.faults.append(f"{name} is not the file that the manifest lists")
        self.notes.append(f"{len(listed)} files listed")

    def read_roots(self) -> None:
        names = sorted(name for name in self.bundle.names if name.startswith("roots/") and name.endswith(".json"))
        if len(names) > MOST_ROOTS:
            raise Refused(f"there are more than {MOST_ROOTS} roots")
        for name in names:
            self.attempt(lambda name=name: self.read_root(name))
        self.notes.append(f"{len(self.roots)} signed roots")

    def read_root(self, name: str) -> None:
        content, signature = self.bundle.read(name, 4096), self.bundle.read(name[: -len("json")] + "sig", 64)
        root = shaped(parsed(content, name), name, statement=str, tenant=str, size=int, root=str, at=str, key=str)
        value, key = digest_bytes(root["root"], name), self.keys.get(root["key"])
        if root["statement"] != ROOT_STATEMENT or root["tenant"] != self.case.get("tenant") or root["size"] < 1:
            raise Refused(f"{name} is no root of this tenant's ledger")
        why = "its key is not among the known ones" if key is None else key.why_not(content, signature, root["at"])
        if why or root["size"] in self.roots:
            raise Refused(f"{name}: {why or 'there are two roots of this size'}")
        self.roots[root["size"]], self.signed_at[root["size"]] = value, root["at"]

    def read_graders(self) -> None:
        for one in list_in(self.bundle.read("graders.json"), "graders.json"):
            if not isinstance(one, dict) or not all(isinstance(one.get(key), str) for key in ("name", "version", "hash")):
                raise Refused("graders.json is not a list of grader versions, each with name, version and hash")
            self.graders[one["name"], one["version"]] = one["hash"]

    def read_capture(self) -> None:
        """What is missing of the tenant's cards, as far as it can be known. Bundles of before have no word on it."""
        if "capture.json" not in self.bundle.names:
            return
        for one in list_in(self.bundle.read("capture.json"), "capture.json"):
            source = shaped(one, "capture.json", name=str, complete=bool, missing=str, told=list)
            self.sources += 1
            if not source["complete"]:
                self.incomplete.append(f"source {shown(source['name'])}: {'; '.join(shown(told) for told in source['told'])}")

    def read_entries(self) -> None:
        texts = ("tenant", "at", "kind", "subject", "facts", "payload", "previous", "hash")
        lines = lines_of(self.bundle, "ledger.jsonl", seq=int, **dict.fromkeys(texts, str))
        before: dict[str, Any] | None = None
        for entry in lines:
            seq = entry["seq"]
            if seq in self.entries or seq < 1:
                raise Refused(f"ledger.jsonl has two entries numbered {seq}, or one below 1")
            self.entries[seq], faults = entry, self.entry_faults.setdefault(seq, [])
            if entry["tenant"] != self.case.get("tenant"):
                faults.append(f"the entry belongs to tenant {shown(entry['tenant'])}, not to the case's")
            content = {key: value for key, value in entry.items() if key != "hash"}
            canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            if hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest() != entry["hash"]:
                faults.append("the ledger entry was edited: its content does not give its hash")
            if before and before["seq"] + 1 == seq and before["hash"] != entry["previous"]:
                faults.append(f"the entry does not follow on entry {before['seq']}")
            before = entry

    def read_continuations(self) -> None:
        proven = set[tuple[int, int]]()
        for line in lines_of(self.bundle, "continuations.jsonl", old=int, new=int, path=list):
            old, new = line["old"], line["new"]
            path = [digest_bytes(one, "continuations.jsonl") for one in line["path"]]
            if old in self.roots and new in self.roots and goes_on(self.roots[old], old, self.roots[new], new, path):
                proven.add((old, new))
        sizes = sorted(self.roots)
        for old, new in zip(sizes, sizes[1:]):  # noqa: B905, RUF007 (Python 3.9)
            if (old, new) not in proven:
                self.faults.append(
                    f"it is not proven that the root of {new} entries goes on with the root of {old}: the ledger was written anew"
                )

    def read_inclusions(self) -> None:
        for line in lines_of(self.bundle, "inclusions.jsonl", seq=int, size=int, path=list):
            seq, size = line["seq"], line["size"]
            path = [digest_bytes(one, "inclusions.jsonl") for one in line["path"]]
            if seq in self.entries and size in self.roots:
                leaf = digest_bytes(self.entries[seq]["hash"], f"the hash of entry {seq}")
                if stands_in(leaf, seq - 1, size, path, self.roots[size]):
                    self.proven_by[seq] = size
        for seq in self.entries:
            if seq not in self.proven_by:
                self.entry_faults[seq].append("it is not proven that the entry stands in the signed ledger")

    def compare_outside(self, path: str) -> None:
        known = outside_roots(path, self.case.get("tenant", ""))
        for size in sorted(self.roots):
            if size not in known:
                self.faults.append(f"the root of {size} entries is not in {shown(path)}")
            elif known[size] != {self.roots[size].hex()}:
                self.faults.append(f"{shown(path)} has another root of {size} entries: the ledger was written anew")

    def read_facts(self, seq: int) -> None:
        entry, name = self.entries[seq], f"records/{seq:012}/facts.json"
        content = self.bundle.read(name)
        if hashlib.sha256(content).hexdigest() != entry["facts"]:
            raise Refused(
                f"the facts of {shown(entry['kind'])} {shown(entry['subject'])} were edited: they are not those that were recorded"
            )
        facts = parsed(content, name)
        if not isinstance(facts, dict) or facts.get("tenant") != entry["tenant"]:
            raise Refused(f"{name} tells of another tenant")
        if entry["kind"] == "card" and facts.get("rollout_id") != entry["subject"]:
            raise Refused(f"{name} tells of another card")
        self.facts[seq] = facts

    def told(self, seq: int, kind: str) -> dict[str, Any]:
        """The facts of an entry, if it is one of this kind."""
        return self.facts.get(seq, {}) if self.entries.get(seq, {}).get("kind") == kind else {}

    def gather_releases(self) -> None:
        """A release's number is given after it was entered. The entry that follows is of its first event, which names it."""
        for seq, entry in self.entries.items():
            if entry["kind"] != "release" or seq not in self.facts:
                continue
            facts, first = self.facts[seq], self.told(seq + 1, "release event")
            number = first.get("release")
            if first.get("act") != "create" or type(number) is not int or number in self.releases:
                self.entry_faults[seq].append(
                    "the entry after it is not the event that this release began with, so nothing says which it is"
                )
                continue
            agents = [str(facts.get(name) or "") for name in ("candidate", "live")]
            title = f"{shown(facts.get('service'))}: {shown(agents[0])} against {shown(agents[1] or 'none')}"
            self.releases[number] = release = Card(str(number), title)
            for agent in filter(None, agents):
                self.agents.setdefault(agent, []).append(release)

    def read_approvals(self) -> None:
        """Nor has an approval its number: that it is this one is the maker's word, and `judge_decision` looks for more. Bundles of
        before have none."""
        if "approvals.jsonl" not in self.bundle.names:
            return
        before = (0, 0)
        for line in lines_of(self.bundle, "approvals.jsonl", number=int, entry=int):
            number, seq = line["number"], line["entry"]
            if number <= before[0] or seq <= before[1] or not self.told(seq, "approval"):
                raise Refused(f"approvals.jsonl gives the number {number} to entry {seq}, which is no approval or out of their order")
            self.approvals[number], before = seq, (number, seq)

    def gather_uses(self) -> None:
        decided: dict[int, list[str]] = {}
        for seq in sorted(self.facts):
            kind, number = self.entries[seq]["kind"], self.facts[seq].get("approval")
            if kind not in ("approval decision", "approval use") or type(number) is not int:
                continue
            before = decided.setdefault(number, [])
            if kind == "approval use" and before == ["approve"]:
                self.allowed.add(seq)
            before.append(str(self.facts[seq].get("decision")))

    def gather_cards(self) -> None:
        for seq, entry in self.entries.items():
            if entry["kind"] == "card":
                facts = self.facts.get(seq, {})
                if entry["subject"] in self.cards:
                    self.entry_faults[seq].append("the card is recorded twice")
                title = ", ".join(shown(facts[key]) for key in ("kind", "started_at", "ending") if facts.get(key) is not None)
                self.cards.setdefault(entry["subject"], Card(entry["subject"], title))
        for seq, entry in self.entries.items():
            if entry["kind"] in BELONG_TO_A_CARD and seq in self.facts and self.card_of(seq) is None:
                self.entry_faults[seq].append(f"the {entry['kind']} belongs to no card of this bundle")
            card = self.card_of(seq)
            if entry["kind"] == "erasure" and card and not self.entry_faults[seq]:
                self.erasures[card.subject] = max(seq, self.erasures.get(card.subject, 0))

    def card_of(self, seq: int) -> Card | None:
        entry = self.entries[seq]
        if entry["kind"] in ("approval decision", "approval use"):
            seq = self.asked_in(seq)
        about = entry["subject"] if entry["kind"] == "card" else self.facts.get(seq, {}).get("rollout_id")
        return self.cards.get(about) if isinstance(about, str) else None

    def asked_in(self, seq: int) -> int:
        """The entry of the approval that a decision or a use names; 0 where there is none."""
        number = self.facts.get(seq, {}).get("approval")
        return self.approvals.get(number, 0) if type(number) is int else 0

    def read_accesses(self) -> None:
        """Who did what and when was entered in the ledger; to which cards, only the bundle's maker says here."""
        for line in lines_of(self.bundle, "access.jsonl", rollout_id=str, by=str, action=str, subject=str, at=str, entry=int):
            seq, card = line["entry"], self.cards.get(line["rollout_id"])
            facts = self.facts.get(seq, {}) if self.entries.get(seq, {}).get("kind") == "access" else {}
            if card is None or any(facts.get(key) != line[key] for key in ("by", "action", "subject", "at")):
                raise Refused(f"access.jsonl tells of an access by {shown(line['by'])} (entry {seq}) that was not recorded like that")
            card.notes.append(f"{shown(line['action'])} by {shown(line['by'])} on {shown(line['at'])} (entry {seq})")

    def read_payload(self, seq: int) -> None:
        entry, folder = self.entries[seq], f"records/{seq:012}"
        names = {f"{folder}/payload.json", f"{folder}/salt"} & self.bundle.names
        if not entry["payload"]:
            if names:
                raise Refused(f"{folder} has a payload, and none was recorded")
        elif len(names) == 2:
            salt = self.bundle.read(f"{folder}/salt", 16)
            if len(salt) != 16 or self.bundle.digest(f"{folder}/payload.json", salt) != entry["payload"]:
                raise Refused(
                    f"the words of {shown(entry['kind'])} {shown(entry['subject'])} were edited: they are not those that were recorded"
                )
            if entry["kind"] == "card" and self.releases:
                self.name_release(seq, f"{folder}/payload.json")
        else:
            self.must_be_erased(seq)

    def must_be_erased(self, seq: int) -> None:
        entry, card = self.entries[seq], self.card_of(seq)
        what = f"the words of {shown(entry['kind'])} {shown(entry['subject'])}"
        erasure = self.erasures.get(card.subject, 0) if card else 0
        if card is None or erasure <= seq:
            raise Refused(f"{what} are missing, and no erasure of them is recorded")
        card.notes.append(f"{what}: erased on {shown(self.entries[erasure]['at'])} (entry {erasure}); its facts and proofs stand")

    def judge_decision(self, seq: int) -> None:
        """A decision is entered together with a line of the access log, which says of which call of which card it is."""
        entry, card, asked = self.entries[seq], self.card_of(seq), self.facts.get(self.asked_in(seq), {})
        if entry["kind"] not in ("approval decision", "approval use") or card is None:
            return
        facts, call = self.facts[seq], f"call {shown(asked.get('call_id'))} of {shown(asked.get('tool'))}"
        number, by, at = facts["approval"], shown(facts.get("by")), shown(entry["at"])
        if entry["kind"] == "approval decision":
            line, about = self.told(seq + 1, "access"), hashlib.sha256(f'["{card.subject}"]'.encode()).hexdigest()
            subject = f"approval {number}, {asked.get('tool')}"
            if (line.get("subject"), line.get("cards_digest"), line.get("by")) != (subject, about, facts.get("by")):
                raise Refused("the entry after it does not say that this decision was about that call")
            card.notes.append(f"{call}: {shown(facts.get('decision'))} by {by} on {at} (entry {seq})")
            return
        if seq not in self.allowed:
            raise Refused(f"{call} was let through, and no approval of it is recorded before, or it was used already")
        card.notes.append(f"{call}: let through once on {at} (entry {seq})")

    def judge_of_release(self, seq: int) -> None:
        entry, facts = self.entries[seq], self.facts.get(seq)
        if facts is None or entry["kind"] not in ("release event", "report"):
            return
        when = f"on {shown(entry['at'])} by {shown(facts.get('by'))} (entry {seq})"
        if entry["kind"] == "report":
            said = (
                f"{shown(facts.get('kind'))} of {shown(facts.get('agent'))} {'passed' if facts.get('passed') is True else 'FAILED'}, {when}"
            )
            of_agent = self.agents.get(str(facts.get("agent")), [])
            if not of_agent:
                raise Refused("the report is of no agent of a release of this bundle")
            for release in of_agent:
                release.notes.append(said)
            return
        release = self.release_of(seq)
        if release is None:
            raise Refused("the event belongs to no release of this bundle")
        signed = self.waiver(facts) if facts.get("act") == "waive" else ""
        share = f" {facts['share']:.0%}" if type(facts.get("share")) is float and facts.get("stage") == "canary" else ""
        release.notes.append(f"{shown(facts.get('act'))}: {shown(facts.get('stage'))}{share} {when}: {shown(facts.get('why'))}{signed}")

    def waiver(self, event: dict[str, Any]) -> str:
        """Signed for this person and this release, with a key of the store's: whoever only writes the store can make none up."""
        figures = event.get("figures")
        waiver = figures.get("waiver") if isinstance(figures, dict) else None
        if not isinstance(waiver, dict):
            raise Refused("there is no waiver in it")
        told = {name: value for name, value in waiver.items() if name != "signature"}
        if any(told.get(name) != event.get(name) for name in ("tenant", "release", "by")):
            raise Refused("the waiver in it is of another release or person")
        stated = {"statement": WAIVER_STATEMENT, **told}
        content = json.dumps(stated, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
        key = self.keys.get(str(told.get("key")))
        if key is None:
            raise Refused(f"the waiver in it is signed with key {shown(told.get('key'))}, which is not among the known ones")
        if why := key.why_not(content, signature_bytes(waiver.get("signature")), str(told.get("at"))):
            raise Refused(f"the waiver in it: {why}")
        return f"; signed with key {shown(told['key'])}"

    def release_of(self, seq: int) -> Card | None:
        """Of a release its own; of an event the one that it names."""
        kind = self.entries[seq]["kind"]
        event = self.facts.get(seq + 1 if kind == "release" else seq, {}) if kind in ("release", "release event") else {}
        return self.releases.get(event["release"]) if type(event.get("release")) is int else None

    def judge_cards(self) -> None:
        for seq, entry in self.entries.items():
            card, told = self.card_of(seq) or self.release_of(seq), [f"entry {seq}: {fault}" for fault in self.entry_faults[seq]]
            (card.faults if card else self.faults).extend(told)
            if card is None:
                continue
            card.counts[entry["kind"]] = card.counts.get(entry["kind"], 0) + 1
            if entry["kind"] == "grade" and seq in self.facts:
                self.name_grader(seq, card)
            elif entry["kind"] == "card" and seq in self.proven_by:
                size = self.proven_by[seq]
                card.notes.insert(
                    0, f"entry {seq}, recorded {shown(entry['at'])}, in the root of {size} signed {shown(self.signed_at[size])}"
                )

    def name_release(self, seq: int, name: str) -> None:
        payload, card = parsed(self.bundle.read(name), name), self.card_of(seq)
        about = payload.get("metadata") if isinstance(payload, dict) else None
        if card is None or not isinstance(about, dict):
            return
        number = about.get("release")
        if type(number) is int and number in self.releases:
            card.notes.append(f"made under release {number}, {shown(about.get('arm'))}")
            self.releases[number].counts["card"] = self.releases[number].counts.get("card", 0) + 1

    def name_grader(self, seq: int, card: Card) -> None:
        name, version, value = (shown(self.facts[seq].get(key)) for key in ("grader", "version", "hash"))
        described = self.graders.get((name, version))
        if described is None:
            card.notes.append(f"graded by {name}@{version}, which the bundle does not describe")
        elif described != value:
            card.faults.append(f"entry {seq}: graded by {name}@{version} with hash {value}; the bundle describes one with another hash")


# --- the verdict ------------------------------------------------------------------------------------------------------------


def report(found: Examination, trusted: bool) -> Iterator[str]:
    case = found.case
    if case:
        yield f"case {shown(case['name'])} of tenant {shown(case['tenant'])}, made {shown(case['made_at'])} by {shown(case['made_by'])}"
        yield f"chosen by: {shown(case['question'])}"
    yield f"the bundle: {', '.join(found.notes)}, {len(found.entries)} ledger entries, {len(found.cards)} cards"
    if found.sources:
        whole = found.sources - len(found.incomplete)
        yield f"{whole} of {found.sources} sources of this tenant are known to be complete; that is its maker's word, and in no ledger"
    yield from (f"  {source}" for source in listed(found.incomplete))
    if found.graders:
        yield "what graders.json says beyond name, version and hash is not covered by the ledger"
    yield from (f"  FAULT {fault}" for fault in listed(found.faults))
    for kind, every in (("card", list(found.cards.values())), ("release", list(found.releases.values()))):
        yield from (line for one in every for line in told_of(kind, one))
    faults = len(found.faults) + sum(len(one.faults) for one in (*found.cards.values(), *found.releases.values()))
    if faults:
        yield f"NOT TO BE TRUSTED: {faults} fault{'s' if faults > 1 else ''}"
    elif not found.cards:
        yield "NOTHING PROVEN: there is no card in it"
    elif not trusted:
        yield "NOT PROVEN: it agrees with the key that it brought along, as a forged one would; give the store's public keys with --key"
    else:
        yield "GENUINE: every record is what was recorded, and stands in the signed ledger"


def told_of(what: str, card: Card) -> Iterator[str]:
    others = ", ".join(f"{count} {shown(kind)}{'s' * (count > 1)}" for kind, count in sorted(card.counts.items()) if kind != what)
    yield f"{what} {shown(card.subject)} ({card.title}): {'FAULTY' if card.faults else 'as recorded'}{'; ' + others if others else ''}"
    yield from (f"  FAULT {fault}" for fault in listed(card.faults))
    yield from (f"  {note}" for note in listed(card.notes))


def listed(lines: list[str]) -> Iterable[str]:
    return lines if len(lines) <= MOST_SHOWN else [*lines[:MOST_SHOWN], f"and {len(lines) - MOST_SHOWN} more"]


def verify(path: str, key: str | None, roots: str | None) -> tuple[list[str], bool]:
    """The report, and whether everything holds."""
    bundle = Bundle(path)
    if key is None:
        keys = keys_of(bundle.read("keys.json", MIB), "keys.json")
    elif len(key) == 64 and not os.path.exists(key):
        keys = keys_of(key.encode(), "--key")
    else:
        with open(key, "rb") as file:
            keys = keys_of(file.read(MIB), key)
    found = Examination(bundle, keys)
    found.run(roots)
    lines = list(report(found, trusted=key is not None))
    return lines, lines[-1].startswith("GENUINE")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Checks an evidence bundle of an agent-rft job-card store.")
    parser.add_argument("bundle", help="the zip, or the folder that it was unpacked to")
    parser.add_argument("--key", help="the store's public keys: a file, or one key as 64 hex digits; never the bundle's own")
    parser.add_argument("--roots", help="the file of signed roots that is kept outside the store")
    given = parser.parse_args(arguments)
    try:
        lines, holds = verify(given.bundle, given.key, given.roots)
    except Refused as why:
        lines, holds = [f"REFUSED: {why}"], False
    except OSError as error:
        lines, holds = [f"REFUSED: {shown(error.filename or given.bundle)}: {error.strerror or 'cannot be read'}"], False
    except Exception as error:  # whatever a made-up file can bring zipfile or json to: it is no bundle of ours
        lines, holds = [f"REFUSED: it cannot be read ({type(error).__name__})"], False
    encoding = sys.stdout.encoding or "ascii"
    try:
        for line in lines:
            print(line.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:  # somebody's `| head` has seen enough; the verdict is in the exit status
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
