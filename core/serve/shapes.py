"""Answers in the shape of OpenAI's API: whole, or chunk by chunk. What Sweetspot adds stands under `sweetspot`."""

from __future__ import annotations

import time
import uuid
from typing import Any

from core.chat.panes import LOOP
from core.chat.proof import SHORT
from core.chat.talk import Said
from core.serve.schema import Completion
from core.words import Text

_FINISH = {"end": "stop", "stopped": "stop", "length": "length", "loop": "length"}


class Reply:
    """One answer as it comes from the chat process."""

    def __init__(self, asked: Completion) -> None:
        self.asked = asked
        self.said = Said(model=asked.model)
        self.logprobs: list[dict[str, Any]] = []
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": asked.model}

    def take(self, event: dict[str, Any]) -> None:
        """Grow by an event about this answer."""
        self.said.take(event)
        if event["event"] == "text":
            self.logprobs += [_logprob(token) for token in event.get("tokens", [])]

    def whole(self) -> dict[str, Any]:
        """`chat.completion`."""
        logprobs = {"content": self.logprobs, "refusal": None} if self.asked.logprobs else None
        message = {"role": "assistant", "content": self.said.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": _FINISH[self.said.reason or "end"]}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": self._usage(), **self._about()}

    def first_chunk(self) -> dict[str, Any]:
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def text_chunk(self, event: dict[str, Any]) -> dict[str, Any]:
        tokens = [_logprob(token) for token in event.get("tokens", [])]
        return self._chunk({"content": event["text"]}, {"content": tokens, "refusal": None} if tokens else None)

    def last_chunks(self) -> list[dict[str, Any]]:
        """Why it ended and who answered; then the usage, if that was asked for."""
        last = self._chunk({}, finish=_FINISH[self.said.reason or "end"]) | self._about()
        if not (self.asked.stream_options and self.asked.stream_options.include_usage):
            return [last]
        return [last, {**self._chunk({}), "choices": [], "usage": self._usage()}]

    def _chunk(self, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": [choice], "system_fingerprint": self._fingerprint()}
        return chunk | {"usage": None} if self.asked.stream_options and self.asked.stream_options.include_usage else chunk

    def _usage(self) -> dict[str, Any]:
        read, written = self.said.proof.prompt_tokens if self.said.proof else 0, self.said.tokens
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written,
                "prompt_tokens_details": {"cached_tokens": self.said.reused}}

    def _fingerprint(self) -> str | None:
        proof = self.said.proof
        return f"{proof.base_weights[:SHORT]}-{proof.weights[:SHORT]}" if proof else None

    def _about(self) -> dict[str, Any]:
        notes = [str(Text.from_json(note)) for note in self.said.notes] + ([str(LOOP)] if self.said.reason == "loop" else [])
        return {"system_fingerprint": self._fingerprint(), "sweetspot": {
            "proof": self.said.proof.model_dump() if self.said.proof else None, "reason": self.said.reason,
            "seed": self.asked.used_seed(), "notes": notes}}


def _logprob(token: dict[str, Any]) -> dict[str, Any]:
    return {**_token(token), "top_logprobs": [_token(other) for other in token["top"]]}


def _token(token: dict[str, Any]) -> dict[str, Any]:
    """`bytes` is null where the token is a part of a character: its text does not tell them."""
    text = token["token"]
    return {"token": text, "logprob": token["logprob"], "bytes": None if "\ufffd" in text else list(text.encode())}
