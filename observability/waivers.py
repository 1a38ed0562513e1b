"""Waivers are signed with the ledger's key, so that whoever can write in the store cannot make one up.

The signature stands within the release's event, which the ledger covers: a waiver that was changed is found by `ledger verify`, and one
that was put in along with an entry of its own has no signature that holds, and counts for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from agent_rft.contracts.releases import Event, Waiver
from observability.chain import canonical_bytes
from observability.signing import KnownKey, SigningKeys, why_void


def waiver_statement(waiver: Waiver) -> bytes:
    """The bytes that are signed. They say what they are, so that no other signed text can be passed off as a waiver."""
    stated = msgspec.to_builtins(waiver)
    del stated["signature"]
    return canonical_bytes({"statement": "agent-rft waiver 1"} | stated)


def sign_waiver(keys: SigningKeys, unsigned: Waiver) -> Waiver:
    """Of an unsigned one `at` is the time now; key and signature come from here."""
    dated = msgspec.structs.replace(unsigned, at=keys.dated(unsigned.at), key=keys.id, signature="")
    return msgspec.structs.replace(dated, signature=keys.sign(waiver_statement(dated)).hex())


def waiver_in(event: Event) -> Waiver | None:
    """None where the event holds none that can be read: such a one waives nothing."""
    try:
        return msgspec.convert(event.figures.get("waiver"), Waiver) if event.act == "waive" else None
    except msgspec.ValidationError:
        return None


def why_no_waiver(waiver: Waiver, event: Event, tenant: str, known: Sequence[KnownKey]) -> str:
    """Empty where it was signed as it stands, for the very event that it stands in; else what is wrong, for a reviewer."""
    if (waiver.tenant, waiver.release, waiver.by) != (tenant, event.release, event.by):
        return f"it is {waiver.by}'s of release {waiver.release} of {waiver.tenant}, and stands under another"
    return why_void(waiver.key, waiver.at, waiver.signature, waiver_statement(waiver), known)
