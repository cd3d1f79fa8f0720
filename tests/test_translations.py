"""Every sentence that a user can read has a Chinese form with the same values; none is left over."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path
from string import Formatter

import yaml

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for part in ("core", "studio", "pages") for path in (ROOT / part).rglob("*.py"))
CATALOGUES = sorted((ROOT / "core" / "zh").glob("*.yaml"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}


def error_classes() -> set[str]:
    """StudioError and every class that derives from it, by name."""
    names = {"StudioError"}
    classes = [node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    while grown := {c.name for c in classes if any(_last_name(base) in names for base in c.bases)} - names:
        names |= grown
    return names


def _last_name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def sentence_arguments() -> list[tuple[str, ast.Call, list[ast.expr]]]:
    """Each call that takes templates: where it is, the call, and the template arguments."""
    errors, found = error_classes(), []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name = _last_name(node.func)
            count = 2 if name in errors else 1 if name == "Text" else 0
            named = [k.value for k in node.keywords if count == 2 and k.arg in {"problem", "hint"}]
            arguments = node.args[:count] + named
            if arguments:
                found.append((f"{path.relative_to(ROOT)}:{node.lineno}", node, arguments))
    return found


def literals(node: ast.expr) -> list[str]:
    """The templates an argument may be: a literal, or either side of `a if x else b` or `a or b`."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.IfExp):
        return literals(node.body) + literals(node.orelse)
    if isinstance(node, ast.BoolOp):
        return [text for value in node.values for text in literals(value)]
    return []


def placeholders(template: str) -> set[str]:
    """The names in a template: {place.x!r} counts as place."""
    names = (name for _, name, _, _ in Formatter().parse(template) if name is not None)
    return {name.split(".")[0].split("[")[0] for name in names}


def translations() -> dict[str, str]:
    merged: dict[str, str] = {}
    for path in CATALOGUES:
        merged |= yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return merged


def test_templates_are_found() -> None:
    calls = sentence_arguments()
    templates = {text for _, _, arguments in calls for node in arguments for text in literals(node)}
    assert len(templates) >= 20
    assert {"StudioError", "JobFailed"} <= error_classes()


def test_no_template_is_put_together_at_run_time() -> None:
    """An f-string, a sum or a `.format` of a sentence could never be looked up; values go in by name."""
    put_together = (ast.JoinedStr, ast.BinOp, ast.Call)
    offences = [
        where for where, _, arguments in sentence_arguments() for node in arguments
        if isinstance(node, put_together)
    ]
    assert offences == []


def test_every_template_has_a_translation() -> None:
    known = translations()
    missing = [
        f"{where}: {text}"
        for where, _, arguments in sentence_arguments() for node in arguments for text in literals(node)
        if text and text not in known
    ]
    assert missing == []


def test_every_value_a_template_names_is_given() -> None:
    """`str(error)` must not be the place where a missing value shows up."""
    offences = []
    for where, call, arguments in sentence_arguments():
        given = {k.arg for k in call.keywords}
        if None in given or any(isinstance(argument, ast.Starred) for argument in call.args):
            continue  # **values: not to be read from here
        for text in (text for node in arguments for text in literals(node)):
            offences += [f"{where}: {{{name}}} of {text!r}" for name in sorted(placeholders(text) - given)]
    assert offences == []


def test_both_languages_name_the_same_values() -> None:
    pairs = translations().items()
    assert [english for english, chinese in pairs if placeholders(english) != placeholders(chinese)] == []


def test_a_sentence_is_translated_once() -> None:
    loads = [yaml.safe_load(path.read_text(encoding="utf-8")) or {} for path in CATALOGUES]
    times = Counter(english for load in loads for english in load)
    assert [english for english, count in times.items() if count > 1] == []


def test_no_translation_is_left_over() -> None:
    """A template may also sit in a table or a YAML file of the recipe and reach Text by a variable."""
    used = {
        node.value for tree in TREES.values() for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert [english for english in translations() if english not in used] == []
