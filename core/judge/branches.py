"""Answers to one prompt as a tree: what they begin with alike is read once. Token ids only; no torch.

A question with the answers "I am Al's helper." and "I am Al's friend." becomes one row of tokens, the prompt and then the tree's nodes
one after the other, and a mask by which each node sees the prompt and the nodes above it. So every answer reads as if it stood alone
behind the prompt (tree attention: Miao et al. 2023, SpecInfer), and the whole costs as many tokens as the tree has nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Question:
    """A prompt, and the answers whose likelihood is asked for.

    Attributes:
        prompt: ids up to and including the opening of the answer; at least one.
        answers: ids of each answer, the end token left out; none at all asks only for the first token the model would say.
        drift_of: the answer along which the distance to the reference's distribution is measured; none when None.
    """

    prompt: Sequence[int]
    answers: Sequence[Sequence[int]] = ()
    drift_of: int | None = None


@dataclass
class Tree:
    """One question laid out for a model that has read the first tokens of its prompt already.

    Attributes:
        tokens: the rest of the prompt, then every node that something follows; a last token is predicted and never read.
        parents: for each token the place of the one before it; -1 for the first.
        sources: places whose prediction is wanted; the first is the end of the prompt.
        edges: (index into `sources`, predicted token), each once.
        paths: for each answer its edges in order.
        drift: indices into `sources` along the answer `drift_of`.
    """

    tokens: list[int]
    parents: list[int]
    sources: list[int] = field(default_factory=list)
    edges: list[tuple[int, int]] = field(default_factory=list)
    paths: list[list[int]] = field(default_factory=list)
    drift: list[int] = field(default_factory=list)

    def depths(self) -> list[int]:
        """How far each token stands from the first one: its place in the text that it belongs to."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(depths[parent] + 1 if parent >= 0 else 0)
        return depths

    def visible(self) -> np.ndarray:
        """Which token sees which, shape (tokens, tokens), boolean."""
        seen = np.zeros((len(self.tokens), len(self.tokens)), dtype=bool)
        for place, parent in enumerate(self.parents):
            if parent >= 0:
                seen[place] = seen[parent]
            seen[place, place] = True
        return seen


def grow(question: Question, read_already: int = 0) -> Tree:
    """The tree of a question.

    Args:
        question: what is asked.
        read_already: how many ids of the prompt the model has read; at least one must be left.
    """
    prompt = list(question.prompt[read_already:])
    end = len(prompt) - 1
    tree = Tree(prompt, list(range(-1, end)), [end])
    source_at = {end: 0}
    edge_at: dict[tuple[int, int], int] = {}
    node_behind: dict[int, int] = {}
    for answer in question.answers:
        place, path = end, []
        for number, token in enumerate(answer, start=1):
            if place not in source_at:
                source_at[place] = len(tree.sources)
                tree.sources.append(place)
            edge = edge_at.setdefault((place, token), len(tree.edges))
            if edge == len(tree.edges):
                tree.edges.append((source_at[place], token))
            path.append(edge)
            if number < len(answer):
                if edge not in node_behind:
                    node_behind[edge] = len(tree.tokens)
                    tree.tokens.append(token)
                    tree.parents.append(place)
                place = node_behind[edge]
        tree.paths.append(path)
    if question.drift_of is not None:
        tree.drift = [tree.edges[edge][0] for edge in tree.paths[question.drift_of]]
    return tree
