"""A batch that answers join and leave while it decodes: each with its own adapter, settings and random stream. Loads torch.

Prompts stand at the right end of the batch, padded on the left and masked there, so a new answer can be put beside those under way.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from core.chat.engine import Chooser, Engine, Sampling
from core.chat.kept import KeptCaches, Layers


@dataclass(eq=False)
class Part:
    """One answer in a batch.

    Attributes:
        slot: which adapter of the engine answers.
        voice: the same adapter by a name that outlives the engine; what was read is kept under it.
        frequency_penalty, presence_penalty: taken off the logits of tokens of this answer, per occurrence and once, as in the OpenAI API.
        top_logprobs: how many alternatives to report with each token; None reports nothing.
        ids: the answer so far, without its end token.
        reused: how many ids of the prompt had been read in an earlier turn.
    """

    slot: int
    voice: Hashable
    prompt: list[int]
    sampling: Sampling
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    top_logprobs: int | None = None
    ids: list[int] = field(default_factory=list)
    reused: int = 0


@dataclass(frozen=True)
class Picked:
    """The next token of an answer.

    Attributes:
        logprob: its natural log-probability under the model's own distribution, before any setting; None when nobody asked.
        top: the most probable tokens with theirs.
    """

    part: Part
    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Batch:
    """The answers that one engine decodes now."""

    def __init__(self, engine: Engine, kept: KeptCaches) -> None:
        self.engine = engine
        self.kept = kept
        self.parts: list[Part] = []
        self._choosers: list[Chooser] = []
        self._joining: list[Part] = []
        self._leaving: set[Part] = set()
        self._cache: DynamicCache | None = None
        self._mask = self._positions = self._slots = self._logits = torch.empty(0)
        # Windows and recurrent states cannot be padded: with such models answers do not join one another, and nothing is kept.
        layers = DynamicCache(config=engine.model.config).layers
        self.can_mix = all(type(layer) is DynamicLayer for layer in layers)

    def __len__(self) -> int:
        return len(self.parts) + len(self._joining)

    def join(self, parts: Sequence[Part]) -> None:
        """Read these prompts at the next step; their first tokens come with it."""
        if self.parts and not self.can_mix:
            raise ValueError("this model's answers cannot join others under way")
        self._joining += parts

    def leave(self, part: Part) -> None:
        """End an answer; the others go on."""
        if part in self._joining:
            self._joining.remove(part)
        else:
            self._leaving.add(part)

    @torch.inference_mode()
    def step(self) -> list[Picked]:
        """One more token for everybody."""
        self._let_go()
        if self.parts:
            self._read_last_tokens()
        if self._joining:
            self._take_in()
        if not self.parts:
            return []
        tokens = self._choose()
        picked = [self._report(row, token) for row, token in enumerate(tokens)]
        self._last = torch.tensor(tokens, device=self.engine.device)
        return picked

    def _let_go(self) -> None:
        """Drop the rows that have left, keeping what they read."""
        if not self._leaving:
            return
        self._keep([row for row, part in enumerate(self.parts) if part in self._leaving])
        rows = [row for row, part in enumerate(self.parts) if part not in self._leaving]
        self.parts = [self.parts[row] for row in rows]
        self._choosers = [self._choosers[row] for row in rows]
        self._leaving = set()
        if not rows:
            self._cache = None
            return
        index = torch.tensor(rows, device=self.engine.device)
        first = int(self._mask[index].any(0).float().argmax())  # columns that only the leaving ones used
        for layer in self._layers():
            layer.keys, layer.values = layer.keys[index, :, first:], layer.values[index, :, first:]
        self._mask, self._positions = self._mask[index, first:], self._positions[index]
        self._slots, self._last = self._slots[index], self._last[index]
        self.engine.routing.assign(self._slots)

    def _layers(self) -> list[DynamicLayer]:
        return self._cache.layers if self._cache is not None else []

    def _keep(self, rows: Sequence[int]) -> None:
        if not self.can_mix:
            return
        for row in rows:
            part, columns = self.parts[row], self._mask[row].nonzero().squeeze(1)
            layers = [(layer.keys[row:row + 1][:, :, columns], layer.values[row:row + 1][:, :, columns]) for layer in self._layers()]
            self.kept.keep(part.voice, (part.prompt + part.ids)[:len(columns)], layers)

    def _read_last_tokens(self) -> None:
        mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
        self._logits = self.engine.model(input_ids=self._last[:, None], attention_mask=mask, position_ids=self._positions[:, None],
                                         past_key_values=self._cache, use_cache=True).logits[:, -1]
        self._mask, self._positions = mask, self._positions + 1

    def _take_in(self) -> None:
        """Read the prompts that wait and put them beside the answers under way."""
        new = sorted(self._joining, key=lambda part: part.slot)
        self._joining = []
        slots = torch.tensor([part.slot for part in new], device=self.engine.device)
        logits, cache, mask, positions = self._read(new, slots)
        if self._cache is not None:
            length = max(mask.shape[1], self._mask.shape[1])
            for own, other in zip(self._layers(), cache.layers, strict=True):
                own.keys = torch.cat([_lengthened(own.keys, length), _lengthened(other.keys, length)])
                own.values = torch.cat([_lengthened(own.values, length), _lengthened(other.values, length)])
            mask = torch.cat([functional.pad(part, (length - part.shape[1], 0)) for part in (self._mask, mask)])
            logits, positions = torch.cat([self._logits, logits]), torch.cat([self._positions, positions])
            slots = torch.cat([self._slots, slots])
        else:
            self._cache = cache
        self.parts = self.parts + new
        self._choosers += [Chooser([part.prompt], part.sampling, 1) for part in new]
        self._logits, self._mask, self._positions, self._slots = logits, mask, positions, slots
        self._sort()
        self.engine.routing.assign(self._slots)

    def _sort(self) -> None:
        """Rows of one adapter side by side: the product over all adapters then needs no rearranging."""
        order = torch.argsort(self._slots, stable=True)
        if torch.equal(order, torch.arange(len(order), device=order.device)):
            return
        rows = order.tolist()
        self._cache.batch_select_indices(order)
        self.parts, self._choosers = [self.parts[row] for row in rows], [self._choosers[row] for row in rows]
        self._logits, self._mask, self._positions, self._slots = (
            tensor[order] for tensor in (self._logits, self._mask, self._positions, self._slots))

    def _read(self, new: Sequence[Part], slots: torch.Tensor) -> tuple[torch.Tensor, DynamicCache, torch.Tensor, torch.Tensor]:
        """As `Engine.read_prompts`; beginnings that were read in an earlier turn are not read again."""
        found = [self.kept.find(part.voice, part.prompt) if self.can_mix else (0, []) for part in new]
        if not any(length for length, _ in found):
            return self.engine.read_prompts([part.prompt for part in new], slots)
        for part, (length, _) in zip(new, found, strict=True):
            part.reused = length
        cache = self._joined(found)
        known = max(length for length, _ in found)
        rests = [part.prompt[part.reused:] for part in new]
        longest = max(map(len, rests))
        device = self.engine.device
        ids = torch.tensor([[self.engine.pad_id] * (longest - len(rest)) + rest for rest in rests], device=device)
        own = torch.tensor([[0] * (longest - len(rest)) + [1] * len(rest) for rest in rests], device=device)
        before = torch.tensor([[0] * (known - part.reused) + [1] * part.reused for part in new], device=device)
        mask = torch.cat([before, own], dim=1)
        positions = before.sum(1, keepdim=True) + (own.cumsum(1) - 1).clamp(min=0)
        self.engine.routing.assign(slots)
        output = self.engine.model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
                                   logits_to_keep=1)
        return output.logits[:, -1], cache, mask, positions[:, -1] + 1

    def _joined(self, found: Sequence[tuple[int, Layers]]) -> DynamicCache:
        """One cache of all known beginnings, each at the right end; a row without one is zeros, which the mask hides."""
        cache = DynamicCache(config=self.engine.model.config)
        known = max(length for length, _ in found)
        sample = next(layers for length, layers in found if length)
        for number, (keys, values) in enumerate(sample):
            empty = (keys.new_zeros(1, keys.shape[1], 0, keys.shape[3]), values.new_zeros(1, values.shape[1], 0, values.shape[3]))
            pairs = [layers[number] if layers else empty for _, layers in found]
            cache.update(torch.cat([_lengthened(pair[0], known) for pair in pairs]),
                         torch.cat([_lengthened(pair[1], known) for pair in pairs]), number)
        return cache

    def _choose(self) -> list[int]:
        logits = self._logits.float()
        greedy = logits.argmax(-1).tolist()
        tokens = []
        for row, part in enumerate(self.parts):
            is_plain = part.sampling.temperature <= 0 and part.sampling.repetition_penalty == 1.0
            if is_plain and not (part.frequency_penalty or part.presence_penalty):
                tokens.append(greedy[row])
            else:
                tokens.append(int(self._choosers[row](_discouraged(logits[row], part)[None])[0]))
        return tokens

    def _report(self, row: int, token: int) -> Picked:
        part = self.parts[row]
        if part.top_logprobs is None:
            return Picked(part, token)
        logprobs = self._logits[row].float().log_softmax(-1)
        top = logprobs.topk(part.top_logprobs)
        return Picked(part, token, float(logprobs[token]), tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True)))


def _lengthened(tensor: torch.Tensor, length: int) -> torch.Tensor:
    """Keys or values (R, heads, T, width) with zeros before them, so that T is `length`."""
    return functional.pad(tensor, (0, 0, length - tensor.shape[2], 0))


def _discouraged(logits: torch.Tensor, part: Part) -> torch.Tensor:
    """Logits (vocabulary,) less what the answer's own tokens cost: `count * frequency + presence`, as the OpenAI API defines it."""
    if not part.ids or not (part.frequency_penalty or part.presence_penalty):
        return logits
    seen, counts = torch.tensor(part.ids, device=logits.device).unique(return_counts=True)
    logits = logits.clone()
    logits[seen] -= counts * part.frequency_penalty + part.presence_penalty
    return logits
