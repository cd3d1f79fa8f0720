"""Chat templates are programs that come with a model: they run in a sandbox, with a limit of work and of size.

Jinja's own sandbox keeps a template away from Python's insides, but not from a loop without end or a text of a billion characters. Here
every turn of a loop and every call is counted against the processor time of the thread, and whatever makes a long text or list out of
short ones is asked for its size first. So the server can render a stranger's template too.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from core.errors import StudioError

LARGEST_TEMPLATE = 1_000_000  # characters; the longest published ones have some 20,000
SECONDS = 3.0  # of the thread's own processor time; the longest conversations take some hundredths
_LARGEST_TEXT = 20_000_000  # characters; a prompt of 5 MB is far below
_MOST_MADE = 1_000_000_000  # bytes of all texts and lists together: many large ones fill the memory too
_LARGEST_LIST = 1_000_000
_LARGEST_NUMBER = 10**18  # nothing in a template counts beyond it
_WIDEST = 10_000  # characters that a padded or indented text may be wide
_STEPS_PER_LOOK = 64

# Work that published templates do not need and whose cost cannot be told beforehand.
_LEFT_OUT_FILTERS = ("urlize", "wordwrap", "striptags", "pprint", "xmlattr", "random", "forceescape")
_PADDING_METHODS = {"ljust", "rjust", "center", "zfill", "expandtabs"}
_LONG_NUMBER = re.compile(r"\d{5,}|\*")  # a width in a format such as %1000000d


class TooMuchWork(jinja2.TemplateError):
    """The template wants more time or space than a chat template can need."""


class _Budget:
    """What one rendering may still spend."""

    def __init__(self) -> None:
        self.steps = self.made = 0
        self.ends = time.thread_time() + SECONDS

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
        if size > _WIDEST:
            self.look()


_budget: ContextVar[_Budget | None] = ContextVar("template_budget", default=None)


def _step() -> None:
    budget = _budget.get()
    if budget is not None:
        budget.step()


def _allow(size: int, limit: int = _LARGEST_TEXT) -> None:
    if size > limit:
        raise TooMuchWork(f"it wants to make something of {size:.1e} parts" if size < 10**300 else "it wants to make something endless")


def _made(result: Any) -> Any:
    """Count what an operation, call or filter made; returns it."""
    if isinstance(result, (str, list, tuple, dict)):
        is_text = isinstance(result, str)
        _allow(len(result), _LARGEST_TEXT if is_text else _LARGEST_LIST)
        if (budget := _budget.get()) is not None:
            budget.make(len(result) if is_text else 8 * len(result))
    return result


def _join(pieces: Iterable[Any]) -> str:
    """Texts in a row, as long as the whole stays within the limit."""
    kept, size = [], 0
    for piece in pieces:
        text = str(piece)
        size += len(text)
        _allow(size)
        kept.append(text)
        _step()
    return str(_made("".join(kept)))


class _Counted:
    """What a loop goes through: every turn is a step."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        for item in self.items:
            _step()
            yield item


class _CountedList(_Counted):
    """The same where the number of turns is known, which `loop.last` and `loop.length` ask for."""

    def __len__(self) -> int:
        return len(self.items)


def _counted(items: Any) -> Any:
    return _CountedList(items) if hasattr(items, "__len__") else _Counted(items)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox with counted loops and calls, and measured products and sums."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])
    concat = staticmethod(_join)  # of a macro's or a block's output

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(jinja2.nodes.For):
            loop.iter = jinja2.nodes.Filter(loop.iter, "_counted", [], [], None, None, lineno=loop.lineno)
        _measure_sums_of_text(tree)
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _step()
        _check_operation(operator, left, right)
        return _made(super().call_binop(context, operator, left, right))

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        _step()
        method = getattr(obj, "__wrapped__", obj)  # Jinja wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str):
            _check_method(owner, name, args, kwargs)
        return _made(super().call(context, obj, *args, **kwargs))


def _measure_sums_of_text(node: jinja2.nodes.Node) -> None:
    """`a ~ b` cannot be intercepted, so it becomes a filter over the list of its parts."""
    for field, value in node.iter_fields():
        children = value if isinstance(value, list) else [value]
        for place, child in enumerate(children):
            if not isinstance(child, jinja2.nodes.Node):
                continue
            _measure_sums_of_text(child)
            if isinstance(child, jinja2.nodes.Concat):
                parts = jinja2.nodes.List(child.nodes, lineno=child.lineno)
                measured = jinja2.nodes.Filter(parts, "_joined", [], [], None, None, lineno=child.lineno)
                if isinstance(value, list):
                    value[place] = measured
                else:
                    setattr(node, field, measured)


def _check_operation(operator: str, left: Any, right: Any) -> None:
    """Raises TooMuchWork where the result would be far larger than its parts."""
    if operator == "%" and isinstance(left, str):
        _check_format(left, right)
    elif isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * max(abs(right), 1) if operator == "**" else left.bit_length() + right.bit_length()
        _allow(bits, 1000)
    elif operator in "+*":
        sizes = [len(value) if hasattr(value, "__len__") else value if isinstance(value, int) else 0 for value in (left, right)]
        size = sum(sizes) if operator == "+" else sizes[0] * sizes[1]
        _allow(size, _LARGEST_TEXT if isinstance(left, str) or isinstance(right, str) else _LARGEST_LIST)


