"""One of several at a time, and another soon after its death."""

from __future__ import annotations

import threading
import time

import pytest

from observability.leases import give_up, holder, take
from observability.store import Store


@pytest.fixture
def store(release_store: Store) -> Store:
    return release_store


def test_one_holds_it_until_it_is_over_or_given_up(store):
    assert take(store, "control", "a", 0.3) and not take(store, "control", "b", 0.3)
    assert take(store, "control", "a", 0.3) and take(store, "other", "b", 0.3)
    assert holder(store, "control") == "a"
    time.sleep(0.35)
    assert holder(store, "control") == ""
    assert take(store, "control", "b", 5) and not take(store, "control", "a", 5)
    give_up(store, "control", "a")  # which is not the holder
    assert holder(store, "control") == "b"
    give_up(store, "control", "b")
    assert take(store, "control", "a", 5)


def test_of_many_who_want_it_at_once_one_gets_it(store):
    there, got = threading.Barrier(5), list[str]()

    def want(name: str) -> None:
        there.wait()
        if take(store, "control", name, 5):
            got.append(name)

    threads = [threading.Thread(target=want, args=(str(number),)) for number in range(5)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(got) == 1 and holder(store, "control") == got[0]
