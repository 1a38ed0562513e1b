"""Merkle trees as RFC 6962 hashes them: one root for a whole ledger, and short proofs of what it holds. Pure.

A root over a million entries is carried on from a handful of hashes, never read again from the start. Every hash of a proof
belongs to a span of leaves (first, end), so which hashes prove something is known before any leaf is read: one pass over a
ledger collects the proofs of a whole case.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import islice

import msgspec

EMPTY_ROOT = hashlib.sha256(b"").digest()
HASH_BYTES = 32
Span = tuple[int, int]
"""Leaves, counted from 0: the first, and the one after the last."""


def leaf_hash(leaf: bytes) -> bytes:
    return hashlib.sha256(b"\0" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


class Tree(msgspec.Struct):
    """What has to be kept of a growing tree: its full subtrees' hashes, as many as its size has ones in binary."""

    size: int = 0
    peaks: list[bytes] = msgspec.field(default_factory=list)
    """From the first leaves to the last, each subtree smaller than the one before."""

    def append(self, leaf: bytes) -> None:
        value, left = leaf_hash(leaf), self.size
        while left & 1:
            value, left = node_hash(self.peaks.pop(), value), left >> 1
        self.peaks.append(value)
        self.size += 1

    def root(self) -> bytes:
        if not self.peaks:
            return EMPTY_ROOT
        *before, value = self.peaks
        for peak in reversed(before):
            value = node_hash(peak, value)
        return value

    def span_to(self, first: int, leaf: bytes) -> bytes:
        """The hash of the leaves from `first` to `leaf`, which is the next to come, where a subtree begins at `first`."""
        value, begin = leaf_hash(leaf), self.size
        for peak in reversed(self.peaks):
            if begin == first:
                break
            value, begin = node_hash(peak, value), begin & (begin - 1)  # a subtree is as wide as the lowest one of the size
        if begin != first:
            raise ValueError(f"no subtree of a tree of {self.size + 1} begins at {first}")
        return value


def inclusion_path(index: int, size: int) -> list[Span]:
    """The spans whose hashes prove that a leaf stands at `index` in a tree of `size`, from the leaf up."""
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} has no leaf {index}")
    path, (first, end) = list[Span](), (0, size)
    while end - first > 1:
        middle = first + _left_width(end - first)
        if index < middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((first, middle))
            first = middle
    return path[::-1]


def consistency_path(old: int, new: int) -> list[Span]:
    """The spans whose hashes prove that the tree of `new` begins with the whole tree of `old`."""
    if not 1 <= old <= new:
        raise ValueError(f"a tree of {new} does not continue one of {old}")
    path, (first, end) = list[Span](), (0, new)
    while end != old:
        middle = first + _left_width(end - first)
        if old <= middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((first, middle))
            first = middle
    if first:  # else it is the old root itself, which the reader has
        path.append((first, end))
    return path[::-1]


def hashes_of(leaves: Iterable[bytes], spans: Iterable[Span]) -> dict[Span, bytes]:
    """The hash of each span of the paths above, in one pass over the leaves that stops after the last that is needed."""
    ending: dict[int, set[Span]] = {}
    for span in spans:
        ending.setdefault(span[1], set()).add(span)
    last, tree, found = max(ending, default=0), Tree(), dict[Span, bytes]()
    for leaf in islice(leaves, last):
        found |= {span: tree.span_to(span[0], leaf) for span in ending.get(tree.size + 1, ())}
        tree.append(leaf)
    if tree.size < last:
        raise ValueError(f"the proofs need {last} leaves; there are {tree.size}")
    return found


def includes(root: bytes, size: int, index: int, leaf: bytes, proof: Sequence[bytes]) -> bool:
    """Whether the proof shows the leaf at `index` of the tree with this root."""
    if not 0 <= index < size:
        return False
    path = inclusion_path(index, size)
    if len(proof) != len(path) or any(len(one) != HASH_BYTES for one in proof):
        return False
    value = leaf_hash(leaf)
    for (first, _), other in zip(path, proof, strict=True):
        value = node_hash(value, other) if first > index else node_hash(other, value)
    return value == root


def continues(old_root: bytes, old: int, new_root: bytes, new: int, proof: Sequence[bytes]) -> bool:
    """Whether the proof shows that the new tree begins with all of the old one, in its order."""
    if not 1 <= old <= new:
        return False
    path = consistency_path(old, new)
    if len(proof) != len(path) or any(len(one) != HASH_BYTES for one in proof):
        return False
    hashes = list(zip(path, proof, strict=True))
    if not path or path[0][1] != old:  # the old tree is a whole subtree of the new one
        hashes.insert(0, ((0, old), old_root))
    value_of_old = value_of_new = hashes[0][1]
    for (first, _), other in hashes[1:]:
        if first >= old:
            value_of_new = node_hash(value_of_new, other)
        else:
            value_of_old, value_of_new = node_hash(other, value_of_old), node_hash(other, value_of_new)
    return value_of_old == old_root and value_of_new == new_root


def _left_width(width: int) -> int:
    """Of a subtree's leaves, how many are under its left half: the largest power of two below its width."""
    return 1 << ((width - 1).bit_length() - 1)
