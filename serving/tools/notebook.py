"""A notebook for each rollout: what an agent writes down while it works is there for its later turns, and for no other rollout."""

from __future__ import annotations

import hashlib
from typing import Any

from agent_rft.contracts.messages import ToolSpec
from serving.tools.context import current_call
from serving.tools.state import RolloutStates

MOST_NOTES, LONGEST_NOTE = 100, 4_000
SPECS = (
    ToolSpec(
        "remember",
        "Write a note down, to be recalled later in this task.",
        {"type": "object", "required": ["note"], "properties": {"note": {"type": "string"}}},
    ),
    ToolSpec("recall", "Read all notes of this task, in the order in which they were written.", {"type": "object", "properties": {}}),
)


class NotebookTools:
    """A note is kept by the call that brought it, so a call that is delivered twice writes it once."""

    specs = SPECS
    version = hashlib.sha256(repr((SPECS, MOST_NOTES, LONGEST_NOTE)).encode()).hexdigest()[:16]

    def __init__(self, most_rollouts: int = 10_000, seconds: float = 3600.0) -> None:
        self.notebooks = RolloutStates(dict[str, str], most=most_rollouts, seconds=seconds)

    def call(self, name: str, arguments: dict[str, Any]) -> tuple[str, str | None]:
        notes, key = self.notebooks.of_this_rollout(), current_call.get()
        if notes is None or key is None:
            return "Error: this call names no rollout, so there is no notebook for it", "policy_denied"
        if name == "recall":
            return "\n".join(f"{number}. {note}" for number, note in enumerate(notes.values(), 1)) or "Nothing is noted yet.", None
        note = arguments.get("note")
        if not isinstance(note, str) or not note.strip():
            return "Error: note is required, and has to be words", "model_error"
        if len(note) > LONGEST_NOTE:
            return f"Error: a note has at most {LONGEST_NOTE} characters; this one has {len(note)}", "model_error"
        if key.call_id not in notes and len(notes) >= MOST_NOTES:
            return f"Error: the notebook is full: it has {MOST_NOTES} notes", "policy_denied"
        notes[key.call_id] = note
        return f"Noted; {len(notes)} in all.", None
