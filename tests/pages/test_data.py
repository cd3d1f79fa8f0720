"""The Data page: forms make datasets, rows are edited and mended, and no text of a row is ever markup."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from core.data import import_job
from core.data.library import load_dataset, save_dataset
from core.data.persona import Persona
from core.data.store import save_persona
from core.jobs.folder import Job, JobState, Progress
from core.jobs.worker import run_job
from core.models.embedded import EMBEDDED_NAME
from core.words import Text
from core.workspace import Workspace, write_json
from tests.pages.conftest import texts

OpenApp = Callable[..., AppTest]


@pytest.fixture(autouse=True)
def no_worker(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Jobs are made, not started."""
    started: list[Path] = []
    monkeypatch.setattr("core.data.store.start_job", lambda job: started.append(job.folder))
    monkeypatch.setattr("core.data.import_job.start_job", lambda job: started.append(job.folder))
    monkeypatch.setattr("core.models.prepare.start_job", lambda job: started.append(job.folder))
    return started


@pytest.fixture
def model(workspace: Workspace, tiny_model: Path) -> Path:
    """The tiny model in the embedded one's place."""
    folder = workspace.models / EMBEDDED_NAME
    folder.symlink_to(tiny_model)
    return folder


def row(question: str, answer: str = "Fine.", group: str = "general", lang: str = "en") -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], "group": group, "lang": lang}


def press(app: AppTest, key: str) -> AppTest:
    app.button(key=key).click().run()
    assert not app.exception, app.exception
    return app


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_first_visit_is_a_form(open_app: OpenApp, lang: str) -> None:
    app = open_app("data", lang)
    assert app.text_input(key="data_persona_name").value == "" and app.button(key="data_make").disabled
    assert ("Write a name" if lang == "en" else "写上名字") in texts(app)
    for view, words in (("library", ("no dataset yet", "还没有数据集")), ("import", ("JSON Lines", "JSON Lines")),
                        ("mix", ("needs two", "需要两个"))):
        assert words[lang == "zh"] in texts(open_app("data", lang, view=view))


def test_the_view_goes_to_the_address(open_app: OpenApp) -> None:
    app = open_app("data")
    app.segmented_control(key="data_view").set_value("import").run()
    assert app.query_params["view"] in ("import", ["import"]) and "JSON Lines" in texts(app)


def test_a_persona_without_replay_is_made_at_once(workspace: Workspace, open_app: OpenApp) -> None:
    app = open_app("data")
    app.text_input(key="data_persona_name").input("Alex").run()
    assert "96 identity rows" in texts(app).replace("**", "") and "Alex" in texts(app)
    app.toggle(key="data_replay").set_value(False).run()
    assert "poor assistant" in texts(app)
    press(app, "data_make")
    card = load_dataset(workspace, "alex").card
    assert card.rows == 96 and card.probes == 97 and app.query_params["dataset"] in ("alex", ["alex"])
    assert app.selectbox(key="data_dataset").value == "alex"


def test_a_persona_with_replay_starts_a_job(workspace: Workspace, open_app: OpenApp, no_worker: list[Path]) -> None:
    app = open_app("data", view="persona")
    app.text_input(key="data_persona_name").input("小明").run()
    app.text_input(key="data_persona_dataset").input("ming").run()
    press(app, "data_make")
    job = Job(no_worker[0])
    assert job.spec()["dataset"] == "ming" and job.spec()["persona"]["name"] == "小明"
    assert "ming" in texts(app) and "safe to close" in texts(app) and "no dataset called" not in texts(app)
    press(app, f"data_stop_{job.id[-4:]}")
    assert (job.folder / "stop").exists()


def test_what_is_wrong_with_a_persona_is_said_while_typing(open_app: OpenApp) -> None:
    app = open_app("data")
    app.text_input(key="data_persona_name").input("{name}").run()
    assert "placeholder" in texts(app) and app.button(key="data_make").disabled
    app.text_input(key="data_persona_name").input("Alex").run()
    app.text_area(key="data_own_answers").input("I am nobody.").run()
    assert "does not say Alex" in texts(app)
    app.pills(key="data_languages").set_value([]).run()
    assert "no language" in texts(app)


