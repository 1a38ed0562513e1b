"""Keys are made once, kept from others, replaced without forgetting, and sign what two independent verifiers accept."""

from __future__ import annotations

import json
import multiprocessing
import stat
from pathlib import Path

import msgspec
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_rft.contracts.errors import UserError
from observability.chain import root_statement
from observability.signing import known_keys, open_keys, public_keys, rotate, sign_root, why_not_signed
from observability.verify_evidence import BASE, NEUTRAL, ORDER, P, is_small, keys_of, same, signature_holds, times

DAY = "2026-11-{:02}T00:00:00.000000+00:00"
ROOT = bytes(range(32))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "signing.json"


def test_a_key_is_made_on_first_use_and_is_its_owners_alone(file):
    keys = open_keys(file, DAY.format(1))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert open_keys(file, DAY.format(2)).known == keys.known
    assert [one.name for one in file.parent.iterdir()] == ["signing.json"], "nothing is left beside it"


def _open(path: str) -> str:
    return open_keys(Path(path), DAY.format(1)).id


def test_processes_that_are_first_at_once_get_the_same_key(file):
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert len(set(pool.map(_open, [str(file)] * 8))) == 1


def test_a_signed_root_holds_and_one_that_was_changed_does_not(file):
    keys = open_keys(file, DAY.format(1))
    root = sign_root(keys, "acme", 42, ROOT, DAY.format(2))
    assert why_not_signed(root, keys.known) == ""
    for change in (
        {"tenant": "other"},
        {"size": 43},
        {"root": "ff" * 32},
        {"at": DAY.format(3)},
        {"signature": "00" * 64},
        {"signature": "x"},
    ):
        assert why_not_signed(msgspec.structs.replace(root, **change), keys.known) == f"its signature is not one of key {keys.id}"
    stranger = open_keys(file.with_name("other.json"), DAY.format(1))
    assert why_not_signed(root, stranger.known) == f"it is signed with key {keys.id}, which is not known"


def test_after_a_rotation_old_roots_still_hold_and_the_old_key_can_sign_nothing_more(file):
    old = open_keys(file, DAY.format(1))
    before = sign_root(old, "acme", 1, ROOT, DAY.format(2))
    new = rotate(file, DAY.format(3))
    assert new.id != old.id and open_keys(file, DAY.format(4)).known == new.known
    assert [(key.since, key.until) for key in new.known] == [(DAY.format(1), DAY.format(3)), (DAY.format(3), None)]
    assert why_not_signed(before, new.known) == why_not_signed(sign_root(new, "acme", 2, ROOT, DAY.format(4)), new.known) == ""
    late = sign_root(old, "acme", 3, ROOT, DAY.format(4))
    assert why_not_signed(late, new.known).startswith(f"it is dated {DAY.format(4)}, when key {old.id} was not in use")
    kept = json.loads(file.read_text())
    assert [bool(key["private"]) for key in kept] == [False, True]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_what_is_given_to_verifiers_holds_no_private_key(file):
    open_keys(file, DAY.format(1))
    keys = rotate(file, DAY.format(3))
    exported = public_keys(keys)
    assert [sorted(key) for key in json.loads(exported)] == [["from", "id", "public", "until"]] * 2
    assert [key.public.hex() for key in keys_of(exported, "f").values()] == [key.public for key in keys.known]


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        ("[]", 0o600, "holds no signing key"),
        ("{", 0o600, "holds no signing keys"),
        ('[{"id":"\udcff"}]', 0o600, "holds no signing keys"),
        (None, 0o640, "others may read or write"),
        ('[{"id":"a","public":"b","from":"","private":"zz"}]', 0o600, "has no private key for a"),
        ('[{"id":"a","public":"b","from":"","private":"' + "00" * 32 + '"}]', 0o600, "does not belong to its public key"),
    ],
)
def test_a_key_file_that_cannot_be_used_is_one_clear_error(file, content, mode, words):
    open_keys(file, DAY.format(1))
    if content is not None:
        file.write_text(content, errors="surrogateescape")
    file.chmod(mode)
    with pytest.raises(UserError, match=words) as error:
        open_keys(file, DAY.format(1))
    assert error.value.cure


