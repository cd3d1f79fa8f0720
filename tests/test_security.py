"""docs/security.md: every line names tests that exist; what the pages do with foreign text; the check of the dependencies."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from streamlit.testing.v1 import AppTest

from core.workspace import Workspace, append_jsonl, read_jsonl, write_jsonl

ROOT = Path(__file__).resolve().parents[1]
PAYLOAD = "<script>alert(1)</script> ![x](http://evil.example/x.png) [click](javascript:alert(1)) **bold** $$x$$ :red[a]"
# What markdown may not find in a text that a stranger wrote.
ALIVE = re.compile(r"(?<!\\)<script|(?<!\\)!\[|(?<!\\)\[click\]\(|(?<!\\)\*\*bold|(?<!\\)\$\$|:red\[a(?<!\\)\]")


def load(name: str, path: Path) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def test_every_line_of_the_threat_model_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith(("| who |", "|---"))]
    assert len(lines) >= 18
    known = {node.name for path in (ROOT / "tests").rglob("test_*.py") for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
             if isinstance(node, ast.FunctionDef)}
    named = [re.findall(r"`(test_\w+)`", line) for line in lines]
    assert all(named), "a line without a test"
    assert {name for names in named for name in names} - known == set()


def foreign_text_everywhere(workspace: Workspace) -> str:
    """A run whose dataset, recipe, questions and answers carry the payload; returns its name."""
    made = load("runs_written_by_hand", ROOT / "tests" / "pages" / "conftest.py")
    run = made.write_run(workspace, "alex", changes={"title": PAYLOAD})
    for path, field in ((run.folder / "answers.jsonl", "text"),):
        write_jsonl(path, [{**record, field: f"{record[field]} {PAYLOAD}"} for record in read_jsonl(path)])
    append_jsonl(run.folder / "watch.jsonl", {"update": 36, "hijack": 0.5, "level": "red", "seconds": 1.0, "answers": [
        {"question": PAYLOAD, "group": "identity", "answer": PAYLOAD}]})
    for name in ("rows", "probes"):
        path = workspace.datasets / "alex" / f"{name}.jsonl"
        write_jsonl(path, [{**row, "messages": [{**message, "content": f"{message['content']} {PAYLOAD}"} for message in row["messages"]]}
                           for row in read_jsonl(path)])
    return run.id


@pytest.mark.parametrize("page", ["data", "train", "compare", "merge", "chat", "home", "recipe"])
def test_foreign_text_does_nothing_on_any_page(page: str, workspace: Workspace) -> None:
    run = foreign_text_everywhere(workspace)
    app = AppTest.from_file(str(ROOT / "studio" / "app.py"), default_timeout=30)
    app.query_params["lang"] = "en"
    app.query_params["run"] = run
    app.run()
    if page != "home":
        app.switch_page(f"../pages/{page}.py").run()
    assert not app.exception
    shown = [element.value for kind in (app.markdown, app.caption, app.info, app.warning, app.error, app.success, app.header, app.subheader)
             for element in kind]
    outside_code = [re.sub(r"`[^`]*`", "", text) for text in shown]
    assert [text for text in outside_code if ALIVE.search(text)] == []


def test_what_is_cached_for_all_sessions_says_whose_it_is() -> None:
    """Streamlit's caches are shared by all visitors of a server: what is kept must be told apart by its folder."""
    found = []
    for path in [*(ROOT / "studio").rglob("*.py"), *(ROOT / "pages").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and any("st.cache_" in ast.unparse(mark) for mark in node.decorator_list):
                found.append((f"{path.name}: {node.name}", {argument.arg for argument in node.args.args}))
    assert len(found) >= 5
    assert [name for name, arguments in found if not arguments & {"root", "folder", "path"}] == []


Advisories = Callable[[], ModuleType]


@pytest.fixture
def advisories() -> ModuleType:
    return load("advisories", ROOT / "benchmarks" / "advisories.py")


def test_every_line_of_the_lock_is_looked_up(advisories: ModuleType) -> None:
    packages = advisories.pinned(ROOT / "requirements.lock")
    lines = [line for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines() if re.match(r"^[A-Za-z0-9]", line)]
    assert len(packages) == len(lines) > 50 and "streamlit" in packages and all(re.match(r"\d", found) for found in packages.values())


def test_report_of_the_audit_is_read(advisories: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    report = json.dumps({"dependencies": [
        {"name": "good", "version": "1.0", "vulns": []},
        {"name": "bad", "version": "2.0", "vulns": [{"id": "PYSEC-0000-1", "fix_versions": ["2.1"], "aliases": [], "description": "x"}]}]})
    assert advisories.findings(report) == [("bad", "2.0", "PYSEC-0000-1", "2.1")]
    assert advisories.skipped(json.dumps({"dependencies": [{"name": "odd", "skip_reason": "not found"}]})) == ["odd: not found"]
    monkeypatch.setattr(advisories.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(advisories.subprocess, "run", lambda *_, **__: type("Done", (), {"stdout": report, "stderr": ""}))
    assert advisories.main() == 1 and "bad 2.0: PYSEC-0000-1" in capsys.readouterr().out


def test_what_could_not_be_asked_counts_as_unchecked(advisories: ModuleType, monkeypatch: pytest.MonkeyPatch,
                                                     capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(advisories.importlib.util, "find_spec", lambda name: None)
    assert advisories.main() == advisories.UNCHECKED
    monkeypatch.setattr(advisories.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(advisories.subprocess, "run", lambda *_, **__: type("Done", (), {"stdout": "", "stderr": "no route to host"}))
    assert advisories.main() == advisories.UNCHECKED
    assert "no route to host" in capsys.readouterr().out


def test_what_was_not_looked_up_is_named(advisories: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def never(*_: object, **options: float) -> None:
        raise advisories.subprocess.TimeoutExpired("pip_audit", options["timeout"])

    monkeypatch.setattr(advisories.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(advisories.subprocess, "run", never)
    assert advisories.main() == advisories.UNCHECKED
    said = capsys.readouterr().out
    assert "did not answer within" in said and all(f"{name} {version}" in " ".join(said.split())
                                                   for name, version in advisories.pinned(ROOT / "requirements.lock").items())
