"""The picture that this project was seeded with, beside our own figures."""

import pytest

from agent_rft.planning.seed import compared


def test_the_parts_of_the_7b_bar_by_hand():
    seven = compared()[0]
    adapters = 28 * 32 * (2 * 7168 + 2 * 4096 + 3 * 22528) / 1e9  # q and o, k and v, gate, up and down
    assert seven.parts["weights"] == pytest.approx(2 * (7.615616512 + adapters))
    assert seven.parts["optimizer"] == pytest.approx(14 * adapters)
    assert seven.parts["reference"] == pytest.approx(2 * 7.615616512, abs=1e-6)
    assert seven.parts["rollouts"] == pytest.approx(16 * 4096 * 57_344 / 1e9)
    kept = 28 * 4096 * 3584 * 2  # checkpoints
    at_work = 2 * 4096 * 2 * (4 * 3584 + 2 * 3584 + 2 * 512 + 3 * 18944)
    logits = 4096 * 152064 * 14
    assert seven.parts["activations"] == pytest.approx((kept + at_work + logits) / 1e9)


def test_ours_are_near_theirs_up_to_32b_and_the_70b_bar_cannot_hold_two_copies():
    *small, large = compared()
    assert all(abs(one.total - one.seed.total_gb) < 0.1 * one.seed.total_gb for one in small)
    assert large.parts["weights"] + large.parts["reference"] > large.seed.total_gb
    assert "on a GPU of its own" in large.why
    assert large.total - large.parts["reference"] == pytest.approx(large.seed.total_gb, rel=0.05)
