"""One bearer for a training-time server."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from typing import Any

from litestar.connection import ASGIConnection
from litestar.exceptions import NotAuthorizedException
from litestar.handlers import BaseRouteHandler

HOW = "send the server's bearer: 'Authorization: Bearer $TOOL_BEARER'"
CHALLENGE = {"www-authenticate": "Bearer"}


class Bearer:
    """Lets in whoever sends the secret; everybody where there is none."""

    def __init__(self, secret: str | None) -> None:
        self._expected = secret.encode() if secret else None

    def admits(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        if self._expected is None:
            return True
        for name, value in headers:
            if name == b"authorization":
                return value[:7].lower() == b"bearer " and _same(value[7:].strip(), self._expected)
        return False

    def guard(self, connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        """The same gate, for Litestar's handlers."""
        if not self.admits(connection.scope["headers"]):
            raise NotAuthorizedException(detail=HOW, headers=CHALLENGE)


def _same(given: bytes, expected: bytes) -> bool:
    """In constant time: how long a refusal takes must not tell how much of a guess was right."""
    return hmac.compare_digest(given, expected)
