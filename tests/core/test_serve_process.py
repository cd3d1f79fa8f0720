"""`sweetspot serve` as a user starts it, asked by OpenAI's own client; and the same answers in terminal, page and API."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import psutil
import pytest

from core.chat.client import Answers, ask, call, end_worker, find_worker
from core.chat.endpoint import KEY_VARIABLE
from core.chat.request import Sampled
from core.chat.stacked import Adapter
from core.chat.terminal import Conversation
from core.jobs.launch import worker_environment
from core.merge.weights import merge_weights
from core.serve.listen import serve_folder
from core.words import Text
from core.workspace import CHECKOUT, Workspace, write_json

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

QUESTION = [{"role": "user", "content": "Who are you?"}]


@dataclass
class Server:
    workspace: Workspace
    process: subprocess.Popen
    said: dict
    run: str

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.said["url"], api_key=self.said["token"], max_retries=0)

    @property
    def folder(self) -> Path:
        return self.workspace.cache / f"serve-{self.process.pid}"

    def state(self) -> dict:
        return call(find_worker(self.workspace, self.folder), "GET", "/state")


def start_server(workspace: Workspace, run: str, models: list[str], *options: str) -> Server:
    log = (workspace.root / "serve.err").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "studio.cli", "serve", *models, "--port", "0", "--json", "--workspace", str(workspace.root), *options],
        cwd=CHECKOUT, env=worker_environment(), stdout=subprocess.PIPE, stderr=log, text=True)
    text = ""
    while not text.endswith("\n}\n"):
        line = process.stdout.readline()
        assert line, (workspace.root / "serve.err").read_text()
        text += line
    return Server(workspace, process, json.loads(text), run)


def stop_server(server: Server) -> None:
    server.process.send_signal(signal.SIGINT)
    server.process.wait(20)
    server.process.stdout.close()


@pytest.fixture(scope="module")
def server(trained_run, tiny_model, tmp_path_factory) -> Iterator[Server]:
    source, run = trained_run
    workspace = Workspace.open(shutil.copytree(source.root, tmp_path_factory.mktemp("serve") / "workspace"))
    shutil.copytree(tiny_model, workspace.models / "tiny")
    (merged := workspace.models / "alex").mkdir()
    merge_weights(tiny_model, Adapter("last", run.checkpoints()[-1].folder), merged, "auto", lambda done, total: None)
    write_json(merged / "merge.json", {"model": f"{run.id}@last"})
    server = start_server(workspace, run.id, ["tiny", f"{run.id}@last", "alex", f"{run.id}@0"], "--waiting", "70")
    yield server
    worker = psutil.Process(find_worker(workspace, server.folder).process.pid)
    stop_server(server)
    assert not worker.is_running() and not server.folder.exists()
    end_worker(workspace)


def finish(answers: Answers) -> Answers:
    while answers.wait(0.1):
        pass
    return answers


def test_openais_client_gets_models_answers_and_streams(server):
    assert [model.id for model in server.client.models.list()] == server.said["models"]
    whole = server.client.chat.completions.create(model="alex", messages=QUESTION, max_tokens=12, logprobs=True, top_logprobs=2)
    (choice,) = whole.choices
    assert choice.finish_reason in ("stop", "length") and choice.message.role == "assistant"
    assert whole.usage.completion_tokens == len(choice.logprobs.content) <= 12
    assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
    assert all(token.top_logprobs[0].logprob == pytest.approx(token.logprob) for token in choice.logprobs.content), "greedy"
    chunks = list(server.client.chat.completions.create(model="alex", messages=QUESTION, max_tokens=12, stream=True,
                                                        stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == choice.message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-2].model_extra["sweetspot"]["proof"] == whole.model_extra["sweetspot"]["proof"]
    assert whole.model_extra["sweetspot"]["proof"]["weights"] == server.said["proofs"]["alex"]["weights"]
    text = choice.message.content
    stopped = server.client.chat.completions.create(model="alex", messages=QUESTION, max_tokens=12, stop=[text[4:6]])
    assert stopped.choices[0].message.content == text[:text.index(text[4:6])] and stopped.choices[0].finish_reason == "stop"


def test_adapters_share_one_base_and_names_that_are_the_same_are_told(server):
    first, second = server.said["models"][0], server.said["models"][3]
    assert server.said["notes"] == [f"{first} and {second} claim to be different models, but the same weights answered."]
    state = server.state()
    assert state["loads"] == len(state["loaded"]) == 3, "tiny, the run's own base with its adapter, and the merged model"


@pytest.mark.parametrize("model", ["tiny", "@last", "alex"])
def test_a_seed_gives_the_same_answer_in_terminal_page_and_api(server, model):
    model = server.run + model if model.startswith("@") else model
    sampled = Sampled(temperature=1.3, top_p=0.95, top_k=80, repetition_penalty=1.1, seed=23, max_new_tokens=30)
    others = threading.Thread(target=lambda: [server.client.chat.completions.create(
        model=other, messages=QUESTION, temperature=1.0, seed=seed, max_tokens=60) for seed, other in enumerate(server.said["models"])])
    others.start()  # company in the batch
    api = server.client.chat.completions.create(model=model, messages=QUESTION, temperature=1.3, top_p=0.95, seed=23, max_tokens=30,
                                                extra_body={"top_k": 80, "repetition_penalty": 1.1})
    others.join()
    page = finish(ask(server.workspace, [model, "tiny"], [QUESTION] * 2, sampled)).panes[0]
    (terminal,) = Conversation(server.workspace, [model], sampled).ask("Who are you?")
    assert api.choices[0].message.content == page.text == terminal.text != ""
    proof = api.model_extra["sweetspot"]["proof"]
    assert proof == page.proof.model_dump() == terminal.proof.model_dump() and proof["weights"] == server.said["proofs"][model]["weights"]
    other = server.client.chat.completions.create(model=model, messages=QUESTION, temperature=1.3, seed=24, max_tokens=30)
    assert other.choices[0].message.content != page.text


def test_the_next_turn_reads_only_what_is_new(server):
    first = server.client.chat.completions.create(model="alex", messages=QUESTION, max_tokens=20)
    turns = [*QUESTION, {"role": "assistant", "content": first.choices[0].message.content}, {"role": "user", "content": "And you?"}]
    second = server.client.chat.completions.create(model="alex", messages=turns, max_tokens=4)
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens
    assert server.state()["kept_bytes"] > 0


def test_errors_are_openais(server):
    create = server.client.chat.completions.create
    with pytest.raises(openai.NotFoundError, match="not served here"):
        create(model="nobody", messages=QUESTION)
    with pytest.raises(openai.BadRequestError, match="context holds 512 tokens") as long:
        create(model="tiny", messages=[{"role": "user", "content": "word " * 2000}])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="512 for the answer"):
        create(model="tiny", messages=QUESTION, max_tokens=512)
    with pytest.raises(openai.APIStatusError) as large:
        create(model="tiny", messages=[{"role": "user", "content": "x" * 5_000_000}])
    assert large.value.status_code == 413
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=server.said["url"], api_key="wrong").models.list()
    assert create(model="tiny", messages=QUESTION, max_tokens=4).usage.completion_tokens > 0, "it must stay up"


def test_a_hundred_at_once_are_answered_or_told_to_come_again(server):
    answered, refused, other = [], [], []
    expected = server.client.chat.completions.create(model="alex", messages=QUESTION, max_tokens=10).choices[0].message.content
    client = server.client

    def one() -> None:
        try:
            answered.append(client.chat.completions.create(model="alex", messages=QUESTION, max_tokens=10).choices[0].message.content)
        except openai.RateLimitError as error:
            refused.append((error.code, error.response.headers["retry-after"]))
        except Exception as error:
            other.append(error)

    crowd = [threading.Thread(target=one) for _ in range(100)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert other == [] and set(answered) == {expected}
    assert len(answered) >= 70 and set(refused) <= {("queue_full", "2")} and len(answered) + len(refused) == 100


def test_a_client_that_hangs_up_frees_its_place(server):
    stream = server.client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=400, temperature=2.0, seed=5, stream=True)
    next(iter(stream))
    stream.close()
    connection = http.client.HTTPConnection("127.0.0.1", int(server.said["url"].split(":")[2].split("/")[0]))
    body = json.dumps({"model": "tiny", "messages": QUESTION, "max_tokens": 400, "temperature": 2.0, "seed": 5})
    connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {server.said['token']}"})
    connection.close()
    until(lambda: server.state()["waiting"] == 0, "it decodes for nobody")


def until(condition, what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_it_is_an_endpoint_for_a_pane_and_proves_who_answered(server, monkeypatch):
    reference = f"endpoint:{server.said['url']}#alex"
    refused = finish(ask(server.workspace, [reference], [QUESTION], Sampled())).panes[0]
    assert "wants another key (401)" in str(Text.from_json(refused.problem))
    monkeypatch.setenv(KEY_VARIABLE, server.said["token"])
    sampled = Sampled(temperature=1.1, seed=3, max_new_tokens=20, top_k=50, repetition_penalty=1.2)
    far, near = finish(ask(server.workspace, [reference, "alex"], [QUESTION] * 2, sampled)).panes
    assert far.text == near.text and far.tokens == near.tokens and far.problem is None
    assert far.proof.model == reference and far.proof.same_weights(near.proof) and far.notes == []
    (terminal,) = Conversation(server.workspace, [reference], sampled).ask("Who are you?")
    assert terminal.text == near.text


def test_the_terminal_says_when_two_names_are_one_model(server, capsys):
    conversation = Conversation(server.workspace, ["tiny", f"{server.run}@0"], Sampled(max_new_tokens=5))
    assert conversation.ask_aloud("Who are you?")
    assert "the same weights answered" in capsys.readouterr().out


def test_its_process_ends_with_it_even_when_it_is_killed(server):
    own = start_server(server.workspace, server.run, ["tiny"])
    worker = psutil.Process(find_worker(server.workspace, own.folder).process.pid)
    assert worker.memory_info().rss > 50e6
    os.kill(own.process.pid, signal.SIGKILL)
    own.process.wait()
    own.process.stdout.close()
    until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, "the memory is not given back")
    left = serve_folder(server.workspace)
    assert not own.folder.exists() and left.name.endswith(str(os.getpid())), "what a killed one left is swept"
    assert server.folder.exists()
