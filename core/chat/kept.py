"""What a model has read already, kept between the turns of a conversation: its keys and values by token ids. Loads torch.

The next turn's prompt begins with the last turn's prompt and answer, so only what is new has to be read. A found beginning is used
as far as the ids agree; what is kept is bounded in bytes and the longest unused goes first.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

# One tensor pair per layer: keys and values, each (1, heads, length, head width).
Layers = list[tuple[torch.Tensor, torch.Tensor]]

# Shorter beginnings are read again sooner than they are copied.
_LEAST_TOKENS = 16


@dataclass
class _Entry:
    voice: Hashable
    ids: list[int]
    layers: Layers
    size_bytes: int


class KeptCaches:
    """Keys and values of conversations that may go on. Not for several threads.

    Attributes:
        most_bytes: what all entries together may take.
        size_bytes: what they take now.
    """

    def __init__(self, most_bytes: float) -> None:
        self.most_bytes = most_bytes
        self.size_bytes = 0
        self._entries: list[_Entry] = []  # the last used at the end

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, voice: Hashable, prompt: Sequence[int]) -> tuple[int, Layers]:
        """The longest known beginning of `prompt`: how many ids, and their keys and values; (0, []) when there is none.

        At least one id of the prompt is left to read: its logits begin the answer.

        Args:
            voice: who read it. Another adapter has other keys for the same words.
        """
        best, length = None, 0
        for entry in self._entries:
            if entry.voice == voice and (common := _common(entry.ids, prompt)) > length:
                best, length = entry, common
        length = min(length, len(prompt) - 1)
        if best is None or length < _LEAST_TOKENS:
            return 0, []
        self._entries.remove(best)
        self._entries.append(best)
        return length, [(keys[:, :, :length], values[:, :, :length]) for keys, values in best.layers]

    def keep(self, voice: Hashable, ids: list[int], layers: Layers) -> None:
        """Remember what was read; entries that it continues are replaced by it."""
        size = sum(keys.nbytes + values.nbytes for keys, values in layers)
        if len(ids) < _LEAST_TOKENS or size > self.most_bytes:
            return
        self._entries = [entry for entry in self._entries if not (entry.voice == voice and entry.ids == ids[:len(entry.ids)])]
        self._entries.append(_Entry(voice, ids, layers, size))
        self.size_bytes = sum(entry.size_bytes for entry in self._entries)
        while self.size_bytes > self.most_bytes:
            self.size_bytes -= self._entries.pop(0).size_bytes

    def clear(self) -> None:
        self._entries, self.size_bytes = [], 0


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids both begin with."""
    limit = min(len(first), len(second))
    return next((index for index in range(limit) if first[index] != second[index]), limit)
