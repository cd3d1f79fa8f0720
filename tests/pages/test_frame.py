"""The frame: two languages word for word, the path, the sidebar, and the language that stays wherever one goes."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from string import Formatter

import pytest
import yaml
from streamlit.testing.v1 import AppTest

from core.jobs.folder import Progress, create_job
from core.jobs.process import ProcessIdentity
from core.words import Text
from core.workspace import Workspace
from studio.i18n import words

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("en", "zh")
SHELL = [path for path in sorted((ROOT / "studio").rglob("*.py"))
         if "commands" not in path.parts and path.name not in ("cli.py", "launch.py", "terminal.py", "tables.py")]
SOURCES = SHELL + sorted((ROOT / "pages").glob("*.py"))
PAGES = sorted(path.stem for path in (ROOT / "pages").glob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
Open = Callable[..., AppTest]


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def calls() -> Iterator[tuple[Path, ast.Call, str]]:
    """Every call of the pages and the shell, with the last part of the called name."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                yield path, node, name


def key_arguments() -> Iterator[tuple[Path, ast.Call, ast.expr]]:
    """What is given as a key of the catalogue: the first of `t` and `t_plainly`, the second of `next_step`."""
    for path, call, name in calls():
        place = {"t": 0, "t_plainly": 0, "next_step": 1}.get(name)
        if place is not None and isinstance(call.func, ast.Name) and len(call.args) > place:
            yield path, call, call.args[place]


