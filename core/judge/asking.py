"""Answers and likelihoods of many steps of a run at once. Imports torch: for workers only."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from core.chat.engine import Engine, Row
from core.chat.stacked import Adapter
from core.data.encode import Encoder, hash_ids
from core.judge.forced import Reader, Reading
from core.judge.questions import Asked
from core.judge.scoring import Forced
from core.judge.taught import Probe
from core.models.catalogue import find_base
from core.models.load import choose_device, choose_dtype
from core.runs import Run
from core.workspace import Workspace

# Memory that the caches of the rows decoded together may take: on a processor in bytes, on a GPU as a share of what is free.
_CACHE_BYTES = 1_000_000_000
_CACHE_SHARE = 0.5
_FEWEST_ROWS, _MOST_ROWS = 8, {"cpu": 208, "cuda": 4096}
# Questions read between two looks at whether to stop; what was read is on file by then.
_QUESTIONS_AT_ONCE = {"cpu": 16, "cuda": 256}


class Asking:
    """The base model and the snapshots of a run, loaded once; whole models, which share nothing, one after the other."""

    def __init__(self, workspace: Workspace, run: Run, encoder: Encoder) -> None:
        self.run, self.encoder, self.recipe = run, encoder, run.recipe()
        self.base = find_base(workspace, self.recipe.model.source)
        self.device = choose_device(self.recipe.device.kind)
        self.dtype = choose_dtype(self.recipe.model.dtype, self.device)
        self.folders = {checkpoint.step: checkpoint.folder for checkpoint in run.checkpoints()}
        self._engine: Engine | None = None
        self._loaded: tuple[int, ...] = ()

    @property
    def can_stack(self) -> bool:
        return self.recipe.method.kind == "lora"

    def settings(self) -> dict[str, Any]:
        """All that decides an answer beside the model and the prompt."""
        return {"tokens": self.recipe.probes.max_new_tokens, "dtype": str(self.dtype), "device": self.device,
                "quantization": self.recipe.model.quantization, "ends": sorted(self.encoder.end_ids)}

    def answer(self, missing: Sequence[tuple[int, Probe]]) -> Iterator[list[dict[str, Any]]]:
        """Greedy answers to (step, probe) pairs in batches; rows of about one length go together, a probe's steps in one batch."""
        prompts = {id(probe): self.encoder.encode_prompt(probe["messages"]) for _, probe in missing}
        for steps, pairs in self._portions(missing):
            engine = self._engine_of(steps)
            slots = {step: slot for slot, step in enumerate(self._loaded)}
            ordered = sorted(pairs, key=lambda pair: (len(prompts[id(pair[1])]), pair[1]["id"], pair[0]))
            while ordered:
                longest = len(prompts[id(ordered[min(len(ordered), _MOST_ROWS["cpu"]) - 1][1])])
                count = self._rows_at_once(engine, longest + self.recipe.probes.max_new_tokens)
                part, ordered = ordered[:count], ordered[count:]
                rows = [Row(slots[step], prompts[id(probe)]) for step, probe in part]
                answers = engine.answer(rows, self.recipe.probes.max_new_tokens)
                yield [{"step": step, "probe": probe["id"], "text": self.encoder.decode(answer.ids).strip(), "ended": answer.ended,
                        "tokens": len(answer.ids), "asked": hash_ids(prompts[id(probe)])}
                       for (step, probe), answer in zip(part, answers, strict=True)]

    def read(self, asked: Sequence[Asked], steps: Sequence[int], taught_first: set[int]) -> Iterator[list[Forced]]:
        """The readings of every question by every step, some questions at a time.

        With stacked adapters the base model reads along, as what the distance is measured from.
        """
        if self.can_stack:
            engine = self._engine_of(self._loaded if self._loaded and {0, *steps} <= set(self._loaded) else (0, *steps))
            reader = Reader(engine.model, engine.pad_id, engine.routing)
            slots = [self._loaded.index(step) for step in (0, *(step for step in steps if step != 0))]
            named = [self._loaded[slot] for slot in slots]
            yield from ([forced for forced in part if forced.step in steps] for part in self._read_with(reader, asked, slots, named,
                                                                                                        taught_first, slots[0]))
            return
        for step in steps:
            engine = self._engine_of((step,))
            yield from self._read_with(Reader(engine.model, engine.pad_id), asked, [0], [step], taught_first, None)

    def _read_with(self, reader: Reader, asked: Sequence[Asked], slots: Sequence[int], steps: Sequence[int], taught_first: set[int],
                   reference: int | None) -> Iterator[list[Forced]]:
        at_once = _QUESTIONS_AT_ONCE.get(reader.device.type, 16)
        ordered = sorted(asked, key=lambda entry: len(entry.question.prompt))
        for first in range(0, len(ordered), at_once):
            part = ordered[first:first + at_once]
            readings = reader.read([entry.question for entry in part], slots, reference)
            yield [forced_of(step, entry, reading, taught_first, reference is not None)
                   for step, row in zip(steps, readings, strict=True) for entry, reading in zip(part, row, strict=True)]

    def _portions(self, missing: Sequence[tuple[int, Probe]]) -> Iterator[tuple[tuple[int, ...], list[tuple[int, Probe]]]]:
        """What one loaded model can answer: all of it, or one step's."""
        steps = sorted({step for step, _ in missing})
        if self.can_stack and steps:
            yield tuple(steps), list(missing)
        elif not self.can_stack:
            for step in steps:
                yield (step,), [pair for pair in missing if pair[0] == step]

    def _engine_of(self, steps: tuple[int, ...]) -> Engine:
        """The engine whose slots are `steps`; the one before it is let go of first."""
        wanted = tuple(sorted({0, *steps})) if self.can_stack else steps
        if self._engine is None or self._loaded != wanted:
            self._engine = None
            gc.collect()
            if self.device.startswith("cuda"):
                torch.cuda.empty_cache()
            common = {"end_ids": self.encoder.end_ids, "pad_id": self.encoder.pad_id(), "dtype": self.dtype, "device": self.device}
            if self.can_stack:
                adapters = [Adapter(str(step), self.folders.get(step)) for step in wanted]
                self._engine = Engine.load(self.base, adapters, quantization=self.recipe.model.quantization, **common)
            else:
                self._engine = Engine.load(self._folder(wanted[0]), [Adapter("model")], **common)
            self._loaded = wanted
        return self._engine

    def _folder(self, step: int) -> Path:
        return self.folders.get(step, self.base)

    def _rows_at_once(self, engine: Engine, length: int) -> int:
        """Rows whose caches, `length` tokens each, fit in memory together."""
        config = engine.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        row = 2 * config.num_hidden_layers * heads * width * engine.model.dtype.itemsize * length + 8 * config.vocab_size
        free = torch.cuda.mem_get_info(engine.device)[0] * _CACHE_SHARE if engine.device.type == "cuda" else _CACHE_BYTES
        return int(min(_MOST_ROWS.get(engine.device.type, _MOST_ROWS["cpu"]), max(_FEWEST_ROWS, free // row)))


def forced_of(step: int, asked: Asked, reading: Reading, taught_first: set[int], has_reference: bool) -> Forced:
    """A reading as it is kept on file."""
    losses = [loss for number in range(asked.targets) if (loss := reading.nll(number)) is not None]
    own = reading.log_probs[-1] if asked.has_base else []
    return Forced(
        step, asked.probe, asked.fingerprint, nll=min(losses) if losses else None,
        cross=reading.nll(asked.targets) if asked.has_cross else None, first=reading.first, is_taught=reading.first in taught_first,
        base_nll=-sum(own), base_tokens=len(own), kl=sum(reading.drift) if has_reference else None)


def base_prints(folder: Path, encoder: Encoder, settings: Mapping[str, Any]) -> str:
    """Fingerprint of a base model with its template and the settings of its answers: the name of its cached ones."""
    files = sorted([*folder.glob("*.safetensors"), folder / "config.json"])
    stamps = [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files if path.exists()]
    text = "\n".join([str(folder.resolve()), *stamps, encoder.fingerprint()["sample_sha256"], encoder.template, str(encoder.system),
                      str(sorted(settings.items()))])
    return hash_ids(text.encode())
