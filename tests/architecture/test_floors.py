"""The architecture, held by the syntax trees: who may import whom, no circles, functions that fit on a screen."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("agent_rft", "serving", "observability", "migrations")

# The longest prefix that fits a module decides its floor.
FLOORS = {
    "agent_rft": 0,
    "agent_rft.contracts": 0,
    "agent_rft.datasets": 1,
    "agent_rft.datasets.rows_io": 3,
    "agent_rft.datasets.finqa_files": 3,
    "agent_rft.datasets.version_files": 3,
    "agent_rft.rollouts": 1,
    "agent_rft.rollouts.driver": 2,
    "agent_rft.rollouts.smoke": 2,
    "agent_rft.rollouts.in_process": 3,
    "agent_rft.rollouts.tool_client": 3,
    "agent_rft.rollouts.chat_sampler": 3,
    "agent_rft.guards": 1,
    "agent_rft.release": 1,
    "agent_rft.graders": 1,
    "agent_rft.graders.judge": 2,
    "agent_rft.graders.judge_server": 2,
    "agent_rft.graders.endpoint": 2,
    "agent_rft.graders.wire": 3,
    "agent_rft.graders.reply_cache": 3,
    "agent_rft.graders.deadline": 3,
    "agent_rft.graders.sandbox": 3,
    "agent_rft.graders.sandbox_worker": 3,
    "agent_rft.graders.seccomp": 3,
    "agent_rft.graders.python_grader": 3,
    "agent_rft.graders.code_run": 3,
    "agent_rft.graders.wordnet": 3,
    "agent_rft.graders.registry": 3,
    "agent_rft.training": 1,
    "agent_rft.training.holdouts": 2,
    "agent_rft.training.pretrained": 3,
    "agent_rft.training.turns": 3,
    "agent_rft.training.journal": 3,
    "agent_rft.training.keyvalues": 3,
    "agent_rft.training.local.loss": 1,
    "agent_rft.training.local.batches": 1,
    "agent_rft.training.local.ports": 1,
    "agent_rft.training.local.loop": 2,
    "agent_rft.training.local": 3,
    "agent_rft.training.local.tiny.teacher": 1,
    "agent_rft.training.nemo": 3,
    "agent_rft.training.nemo.config_tree": 1,
    "agent_rft.training.nemo.layout": 1,
    "agent_rft.training.nemo.adapters": 1,
    "agent_rft.training.nemo.placement": 1,
    "agent_rft.training.nemo.ports": 1,
    "agent_rft.training.nemo.recipe": 1,
    "agent_rft.planning": 1,
    "agent_rft.planning.plots": 3,
    "agent_rft.evaluation": 1,
    "agent_rft.evaluation.suite": 2,
    "agent_rft.evaluation.traps": 2,
    "agent_rft.evaluation.plots": 3,
    "agent_rft.evaluation.live": 3,
    "agent_rft.evaluation.kept_tries": 3,
    "agent_rft.settings": 4,
    "agent_rft.compose": 4,
    "agent_rft.commands": 4,
    "agent_rft.cli": 4,
    "agent_rft.__main__": 4,
    "serving": 3,
    "serving.app": 4,
    "serving.server": 4,
    "serving.model_requests": 1,
    "serving.gateway.declined": 1,
    "serving.gateway.reading": 1,
    "serving.gateway.quotas": 1,
    "serving.gateway.cardmaking": 1,
    "serving.gateway.asking": 1,
    "serving.gateway.ending": 1,
    "serving.gateway.events": 1,
    "serving.pages.asking": 1,
    "serving.pages.cardview": 1,
    "serving.pages.comparing": 1,
    "serving.pages.pictures": 1,
    "observability": 3,
    "observability.access": 1,
    "observability.story": 1,
    "observability.records": 1,
    "observability.dossier": 1,
    "observability.texts": 1,
    "observability.chain": 1,
    "observability.merkle": 1,
    "observability.halves": 1,
    "observability.evidence": 1,
    "observability.redaction": 1,
    "observability.query": 1,
    "observability.counting": 1,
    "observability.words": 1,
    "observability.cursor": 1,
    "observability.exports": 1,
    "observability.otlp": 1,
    "observability.spooling": 1,
    "observability.ranges": 1,
    "migrations": 4,
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


@functools.cache
def trees() -> dict[str, ast.Module]:
    """Parsed when a test asks, which in most processes that collect this file none does."""
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def floor(module: str) -> int:
    return FLOORS[max((prefix for prefix in FLOORS if (module + ".").startswith(prefix + ".")), key=len)]


def imports(name: str) -> Iterator[str]:
    """Every project module that a module imports, lazily or not."""
    for node in ast.walk(trees()[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in MODULES or node.module in MODULES:
                    yield full if full in MODULES else node.module
        elif isinstance(node, ast.ImportFrom) and node.level:
            pytest.fail(f"{name}: relative import; say the whole name")


@functools.cache
def edges() -> list[tuple[str, str]]:
    return [(name, target) for name in MODULES for target in set(imports(name))]


def test_a_module_imports_its_own_floor_or_lower():
    wrong = [f"{a} [{floor(a)}] imports {b} [{floor(b)}]" for a, b in edges() if floor(b) > floor(a)]
    assert not wrong


def test_there_are_no_import_circles_lazy_imports_counted():
    below = {name: {b for a, b in edges() if a == name} for name in MODULES}

    def reachable(name: str) -> set[str]:
        found, ahead = set[str](), list(below[name])
        while ahead:
            if (module := ahead.pop()) not in found:
                found.add(module)
                ahead += below[module]
        return found

    assert not [name for name in MODULES if name in reachable(name)]


def top(module: str) -> str:
    return ".".join(module.split(".")[:2])


def test_packages_keep_to_themselves():
    roots = {name for name in MODULES if floor(name) == 4}
    wrong = [
        f"{a} imports {b}"
        for a, b in edges()
        if a not in roots
        and (
            (a.startswith("agent_rft") and b.startswith(("serving", "observability", "migrations")))
            or (a.startswith("observability") and not b.startswith(("observability", "agent_rft.contracts")))
            or (a.startswith("serving") and b.startswith("agent_rft.training"))
        )
    ]
    assert not wrong


def test_the_two_engines_never_meet():
    local, nemo = "agent_rft.training.local", "agent_rft.training.nemo"
    assert not [f"{a} imports {b}" for a, b in edges() if {local, nemo} == {e for e in (local, nemo) for m in (a, b) if m.startswith(e)}]


def test_adapters_do_not_know_other_packages_adapters():
    wrong = [
        f"{a} imports {b}" for a, b in edges() if floor(a) == floor(b) == 3 and top(a).split(".")[0] == "agent_rft" and top(a) != top(b)
    ]
    assert not wrong


def test_nobody_imports_the_roots_but_roots():
    assert not [f"{a} imports {b}" for a, b in edges() if floor(b) == 4 and floor(a) != 4]


def packages_of(node: ast.AST) -> list[str]:
    """The top packages that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    return [node.module.split(".")[0]] if isinstance(node, ast.ImportFrom) and node.module else []