def patterns_of(node: ast.expr) -> list[str]:
    """The keys an argument may be, as regular expressions; what an f-string fills in may be anything."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [re.escape(node.value)]
    if isinstance(node, ast.IfExp):
        return patterns_of(node.body) + patterns_of(node.orelse)
    if isinstance(node, ast.JoinedStr):
        return ["".join(re.escape(part.value) if isinstance(part, ast.Constant) else r"[\w-]+" for part in node.values)]
    return []


# --- words ---


def test_files_are_found() -> None:
    assert len(SOURCES) >= 8
    assert {"home", "train"} <= set(PAGES)
    assert len(words("en")) > 100


def test_both_languages_have_the_same_keys_and_values() -> None:
    english, chinese = words("en"), words("zh")
    assert set(english) == set(chinese)

    def named(text: str) -> set[str]:
        return {name for _, name, _, _ in Formatter().parse(text) if name is not None}

    assert [key for key in english if named(english[key]) != named(chinese[key])] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_catalogue_is_flat_text_and_each_key_stands_once(language: str) -> None:
    for path in sorted((ROOT / "studio" / "i18n" / language).glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        catalogue = yaml.safe_load(text)
        assert all(isinstance(value, str) and value for value in catalogue.values()), path
        keys = re.findall(r"^([\w-]+):", text, re.MULTILINE)
        assert sorted(keys) == sorted(catalogue), f"a key of {path.name} stands twice"


def test_chinese_is_chinese_and_calm() -> None:
    """No entry was forgotten in English; no sentence shouts."""
    same = {key for key, text in words("zh").items() if not re.search(r"[\u4e00-\u9fff]", text)}
    letters = {key for key in same if re.search(r"[A-Za-z]{4,}", re.sub(r"\{\w+\}", "", words("zh")[key]))}
    assert {key for key in letters if words("zh")[key] != words("en")[key]} == set(), "neither Chinese nor a shared name"
    loud = [key for language in LANGUAGES for key, text in words(language).items() if "!" in text.replace("![", "") or "！" in text]
    assert loud == []


def test_every_key_that_is_used_exists() -> None:
    known = set(words("en"))
    literal = [(where(path, call), argument.value) for path, call, argument in key_arguments() if isinstance(argument, ast.Constant)]
    assert len(literal) > 50
    assert [use for use in literal if use[1] not in known] == []
    vague = [where(path, call) for path, call, argument in key_arguments()
             for pattern in patterns_of(argument) if not any(re.fullmatch(pattern, key) for key in known)]
    assert vague == []


def test_every_key_that_exists_is_used() -> None:
    patterns = {pattern for _, _, argument in key_arguments() for pattern in patterns_of(argument)}
    texts = {node.value for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    # f"{name}.title" of `open_page` reaches every page; other f-strings too may stand in a variable first.
    patterns |= {pattern for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
                 for pattern in patterns_of(node) if "." in pattern and re.match(r"(shell|" + "|".join(PAGES) + r")\\\.", pattern)}
    unused = [key for key in words("en") if key not in texts and not any(re.fullmatch(pattern, key) for pattern in patterns)]
    assert unused == []


def test_every_value_a_text_names_is_given() -> None:
    offences = []
    for path, call, argument in key_arguments():
        given = {keyword.arg for keyword in call.keywords}
        if None in given or not isinstance(argument, ast.Constant) or argument.value not in words("en"):
            continue
        if isinstance(call.func, ast.Name) and call.func.id == "next_step":
            given = set()
        named = {name for _, name, _, _ in Formatter().parse(words("en")[argument.value]) if name is not None}
        offences += [f"{where(path, call)}: {{{name}}}" for name in sorted(named - given)]
    assert offences == []


# Calls that put text on the page, and the arguments of theirs that are text.
SHOWING = {
    "title", "header", "subheader", "caption", "markdown", "write", "text", "info", "success", "warning", "error", "toast", "badge",
    "button", "form_submit_button", "download_button", "link_button", "page_link", "menu_button", "checkbox", "toggle", "radio",
    "selectbox", "multiselect", "slider", "select_slider", "text_input", "text_area", "number_input", "file_uploader", "color_picker",
    "segmented_control", "pills", "expander", "popover", "status", "spinner", "progress", "metric", "tabs", "dialog", "chat_input",
    "data_editor", "dataframe", "plotly_chart", "altair_chart", "echarts_chart", "image", "table",
}
TEXT_KEYWORDS = {"label", "help", "placeholder", "body", "text", "caption", "alt", "title", "hint"}
# Said in both languages at once, or a name that is the same in both.
SHARED = re.compile(r"Sweetspot|English|中文|SmolLM2?|JSONL?|YAML|Markdown|GPU|LoRA")


def literal_texts(node: ast.expr) -> Iterator[str]:
    """What an expression would show that is written in the code itself."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield from (part.value for part in node.values if isinstance(part, ast.Constant))
    elif isinstance(node, ast.BinOp):
        yield from literal_texts(node.left)
        yield from literal_texts(node.right)
    elif isinstance(node, ast.IfExp):
        yield from literal_texts(node.body)
        yield from literal_texts(node.orelse)
    elif isinstance(node, ast.List | ast.Tuple):
        for element in node.elts:
            yield from literal_texts(element)
    elif isinstance(node, ast.Dict):
        for element in [*node.keys, *node.values]:
            if element is not None:
                yield from literal_texts(element)


def is_word(text: str) -> bool:
    """Whether a text says something: not an icon, a colour directive, a unit or punctuation."""
    bare = re.sub(r":material/\w+:|:?[\w-]+\[|&nbsp;|\b(GB|MB|kB|s|min)\b", "", text)
    return bool(re.search(r"[A-Za-z]{2,}|[\u4e00-\u9fff]", SHARED.sub("", bare)))


def test_no_page_shows_a_text_that_is_not_in_the_catalogue() -> None:
    offences = []
    for path, call, name in calls():
        if name not in SHOWING or not isinstance(call.func, ast.Attribute):
            continue
        shown = call.args[:1] + [keyword.value for keyword in call.keywords if keyword.arg in TEXT_KEYWORDS]
        if name in ("metric",):
            shown += call.args[1:2]
        offences += [f"{where(path, call)}: {text!r}" for argument in shown for text in literal_texts(argument) if is_word(text)]
    assert offences == []


def test_nothing_is_rendered_as_html() -> None:
    offences = [where(path, call) for path, call, name in calls()
                if name in ("html", "iframe") or any(keyword.arg == "unsafe_allow_html" for keyword in call.keywords)]
    assert offences == []


