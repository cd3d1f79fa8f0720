"""Several models answering the same conversation: base, checkpoints over it, merged models.

All checkpoints of one base share one copy of its weights and decode in one batch; another base is loaded beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from core.chat.engine import Engine, Row, Sampling
from core.chat.stacked import Adapter
from core.chat.stops import TextWriter
from core.data.encode import Encoder, Message
from core.models.catalogue import Model, find_model
from core.models.load import choose_device, choose_dtype
from core.workspace import Workspace


class Voices:
    """Models that are loaded and ready to answer."""

    def __init__(self, workspace: Workspace, references: Sequence[str]) -> None:
        self.models: list[Model] = [find_model(workspace, reference) for reference in references]
        self.encoders = [Encoder.from_folder(model.base, model.system) for model in self.models]
        self._engines: list[tuple[Engine, list[int]]] = []
        device = choose_device("auto")
        by_base: dict[Path, list[int]] = {}
        for index, model in enumerate(self.models):
            by_base.setdefault(model.base, []).append(index)
        for base, members in by_base.items():
            adapters = [Adapter(self.models[index].name, self.models[index].adapter, self.models[index].strength) for index in members]
            encoder = self.encoders[members[0]]
            engine = Engine.load(base, adapters, encoder.end_ids, encoder.pad_id(), choose_dtype("auto", device), device)
            self._engines.append((engine, members))

    def answer(self, conversations: Sequence[Sequence[Message]], max_new_tokens: int,
               sampling: Sampling = Sampling()) -> list[list[str]]:
        """Answers of every model to every conversation: [conversation][model]."""
        texts = [["" for _ in self.models] for _ in conversations]
        for engine, members in self._engines:
            pairs = [(turn, index, slot) for turn in range(len(conversations)) for slot, index in enumerate(members)]
            rows = [Row(slot, self.encoders[index].encode_prompt(conversations[turn])) for turn, index, slot in pairs]
            for (turn, index, _), answer in zip(pairs, engine.answer(rows, max_new_tokens, sampling), strict=True):
                texts[turn][index] = self.encoders[index].decode(answer.ids).strip()
        return texts

    def stream(self, histories: Sequence[Sequence[Message]], max_new_tokens: int,
               sampling: Sampling = Sampling()) -> Iterator[tuple[int, str]]:
        """Stream each model's answer to its own history: (model number, next piece of text)."""
        for engine, members in self._engines:
            rows = [Row(slot, self.encoders[index].encode_prompt(histories[index])) for slot, index in enumerate(members)]
            writers = [TextWriter(self.encoders[index]) for index in members]
            for step in engine.stream(rows, max_new_tokens, sampling):
                for row, token in step:
                    if piece := writers[row].add(token):
                        yield members[row], piece
            for index, writer in zip(members, writers, strict=True):
                if rest := writer.rest():
                    yield index, rest
