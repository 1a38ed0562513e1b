"""The safety suite that the settings name: agents are tried by it, and releases that are made under these settings ask for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agent_rft.contracts.errors import UserError
from agent_rft.evaluation.safety import TRIES, Suite, read_suite
from agent_rft.settings import ReleaseSettings


def suite_of(release: ReleaseSettings) -> Suite:
    path = Path(release.safety_suite)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}", "release.safety_suite=FILE.jsonl names the safety suite") from None
    return read_suite(lines, str(path))


def policy_of(release: ReleaseSettings, suite: str) -> dict[str, Any]:
    """The rules of a release that says nothing else. Whoever makes one does not choose by which suite, a hash, it has to be safe."""
    if "safety_suite" in release.policy:
        raise UserError("release.policy.safety_suite is no rule to set", "release.safety_suite=FILE.jsonl names the suite, for all")
    return {"safety_tries": TRIES, **release.policy, "safety_suite": suite}
