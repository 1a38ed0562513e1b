"""Stand-ins that need no server and no model, behind the same ports as the real ones. For tests, yours and ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agent_rft.contracts.errors import InfraError
from agent_rft.contracts.events import AskModel, InfraFailed, ModelSpoke
from agent_rft.contracts.messages import ToolCall
from agent_rft.contracts.ports import ToolProvider
from agent_rft.contracts.rollouts import ToolResult

Script = Callable[[AskModel], str | ModelSpoke | InfraFailed]


class ScriptedSampler:
    """A model that says what a function of the ask says."""

    def __init__(self, script: Script, batched: bool = False, checkpoint: str = "scripted") -> None:
        self._script = script
        self.batched = batched
        self.checkpoint = checkpoint

    async def sample(self, asks: Sequence[AskModel]) -> Sequence[ModelSpoke | InfraFailed]:
        return [self._speak(ask) for ask in asks]

    def _speak(self, ask: AskModel) -> ModelSpoke | InfraFailed:
        said = self._script(ask)
        if not isinstance(said, str):
            return said
        heard = sum(len(message.content.split()) for message in ask.new_messages)
        return ModelSpoke(said, context_tokens=heard, sampled_tokens=len(said.split()) + 1)


class InProcessTools:
    """Tools called without HTTP. What the provider raises is an infrastructure failure, as it is behind the server."""

    def __init__(self, provider: ToolProvider) -> None:
        self._provider = provider

    async def call(self, rollout_id: str, call: ToolCall) -> ToolResult:
        try:
            output, error = self._provider.call(call.name, call.arguments)
        except Exception as failure:
            raise InfraError(f"tool:{call.name}", f"{type(failure).__name__}: {failure}") from failure
        return ToolResult(call.call_id, output, error)
