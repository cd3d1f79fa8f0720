"""Asking a stronger model whether an answer passes, through an OpenAI-compatible endpoint. Off unless the user allows it. No torch.

The probe's file names the endpoint and the model; a key comes from the environment alone (SWEETSPOT_JUDGE_KEY) and is written nowhere.
Somebody else may have written that file, so the key goes to addresses of this machine and to the one that SWEETSPOT_JUDGE_URL names, never
anywhere else; and a shared studio asks only the latter, else a visitor's probes could ask any address of its network.
What is sent: the question, the answer, and what the check asks about it.
"""

from __future__ import annotations

import json
import os
import time
import urllib.request
from http.client import HTTPException, HTTPResponse
from typing import Any

from core.chat.endpoint import Endpoint as Address
from core.chat.endpoint import is_own_or_named

KEY_VARIABLE, URL_VARIABLE = "SWEETSPOT_JUDGE_KEY", "SWEETSPOT_JUDGE_URL"
TIMEOUT_SECONDS = 30.0
_MOST_BYTES = 1_000_000
_INSTRUCTION = ("You check answers of another model. Read the question, its answer and the criterion. Reply with the single word yes when "
                "the answer meets the criterion, and with the single word no when it does not.")


class Endpoint:
    """The judges of one judging. One that failed twice in a row is not asked again, so that nothing waits for a dead server."""

    def __init__(self, timeout: float = TIMEOUT_SECONDS) -> None:
        self.timeout = timeout
        self.failures: dict[str, int] = {}
        self.problem = ""

    def passes(self, check: dict[str, Any], question: str, answer: str) -> bool | None:
        """Whether the judge says yes; None when it could not be asked or said neither."""
        url = check["url"]
        if os.environ.get("SWEETSPOT_GATE") and url.rstrip("/") != os.environ.get(URL_VARIABLE, "").rstrip("/"):
            self.problem = "a shared studio asks only the judge that its owner has named in SWEETSPOT_JUDGE_URL"
            return None
        if self.failures.get(url, 0) >= 2:
            return None
        try:
            said = self._ask(check, question, answer)
        except (OSError, HTTPException, ValueError, KeyError, IndexError, TypeError) as error:  # URLError and time-outs are OSErrors
            self.failures[url] = self.failures.get(url, 0) + 1
            self.problem = f"{type(error).__name__}: {getattr(error, 'reason', error)}"[:200]
            return None
        self.failures[url] = 0
        word = said.strip().lower().lstrip("*\"'`")
        return True if word.startswith("yes") else False if word.startswith("no") else None

    def _ask(self, check: dict[str, Any], question: str, answer: str) -> str:
        body = {"model": check["model"], "temperature": 0, "max_tokens": 8, "messages": [
            {"role": "system", "content": _INSTRUCTION},
            {"role": "user", "content": f"Question:\n{question}\n\nAnswer:\n{answer}\n\nCriterion:\n{check['judge']}"}]}
        headers = {"Content-Type": "application/json"}
        url = check["url"].rstrip("/")
        if (key := os.environ.get(KEY_VARIABLE)) and is_own_or_named(Address(url, check["model"]), URL_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(url + "/chat/completions", json.dumps(body).encode(), headers)
        # What goes to this machine goes there directly: a proxy of the environment would see the key.
        proxies = urllib.request.ProxyHandler({} if is_own_or_named(Address(url, check["model"]), "") else None)
        with urllib.request.build_opener(_NoRedirect, proxies).open(request, timeout=self.timeout) as response:
            return str(json.loads(self._read(response))["choices"][0]["message"]["content"])

    def _read(self, response: HTTPResponse) -> bytes:
        """A whole answer of bounded size in bounded time: a time-out of the socket alone begins anew with every byte."""
        until, body = time.monotonic() + self.timeout, b""
        while piece := response.read1(65536):
            body += piece
            if len(body) > _MOST_BYTES or time.monotonic() > until:
                raise ValueError("the endpoint's answer does not end")
        return body


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A key is for the endpoint that the user named, not for where that one points."""

    def redirect_request(self, *_: Any) -> None:
        return None
