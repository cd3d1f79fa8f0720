"""Chat templates are programs that come with a model: they run in a sandbox, with a limit of work and of size.

Jinja's own sandbox keeps a template away from Python's insides, but not from a loop without end or a text of a billion characters. Here
every turn of a loop and every call is counted against the processor time of the thread, and whatever makes a long text or list out of
short ones is asked for its size first. So the server can render a stranger's template too.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from core.data import template_work as work
from core.data.template_work import LARGEST_LIST, LARGEST_TEXT, WIDEST, TooMuchWork, allow, join, made, measured, step
from core.errors import StudioError

LARGEST_TEMPLATE = 200_000  # characters; the longest published ones have some 20,000
_LARGEST_NUMBER = 10**18  # nothing in a template counts beyond it
_LONGEST_TAKEN_APART = 6_000_000  # characters of a text that is split at its blanks: the pieces take far more memory than the text
_MOST_DECIMALS = 300
_LONGEST_REASON = 300

# Work that published templates do not need and whose cost cannot be told beforehand.
_LEFT_OUT_FILTERS = ("urlize", "wordwrap", "striptags", "pprint", "xmlattr", "random", "forceescape")
_LEFT_OUT_METHODS = {"translate": "it translates a text letter by letter", "encode": "it makes bytes of a text",
                     "to_bytes": "it makes bytes of a number", "from_bytes": "it makes a number of bytes"}
# Filters that take a text of any size; the others go through it letter by letter, or take it apart.
_OF_LONG_TEXTS = {"length", "count", "trim", "upper", "lower", "capitalize", "replace", "string", "safe", "default", "d", "first", "last",
                  "join", "format", "tojson", "indent", "escape", "e", "attr"}
_PADDING_METHODS = {"ljust", "rjust", "center", "zfill"}
_SPLITTING_METHODS = {"split", "rsplit", "splitlines"}
_LONG_NUMBER = re.compile(r"\d{5,}|\*")  # a width in a format such as %1000000d
_NUMBER = re.compile(r"\d+")


class _Counted:
    """What a loop goes through: every turn is a step."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        for item in self.items:
            step()
            yield item


class _CountedList(_Counted):
    """The same where the number of turns is known, which `loop.last` and `loop.length` ask for."""

    def __len__(self) -> int:
        return len(self.items)


def _counted(items: Any) -> Any:
    return _CountedList(items) if hasattr(items, "__len__") else _Counted(items)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox with counted loops and calls, and measured values wherever something is made of them."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "**", "%"])
    concat = staticmethod(join)  # of a macro's or a block's output

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(jinja2.nodes.For):
            loop.iter = _filtered(loop.iter, "_counted")
        _measure_sums_and_slices(tree)
        for output in tree.find_all(jinja2.nodes.Output):
            output.nodes = [_measured_node(node) for node in output.nodes]
        for comparison in tree.find_all(jinja2.nodes.Compare):
            comparison.expr = _measured_node(comparison.expr)
            for operand in comparison.ops:
                operand.expr = _measured_node(operand.expr)
        for pair in tree.find_all(jinja2.nodes.Pair):
            pair.key = _measured_node(pair.key)
        return tree

    def getitem(self, obj: Any, argument: Any) -> Any:
        return super().getitem(obj, work.shown(argument))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        step()
        if operator == "+" and left.__class__ is str and right.__class__ is str:  # what templates do most
            allow(len(left) + len(right))
            return made(left + right)
        _check_operation(operator, left, right)
        return made(super().call_binop(context, operator, left, right))

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        step()
        method = getattr(obj, "__wrapped__", obj)  # Jinja wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        measured(owner, *args, *kwargs.values())
        if isinstance(owner, (str, int, bytes, type)) and name in _LEFT_OUT_METHODS:
            raise TooMuchWork(_LEFT_OUT_METHODS[name])
        if isinstance(owner, str):
            _check_method(owner, name, args, kwargs)
        return made(super().call(context, obj, *args, **kwargs))