def test_contracts_need_only_the_standard_library_and_msgspec():
    allowed = set(sys.stdlib_module_names) | {"msgspec", "agent_rft", "__future__"}
    for name, tree in trees().items():
        if name.startswith("agent_rft.contracts"):
            for node in ast.walk(tree):
                assert not set(packages_of(node)) - allowed, name


def test_pure_modules_do_no_io_and_read_no_clock():
    forbidden = {"time", "os", "socket", "subprocess", "asyncio", "aiohttp", "sqlite3", "urllib", "threading", "logging", "structlog"}
    for name, tree in trees().items():
        if floor(name) == 1:
            used = {package for node in ast.walk(tree) for package in packages_of(node)}
            assert not used & forbidden, f"{name} is pure and imports {used & forbidden}"


def test_functions_fit_on_a_screen_and_are_annotated():
    lengths: dict[str, int] = {}
    for name, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lengths[f"{name}.{node.name}"] = (node.end_lineno or node.lineno) - node.lineno + 1
                assert node.returns or node.name == "__init__", f"{name}.{node.name} has no return annotation"
    assert not {name: n for name, n in lengths.items() if n > 80}
    long = {name for name, n in lengths.items() if n > 35}
    assert len(long) <= 0.1 * len(lengths), long


def test_importing_agent_rft_its_contracts_or_what_names_a_model_loads_no_torch():
    light = "agent_rft, agent_rft.contracts.training, agent_rft.rollouts.driver, agent_rft.training.pretrained, agent_rft.cli"
    code = f"import sys, {light}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
