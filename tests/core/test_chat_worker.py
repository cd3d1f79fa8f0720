"""The chat process: one batch for all panes, cancelling, proof, bad requests, and how it begins and ends."""

from __future__ import annotations

import copy
import hashlib
import http.client
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from core.chat.client import Answers, ask, call, end_worker, ensure_worker, find_worker
from core.chat.engine import Sampling
from core.chat.handle import HANDLE, chat_folder
from core.chat.request import MOST_BYTES, Sampled
from core.chat.stacked import Adapter
from core.chat.thin import ThinLinear, use_thin_products
from core.chat.voices import Voices
from core.jobs.launch import worker_environment
from core.merge.weights import merge_weights
from core.words import Text
from core.workspace import CHECKOUT, Workspace, write_json

pytestmark = pytest.mark.slow  # each process loads torch anew

SECONDS = 60.0


@pytest.fixture(scope="module")
def place(trained_run, tiny_model, tmp_path_factory) -> Iterator[tuple[Workspace, str]]:
    """A workspace with a run, a base model `tiny`, a merged model `alex`, and a chat process while the module lasts."""
    source, run = trained_run
    root = tmp_path_factory.mktemp("chat") / "workspace"
    shutil.copytree(source.root, root)
    workspace = Workspace.open(root)
    shutil.copytree(tiny_model, workspace.models / "tiny")
    merged = workspace.models / "alex"
    merged.mkdir()
    merge_weights(tiny_model, Adapter("last", run.checkpoints()[-1].folder), merged, "auto", lambda done, total: None)
    write_json(merged / "merge.json", {"model": f"{run.id}@last"})
    yield workspace, run.id
    end_worker(workspace)


def asked(workspace: Workspace, models: list[str], question: str = "Who are you?", **sampled) -> Answers:
    answers = ask(workspace, models, [[{"role": "user", "content": question}]] * len(models),
                  Sampled(**{"max_new_tokens": 12, **sampled}))
    return finish(answers)


def finish(answers: Answers) -> Answers:
    deadline = time.monotonic() + SECONDS
    while answers.wait(0.2):
        assert time.monotonic() < deadline, "no end"
    return answers


def problem_of(answers: Answers, pane: int = 0) -> str:
    found = answers.panes[pane].problem
    return str(Text.from_json(found)) if found else ""