def _filtered(node: jinja2.nodes.Expr, name: str) -> jinja2.nodes.Filter:
    return jinja2.nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _measured_node(node: jinja2.nodes.Expr) -> jinja2.nodes.Expr:
    """The node, measured when it has its value; what stands in the source is small."""
    return node if isinstance(node, jinja2.nodes.Literal) and not list(node.iter_child_nodes()) else _filtered(node, "_measured")


def _measure_sums_and_slices(node: jinja2.nodes.Node) -> None:
    """`a ~ b` and `a[1:]` cannot be intercepted, so they become filters: over the list of the parts, and over the slice."""
    for field, value in node.iter_fields():
        children = value if isinstance(value, list) else [value]
        for place, child in enumerate(children):
            if not isinstance(child, jinja2.nodes.Node):
                continue
            _measure_sums_and_slices(child)
            if isinstance(child, jinja2.nodes.Concat):
                counted = _filtered(jinja2.nodes.List(child.nodes, lineno=child.lineno), "_joined")
            elif isinstance(child, jinja2.nodes.Getitem) and isinstance(child.arg, jinja2.nodes.Slice):
                counted = _filtered(child, "_made")
            else:
                continue
            if isinstance(value, list):
                value[place] = counted
            else:
                setattr(node, field, counted)


def _check_operation(operator: str, left: Any, right: Any) -> None:
    """Raises TooMuchWork where the result would be far larger than its parts."""
    measured(left, right)
    if operator == "%" and isinstance(left, str):
        _check_format(left, right)
    elif isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * max(abs(right), 1) if operator == "**" else left.bit_length() + right.bit_length()
        allow(bits, 1000)
    elif operator in "+*":
        sizes = [len(value) if hasattr(value, "__len__") else value if isinstance(value, int) else 0 for value in (left, right)]
        size = sum(sizes) if operator == "+" else sizes[0] * sizes[1]
        allow(size, LARGEST_TEXT if isinstance(left, str) or isinstance(right, str) else LARGEST_LIST)


def _check_format(form: str, values: Any) -> None:
    """Raises TooMuchWork for a field that is padded to a huge width, and for values that are named very often."""
    numbers = values if isinstance(values, tuple) else (values,)
    if _LONG_NUMBER.search(form) or any(isinstance(value, int) and abs(value) > _LARGEST_NUMBER for value in numbers):
        raise TooMuchWork("it pads a text to a huge width")
    _check_fields(form, form.count("%"), measured(values))


def _check_fields(form: str, fields: int, size: int) -> None:
    """Raises TooMuchWork where every field, filled with all values and as wide as the widest, makes a giant."""
    width = max((int(number) for number in _NUMBER.findall(form)), default=0) if fields else 0
    allow(len(form) + fields * (size + width))