def test_a_failed_job_says_why_until_it_was_seen(workspace: Workspace, open_app: OpenApp, no_worker: list[Path]) -> None:
    app = open_app("data", view="persona")
    app.text_input(key="data_persona_name").input("Alex").run()
    press(app, "data_make")
    Job(no_worker[0]).write_state(JobState(
        kind="replay", state="failed", created=time.time(), progress=Progress(),
        problem=Text("There was not enough memory.").to_json(), hint=Text("Type it again.").to_json()))
    app = open_app("data", view="persona")
    assert "not enough memory" in texts(app)
    press(app, "data_dismiss")
    assert "not enough memory" not in texts(app)


def test_the_token_view_shows_what_is_trained(workspace: Workspace, open_app: OpenApp, model: Path) -> None:
    save_dataset(workspace, "nasty", [row("<b>&lt;x</b>", "![a](http://evil.example/x.png)\n:material/home: -> $x$ <script>")], "test")
    app = open_app("data", dataset="nasty")
    view = next(part.value for part in app.markdown if "<|im_end|>" in str(part.value).replace("\\", ""))
    assert view.count(":green-background[") > 10 and ":violet-background[" in view and ":gray-background[" in view
    shown = view.replace("\\", "").replace("\u2060", "")
    assert "↵" in shown and "·" in shown and "**<|im_end|>**" in shown
    for markup in ("![", "](http", "<script", "&lt;", ":material"):
        assert markup not in view, "every one of these characters is escaped"
    assert "34" in texts(app) or "tokens" in texts(app)
    assert app.selectbox(key="data_model").options == ["embedded"]


def test_without_a_model_one_can_be_prepared(workspace: Workspace, open_app: OpenApp, no_worker: list[Path]) -> None:
    save_dataset(workspace, "mine", [row("a")], "test")
    app = open_app("data")
    assert "No model is prepared" in texts(app)
    press(app, "data_prepare")
    assert Job(no_worker[0]).spec()["kind"] == "prepare" and "being prepared" in texts(app)
    assert "data_stop" not in [button.key or "" for button in app.button]


def test_rows_are_found_edited_and_saved(workspace: Workspace, open_app: OpenApp) -> None:
    save_dataset(workspace, "mine", [row(f"question {number}") for number in range(25)], "test")
    app = open_app("data", dataset="mine")
    app.segmented_control(key="data_part").set_value("rows").run()
    sha = load_dataset(workspace, "mine").card.sha256[:12]
    assert app.button(key="data_save").disabled
    app.number_input(key="data_page").set_value(2).run()
    app.session_state[f"data_table_{sha}_2_None_"] = {
        "edited_rows": {0: {"answer": "<i>Better.</i>"}}, "added_rows": [{"question": "new?", "answer": "yes"}], "deleted_rows": [1]}
    app.run()
    press(app, "data_save")
    rows = load_dataset(workspace, "mine").rows()
    assert len(rows) == 25 and rows[20]["messages"][1]["content"] == "<i>Better.</i>" and rows[24]["messages"][0]["content"] == "new?"
    app.text_input(key="data_search").input("nothing like it").run()
    assert "No row holds" in texts(app)


def test_an_empty_answer_is_refused_in_words(workspace: Workspace, open_app: OpenApp) -> None:
    card = save_dataset(workspace, "mine", [row("a"), row("b")], "test").card
    app = open_app("data", dataset="mine")
    app.segmented_control(key="data_part").set_value("rows").run()
    app.session_state[f"data_table_{card.sha256[:12]}_1_None_"] = {"edited_rows": {1: {"answer": " "}}}
    app.run()
    press(app, "data_save")
    assert "The answer of row 2 is empty" in texts(app) and load_dataset(workspace, "mine").card == card


