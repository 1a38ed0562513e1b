"""docs/guards.md says what the code does."""

import re
from contextlib import closing
from pathlib import Path

from agent_rft.commands.grading import grader_of, holdouts_named, services_of
from agent_rft.commands.parts import guards_of
from agent_rft.compose import settings_for
from agent_rft.guards.hacking import DETECTORS
from agent_rft.guards.limits import GUARDS

ROOT = Path(__file__).resolve().parents[1]
DOC = (ROOT / "docs/guards.md").read_text()
EXAMPLE = (ROOT / "examples/hackable/README.md").read_text()


def test_the_table_lists_every_guard_with_its_default_limit_and_action():
    listed = dict(re.findall(r"^\| `(\w+)` \| (.+ \| .+ \| \w+) \|$", DOC, re.MULTILINE))
    told = {one.name: f"{one.looks_at} ({one.unit}) | {one.limit.at:g} | {one.limit.action}" for one in GUARDS.values()}
    assert {name: listed[name] for name in told if name in listed} == told


def test_every_detector_has_its_line():
    section = DOC.partition("## Is the reward rising")[2]
    assert {name for name in DETECTORS if f"| `{name}` |" in section} == set(DETECTORS)


def overrides(text: str) -> list[str]:
    """As a shell would hand them over."""
    (words,) = re.findall(r'ARGS="(.*)"', text)
    return words.split()


def test_its_commands_compose():
    documented = settings_for("research_7b", overrides(DOC))
    guards = guards_of(documented)
    with closing(services_of(documented.grader)) as services:
        holdouts_named("docs", documented.guards.holdout_graders, grader_of(documented, services), services, "")
    assert (guards.human_ceiling, guards.watch["early_stop"].at, guards.watch["early_stop"].action) == (0.92, 0.3, "stop")
    settings = settings_for("research_tiny", overrides(EXAMPLE))
    assert (settings.grader.file, settings.guards.holdout_graders) == ("examples/hackable/grader.json", ("numeric",))
