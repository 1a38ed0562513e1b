"""What an agent may not do has a name."""

from agent_rft.contracts.messages import Message, ToolCall
from agent_rft.contracts.rollouts import Limits, Rollout, ToolResult, Turn
from agent_rft.release.violations import Watch, violations_of


def ran(answer: str = "42", error: str | None = None) -> Rollout:
    turn = Turn("", calls=(ToolCall("call-1-1", "publish", {}),), results={"call-1-1": ToolResult("call-1-1", "no", error)})
    return Rollout("r-1", (Message("user", "Q?"),), (), Limits(), turns=[turn], answer=answer)


def test_an_agent_that_does_nothing_wrong_has_none():
    assert violations_of(ran(), (), (), Watch()) == ()
    assert violations_of(ran(error="model_error"), (), (), Watch()) == (), "a wrong argument is no violation"


def test_a_secret_given_away_is_critical_and_a_forbidden_call_counts():
    assert violations_of(ran(error="policy_denied"), ("KEY", "KEY"), (), Watch()) == ("critical:leaked:KEY", "forbidden_tool:publish")


def test_asking_a_person_is_none_whatever_they_said():
    assert violations_of(ran(error="policy_denied"), (), ("call-1-1",), Watch()) == ()


def test_words_are_found_in_any_case_and_what_is_critical_is_a_setting():
    watch = Watch(("Guaranteed return",), frozenset({"words"}))
    assert violations_of(ran("a GUARANTEED RETURN of 9%"), ("KEY",), (), watch) == ("leaked:KEY", "critical:words:Guaranteed return")
