"""A recipe as YAML text: anew with its help as comments, or within a text that a person wrote."""

from __future__ import annotations

import difflib
import re
import textwrap
from typing import Any, NamedTuple

from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from core.recipe.document import Document
from core.recipe.schema import Recipe
from core.recipe.setting import Setting, section_type, setting_of
from core.words import Text

_COLUMNS = {"en": 110, "zh": 60}  # a Chinese character is two columns wide
_PLAIN = re.compile(r"[^\W\d][\w./@+-]*(?: [\w./@+-]+)*")
# What YAML 1.1 readers, PyYAML among them, take for booleans or nothing: quoted, so that all see text.
_QUOTED_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def commented_yaml(recipe: Recipe, language: str = "en") -> str:
    """The whole recipe, each field under a comment with its label, unit, range or choices, and help."""
    lines = [
        *_comment(
            Text("A Sweetspot recipe: everything that decides one training.").to(language), "", language
        ),
        "",
    ]
    for name in type(recipe).model_fields:
        value, about = getattr(recipe, name), setting_of(type(recipe), name)
        if section_type(type(recipe), name) is None:
            lines += [*_field_comment(about, language, ""), *_entry(name, value, "")]
            continue
        heading = Text("{label}: {help}", label=about.label, help=about.help)
        lines += ["", *_comment(heading.to(language), "", language), f"{name}:"]
        for key in type(value).model_fields:
            lines += _field_comment(setting_of(type(value), key), language, "  ")
            lines += _entry(key, value.model_dump()[key], "  ")
    return "\n".join(lines) + "\n"


def _field_comment(about: Setting, language: str, indent: str) -> list[str]:
    if about.choices:
        limits: Any = " | ".join(str(name) for name in about.choice_names)
    else:
        limits = about.range
    text = (
        Text("{label} ({limits}): {help}", label=about.label, limits=limits, help=about.help)
        if limits
        else Text("{label}: {help}", label=about.label, help=about.help)
    )
    return _comment(text.to(language), indent, language)


def _comment(text: str, indent: str, language: str) -> list[str]:
    return textwrap.wrap(
        text,
        _COLUMNS[language],
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}# ",
        break_on_hyphens=False,
    )


def _entry(key: str, value: Any, indent: str) -> list[str]:
    if _is_sections(value):
        return [f"{indent}{key}:", indent + "  " + _block_list(value, indent + "  ")]
    return [f"{indent}{key}: {inline(value)}"]


def inline(value: Any) -> str:
    """A value on one line, read alike by YAML 1.1 and 1.2."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        mantissa, e, exponent = repr(value).partition("e")
        return (
            mantissa + (".0" if e and "." not in mantissa else "") + e + exponent
        )  # 1e-05 is text to YAML 1.1
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        return "[" + ", ".join(inline(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {inline(item)}" for key, item in _told(value).items()) + "}"
    return value if _PLAIN.fullmatch(value) and value.lower() not in _QUOTED_WORDS else _quoted(value)


def _quoted(text: str) -> str:
    def escape(char: str) -> str:
        if char in '"\\':
            return "\\" + char
        if char == "\n":
            return "\\n"
        if char == "\t":
            return "\\t"
        if char.isprintable() and char != "\ufeff":
            return char
        code = ord(char)
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    return '"' + "".join(map(escape, text)) + '"'


def _block_list(items: list[dict[str, Any]], indent: str) -> str:
    """Items of a list of sections, without the indent of the first line."""
    rows = []
    for item in items:
        rows.append(
            "- " + f"\n{indent}  ".join(f"{key}: {inline(value)}" for key, value in _told(item).items())
        )
    return f"\n{indent}".join(rows)


def _told(section: dict[str, Any]) -> dict[str, Any]:
    """Items of a list leave out what they leave open."""
    return {key: value for key, value in section.items() if value is not None}


def _is_sections(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


class _Edit(NamedTuple):
    """Put `text` in place of characters start..end; insertions at one place apply inner before outer."""

    start: int
    is_insertion: bool
    outerness: int
    end: int
    text: str


def edited_text(document: Document, old: Recipe, new: Recipe) -> str:
    """The document's text with only the changed values replaced; every other character stays as it was."""
    edits: list[_Edit] = []
    _edit_mapping(document.text, document.root, old.model_dump(), new.model_dump(), 0, edits)
    text = document.text
    for edit in sorted(edits, reverse=True):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text


def _edit_mapping(
    text: str, node: MappingNode, old: dict[str, Any], new: dict[str, Any], depth: int, edits: list[_Edit]
) -> None:
    present = {key.value: (key, value) for key, value in node.value}
    missing = {key: value for key, value in new.items() if key not in present and old.get(key) != value}
    for name, (key, value) in present.items():
        if name in new and old.get(name) != new[name]:
            _edit_value(text, key, value, old.get(name), new[name], depth, edits)
    if missing:
        edits.append(_insertion(text, node, missing, old, depth))


