"""Recipes as text: a new file explains itself, an edited one keeps what a person wrote."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from core.recipe import (
    Recipe,
    RecipeError,
    change_recipe,
    dump_recipe,
    fields,
    load_preset,
    load_recipe,
    parse_recipe,
    presets,
    save_recipe,
)
from core.workspace import Workspace

COMMENTED = """\
# mine, do not touch
title: My lesson   # a good one

schedule:
  # I tried 2e-4 first
  learning_rate: 1e-4  # text to YAML 1.1, a number here
  updates: 0x30
  seed:   3

data:
  sources:
    # the name
    - dataset: alex   # from the form
      groups: [identity]
    # the rest
    - dataset: alex
      groups:
        - near     # look-alikes
        - general
      weight: 2

# the end
snapshots: {count: 6}
# really
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "home")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_new_file_explains_every_field(language: str) -> None:
    text = dump_recipe(load_preset("identity-lesson-replay"), language=language)
    assert parse_recipe(text, "x") == load_preset("identity-lesson-replay")
    comments = "".join(
        line.strip().removeprefix("#").strip() for line in text.splitlines() if line.strip().startswith("#")
    )
    told = [about for path, about, _ in fields(Recipe) if "[]" not in path]
    assert len(told) == 39
    for about in told:
        assert about.help.to(language).replace(" ", "") in comments.replace(" ", "")


def test_a_yaml_1_1_reader_reads_the_same() -> None:
    recipe = change_recipe(
        Recipe(),
        {
            "title": "yes",
            "schedule.learning_rate": 1e-5,
            "schedule.weight_decay": 1e-7,
            "device.checkpointing": "off",
            "method.targets": ["on", "q_proj", "null", "12", "a: b", "- x", "#no"],
        },
    )
    assert Recipe.model_validate(yaml.safe_load(dump_recipe(recipe))) == recipe


def test_line_ends_and_byte_order_mark_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + COMMENTED.replace("\n", "\r\n").encode())
    assert load_recipe(path) == parse_recipe(COMMENTED, "x")


def test_nothing_changed_nothing_touched() -> None:
    assert dump_recipe(parse_recipe(COMMENTED, "x"), COMMENTED) == COMMENTED


def test_changed_values_leave_comments_and_spelling_alone() -> None:
    recipe = change_recipe(
        parse_recipe(COMMENTED, "x"),
        {
            "schedule.learning_rate": 5e-5,
            "schedule.warmup_updates": 2,
            "data.sources[1].weight": 3.0,
            "data.sources[1].groups": ["near"],
            "snapshots.spacing": "early",
            "method.rank": 8,
        },
    )
    expected = (
        COMMENTED.replace("learning_rate: 1e-4 ", "learning_rate: 5.0e-05 ")
        .replace("  seed:   3\n", "  seed:   3\n  warmup_updates: 2\n")
        .replace("        - near     # look-alikes\n        - general\n", "        - near     # look-alikes\n")
        .replace("weight: 2\n", "weight: 3.0\n")
        .replace("{count: 6}\n", "{count: 6, spacing: early}\nmethod:\n  rank: 8\n")
    )
    text = dump_recipe(recipe, COMMENTED)
    assert parse_recipe(text, "x") == recipe
    assert text == expected


def test_sources_added_and_removed_keep_the_rest() -> None:
    recipe = parse_recipe(COMMENTED, "x")
    three = change_recipe(
        recipe, {"data.sources": [*recipe.model_dump()["data"]["sources"], {"dataset": "facts"}]}
    )
    text = dump_recipe(three, COMMENTED)
    assert parse_recipe(text, "x") == three
    assert "# mine, do not touch" in text and "# the end" in text and "# really" in text
    back = dump_recipe(recipe, text)
    assert parse_recipe(back, "x") == recipe and "# the end" in back


@pytest.mark.parametrize("column", ["", "    "], ids=["at its key", "further in"])
def test_a_list_that_grows_or_shrinks_keeps_the_comments_of_the_rest(column: str) -> None:
    lines = ["- dataset: a  # the first", "  # how much", "  weight: 2  # twice", "# the next one", "- dataset: b # second", "  groups:",
             "  - x # rare", "  - y", "- dataset: c # third"]
    text = "data:\n  sources:\n" + "".join(f"  {column}{line}\n" for line in lines) + "  # after\n  max_length: 64 # short\n"
    before = parse_recipe(text, "x")
    a, b, c = before.model_dump()["data"]["sources"]
    new = {"dataset": "new", "groups": ["z"], "weight": 3.0}
    comments = re.findall(r"# [\w ]+", text)
    for sources in ([new, a, b, c], [a, new, b, c], [a, b, c, new], [a, {**b, "weight": 4.0}, c, new], [b, c], [a, c], [a, b], [c, new],
                    [a, {**b, "groups": ["w", "x"]}, c], [a, {**b, "groups": ["y"]}, c], [a, {**b, "groups": ["x", "y", "w"]}, new, c]):
        recipe = change_recipe(before, {"data.sources": sources})
        written = dump_recipe(recipe, text)
        assert parse_recipe(written, "x") == recipe
        gone = [comment for comment in comments if comment not in written]
        names = [source["dataset"] for source in sources]
        mine = {"a": {"# the first", "# twice"}, "b": {"# second", "# rare"}, "c": {"# third"}}
        allowed = set().union(*(words for name, words in mine.items() if name not in names))
        allowed |= {"# rare"} if all("x" not in (source["groups"] or []) for source in sources) else set()
        assert set(gone) <= allowed, (sources, written)
        assert dump_recipe(recipe, written) == written


