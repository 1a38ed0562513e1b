"""The one place where a seed becomes other seeds: stable over processes, machines and Python's own hash randomisation."""

from __future__ import annotations

import hashlib

SEED_BITS = 63
"""A seed fits a signed 64-bit integer, which every sampler, store and JSON reader takes."""


def derive_seed(*parts: str | int) -> int:
    """A seed of its own for each distinct sequence of parts: `derive_seed(42, "train", row.id, 3)`.

    Each part goes in with its kind and length, so that ("ab", "c") and ("a", "bc"), or 1 and "1", never meet.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        kind = "text" if isinstance(part, str) else "number"
        encoded = str(part).encode()
        digest.update(f"{kind}:{len(encoded)}:".encode() + encoded)
    return int.from_bytes(digest.digest(), "big") >> (64 - SEED_BITS)
