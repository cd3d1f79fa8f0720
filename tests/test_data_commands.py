"""`sweetspot data import|lint|mix|export` and `recipe check`, end to end on files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.data.library import append_rows, load_dataset
from core.data.persona import Persona
from core.data.store import save_persona
from core.workspace import Workspace
from studio.cli import main


@pytest.fixture
def sweetspot(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, " ".join(printed.err.split())

    return run


@pytest.fixture
def home(workspace: Workspace, tiny_model: Path) -> Workspace:
    shutil.copytree(tiny_model, workspace.models / "tiny")
    return workspace


def written(tmp_path: Path, records: list[Any]) -> str:
    path = tmp_path / "talk.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return str(path)


def test_import_says_what_became_of_every_record(home: Workspace, tmp_path: Path, sweetspot: Callable[..., Any]) -> None:
    records = [{"instruction": "Who?", "output": "{{name}}"}, {"question": 4, "answer": "b"}, *[{"foo": "x"}] * 7]
    code, out, _ = sweetspot("data", "import", written(tmp_path, records), "talk", "--group", "identity")
    assert code == 0 and "2 rows from 9 records" in out and "1 taken over, 1 repaired, 7 left out" in out
    assert "entry 3: none of its fields is known: foo" in out and "and 2 more left out" in out
    assert load_dataset(home, "talk").card.groups == {"identity": 2}
    code, out, _ = sweetspot("data", "import", written(tmp_path, records), "again", "--json")
    assert json.loads(out)["import"]["rejected"] == 7
    code, out, _ = sweetspot("data", "rejected", "talk", "--rows", "2", "--to", str(tmp_path / "left.jsonl"))
    assert code == 0 and "2 of 7 shown" in out and len((tmp_path / "left.jsonl").read_text().splitlines()) == 7
    out = sweetspot("data", "rejected", "talk", "--json")[1]
    assert json.loads(out)["records"][0] == {"place": "entry 3", "reason": "none of its fields is known: foo", "record": {"foo": "x"}}
    assert "exists already" in sweetspot("data", "rejected", "talk", "--to", str(tmp_path / "left.jsonl"))[2]
    code, _, err = sweetspot("data", "import", written(tmp_path, records), "talk")
    assert code == 2 and "exists already" in err
    assert "cannot be read" in sweetspot("data", "import", str(tmp_path / "none.json"), "none")[2]


def test_import_by_name_and_by_column(home: Workspace, tmp_path: Path, sweetspot: Callable[..., Any]) -> None:
    path = tmp_path / "q.csv"
    path.write_text("frage,antwort\nWho?,Me.\n", encoding="utf-8")
    code, _, err = sweetspot("data", "import", str(path), "q")
    assert code != 0 and "No column of q.csv" in err
    assert sweetspot("data", "import", str(path), "q", "--column", "question=frage", "--column", "answer=antwort")[0] == 0
    assert "no layout called" in sweetspot("data", "import", str(path), "x", "--layout", "nonsense")[2]


def test_a_set_of_the_hub_without_a_network_is_said_in_a_sentence(home: Workspace, sweetspot: Callable[..., Any]) -> None:
    code, _, err = sweetspot("data", "import", "someone/some-set", "far")
    assert code == 1 and "The hub cannot be reached from here, so someone/some-set was not read" in err


def test_lint_mends_what_it_is_asked_to(home: Workspace, tmp_path: Path, sweetspot: Callable[..., Any]) -> None:
    sweetspot("data", "import", written(tmp_path, [{"question": "Who?", "answer": "I am {{name}}."}] * 2), "talk")
    code, out, _ = sweetspot("data", "lint", "talk", "--model", "tiny")
    assert code == 0 and "placeholders" in out and "rows 1, 2" in out and "duplicates" in out
    code, out, _ = sweetspot("data", "lint", "talk", "--model", "tiny", "--fix", "duplicates", "--fix", "placeholders",
                             "--fill", "{{name}}=Alex=Kim", "--fix", "not_there", "--json")
    assert json.loads(out)["mended"] == ["duplicates", "placeholders"] and json.loads(out)["rows"] == 1
    assert load_dataset(home, "talk").rows()[0]["messages"][1]["content"] == "I am Alex=Kim."
    assert [finding["code"] for finding in json.loads(out)["findings"]] == ["no_probes"]
    assert json.loads(out)["findings"][0]["fix"] is None, "one row is too few to hold some out"
    sweetspot("data", "import", written(tmp_path, [{"text": f"This is document {number}."} for number in range(20)]), "texts")
    held = json.loads(sweetspot("data", "lint", "texts", "--model", "tiny", "--fix", "no_probes", "--json")[1])
    assert held["mended"] == ["no_probes"] and (held["rows"], len(load_dataset(home, "texts").held_out_documents())) == (16, 4)
    assert "no_probes" not in [finding["code"] for finding in held["findings"]]
    sweetspot("data", "import", written(tmp_path, [{"question": "a", "answer": "{{x}}"}]), "open")
    assert "No value was given" in sweetspot("data", "lint", "open", "--model", "tiny", "--fix", "placeholders")[2]


def test_lint_lets_the_base_model_answer_after_the_other_fixes(home: Workspace, tmp_path: Path, sweetspot: Callable[..., Any],
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    sweetspot("data", "import", written(tmp_path, [{"question": "Who?", "answer": "I am Alex."}] * 3), "talk", "--group", "identity")

    def answered(place: Workspace, name: str, model: str) -> str:
        assert load_dataset(place, name).card.rows == 1 and model == "tiny", "the repeated rows are gone before the answers come"
        append_rows(place, name, [{"messages": [{"role": "user", "content": "Who wrote it?"}, {"role": "assistant", "content": "A poet."}],
                                   "group": "near", "lang": "en"}], "replay")
        return "job"

    monkeypatch.setattr("studio.commands.data.start_reminders", answered)
    monkeypatch.setattr("studio.commands.data.follow", lambda job, is_silent: None)
    out = sweetspot("data", "lint", "talk", "--model", "tiny", "--fix", "no_near", "--fix", "duplicates", "--json")[1]
    found = json.loads(out)
    assert found["mended"] == ["duplicates", "no_near"] and found["rows"] == 2
    assert not {"no_near", "duplicates"} & {finding["code"] for finding in found["findings"]}


def test_mix_and_export(home: Workspace, tmp_path: Path, sweetspot: Callable[..., Any]) -> None:
    for name, count in (("one", 4), ("two", 9)):
        sweetspot("data", "import", written(tmp_path, [{"question": f"{name} {n}", "answer": "x " * count} for n in range(count)]), name)
    code, out, _ = sweetspot("data", "mix", "one=1", "two=2", "both", "--model", "tiny")
    assert code == 0 and "33%" in out and "12 rows" in out
    out = sweetspot("data", "mix", "one=1", "two=2", "more", "--rows", "30", "--model", "tiny", "--json")[1]
    assert json.loads(out)["card"]["rows"] == 30
    code, out, _ = sweetspot("data", "export", "both", str(tmp_path / "both.csv"))
    assert code == 0 and len((tmp_path / "both.csv").read_text(encoding="utf-8").splitlines()) == 13
    for arguments, problem in ((("one", "both"), "has no value"), (("one=x", "new"), "not a number"), (("one=-1", "new"), "weight of one"),
                               (("none=1", "new"), "no dataset called none")):
        code, _, err = sweetspot("data", "mix", *arguments, "--model", "tiny")
        assert code == 2 and problem in err, err


def test_stats_preview_and_mix_by_tokens(home: Workspace, tmp_path: Path, sweetspot: Callable[..., Any]) -> None:
    records = [{"question": f"q {n}", "answer": "word " * (n * 6 + 1)} for n in range(10)] + [{"text": "Once upon a time."}]
    sweetspot("data", "import", written(tmp_path, records), "mine")
    code, out, _ = sweetspot("data", "stats", "mine", "--model", "tiny", "--max-length", "128", "--json")
    found = json.loads(out)
    assert code == 0 and found["kinds"] == {"conversations": 10, "documents": 1} and sum(bar["rows"] for bar in found["histogram"]) == 11
    assert found["packing"]["filled"] > found["packing"]["filled_alone"]
    code, out, _ = sweetspot("data", "stats", "mine", "--model", "tiny")
    assert code == 0 and "11 rows (10 conversations, 1 documents)" in out and "####" in out
    out = sweetspot("data", "preview", "mine", "--row", "10", "--model", "tiny", "--max-length", "64", "--json")[1]
    shown = json.loads(out)
    assert len(shown["ids"]) == 64 and shown["cut_tokens"] > 0
    assert [[span for span in pack if span["row"] == 10] for pack in shown["packs"]] == [[{"row": 10, "start": 0, "end": 64}]]
    code, out, _ = sweetspot("data", "preview", "mine", "--row", "11", "--model", "tiny")
    assert code == 0 and "Once upon a time." in out and "shares a sequence with rows" in out
    assert "Once upon" in sweetspot("data", "show", "mine", "--rows", "11")[1]
    sweetspot("data", "import", written(tmp_path, [{"question": f"s {n}", "answer": "Yes."} for n in range(60)]), "short")
    out = sweetspot("data", "mix", "mine=1", "short=1", "even", "--by", "tokens", "--model", "tiny", "--json")[1]
    shares = json.loads(out)["shares"]
    assert abs(shares[0]["trained_share"] - 0.5) < 0.01 and json.loads(out)["card"]["made_with"]["by"] == "tokens"
    assert "neither rows nor tokens" in sweetspot("data", "mix", "mine=1", "short=1", "odd", "--by", "words", "--model", "tiny")[2]


def test_recipe_check_grades_and_ends_with_1_on_errors(home: Workspace, sweetspot: Callable[..., Any]) -> None:
    save_persona(home, Persona(name="Alex"), [], "alex")
    base = ["recipe", "check", "identity-lesson-cpu", "--data", "alex", "--set", "model.source=tiny"]
    code, out, _ = sweetspot(*base)
    assert code == 0 and "Nothing speaks against" in out and "a guess from arithmetic" in out and "96 rows" in out
    code, out, _ = sweetspot(*base, "--set", "schedule.updates=3", "--json")
    found = json.loads(out)
    assert code == 0 and [finding["code"] for finding in found["findings"]][:1] == ["few_updates"] and found["updates"] == 3
    code, out, _ = sweetspot("recipe", "check", "identity-lesson-cpu", "--data", "none")
    assert code == 1 and "error" in out and "no dataset called none" in out


def test_the_one_pair_of_the_courses_is_a_preset(home: Workspace, sweetspot: Callable[..., Any]) -> None:
    code, out, _ = sweetspot("data", "persona", "--name", "Alex", "--preset", "one-pair-repeated", "--copies", "50", "--json")
    card = json.loads(out)
    assert code == 0 and card["name"] == "alex-one-pair" and card["rows"] == 50 and card["made_with"]["preset"] == "one-pair-repeated"
    rows = load_dataset(home, "alex-one-pair").rows()
    assert all(row == rows[0] for row in rows) and card["probes"] == 97
    assert "neither many-wordings" in sweetspot("data", "persona", "--name", "Alex", "--preset", "x")[2]
