"""What a rendering of a chat template may spend: processor time, and the size of whatever it makes or writes out.

A list that holds another one twice, which holds another one twice, and so on forty times, takes a few kilobytes; written out, compared or
hashed it is a thousand billion entries, and Python does that in one step which nobody can end. So everything is asked for its extent, which
is its size written out, before anything is done with it.
"""

from __future__ import annotations

import time
from collections.abc import ItemsView, Iterable, KeysView, ValuesView
from contextvars import ContextVar
from typing import Any

import jinja2
from jinja2.utils import Namespace

SECONDS = 3.0  # of the thread's own processor time; the longest conversations take some hundredths
LARGEST_TEXT = 20_000_000  # characters; a prompt of 5 MB is far below
LARGEST_LIST = 1_000_000
MOST_BITS = 20_000  # of a whole number: more digits than Python turns into a text
WIDEST = 10_000  # characters that a padded or indented text may be wide
_MOST_MADE = 1_000_000_000  # bytes of all texts and lists together: many large ones fill the memory too
_MOST_REMEMBERED = 1_000_000  # entries of the lists whose extent is remembered
_STEPS_PER_LOOK = 64
_HOLDERS = (list, tuple, dict, set, frozenset, KeysView, ValuesView, ItemsView)


class TooMuchWork(jinja2.TemplateError):
    """The template wants more time or space than a chat template can need."""


class Budget:
    """What one rendering may still spend."""

    def __init__(self) -> None:
        self.steps = self.made = self.remembered = 0
        self.ends = time.thread_time() + SECONDS
        # Of what does not change: by identity, with the thing itself, so that no other takes its place in memory.
        self.extents: dict[int, tuple[Any, int]] = {}

    def step(self) -> None:
        self.steps += 1
        if self.steps % _STEPS_PER_LOOK == 0:
            self.look()

    def look(self) -> None:
        if time.thread_time() > self.ends:
            raise TooMuchWork(f"it was not done after {SECONDS:g} seconds of work")

    def make(self, size: int) -> None:
        """Something large was made, which takes time as well: steps alone would not tell."""
        self.made += size
        if self.made > _MOST_MADE:
            raise TooMuchWork(f"all that it makes is larger than {_MOST_MADE / 1e9:g} GB")
        if size > WIDEST:
            self.look()

    def remember(self, known: dict[int, tuple[Any, int]]) -> None:
        self.remembered += sum(len(holder) for holder, _ in known.values())
        if self.remembered > _MOST_REMEMBERED:
            self.extents, self.remembered = {}, 0
        else:
            self.extents |= known


budget: ContextVar[Budget | None] = ContextVar("template_budget", default=None)


def step() -> None:
    spent = budget.get()
    if spent is not None:
        spent.step()


def allow(size: int, limit: int = LARGEST_TEXT) -> None:
    """Raises TooMuchWork when `size` is above the limit."""
    if size > limit:
        raise TooMuchWork(f"it wants to make something of {size:.1e} parts" if size < 10**300 else "it wants to make something endless")


def made(result: Any) -> Any:
    """Count what an operation, call or filter made; returns it."""
    if isinstance(result, int):
        allow(result.bit_length(), MOST_BITS)
    elif isinstance(result, (str, list, tuple, dict)):
        is_text = isinstance(result, str)
        allow(len(result), LARGEST_TEXT if is_text else LARGEST_LIST)
        if (spent := budget.get()) is not None:
            spent.make(result.__sizeof__() if is_text else 8 * len(result))
    return result


def measured(*values: Any) -> int:
    """Characters and entries of all values written out, what is held several times counted each time.

    Raises:
        TooMuchWork: they are too many, or something holds itself.
    """
    spent, total = budget.get(), 0
    for value in values:
        if isinstance(value, str):
            total += len(value)
        elif isinstance(value, (*_HOLDERS, Namespace)):
            total += _measured_holder(value, spent)
    allow(total)
    if total > WIDEST and spent is not None:  # whatever is done with it takes time
        spent.look()
    return total


def shown(value: Any) -> Any:
    """`value`, once it is known to be small enough for whatever comes next."""
    if value.__class__ is not str or len(value) > WIDEST:  # a short text is what comes most often
        measured(value)
    return value


def _measured_holder(value: Any, spent: Budget | None) -> int:
    walk = _Walk({} if spent is None else spent.extents)
    size = walk.extent(value)
    if spent is not None:
        spent.remember(walk.fixed)
    return size


class _Walk:
    """One look through nested lists: each is looked at once, however often it is held."""

    def __init__(self, known: dict[int, tuple[Any, int]]) -> None:
        self._known = known
        self._here: dict[int, tuple[Any, int | None]] = {}  # with the thing itself, as above
        self._changing = 0
        self.fixed: dict[int, tuple[Any, int]] = {}

    def extent(self, value: Any) -> int:
        if isinstance(value, str):
            return len(value) + 1
        if not isinstance(value, (*_HOLDERS, Namespace)):
            return 1
        key = id(value)
        if key in self._known:
            return self._known[key][1]
        if key in self._here:
            size = self._here[key][1]
            if size is None:
                raise TooMuchWork("something in it holds itself")
            return size
        self._here[key] = (value, None)
        before = self._changing
        self._changing += isinstance(value, Namespace)  # whose attributes are set later, too
        size = 1 + sum(map(self.extent, _inside(value)))
        allow(size)
        if isinstance(value, (list, tuple, dict)) and self._changing == before:
            self.fixed[key] = (value, size)
        self._here[key] = (value, size)
        return size


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, Namespace):
        value = value._Namespace__attrs
    return (part for pair in value.items() for part in pair) if isinstance(value, dict) else value


def join(pieces: Iterable[Any]) -> str:
    """Texts in a row, as long as the whole stays within the limit."""
    kept, size = [], 0
    for piece in pieces:
        if not isinstance(piece, str):
            measured(piece)
        text = str(piece)
        size += len(text)
        allow(size)
        kept.append(text)
        step()
    return str(made("".join(kept)))
