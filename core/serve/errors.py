"""Errors in the shape that OpenAI's clients understand: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from typing import Any

from core.words import Text

# What the chat process calls an error -> HTTP status, type, code. Anything else is the request's own fault.
_KNOWN = {
    "context_length_exceeded": (400, "invalid_request_error", "context_length_exceeded"),
    "queue_full": (429, "rate_limit_error", "queue_full"),
    "model_unavailable": (503, "server_error", "model_unavailable"),
    "out_of_memory": (503, "server_error", "out_of_memory"),
    "worker_lost": (503, "server_error", "worker_lost"),
    "internal": (500, "server_error", "internal_error"),
}
_RETRY_SECONDS = 2


class ApiError(Exception):
    """A request that gets an error instead of an answer.

    Args:
        kind: OpenAI's `type`.
        param: which parameter is to blame.
    """

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error", code: str | None = None,
                 param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.code, self.param = status, message, kind, code, param

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": str(_RETRY_SECONDS)} if self.status in (429, 503) else {}

    @classmethod
    def from_event(cls, event: dict[str, Any]) -> ApiError:
        """From an error event of the chat process."""
        status, kind, code = _KNOWN.get(event.get("code", ""), (400, "invalid_request_error", None))
        message = f"{Text.from_json(event['problem'])} {Text.from_json(event['hint'])}"
        return cls(status, message, kind, code, "messages" if code == "context_length_exceeded" else None)
