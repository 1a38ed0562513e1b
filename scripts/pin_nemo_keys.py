"""Writes the list of the keys that NeMo RL's GRPO config may hold, from a checkout of NeMo RL; nothing of it is imported.

Two sources, since neither is whole: the example configs of GRPO, and the typed dicts and models that declare the config.
A list counts as one key. A mapping with keys of one's own is marked by a trailing .*
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
FREE = ".*"
EXAMPLES = ("configs", "nemo_gym")
CONFIG_MODULE, CONFIG_CLASS = "nemo_rl.algorithms.grpo", "MasterConfig"
BACKENDS = {"policy.generation": ("nemo_rl.models.generation.vllm.config", "VllmConfig")}
"""What a section turns out to be beside its declared type."""
WRAPPERS = {"NotRequired", "Required", "Optional", "Union", "Annotated"}


def version(source: Path) -> str:
    said: dict[str, Any] = {}
    path = source / "nemo_rl" / "package_info.py"
    exec(path.read_text(encoding="utf-8"), {"__file__": str(path)}, said)
    return said["__shortversion__"]


def example_keys(folder: Path) -> Iterator[str]:
    """Those of each GRPO example, its own and the inherited."""
    for path in sorted(folder.glob("*.yaml")):
        layers = list(inherited(path))
        if any("grpo" in layer for layer in layers):
            for layer in layers:
                yield from (key for key in leaves(layer) if key != "defaults")


def inherited(path: Path) -> Iterator[dict[str, Any]]:
    layer: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    named = layer.get("defaults") or []
    for base in [named] if isinstance(named, str) else named:
        yield from inherited(path.parent / base)
    yield layer


def leaves(tree: dict[str, Any], above: str = "") -> Iterator[str]:
    for name, value in tree.items():
        key = f"{above}.{name}" if above else str(name)
        if isinstance(value, dict) and value:
            yield from leaves(value, key)
        else:
            yield key


class Declarations:
    """The config's classes, found by following names and imports through the source."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.module = cache(self._module)

    def _module(self, name: str) -> dict[str, ast.stmt]:
        """What a module's names stand for, at its top level."""
        base = self.source / Path(*name.split("."))
        path = next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)
        found: dict[str, ast.stmt] = {}
        for statement in ast.parse(path.read_text(encoding="utf-8")).body if path else ():
            match statement:
                case ast.ClassDef(name=defined):
                    found[defined] = statement
                case ast.Assign(targets=[ast.Name(id=defined)]):
                    found[defined] = statement
                case ast.ImportFrom(names=names):
                    found |= {alias.asname or alias.name: statement for alias in names}
                case _:
                    pass
        return found

    def resolved(self, module: str, name: str) -> tuple[str, ast.ClassDef | ast.Assign | None]:
        match self.module(module).get(name):
            case ast.ImportFrom(module=str(other), names=names) if other.startswith("nemo_rl"):
                original = next(alias.name for alias in names if (alias.asname or alias.name) == name)
                return self.resolved(other, original)
            case ast.ClassDef() | ast.Assign() as found:
                return module, found
            case _:
                return module, None

    def fields(self, module: str, name: str, above: str) -> Iterator[str]:
        home, found = self.resolved(module, name)
        if isinstance(found, ast.Assign):
            yield from self.keys(found.value, home, above)
        elif found is None or not self.is_config(home, found):
            yield above
        else:
            yield from self.body(home, found, above)

    def is_config(self, home: str, found: ast.ClassDef) -> bool:
        bases = [base.id for base in found.bases if isinstance(base, ast.Name)]
        if {"TypedDict", "BaseModel"} & set(bases):
            return True
        return any(
            isinstance(kind, ast.ClassDef) and self.is_config(where, kind) for where, kind in (self.resolved(home, b) for b in bases)
        )

    def body(self, home: str, found: ast.ClassDef, above: str) -> Iterator[str]:
        for base in found.bases:
            if isinstance(base, ast.Name) and base.id not in {"TypedDict", "BaseModel"}:
                yield from self.fields(home, base.id, above)
        for statement in found.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                key = f"{above}.{statement.target.id}" if above else statement.target.id
                yield from self.keys(statement.annotation, home, key)

    def keys(self, annotation: ast.expr, module: str, key: str) -> Iterator[str]:
        match annotation:
            case ast.Constant(value=str(written)):
                yield from self.keys(ast.parse(written, mode="eval").body, module, key)
            case ast.Constant(value=None):
                return
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                yield from self.keys(left, module, key)
                yield from self.keys(right, module, key)
            case ast.Subscript(value=ast.Name(id=kind), slice=inner) if kind in WRAPPERS:
                for part in inner.elts if isinstance(inner, ast.Tuple) else [inner]:
                    yield from self.keys(part, module, key)
            case ast.Subscript(value=ast.Name(id="dict" | "Dict")):
                yield key + FREE
            case ast.Name(id=name):
                yield from self.fields(module, name, key)
            case _:
                yield key


def pinned(source: Path) -> list[str]:
    declared = Declarations(source)
    keys = set(declared.fields(CONFIG_MODULE, CONFIG_CLASS, ""))
    for section, (module, name) in BACKENDS.items():
        keys |= set(declared.fields(module, name, section))
    for folder in EXAMPLES:
        keys |= set(example_keys(source / "examples" / folder))
    return sorted(_without_covered(keys))


def _without_covered(keys: Iterable[str]) -> Iterator[str]:
    """A key below a free mapping, or the mapping's own name, says nothing more."""
    keys = set(keys)
    free = {key.removesuffix(FREE) for key in keys if key.endswith(FREE)}
    for key in keys:
        parts = key.removesuffix(FREE).split(".")
        depth = len(parts) if key.endswith(FREE) else len(parts) + 1
        if not any(".".join(parts[:cut]) in free for cut in range(1, depth)):
            yield key


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, metavar="NEMO_RL_SRC", help="a checkout of NeMo RL")
    parser.add_argument("--to", type=Path, help="the file to write; by default, the list beside the NeMo RL engine")
    asked = parser.parse_args()
    if not (asked.source / "nemo_rl" / "package_info.py").is_file():
        sys.exit(f"{asked.source} is no checkout of NeMo RL")
    release = version(asked.source)
    target: Path = asked.to or ROOT / "agent_rft" / "training" / "nemo" / f"keys-v{release}.txt"
    keys = pinned(asked.source)
    header = f"# Keys of a GRPO config of NeMo RL v{release}. Made by scripts/pin_nemo_keys.py; .* ends a mapping with keys of one's own."
    target.write_text("\n".join([header, *keys]) + "\n", encoding="utf-8")
    print(f"{target}: {len(keys)} keys")


if __name__ == "__main__":
    main()
