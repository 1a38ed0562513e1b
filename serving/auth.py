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
SESSION_PURPOSE = b"a browser's session on the pages"


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

    def is_token(self, typed: str) -> bool:
        """What a person typed into the sign-in form."""
        return self._expected is None or _same(typed.strip().encode("utf-8", "replace"), self._expected)

    @property
    def session(self) -> str:
        """What a signed-in browser keeps. It opens the pages only, and the secret cannot be read from it."""
        return hmac.new(self._expected or b"", SESSION_PURPOSE, "sha256").hexdigest()

    def admits_session(self, cookie: str) -> bool:
        return self._expected is None or _same(cookie.encode("utf-8", "replace"), self.session.encode())

    def guard(self, connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        """The same gate, for Litestar's handlers."""
        if not self.admits(connection.scope["headers"]):
            raise NotAuthorizedException(detail=HOW, headers=CHALLENGE)


def _same(given: bytes, expected: bytes) -> bool:
    """In constant time: how long a refusal takes must not tell how much of a guess was right."""
    return hmac.compare_digest(given, expected)
