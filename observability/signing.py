"""The keys that sign ledger roots and evidence: made on first use, replaced by rotation, known for ever.

One file holds them, readable by its owner alone. A rotation removes the old private key, so that nothing can be signed with
it again; its public half stays, with the time in which it was in use. Who verifies needs `public_keys` only, and must have
got them another way than with what they verify.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from agent_rft.contracts.errors import UserError
from observability.chain import SignedRoot, root_statement


class KnownKey(msgspec.Struct, frozen=True, kw_only=True, rename={"since": "from"}):
    """A public key, and when it was in use. What `--key` of the stand-alone verifier takes is a list of these."""

    id: str
    """The first 16 hex digits of the public key's SHA-256."""
    public: str
    """32 bytes, in hex."""
    since: str
    """UTC, ISO 8601."""
    until: str | None = None
    """None while it is the one that signs."""


class _KeptKey(KnownKey, frozen=True, kw_only=True, rename={"since": "from"}):
    private: str | None = None


class SigningKeys(msgspec.Struct, frozen=True):
    known: tuple[KnownKey, ...]
    """Oldest first; the last is the one that signs."""
    private: Ed25519PrivateKey

    @property
    def id(self) -> str:
        return self.known[-1].id

    def sign(self, message: bytes) -> bytes:
        return self.private.sign(message)

    def dated(self, now: str) -> str:
        """What a signature made now says of its time. A clock that stepped back behind the key's first day would make it void."""
        return max(now, self.known[-1].since)


def open_keys(file: Path, now: str) -> SigningKeys:
    """The keys in the file, which is made with a first key where there is none."""
    with _writing(file):
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            _write_new(file, [_fresh(now)])
    return _signing_keys(file, _read(file))


def known_keys(file: Path) -> tuple[KnownKey, ...]:
    """Enough to verify. The file may hold public halves only, as `public_keys` gives them out."""
    return _public(_read(file))


def rotate(file: Path, now: str, last: str = "") -> SigningKeys:
    """A new key signs from now on. The old one's private half is gone with this. `last` is when the keys last signed: a
    signature dated after its key's last day would count for nothing."""
    *older, newest = _read(file)
    if now <= (used := max(newest.since, last)):
        raise UserError(f"the newest key of {file} was in use on {used}, which is not before {now}", "look at this machine's clock")
    retired = msgspec.structs.replace(newest, until=now, private=None)
    keys = [*older, retired, _fresh(now)]
    with _writing(file):
        os.replace(_written_beside(file, keys), file)
        settle(file.parent)
    return _signing_keys(file, keys)


def sign_root(keys: SigningKeys, tenant: str, size: int, root: bytes, at: str) -> SignedRoot:
    unsigned = SignedRoot(tenant=tenant, size=size, root=root.hex(), at=keys.dated(at), key=keys.id, signature="")
    return msgspec.structs.replace(unsigned, signature=keys.sign(root_statement(unsigned)).hex())


def why_not_signed(root: SignedRoot, known: Sequence[KnownKey]) -> str:
    """Empty where one of the known keys signed this very root while it was in use; else what is wrong, for a reviewer."""
    return why_void(root.key, root.at, root.signature, root_statement(root), known)


def why_void(key_id: str, at: str, signature: str, statement: bytes, known: Sequence[KnownKey]) -> str:
    """Empty where the key of this id is known, was in use then, and signed these bytes; else what is wrong, for a reviewer."""
    key = next((one for one in known if one.id == key_id), None)
    if key is None:
        return f"it is signed with key {key_id}, which is not known"
    if at < key.since or (key.until is not None and at > key.until):
        return f"it is dated {at}, when key {key.id} was not in use ({key.since} to {key.until or 'now'})"
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.public)).verify(bytes.fromhex(signature), statement)
    except (InvalidSignature, ValueError):
        return f"its signature is not one of key {key.id}"
    return ""


def public_keys(keys: SigningKeys) -> bytes:
    """What to give to those who verify, by a way of its own: a file for `--key`."""
    return msgspec.json.format(msgspec.json.encode(keys.known), indent=2) + b"\n"


def _fresh(now: str) -> _KeptKey:
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    identity = hashlib.sha256(public).hexdigest()[:16]
    return _KeptKey(id=identity, public=public.hex(), since=now, private=private.private_bytes_raw().hex())


def _public(keys: Sequence[_KeptKey]) -> tuple[KnownKey, ...]:
    return tuple(KnownKey(id=key.id, public=key.public, since=key.since, until=key.until) for key in keys)


def _signing_keys(file: Path, keys: Sequence[_KeptKey]) -> SigningKeys:
    try:
        private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(keys[-1].private or ""))
    except ValueError:
        raise UserError(f"{file} has no private key for {keys[-1].id}", "bring back the file as it was written") from None
    if private.public_key().public_bytes_raw().hex() != keys[-1].public:
        raise UserError(
            f"{file}: the private key of {keys[-1].id} does not belong to its public key", "bring back the file as it was written"
        )
    return SigningKeys(_public(keys), private)


def _read(file: Path) -> list[_KeptKey]:
    try:
        mode, content = stat.S_IMODE(file.stat().st_mode), file.read_bytes()
        keys = msgspec.json.decode(content, type=list[_KeptKey])
    except OSError as error:
        raise UserError(f"cannot read the signing keys {file}: {error.strerror}", "give the path of a file that you own") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UserError(f"{file} holds no signing keys: {error}", "bring back the file as it was written") from error
    if mode & 0o077 and any(key.private for key in keys):
        raise UserError(f"others may read or write the signing keys {file} (mode {mode:o})", f"chmod 600 {file}")
    if not keys:
        raise UserError(f"{file} holds no signing key", "remove it to have one made")
    return keys


@contextmanager
def _writing(file: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"the signing keys {file} cannot be written: {error.strerror}", "name a folder that is yours to write in") from None


def _write_new(file: Path, keys: Sequence[_KeptKey]) -> None:
    """Two processes may both be first: the second's key is thrown away and it reads the first's."""
    written = _written_beside(file, keys)
    try:
        os.link(written, file)
    except FileExistsError:
        pass
    finally:
        os.unlink(written)
    settle(file.parent)


def _written_beside(file: Path, keys: Sequence[_KeptKey]) -> str:
    """On disk whole before it takes its name. A file made by mkstemp is its owner's alone."""
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
    with os.fdopen(descriptor, "wb") as out:
        out.write(msgspec.json.format(msgspec.json.encode(keys), indent=2) + b"\n")
        out.flush()
        os.fsync(out.fileno())
    return name


def settle(folder: Path) -> None:
    """What was renamed in the folder stays so through a power cut: a root must not outlive the key that signed it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