def _edit_value(
    text: str, key: Node | None, node: Node, old: Any, new: Any, depth: int, edits: list[_Edit]
) -> None:
    """Replace what changed in one value. `key` is None for an item of a list."""
    if isinstance(node, MappingNode) and isinstance(new, dict) and node.value:
        _edit_mapping(text, node, old, new, depth + 1, edits)
        return
    if (
        isinstance(node, SequenceNode)
        and isinstance(old, list)
        and isinstance(new, list)
        and len(old) == len(new) == len(node.value)
    ):
        for item, before, after in zip(node.value, old, new, strict=True):
            if before != after:
                _edit_value(text, None, item, before, after, depth + 1, edits)
        return
    if isinstance(node, SequenceNode) and not node.flow_style and isinstance(old, list) and isinstance(new, list) and new:
        _edit_items(text, node, old, new, depth, edits)
        return
    if _is_left_empty(node) and key is not None:
        place = _after_colon(text, key)
        edits.append(_Edit(place, False, 0, place, _empty_replacement(new, old, key.start_mark.column)))
        return
    start, end = node.start_mark.index, _end(text, node)
    ending = "\n" if text[end - 1] == "\n" else ""  # a block text (|) owns its last line end
    if _is_sections(new) and isinstance(node, SequenceNode) and not node.flow_style:
        replacement = _block_list(new, " " * node.start_mark.column)
    else:
        # A block list that becomes a word stands on its own line, which must be further in than its key.
        is_at_key = key is not None and node.start_mark.column <= key.start_mark.column
        replacement = ("  " if is_at_key else "") + inline(new)
    if isinstance(node, SequenceNode) and not node.flow_style:
        replacement += "".join(f"\n{line}" for line in text[start:end].split("\n") if line.lstrip().startswith("#"))
    edits.append(_Edit(start, False, 0, end, replacement + ending))


def _edit_items(
    text: str, node: SequenceNode, old: list[Any], new: list[Any], depth: int, edits: list[_Edit]
) -> None:
    """A block list that grows or shrinks: only the lines of the items that come, go or change are touched."""
    starts = _dash_lines(text, node)
    matcher = difflib.SequenceMatcher(None, [repr(item) for item in old], [repr(item) for item in new], autojunk=False)
    for what, first, last, new_first, new_last in matcher.get_opcodes():
        if what == "equal":
            continue
        paired = min(last - first, new_last - new_first)
        for step in range(paired):
            _edit_value(text, None, node.value[first + step], old[first + step], new[new_first + step], depth + 1, edits)
        for index in range(first + paired, last):
            end = _line_end(text, node.value[index])
            end += text[end : end + 1] == "\n" and text[end - 1] != "\n"
            comments = [line for line in text[starts[index] : end].splitlines(True) if line.lstrip().startswith("#")]
            edits.append(_Edit(starts[index], False, 0, end, "".join(comments)))
        if new[new_first + paired : new_last]:
            place = _line_end(text, node.value[first + paired - 1]) if first + paired else starts[0]
            rows = _item_rows(new[new_first + paired : new_last], " " * node.start_mark.column)
            is_line_start = text[place - 1 : place] in ("", "\n")
            edits.append(_Edit(place, True, -depth, place, f"{rows}\n" if is_line_start else f"\n{rows}"))


def _dash_lines(text: str, node: SequenceNode) -> list[int]:
    """Where the line begins that holds the dash of each item of a block list."""
    starts = [text.rfind("\n", 0, node.start_mark.index) + 1]
    dash = re.compile(rf"^ {{{node.start_mark.column}}}-", re.MULTILINE)
    for item in node.value[:-1]:
        found = dash.search(text, _line_end(text, item))
        assert found is not None, "an item of a block list has a dash of its own"
        starts.append(found.start())
    return starts


def _item_rows(items: list[Any], indent: str) -> str:
    """Items of a block list as lines, without the last line end."""
    return indent + (_block_list(items, indent) if _is_sections(items) else f"\n{indent}".join(f"- {inline(item)}" for item in items))


def _empty_replacement(new: Any, old: Any, column: int) -> str:
    if not isinstance(new, dict):
        return " " + inline(new)
    indent = " " * (column + 2)
    return "".join(f"\n{indent}{key}: {inline(value)}" for key, value in new.items() if old.get(key) != value)


def _insertion(
    text: str, node: MappingNode, missing: dict[str, Any], old: dict[str, Any], depth: int
) -> _Edit:
    """New keys at the end of a mapping."""
    if node.flow_style:
        place = node.end_mark.index - 1
        entries = [f"{key}: {inline(_changed(value, old.get(key)))}" for key, value in missing.items()]
        return _Edit(place, True, -depth, place, (", " if node.value else "") + ", ".join(entries))
    indent = " " * node.start_mark.column
    lines = []
    for key, value in missing.items():
        changed = _changed(value, old.get(key))
        if isinstance(changed, dict):
            lines += [
                f"{indent}{key}:",
                *(row for name, inner in changed.items() for row in _entry(name, inner, indent + "  ")),
            ]
        else:
            lines += _entry(key, changed, indent)
    place = _line_end(text, node)
    if text[place - 1 : place] == "\n":
        return _Edit(place, True, -depth, place, "\n".join(lines) + "\n")
    return _Edit(place, True, -depth, place, "\n" + "\n".join(lines))


def _changed(value: Any, old: Any) -> Any:
    """Of a section that the text does not have, only the keys that differ from the defaults."""
    if isinstance(value, dict) and isinstance(old, dict):
        return {key: inner for key, inner in value.items() if old.get(key) != inner}
    return value


def _line_end(text: str, node: Node) -> int:
    """Where the line ends that holds the last value of `node`."""
    end = _end(text, node)
    if text[end - 1] == "\n":
        return end
    line_end = text.find("\n", end)
    return len(text) if line_end < 0 else line_end


def _end(text: str, node: Node) -> int:
    """Where a value ends; the mark of a block collection lies after the comments that follow it."""
    if isinstance(node, ScalarNode) or node.flow_style or not node.value:
        return node.end_mark.index
    last = node.value[-1]
    if not isinstance(last, tuple):
        return _end(text, last)
    key, value = last
    return _after_colon(text, key) if _is_left_empty(value) else _end(text, value)


def _is_left_empty(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.style is None and node.value == ""


def _after_colon(text: str, key: Node) -> int:
    """The place of a value that is not there: its own mark is at the next token, maybe lines further down."""
    return text.index(":", key.end_mark.index) + 1