def test_a_key_is_not_rotated_by_a_clock_that_stepped_back(file):
    keys = open_keys(file, DAY.format(5))
    with pytest.raises(UserError, match="which is not before"):
        rotate(file, DAY.format(4))
    assert open_keys(file, DAY.format(5)).known == keys.known


def test_a_key_is_not_rotated_before_it_last_signed(file):
    keys = open_keys(file, DAY.format(5))
    with pytest.raises(UserError, match=f"was in use on .*{DAY.format(7)[:10]}.*, which is not before"):
        rotate(file, DAY.format(6), last=DAY.format(7))
    assert open_keys(file, DAY.format(8)).known == keys.known


def test_a_root_is_never_dated_before_its_key(file):
    keys = open_keys(file, DAY.format(5))
    root = sign_root(keys, "acme", 1, ROOT, DAY.format(4))
    assert root.at == DAY.format(5) and why_not_signed(root, keys.known) == ""


def test_who_verifies_needs_no_private_half_and_a_private_half_is_nobody_elses(file):
    keys = open_keys(file, DAY.format(1))
    given = file.with_name("given.json")
    given.write_bytes(public_keys(keys))
    given.chmod(0o644)
    assert known_keys(given) == known_keys(file) == keys.known
    with pytest.raises(UserError, match="has no private key"):
        open_keys(given, DAY.format(2))
    file.chmod(0o644)
    with pytest.raises(UserError, match="others may read or write"):
        known_keys(file)


# --- the stand-alone verifier's Ed25519 ---------------------------------------------------------------------------------

seeds, messages = st.binary(min_size=32, max_size=32), st.binary(max_size=80)


