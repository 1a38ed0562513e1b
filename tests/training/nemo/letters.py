"""small_world's tool and grader for processes of Ray's, which must be able to import it."""

from pathlib import Path

from small_world import LikesA

from agent_rft.contracts.errors import InfraError
from agent_rft.contracts.rollouts import ToolResult


class LettersOnly:
    """small_world's tool, in whichever process; on some rollouts it fails for good."""

    def __init__(self, share: float = 0.0) -> None:
        self._share = share

    async def call(self, rollout_id, call) -> ToolResult:
        if int(rollout_id[-6:], 16) % 100 < 100 * self._share:
            raise InfraError("tool:look", "503 after 5 attempts")
        return ToolResult(call.call_id, "bcd"[: 1 + len(call.call_id) % 3])


class DiesWithFile(LikesA):
    """A grader that is gone once a file is there."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def grade(self, item, sample):
        if self._file.exists():
            raise ConnectionError("nobody answers")
        return super().grade(item, sample)