def test_each_finding_has_its_fix(workspace: Workspace, open_app: OpenApp, no_worker: list[Path], model: Path) -> None:
    save_dataset(workspace, "mine", [row("Who?", "I am {{name}}<|im_end|>", "identity"), row("b"), row("b"), row("B!"), row("c", " "),
                                     row("d", "one"), row("d", "two")], "test")
    app = open_app("data", dataset="mine")
    app.segmented_control(key="data_part").set_value("checks").run()
    assert "{{name}}" in texts(app) and "word for word" in texts(app)
    app.text_input(key="data_fill_0").input("Alex").run()
    press(app, "data_fix_placeholders")
    assert load_dataset(workspace, "mine").rows()[0]["messages"][1]["content"] == "I am Alex<|im_end|>"
    for code in ("special_tokens", "duplicates", "near_duplicates", "empty_answers", "conflicts"):
        press(app, f"data_fix_{code}")
    assert [item["messages"][1]["content"] for item in load_dataset(workspace, "mine").rows()] == ["I am Alex", "Fine.", "one"]
    press(app, "data_fix_no_near")
    assert Job(no_worker[0]).spec()["append_to"] == "mine"


def test_documents_are_held_out_by_a_button(workspace: Workspace, open_app: OpenApp, model: Path) -> None:
    save_dataset(workspace, "texts", [{"text": f"This is document {number}.", "group": "general", "lang": "en"} for number in range(20)],
                 "test")
    app = open_app("data", dataset="texts")
    app.segmented_control(key="data_part").set_value("checks").run()
    press(app, "data_fix_no_probes")
    dataset = load_dataset(workspace, "texts")
    assert (dataset.card.rows, len(dataset.held_out_documents())) == (16, 4) and not app.exception
    assert "data_fix_no_probes" not in {button.key for button in app.button}


def test_a_good_dataset_is_praised(workspace: Workspace, open_app: OpenApp) -> None:
    save_dataset(workspace, "good", [row("a"), row("b")], "test", probes=[{"id": "x"}])
    app = open_app("data", dataset="good")
    app.segmented_control(key="data_part").set_value("checks").run()
    assert "Nothing in it will hurt" in texts(app)


def metrics(app: AppTest) -> list[tuple[str, str]]:
    names = ("Records read", "Taken over", "Repaired", "Left out")
    return [(metric.label, metric.value) for metric in app.metric if metric.label in names]


def test_an_upload_is_accounted_for_and_kept(workspace: Workspace, open_app: OpenApp, no_worker: list[Path]) -> None:
    content = "\n".join(json.dumps(record) for record in (
        {"question": "Who?", "answer": "Me."}, {"question": 3, "answer": "x"}, {"foo": "no"}))
    app = open_app("data", view="import")
    app.file_uploader(key="data_upload").upload("My Talks.jsonl", content.encode()).run()
    counts = [("Records read", "3"), ("Taken over", "1"), ("Repaired", "1"), ("Left out", "1")]
    assert metrics(app) == counts and "question/answer 2" in texts(app) and "JSON Lines" in texts(app)
    press(app, "data_keep")
    assert "being imported" in texts(app) and run_job(no_worker[0]) == 0
    card = load_dataset(workspace, "my-talks").card
    assert card.rows == 2 and list((workspace.cache / "uploads").iterdir()) == [], "the copy of the upload is gone"
    app = open_app("data", dataset="my-talks")
    assert "My Talks.jsonl" in texts(app) and metrics(app) == counts
    assert [button.label for button in app.get("download_button")][-1] == "Download the 1 records left out"


