"""Answers from one base model and many adapters at once. Knows token ids only; text is the encoder's business.

Scoring, the merge check, the side-by-side answers and the terminal chat all decode here, so they cannot differ from each other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import DynamicCache, PreTrainedModel

from core.chat.stacked import Adapter, Routing, stack_adapters
from core.chat.thin import use_thin_products
from core.models.load import keep_freed_memory, load_model, refuse_to_ask

# Rows are dropped from the batch once this share of them has ended: dropping copies the cache, so not at every end.
_COMPACT_SHARE = 0.125


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 takes the most probable one."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Row:
    """One answer to give: the prompt's ids and which adapter (slot) answers."""

    slot: int
    prompt: list[int]


@dataclass
class Answer:
    """The ids of an answer without its end token; `ended` is False when the length limit cut it."""

    ids: list[int] = field(default_factory=list)
    ended: bool = False


class Engine:
    """A model that answers, with the adapters stacked over it.

    A model in the middle of its training answers too: it has one slot, 0.
    """

    def __init__(self, model: PreTrainedModel, end_ids: Sequence[int], pad_id: int, routing: Routing | None = None) -> None:
        self.model = model
        self.device = model.device
        self.end_ids = torch.tensor(list(end_ids), device=self.device)
        self.pad_id = pad_id
        self.routing = routing or Routing(1)

    @classmethod
    def load(cls, base: Path, adapters: Sequence[Adapter], end_ids: Sequence[int], pad_id: int,
             dtype: torch.dtype = torch.float32, device: str = "cpu", quantization: str = "none") -> Engine:
        """Load `base` and put `adapters` over it; adapter number n answers the rows of slot n."""
        if device == "cpu":
            keep_freed_memory()
        model = load_model(base, dtype, device, quantization)
        refuse_to_ask(model)
        use_thin_products(model)
        return cls(model, end_ids, pad_id, stack_adapters(model, adapters))

    @torch.inference_mode()
    def logits(self, slot: int, ids: Sequence[int]) -> torch.Tensor:
        """Logits of every position of one sequence, shape (T, vocabulary), float32."""
        self.routing.assign(torch.tensor([slot], device=self.device))
        return self.model(input_ids=torch.tensor([list(ids)], device=self.device)).logits[0].float()

    def answer(self, rows: Sequence[Row], max_new_tokens: int, sampling: Sampling = Sampling()) -> list[Answer]:
        """The answers to `rows`, in their order."""
        answers = [Answer() for _ in rows]
        ends = set(self.end_ids.tolist())
        for step in self.stream(rows, max_new_tokens, sampling):
            for index, token in step:
                if token in ends:
                    answers[index].ended = True
                else:
                    answers[index].ids.append(token)
        return answers

    @torch.inference_mode()
    def stream(self, rows: Sequence[Row], max_new_tokens: int, sampling: Sampling = Sampling(),
               stopped: Collection[int] = ()) -> Iterator[list[tuple[int, int]]]:
        """Decode all rows in one batch; yields at each step the new (row, token) pairs, end tokens included.

        Args:
            stopped: rows that shall end now; looked at after every step, so the caller may add to it.
        """
        order = sorted(range(len(rows)), key=lambda index: rows[index].slot)
        slots = torch.tensor([rows[index].slot for index in order], device=self.device)
        live = torch.tensor(order, device=self.device)
        choose = Chooser([rows[index].prompt for index in order], sampling, len(order))
        logits, cache, mask, position = self.read_prompts([rows[index].prompt for index in order], slots)
        for _ in range(max_new_tokens):
            tokens = choose(logits)
            yield [(row, token) for row, token in zip(live.tolist(), tokens.tolist(), strict=True) if row >= 0]
            live = torch.where(torch.isin(tokens, self.end_ids), -1, live)
            if stopped:
                live = torch.where(torch.isin(live, torch.tensor(sorted(stopped), device=self.device)), -1, live)
            active = live >= 0
            if not bool(active.any()):
                return
            if can_pick_rows(cache) and float((~active).float().mean()) >= _COMPACT_SHARE:
                keep = active.nonzero().squeeze(1)
                cache.batch_select_indices(keep)
                live, tokens, mask, position, slots = (part[keep] for part in (live, tokens, mask, position, slots))
                choose.keep(keep.tolist())
                self.routing.assign(slots)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            logits = self.model(input_ids=tokens[:, None], attention_mask=mask, position_ids=position[:, None],
                                past_key_values=cache, use_cache=True).logits[:, -1]
            position = position + 1

    def read_prompts(self, prompts: list[list[int]], slots: torch.Tensor) -> tuple[torch.Tensor, DynamicCache, torch.Tensor, torch.Tensor]:
        """Run the prompts, sorted by slot, through the model.

        What all prompts begin with (usually the system text) is read once per adapter, then copied to its rows.

        Returns:
            logits after each prompt (R, vocabulary), the cache, the attention mask (R, length), the next positions (R,).
        """
        cache = DynamicCache(config=self.model.config)
        shared = _shared_prefix(prompts) if can_pick_rows(cache) else 0
        if shared:
            present, row_of = torch.unique(slots, return_inverse=True)
            self.routing.assign(present)
            prefix = torch.tensor([prompts[0][:shared]], device=self.device).expand(len(present), -1)
            self.model(input_ids=prefix, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.batch_select_indices(row_of)
        self.routing.assign(slots)
        rests = [prompt[shared:] for prompt in prompts]
        longest = max(map(len, rests))
        ids = torch.tensor([[self.pad_id] * (longest - len(rest)) + rest for rest in rests], device=self.device)
        own = torch.tensor([[0] * (longest - len(rest)) + [1] * len(rest) for rest in rests], device=self.device)
        mask = torch.cat([own.new_ones(len(rests), shared), own], dim=1)
        positions = shared + (own.cumsum(1) - 1).clamp(min=0)
        output = self.model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache,
                            use_cache=True, logits_to_keep=1)
        return output.logits[:, -1], cache, mask, positions[:, -1] + 1