def test_all_panes_answer_as_each_would_alone(place):
    workspace, run = place
    models = ["tiny", f"{run}@last", "alex", f"{run}@2"]
    together = asked(workspace, models)
    assert [pane.problem for pane in together.panes] == [None] * 4
    texts = [pane.text for pane in together.panes]
    assert texts == [asked(workspace, [model]).panes[0].text for model in models]
    voices = Voices(workspace, models)
    alone = ["" for _ in models]
    for index, piece in voices.stream([[{"role": "user", "content": "Who are you?"}]] * 4, 12):
        alone[index] += piece
    assert texts == alone, "page and terminal differ"


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 3), (3, 2), (6, 1), (7, 1), (0, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_thin_products_are_the_usual_ones(shape, bias):
    torch.manual_seed(0)
    usual = torch.nn.Linear(24, 40, bias=bias)
    thin = torch.nn.Sequential(copy.deepcopy(usual))
    use_thin_products(thin)
    assert isinstance(thin[0], ThinLinear)
    x = torch.randn(*shape, 24)
    torch.testing.assert_close(thin(x), usual(x))


def test_the_same_seed_gives_what_the_terminal_gives(place):
    workspace, run = place
    first, again, other = (asked(workspace, [f"{run}@last"], temperature=1.5, top_p=0.9, seed=seed).panes[0].text for seed in (4, 4, 5))
    voices = Voices(workspace, [f"{run}@last"])
    pieces = voices.stream([[{"role": "user", "content": "Who are you?"}]], 12, Sampling(temperature=1.5, top_p=0.9, seed=4))
    assert first == again == "".join(piece for _, piece in pieces)
    assert first != other


def test_a_base_is_loaded_once_for_any_number_of_adapters(place):
    workspace, run = place
    asked(workspace, ["tiny", "alex"])
    handle = find_worker(workspace)
    before = call(handle, "GET", "/state")
    for models in (["tiny", f"{run}@2"], [f"{run}@4", f"{run}@last*0.5", "tiny"], ["alex", "tiny"]):
        assert [pane.problem for pane in asked(workspace, models).panes] == [None] * len(models)
    after = call(handle, "GET", "/state")
    assert after["loads"] - before["loads"] <= 1, "the run's own base folder, nothing else"
    asked(workspace, [f"{run}@2"])
    assert call(handle, "GET", "/state")["loads"] == after["loads"]


def test_the_proof_names_the_weights_and_the_prompt(place):
    workspace, run = place
    one, merged, last = asked(workspace, [f"{run}@2", "alex", f"{run}@last"]).panes
    adapter = workspace.runs / run / "checkpoints" / "000002" / "adapter_model.safetensors"
    assert one.proof.weights == hashlib.sha256(adapter.read_bytes()).hexdigest()
    assert merged.proof.weights == hashlib.sha256((workspace.models / "alex" / "model.safetensors").read_bytes()).hexdigest()
    assert (one.proof.step, one.proof.resolved, last.proof.model) == (2, f"{run}@2", f"{run}@last")
    assert last.proof.resolved == f"{run}@6" and merged.proof.step is None
    assert one.proof.prompt == merged.proof.prompt == last.proof.prompt and one.proof.prompt_tokens > 5
    assert one.tokens > 0 and one.tokens_per_second > 0


def test_weights_that_changed_on_disk_are_read_again(place):
    workspace, run = place
    copy = shutil.copytree(workspace.models / "tiny", workspace.models / "changing")
    before = asked(workspace, ["changing"]).panes[0]
    shutil.copyfile(workspace.models / "alex" / "model.safetensors", copy / "model.safetensors")
    after = asked(workspace, ["changing"]).panes[0]
    assert before.proof.weights != after.proof.weights
    assert after.text == asked(workspace, ["alex"]).panes[0].text


def long_answers(workspace: Workspace, run: str, count: int = 2) -> Answers:
    """An answer of 400 random tokens in each pane, under way."""
    models = ["tiny", f"{run}@2", f"{run}@4", "alex"][:count]
    for seed in range(20):  # a seed with which nobody ends early
        answers = ask(workspace, models, [[{"role": "user", "content": "Go on"}]] * count,
                      Sampled(max_new_tokens=400, temperature=3.0, seed=seed))
        while answers.wait(0.05) and not all(len(pane.text) > 5 for pane in answers.panes):
            pass
        if answers.is_active and all(pane.reason is None for pane in answers.panes):
            return answers
    raise AssertionError("every answer ended at once")


def test_cancelling_one_pane_does_not_stop_the_others(place):
    workspace, run = place
    answers = long_answers(workspace, run, 3)
    answers.cancel(1)
    finish(answers)
    assert answers.panes[1].reason == "stopped" and answers.panes[1].tokens < 400
    others = [answers.panes[0], answers.panes[2]]
    assert all(pane.reason in ("length", "end", "loop") and pane.tokens > answers.panes[1].tokens for pane in others)


def test_hanging_up_stops_the_decoding(place):
    workspace, run = place
    answers = long_answers(workspace, run)
    answers.close()
    finish(answers)
    assert {pane.reason for pane in answers.panes} == {"stopped"}
    began = time.monotonic()
    while call(find_worker(workspace), "GET", "/state")["waiting"]:
        assert time.monotonic() - began < 5, "it goes on for nobody"
        time.sleep(0.02)
    assert all(pane.problem is None for pane in answers.panes)


def test_an_abandoned_page_hangs_up(place, monkeypatch):
    monkeypatch.setattr("core.chat.client.ABANDONED_SECONDS", 0.3)
    workspace, run = place
    answers = long_answers(workspace, run)
    time.sleep(1.5)  # nobody looks
    assert not answers.is_active and all(pane.tokens < 400 for pane in answers.panes)


def test_a_wrong_pane_says_so_and_the_others_answer(place):
    workspace, run = place
    broken = shutil.copytree(workspace.runs / run, workspace.runs / "broken")
    (broken / "checkpoints" / "000002" / "adapter_model.safetensors").write_bytes(b"cut")
    answers = asked(workspace, ["tiny", "nobody", f"{run}@99", "broken@2"])
    assert answers.panes[0].text and answers.panes[0].problem is None
    assert problem_of(answers, 1) == "No model is called nobody."
    assert "no checkpoint '99'" in problem_of(answers, 2)
    assert "cut off" in problem_of(answers, 3)
    assert "not on this machine" in problem_of(asked(workspace, ["some/hub-model"]))
    shutil.rmtree(broken)


def test_long_histories_lose_whole_turns_and_say_so(place):
    workspace, _ = place
    history = [{"role": "system", "content": "Be kind."}]
    for number in range(30):
        history += [{"role": "user", "content": f"Question {number}: who are you?"}, {"role": "assistant", "content": "I am Alex."}]
    answers = finish(ask(workspace, ["tiny"], [[*history, {"role": "user", "content": "And now?"}]], Sampled(max_new_tokens=64)))
    pane = answers.panes[0]
    assert pane.problem is None and pane.proof.prompt_tokens <= 512 - 64
    (note,) = [str(Text.from_json(note)) for note in pane.notes]
    assert note.startswith("The oldest turns (")


@pytest.mark.parametrize(("question", "sampled", "expected"), [
    ("   ", {}, "The question is empty."),
    ("word " * 2000, {}, "this model holds 512"),
    ("Hi", {"max_new_tokens": 512}, "leaves no room"),
    ("broken \ud800 text", {}, "no valid Unicode"),
    ("x" * (MOST_BYTES + 10), {}, "too long to be sent"),
])
def test_bad_questions_are_answered_in_words(place, question, sampled, expected):
    workspace, _ = place
    assert expected in problem_of(asked(workspace, ["tiny"], question, **sampled))
    assert asked(workspace, ["tiny"]).panes[0].problem is None, "the process must stay up"


def test_bytes_that_are_no_request_are_refused(place):
    workspace, _ = place
    handle = ensure_worker(workspace)
    for body in (b"\xff\xfe{", b"[1, 2]", b'{"models": []}', b'{"id": "12345678", "models": ["a"], "histories": []}'):
        connection = http.client.HTTPConnection("127.0.0.1", handle.port, timeout=10)
        connection.request("POST", "/answer", body, {"Authorization": f"Bearer {handle.token}"})
        response = connection.getresponse()
        assert response.status == 400 and "problem" in json.loads(response.read())


def test_a_stranger_gets_nothing(place):
    workspace, _ = place
    handle = ensure_worker(workspace)
    for token in ("", "Bearer ", "Bearer x", "Bearer é"):
        for method, path in (("POST", "/answer"), ("POST", "/quit"), ("GET", "/state")):
            connection = http.client.HTTPConnection("127.0.0.1", handle.port, timeout=10)
            connection.request(method, path, b"{}", {"Authorization": token.encode("latin-1", "replace")} if token else {})
            assert connection.getresponse().status in (403, 404)
    assert find_worker(workspace) == handle
    mode = stat.S_IMODE((chat_folder(workspace) / HANDLE).stat().st_mode)
    assert mode == 0o600 and stat.S_IMODE(chat_folder(workspace).stat().st_mode) == 0o700


def test_many_at_once_all_get_an_answer_or_a_sentence(place):
    workspace, _ = place
    asked(workspace, ["tiny"])
    crowd = [ask(workspace, ["tiny"], [[{"role": "user", "content": "Who are you?"}]], Sampled(max_new_tokens=4)) for _ in range(60)]
    for answers in crowd:
        finish(answers)
    answered = [answers for answers in crowd if answers.panes[0].problem is None and answers.panes[0].reason != "stopped"]
    assert len({answers.panes[0].text for answers in answered}) == 1
    assert len(answered) >= 20
    assert {problem_of(answers)[2:] for answers in crowd if answers not in answered} <= {" requests wait for an answer already."}


def test_two_starts_are_one_process(place):
    workspace, _ = place
    end_worker(workspace)
    assert find_worker(workspace) is None
    found: list = []
    threads = [threading.Thread(target=lambda: found.append(ensure_worker(workspace))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({handle.process.pid for handle in found}) == 1
    second = subprocess.run([sys.executable, "-m", "core.chat.worker", str(chat_folder(workspace))], cwd=CHECKOUT,
                            env=worker_environment(), capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 0 and "already" in second.stdout
    assert find_worker(workspace) == found[0]


def run_worker(folder: Path, *options: str) -> subprocess.Popen:
    child = subprocess.Popen([sys.executable, "-m", "core.chat.worker", str(folder), *options], cwd=CHECKOUT,
                             env=worker_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + SECONDS
    while not (folder / HANDLE).exists():
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.05)
    return child


def test_it_ends_when_idle_and_when_its_handle_is_gone(workspace):
    folder = chat_folder(workspace)
    idle = run_worker(folder, "--idle", "0.5")
    assert idle.wait(SECONDS) == 0
    assert not (folder / HANDLE).exists()
    orphan = run_worker(folder)
    shutil.rmtree(workspace.root)
    assert orphan.wait(SECONDS) == 0


def test_a_killed_process_is_replaced(place):
    workspace, run = place
    answers = long_answers(workspace, run)
    os.kill(find_worker(workspace).process.pid, signal.SIGKILL)
    finish(answers)
    assert "ended without a word" in problem_of(answers)
    assert asked(workspace, ["tiny"]).panes[0].problem is None
