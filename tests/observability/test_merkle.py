"""Roots and proofs are RFC 6962's: the published vectors of Certificate Transparency, the RFC's own recursion, and a second verifier."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observability import verify_evidence
from observability.merkle import EMPTY_ROOT, Tree, consistency_path, continues, hashes_of, includes, inclusion_path

LEAVES = [
    bytes.fromhex(one)
    for one in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]  # fmt: skip
ROOTS = """
6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125
aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77 d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7
4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4 76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef
ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c 5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328
""".split()
ZERO_ONE = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"  # leaf 1
TWO_THREE = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"  # leaves 2 and 3
LAST_FOUR = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"  # leaves 4 to 7
FIFTH = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"  # leaf 4
LAST_TWO = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"  # leaves 6 and 7
SIXTH_PAIR = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"  # leaves 4 and 5
INCLUSIONS = {
    (0, 1): [],
    (0, 8): [ZERO_ONE, TWO_THREE, LAST_FOUR],
    (5, 8): [FIFTH, LAST_TWO, ROOTS[3]],
    (2, 3): [ROOTS[1]],
    (1, 5): [ROOTS[0], TWO_THREE, FIFTH],
}
CONSISTENCIES = {
    (1, 1): [],
    (1, 8): [ZERO_ONE, TWO_THREE, LAST_FOUR],
    (6, 8): [SIXTH_PAIR, LAST_TWO, ROOTS[3]],
    (2, 5): [TWO_THREE, FIFTH],
}
leaves = st.lists(st.binary(max_size=4), min_size=1, max_size=40)


def root_by_definition(given: list[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1."""
    if len(given) == 1:
        return hashlib.sha256(b"\0" + given[0]).digest()
    left = 1
    while left * 2 < len(given):
        left *= 2
    return hashlib.sha256(b"\1" + root_by_definition(given[:left]) + root_by_definition(given[left:])).digest()


def root_of(given: list[bytes]) -> bytes:
    tree = Tree()
    for leaf in given:
        tree.append(leaf)
    return tree.root()


def proof_of(given: list[bytes], path: list[tuple[int, int]]) -> list[bytes]:
    found = hashes_of(given, path)
    return [found[span] for span in path]


def test_roots_are_the_published_ones_at_every_size():
    tree = Tree()
    assert tree.root() == EMPTY_ROOT == bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    for leaf, root in zip(LEAVES, ROOTS, strict=True):
        tree.append(leaf)
        assert tree.root().hex() == root


@pytest.mark.parametrize(("index", "size"), INCLUSIONS)
def test_inclusion_proofs_are_the_published_ones(index, size):
    assert [one.hex() for one in proof_of(LEAVES, inclusion_path(index, size))] == INCLUSIONS[index, size]


@pytest.mark.parametrize(("old", "new"), CONSISTENCIES)
def test_consistency_proofs_are_the_published_ones(old, new):
    assert [one.hex() for one in proof_of(LEAVES, consistency_path(old, new))] == CONSISTENCIES[old, new]


@given(leaves)
def test_a_root_is_that_of_the_definition_and_is_carried_on_by_as_many_hashes_as_its_size_has_ones(given):
    tree = Tree()
    for size, leaf in enumerate(given, 1):
        tree.append(leaf)
        assert len(tree.peaks) == bin(size).count("1")
    assert tree.root() == root_by_definition(given)


@given(leaves, st.data())
def test_what_is_in_the_tree_is_proven_and_nothing_else_is(given, data):
    size = len(given)
    index = data.draw(st.integers(0, size - 1))
    root, proof = root_of(given), proof_of(given, inclusion_path(index, size))

    def proven(leaf: bytes, index: int, size: int, proof: list[bytes], root: bytes) -> bool:
        first, second = includes(root, size, index, leaf, proof), verify_evidence.stands_in(leaf, index, size, proof, root)
        assert first == second, "the store's verifier and the stand-alone one agree"
        return first

    assert proven(given[index], index, size, proof, root)
    assert not proven(given[index] + b"x", index, size, proof, root)
    assert not proven(given[index], index, size, [*proof, root], root)
    assert not proven(given[index], size, size, proof, root)
    assert not proven(given[index], -1, size, proof, root)
    if proof:
        place = data.draw(st.integers(0, len(proof) - 1))
        bent = [bytes([one[0] ^ 1]) + one[1:] if at == place else one for at, one in enumerate(proof)]
        assert not proven(given[index], index, size, bent, root)
        assert not proven(given[index], index, size, proof[:-1], root)
    other = data.draw(st.integers(0, size - 1))
    if given[other] != given[index]:
        assert not proven(given[index], other, size, proof, root)


@given(leaves, st.data())
def test_a_tree_that_goes_on_is_proven_and_one_that_was_rewritten_is_not(given, data):
    new = len(given)
    old = data.draw(st.integers(1, new))
    old_root, new_root = root_of(given[:old]), root_of(given)
    proof = proof_of(given, consistency_path(old, new))

    def proven(old_root: bytes, new_root: bytes, proof: list[bytes]) -> bool:
        found = continues(old_root, old, new_root, new, proof)
        if old < new:
            assert found == verify_evidence.goes_on(old_root, old, new_root, new, proof)
        return found

    assert proven(old_root, new_root, proof)
    place = data.draw(st.integers(0, old - 1))
    rewritten = [leaf + b"x" if at == place else leaf for at, leaf in enumerate(given)]
    assert not proven(old_root, root_of(rewritten), proof_of(rewritten, consistency_path(old, new)))
    assert not proven(root_of(rewritten[:old]), new_root, proof)
    assert not proven(old_root, new_root, [*proof, new_root])
    if proof:
        assert not proven(old_root, new_root, proof[:-1])
        bent = [proof[0][:-1] + bytes([proof[0][-1] ^ 1]), *proof[1:]]
        assert not proven(old_root, new_root, bent)


def test_one_pass_collects_the_hashes_of_many_proofs_and_reads_no_further_than_it_must():
    read: list[bytes] = []

    def passing():
        for leaf in LEAVES:
            read.append(leaf)
            yield leaf

    spans = [*inclusion_path(0, 3), *inclusion_path(4, 5), *consistency_path(3, 5)]
    found = hashes_of(passing(), spans)
    assert set(found) == set(spans) and len(read) == 5
    with pytest.raises(ValueError, match="need 9 leaves; there are 8"):
        hashes_of(LEAVES, inclusion_path(0, 9))