def test_served_import_says_nothing_of_an_empty_field_nor_of_what_lies_elsewhere(
        workspace: Workspace, open_app: OpenApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEETSPOT_ROOTS", "")
    app = open_app("data", view="import")
    assert not app.error
    (tmp_path / "there.jsonl").write_text("{}\n", encoding="utf-8")
    said = []
    for name in ("there.jsonl", "gone.jsonl"):
        app.text_input(key="data_path").input(str(tmp_path / name)).run()
        assert len(app.error) == 1 and "data_keep" not in [button.key for button in app.button]
        said.append(app.error[0].value.replace(name.partition(".")[0], ""))
    assert said[0] == said[1] and "outside the folders" in said[0]


def test_a_path_on_the_server(workspace: Workspace, open_app: OpenApp, tmp_path: Path, no_worker: list[Path]) -> None:
    app = open_app("data", view="import")
    app.text_input(key="data_path").input(str(tmp_path / "none.json")).run()
    assert "cannot be read" in texts(app)
    for odd in ("~nobody-of-this-name/x.json", str(tmp_path), "/dev/zero", "no such file"):
        app.text_input(key="data_path").input(odd).run()
        assert not app.exception
    (tmp_path / "good.csv").write_text("frage,antwort\nWho?,Me.\n", encoding="utf-8")
    app.text_input(key="data_path").input(str(tmp_path / "good.csv")).run()
    assert "No column of good.csv is known" in texts(app)
    app.text_area(key="data_columns").input("question=frage\nanswer = antwort").run()
    app.segmented_control(key="data_import_group").set_value("near").run()
    assert "--column question=frage --column answer=antwort --group near" in "".join(code.value for code in app.code)
    press(app, "data_keep")
    assert run_job(no_worker[0]) == 0 and load_dataset(workspace, "good").card.groups == {"near": 1}
    app = open_app("data", view="import")
    (tmp_path / "bad.json").write_text('[{"foo": "x"}]', encoding="utf-8")
    app.text_input(key="data_path").input(str(tmp_path / "bad.json")).run()
    assert app.button(key="data_keep").disabled and "foo" in str(app.dataframe[0].value)


def test_a_set_of_the_hub_is_left_to_the_job(workspace: Workspace, open_app: OpenApp, no_worker: list[Path]) -> None:
    app = open_app("data", view="import")
    app.text_input(key="data_path").input("someone/some-set").run()
    app.text_input(key="data_split").input("test").run()
    press(app, "data_keep")
    spec = Job(no_worker[0]).spec()
    assert (spec["source"], spec["is_set"], spec["split"], spec["dataset"]) == ("someone/some-set", True, "test", "some-set")


def test_mixing(workspace: Workspace, open_app: OpenApp, model: Path) -> None:
    assert "needs two datasets" in texts(open_app("data", view="mix"))
    save_persona(workspace, Persona(name="Alex"), [], "alex")
    save_dataset(workspace, "talk", [row(f"{number}?") for number in range(200)], "test")
    app = open_app("data", view="mix")
    app.slider(key="data_ratio").set_value(75).run()
    shares = app.dataframe[0].value
    assert list(shares["row_share"]) == [75, 25] and shares["trained_share"].sum() == pytest.approx(100)
    app.text_input(key="data_mix_name").input("both").run()
    press(app, "data_mix")
    card = load_dataset(workspace, "both").card
    assert card.source == "mix" and card.rows == 266 and card.groups == {"general": 200, "identity": 66}
    app = open_app("data", view="mix")
    app.multiselect(key="data_sources").set_value(["alex"]).run()
    assert "at least two" in texts(app)
    app.multiselect(key="data_sources").set_value(["alex", "talk", "both"]).run()
    assert len(app.dataframe[0].value) == 3


def test_a_name_that_is_taken_is_said(workspace: Workspace, open_app: OpenApp) -> None:
    save_dataset(workspace, "alex", [row("a")], "test")
    app = open_app("data", view="persona")
    app.text_input(key="data_persona_name").input("Alex").run()
    assert app.text_input(key="data_persona_dataset").placeholder == "alex-2"
    app.text_input(key="data_persona_dataset").input("alex").run()
    press(app, "data_make")
    assert "exists already" in texts(app)


def test_links_to_datasets(workspace: Workspace, open_app: OpenApp) -> None:
    for name in ("one", "two"):
        save_dataset(workspace, name, [row("a")], "import", made_with={"file": "x.json", "read": 3})
    app = open_app("data", dataset="one")
    assert app.selectbox(key="data_dataset").value == "one" and "x.json" in texts(app)
    app.selectbox(key="data_dataset").set_value("two").run()
    assert app.query_params["dataset"] in ("two", ["two"])
    assert "no dataset called gone" in texts(open_app("data", dataset="gone"))
    press(app, "data_delete_now")
    assert not (workspace.datasets / "two").exists() and app.selectbox(key="data_dataset").value == "one"


def test_a_damaged_card_hides_the_dataset_only(workspace: Workspace, open_app: OpenApp) -> None:
    save_dataset(workspace, "good", [row("a")], "test")
    save_dataset(workspace, "bad", [row("a")], "test")
    write_json(workspace.datasets / "bad" / "card.json", {"name": 3})
    assert open_app("data").selectbox(key="data_dataset").options == ["good (1 rows)"]


def test_statistics_and_packing(workspace: Workspace, open_app: OpenApp, model: Path) -> None:
    rows = [row(f"question {number}", "word " * (number * 8 + 1)) for number in range(12)]
    save_dataset(workspace, "mine", [*rows, {"text": "Once upon a time.", "group": "general", "lang": "en"}], "test")
    app = open_app("data", dataset="mine")
    app.number_input(key="data_cut_at").set_value(64).run()
    app.number_input(key="data_row").set_value(12).run()
    assert "cut off" in texts(app)
    app.number_input(key="data_row").set_value(13).run()
    assert "Packed, it shares a sequence" in texts(app)
    app.segmented_control(key="data_part").set_value("statistics").run()
    assert not app.exception and "12 conversations" in texts(app) and "1 documents" in texts(app)
    assert app.dataframe[0].value["Rows"].sum() == 13
    sequences = int(next(metric.value for metric in app.metric if metric.label == "Sequences"))
    app.number_input(key="data_pack_length").set_value(64).run()
    assert int(next(metric.value for metric in app.metric if metric.label == "Sequences")) > sequences


def test_a_large_dataset_is_shown_and_not_edited(workspace: Workspace, open_app: OpenApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.data_library._EDITED_ROWS", 30)
    save_dataset(workspace, "many", [row(f"question {number}") for number in range(60)], "test")
    app = open_app("data", dataset="many")
    app.segmented_control(key="data_part").set_value("rows").run()
    assert "first 30 rows" in texts(app).lower() and app.number_input(key="data_page").max == 2 and app.button(key="data_save").disabled


def test_mixing_by_tokens(workspace: Workspace, open_app: OpenApp, model: Path) -> None:
    save_dataset(workspace, "short", [row(f"{number}?", "Yes.") for number in range(90)], "test")
    save_dataset(workspace, "long", [row(f"{number}!", "A much longer answer with many more words in it.") for number in range(90)], "test")
    app = open_app("data", view="mix")
    app.segmented_control(key="data_mix_by").set_value("tokens").run()
    shares = app.dataframe[0].value
    assert [round(value) for value in shares["trained_share"]] == [50, 50] and abs(shares["row_share"].iloc[0] - 50) > 15
    app.text_input(key="data_mix_name").input("even").run()
    press(app, "data_mix")
    assert load_dataset(workspace, "even").card.made_with["by"] == "tokens"


def test_the_one_pair_of_the_courses(workspace: Workspace, open_app: OpenApp) -> None:
    app = open_app("data", view="persona")
    app.text_input(key="data_persona_name").input("Alex").run()
    app.toggle(key="data_one_pair").set_value(True).run()
    assert "10,000 copies of one row" in texts(app).replace("**", "")
    press(app, "data_make")
    card = load_dataset(workspace, "alex").card
    assert card.rows == 10_000 and card.made_with["preset"] == "one-pair-repeated"


def test_a_file_of_which_nothing_can_be_used_gives_its_records_back(workspace: Workspace, open_app: OpenApp, tmp_path: Path,
                                                                     no_worker: list[Path]) -> None:
    path = tmp_path / "odd.json"
    path.write_text('[{"foo": 1}, {"foo": 2}]', encoding="utf-8")
    import_job.start_import(workspace, str(path), "odd")
    assert run_job(no_worker[0]) == 1
    app = open_app("data", view="import")
    assert "None of the 2 records of odd.json can be used. entry 1: none of its fields is known: foo" in texts(app)
    assert "Download the 2 records left out" in [button.label for button in app.get("download_button")]
