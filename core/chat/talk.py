"""A conversation with several models: what was asked, who answered what; kept on disk, exported, turned into rows. No torch.

    cache/chat/talks/<id>.jsonl   one exchange a line
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from core.chat.handle import chat_folder
from core.chat.proof import SHORT, Proof
from core.chat.request import Sampled
from core.errors import StudioError
from core.workspace import Workspace, append_jsonl, explain_full_disk, read_jsonl

Message = dict[str, str]

_KEPT_TALKS = 50
_ID = re.compile(r"[a-z0-9]{12}")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")


class Said(BaseModel):
    """One model's answer, whole or as far as it has come.

    Attributes:
        model: the reference that was asked.
        reason: why it ended: `end`, `length`, `stopped`, `loop`, `error`; None while it goes on.
        reused: how many tokens of the prompt had been read in an earlier turn.
        notes: sentences about this answer, as `Text.to_json()`.
        problem, hint: what went wrong, as `Text.to_json()`.
    """

    model: str
    text: str = ""
    reason: str | None = None
    proof: Proof | None = None
    tokens: int = 0
    tokens_per_second: float = 0.0
    reused: int = 0
    notes: list[dict[str, Any]] = []
    problem: dict[str, Any] | None = None
    hint: dict[str, Any] | None = None

    def take(self, event: dict[str, Any]) -> None:
        """Grow by one event of `core.chat.panes`."""
        kind = event["event"]
        if kind == "text":
            self.text += event["text"]
        elif kind == "start":
            self.proof = Proof.model_validate(event["proof"]) if event["proof"] else None
        elif kind == "note":
            self.notes.append(event["text"])
        elif kind == "done":
            self.reason, self.tokens, self.tokens_per_second = event["reason"], event["tokens"], event["tokens_per_second"]
            self.reused = event["reused"]
        elif kind == "error":
            self.reason, self.problem, self.hint = "error", event["problem"], event["hint"]


class Exchange(BaseModel):
    """One question and what every model said to it. `asked`: seconds since the epoch."""

    question: str
    asked: float
    system: str | None = None
    sampled: Sampled = Sampled()
    answers: list[Said]
    notes: list[dict[str, Any]] = []


def history_of(exchanges: Sequence[Exchange], model: str, system: str | None, question: str | None = None) -> list[Message]:
    """The conversation as this model knows it: its own answers only, never another model's.

    Args:
        system: system text put first; None leaves it to the model.
        question: what is asked next.
    """
    messages = [{"role": "system", "content": system}] if system else []
    for exchange in exchanges:
        said = next((said for said in exchange.answers if said.model == model and said.text.strip()), None)
        if said is not None:
            messages += [{"role": "user", "content": exchange.question}, {"role": "assistant", "content": said.text.strip()}]
    return messages if question is None else [*messages, {"role": "user", "content": question}]


def models_of(exchanges: Sequence[Exchange]) -> list[str]:
    """Every model that took part, in the order of their first answers."""
    return list(dict.fromkeys(said.model for exchange in exchanges for said in exchange.answers))


def new_talk_id() -> str:
    return secrets.token_hex(6)


def save_exchange(workspace: Workspace, talk: str, exchange: Exchange) -> None:
    """Add an exchange to a talk on disk, so that reloading the page loses nothing. Only the newest talks are kept."""
    path = _talk_path(workspace, talk)
    with explain_full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        chat_folder(workspace).chmod(0o700)  # what people ask is nobody else's business
    append_jsonl(path, exchange.model_dump())
    talks = sorted(path.parent.glob("*.jsonl"), key=lambda item: item.stat().st_mtime, reverse=True)
    for old in talks[_KEPT_TALKS:]:
        old.unlink(missing_ok=True)


def load_talk(workspace: Workspace, talk: str) -> list[Exchange]:
    """The exchanges of a talk; none when it is not there any more, or cannot be read."""
    if not _ID.fullmatch(talk):
        return []
    try:
        return [Exchange.model_validate(record) for record in read_jsonl(_talk_path(workspace, talk))]
    except (OSError, ValueError):
        return []


def _talk_path(workspace: Workspace, talk: str) -> Path:
    return chat_folder(workspace) / "talks" / f"{talk}.jsonl"


def training_row(question: str, answer: str, group: str) -> dict[str, Any]:
    """An exchange as a row of a dataset.

    Raises:
        StudioError: one of the two is empty.
    """
    if not question.strip() or not answer.strip():
        raise StudioError("A row needs a question and an answer.", "Write the answer that the model should give.")
    language = "zh" if _CHINESE.search(question) else "en"
    return {"messages": [{"role": "user", "content": question.strip()}, {"role": "assistant", "content": answer.strip()}],
            "group": group, "lang": language}


def to_jsonl(exchanges: Sequence[Exchange]) -> str:
    """One line per model: its conversation in the layout of a dataset, and the proof of each answer."""
    lines = []
    for model in models_of(exchanges):
        own = [(exchange, said) for exchange in exchanges for said in exchange.answers if said.model == model and said.text.strip()]
        if own:
            lines.append(json.dumps({
                "model": model, "messages": history_of(exchanges, model, own[-1][0].system),
                "answers": [{**said.model_dump(include={"reason", "proof", "tokens", "tokens_per_second"}),
                             "sampled": exchange.sampled.model_dump(), "asked": exchange.asked} for exchange, said in own],
            }, ensure_ascii=False))
    return "".join(line + "\n" for line in lines)


def to_markdown(exchanges: Sequence[Exchange]) -> str:
    """The conversation to read. What people and models wrote stands as indented text, which no reader takes for markup."""
    parts = ["# Sweetspot\n"]
    for number, exchange in enumerate(exchanges, 1):
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(exchange.asked))
        sampled = ", ".join(f"{name} {value:g}" for name, value in exchange.sampled.model_dump().items())
        parts.append(f"## {number} · {when}\n\n{_quoted(exchange.question)}\n\n`{sampled}`\n")
        if exchange.system:
            parts.append(f"`system`\n\n{_quoted(exchange.system)}\n")
        for said in exchange.answers:
            proof = f"weights {said.proof.weights[:SHORT]}, prompt {said.proof.prompt}, " if said.proof else ""
            parts.append(f"### `{said.model}`\n\n{_quoted(said.text.strip() or '-')}\n\n"
                         f"`{proof}{said.tokens} tokens, {said.reason or '-'}`\n")
    return "\n".join(parts)


def _quoted(text: str) -> str:
    """A block of plain text whatever it holds: four spaces make it code."""
    return "\n".join(f"    {line}" for line in text.splitlines())
