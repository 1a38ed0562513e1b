"""The detectors that every tenant has, and those that one defines for itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import re2

from agent_rft.contracts.errors import Fault, FaultsFound
from observability.redaction.addresses import EMAILS
from observability.redaction.detector import Detector, Found
from observability.redaction.numbers import IBANS, INTERNATIONAL_PHONES, LETTERED_IDS, NUMBERS
from observability.redaction.secrets import SECRETS, without_surrogates

BUILT_IN = (SECRETS, EMAILS, IBANS, NUMBERS, INTERNATIONAL_PHONES, LETTERED_IDS)
KINDS = frozenset(kind for detector in BUILT_IN for kind in detector.kinds)
NAME = re.compile(r"[A-Z][A-Z0-9_]{1,31}")
PROBES = ("", "a", "a 1", "-", "\n")
"""A pattern that finds nothing at all in one of these, as `x*` and `\\b` do, would find nothing between any two characters."""
LONGEST_PATTERN = 1000
BOTH_APPLY = "choose another name; both then apply"


@dataclass(frozen=True)
class Detectors:
    """What looks at which tenant's words."""

    every: tuple[Detector, ...] = BUILT_IN
    """At those of a tenant that has none of its own."""
    tenants: Mapping[str, tuple[Detector, ...]] = field(default_factory=dict[str, tuple[Detector, ...]])
    """At those of one that has: everybody's too."""

    def of(self, tenant: str) -> tuple[Detector, ...]:
        return self.tenants.get(tenant, self.every)


BUILT_IN_ONLY = Detectors()


def detectors_of(
    redacting: bool, patterns: Mapping[str, str] | None = None, tenant_patterns: Mapping[str, Mapping[str, str]] | None = None
) -> Detectors:
    """The built-in ones, those that somebody set for every tenant, and those for one alone; none at all where redaction is turned
    off. Raises FaultsFound with every fault of every pattern."""
    patterns, tenant_patterns = patterns or {}, tenant_patterns or {}
    faults = [*_faults_of_all(patterns, "store.patterns")]
    for tenant, own in tenant_patterns.items():
        faults += _faults_of_all(own, where := f"store.tenant_patterns.{tenant}")
        faults += (Fault(f"{where}.{name}", f"{name} stands in store.patterns too", BOTH_APPLY) for name in own if name in patterns)
    _refuse(faults)
    every = (*BUILT_IN, *custom_detectors(patterns))
    tenants = {tenant: (*every, *custom_detectors(own)) for tenant, own in tenant_patterns.items()}
    return Detectors(every, tenants) if redacting else Detectors(())


def custom_detectors(patterns: Mapping[str, str], where: str = "redaction") -> tuple[Detector, ...]:
    """A tenant's own, by name. Raises FaultsFound with every fault of every pattern.

    They run in RE2, which takes time linear in the text whatever the pattern: so no pattern that a tenant writes, and no text
    that an agent meets, can hold up the others' cards, and none need be refused for nesting its quantifiers. The price is that
    look-around and back-references are not to be had.
    """
    _refuse([*_faults_of_all(patterns, where)])
    return tuple(_custom(name, pattern) for name, pattern in patterns.items())


def _refuse(faults: Sequence[Fault]) -> None:
    if faults:
        raise FaultsFound("these patterns cannot be used for redaction:", faults)


def _faults_of_all(patterns: Mapping[str, str], where: str) -> Iterator[Fault]:
    return (fault for name, pattern in patterns.items() for fault in _faults(name, pattern, f"{where}.{name}"))


def _faults(name: str, pattern: str, where: str) -> Iterator[Fault]:
    if not NAME.fullmatch(name):
        yield Fault(
            where, f"the name {name!r} cannot be a placeholder", "2 to 32 capital letters, digits and _, a letter first: EMPLOYEE_NO"
        )
    elif name in KINDS:
        yield Fault(where, f"{name} is a kind that every tenant has", BOTH_APPLY)
    if len(pattern) > LONGEST_PATTERN:
        yield Fault(where, f"the pattern is {len(pattern)} characters long", f"at most {LONGEST_PATTERN}; several names may share the work")
        return
    try:
        compiled = _compiled(pattern)
    except re2.error as error:
        cure = "RE2's syntax: no look-around, no back-references; anything else that re has"
        yield Fault(where, f"the pattern {pattern!r} does not compile: {_said(error)}", cure)
        return
    if any(not found[0] for probe in PROBES for found in compiled.finditer(probe)):
        yield Fault(where, f"the pattern {pattern!r} matches where nothing is", "let it ask for at least one character: + for *")


def _custom(name: str, pattern: str) -> Detector:
    compiled = _compiled(pattern)

    def find(text: str) -> Iterator[Found]:
        for found in compiled.finditer(without_surrogates(text)):
            if found[0]:
                yield Found(name, found.start(), found.end())

    return Detector((name,), find)


def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    return re2.compile(without_surrogates(pattern), options)


def _said(error: Exception) -> str:
    told = error.args[0] if error.args else error
    return told.decode(errors="replace") if isinstance(told, bytes) else str(told)