def _check_method(text: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raises TooMuchWork where a method of a text would make a far longer one, or too many."""
    values = (*args, *kwargs.values())
    if name in _PADDING_METHODS:
        allow(max([abs(value) for value in values if isinstance(value, int)], default=0), WIDEST)
    elif name == "expandtabs":
        allow(len(text) + text.count("\t") * max([8, *(abs(value) for value in values if isinstance(value, int))]))
    elif name in _SPLITTING_METHODS:
        mark = values[0] if values and isinstance(values[0], str) and values[0] else None
        allow(len(text), _LONGEST_TAKEN_APART) if mark is None else allow(text.count(mark), LARGEST_LIST)
    elif name in ("format", "format_map"):
        if _LONG_NUMBER.search(text) or "{:{" in text:
            raise TooMuchWork("it pads a text to a huge width")
        _check_fields(text, text.count("{"), sum(len(str(value)) for value in values))
    elif name == "replace" and len(args) >= 2 and all(isinstance(value, str) for value in args[:2]):
        allow(len(text) + text.count(args[0]) * max(0, len(args[1]) - len(args[0])))
    elif name == "join" and args:
        items = args[0]
        if hasattr(items, "__len__"):
            allow(len(text) * len(items) + sum(len(item) for item in items if isinstance(item, str)))
        else:
            raise TooMuchWork("it joins something without a length")


def _guard(function: Callable[..., Any], name: str, longest_text: int = LARGEST_TEXT) -> Callable[..., Any]:
    """A filter or test as a step, whose numbers are no width of millions and whose result is no giant."""

    @functools.wraps(function)  # with Jinja's marks of what it wants passed
    def guarded(*args: Any, **kwargs: Any) -> Any:
        step()
        values = (*args, *kwargs.values())
        measured(*values)
        texts = [value for value in values if isinstance(value, str)]
        numbers = [abs(value) for value in values if isinstance(value, int) and not isinstance(value, bool)]
        allow(max(map(len, texts), default=0), longest_text)
        if name in ("center", "indent", "batch", "slice", "truncate"):
            allow(max(numbers, default=0), WIDEST)
            lines = texts[0].count("\n") + 1 if texts else 1
            allow(lines * max([*numbers, *(len(text) for text in texts[1:])], default=0))
        elif name == "round":
            allow(max([abs(value) for value in values[1:] if isinstance(value, int)], default=0), _MOST_DECIMALS)
        elif name == "replace" and len(texts) >= 3:
            _check_method(texts[0], "replace", tuple(texts[1:3]), {})
        elif name == "format" and values and isinstance(values[0], str):
            _check_format(values[0], kwargs or tuple(args[1:]))
        return made(function(*args, **kwargs))

    return guarded


def _sum_filter(value: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
    """Jinja's `sum`, each addition checked: of lists it would copy all that came before at every one."""
    total = start
    for item in value:
        step()
        part = item if attribute is None else item[attribute]
        _check_operation("+", total, part)
        total = made(total + part)
    return total


def _join_filter(value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    """Jinja's `join`, measured as it goes."""
    def pieces() -> Iterator[Any]:
        for index, item in enumerate(value):
            if index and d:
                yield d
            yield item if attribute is None else item[attribute]

    return join(pieces())


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    if indent is None:
        return json.dumps(value, ensure_ascii=ensure_ascii)
    allow(indent, WIDEST)
    return join(json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent).iterencode(value))


def _refuse(message: Any) -> None:
    raise jinja2.TemplateError(str(message)[:_LONGEST_REASON])


def _now(form: str) -> str:
    if len(form) > 100 or re.search(r"\d", form):
        raise TooMuchWork("it writes the date in a form that no template needs")
    return datetime.now().strftime(form)


@functools.cache
def _sandbox() -> _Sandbox:
    sandbox = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols], optimized=False)
    filters = {name: function for name, function in sandbox.filters.items() if name not in _LEFT_OUT_FILTERS}
    filters |= {"tojson": _to_json, "join": _join_filter, "sum": _sum_filter}
    sandbox.filters = {name: _guard(function, name, LARGEST_TEXT if name in _OF_LONG_TEXTS else LARGEST_LIST)
                       for name, function in filters.items()}
    sandbox.filters |= {"_counted": _counted, "_joined": join, "_measured": work.shown, "_made": made}
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
    token = work.budget.set(work.Budget())
    try:
        if len(source) > LARGEST_TEMPLATE:
            raise TooMuchWork(f"it has {len(source)} characters")
        template = _sandbox().from_string(source)
    except (jinja2.TemplateError, SyntaxError, RecursionError, ValueError, OverflowError, MemoryError) as error:
        raise StudioError("The chat template cannot be read: {reason}.", "Copy chat_template.jinja from the model's source again.",
                          reason=_one_line(error)) from error
    finally:
        work.budget.reset(token)
    return functools.partial(_render, template)


def _render(template: jinja2.Template, **values: Any) -> str:
    token = work.budget.set(work.Budget())
    try:
        return join(template.generate(**values))
    except (RecursionError, MemoryError) as error:
        raise TooMuchWork("it calls itself without end" if isinstance(error, RecursionError) else "it wants more memory") from error
    except (ArithmeticError, LookupError, AttributeError, TypeError, ValueError) as error:
        raise jinja2.TemplateError(f"{type(error).__name__}: {str(error)[:_LONGEST_REASON]}") from error
    finally:
        work.budget.reset(token)


def _one_line(error: BaseException) -> str:
    """What an error says, short enough for a sentence."""
    return (" ".join(str(error)[:_LONGEST_REASON].split())[:200] or type(error).__name__).rstrip(".")
