"""A request that the gateway does not answer, told in the shape that clients of OpenAI's API read, with what to do about it. Pure."""

from __future__ import annotations

import msgspec

KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error"} | dict.fromkeys(
    (405, 408, 409, 413), "invalid_request_error"
)
RATE = "rate_limit_error"
OURS = "server_error"


class Declined(Exception):
    """`code` names the reason in one word, for programs and for the metrics."""

    def __init__(
        self, status: int, code: str, what: str, cure: str = "", *, retry_after: float | None = None, param: str | None = None
    ) -> None:
        """`param`: the field of the request that is wrong."""
        super().__init__(what)
        self.status, self.code, self.what, self.cure, self.retry_after, self.param = status, code, what, cure, retry_after, param

    def body(self) -> bytes:
        kind = RATE if self.status == 429 else KINDS.get(self.status, OURS)
        message = f"{self.what}; {self.cure}" if self.cure else self.what
        told = {"message": message, "type": kind, "param": self.param, "code": self.code, "cure": self.cure}
        return msgspec.json.encode({"error": told})

    def headers(self) -> list[tuple[bytes, bytes]]:
        told = [] if self.retry_after is None else [(b"retry-after", b"%d" % max(1, -int(-self.retry_after // 1)))]
        return [*told, (b"www-authenticate", b"Bearer")] if self.status == 401 else told
