"""Who answers next: requests come in their order, decode together where they can, and leave when they are done. Loads torch.

Panes over the same base decode in one batch, whichever requests they belong to; different bases take turns, a token each, so all of
them stream. `turn` is called by one thread only; `prepare` and `submit` by any.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from core.chat.batch import Part, Picked
from core.chat.choices import local_model
from core.chat.engine import Sampling
from core.chat.loaded import Base, LoadedModels
from core.chat.panes import (
    Asked,
    Event,
    OutOfMemory,
    Pane,
    QueueFull,
    done_event,
    error_event,
    note_event,
    prepare,
    proof_of,
    text_event,
)
from core.chat.proof import Proof
from core.chat.request import ChatRequest
from core.chat.stops import is_stuck
from core.classroom.place import student_workspace
from core.errors import StudioError
from core.models.catalogue import Model
from core.words import Text
from core.workspace import Workspace

MOST_WAITING = 128
# Answers that one base decodes at the same time.
MOST_ROWS = 16

_OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)


class Desk:
    """The models of a workspace and everybody who asks them.

    Args:
        quantization: how base models are held: `none`, `nf4` or `int8`.
        find: what a reference means; without it, nothing is ever fetched from a hub.
        most_waiting: requests that may wait for their turn.
    """

    def __init__(self, workspace: Workspace, quantization: str = "none", find: Callable[[Workspace, str], Model] = local_model,
                 most_waiting: int = MOST_WAITING) -> None:
        self.workspace = workspace
        self.loaded = LoadedModels(workspace, quantization)
        self.most_waiting = most_waiting
        self._find = find
        self._waiting: deque[Asked] = deque()
        self._books = threading.Lock()
        self._panes: dict[Part, tuple[Asked, Pane]] = {}

    def prepare(self, request: ChatRequest) -> Asked:
        """Encode a request; this takes its time with long texts and holds up nobody."""
        asking = student_workspace(self.workspace, request.member)
        return prepare(request, lambda reference: self._find(asking, reference), self.loaded.encoder)

    def submit(self, asked: Asked) -> None:
        """Put a request at the end of the queue.

        Raises:
            QueueFull: too many wait already.
        """
        with self._books:
            if len(self._waiting) >= self.most_waiting:
                raise QueueFull("{count} requests wait for an answer already.", "Ask again in a moment.", count=len(self._waiting))
            if asked.stages:
                self._waiting.append(asked)
            else:
                asked.end()

    def answer(self, request: ChatRequest, device: str) -> Iterator[Event]:
        """One request from beginning to end, for whoever has the desk to himself."""
        asked = self.prepare(request)
        self.submit(asked)
        try:
            while True:
                while not asked.outbox.empty():
                    event = asked.outbox.get()
                    if event is None:
                        return
                    yield event
                self.turn(device)
        finally:
            asked.has_left = True
            self.turn(device)

    def turn(self, device: str) -> bool:
        """Let in who can be let in, and decode one token for everybody; returns whether there was anything to do."""
        self.loaded.leave_other_devices(device)
        self._admit(device)
        answering = [base for base in self.loaded.bases() if base.batch]
        for base in answering:
            self._step(base)
        return bool(answering)

    def _admit(self, device: str) -> None:
        """First come, first served: who cannot be let in yet is not overtaken, so nobody waits for ever."""
        while self._waiting:
            asked = self._waiting[0]
            if all(asked.is_cancelled(pane) for panes in asked.stages[0].values() for pane in panes):
                self._end_stage(asked, [pane for panes in asked.stages[0].values() for pane in panes], "stopped")
            elif self._must_wait(asked, device):
                return
            else:
                self._begin(asked, device)
            with self._books:
                self._waiting.popleft()
            self._go_on(asked)

    def _must_wait(self, asked: Asked, device: str) -> bool:
        groups = asked.stages[0]
        for folder, panes in groups.items():
            rows = sum(1 for _, other in self._panes.values() if other.model.base == folder)
            try:
                if rows and (rows + len(panes) > MOST_ROWS or not self.loaded.can_take(folder, [pane.model for pane in panes], device)):
                    return True
            except StudioError:
                continue  # a file that cannot be read: said when it is loaded
        others = [folder for folder in self.loaded.answering() if folder not in groups]
        return bool(others) and not self.loaded.fit_together([*groups, *others], device)

    def _begin(self, asked: Asked, device: str) -> None:
        groups = asked.stages[0]
        asked.has_begun = True
        asked.put({"event": "loading", "pane": None})
        if len(groups) > 1 and not self.loaded.fit_together(list(groups), device):
            asked.put(note_event(None, Text("There is not enough memory for all of these models at once: they answer one after another.")))
            asked.stages = deque({folder: panes} for folder, panes in groups.items())
            groups = asked.stages[0]
        for folder, panes in groups.items():
            base, ready = self._provide(asked, folder, panes, device, [*groups, *self.loaded.answering()])
            if base is not None:
                self._start(asked, base, ready)

    def _provide(self, asked: Asked, folder: Path, panes: Sequence[Pane], device: str,
                 keep: Sequence[Path]) -> tuple[Base | None, list[Pane]]:
        """Load what these panes need. When that fails, find out whose fault it is, so that the others still answer."""
        try:
            return self._slots(folder, panes, device, keep)
        except (StudioError, *_OUT_OF_MEMORY) as error:
            if len(panes) == 1:
                asked.put(error_event(panes[0].number, self._in_words(error), "model_unavailable"))
                return None, []
        good = [pane for pane in panes if self._provide(asked, folder, [pane], device, keep)[0] is not None]
        return self._slots(folder, good, device, keep) if good else (None, [])

    def _slots(self, folder: Path, panes: Sequence[Pane], device: str, keep: Sequence[Path]) -> tuple[Base, list[Pane]]:
        base, slots = self.loaded.provide(folder, [pane.model for pane in panes], device, keep)
        for pane, slot in zip(panes, slots, strict=True):
            pane.slot = slot
        return base, list(panes)

    def _start(self, asked: Asked, base: Base, panes: Sequence[Pane]) -> None:
        """Put the panes into the batch of their base."""
        request, parts = asked.request, []
        sampled = request.sampled
        sampling = Sampling(sampled.temperature, sampled.top_k, sampled.top_p, sampled.repetition_penalty, sampled.seed)
        for pane in panes:
            pane.began = time.monotonic()
            part = Part(pane.slot, base.voices[pane.slot], pane.prompt, sampling, request.frequency_penalty, request.presence_penalty,
                        request.top_logprobs, pane.ids)
            self._panes[part] = (asked, pane)
            asked.live.add(pane)
            parts.append(part)
            asked.put({"event": "start", "pane": pane.number,
                       "proof": self._proof(request, pane, base).model_dump()})
            if pane.left_out:
                asked.put(note_event(pane.number, Text("The oldest turns ({count}) no longer fit this model's context and were left out.",
                                                       count=pane.left_out)))
        assert base.batch is not None
        base.batch.join(parts)

    def _proof(self, request: ChatRequest, pane: Pane, base: Base) -> Proof:
        return proof_of(self.workspace, pane, request.models[pane.number], base.weights, self.loaded.quantization)

    def _step(self, base: Base) -> None:
        assert base.batch is not None
        try:
            picked = base.batch.step()
        except _OUT_OF_MEMORY as error:
            self.fail_all(self._in_words(error))
            return
        for one in picked:
            asked, pane = self._panes[one.part]
            reason = self._take(base, asked, pane, one)
            if reason:
                base.batch.leave(one.part)
                del self._panes[one.part]
                self._end_stage(asked, [pane], reason)
                self._go_on(asked)

    def _take(self, base: Base, asked: Asked, pane: Pane, picked: Picked) -> str:
        """Tell of one token; returns why the answer ends with it, or nothing."""
        pane.reused = picked.part.reused
        if picked.token in base.end_ids:
            return "end"
        pane.ids.append(picked.token)
        piece = pane.writer.add(picked.token)
        tokens = [] if picked.logprob is None else [_token_logprobs(pane, picked)]
        if piece or tokens:
            asked.put(text_event(pane, piece, tokens))
        if pane.writer.is_stopped:
            return "end"
        if asked.is_cancelled(pane):
            return "stopped"
        if is_stuck(pane.ids):
            return "loop"
        return "length" if len(pane.ids) >= pane.longest else ""

    def _end_stage(self, asked: Asked, panes: Sequence[Pane], reason: str) -> None:
        for pane in panes:
            if rest := pane.writer.rest():
                asked.put(text_event(pane, rest))
            reason = "end" if pane.writer.is_stopped and reason == "length" else reason  # a stop word was in what was held back
            asked.put(done_event(pane, reason))
            asked.live.discard(pane)

    def _go_on(self, asked: Asked) -> None:
        """Once nobody answers any more: the next stage, before all others, or the end."""
        if asked.live or not asked.stages:
            return
        asked.stages.popleft()
        if asked.stages:
            with self._books:
                self._waiting.appendleft(asked)
        else:
            asked.end()

    def fail_all(self, error: StudioError) -> None:
        """Something went wrong that no single request is to blame for: whoever waits for an answer hears of it, and all begins anew."""
        lost, self._panes = list(self._panes.values()), {}
        self.loaded.drop_all()
        with self._books:
            waiting, self._waiting = list(self._waiting), deque()
        for asked in waiting:
            lost += [(asked, pane) for panes in asked.stages[0].values() for pane in panes]
        for asked, pane in lost:
            asked.put(error_event(pane.number, error))
            asked.live.discard(pane)
        for asked in dict.fromkeys(asked for asked, _ in lost):
            asked.end()

    def _in_words(self, error: BaseException) -> StudioError:
        if isinstance(error, StudioError):
            return error
        self.loaded.forget_kept()
        return OutOfMemory("There was not enough memory.", "Ask for shorter answers, show fewer models, or close other programs.")


def _token_logprobs(pane: Pane, picked: Picked) -> dict[str, Any]:
    return {"token": _token_text(pane, picked.token), "logprob": picked.logprob,
            "top": [{"token": _token_text(pane, token), "logprob": logprob} for token, logprob in picked.top]}


def _token_text(pane: Pane, token: int) -> str:
    """A token by itself, special ones by their names; half a character shows as the replacement character."""
    return pane.encoder.tokenizer.decode([token], skip_special_tokens=False)