def can_pick_rows(cache: DynamicCache) -> bool:
    """Whether rows of a cache can be left out and copied: transformers has that for attention, and not for a state space's memory."""
    return all(hasattr(layer, "batch_select_indices") for layer in cache.layers)


def _shared_prefix(prompts: list[list[int]]) -> int:
    """How many ids all prompts begin with, leaving each at least one of its own; 0 for a single prompt."""
    if len(prompts) < 2:
        return 0
    shortest, longest = min(prompts), max(prompts)  # if these two agree on a prefix, all between them do
    limit = min(map(len, prompts)) - 1
    return next((index for index in range(limit) if shortest[index] != longest[index]), limit)


class Chooser:
    """Picks the next token of each row; a row's random stream does not depend on its neighbours."""

    def __init__(self, prompts: list[list[int]], sampling: Sampling, rows: int) -> None:
        self.sampling = sampling
        self.history = [list(prompt) for prompt in prompts]
        self.generators = [torch.Generator().manual_seed(sampling.seed) for _ in range(rows)]

    def keep(self, rows: list[int]) -> None:
        self.history = [self.history[row] for row in rows]
        self.generators = [self.generators[row] for row in rows]

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.float()
        if self.sampling.repetition_penalty != 1.0:
            logits = self._penalise(logits)
        if self.sampling.temperature <= 0:
            tokens = logits.argmax(dim=-1)
        else:
            tokens = torch.stack([self._sample(row, generator) for row, generator in zip(logits, self.generators, strict=True)])
        for history, token in zip(self.history, tokens.tolist(), strict=True):
            history.append(token)
        return tokens

    def _penalise(self, logits: torch.Tensor) -> torch.Tensor:
        """Divide positive and multiply negative logits of tokens already present (Keskar et al. 2019, CTRL)."""
        logits = logits.clone()
        for row, history in zip(logits, self.history, strict=True):
            seen = torch.tensor(sorted(set(history)), device=row.device)
            values = row[seen]
            row[seen] = torch.where(values > 0, values / self.sampling.repetition_penalty,
                                    values * self.sampling.repetition_penalty)
        return logits

    def _sample(self, logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        logits = logits.cpu() / self.sampling.temperature
        if 0 < self.sampling.top_k < len(logits):
            logits[logits < logits.topk(self.sampling.top_k).values[-1]] = float("-inf")
        if self.sampling.top_p < 1.0:
            ordered, order = logits.sort(descending=True)
            before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
            logits[order[before >= self.sampling.top_p]] = float("-inf")
        return torch.multinomial(logits.softmax(-1), 1, generator=generator)[0]
