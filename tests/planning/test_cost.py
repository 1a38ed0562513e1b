"""Time and cost of a step, worked out by hand from the throughputs that are stated."""

import msgspec
import pytest
from planned_setups import setup

from agent_rft.contracts.layouts import Cluster, Reference
from agent_rft.planning.cost import step_of

TOKENS = 16 * 8 * 8192
# 68.451B weights in the layers and a head of 128256 x 8192, two operations each; attention 4 x 80 x 8192 x half of 8192
FORWARD = 2 * (80 * (2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672) + 128256 * 8192) + 4 * 80 * 8192 * 4096
SPEED = 989e12 * 0.35


def seconds(name: str, **changed: object) -> float:
    return next(stage.seconds for stage in step_of(setup(**changed)).stages if stage.name == name)  # pyright: ignore[reportArgumentType]


def test_rollouts_are_decoded_at_the_stated_speed_and_the_rest_is_read():
    decoded = TOKENS / 2 / (8 * 400)  # 164 s
    assert seconds("rollouts") == pytest.approx(decoded + TOKENS / 2 * FORWARD / (8 * SPEED))


def test_the_update_of_adapters_is_three_passes_and_of_everything_four():
    one = TOKENS * FORWARD / (8 * SPEED)
    assert seconds("log-probs") == pytest.approx(one)  # 57 s
    assert seconds("update") == pytest.approx(3 * one)
    assert seconds("update", lora=None) == pytest.approx(4 * one)
    assert seconds("update", activation_checkpointing=False) == pytest.approx(2 * one)


def test_a_reference_on_one_gpu_takes_eight_times_as_long_as_on_the_policys_eight():
    alone, shared = seconds("reference"), seconds("reference", reference=Reference(engine="adapter_off"))
    assert alone == pytest.approx(8 * shared)


def test_a_step_costs_its_gpu_hours_the_references_included():
    step = step_of(setup())
    assert step.gpus == 9
    assert step.cost == pytest.approx(step.seconds / 3600 * 9 * 3.0)
    assert step_of(setup(cluster=Cluster(gpus_per_node=8), reference=Reference(engine="builtin"))).gpus == 8


def test_without_a_leash_nobody_asks_the_reference():
    loose = msgspec.structs.replace(setup(), algorithm=msgspec.structs.replace(setup().algorithm, kl_coef=0.0))
    assert "reference" not in [stage.name for stage in step_of(loose).stages]
