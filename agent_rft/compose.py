"""From a recipe's name and overrides to settings: Hydra composes, the typed tree judges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from agent_rft.contracts.errors import Fault, FaultsFound, UserError, did_you_mean
from agent_rft.settings import Settings, keys_at, validated

CONF = Path(__file__).resolve().parent.parent / "conf"


def recipes(conf: Path = CONF) -> list[str]:
    return sorted(path.stem for path in conf.glob("*.yaml"))


def settings_for(recipe: str, overrides: list[str], conf: Path = CONF) -> Settings:
    """`overrides` as Hydra writes them: key=value, group=option."""
    if recipe not in recipes(conf):
        raise UserError(f"there is no recipe '{recipe}' in {conf.name}/", did_you_mean(recipe, recipes(conf)))
    if faults := [fault for override in overrides if (fault := _fault_in(override, conf))]:
        raise FaultsFound("these overrides cannot be applied:", faults, exit_code=2)
    try:
        with initialize_config_dir(str(conf), version_base="1.3"):
            composed = compose(recipe, overrides=[_forced(override, conf) for override in overrides])
        tree: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # pyright: ignore[reportAssignmentType]
    except (HydraException, OmegaConfBaseException) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"recipe {recipe} does not compose: {why}", f"look at {conf.name}/{recipe}.yaml and the overrides") from None
    return validated({"recipe": recipe, **tree})


def _forced(override: str, conf: Path) -> str:
    """Hydra refuses keys that the recipe does not spell out; ours have been checked against the typed tree already."""
    key = override.partition("=")[0]
    return override if (conf / key).is_dir() or key.startswith(("+", "~")) else f"++{override}"


def _fault_in(override: str, conf: Path) -> Fault | None:
    """An override that names no group and no key of the tree, said before Hydra says it less well."""
    key, equals, value = override.partition("=")
    if not equals:
        return Fault(override, "is not an override", "write key=value, as in algorithm.kl_coef=0.02")
    if (conf / key).is_dir():
        options = [path.stem for path in (conf / key).glob("*.yaml")]
        return None if value in options else Fault(override, f"group '{key}' has no '{value}'", did_you_mean(value, options))
    path = key.lstrip("+").split(".")
    for depth, part in enumerate(path):
        known = keys_at(path[:depth])
        if not known and depth:
            return None  # below a free-form mapping
        if part not in known:
            return Fault(override, f"no such key '{part}'" + (f" in {'.'.join(path[:depth])}" if depth else ""), did_you_mean(part, known))
    return None


def save(settings: Settings, path: Path) -> None:
    path.write_text(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def load(path: Path) -> Settings:
    """The settings that a run was started with."""
    if not path.is_file():
        raise UserError(f"{path} is missing", "is the run's name right? `ls runs` shows those that are there")
    return validated(yaml.safe_load(path.read_text(encoding="utf-8")))
