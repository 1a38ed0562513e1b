"""Whatever fails in a process of Ray's is one error here: what is wrong, and how to go on."""

import os
import signal

import pytest
from failing import Outer, OutOfMemoryError

from agent_rft.contracts.errors import Fault, FaultsFound, InfraError, UserError

pytestmark = pytest.mark.nemo
GOES_ON = "`make resume RUN=a`"


@pytest.fixture(scope="module")
def outer(ray_here):
    import ray

    made = []

    def outer(*args):
        made.append(ray.remote(num_cpus=0)(Outer).remote(*args))
        return made[-1]

    yield outer
    for one in made:
        ray.kill(one)


def told(reference, log: str = "") -> UserError | InfraError:
    import ray

    from agent_rft.training.nemo.failures import one_error

    with pytest.raises((UserError, InfraError)) as found, one_error(log, GOES_ON):
        ray.get(reference)
    return found.value


MISTAKES = [
    UserError("no such layer", "name another", exit_code=5),
    FaultsFound("two faults:", [Fault("a", "b"), Fault("c", "d", "e")]),
    InfraError("card store", "locked", "wait"),
]


@pytest.mark.parametrize("error", MISTAKES, ids=lambda error: type(error).__name__)
def test_what_two_processes_away_was_said_is_told_as_it_is(outer, error):
    said = told(outer().fail.remote(error))
    assert (type(said), str(said), vars(said)) == (type(error), str(error), vars(error))


def test_so_is_what_an_actor_says_while_it_is_made(outer):
    said = told(outer(UserError("no such layer", "name another")).process.remote())
    assert (type(said), str(said)) == (UserError, "no such layer\n  cure: name another")


def test_infrastructure_without_a_cure_is_mended_and_gone_on_from(outer):
    assert str(told(outer().fail.remote(InfraError("card store", "locked")))) == f"card store: locked\n  cure: mend it; then {GOES_ON}"


def test_anything_else_is_rays_with_who_failed_and_where_to_read(outer):
    said = told(outer().fail.remote(ZeroDivisionError("division by zero")))
    assert type(said) is InfraError
    assert said.what == "Outer.fail failed: ZeroDivisionError: division by zero"
    assert said.cure == f"/tmp/ray/session_latest/logs say more; then {GOES_ON}"


def test_a_process_that_was_killed_is_named(outer):
    import ray

    one = outer()
    process = ray.get(one.process.remote())
    os.kill(process, signal.SIGKILL)
    said = told(one.process.remote())
    assert said.what.startswith(f"Outer (process {process}) died: its worker process has died (") and "\n" not in said.what
    assert said.cure.endswith(GOES_ON)


def test_a_gpus_memory_has_its_own_cure(outer):
    said = told(outer().fail.remote(OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")))
    assert type(said) is UserError
    assert said.what == "a GPU's memory was too small: Outer.fail failed: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert "backend.nemo.micro_batch" in said.cure and "memory_utilization" in said.cure and said.cure.endswith(GOES_ON)


def test_the_whole_trace_goes_to_the_log(outer, capsys):
    said = told(outer().fail.remote(ZeroDivisionError("division by zero")), "runs/a/nemo.log")
    assert said.cure.startswith("runs/a/nemo.log and ")
    trace = capsys.readouterr().err
    assert "Traceback" in trace and "in fail\n    raise error" in trace


def test_what_went_wrong_besides_is_told_once(nemo_rl):
    from agent_rft.training.nemo.failures import plainly

    error = InfraError("Ray", "a worker died")
    for note in ("a worker died", "3 cards are in a file"):
        error.add_note(note)
    assert plainly(error).what == "a worker died; also: 3 cards are in a file"


def test_nothing_is_held_by_the_frames_in_which_it_failed(outer):
    """NeMo RL's policy ends its workers where it is let go, which must not be after Ray has ended."""
    import ray

    from agent_rft.training.nemo.failures import one_error

    alive = []

    class Policy:
        def __init__(self) -> None:
            alive.append(self.__class__)
            ray.get(outer().fail.remote(ZeroDivisionError("division by zero")))

        def __del__(self) -> None:
            alive.remove(self.__class__)

    def setup() -> None:
        Policy()

    with pytest.raises(InfraError) as found, one_error():
        setup()
    assert alive == [], found.value
