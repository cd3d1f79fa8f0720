"""Which of the base model's answers are worth repeating."""

from __future__ import annotations

import pytest

from core.data import store
from core.data.library import load_dataset
from core.data.replay import is_stuck, speaks_of_itself
from core.errors import StudioError
from core.workspace import read_jsonl


@pytest.mark.parametrize("text", [
    "I'm sorry for any misunderstanding, but as a chatbot designed to help", "I'm Emily, a friendly and creative party planning AI.",
    "As an AI, I have no feelings.",
    "I am a helpful assistant.", "My name is SmolLM.", "我是一个人工智能助手。", "作为一个语言模型，我没有感情。"])
def test_answers_that_name_another_self_are_left_out(text):
    assert speaks_of_itself(text)


@pytest.mark.parametrize("text", [
    "A digital assistant is a software application.", "Artificial intelligence (AI) is a branch of computer science.",
    "I'm glad to help.", "The capital of France is Paris.", "私人助理帮助别人安排日程。", "Language models are trained on text."])
def test_answers_about_the_world_stay(text):
    assert not speaks_of_itself(text)


@pytest.mark.parametrize(("text", "stuck"), [
    ("Boil an egg: Boil an egg: Boil an egg:", True), ("1" * 60, True), ("one two three, one two four, one two five", False),
    ("Paris.", False), ("", False)])
def test_answers_that_go_in_circles(text, stuck):
    assert is_stuck(text) is stuck


def test_answers_alone_are_a_dataset_with_held_out_questions_as_probes(workspace, monkeypatch):
    monkeypatch.setattr(store, "start_job", lambda job: None)
    job = store.start_replay_dataset(workspace, "own", ["en", "zh"], near=3, general=300)
    prompts = read_jsonl(job.folder / "prompts.jsonl")
    assert len(prompts) == 2 * 303 and job.spec()["dataset"] == "own"
    answered = [{**row, "messages": [*row["messages"], {"role": "assistant", "content": "Well."}]} for row in prompts]
    assert store.finish_replay(workspace, job.spec(), answered) == {"dataset": "own"}
    dataset = load_dataset(workspace, "own")
    asked = {row["messages"][0]["content"] for row in dataset.rows()}
    probed = {probe["messages"][0]["content"] for probe in dataset.probes()}
    assert len(asked) == 606 and len(probed) == dataset.card.probes == 2 * 73 and not asked & probed
    assert dataset.card.source == "replay" and dataset.card.groups == {"near": 6, "general": 600}
    with pytest.raises(StudioError, match="exists already"):
        store.start_replay_dataset(workspace, "own", ["en"])
