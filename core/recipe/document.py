"""YAML text -> plain data with the line of every key, for files that people edit and get wrong in every way.

YAML 1.2: `1e-4` is a number, `no` and `on` are text. Tags, anchors, merge keys, duplicate keys and oversized
files are refused before anything is built from them; nothing in a file is ever executed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, DocumentStartEvent, NodeEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from core.errors import StudioError
from core.words import Text

LARGEST_BYTES = 1_000_000
_MOST_EVENTS = 20_000  # a recipe has some 150; keeps a hostile file from occupying the server
_DEEPEST = 12  # a recipe has 5 levels

Path = tuple[str | int, ...]


class RecipeError(StudioError):
    """A recipe that cannot be used: the file, the line and the field, what is wrong, and the way out.

    Attributes:
        file: the name the text was read under.
        line: 1 for the first line; None when the recipe is not a text.
        field: `schedule.learning_rate`; for a text that is no YAML the one in or above the line; empty when there is none.
        others: how many more things are wrong.
    """

    def __init__(
        self,
        problem: str,
        hint: str,
        *,
        file: str,
        line: int | None = None,
        field: str = "",
        others: int = 0,
        near: str = "",
        **values: Any,
    ) -> None:
        super().__init__(problem, hint, field=field, **values)
        self.file, self.line, self.field, self.others = file, line, field or near, others
        self.problem = _placed(self.problem, file, line, others, near)
        self.args = (str(self.problem),)

    @classmethod
    def from_texts(
        cls,
        problem: Text,
        hint: Text,
        *,
        file: str,
        line: int | None = None,
        field: str = "",
        others: int = 0,
        near: str = "",
    ) -> RecipeError:
        """The same for sentences that are chosen elsewhere; `near` is a field that the sentence does not name."""
        error = cls("", "", file=file, line=line, field=field, others=others, near=near)
        error.problem, error.hint = _placed(problem, file, line, others, near), hint
        error.args = (str(error.problem),)
        return error


def _placed(fault: Text, file: str, line: int | None, others: int, near: str) -> Text:
    """The sentence with its place before it, and how much more is wrong after it."""
    place = Text("{file}, line {line}", file=file, line=line) if line else file
    if near:
        place = Text("{place} ({field})", place=place, field=near)
    if others:
        return Text("{place}: {fault} (More such problems: {count}.)", place=place, fault=fault, count=others)
    return Text("{place}: {fault}", place=place, fault=fault)


@dataclass(frozen=True)
class Document:
    """A recipe's text, taken apart.

    Attributes:
        text: the text with plain line ends; marks of `root` count its characters.
        root: the YAML nodes, with their places.
        data: the same as dicts, lists and scalars.
        lines: path -> line (from 1) of its key or list item.
    """

    text: str
    root: MappingNode
    data: dict[str, Any]
    lines: dict[Path, int] = field(default_factory=dict)

    def line_of(self, path: Path) -> int | None:
        """Line of `path`, or of the nearest part above it that the text has."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)


def read_document(text: str, name: str) -> Document:
    """Take a recipe's text apart.

    Raises:
        RecipeError: it is not the plain YAML that a recipe is made of; names line and reason.
    """
    if len(text.encode("utf-8", "surrogatepass")) > LARGEST_BYTES:
        raise too_large(text, name)
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    try:
        _refuse_tricks(text, name)
        root = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        raise _syntax_error(error, text, name) from error
    except YAMLError as error:  # a character that YAML does not allow
        position = getattr(error, "position", 0)
        raise RecipeError(
            "There is an invisible control character in this line.",
            "Delete the line and type it again, or save the file as UTF-8 text.",
            file=name,
            line=(line := text.count("\n", 0, position) + 1),
            near=field_near(text, line),
        ) from error
    if root is None:
        raise RecipeError(
            "The recipe is empty.",
            "Start from a preset: `sweetspot recipe presets` lists them.",
            file=name,
        )
    if not isinstance(root, MappingNode):
        raise RecipeError(
            "A recipe is made of lines such as `title: My first run`, and this is not.",
            "Start from a preset: `sweetspot recipe presets` lists them.",
            file=name,
            line=root.start_mark.line + 1,
        )
    lines: dict[Path, int] = {}
    data = _build(root, (), lines, name)
    return Document(text, root, data, lines)


def too_large(beginning: str, name: str) -> RecipeError:
    """The error of a text of more than `LARGEST_BYTES`; names the line and the field in which it passes that."""
    kept = beginning.encode("utf-8", "surrogatepass")[:LARGEST_BYTES].decode("utf-8", "replace")
    line = kept.count("\n") + 1
    return RecipeError(
        "This is far too large for a recipe.",
        "A recipe has some hundred lines; data belongs in a dataset.",
        file=name,
        line=line,
        near=field_near(kept, line),
    )


_KEY = re.compile(r"(?P<indent>[ \t]*)(?P<dashes>(?:- +)*)(?P<key>[A-Za-z_][\w-]{0,60})[ \t]*:(?=\s|$)(?P<value>\s*[^\s#])?")


def field_near(text: str, line: int) -> str:
    """The field in a line, or the nearest above it, of a text that may be no YAML; empty when there is none.

    Told from the indentation alone, as people read it: `updates` two spaces in, below `schedule:`, is `schedule.updates`.
    """
    rows = text.split("\n", line)[:line]
    names: list[str] = []
    column = None
    for row in reversed(rows):
        found = _KEY.match(row[:200])
        if found is None:
            continue
        start = len(found["indent"].expandtabs(2)) + len(found["dashes"])
        if column is None or (start < column and not found["value"]):  # what has a value is no section
            names.append(found["key"])
            column = start
        if column == 0:
            break
    return ".".join(reversed(names))


