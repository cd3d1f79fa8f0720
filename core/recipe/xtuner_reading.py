"""Reading an XTuner config without running it: the file is parsed, and what its lines would make is worked out from the tree.

A config is a Python program. What a config of this kind needs is worked out here: constants, lists, dicts, `dict(...)`, sums of them,
and an `if` whose condition is known. Nothing else is done: no import, no call, no file. What was left undone is listed.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from core.errors import StudioError

LARGEST_BYTES = 1_000_000
_LONGEST_VALUE = 10_000  # characters or items of a product such as "ab" * 1000
_LARGEST_EXPONENT = 64
_DEEPEST = 60
_DEEPEST_BRANCH = 40  # an `elif` is a branch within a branch
_MOST_COMPARED = 1000  # items

# Calls that only give a value another form. Everything else in a config is called by XTuner later, or must not be called at all.
_CONVERSIONS: dict[str, Callable[..., Any]] = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "tuple": tuple,
                                              "len": len, "max": max, "min": min, "round": round, "abs": abs}
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Is: operator.is_, ast.IsNot: operator.is_not, ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b}
_SINGLE = (str, bytes, int, float, bool, complex, type(None), type(...))


@dataclass(frozen=True)
class Reference:
    """Something from another module, named but never fetched: `xtuner.utils.PROMPT_TEMPLATE.default`."""

    name: str

    @property
    def last(self) -> str:
        return self.name.rsplit(".", 1)[-1]

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Unknown:
    """A value that only running the file would give."""

    line: int
    code: str


@dataclass(frozen=True)
class NotRun:
    """A line that does something rather than say a value: where it is, and what it says."""

    line: int
    code: str


@dataclass
class ReadConfig:
    """What an XTuner config says.

    Attributes:
        values: the names that the file sets, with plain data, `Reference` or `Unknown`.
        lines: the line in which each name was last set.
        not_run: what the file would have done, and what was not done.
        used: names that some other line of the file reads.
    """

    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    not_run: list[NotRun] = field(default_factory=list)
    used: set[str] = field(default_factory=set)

    def line_of(self, name: str) -> int:
        return self.lines.get(name, 1)


def read_config(text: str, name: str) -> ReadConfig:
    """Work out what the config in `text` says; nothing in it is run.

    Args:
        text: the Python source.
        name: the file's name, for errors.

    Raises:
        StudioError: it is too large, or no Python.
    """
    if len(text.encode("utf-8", "surrogatepass")) > LARGEST_BYTES:
        raise StudioError("{file} is far too large for a config.", "A config has a few hundred lines; choose the config itself.", file=name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape in somebody else's string is not our reader's news
            tree = ast.parse(text)
    except SyntaxError as error:
        raise StudioError("{file}, line {line}: this is not Python: {reason}.",
                          "Choose the config file itself, as XTuner's copy-cfg wrote it.",
                          file=name, line=error.lineno or 1, reason=str(error.msg)[:120]) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise StudioError("{file} is not a Python file that can be read: {reason}.",
                          "Choose the config file itself, as XTuner's copy-cfg wrote it.",
                          file=name, reason=str(error)[:120] or type(error).__name__) from error
    reader = _Reader(text)
    reader.run(tree.body)
    return reader.config


class _Gone(Exception):
    """A value cannot be worked out; carries the node that is to blame."""

    def __init__(self, node: ast.AST) -> None:
        self.node = node


class _Reader:
    """Walks the statements of one file and keeps what they set."""

    def __init__(self, text: str) -> None:
        self.rows = text.split("\n")
        self.config = ReadConfig()
        self.depth = 0
        self.branches = 0

    def run(self, body: list[ast.stmt]) -> None:
        for statement in body:
            self._statement(statement)

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            self._import(node)
        elif isinstance(node, ast.Assign):
            value = self._value_or_unknown(node.value)
            for target in node.targets:
                self._set(target, value)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            self._set(node.target, self._value_or_unknown(node.value))
        elif isinstance(node, ast.AugAssign):
            combined = ast.BinOp(left=_as_load(node.target), op=node.op, right=node.value)
            self._set(node.target, self._value_or_unknown(ast.copy_location(combined, node)))
        elif isinstance(node, ast.If):
            self._branch(node)
        elif isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            pass  # a docstring says nothing
        else:
            self._leave(node)

    def _branch(self, node: ast.If) -> None:
        if self.branches >= _DEEPEST_BRANCH:
            self._leave(node)
            return
        try:
            is_taken = bool(self._value(node.test))
        except _Gone:
            self._leave(node)
            return
        self.branches += 1
        self.run(node.body if is_taken else node.orelse)
        self.branches -= 1

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names:
            full = f"{module}.{alias.name}" if module else alias.name
            bound = alias.asname or (alias.name if isinstance(node, ast.ImportFrom) else alias.name.split(".")[0])
            self.config.values[bound] = Reference(full if alias.asname or isinstance(node, ast.ImportFrom) else bound)

    def _set(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            self.config.values[target.id] = value
            self.config.lines[target.id] = target.lineno
        elif isinstance(target, ast.Tuple | ast.List) and isinstance(value, list | tuple) and len(value) == len(target.elts):
            for part, item in zip(target.elts, value, strict=True):
                self._set(part, item)
        elif isinstance(target, ast.Subscript):
            try:
                holder, key = self._value(target.value), self._value(target.slice)
                holder[key] = value
            except (_Gone, TypeError, KeyError, IndexError):
                self._leave(target)
        else:
            self._leave(target)

    def _leave(self, node: ast.AST) -> None:
        """Note a line that was not carried out."""
        self.config.not_run.append(NotRun(getattr(node, "lineno", 1), self._code(node)))

    def _code(self, node: ast.AST) -> str:
        row = self.rows[getattr(node, "lineno", 1) - 1].strip()
        return row if len(row) <= 100 else row[:100] + "…"

    def _value_or_unknown(self, node: ast.expr) -> Any:
        try:
            return self._value(node)
        except _Gone as gone:
            self._leave(gone.node)
            return Unknown(getattr(node, "lineno", 1), self._code(node))

    def _value(self, node: ast.expr) -> Any:
        self.depth += 1
        try:
            if self.depth > _DEEPEST:
                raise _Gone(node)
            handler = getattr(self, f"_value_of_{type(node).__name__.lower()}", None)
            if handler is None:
                raise _Gone(node)
            return handler(node)
        except (TypeError, ValueError, ArithmeticError, LookupError, MemoryError) as error:
            raise _Gone(node) from error
        finally:
            self.depth -= 1

    def _value_of_constant(self, node: ast.Constant) -> Any:
        return node.value

    def _value_of_name(self, node: ast.Name) -> Any:
        self.config.used.add(node.id)
        value = self.config.values.get(node.id, Reference(node.id))
        if isinstance(value, Unknown):
            raise _Gone(node)
        return value

    def _value_of_attribute(self, node: ast.Attribute) -> Any:
        owner = self._value(node.value)
        if isinstance(owner, Reference):
            return Reference(f"{owner.name}.{node.attr}")
        if isinstance(owner, dict) and node.attr in owner:  # mmengine lets dicts be read this way
            return owner[node.attr]
        raise _Gone(node)

    def _value_of_subscript(self, node: ast.Subscript) -> Any:
        owner = self._value(node.value)
        if isinstance(owner, Reference):
            raise _Gone(node)
        return owner[self._value(node.slice)]

    def _value_of_list(self, node: ast.List) -> list[Any]:
        return [self._lenient(item) for item in node.elts]

    def _value_of_tuple(self, node: ast.Tuple) -> tuple[Any, ...]:
        return tuple(self._lenient(item) for item in node.elts)

    def _value_of_dict(self, node: ast.Dict) -> dict[Any, Any]:
        made: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:  # {**other}
                made.update(self._value(value))
            else:
                made[self._value(key)] = self._lenient(value)
        return made

    def _lenient(self, node: ast.expr) -> Any:
        """One unknown item does not spoil the others of its list or dict."""
        if isinstance(node, ast.Starred):
            raise _Gone(node)
        return self._value_or_unknown(node)

    def _value_of_call(self, node: ast.Call) -> Any:
        if isinstance(node.func, ast.Name) and node.func.id not in self.config.values:
            if node.func.id == "dict":
                return self._made_dict(node)
            if node.func.id in _CONVERSIONS and not node.keywords:
                arguments = [self._value(argument) for argument in node.args]
                is_short = all(_is_flat(argument) for argument in arguments) and not (
                    node.func.id == "str" and not isinstance(arguments[0], _SINGLE))
                if any(isinstance(argument, Reference) for argument in arguments) or not (is_short or node.func.id == "len"):
                    raise _Gone(node)
                return _CONVERSIONS[node.func.id](*arguments)
        raise _Gone(node)

    def _made_dict(self, node: ast.Call) -> dict[Any, Any]:
        made: dict[Any, Any] = dict(self._value(node.args[0])) if node.args else {}
        for keyword in node.keywords:
            if keyword.arg is None:
                made.update(self._value(keyword.value))
            else:
                made[keyword.arg] = self._lenient(keyword.value)
        return made

    def _value_of_binop(self, node: ast.BinOp) -> Any:
        left, right = self._value(node.left), self._value(node.right)
        work = _BINARY.get(type(node.op))
        if work is None or isinstance(left, Reference) or isinstance(right, Reference):
            raise _Gone(node)
        _refuse_growth(node, left, right)
        return work(left, right)

    def _value_of_unaryop(self, node: ast.UnaryOp) -> Any:
        value = self._value(node.operand)
        if isinstance(value, Reference):
            raise _Gone(node)
        if isinstance(node.op, ast.Not):
            return not value
        return -value if isinstance(node.op, ast.USub) else +value if isinstance(node.op, ast.UAdd) else ~value

    def _value_of_boolop(self, node: ast.BoolOp) -> Any:
        value: Any = None
        for part in node.values:
            value = self._value(part)
            if isinstance(value, Reference):
                raise _Gone(node)
            if bool(value) is isinstance(node.op, ast.Or):
                break
        return value

    def _value_of_compare(self, node: ast.Compare) -> bool:
        left = self._value(node.left)
        for comparison, other in zip(node.ops, node.comparators, strict=True):
            right = self._value(other)
            if isinstance(left, Reference) or isinstance(right, Reference):
                raise _Gone(node)
            if not isinstance(comparison, ast.Is | ast.IsNot) and not (_is_flat(left) and _is_flat(right)):
                raise _Gone(node)
            if not _COMPARISONS[type(comparison)](left, right):
                return False
            left = right
        return True

    def _value_of_ifexp(self, node: ast.IfExp) -> Any:
        test = self._value(node.test)
        if isinstance(test, Reference):
            raise _Gone(node)
        return self._value(node.body if test else node.orelse)

    def _value_of_joinedstr(self, node: ast.JoinedStr) -> str:
        parts = []
        for part in node.values:
            value = self._value(part.value) if isinstance(part, ast.FormattedValue) else part.value
            if not isinstance(value, str | int | float) or (isinstance(part, ast.FormattedValue) and part.format_spec):
                raise _Gone(node)
            parts.append(str(value))
        if sum(map(len, parts)) > _LONGEST_VALUE:
            raise _Gone(node)  # x = f"{x}{x}", forty lines of it, is a terabyte
        return "".join(parts)


def _as_load(target: ast.expr) -> ast.expr:
    """The place that `x += 1` writes to, as the value it reads."""
    if isinstance(target, ast.Name):
        return ast.copy_location(ast.Name(id=target.id, ctx=ast.Load()), target)
    return target


def _is_flat(value: Any) -> bool:
    """Whether a value is quickly written out and compared: a list in a list, forty times over, takes an hour for either."""
    if isinstance(value, dict):
        return len(value) <= _MOST_COMPARED and all(isinstance(item, _SINGLE) for item in value.values())
    if isinstance(value, list | tuple | set):
        return len(value) <= _MOST_COMPARED and all(isinstance(item, _SINGLE) for item in value)
    return isinstance(value, _SINGLE)


def _refuse_growth(node: ast.BinOp, left: Any, right: Any) -> None:
    """A short line can ask for an endless number or text; no config needs one."""
    sizes = [value for value in (left, right) if isinstance(value, str | bytes | list | tuple)]
    if isinstance(node.op, ast.Pow) and (sizes or abs(right) > _LARGEST_EXPONENT or abs(left) > 1e6):
        raise _Gone(node)
    if isinstance(node.op, ast.Mult) and sizes:
        count = right if sizes[0] is left else left
        if not isinstance(count, int) or count * len(sizes[0]) > _LONGEST_VALUE:
            raise _Gone(node)
    if isinstance(node.op, ast.Add) and sum(map(len, sizes)) > _LONGEST_VALUE:
        raise _Gone(node)  # doubling a list a hundred times takes a hundred short lines
    if isinstance(node.op, ast.Mod) and isinstance(left, str | bytes):
        raise _Gone(node)  # "%1000000000d" % 1 is a gigabyte
    if isinstance(node.op, ast.Mult) and isinstance(left, int) and isinstance(right, int) and (left | right).bit_length() > 2000:
        raise _Gone(node)
