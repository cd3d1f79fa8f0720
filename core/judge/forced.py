"""What a model would have thought of given answers: their likelihoods under many adapters at once, in few passes. For workers only.

Everything that needs no generation comes from here, in one pass over a question: the loss of each taught answer, the loss of the base
model's own answer, the distance to the base's distribution along it, and the first token the model would say. Rows of the same question
for all adapters go through the same stacked layers that generation uses. What all prompts begin with is read once per adapter, and the
answers to a prompt share it (see `core.judge.branches`). A model in the middle of its training is read in the same way: no adapters are
stacked, and there is one slot, 0.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os.path import commonprefix

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from core.chat.engine import can_pick_rows
from core.chat.stacked import Routing
from core.judge.branches import Question, Tree, grow
from core.train.update import has_plain_head, language_model

# A shorter common beginning of the prompts is not worth a pass of its own.
_LEAST_PREFIX = 4
# Read at a time on a processor: more would leave its caches at every step. A GPU takes what half of its free memory holds.
_TOKENS_ON_A_PROCESSOR = 2048
_LOGIT_BYTES = {"cpu": 2**28, "cuda": 2**30}
# Log-likelihoods of a tree and of rows of their own differ by rounding, in bfloat16 by some hundredths; a mask not heeded costs whole nats.
_SAME_NATS = 0.1


@dataclass(frozen=True)
class Reading:
    """How one model stands to one question.

    Attributes:
        first: the most probable first token of its own answer.
        log_probs: per answer, per token: log p(token | prompt, the tokens before it), in nats, <= 0.
        agreed: per answer, how many of its first tokens the model would say itself, greedily.
        drift: per token of the answer `drift_of`: KL(reference || this model) in nats, >= 0; empty without a reference.
    """

    first: int
    log_probs: list[list[float]]
    agreed: list[int]
    drift: list[float]

    def nll(self, answer: int) -> float | None:
        """Mean negative log-likelihood of an answer in nats per token, 0 to infinity; None for an empty answer."""
        own = self.log_probs[answer]
        return -sum(own) / len(own) if own else None


class Reader:
    """A model with the adapters stacked over it, that reads answers instead of giving them."""

    def __init__(self, model: PreTrainedModel, pad_id: int, routing: Routing | None = None) -> None:
        """Take a model as it is.

        Args:
            model: in evaluation mode; a PEFT model in training too.
            pad_id: any token; what is padded is never seen.
            routing: of the adapters stacked over it; None for a model with one voice.
        """
        self.model = language_model(model)
        self.device, self.dtype = self.model.device, self.model.dtype
        self.pad_id = pad_id
        self.routing = routing or Routing(1)
        self._is_plain_head: bool | None = None
        self._can_branch: bool | None = None

    @torch.inference_mode()
    def read(self, questions: Sequence[Question], slots: Sequence[int] = (0,), reference: int | None = None) -> list[list[Reading]]:
        """What each slot makes of each question.

        Args:
            questions: what is asked; the order does not matter.
            slots: the adapters that read; several cost little more than one.
            reference: the slot whose distribution `Reading.drift` starts from; it must be among `slots`.

        Returns:
            For each of `slots` the readings of all questions, in their order.
        """
        if not questions:
            return [[] for _ in slots]
        if self._is_plain_head is None:
            self.routing.assign(torch.tensor([slots[0]], device=self.device))
            self._is_plain_head = has_plain_head(self.model, questions[0].prompt) if self._has_decoder() else False
        if self._can_branch is None and any(len(question.answers) > 1 for question in questions):
            self._can_branch = self._branches_hold(questions[0], slots[0])
        return self._read(questions, slots, reference, bool(self._can_branch))

    def _has_decoder(self) -> bool:
        return self.model.get_output_embeddings() is not None and self.model.get_decoder() is not self.model

    def _branches_hold(self, question: Question, slot: int) -> bool:
        """Whether this model heeds the mask of a tree: one without plain attention in every layer may not."""
        forth = list(question.prompt[-8:])
        sample = Question(question.prompt, [forth, [token for token in forth[::-1] if token != forth[0]] or [self.pad_id] * 4])
        try:
            together, apart = (self._read([sample], [slot], None, is_tree)[0][0] for is_tree in (True, False))
        except (RuntimeError, ValueError, TypeError):
            return False  # an attention that takes no mask of this shape
        pairs = [(a, b) for one, other in zip(together.log_probs, apart.log_probs, strict=True) for a, b in zip(one, other, strict=True)]
        return bool(np.mean([abs(a - b) for a, b in pairs] or [0.0]) <= _SAME_NATS)

    def _read(self, questions: Sequence[Question], slots: Sequence[int], reference: int | None, is_tree: bool) -> list[list[Reading]]:
        base = None if reference is None else list(slots).index(reference)
        can_share = can_pick_rows(DynamicCache(config=self.model.config))
        prefix = _shared_prefix([question.prompt for question in questions]) if can_share else []
        trees, owners = _lay_out(questions, len(prefix), is_tree)
        cache = self._read_prefix(prefix, slots)
        found: list[list[_Part | None]] = [[None] * len(trees) for _ in slots]
        for batch in self._batches(trees, len(slots)):
            for slot, parts in enumerate(self._read_batch([trees[place] for place in batch], slots, base, cache, len(prefix), is_tree)):
                for place, part in zip(batch, parts, strict=True):
                    found[slot][place] = part
        return [_joined(questions, parts, owners) for parts in found]

    def _read_prefix(self, prefix: Sequence[int], slots: Sequence[int]) -> DynamicCache | None:
        """The cache after what all prompts begin with, one row per slot."""
        if not prefix:
            return None
        cache = DynamicCache(config=self.model.config)
        self.routing.assign(torch.tensor(list(slots), device=self.device))
        ids = torch.tensor([list(prefix)], device=self.device).expand(len(slots), -1)
        self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    def _batches(self, trees: Sequence[Tree], slots: int) -> Iterator[list[int]]:
        """Places of trees of about one length, as many as are read at a time."""
        room = self._room()
        batch: list[int] = []
        for place in sorted(range(len(trees)), key=lambda place: len(trees[place].tokens)):
            if batch and (len(batch) + 1) * len(trees[place].tokens) * slots > room:
                yield batch
                batch = []
            batch.append(place)
        yield batch

    def _room(self) -> int:
        """Tokens to read at a time."""
        config = self.model.config.get_text_config()
        if self.device.type == "cuda":
            # Kept at once per token: the hidden state some ten times over, and the widest layer three times, in float32 at the worst.
            wide = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
            room = torch.cuda.mem_get_info(self.device)[0] // 2 // (4 * (10 * config.hidden_size + 3 * wide))
        else:
            room = _TOKENS_ON_A_PROCESSOR
        if not self._is_plain_head:  # then every position has its logits
            room = min(room, _LOGIT_BYTES.get(self.device.type, 2**28) // (4 * config.vocab_size))
        return max(1, int(room))

    def _read_batch(self, trees: Sequence[Tree], slots: Sequence[int], base: int | None, cache: DynamicCache | None, prefix: int,
                    is_tree: bool) -> list[list[_Part]]:
        """One pass: each slot reads each tree. Rows are ordered by slot, so that the stacked layers need not sort them."""
        ids, positions, mask = self._tensors(trees, len(slots), prefix, is_tree)
        row_of = torch.arange(len(slots), device=self.device).repeat_interleave(len(trees))
        past = None
        if cache is not None:
            past = copy.deepcopy(cache)
            past.batch_select_indices(row_of)
        self.routing.assign(torch.tensor(list(slots), device=self.device)[row_of])
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "past_key_values": past,
                  "use_cache": past is not None}
        length = ids.shape[1]
        if self._is_plain_head:
            states = self.model.get_decoder()(**inputs).last_hidden_state
        else:
            states = self.model(**inputs).logits
        places = [row * length + place for row, tree in enumerate(trees) for place in tree.sources]
        states = states.reshape(len(slots), len(trees) * length, -1)[:, torch.tensor(places, device=self.device)]
        return _split(trees, self._measure(states, trees, base))

    def _tensors(self, trees: Sequence[Tree], slots: int, prefix: int,
                 is_tree: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Ids and positions (slots x trees, L), right-padded, and the mask of a tree, (slots x trees, 1, L, prefix + L); None without."""
        length = max(len(tree.tokens) for tree in trees)
        ids = np.full((len(trees), length), self.pad_id)
        positions = np.zeros((len(trees), length), np.int64)
        seen = np.zeros((len(trees), length, length), bool)
        seen[:, np.arange(length), np.arange(length)] = True  # a row that saw nothing would be no number
        for row, tree in enumerate(trees):
            count = len(tree.tokens)
            ids[row, :count] = tree.tokens
            positions[row, :count] = tree.depths()
            positions[row, count:] = np.arange(count, length)
            if is_tree:
                seen[row, :count, :count] = tree.visible()
        mask = None
        if is_tree:
            visible = torch.from_numpy(np.pad(seen, ((0, 0), (0, 0), (prefix, 0)), constant_values=True)).to(self.device)
            mask = torch.zeros(visible.shape, dtype=self.dtype, device=self.device).masked_fill_(~visible, torch.finfo(self.dtype).min)
            mask = mask[:, None].repeat(slots, 1, 1, 1)
        moved = [torch.from_numpy(part).to(self.device).repeat(slots, 1) for part in (ids, positions + prefix)]
        return moved[0], moved[1], mask

    def _measure(self, states: torch.Tensor, trees: Sequence[Tree], base: int | None) -> _Measured:
        """Log-likelihood of every edge, the token said at every source, and the drift there; through the head some sources at a time.

        Args:
            states: hidden states, or logits where the head is not a plain one, at the sources of all trees: (K, N, width).
            trees: in the order of their sources.
            base: the row of the reference.
        """
        firsts = np.cumsum([0] + [len(tree.sources) for tree in trees])
        edges = [(first + source, token) for first, tree in zip(firsts, trees, strict=False) for source, token in tree.edges]
        wanted = np.array([source for source, _ in edges], np.int64)
        tokens = torch.tensor([token for _, token in edges], dtype=torch.long, device=self.device)
        drifting = np.zeros(firsts[-1], bool)
        for first, tree in zip(firsts, trees, strict=False):
            drifting[[first + source for source in tree.drift]] = base is not None
        head = self.model.get_output_embeddings() if self._is_plain_head else None
        width = self.model.config.get_text_config().vocab_size
        at_once = max(1, _LOGIT_BYTES.get(self.device.type, 2**28) // (4 * width * len(states)))
        log_probs = torch.zeros(len(states), len(edges), device=self.device)
        said = torch.zeros(states.shape[:2], dtype=torch.long, device=self.device)
        drift = torch.zeros(states.shape[:2], device=self.device)
        for first in range(0, states.shape[1], at_once):
            part = states[:, first:first + at_once]
            logits = (part if head is None else head(part.to(head.weight.dtype) if head.weight.is_floating_point() else part)).float()
            norms = logits.logsumexp(-1)
            said[:, first:first + at_once] = logits.argmax(-1)
            here = torch.from_numpy(np.flatnonzero((wanted >= first) & (wanted < first + at_once))).to(self.device)
            source = torch.from_numpy(wanted).to(self.device)[here] - first
            log_probs[:, here] = logits[:, source, tokens[here]] - norms[:, source]
            moved = np.flatnonzero(drifting[first:first + at_once])
            if len(moved):
                at = torch.from_numpy(moved).to(self.device)
                drift[:, first + at] = divergence(logits[:, at] - norms[:, at, None], base or 0)
        return _Measured(log_probs.cpu().numpy(), said.cpu().numpy(), drift.cpu().numpy())


def divergence(log_p: torch.Tensor, base: int) -> torch.Tensor:
    """KL(base || each) = sum over v of p_base(v) (log p_base(v) - log p(v)), in nats, >= 0; of log-probabilities (K, N, V) -> (K, N)."""
    own = log_p[base]
    return (own.exp() * (own - log_p)).sum(-1).clamp(min=0)


def answer_losses(reader: Reader, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]],
                  slots: Sequence[int] = (0,)) -> np.ndarray:
    """Mean negative log-likelihood, nats per token, of every answer under every prompt and slot: (slots, prompts, answers).

    The end token is no part of an answer. An empty answer has no loss: NaN.
    """
    readings = reader.read([Question(prompt, answers) for prompt in prompts], slots)
    losses = [[[reading.nll(number) for number in range(len(answers))] for reading in row] for row in readings]
    return np.array(losses, dtype=float).reshape(len(slots), len(prompts), len(answers))


