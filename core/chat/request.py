"""What is asked of the chat process, checked in words before anything is loaded. No torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from core.errors import StudioError

# A request larger than this is refused unread: no model here holds so much text.
MOST_BYTES = 4_000_000
# Models that may be asked at once; a page shows fewer.
MOST_MODELS = 16
MOST_LOGPROBS = 20


class Sampled(BaseModel):
    """How answers are made. Temperature 0 always takes the most probable token."""

    temperature: float = Field(0.0, ge=0, le=5)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    repetition_penalty: float = Field(1.0, ge=0.5, le=3)
    seed: int = Field(0, ge=0, lt=2**63)
    max_new_tokens: int = Field(256, ge=1, le=8192)


class ChatMessage(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str


class ChatRequest(BaseModel):
    """One question to several models.

    Attributes:
        id: chosen by the client; a later cancel names it.
        member: the student of a class whose models are meant; empty outside a class.
        models: one reference per pane.
        histories: one conversation per pane; the last message is the question.
        stop: an answer ends before the first of these texts.
        frequency_penalty, presence_penalty: as in the OpenAI API.
        top_logprobs: how many alternatives to report with each token; None reports nothing.
        overflow: a conversation longer than the context loses its oldest turns (`cut`), or is refused.
        is_limit_given: False lets the context's end shorten the longest answer instead of refusing it.
    """

    id: str = Field(min_length=8, max_length=64)
    member: str = Field("", max_length=80)
    models: list[str] = Field(min_length=1, max_length=MOST_MODELS)
    histories: list[list[ChatMessage]]
    sampled: Sampled = Sampled()
    stop: list[str] = Field([], max_length=16)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    overflow: Literal["cut", "refuse"] = "cut"
    is_limit_given: bool = True

    def messages(self, pane: int) -> list[dict[str, str]]:
        return [message.model_dump() for message in self.histories[pane]]


def read_request(data: Any) -> ChatRequest:
    """Check a request.

    Raises:
        StudioError: it is no request, a question is empty, or a text has characters that cannot be encoded.
    """
    try:
        request = ChatRequest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "-"
        raise StudioError("The request cannot be used: {place}: {reason}.", "Correct this value and ask again.",
                          place=place, reason=first["msg"]) from error
    if len(request.histories) != len(request.models):
        raise StudioError("There are {models} models and {histories} conversations.", "Send one conversation per model.",
                          models=len(request.models), histories=len(request.histories))
    for history in request.histories:
        if not history or history[-1].role != "user" or not history[-1].content.strip():
            raise StudioError("The question is empty.", "Write something, then send it.")
        if any(not _is_encodable(text) for text in (*(message.content for message in history), *request.stop)):
            raise StudioError("The text has characters that are no valid Unicode.", "Type or paste the text again.")
    request.stop = [text for text in request.stop if text]
    return request


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
