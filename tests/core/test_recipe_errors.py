"""Wrong recipes of every kind: refused with file, line and field, in plain words, with nothing run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from core.errors import StudioError
from core.recipe import (
    Recipe,
    RecipeError,
    build_recipe,
    load_recipe,
    parse_recipe,
)


def refusal(text: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "my.yaml")
    error = caught.value
    assert str(error) == str(error.problem)
    assert str(error).startswith("my.yaml")
    for said in (error.problem, error.hint):
        assert "{" not in str(said).replace("{dataset", "")
        assert said.to("zh") != str(said)
    return error


WRONG = {
    # name: (text, line, field, part of the problem, part of the hint)
    "unknown key": (
        "schedule:\n  learning_rat: 1",
        2,
        "schedule.learning_rat",
        "no field",
        "Did you mean schedule.learning_rate?",
    ),
    "wrong place": (
        "learning_rate: 1e-4",
        1,
        "learning_rate",
        "no field",
        "Did you mean schedule.learning_rate?",
    ),
    "wrong section": ("model:\n  rank: 4", 2, "model.rank", "no field", "Did you mean method.rank?"),
    "section misspelt": ("shedule:\n  seed: 4", 1, "shedule", "no field", "Did you mean schedule?"),
    "in a list": (
        "data:\n  sources:\n    - datset: a",
        3,
        "data.sources[0].datset",
        "no field",
        "data.sources[0].dataset",
    ),
    "xtuner's batch": (
        "accumulative_counts: 16",
        1,
        "accumulative_counts",
        "no field",
        "schedule.effective_batch",
    ),
    "micro-batch interval": (
        "snapshots:\n  save_steps: 300",
        2,
        "snapshots.save_steps",
        "no field",
        "snapshots.count",
    ),
    "like nothing": ("\n\nxyzzy: 1", 3, "xyzzy", "no field", "The fields here are title, model"),
    "number as text": (
        "schedule:\n  learning_rate: '1e-4'",
        2,
        "schedule.learning_rate",
        'the text "1e-4"',
        "Remove the quotes",
    ),
    "no is not false": ("method:\n  rslora: no", 2, "method.rslora", 'not the text "no"', "true or false"),
    "one is not true": ("method:\n  dora: 1", 2, "method.dora", "not the number 1", "true or false"),
    "true is not one": ("method:\n  rank: true", 2, "method.rank", "not true", "Rank"),
    "half an update": (
        "schedule:\n  updates: 2.5",
        2,
        "schedule.updates",
        "without decimals, not the number 2.5",
        "Updates",
    ),
    "text for number": ("schedule:\n  seed: lucky", 2, "schedule.seed", 'not the text "lucky"', "Seed"),
    "number for text": ("title: 12", 1, "title", "must be text, not the number 12", 'quotes: "12"'),
    "nothing": ("schedule:\n  seed:", 2, "schedule.seed", "an empty value", "Delete the line"),
    "text for section": ("model: embedded", 1, "model", "a section with lines", "Base model"),
    "list for section": ("\nmethod:\n  - rank: 4", 2, "method", "not a list", "Training method"),
    "too large": (
        "schedule:\n  learning_rate: 5",
        2,
        "schedule.learning_rate",
        "is 5; the range is 1e-08 to 1.",
        "0.0002",
    ),
    "too small": (
        "\nprobes:\n  max_new_tokens: 1",
        3,
        "probes.max_new_tokens",
        "is 1; the range is 4 to 4096 tokens.",
        "48",
    ),
    "no updates": ("schedule: {updates: 0}", 1, "schedule.updates", "1 to 10000000 updates", "36"),
    "not a number": (
        "schedule:\n  learning_rate: .nan",
        2,
        "schedule.learning_rate",
        "is nan; the range",
        "0.0002",
    ),
    "infinite": ("schedule:\n  weight_decay: .inf", 2, "schedule.weight_decay", "is inf; the range", "Pull"),
    "3000 digits": (f"schedule:\n  seed: {'9' * 3000}", 2, "schedule.seed", "999…; the range", "7"),
    "9000 digits": (f"schedule:\n  seed: {'9' * 9000}", 2, "schedule.seed", "999…", ""),
    "beyond floats": (f"method:\n  dropout: {'9' * 900}", 2, "method.dropout", "999…; the range", "0"),
    "weight in a list": (
        "data:\n  sources:\n    - dataset: a\n      weight: -1",
        4,
        "data.sources[0].weight",
        "is -1",
        "default is 1",
    ),
    "near a choice": (
        "model:\n  dtype: bf16",
        2,
        "model.dtype",
        "can be auto, float32, bfloat16",
        "Did you mean bfloat16?",
    ),
    "no choice": ("method:\n  kind: banana", 2, "method.kind", 'is "banana"', "full: every weight"),
    "off that became false": (
        "early_stop:\n  on_alert: false",
        2,
        "early_stop.on_alert",
        "off, save, stop, not false",
        "off: carry on",
    ),
    "both lengths": (
        "schedule:\n  updates: 3\n  epochs: 2",
        3,
        "schedule.epochs",
        "both given",
        "Delete one",
    ),
    "no length": ("\nschedule:\n  updates: null", 2, "schedule", "no length", "schedule.epochs"),
    "one target": ("method:\n  targets: q_proj", 2, "method.targets", "all-linear or a list", "[q_proj]"),
    "a target of another kind": (
        "method:\n  targets: [q_proj, 3]",
        2,
        "method.targets[1]",
        "must be text, not the number 3",
        '"3"',
    ),
    "no targets": ("method:\n  targets: []", 2, "method.targets", "is empty", "all-linear or a list"),
    "source as a word": (
        "data:\n  sources: [alex]",
        2,
        "data.sources[0]",
        'not the text "alex"',
        "- dataset: NAME",
    ),
    "sources as a word": (
        "data:\n  sources: alex",
        2,
        "data.sources",
        'not the text "alex"',
        "- dataset: NAME",
    ),
    "no sources": ("data:\n  sources: []", 2, "data.sources", "is empty", "a list of datasets"),
    "no dataset": (
        "data:\n  sources:\n    - weight: 1",
        3,
        "data.sources[0].dataset",
        "is missing",
        "dataset: …",
    ),
    "leaves the workspace": (
        "data:\n  sources:\n  - dataset: ../x",
        3,
        "data.sources[0].dataset",
        '"../x"',
        "never paths",
    ),
    "probes of a path": (
        "probes:\n  dataset: /etc/passwd",
        2,
        "probes.dataset",
        "cannot be a name",
        "never paths",
    ),
    "group as a word": (
        "data:\n  sources:\n  - dataset: x\n    groups: near",
        4,
        "data.sources[0].groups",
        "a list of",
        "[near]",
    ),
    "no model": ("model:\n  source: ''", 2, "model.source", "is empty", "hub id"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_field_is_named_with_its_line(case: str) -> None:
    text, line, field, problem, hint = WRONG[case]
    error = refusal(text)
    assert (error.line, error.field, error.others) == (line, field, 0)
    assert problem in str(error.problem)
    assert hint in str(error.hint)
    assert len(str(error.problem)) < 250


BROKEN = {
    # name: (text, line, part of the problem)
    "tab": ("schedule:\n\tupdates: 3", 2, "indented with a tab"),
    "tab further down": ("schedule:\n  updates: 3\n\tseed: 3", 3, "indented with a tab"),
    "colon": ("\ntitle: one: two", 2, "colon where none can be"),
    "indented too far": ("schedule:\n  updates: 3\n    seed: 4", 3, "indented too far"),
    "not lined up": ("schedule:\n  updates: 3\n seed: 4", 3, "not lined up"),
    "quotation mark": ("model:\n  source: 'a\ntitle: x\n", 2, "never closed"),
    "bracket": ("data:\n  sources: [{dataset: a}\nschedule:\n  updates: 3\n", 2, "bracket"),
    "character": ("title: a\nmodel: @x", 2, "cannot begin with this character"),
    "control character": ("title: a\nmodel: \x00", 2, "control character"),
    "half a character": ('title: "\\ud83d"', 1, "control character"),
    "duplicate": (
        "title: a\nschedule:\n  seed: 1\n  seed: 2",
        4,
        "schedule.seed is given twice, in lines 3 and 4",
    ),
    "duplicate section": ("model: {}\nmodel: {}", 2, "model is given twice"),
    "python tag": (
        "title: !!python/object/apply:os.system ['touch pwned']",
        1,
        "!!python/object/apply:os.system is not allowed",
    ),
    "own tag": ("\ntitle: !include /etc/passwd", 2, "!include is not allowed"),
    "anchor": ("title: a\nmodel: &base {source: x}", 2, "Anchors"),
    "alias": ("title: *a", 1, "Anchors"),
    "merge key": ("model:\n  <<: {source: x}", 2, "not a plain word"),
    "list as key": ("? [1, 2]\n: 3", 1, "not a plain word"),
    "another YAML": ("%YAML 1.1\n---\ntitle: no", 1, "names no YAML version"),
    "two recipes": ("title: a\n---\ntitle: b", 2, "second recipe"),
    "a list": ("- title: a", 1, "A recipe is made of lines"),
    "a word": ("\nhello", 2, "A recipe is made of lines"),
    "empty": ("", None, "The recipe is empty"),
    "comments only": ("# nothing\n# at all\n", None, "The recipe is empty"),
    "too large": ("#" * 1_000_001, 1, "far too large"),
    "too large further down": ("title: a\nmodel:\n  source: " + "中" * 400_000, 3, "(model.source): This is far too large"),
    "bomb": (
        "a: &a [x,x,x,x]\n"
        + "".join(f"{n}: &{n} [*{p},*{p},*{p},*{p}]\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True)),
        1,
        "Anchors",
    ),
    "deep list": ("[" * 90_000, 1, "nested too deeply"),
    "deep mapping": ("{" * 90_000, 1, "nested too deeply"),
    "long list": ("title: [" + "1, " * 300_000 + "1]", 1, "too many values"),
    "many keys": ("".join(f"k{n}: 1\n" for n in range(15_000)), 10_000, "too many values"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_text_is_refused_in_plain_words_and_soon(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text, line, problem = BROKEN[case]
    started = time.monotonic()
    error = refusal(text)
    assert error.line == line
    assert problem in str(error.problem)
    assert time.monotonic() - started < 15
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("text", "field"), [
    ("schedule:\n\tupdates: 3", "schedule.updates"), ("schedule:\n  updates: 3\n    seed: 4", "schedule.seed"),
    ("schedule:\n  updates: 3\n seed: 4", "schedule.seed"), ("model:\n  source: 'a\ntitle: x\n", "model.source"),
    ("data:\n  # mine\n  sources: [{dataset: a}\nschedule:\n", "data.sources"), ("title: a\nmodel: @x", "model"),
    ("data:\n  sources:\n  - dataset: a\n    groups:\n    - !x b", "data.sources.groups"), ("title: a\nmodel: \x00", "model"),
    ("schedule:\n  seed: &s 3", "schedule.seed"), ("method:\n  rank: *s", "method.rank"), ("model:\n  <<: {source: x}", "model"),
    ("- a\n- b", ""), ("hello", "")])
def test_what_is_no_yaml_is_told_with_the_field_too(text: str, field: str) -> None:
    error = refusal(text)
    assert error.field == field and (f" ({field}): " in str(error)) is bool(field)


def test_of_several_faults_the_first_line_is_told_and_the_rest_counted() -> None:
    error = refusal("title: 3\nschedule:\n  seed: -1\n  lr: 4\nfoo: 1\n")
    assert (error.line, error.field, error.others) == (1, "title", 3)
    assert "(More such problems: 3.)" in str(error)


def test_numbers_are_numbers() -> None:
    text = (
        "schedule:\n  learning_rate: 1e-4\n  updates: 040\n  weight_decay: 1E-2\n  clip_norm: .5\n  epochs:\n"
    )
    schedule = parse_recipe(text, "x").schedule
    assert (schedule.learning_rate, schedule.updates, schedule.weight_decay, schedule.clip_norm) == (
        1e-4,
        40,
        0.01,
        0.5,
    )


def test_words_stay_words() -> None:
    recipe = parse_recipe("title: no\ndevice:\n  checkpointing: on\nearly_stop:\n  on_alert: off\n", "x")
    assert (recipe.title, recipe.device.checkpointing, recipe.early_stop.on_alert) == ("no", "on", "off")
    assert parse_recipe("title: 2024-05-06", "x").title == "2024-05-06"


def test_an_empty_section_means_its_defaults() -> None:
    assert parse_recipe("method:\n  # rank: 8\nschedule:\n", "x") == Recipe()


def test_epochs_alone_replace_the_default_length() -> None:
    schedule = parse_recipe("schedule:\n  epochs: 2\n", "x").schedule
    assert (schedule.updates, schedule.epochs) == (None, 2)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StudioError, match="There is no recipe file"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(StudioError, match="cannot be read"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("title: a\nmodel: caf\u00e9".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"latin.yaml, line 2 \(model\): This line is not UTF-8"):
        load_recipe(tmp_path / "latin.yaml")
    (tmp_path / "big.yaml").write_bytes(b"#" * 10_000_000)
    with pytest.raises(RecipeError, match="far too large"):
        load_recipe(tmp_path / "big.yaml")


def test_a_form_gets_the_same_words_without_a_line() -> None:
    with pytest.raises(RecipeError) as caught:
        build_recipe({"schedule": {"updates": 0}})
    assert caught.value.field == "schedule.updates" and caught.value.line is None
    assert str(caught.value) == "recipe: schedule.updates is 0; the range is 1 to 10000000 updates."
