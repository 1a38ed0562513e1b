"""A grader's hash changes with everything that decides its score, and with nothing else."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from agent_rft.graders.base import grader_ref
from agent_rft.graders.numeric import NumericGrader


def module(path: Path, source: str) -> ModuleType:
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_the_hash_covers_rule_helpers_and_parameters(tmp_path):
    rule, changed = module(tmp_path / "rule.py", "LIMIT = 1\n"), module(tmp_path / "changed.py", "LIMIT = 2\n")
    helper = module(tmp_path / "helper.py", "def read(): ...\n")
    refs = [
        grader_ref("rule", "1", [rule], {}),
        grader_ref("rule", "1", [changed], {}),
        grader_ref("rule", "1", [rule, helper], {}),
        grader_ref("rule", "1", [rule], {"strict": True}),
        grader_ref("rule", "1", [rule], {"strict": False}),
    ]
    assert len({ref.hash for ref in refs}) == len(refs)
    assert all(len(ref.hash) == 16 for ref in refs)
    assert grader_ref("rule", "1", [module(tmp_path / "elsewhere.py", "LIMIT = 1\n")], {}).hash == refs[0].hash


def test_the_numeric_rules_hash_covers_how_numbers_are_read(monkeypatch):
    before = NumericGrader().ref.hash
    monkeypatch.setattr("inspect.getsource", lambda module: module.__name__)
    names_only = NumericGrader().ref.hash
    monkeypatch.setattr("inspect.getsource", lambda module: "changed" if module.__name__.endswith("quantities") else module.__name__)
    assert len({before, names_only, NumericGrader().ref.hash}) == 3
