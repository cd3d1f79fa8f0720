"""A chat completion as it is asked for, checked; what cannot be done is refused by name rather than ignored."""

from __future__ import annotations

import json
import secrets
import uuid
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.chat.request import MOST_LOGPROBS, Sampled
from core.serve.errors import ApiError

# Without a limit in the request: enough for any answer of a small chat model, and it ends if the model does not.
DEFAULT_TOKENS = 1024
MOST_TOKENS = 8192

# Parts of OpenAI's API that this server does not have. Values that ask for nothing are let through.
_REFUSED = {
    "tools": "calling tools", "functions": "calling functions", "function_call": "calling functions", "tool_choice": "calling tools",
    "logit_bias": "biased logits", "modalities": "other media than text", "audio": "other media than text",
    "prediction": "predicted outputs", "web_search_options": "searching the web", "reasoning_effort": "levels of reasoning",
    "verbosity": "levels of verbosity",
}
_ASKS_NOTHING = (None, [], {}, "none", "auto", ["text"])
# Names that change nothing about an answer.
_IGNORED = ("user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key")


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class ResponseFormat(BaseModel):
    type: Literal["text"]


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class ApiMessage(BaseModel):
    """A turn; fields of an answer that a client sends back with it (`refusal`, `annotations`) are let through."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    tool_calls: None = None

    def plain(self) -> dict[str, str]:
        content = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content or [])
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class Completion(BaseModel):
    """POST /v1/chat/completions. `top_k` and `repetition_penalty` are additions, as vLLM has them."""

    model_config = ConfigDict(extra="forbid")
    model: str
    messages: list[ApiMessage] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    max_completion_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    n: int | None = None
    response_format: ResponseFormat | None = None
    top_k: int | None = Field(None, ge=0)
    repetition_penalty: float | None = Field(None, ge=0.5, le=3)

    def used_seed(self) -> int:
        """The seed that answers: the given one, else a new one each time, which the response names."""
        if self.seed is None:
            self.seed = secrets.randbelow(2**31)
        return self.seed % 2**63

    def to_request(self) -> dict[str, Any]:
        """The same for the chat process (`core.chat.request.ChatRequest`)."""
        longest = self.max_completion_tokens or self.max_tokens
        defaults = Sampled()
        sampled = {
            "temperature": _given(self.temperature, defaults.temperature), "top_p": _given(self.top_p, defaults.top_p),
            "top_k": _given(self.top_k, defaults.top_k), "seed": self.used_seed(), "max_new_tokens": longest or DEFAULT_TOKENS,
            "repetition_penalty": _given(self.repetition_penalty, defaults.repetition_penalty),
        }
        return {
            "id": uuid.uuid4().hex, "models": [self.model], "histories": [[message.plain() for message in self.messages]],
            "sampled": sampled, "stop": [self.stop] if isinstance(self.stop, str) else self.stop or [],
            "frequency_penalty": self.frequency_penalty or 0.0, "presence_penalty": self.presence_penalty or 0.0,
            "top_logprobs": (self.top_logprobs or 0) if self.logprobs else None, "overflow": "refuse", "is_limit_given": bool(longest),
        }


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


def read_completion(body: bytes) -> Completion:
    """Check a request.

    Raises:
        ApiError: 400 with the parameter that is to blame.
    """
    try:
        data = json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ApiError(400, f"The request is not UTF-8: byte {error.start} cannot be read.") from error
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The request is not JSON: {error}.") from error
    if not isinstance(data, dict):
        raise ApiError(400, "The request must be a JSON object.")
    for name, what in _REFUSED.items():
        if data.pop(name, None) not in _ASKS_NOTHING:
            raise ApiError(400, f"This server does not support {what}; leave out `{name}`.", code="unsupported_parameter", param=name)
    for name in _IGNORED:
        data.pop(name, None)
    try:
        asked = Completion.model_validate(data)
    except ValidationError as error:
        raise _in_words(error) from error
    if asked.n not in (None, 1):
        raise ApiError(400, "This server gives one answer to a request: `n` must be 1. Ask again with other seeds for more.",
                       code="unsupported_value", param="n")
    if asked.top_logprobs is not None and not asked.logprobs:
        raise ApiError(400, "`top_logprobs` needs `logprobs` to be true.", code="invalid_value", param="top_logprobs")
    if isinstance(asked.stop, list) and len(asked.stop) > 16:
        raise ApiError(400, f"At most 16 stop texts are supported; {len(asked.stop)} were given.", code="invalid_value", param="stop")
    _check_turns(asked)
    return asked


def _check_turns(asked: Completion) -> None:
    last = asked.messages[-1].plain()
    if last["role"] != "user" or not last["content"].strip():
        raise ApiError(400, "The last message must be a user's, and not empty.", code="invalid_value", param="messages")
    for number, message in enumerate(asked.messages):
        try:
            message.plain()["content"].encode("utf-8")
        except UnicodeEncodeError as error:
            raise ApiError(400, f"messages[{number}] has characters that are no valid Unicode.", code="invalid_value",
                           param=f"messages[{number}].content") from error


def _in_words(error: ValidationError) -> ApiError:
    first = error.errors()[0]
    place = [part for part in first["loc"] if not (isinstance(part, str) and part in ("str", "list[TextPart]", "list[str]"))]
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" if index else str(part) for index, part in enumerate(place))
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"Unknown parameter: `{name}`.", code="unknown_parameter", param=name)
    if first["type"] == "missing":
        return ApiError(400, f"Missing required parameter: `{name}`.", code="missing_required_parameter", param=name)
    return ApiError(400, f"`{name}`: {first['msg']}.", code="invalid_value", param=name)
