"""Errors cross process borders: Ray pickles what is raised in a worker, and what arrives is told to the user."""

import datetime as dt
import pickle

import pytest

from agent_rft.contracts import errors
from agent_rft.contracts.errors import Diverged, Fault, FaultsFound, Halted, InfraError, NeedsApproval, UserError

MADE = [
    UserError("no such file", "name another", exit_code=5),
    FaultsFound(
        "the data has faults:", [Fault("rows.jsonl:3", "no id", "give it one"), Fault("task.val", "is empty")], "mend them", exit_code=2
    ),
    InfraError("card store", "locked"),
    InfraError("Ray", "a worker died", "resume"),
    NeedsApproval(7, dt.datetime(2026, 11, 22, 3, tzinfo=dt.UTC)),
    Halted("too many failures", "mend the tool"),
    Diverged("not a number", "a smaller rate"),
]


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
def test_an_error_arrives_as_it_was_sent(error: Exception):
    error.add_note("told on the way")
    arrived = pickle.loads(pickle.dumps(error))
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert arrived.args == error.args
    assert vars(arrived) == vars(error)


def test_every_kind_of_error_is_sent_above():
    kinds = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, Exception) and not kind.__name__.startswith("_")
    }
    assert kinds <= {type(error) for error in MADE}


def test_what_infrastructure_did_is_told_with_its_cure_where_there_is_one():
    assert str(InfraError("Ray", "a worker died", "resume")) == "Ray: a worker died\n  cure: resume"
    assert str(InfraError("Ray", "a worker died")) == "Ray: a worker died"