# --- language ---


def language_of(app: AppTest) -> str:
    value = app.query_params["lang"]
    return value[0] if isinstance(value, list) else value


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_page_speaks_the_language_of_its_address(open_app: Open, page: str, lang: str) -> None:
    app = open_app(page, lang=lang)
    assert app.title[0].value.replace("\\", "") == words(lang)[f"{page}.title"]
    assert language_of(app) == lang


def test_the_switch_changes_the_page_and_the_address(open_app: Open) -> None:
    app = open_app("train", lang="en")
    app.sidebar.get("button_group")[0].set_value("zh").run()
    assert not app.exception
    assert language_of(app) == "zh"
    assert app.title[0].value == "训练"
    app.switch_page("../pages/home.py").run()
    assert language_of(app) == "zh"
    assert app.title[0].value == words("zh")["home.title"]


def test_a_page_without_a_language_in_its_address_keeps_the_session_s(open_app: Open) -> None:
    app = open_app("home", lang="zh")
    del app.query_params["lang"]
    app.run()
    assert language_of(app) == "zh"


def test_a_language_nobody_knows_falls_back(open_app: Open) -> None:
    app = open_app("home", lang="xx")
    assert language_of(app) == "en"
    assert app.title[0].value == words("en")["home.title"]


def test_links_and_switches_carry_the_language(open_app: Open, made_run: Callable) -> None:
    made_run(kind="replay")
    app = open_app("home", lang="zh")
    links = app.get("page_link")
    assert links
    assert all("lang=zh" in link.proto.query_string for link in links)
    app = open_app("train", lang="zh")
    if "compare" in PAGES:
        app.button(key="train_to_compare").click().run()
        assert not app.exception
        assert language_of(app) == "zh"
        assert app.title[0].value.replace("\\", "") == words("zh")["compare.title"]


# --- path and sidebar ---


def path_links(app: AppTest) -> dict[str, str]:
    """Stage -> what its hint says, from the links that carry a stage's word."""
    stages = {words("en")[f"shell.stage_{state}"] for state in ("done", "running", "next", "open")}
    return {link.proto.label: link.proto.help for link in app.get("page_link") if link.proto.help in stages}


def test_the_path_shows_what_is_done_and_what_comes_next(open_app: Open, made_run: Callable) -> None:
    shown = path_links(open_app("train"))
    assert "Train" in shown
    made_run(judged=False)
    assert path_links(open_app("train"))["Train"] == "done"
    if "compare" in PAGES:
        assert path_links(open_app("train"))["Compare"] == "comes next"


def test_the_path_shows_what_runs(open_app: Open, workspace: Workspace) -> None:
    job = create_job(workspace.runs / "20260101-120000-alex", "train", {"updates": 9})
    job.write_state(job.state().model_copy(update={"state": "running", "process": ProcessIdentity.own()}))
    assert path_links(open_app("home"))["Train"] == "running now"


def test_the_sidebar_says_what_runs(open_app: Open, workspace: Workspace) -> None:
    assert "Nothing is running." in [caption.value for caption in open_app("home").sidebar.caption]
    job = create_job(workspace.jobs / "20260101-120000-judge-alex-0001", "judge", {"run": "alex"})
    job.write_state(job.state().model_copy(update={"state": "running", "process": ProcessIdentity.own(),
                                                   "progress": Progress(done=1, total=4, label=Text("training").to_json())}))
    bar = open_app("home").sidebar.get("progress")[0].proto
    assert bar.value == 25
    assert "judging" in bar.text
    assert "judge" in bar.text.replace("\\", "")


def test_a_sentence_keeps_its_commands_and_loses_its_markup() -> None:
    from studio.i18n import say

    assert say(Text("Run `make setup` in {where}.", where="*here*")) == r"Run `make setup` in \*here\*\."
    assert "`" not in say(Text("a lone {mark} mark", mark="`")).replace(r"\`", "")