def _refuse_tricks(text: str, name: str) -> None:
    """Walk the events, which is cheap, before nodes are built, which an alias can multiply without end."""
    depth = 0
    for count, event in enumerate(YAML(typ="safe", pure=True).parse(text)):
        line = event.start_mark.line + 1
        depth += {"Start": 1, "End": -1}.get(_edge(event), 0)
        if depth > _DEEPEST or count > _MOST_EVENTS:
            raise RecipeError(
                "This is nested too deeply or holds too many values for a recipe.",
                "Compare it with a preset: `sweetspot recipe show NAME`.",
                file=name,
                line=line,
                near=field_near(text, line),
            )
        if isinstance(event, DocumentStartEvent) and event.version:
            rows = text.split("\n")[:line]
            raise RecipeError(
                "A recipe names no YAML version.",
                "Delete the line that begins with %YAML.",
                file=name,
                line=next((number for number, row in enumerate(rows, 1) if row.startswith("%YAML")), line),
            )
        if isinstance(event, AliasEvent) or isinstance(event, NodeEvent) and event.anchor:
            raise RecipeError(
                "Anchors and aliases (& and *) are not allowed in a recipe.",
                "Write the value out, or put a text that begins with & or * in quotes.",
                file=name,
                line=line,
                near=field_near(text, line),
            )
        if getattr(event, "tag", None):
            raise RecipeError(
                "The tag {tag} is not allowed in a recipe; nothing in it was run.",
                "Delete the tag, or put a text that begins with ! in quotes.",
                tag=str(event.tag).replace("tag:yaml.org,2002:", "!!")[:80],
                file=name,
                line=line,
                near=field_near(text, line),
            )


def _edge(event: Any) -> str:
    kind = type(event).__name__.removesuffix("Event")
    return next((edge for edge in ("Start", "End") if kind in (f"Mapping{edge}", f"Sequence{edge}")), "")


def _build(node: Node, path: Path, lines: dict[Path, int], name: str) -> Any:
    """Plain data of a node; remembers where each part was."""
    if isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
        return [_build(item, (*path, index), lines, name) for index, item in enumerate(node.value)]
    if isinstance(node, ScalarNode):
        if any("\ud800" <= char <= "\udfff" for char in node.value):  # "\\ud83d" alone: no file could hold it
            raise RecipeError(
                "There is an invisible control character in this line.",
                "Delete the line and type it again, or save the file as UTF-8 text.",
                file=name,
                line=node.start_mark.line + 1,
                near=dotted(path),
            )
        return _scalar(node)
    data: dict[str, Any] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, ScalarNode) or key.tag.endswith(":merge"):
            raise RecipeError(
                "This key is not a plain word.",
                "Write it as `name: value`.",
                file=name,
                line=line,
                near=dotted(path),
            )
        place = (*path, key.value)
        if key.value in data:
            raise RecipeError(
                "{field} is given twice, in lines {first} and {second}.",
                "Delete one of the two lines.",
                first=lines[place],
                second=line,
                file=name,
                line=line,
                field=dotted(place),
            )
        lines[place] = line
        data[key.value] = _build(value, place, lines, name)
    return data


def _scalar(node: ScalarNode) -> Any:
    kind, text = node.tag.rsplit(":", 1)[-1], node.value
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        # A decimal number may have leading zeros; 0x10 and 0o17 say their base themselves.
        try:
            return int(text, 0) if text.lstrip("+-")[:2].lower() in ("0x", "0o", "0b") else int(text)
        except ValueError:  # thousands of digits
            return text
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan").replace("_", ""))
    return text  # dates too: nothing in a recipe is a date, a title may look like one


def dotted(path: Path) -> str:
    """("data", "sources", 0, "weight") -> data.sources[0].weight."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _syntax_error(error: MarkedYAMLError, text: str, name: str) -> RecipeError:
    """The mistakes that people make, in plain words; any other in the parser's own."""
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    problem = error.problem or ""
    row = text.split("\n")[line - 1] if mark else ""
    if "\\t" in problem or "\t" in row[: len(row) - len(row.lstrip())]:
        fault, way_out = (
            Text("The line is indented with a tab."),
            Text("YAML indents with spaces: replace each tab by two."),
        )
    elif "mapping values are not allowed" in problem:
        fault = Text("There is a colon where none can be, or the line is indented too far.")
        way_out = Text("Line it up with its neighbours; put a text that contains a colon in quotes.")
    elif "end of stream" in problem and "scalar" in (error.context or ""):
        line = error.context_mark.line + 1 if error.context_mark else line
        fault, way_out = (
            Text("A quotation mark is opened here and never closed."),
            Text("Close it at the end of the text."),
        )
    elif "flow" in (error.context or ""):
        line = error.context_mark.line + 1 if error.context_mark else line
        fault, way_out = (
            Text("A bracket is opened here and not closed properly."),
            Text("Write lists as [one, two]."),
        )
    elif "expected <block end>" in problem:
        fault = Text("This line is not lined up with those above it.")
        way_out = Text("Lines of one section begin in the same column, two spaces further in than its name.")
    elif "cannot start any token" in problem:
        fault = Text("A text cannot begin with this character.")
        way_out = Text("Put the text in quotes.")
    elif "another document" in problem:
        fault, way_out = Text("A second recipe begins here (---)."), Text("Keep one recipe per file.")
    else:
        fault = Text("This is not valid YAML: {reason}.", reason=problem or str(error).split("\n")[0])
        way_out = Text("Check the indentation of this line and the one above; compare with a preset.")
    return RecipeError.from_texts(fault, way_out, file=name, line=line, near=field_near(text, line))
