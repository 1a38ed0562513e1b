"""From a recipe's name and overrides to settings: Hydra composes, the typed tree judges."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from agent_rft.contracts.errors import Fault, FaultsFound, UserError, did_you_mean
from agent_rft.settings import Settings, keys_at, validated

CONF = Path(__file__).resolve().parent.parent / "conf"
FIXED = ("recipe", "model.path", "model.lora", "backend.name", "backend.nemo.workers")
"""What a run keeps to its end: other values would begin anew in its folder, beside checkpoints that they cannot read."""


def recipes(conf: Path = CONF) -> list[str]:
    return sorted(path.stem for path in conf.glob("*.yaml"))


def settings_for(recipe: str, overrides: list[str], conf: Path = CONF) -> Settings:
    """`overrides`: key=value, or group=option."""
    if recipe not in recipes(conf):
        raise UserError(f"there is no recipe '{recipe}' in {conf.name}/", did_you_mean(recipe, recipes(conf)))
    _refuse_faults(overrides, conf)
    groups = [override for override in overrides if _is_group(override, conf)]
    try:
        with initialize_config_dir(str(conf), version_base="1.3"):
            composed = compose(recipe, overrides=groups)
        tree: Any = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"recipe {recipe} does not compose: {why}", f"look at {conf.name}/{recipe}.yaml") from None
    wanted = _overridden({"recipe": recipe, **tree}, [one for one in overrides if one not in groups])
    if missing := list(_left_open(wanted)):
        raise FaultsFound("the settings have faults:", [Fault(key, "is yours to say", f"add {key}=...") for key in missing], exit_code=2)
    return validated(wanted)


def _left_open(tree: dict[str, Any], above: str = "") -> Iterator[str]:
    """Keys that Hydra's ??? marks, where nobody gave a value."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _left_open(cast(dict[str, Any], value), f"{above}{key}.")
        elif value == "???":
            yield above + key


def changed(settings: Settings, overrides: list[str]) -> Settings:
    """Settings of a run that goes on with other values."""
    if swapped := [override for override in overrides if _is_group(override, CONF)]:
        raise UserError(f"{swapped[0]} swaps a whole group of a run that has begun", "name single keys, or start a new run")
    _refuse_faults(overrides, CONF)
    tree = settings.model_dump(mode="json")
    wanted = validated(_overridden(deepcopy(tree), overrides))
    if other := [key for key in FIXED if _at(wanted.model_dump(mode="json"), key) != _at(tree, key)]:
        faults = [Fault(key, "is what the run's checkpoints are made with", f"start a new run with {key}=...") for key in other]
        raise FaultsFound("a run that has begun cannot go on so:", faults, exit_code=2)
    return wanted


def _at(tree: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _is_group(override: str, conf: Path) -> bool:
    return (conf / override.partition("=")[0]).is_dir()


def _refuse_faults(overrides: list[str], conf: Path) -> None:
    if faults := [fault for override in overrides if (fault := _fault_in(override, conf))]:
        raise FaultsFound("these overrides cannot be applied:", faults, exit_code=2)


def _fault_in(override: str, conf: Path) -> Fault | None:
    """An override that names no group and no key of the tree."""
    key, equals, value = override.partition("=")
    if not equals:
        return Fault(override, "is not an override", "write key=value, as in algorithm.kl_coef=0.02")
    if (conf / key).is_dir():
        options = [path.stem for path in (conf / key).glob("*.yaml")]
        return None if value in options else Fault(override, f"group '{key}' has no '{value}'", did_you_mean(value, options))
    path = key.split(".")
    for depth, part in enumerate(path):
        known = keys_at(path[:depth])
        if not known and depth:
            return None  # below a free-form mapping
        if part not in known:
            return Fault(override, f"no such key '{part}'" + (f" in {'.'.join(path[:depth])}" if depth else ""), did_you_mean(part, known))
    return None


def _overridden(tree: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Values are YAML, read by us and not by Hydra, whose grammar chokes on a URL's `?a=b` and refuses keys below a null."""
    for override in overrides:
        key, _, value = override.partition("=")
        *sections, last = key.split(".")
        section = tree
        for name in sections:
            if not isinstance(section.get(name), dict):
                section[name] = {}
            section = section[name]
        try:
            section[last] = yaml.safe_load(value)
        except yaml.YAMLError:
            section[last] = value
    return tree


def save(settings: Settings, path: Path) -> None:
    """Whole or not at all, and for its owner's eyes: a store's URL may hold a password."""
    draft = path.with_name(f".{path.name}")
    draft.touch(mode=0o600)
    draft.write_text(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    draft.replace(path)


def load(path: Path) -> Settings:
    """The settings that a run was started with."""
    try:
        return validated(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path} is missing", f"is the run's name right? `ls {path.parent.parent}` shows those that are there") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read: {why}", "it is written when a run starts: start a new one") from None