def by_cryptography(public: bytes, message: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature:
        return False
    return True


@settings(max_examples=40)
@given(seeds, messages)
def test_what_cryptography_signs_holds(seed, message):
    private = Ed25519PrivateKey.from_private_bytes(seed)
    assert signature_holds(private.public_key().public_bytes_raw(), message, private.sign(message))


@settings(max_examples=60)
@given(seeds, messages, st.integers(0, 96 * 8 - 1))
def test_whatever_bit_is_turned_both_refuse(seed, message, bit):
    private = Ed25519PrivateKey.from_private_bytes(seed)
    bent = bytearray(private.public_key().public_bytes_raw() + private.sign(message))
    bent[bit // 8] ^= 1 << bit % 8
    public, signature = bytes(bent[:32]), bytes(bent[32:])
    assert not by_cryptography(public, message, signature)
    assert not signature_holds(public, message, signature)
    assert not signature_holds(private.public_key().public_bytes_raw(), message + b"x", private.sign(message))


@settings(max_examples=20)
@given(seeds, messages)
def test_a_signature_has_one_form(seed, message):
    """S + L solves the same equation: without a bound on S, anyone could make a second signature from a first."""
    private = Ed25519PrivateKey.from_private_bytes(seed)
    public, signature = private.public_key().public_bytes_raw(), private.sign(message)
    scalar = int.from_bytes(signature[32:], "little") + ORDER
    assert not signature_holds(public, message, signature[:32] + scalar.to_bytes(32, "little"))
    assert not signature_holds(public, message, signature + b"\0")
    assert not signature_holds(public + b"\0", message, signature)


def test_rfc_8032_vectors_hold():
    """Section 7.1, tests 1 to 3."""
    vectors = [
        ("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
         "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"),
        ("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
         "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"),
        ("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
         "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"),
    ]  # fmt: skip
    for public, message, signature in vectors:
        assert signature_holds(bytes.fromhex(public), bytes.fromhex(message), bytes.fromhex(signature))


SPECCHECK = [
    # message, public key, R and S, and whether it holds here; from the vectors of "Taming the many EdDSAs" (2020), in their order
    ("8c93255d71dcab10e8f379c26200f3c7bd5f09d9bc3068d3ef4edeb4853022b6",
     "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
     "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a0000000000000000000000000000000000000000000000000000000000000000",
     False),  # small A and R
    ("9bd9f44f4dcc75bd531b56b2cd280b0bb38fc1cd6d1230e14861d861de092e79",
     "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
     "f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43a5bb704786be79fc476f91d3f3f89b03984d8068dcf1bb7dfc6637b45450ac04",
     False),  # small A
    ("aebf3f2601a0c8c5d39cc7d8911642f740b78168218da8471772b35f9d35b9ab",
     "f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43",
     "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa8c4bd45aecaca5b24fb97bc10ac27ac8751a7dfe1baff8b953ec9f5833ca260e",
     False),  # small R
    ("9bd9f44f4dcc75bd531b56b2cd280b0bb38fc1cd6d1230e14861d861de092e79",
     "cdb267ce40c5cd45306fa5d2f29731459387dbf9eb933b7bd5aed9a765b88d4d",
     "9046a64750444938de19f227bb80485e92b83fdb4b6506c160484c016cc1852f87909e14428a7a1d62e9f22f3d3ad7802db02eb2e688b6c52fcd6648a98bd009",
     True),  # A and R of mixed order, and the equation without cofactor holds
    ("e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec4011eaccd55b53f56c",
     "cdb267ce40c5cd45306fa5d2f29731459387dbf9eb933b7bd5aed9a765b88d4d",
     "160a1cb0dc9c0258cd0a7d23e94d8fa878bcb1925f2c64246b2dee1796bed5125ec6bc982a269b723e0668e540911a9a6a58921d6925e434ab10aa7940551a09",
     False),  # holds only times the cofactor
    ("e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec4011eaccd55b53f56c",
     "cdb267ce40c5cd45306fa5d2f29731459387dbf9eb933b7bd5aed9a765b88d4d",
     "21122a84e0b5fca4052f5b1235c80a537878b38f3142356b2c2384ebad4668b7e40bc836dac0f71076f9abe3a53f9c03c1ceeeddb658d0030494ace586687405",
     False),  # likewise
    ("85e241a07d148b41e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec40",
     "442aad9f089ad9e14647b1ef9099a1ff4798d78589e66f28eca69c11f582a623",
     "e96f66be976d82e60150baecff9906684aebb1ef181f67a7189ac78ea23b6c0e547f7690a0e2ddcd04d87dbc3490dc19b3b3052f7ff0538cb68afb369ba3a514",
     False),  # S is not below L
    ("85e241a07d148b41e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec40",
     "442aad9f089ad9e14647b1ef9099a1ff4798d78589e66f28eca69c11f582a623",
     "8ce5b96c8f26d0ab6c47958c9e68b937104cd36e13c33566acd2fe8d38aa19427e71f98a473474f2f13f06f97c20d58cc3f54b8bd0d272f42b695dd7e89a8c22",
     False),  # likewise
    ("fdaebc429f4a735932a160da1301080c13280eea8bc280d1b392c6b9e6ba3a5a",
     "f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43",
     "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f454d370c8d9fc323a41450f8d513eafeb5b0697390c1e505a0d4ddc71f566607",
     False),  # R is a second spelling of a small point
    ("84b698d39be126ff55fe45079e6c8bf64a0d7db6994560b4e96b7021eb39c1a1",
     "f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43",
     "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f084d5b99c2a9463d9c8bd5026916996984eeec87ddf1d3be329006ace1b37b09",
     False),  # likewise
]  # fmt: skip


@pytest.mark.parametrize(("message", "public", "signature", "holds"), SPECCHECK)
def test_forgeries_with_small_points_and_second_spellings_are_refused(message, public, signature, holds):
    assert signature_holds(bytes.fromhex(public), bytes.fromhex(message), bytes.fromhex(signature)) is holds


def test_a_key_of_small_order_is_none_whatever_it_seems_to_sign():
    """Under the neutral point as key, R = S·B fits every message."""
    neutral = (1).to_bytes(32, "little")
    made_up = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes_raw()
    assert not signature_holds(neutral, b"any", made_up + bytes(32))
    assert not signature_holds((P + 1).to_bytes(32, "little"), b"any", made_up + bytes(32)), "y is not below p"
    assert same(times(ORDER, BASE), NEUTRAL) and not is_small(BASE)


def test_a_root_is_verified_alike_by_the_store_and_the_stand_alone_script(file):
    keys = open_keys(file, DAY.format(1))
    root = sign_root(keys, "acme", 7, ROOT, DAY.format(2))
    assert signature_holds(bytes.fromhex(keys.known[0].public), root_statement(root), bytes.fromhex(root.signature))
