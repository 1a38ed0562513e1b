"""What stops an update, and what is known to go badly."""

import math

import pytest

from agent_rft.contracts.errors import Diverged
from agent_rft.training.guards import check_finite, group_size_warning


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (1.0, math.inf)])
def test_what_is_not_a_number_is_not_kept(loss, norm):
    check_finite(1.0, 1.0)
    with pytest.raises(Diverged, match="not a number"):
        check_finite(loss, norm)


def test_small_groups_are_warned_about():
    assert group_size_warning(4) is None
    assert "group_size is 3" in str(group_size_warning(3))
