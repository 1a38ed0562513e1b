"""The keys that NeMo RL's config may hold, as pinned for the one version that this engine is held to."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from agent_rft.training.nemo.find import VERSION

FILE = f"keys-v{VERSION}.txt"


@cache
def known_keys() -> frozenset[str]:
    lines = files("agent_rft.training.nemo").joinpath(FILE).read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if line and not line.startswith("#"))
