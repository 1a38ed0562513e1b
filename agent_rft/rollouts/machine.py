"""The rollout machine: events in, commands out. No I/O, no clock; its whole state is the Rollout, which pickles.

    waiting for   event          next
    ------------  -------------  ------------------------------------------------------------------------
    the model     ModelSpoke     an answer        -> Finish(answered)
                                 tool calls       -> CallTools, or Finish(out_of_budget) if they do not fit
                                 unreadable       -> Finish(malformed)
                                 cut off, no room -> Finish(out_of_budget)
                  TimeUp         Finish(out_of_budget)
    tools         ToolReturned   the last of them -> AskModel, or Finish(out_of_budget)
                  TimeUp         Finish(infra_failed): a tool that has not answered is not the model's fault
    either        InfraFailed    Finish(infra_failed)
    over          anything       nothing: late news changes nothing

News that is not waited for (a result that came twice, a model turn nobody asked for) changes nothing either, so a
driver may deliver an event again after a crash.
"""

from __future__ import annotations

from agent_rft.contracts.events import AskModel, CallTools, Command, Event, Finish, InfraFailed, ModelSpoke, TimeUp, ToolReturned
from agent_rft.contracts.messages import ToolCall
from agent_rft.contracts.rollouts import Ending, Rollout, Turn, answers_of
from agent_rft.rollouts.parsing import Answer, Malformed, parse_turn


def begin(rollout: Rollout) -> Command:
    return _ask(rollout)


def go_on(rollout: Rollout) -> Command:
    """What is to be done for one that was put away in the middle: the calls that have not come back, else the next question."""
    if rollout.ending is not None:
        return Finish(rollout.rollout_id, rollout.ending)
    return CallTools(rollout.rollout_id, late) if (late := waiting_for(rollout)) else _ask(rollout)


def advance(rollout: Rollout, event: Event) -> Command | None:
    """Take one event into the rollout. None: keep waiting."""
    if rollout.ending is not None:
        return None
    match event:
        case ModelSpoke():
            return None if waiting_for(rollout) else _heard(rollout, event)
        case ToolReturned():
            return _returned(rollout, event)
        case TimeUp():
            return _time_up(rollout)
        case InfraFailed(part, what):
            return _infra_failed(rollout, part, what)


def waiting_for(rollout: Rollout) -> tuple[ToolCall, ...]:
    """The calls that have not come back; empty while the model is to speak."""
    if not rollout.turns:
        return ()
    turn = rollout.turns[-1]
    return tuple(call for call in turn.calls if call.call_id not in turn.results)


def _heard(rollout: Rollout, said: ModelSpoke) -> Command:
    turn = Turn(
        said.text,
        said.context_ids,
        said.sampled_ids,
        said.logprobs,
        said.context_tokens or len(said.context_ids),
        said.sampled_tokens or len(said.sampled_ids),
    )
    rollout.turns.append(turn)
    limits = rollout.limits
    if said.stop != "stop" or rollout.total_tokens > limits.max_trajectory_tokens:
        return _out_of_budget(rollout, f"tokens: {said.stop} at {rollout.total_tokens} of {limits.max_trajectory_tokens}")
    calls = said.calls
    if calls is None:
        parsed = parse_turn(said.text)
        if isinstance(parsed, Malformed):
            return _finish(rollout, Ending.MALFORMED, parsed.why)
        if isinstance(parsed, Answer):
            rollout.answer = parsed.text
            return _finish(rollout, Ending.ANSWERED, "the model answered")
        calls = parsed.calls
    elif not calls:
        rollout.answer = said.text.strip()
        return _finish(rollout, Ending.ANSWERED, "the model answered")
    return _call(rollout, turn, calls)


def _call(rollout: Rollout, turn: Turn, calls: tuple[tuple[str, dict[str, object]], ...]) -> Command:
    """Send the calls out if they fit, all or none: half of a parallel turn would be a turn the model did not take."""
    limits, made = rollout.limits, rollout.tool_calls
    if made + len(calls) > limits.max_tool_calls:
        return _out_of_budget(rollout, f"tool calls: {made} made, {len(calls)} more asked for, {limits.max_tool_calls} allowed")
    if len(rollout.turns) >= limits.max_turns:
        return _out_of_budget(rollout, f"turns: {limits.max_turns} taken and no answer")
    number = len(rollout.turns)
    turn.calls = tuple(ToolCall(f"call-{number}-{i}", name, arguments) for i, (name, arguments) in enumerate(calls, 1))
    return CallTools(rollout.rollout_id, turn.calls)


def _returned(rollout: Rollout, event: ToolReturned) -> Command | None:
    if event.result.call_id not in {call.call_id for call in waiting_for(rollout)}:
        return None
    rollout.turns[-1].results[event.result.call_id] = event.result
    return None if waiting_for(rollout) else _ask(rollout)


def _ask(rollout: Rollout) -> Command:
    room = rollout.limits.max_trajectory_tokens - rollout.total_tokens
    if room <= 0:
        return _out_of_budget(rollout, f"tokens: {rollout.total_tokens} of {rollout.limits.max_trajectory_tokens}")
    return AskModel(
        rollout_id=rollout.rollout_id,
        turn=len(rollout.turns),
        seed=rollout.seed,
        new_messages=tuple(answers_of(rollout.turns[-1])) if rollout.turns else rollout.opening,
        conversation=rollout.conversation(),
        tools=rollout.tools,
        max_tokens=min(rollout.limits.max_turn_tokens, room),
        room=room,
        used=rollout.total_tokens,
    )


def _time_up(rollout: Rollout) -> Command:
    if late := waiting_for(rollout):
        names = ", ".join(dict.fromkeys(call.name for call in late))
        return _infra_failed(rollout, f"tool:{late[0].name}", f"{names} had not answered when the time was up")
    return _out_of_budget(rollout, f"seconds: {rollout.limits.max_seconds:g} allowed")


def _infra_failed(rollout: Rollout, part: str, what: str) -> Command:
    rollout.failed_part = part
    return _finish(rollout, Ending.INFRA_FAILED, f"{part}: {what}")


def _out_of_budget(rollout: Rollout, reason: str) -> Command:
    return _finish(rollout, Ending.OUT_OF_BUDGET, reason)


def _finish(rollout: Rollout, ending: Ending, reason: str) -> Command:
    rollout.ending, rollout.reason = ending, reason
    return Finish(rollout.rollout_id, ending)
