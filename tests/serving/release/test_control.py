"""What runs beside the server goes on running."""

from __future__ import annotations

import asyncio

from serving.release import control


async def test_a_part_that_ends_by_a_fault_of_ours_begins_again(monkeypatch):
    monkeypatch.setattr(control, "AGAIN_SECONDS", 0.001)
    begun, runs = 0, asyncio.Event()

    class Part:
        async def run(self) -> None:
            nonlocal begun
            begun += 1
            if begun < 3:
                raise KeyError("nobody thought of this")
            runs.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(control._kept_running(Part()))
    await asyncio.wait_for(runs.wait(), 5)
    assert begun == 3 and not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled(), "but not once it is told to stop"
