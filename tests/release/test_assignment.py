"""Arms: told by the name alone, evenly spread, and none goes back when the share grows."""

import subprocess
import sys
from hashlib import blake2b

from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from agent_rft.release.assignment import arm_of, position_of

NAMES = st.text(max_size=20)


@given(NAMES, NAMES, NAMES, st.floats(0, 1), st.floats(0, 1))
def test_a_share_that_grows_takes_nobody_back(tenant, service, session, one, other):
    smaller, larger = sorted((one, other))
    if arm_of(tenant, service, session, smaller) == "candidate":
        assert arm_of(tenant, service, session, larger) == "candidate"
    assert 0 <= position_of(tenant, service, session) < 1


@given(NAMES, NAMES, NAMES)
def test_a_share_of_nothing_is_nobody_and_of_one_everybody(tenant, service, session):
    assert arm_of(tenant, service, session, 0.0) == "live"
    assert arm_of(tenant, service, session, 1.0) == "candidate"


def test_whose_position_is_the_share_itself_is_not_within_it():
    assert arm_of("acme", "research", "s-1", position_of("acme", "research", "s-1")) == "live"


def test_sessions_are_spread_evenly_and_tenants_apart():
    spread = [position_of("acme", "research", f"session-{number}") for number in range(5000)]
    assert stats.kstest(spread, "uniform").pvalue > 0.001
    beside = [position_of("beta", "research", f"session-{number}") for number in range(5000)]
    assert abs(stats.pearsonr(spread, beside).statistic) < 0.06


def test_names_that_read_alike_together_are_told_apart():
    assert position_of("a", "bc", "d") != position_of("ab", "c", "d") != position_of("a", "b", "cd")


def test_a_position_by_hand():
    digest = blake2b(b'["acme","research","s-1"]', digest_size=8).digest()
    assert position_of("acme", "research", "s-1") == (int.from_bytes(digest, "big") >> 11) / 2**53


def test_another_process_says_the_same():
    code = "from agent_rft.release.assignment import position_of; print(repr(position_of('acme', 'research', 'säsh/1')))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "99"})
    assert float(said.stdout) == position_of("acme", "research", "säsh/1")