def test_a_list_that_becomes_a_word_keeps_the_lines_of_comment() -> None:
    text = "method:\n  targets:\n  - q_proj # one\n  # why these\n  - v_proj # two\n  rank: 4\n"
    recipe = change_recipe(parse_recipe(text, "x"), {"method.targets": "all-linear"})
    written = dump_recipe(recipe, text)
    assert parse_recipe(written, "x") == recipe and "  # why these # two\n  rank: 4" in written


def test_length_changes_from_updates_to_epochs_in_a_file() -> None:
    recipe = change_recipe(parse_recipe(COMMENTED, "x"), {"schedule.epochs": 3.0})
    text = dump_recipe(recipe, COMMENTED)
    assert "updates: null" in text and "# I tried 2e-4 first" in text
    assert parse_recipe(text, "x").schedule.epochs == 3


def test_a_previous_text_with_errors_is_never_thrown_away(workspace: Workspace) -> None:
    path = save_recipe(workspace, "mine", Recipe())
    path.write_text("title: mine\nschedule:\n  updates: lots # of them\n", encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(RecipeError):
        save_recipe(workspace, "mine", Recipe())
    assert path.read_bytes() == before


words = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)
names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,8}", fullmatch=True)
sources = st.builds(
    lambda dataset, groups, weight: {"dataset": dataset, "groups": groups, "weight": weight},
    names,
    st.none() | st.lists(words.filter(bool), min_size=1, max_size=3),
    st.floats(0.001, 1000),
)
changes = st.fixed_dictionaries(
    {},
    optional={
        "title": words,
        "data.system": st.none() | words,
        "data.sources": st.lists(sources, min_size=1, max_size=3),
        "method.targets": st.just("all-linear") | st.lists(words.filter(bool), min_size=1, max_size=3),
        "method.dora": st.booleans(),
        "schedule.learning_rate": st.floats(1e-8, 1),
        "schedule.seed": st.integers(0, 2**31 - 1),
        "schedule.epochs": st.none() | st.floats(0.001, 10_000),
        "probes.dataset": st.none() | names,
        "device.micro_batch": st.none() | st.integers(1, 64),
        "early_stop.on_alert": st.sampled_from(["off", "stop"]),
        "snapshots.count": st.integers(1, 1000),
    },
)
TEXTS = st.sampled_from(
    [
        COMMENTED,
        dump_recipe(Recipe()),
        "title: x",
        "{}",
        "{title: a, data: {sources: [{dataset: b}]}}",
        "method:\nschedule:\n",
        "data:\n  system: |\n    You are\n    kind.\n  # after\nschedule:\n  epochs:   # empty\n",
        "title:   'a'\nschedule: # s\n  seed: 1 # t",
        "data:\n  sources:\n  - dataset: a\n    groups:\n  # between\n  - dataset: b\n    groups: null"
        "\n\n\nmethod:\n  targets:\n  - a\n  - b\n# z\n",
        "? title\n: a\nmethod: {targets: [a, b]}\n",
        "---\ntitle: a\n...\n",
        *(preset.text for preset in presets()),
    ]
)


def changed(recipe: Recipe, new: dict) -> Recipe:
    new = {key: value for key, value in new.items() if not (key == "schedule.epochs" and value is None)}
    return change_recipe(recipe, new)


@settings(max_examples=150, deadline=None)
@given(TEXTS, changes, changes)
def test_any_change_to_any_layout_reads_back_the_same(text: str, first: dict, second: dict) -> None:
    for new in (first, second):
        recipe = changed(parse_recipe(text, "x"), new)
        kept = [line for line in text.splitlines() if line.startswith("#")]
        text = dump_recipe(recipe, text)
        assert parse_recipe(text, "x") == recipe
        assert [line for line in text.splitlines() if line.startswith("#")] == kept, "a comment was lost"
        assert dump_recipe(recipe, text) == text


@settings(max_examples=60, deadline=None)
@given(changes)
def test_any_recipe_reads_back_from_a_new_file(new: dict) -> None:
    recipe = changed(Recipe(), new)
    assert parse_recipe(dump_recipe(recipe), "x") == recipe