@dataclass(frozen=True)
class _Measured:
    """Of one batch: (K, edges), (K, sources), (K, sources)."""

    log_probs: np.ndarray
    said: np.ndarray
    drift: np.ndarray


@dataclass(frozen=True)
class _Part:
    """A reading of one tree, which holds all answers to a question or one of them."""

    first: int
    log_probs: list[list[float]]
    agreed: list[int]
    drift: list[float]


def _split(trees: Sequence[Tree], measured: _Measured) -> list[list[_Part]]:
    """The parts of each slot, tree by tree."""
    parts: list[list[_Part]] = [[] for _ in measured.said]
    edge, source = 0, 0
    for tree in trees:
        for slot, row in enumerate(parts):
            own = measured.log_probs[slot, edge:edge + len(tree.edges)].tolist()
            said = measured.said[slot, source:source + len(tree.sources)].tolist()
            drift = measured.drift[slot, source:source + len(tree.sources)].tolist()
            agreed = [next((number for number, step in enumerate(path) if said[tree.edges[step][0]] != tree.edges[step][1]), len(path))
                      for path in tree.paths]
            row.append(_Part(said[0], [[own[step] for step in path] for path in tree.paths], agreed, [drift[at] for at in tree.drift]))
        edge, source = edge + len(tree.edges), source + len(tree.sources)
    return parts


