"""Which rows, how many steps, how fast: all of it known from the step number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rft.training.schedule import learning_rate, rows_of_step, total_steps


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "most", "expected"),
    [(489, 16, 2, None, 62), (489, 16, 2, 10, 10), (3, 16, 1, None, 1), (32, 16, 1, 99, 2)],  # 489 / 16 = 30.6: 31 batches a pass
)
def test_steps(rows, batch, epochs, most, expected):
    assert total_steps(rows, batch, epochs, most) == expected


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
def test_each_pass_sees_every_row_once(count, batch, seed):
    rows = list(range(count))
    steps = total_steps(count, batch, 2, None)
    seen = [rows_of_step(rows, step, batch, seed) for step in range(steps)]
    first, second = seen[: steps // 2], seen[steps // 2 :]
    for batches in (first, second):
        assert sorted(row for batch in batches for row in batch) == rows


def test_the_order_is_the_seeds_and_each_passs_own():
    rows = list(range(30))
    assert rows_of_step(rows, 0, 30, seed=1) == rows_of_step(rows, 0, 30, seed=1)
    assert rows_of_step(rows, 0, 30, seed=1) != rows_of_step(rows, 0, 30, seed=2)
    assert rows_of_step(rows, 0, 30, seed=1) != rows_of_step(rows, 1, 30, seed=1)


def test_the_learning_rate_rises_evenly_then_stays():
    assert [learning_rate(step, 1e-4, 4) for step in range(6)] == pytest.approx([2.5e-5, 5e-5, 7.5e-5, 1e-4, 1e-4, 1e-4])
    assert learning_rate(0, 1e-4, 0) == 1e-4
