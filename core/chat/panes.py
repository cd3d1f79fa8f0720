"""What is asked, on its way to answers: the panes of a request and the events that tell about them. No torch.

    {"event": "loading"|"waiting"|"start"|"text"|"note"|"done"|"error", "pane": number or null, ...}
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from core.chat.history import fit_prompt, whole_prompt
from core.chat.proof import Proof, adapter_alpha, hash_weights, model_weights
from core.chat.request import ChatRequest
from core.chat.stops import TextWriter
from core.data.encode import Encoder, hash_ids
from core.errors import StudioError
from core.models.catalogue import Model
from core.models.header import read_config
from core.words import Text
from core.workspace import Workspace

Event = dict[str, Any]

LOOP = Text("It began to repeat itself, so it was stopped.")


class QueueFull(StudioError):
    """More requests wait than will be answered soon."""

    code = "queue_full"


class OutOfMemory(StudioError):
    """The models, or the answers, are too large for this machine."""

    code = "out_of_memory"


@dataclass(eq=False)
class Pane:
    """One model's part in a request.

    Attributes:
        left_out: oldest exchanges that the prompt does without.
        longest: the answer is cut at so many tokens.
        reused: ids of the prompt that had been read in an earlier turn.
        began: when its turn came, in seconds of the monotonic clock.
    """

    number: int
    model: Model
    encoder: Encoder
    prompt: list[int]
    left_out: int
    longest: int
    writer: TextWriter
    slot: int = 0
    ids: list[int] = field(default_factory=list)
    reused: int = 0
    began: float = field(default_factory=time.monotonic)


@dataclass(eq=False)
class Asked:
    """A request under way.

    Attributes:
        outbox: the events for whoever asked; None is the end.
        cancelled: panes that shall end now; another thread may add to it.
        has_left: nobody listens any more.
        has_begun: its turn has come.
        stages: groups of panes by base folder that decode at the same time; the first is next. Several when memory is short.
        live: panes that answer now.
    """

    request: ChatRequest
    outbox: SimpleQueue[Event | None] = field(default_factory=SimpleQueue)
    cancelled: set[int] = field(default_factory=set)
    has_left: bool = False
    has_begun: bool = False
    stages: deque[dict[Path, list[Pane]]] = field(default_factory=deque)
    live: set[Pane] = field(default_factory=set)

    def put(self, event: Event) -> None:
        self.outbox.put(event)

    def is_cancelled(self, pane: Pane) -> bool:
        return self.has_left or pane.number in self.cancelled

    def end(self) -> None:
        self.outbox.put(None)


def prepare(request: ChatRequest, find: Callable[[str], Model], encoder_of: Callable[[Model], Encoder]) -> Asked:
    """Find the models and encode the prompts; what is wrong with one pane is said there and does not stop the others."""
    asked = Asked(request)
    groups: dict[Path, list[Pane]] = {}
    for number, reference in enumerate(request.models):
        try:
            model = find(reference)
            pane = _prepare_pane(request, number, model, encoder_of(model))
            groups.setdefault(model.base, []).append(pane)
        except StudioError as error:
            asked.put(error_event(number, error))
    if groups:
        asked.stages.append(groups)
    return asked


def _prepare_pane(request: ChatRequest, number: int, model: Model, encoder: Encoder) -> Pane:
    context, longest = read_config(model.base).get("max_position_embeddings"), request.sampled.max_new_tokens
    left_out = 0
    if request.overflow == "refuse":
        prompt, longest = whole_prompt(encoder, request.messages(number), context, longest, request.is_limit_given)
    else:
        prompt, left_out = fit_prompt(encoder, request.messages(number), context, longest)
    return Pane(number, model, encoder, prompt, left_out, longest, TextWriter(encoder, request.stop))


def proof_of(workspace: Workspace, pane: Pane, asked_for: str, base_weights: str, quantization: str) -> Proof:
    """Who answers in this pane, by what lies on disk."""
    model = pane.model
    weights = base_weights if model.adapter is None else hash_weights(workspace, model_weights(model))
    checkpoint = model.adapter or (model.base if model.base.parent.name == "checkpoints" else None)
    resolved = model.name if checkpoint is None else f"{checkpoint.parent.parent.name}@{int(checkpoint.name)}"
    return Proof(model=asked_for, resolved=resolved, base=model.base.name, step=int(checkpoint.name) if checkpoint else None,
                 strength=model.strength if model.adapter else 1.0, alpha=adapter_alpha(model), weights=weights,
                 base_weights=base_weights, quantization=quantization, prompt=hash_ids(pane.prompt), prompt_tokens=len(pane.prompt))


def text_event(pane: Pane, piece: str, tokens: Sequence[dict[str, Any]] = ()) -> Event:
    """A piece of an answer; `tokens` are its tokens with their log-probabilities, when somebody asked for them."""
    event: Event = {"event": "text", "pane": pane.number, "text": piece}
    return event | {"tokens": list(tokens)} if tokens else event


def note_event(pane: int | None, text: Text) -> Event:
    return {"event": "note", "pane": pane, "text": text.to_json()}


def error_event(pane: int | None, error: StudioError, code: str = "") -> Event:
    """`code` is what programs tell errors apart by, unless the error has one of its own."""
    return {"event": "error", "pane": pane, "code": getattr(error, "code", code), **error.to_json()}


def done_event(pane: Pane, reason: str) -> Event:
    """The end of an answer, and how many ids of its prompt had been read in an earlier turn (`reused`).

    `reason`: `end` (by itself, or before a stop word), `length` (the limit), `stopped` (somebody asked), `loop` (it repeated itself).
    """
    seconds = time.monotonic() - pane.began
    return {"event": "done", "pane": pane.number, "reason": reason, "tokens": len(pane.ids), "reused": pane.reused,
            "seconds": round(seconds, 3), "tokens_per_second": round(len(pane.ids) / seconds, 1) if seconds else 0.0}
