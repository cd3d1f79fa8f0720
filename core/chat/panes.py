"""One question, several models, one batch: the answers as events, token by token. Loads torch.

Panes over the same base decode in one batch; panes over different bases take turns, a token each, so all of them stream.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from core.chat.choices import local_model
from core.chat.engine import Row, Sampling
from core.chat.history import fit_prompt
from core.chat.loaded import Base, LoadedModels
from core.chat.proof import Proof, hash_weights, model_weights
from core.chat.request import ChatRequest
from core.chat.voices import TextWriter
from core.data.encode import Encoder, hash_ids
from core.errors import StudioError
from core.models.catalogue import Model
from core.models.header import read_config
from core.words import Text
from core.workspace import Workspace

Event = dict[str, Any]

# An answer whose end is one piece of at most so many tokens, so often and so long, has got stuck.
_LOOP_PERIODS, _LOOP_TIMES, _LOOP_TOKENS = 60, 3, 40


@dataclass
class Pane:
    """One model's part in a request."""

    number: int
    model: Model
    encoder: Encoder
    prompt: list[int]
    left_out: int
    slot: int = 0
    ids: list[int] = field(default_factory=list)


class Panes:
    """Answers requests, one at a time. Whoever shares it between threads holds a lock around `answer`."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.loaded = LoadedModels(workspace)

    def answer(self, request: ChatRequest, cancelled: set[int], device: str) -> Iterator[Event]:
        """Decode a request; what goes wrong in one pane is said there and does not stop the others.

        Args:
            cancelled: panes that shall end now; another thread may add to it at any time.

        Yields:
            `{"event": "loading"|"start"|"text"|"note"|"done"|"error", "pane": n, ...}`.
        """
        prepared: list[Pane] = []
        for number in range(len(request.models)):
            try:
                prepared.append(self._prepare(request, number))
            except StudioError as error:
                yield _error(number, error)
        groups: dict[Path, list[Pane]] = {}
        for pane in prepared:
            groups.setdefault(pane.model.base, []).append(pane)
        if not groups:
            return
        yield {"event": "loading", "pane": None}
        batches = [list(groups)]
        if len(groups) > 1 and not self.loaded.fit_together(list(groups), device):
            yield _note(None, Text("There is not enough memory for all of these models at once: they answer one after another."))
            batches = [[folder] for folder in groups]
        for folders in batches:
            ready: list[tuple[Base, list[Pane]]] = []
            for folder in folders:
                base, members, errors = self._provide(folder, groups[folder], device, keep=folders)
                yield from errors
                if base is not None:
                    ready.append((base, members))
            yield from self._decode(request, ready, cancelled)

    def _prepare(self, request: ChatRequest, number: int) -> Pane:
        model = local_model(self.workspace, request.models[number])
        encoder = self.loaded.encoder(model)
        context = read_config(model.base).get("max_position_embeddings")
        prompt, left_out = fit_prompt(encoder, request.messages(number), context, request.sampled.max_new_tokens)
        return Pane(number, model, encoder, prompt, left_out)

    def _provide(self, folder: Path, panes: Sequence[Pane], device: str,
                 keep: Sequence[Path]) -> tuple[Base | None, list[Pane], list[Event]]:
        """Load what these panes need. When that fails, find out whose fault it is, so that the others still answer."""
        try:
            return *self._slots(folder, panes, device, keep), []
        except (StudioError, MemoryError, torch.OutOfMemoryError) as error:
            if len(panes) == 1:
                return None, [], [_error(panes[0].number, self._in_words(error))]
        good, errors = [], []
        for pane in panes:
            try:
                self._slots(folder, [pane], device, keep)
                good.append(pane)
            except (StudioError, MemoryError, torch.OutOfMemoryError) as error:
                errors.append(_error(pane.number, self._in_words(error)))
        return (*self._slots(folder, good, device, keep), errors) if good else (None, [], errors)

    def _slots(self, folder: Path, panes: Sequence[Pane], device: str, keep: Sequence[Path]) -> tuple[Base, list[Pane]]:
        base, slots = self.loaded.provide(folder, [pane.model for pane in panes], device, keep)
        for pane, slot in zip(panes, slots, strict=True):
            pane.slot = slot
        return base, list(panes)

    def _in_words(self, error: BaseException) -> StudioError:
        if isinstance(error, StudioError):
            return error
        self.loaded.drop_all()
        return StudioError("There was not enough memory.", "Ask for shorter answers, show fewer models, or close other programs.")

    def _decode(self, request: ChatRequest, ready: Sequence[tuple[Base, list[Pane]]], cancelled: set[int]) -> Iterator[Event]:
        began = time.monotonic()
        streams = []
        for base, panes in ready:
            for pane in panes:
                yield {"event": "start", "pane": pane.number, "proof": self._proof(base, pane, request).model_dump()}
                if pane.left_out:
                    yield _note(pane.number, Text("The oldest turns ({count}) no longer fit this model's context and were left out.",
                                                  count=pane.left_out))
            streams.append(self._stream_group(base, panes, request, cancelled, began))
        while streams:  # a token each in turn
            for stream in list(streams):
                events = next(stream, None)
                if events is None:
                    streams.remove(stream)
                else:
                    yield from events

    def _stream_group(self, base: Base, panes: list[Pane], request: ChatRequest, cancelled: set[int],
                      began: float) -> Iterator[list[Event]]:
        """The panes of one base, decoded together; yields the events of each step."""
        assert base.engine is not None
        writers = [TextWriter(pane.encoder) for pane in panes]
        ends = set(base.end_ids)
        stopped: set[int] = set()
        ended: set[int] = set()
        steps = base.engine.stream([Row(pane.slot, pane.prompt) for pane in panes], request.sampled.max_new_tokens,
                                   _sampling(request), stopped)

        def done(row: int, reason: str) -> list[Event]:
            ended.add(row)
            stopped.add(row)
            rest = writers[row].rest()
            return ([_text(panes[row].number, rest)] if rest else []) + [_done(panes[row], reason, time.monotonic() - began)]

        try:
            for step in steps:
                events = []
                for row, token in step:
                    if token in ends:
                        events += done(row, "end")
                        continue
                    panes[row].ids.append(token)
                    if piece := writers[row].add(token):
                        events.append(_text(panes[row].number, piece))
                    if panes[row].number in cancelled:
                        events += done(row, "stopped")
                    elif is_stuck(panes[row].ids):
                        events += done(row, "loop")
                yield events
        except (MemoryError, torch.OutOfMemoryError) as error:
            words = self._in_words(error)
            yield [_error(pane.number, words) for row, pane in enumerate(panes) if row not in ended]
            return
        yield [event for row in range(len(panes)) if row not in ended for event in done(row, "length")]

    def _proof(self, base: Base, pane: Pane, request: ChatRequest) -> Proof:
        model = pane.model
        weights = base.weights if model.adapter is None else hash_weights(self.workspace, model_weights(model))
        checkpoint = model.adapter or (model.base if model.base.parent.name == "checkpoints" else None)
        resolved = model.name if checkpoint is None else f"{checkpoint.parent.parent.name}@{int(checkpoint.name)}"
        return Proof(model=request.models[pane.number], resolved=resolved, base=model.base.name,
                     step=int(checkpoint.name) if checkpoint else None, strength=model.strength if model.adapter else 1.0,
                     weights=weights, base_weights=base.weights, prompt=hash_ids(pane.prompt), prompt_tokens=len(pane.prompt))


def is_stuck(ids: Sequence[int]) -> bool:
    """Whether an answer's end is one short piece over and over."""
    for period in range(1, _LOOP_PERIODS + 1):
        length = max(_LOOP_TIMES * period, _LOOP_TOKENS)
        if len(ids) >= length and all(ids[-index] == ids[-index - period] for index in range(1, length - period + 1)):
            return True
    return False


def _sampling(request: ChatRequest) -> Sampling:
    asked = request.sampled
    return Sampling(asked.temperature, asked.top_k, asked.top_p, asked.repetition_penalty, asked.seed)


def _text(pane: int, piece: str) -> Event:
    return {"event": "text", "pane": pane, "text": piece}


def _note(pane: int | None, text: Text) -> Event:
    return {"event": "note", "pane": pane, "text": text.to_json()}


def _error(pane: int | None, error: StudioError) -> Event:
    return {"event": "error", "pane": pane, **error.to_json()}


def _done(pane: Pane, reason: str, seconds: float) -> Event:
    """`reason`: `end` (by itself), `length` (the limit), `stopped` (somebody asked), `loop` (it repeated itself)."""
    return {"event": "done", "pane": pane.number, "reason": reason, "tokens": len(pane.ids), "seconds": round(seconds, 3),
            "tokens_per_second": round(len(pane.ids) / seconds, 1) if seconds else 0.0}
