"""Policies: what cannot be followed is said at once, all of it."""

import msgspec
import pytest

from agent_rft.contracts.errors import FaultsFound
from agent_rft.contracts.releases import Policy
from agent_rft.release.policies import check_policy


def faults(**changed: object) -> dict[str, str]:
    with pytest.raises(FaultsFound) as found:
        check_policy(msgspec.structs.replace(Policy(), **changed))
    return {fault.where: fault.what for fault in found.value.faults}


def test_the_shipped_policy_can_be_followed():
    check_policy(Policy())


def test_all_faults_are_said_at_once():
    assert set(faults(alpha=0, margin=1.0, steps=(0.5, 0.1), storm=(9, 8), sessions_per_step=-1, hold_seconds=0)) == {
        "alpha", "margin", "steps", "storm", "sessions_per_step", "hold_seconds",
    }  # fmt: skip


def test_more_than_alpha_cannot_be_spent():
    assert faults(spent_on={"reward": 0.7, "errors": 0.4}) == {"spent_on": "adds up to 1.1"}
    check_policy(Policy(spent_on={"holdout": 0.05, "reward": 0.55, "errors": 0.3, "slow": 0.1}))  # 1.0000000000000002, as floats add


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({"spent_on": {"rewards": 0.1}}, "spent_on.rewards"),
        ({"spent_on": {"reward": -0.1}}, "spent_on.reward"),
        ({"spent_on": {"reward": float("nan")}}, "spent_on.reward"),
        ({"tolerance": {"slow": 1.0}}, "tolerance.slow"),
        ({"tolerance": {"unsafe": 0.1}}, "tolerance.unsafe"),
        ({"unsafe_cap": 0.0}, "unsafe_cap"),
        ({"unsafe_cap": 1.0}, "unsafe_cap"),
        ({"steps": ()}, "steps"),
        ({"steps": (0.0, 1.0)}, "steps"),
        ({"steps": (0.5, 1.5)}, "steps"),
        ({"steps": (0.5, 0.5)}, "steps"),
        ({"rollback_seconds": 10.0}, "rollback_seconds"),
        ({"rollback_seconds": float("nan")}, "rollback_seconds"),
        ({"idle_seconds": 1e12}, "idle_seconds"),
        ({"storm": (1, 10**30)}, "storm"),
        ({"promote_alpha": 1.0}, "promote_alpha"),
        ({"worst_drop": float("nan")}, "worst_drop"),
        ({"needs": ()}, "needs"),
        ({"needs": ("evaluation", "holdout")}, "needs"),
    ],
)
def test_each_fault_names_its_place(changed, where):
    assert list(faults(**changed)) == [where]


def test_a_misspelt_figure_is_guessed():
    with pytest.raises(FaultsFound, match="did you mean 'reward'"):
        check_policy(Policy(spent_on={"rewrad": 0.1}))


def test_a_policy_without_safety_says_what_takes_its_place():
    with pytest.raises(FaultsFound, match=r"needs: is evaluation, without safety \(add it: .* a waiver that two people sign"):
        check_policy(Policy(needs=("evaluation",)))
