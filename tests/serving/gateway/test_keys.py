"""Who is let in while the store hangs, and what that costs: one question for a key, and no more than so many of all."""

from __future__ import annotations

import asyncio

import pytest

from observability.access import Caller
from serving.gateway import keys as module
from serving.gateway.declined import Declined
from serving.gateway.keys import Keys

ANN = Caller("acme", "ann", "agent", frozenset({"run"}), "k1")


class HangingGate:
    """Says whose key it is until it is told to hang."""

    def __init__(self) -> None:
        self.hangs, self.asked = False, 0
        self.back = asyncio.Event()

    async def caller_of_text(self, text: str, address: str, *, fresh: bool = False) -> Caller | None:
        self.asked += 1
        if self.hangs:
            await self.back.wait()
        return ANN


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(module, "TRUST_AFTER_SECONDS", 0.02)
    monkeypatch.setattr(module, "REMEMBERED_SECONDS", 0.0)


def test_a_known_key_is_let_in_while_the_store_hangs_over_one_question():
    async def run():
        keys = Keys(gate := HangingGate())
        await keys.caller(b"Bearer a", "1.2.3.4")
        gate.hangs = True
        for _ in range(5):
            assert await keys.caller(b"Bearer a", "1.2.3.4") is ANN
        assert gate.asked == 2, "the first, and one that hangs"
        gate.hangs = False
        gate.back.set()
        await asyncio.sleep(0.01)
        assert await keys.caller(b"Bearer a", "1.2.3.4") is ANN

    asyncio.run(run())


def test_strangers_at_a_store_that_hangs_are_turned_away_beyond_a_number(monkeypatch):
    monkeypatch.setattr(module, "MOST_ASKED", 3)

    async def run():
        keys = Keys(gate := HangingGate())
        await keys.caller(b"Bearer known", "1.2.3.4")
        gate.hangs = True
        waiting = [asyncio.create_task(keys.caller(b"Bearer %d" % number, "1.2.3.4")) for number in range(3)]
        await asyncio.sleep(0.01)
        with pytest.raises(Declined) as declined:
            await keys.caller(b"Bearer 4", "1.2.3.4")
        assert (declined.value.status, declined.value.retry_after) == (503, 5) and gate.asked == 4
        assert await keys.caller(b"Bearer known", "1.2.3.4") is ANN, "who was let in before still is"
        gate.back.set()
        assert await asyncio.gather(*waiting) == [ANN] * 3

    asyncio.run(run())
