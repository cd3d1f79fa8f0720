"""Sets of the hub, read by the real `datasets` from folders laid out like them; what the network says becomes a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.data import import_job
from core.data.hub import _refuse_foreign, hub_records, is_hub_source
from core.data.import_job import start_import
from core.data.library import load_dataset
from core.errors import StudioError
from core.jobs.worker import run_job
from core.workspace import Workspace, read_jsonl


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set with two splits, as a folder of JSON Lines."""
    place = tmp_path / "some-set"
    place.mkdir()
    records = {"train": [{"question": "Who?", "answer": "Me."}, {"question": "And?", "answer": ""}],
               "test": [{"question": "Held out?", "answer": "Yes."}]}
    for split, rows in records.items():
        (place / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return place


def test_a_folder_is_imported_as_a_set(workspace: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_job, "start_job", lambda job: run_job(job.folder))
    job = start_import(workspace, str(folder), "whole")
    assert job.state().state == "finished", job.state()
    assert job.state().result == {"dataset": "whole", "read": 2, "imported": 1, "repaired": 0, "rejected": 1}
    card = load_dataset(workspace, "whole").card
    assert card.made_with["form"] == "hub" and card.made_with["layouts"] == {"question/answer": 2}
    assert read_jsonl(workspace.datasets / "whole" / "rejected.jsonl")[0]["place"] == "row 2"
    start_import(workspace, str(folder), "held", split="test")
    assert load_dataset(workspace, "held").rows()[0]["messages"][0]["content"] == "Held out?"
    failed = start_import(workspace, str(folder), "none", split="nope").state()
    assert failed.state == "failed" and not (workspace.datasets / "none").exists()
    with pytest.raises(StudioError, match="no split nope") as caught:
        hub_records(str(folder), split="nope")
    assert "train, test" in str(caught.value.hint) or "test, train" in str(caught.value.hint)


def test_what_goes_wrong_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(StudioError, match="cannot be reached from here, so someone/some-set was not read"):
        hub_records("someone/some-set")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StudioError, match="no data files"):
        hub_records(str(tmp_path / "empty"))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "code.py").write_text("raise SystemExit('this must never run')", encoding="utf-8")
    with pytest.raises(StudioError):
        hub_records(str(tmp_path / "code"))


@pytest.mark.parametrize("named", ["{outside}/secret.jsonl", "../secret.jsonl", "http://127.0.0.1:9/x.jsonl", "zip://a.jsonl::{outside}/a.zip"])
def test_a_set_reads_no_file_that_is_not_its_own(named: str, folder: Path, tmp_path: Path) -> None:
    """Its README.md names the files; read for a student, it would name those of others."""
    (tmp_path / "secret.jsonl").write_text('{"question": "Where?", "answer": "Here."}\n', encoding="utf-8")
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: "
                                      f"'{named.format(outside=tmp_path)}'\n---\n", encoding="utf-8")
    with pytest.raises(StudioError, match="which is no file of its own"):
        hub_records(str(folder))


def test_a_set_reads_nothing_through_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.jsonl").write_text('{"question": "Where?", "answer": "Here."}\n', encoding="utf-8")
    (folder / "train.jsonl").unlink()
    (folder / "train.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(StudioError, match="which is no file of its own"):
        hub_records(str(folder))


def test_a_set_of_the_hub_reads_its_own_repository_only() -> None:
    own = "hf://datasets/someone/some-set@"
    _refuse_foreign("someone/some-set", [f"{own}abc/train.jsonl", f"zip://a.csv::{own}abc/data/a.zip"], own)
    for place in ("/etc/passwd", "hf://datasets/someone/other@abc/a.jsonl", "http://10.0.0.1/a", "s3://x/a", f"{own}abc/../../x"):
        with pytest.raises(StudioError, match="no file of its own"):
            _refuse_foreign("someone/some-set", [f"{own}abc/train.jsonl", place], own)


def test_which_sources_are_sets(tmp_path: Path) -> None:
    (tmp_path / "a.json").touch()
    for source, is_set in (("owner/name", True), (str(tmp_path), True), (str(tmp_path / "a.json"), False), ("a.json", False),
                           ("data/none.jsonl", False), ("name", False), ("a b/c", False), ("", False), ("a\0b/c", False)):
        assert is_hub_source(source) is is_set, source