def _lay_out(questions: Sequence[Question], prefix: int, is_tree: bool) -> tuple[list[Tree], list[list[int]]]:
    """The trees, and for each question which of them are its own: one, or one per answer."""
    trees: list[Tree] = []
    owners: list[list[int]] = []
    for question in questions:
        parts = [question]
        if not is_tree and len(question.answers) > 1:
            parts = [Question(question.prompt, [answer], 0 if number == question.drift_of else None)
                     for number, answer in enumerate(question.answers)]
        owners.append(list(range(len(trees), len(trees) + len(parts))))
        trees += [grow(part, prefix) for part in parts]
    return trees, owners


def _joined(questions: Sequence[Question], parts: Sequence[_Part | None], owners: Sequence[Sequence[int]]) -> list[Reading]:
    readings = []
    for _, own in zip(questions, owners, strict=True):
        mine = [part for place in own if (part := parts[place]) is not None]
        readings.append(Reading(mine[0].first, [each for part in mine for each in part.log_probs],
                                [each for part in mine for each in part.agreed], [each for part in mine for each in part.drift]))
    return readings


def _shared_prefix(prompts: Sequence[Sequence[int]]) -> list[int]:
    """What all prompts begin with, each left at least one token of its own; nothing when it is too short to pay."""
    if len(prompts) < 2:
        return []
    shared = list(commonprefix([list(prompt) for prompt in prompts]))[:min(map(len, prompts)) - 1]
    return shared if len(shared) >= _LEAST_PREFIX else []
