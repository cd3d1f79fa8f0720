"""Keep secrets out of what is written: logs, states, events, errors, recipes, `environment.json`.

Secrets come from the environment or a library's own login. What is masked: the values of environment variables that are named like
secrets, tokens of well-known shapes, passwords and tokens inside addresses, and what stands in a header for a key.
"""

from __future__ import annotations

import functools
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

MASK = "***"
_NAMED_LIKE_SECRETS = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|_KEY|^KEY|API_?KEY|AUTH)", re.IGNORECASE)
_SHORTEST = 8  # a shorter value would mask half of the language
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|sk-[A-Za-z0-9_-]{20,}"  # OpenAI and others
    r"|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{20,}"
    r"|AKIA[0-9A-Z]{16}|ASIA[0-9A-Z]{16}|AIza[A-Za-z0-9_-]{30,}|xox[abprs]-[A-Za-z0-9-]{10,}|nvapi-[A-Za-z0-9_-]{20,}"
    r"|ms-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"  # ModelScope
    r"|eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{5,})")  # a JSON web token
_BEARER = re.compile(r"(?i)\b(authorization\s*[:=]\s*[\"']?(?:bearer|basic)\s+|bearer\s+)[A-Za-z0-9._~+/=-]{8,}")
_KEY_HEADER = re.compile(r"(?i)\b((?:x-api-key|api-key|x-auth-token|private-token|set-cookie|cookie)\b[\"']?\s{0,5}[:=]\s{0,5}[\"']?)"
                         r"[^\s\"',;]{8,}")
# Signed addresses of a storage are tokens as well: a library's message often quotes one whole.
_IN_QUERY = re.compile(r"(?i)([?&;](?:[a-z0-9_-]{0,40}(?:token|secret|password|passwd|signature|credential|api[_-]?key)|key|sig|policy)=)"
                       r"[^&\s\"'<>]{4,}")
_NAME_AS_TOKEN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]{0,30}://)[^\s/:@\"']{20,}@")  # https://TOKEN@host
_IN_ADDRESS = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]{0,30}://)(?P<user>[^\s/:@\"']*):(?P<password>[^\s/@\"']+)@")


def secret_values(environment: Mapping[str, str] | None = None) -> list[str]:
    """The values of the environment that must not be written, longest first."""
    found = {value.strip() for name, value in (os.environ if environment is None else environment).items()
             if _NAMED_LIKE_SECRETS.search(name) and len(value.strip()) >= _SHORTEST and not _is_path(value.strip())}
    return sorted(found, key=len, reverse=True)


@functools.lru_cache(maxsize=256)
def _is_path(value: str) -> bool:
    """Whether a value such as SSH_AUTH_SOCK's only says where something lies; one secret in 64 begins with a slash, too."""
    try:
        return value.startswith("/") and Path(value).exists()
    except (OSError, ValueError):
        return False


def redact(text: str) -> str:
    """`text` with every secret replaced by `***`."""
    for value in secret_values():
        text = text.replace(value, MASK)
    text = _BEARER.sub(rf"\1{MASK}", _SHAPES.sub(MASK, text))
    text = _NAME_AS_TOKEN.sub(rf"\g<scheme>{MASK}@", _IN_QUERY.sub(rf"\1{MASK}", _KEY_HEADER.sub(rf"\1{MASK}", text)))
    return _IN_ADDRESS.sub(rf"\g<scheme>\g<user>:{MASK}@", text)


def redact_data(data: Any) -> Any:
    """The same for everything inside a JSON value; names of fields stay."""
    if isinstance(data, str):
        return redact(data)
    if isinstance(data, Mapping):
        return {key: redact_data(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [redact_data(value) for value in data]
    return data


class RedactedStream(io.TextIOBase):
    """A text stream that masks whole lines before they reach the stream behind it.

    Half a line waits for its end: a token that is written in two pieces would pass as neither.
    """

    def __init__(self, behind: TextIO) -> None:
        self._behind, self._half = behind, ""

    def write(self, text: str) -> int:
        *lines, self._half = (self._half + text).split("\n")
        if lines:
            self._behind.write("".join(f"{redact(line)}\n" for line in lines))
            self._behind.flush()
        if "\r" in self._half or len(self._half) > 10_000:  # a progress bar, or a line without an end
            self._behind.write(redact(self._half))
            self._half = ""
        return len(text)

    def flush(self) -> None:
        self._behind.flush()

    def finish(self) -> None:
        """Write the last half line; called once, at the end of the process."""
        self._behind.write(redact(self._half))
        self._half = ""
        self._behind.flush()

    def fileno(self) -> int:
        return self._behind.fileno()

    def isatty(self) -> bool:
        return self._behind.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._behind.encoding