def _check_format(form: str, values: Any) -> None:
    """Raises TooMuchWork for a field that is padded to a huge width."""
    values = values if isinstance(values, tuple) else (values,)
    if _LONG_NUMBER.search(form) or any(isinstance(value, int) and abs(value) > _LARGEST_NUMBER for value in values):
        raise TooMuchWork("it pads a text to a huge width")


def _check_method(text: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raises TooMuchWork where a method of a text would make a far longer one."""
    if name in _PADDING_METHODS:
        _allow(max([abs(value) for value in (*args, *kwargs.values()) if isinstance(value, int)], default=0), _WIDEST)
    elif name in ("format", "format_map"):
        if _LONG_NUMBER.search(text) or "{:{" in text:
            raise TooMuchWork("it pads a text to a huge width")
        _allow(len(text) + sum(len(str(value)) for value in (*args, *kwargs.values())) * (text.count("{") + 1))
    elif name == "replace" and len(args) >= 2 and all(isinstance(value, str) for value in args[:2]):
        _allow(len(text) + text.count(args[0]) * max(0, len(args[1]) - len(args[0])))
    elif name == "join" and args:
        items = args[0]
        if hasattr(items, "__len__"):
            _allow(len(text) * len(items) + sum(len(item) for item in items if isinstance(item, str)))
        else:
            raise TooMuchWork("it joins something without a length")
    elif name == "translate":
        raise TooMuchWork("it translates a text letter by letter")


def _guard(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A filter or test as a step, whose numbers are no width of millions and whose result is no giant."""

    @functools.wraps(function)  # with Jinja's marks of what it wants passed
    def guarded(*args: Any, **kwargs: Any) -> Any:
        _step()
        values = (*args, *kwargs.values())
        if name in ("center", "indent", "batch", "slice", "tojson", "truncate"):
            numbers = [abs(value) for value in values if isinstance(value, int) and not isinstance(value, bool)]
            _allow(max(numbers, default=0), _WIDEST)
            texts = [value for value in values if isinstance(value, str)]
            lines = texts[0].count("\n") + 1 if texts else 1
            _allow(lines * max([*numbers, *(len(text) for text in texts[1:])], default=0))
        elif name == "replace":
            texts = [value for value in values if isinstance(value, str)]
            if len(texts) >= 3:
                _check_method(texts[0], "replace", tuple(texts[1:3]), {})
        elif name == "format" and values and isinstance(values[0], str):
            _check_format(values[0], tuple(values[1:]))
        return _made(function(*args, **kwargs))

    return guarded


def _join_filter(value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    """Jinja's `join`, measured as it goes."""
    def pieces() -> Iterator[Any]:
        for index, item in enumerate(value):
            if index and d:
                yield d
            yield item if attribute is None else item[attribute]

    return _join(pieces())


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    if len(form) > 100 or re.search(r"\d", form):
        raise TooMuchWork("it writes the date in a form that no template needs")
    return datetime.now().strftime(form)


@functools.cache
def _sandbox() -> _Sandbox:
    sandbox = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols], optimized=False)
    filters = {name: function for name, function in sandbox.filters.items() if name not in _LEFT_OUT_FILTERS}
    filters |= {"tojson": _to_json, "join": _join_filter}
    sandbox.filters = {name: _guard(function, name) for name, function in filters.items()}
    sandbox.filters |= {"_counted": _counted, "_joined": _join}
    sandbox.tests = {name: _guard(function, name) for name, function in sandbox.tests.items()}
    sandbox.globals.pop("lipsum", None)
    sandbox.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    return sandbox


def compile_template(source: str) -> Callable[..., str]:
    """A chat template as a function of its variables, with the few extras that published templates rely on.

    The function raises `jinja2.TemplateError` for what the template itself refuses, and for too much work.

    Raises:
        StudioError: it is no template.
    """
    token = _budget.set(_Budget())
    try:
        if len(source) > LARGEST_TEMPLATE:
            raise TooMuchWork(f"it has {len(source)} characters")
        template = _sandbox().from_string(source)
    except (jinja2.TemplateError, SyntaxError, RecursionError, ValueError, OverflowError, MemoryError) as error:
        raise StudioError("The chat template cannot be read: {reason}.", "Copy chat_template.jinja from the model's source again.",
                          reason=_one_line(error)) from error
    finally:
        _budget.reset(token)
    return functools.partial(_render, template)


def _render(template: jinja2.Template, **values: Any) -> str:
    token = _budget.set(_Budget())
    try:
        return _join(template.generate(**values))
    except (RecursionError, MemoryError) as error:
        raise TooMuchWork("it calls itself without end" if isinstance(error, RecursionError) else "it wants more memory") from error
    except (ArithmeticError, LookupError, AttributeError, TypeError, ValueError) as error:
        raise jinja2.TemplateError(f"{type(error).__name__}: {error}") from error
    finally:
        _budget.reset(token)


def _one_line(error: BaseException) -> str:
    """What an error says, short enough for a sentence."""
    return (" ".join(str(error).split())[:200] or type(error).__name__).rstrip(".")
