"""Users that are none: sessions of a few questions each, asked of a gateway as a program would ask them, and what became of each."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import aiohttp
import msgspec

from agent_rft.contracts.rows import Row

MOST_TURNS = 3
THINKING_SECONDS = (0.05, 0.3)
CHATS = 0.1
"""The share of sessions that use the chat endpoint, where one model turn is an answer; the others have the agent run to its end."""
TRIES = 8
"""Of a request that was told to come again."""
PATIENCE_SECONDS = 120.0
TOO_MANY = 429


class Tally(msgspec.Struct):
    """What users met."""

    sent: int = 0
    answered: int = 0
    lost: list[str] = msgspec.field(default_factory=list[str])
    """Why, of each that got no answer."""


class Users(msgspec.Struct, frozen=True, kw_only=True):
    """Those of one tenant, who all use one service."""

    address: str
    key: str
    service: str
    rows: Sequence[Row]
    """What they ask; graders are shown the row."""
    at_once: int
    seed: int

    async def keep_asking(self, tally: Tally, stop: asyncio.Event) -> None:
        """Until told to stop; then every question that was asked is still answered."""
        timeout = aiohttp.ClientTimeout(total=PATIENCE_SECONDS)
        headers = {"Authorization": f"Bearer {self.key}"}
        async with aiohttp.ClientSession(self.address, headers=headers, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as http:
            async with asyncio.TaskGroup() as group:
                for number in range(self.at_once):
                    group.create_task(self._one(http, random.Random(f"{self.seed} {self.service} {number}"), tally, stop))

    async def _one(self, http: aiohttp.ClientSession, lot: random.Random, tally: Tally, stop: asyncio.Event) -> None:
        while not stop.is_set():
            session = f"session-{lot.randrange(2**64):016x}"
            chats = lot.random() < CHATS
            for _ in range(lot.randint(1, MOST_TURNS)):
                row = lot.choice(self.rows)
                await self._ask(http, f"/v1/{'chat/completions' if chats else 'agent/runs'}", self._body(row, session, chats), tally)
                await asyncio.sleep(lot.uniform(*THINKING_SECONDS))
                if stop.is_set():
                    return

    def _body(self, row: Row, session: str, chats: bool) -> dict[str, Any]:
        if not chats:
            return {"model": self.service, "input": row.prompt, "session": session, "item": row.item()}
        tools = [tool.as_openai() for tool in row.tools]
        return {"model": self.service, "messages": [{"role": "user", "content": row.prompt}], "tools": tools, "user": session}

    async def _ask(self, http: aiohttp.ClientSession, path: str, body: dict[str, Any], tally: Tally) -> None:
        tally.sent += 1
        for _ in range(TRIES):
            try:
                async with http.post(path, json=body) as response:
                    told: Any = await response.json(content_type=None)
                    if response.status == TOO_MANY:
                        await asyncio.sleep(float(response.headers.get("retry-after", 1)))
                        continue
                    if response.status != 200:
                        tally.lost.append(f"{response.status}: {told}")
                    elif told.get("ending") == "infra_failed":
                        tally.lost.append(f"infra_failed: {told.get('reason')}")
                    else:
                        tally.answered += 1
                    return
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                tally.lost.append(str(error) or type(error).__name__)
                return
        tally.lost.append(f"told {TRIES} times to come again")
