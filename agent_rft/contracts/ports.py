"""What drivers need from the world. Each port has one real adapter at least; fakes stand behind the same port."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from agent_rft.contracts.events import AskModel, InfraFailed, ModelSpoke
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.jobcards import JobCard
from agent_rft.contracts.messages import ToolCall, ToolSpec
from agent_rft.contracts.rollouts import ToolResult


class Sampler(Protocol):
    """Lets a model speak."""

    @property
    def batched(self) -> bool:
        """True: wants every live rollout in one call (one forward pass serves all; what is absent is forgotten).
        False: takes each rollout as it comes."""
        ...

    @property
    def checkpoint(self) -> str:
        """Which weights speak."""
        ...

    async def sample(self, asks: Sequence[AskModel]) -> Sequence[ModelSpoke | InfraFailed]:
        """One reply an ask, in order. A failure of the model server is a reply, not an exception."""
        ...


class ToolBox(Protocol):
    """Runs tool calls. Raises InfraError when a tool, after retries, did not do its work."""

    async def call(self, rollout_id: str, call: ToolCall) -> ToolResult: ...


class ToolProvider(Protocol):
    """The tools themselves, where they live: what a tool server serves."""

    @property
    def specs(self) -> tuple[ToolSpec, ...]: ...

    @property
    def version(self) -> str:
        """Hash over everything that decides what the tools answer."""
        ...

    def call(self, name: str, arguments: dict[str, Any]) -> tuple[str, str | None]:
        """(output, error): error is None, model_error or policy_denied. Anything raised is an infrastructure failure."""
        ...


class Grader(Protocol):
    @property
    def ref(self) -> GraderRef: ...

    def grade(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade: ...


def waits(grader: Grader) -> bool:
    """Whether it waits for others (a judge, an endpoint, the sandbox): such a one has `waits`, and is asked in a thread."""
    return bool(getattr(grader, "waits", False))


class Recorder(Protocol):
    """Takes job cards. Never blocks, never loses one that it acknowledged."""

    def record(self, card: JobCard) -> None: ...

    def flush(self, timeout: float = 60.0) -> None:
        """Returns once every card recorded so far is durable; raises InfraError if that takes longer."""
        ...
