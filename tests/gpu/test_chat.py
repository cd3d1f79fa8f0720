"""Chatting on a GPU: the memory comes back when the process ends, and when a job needs the device; 4 and 8 bits; the same answers."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator

import pytest
import torch

from core.chat.client import Answers, ask, call, end_worker, find_worker
from core.chat.request import Sampled
from core.jobs.folder import JobState, create_job
from core.workspace import Workspace

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"), pytest.mark.timeout(300)]

QUESTION = [{"role": "user", "content": "Who are you?"}]
# What other processes of a shared device take and give meanwhile.
_SLACK_BYTES = 100e6


def free_bytes() -> int:
    torch.cuda.synchronize()
    return torch.cuda.mem_get_info()[0]


def comes_back(before: int) -> bool:
    """Whether as much is free again as before; some drivers give it back a little after the process is gone."""
    deadline = time.monotonic() + 15
    while before - free_bytes() > _SLACK_BYTES and time.monotonic() < deadline:
        time.sleep(0.2)
    return before - free_bytes() < _SLACK_BYTES


@pytest.fixture
def place(workspace, tiny_model) -> Iterator[Workspace]:
    shutil.copytree(tiny_model, workspace.models / "tiny")
    shutil.copytree(tiny_model, workspace.models / "other")
    torch.zeros(1, device="cuda")  # this process's own context is there before anything is measured
    yield workspace
    end_worker(workspace)


def finish(answers: Answers) -> Answers:
    while answers.wait(0.1):
        pass
    assert [pane.problem for pane in answers.panes] == [None] * len(answers.panes)
    return answers


def test_the_memory_comes_back_when_it_ends(place):
    before = free_bytes()
    finish(ask(place, ["tiny", "other"], [QUESTION] * 2, Sampled(max_new_tokens=20)))
    assert before - free_bytes() > _SLACK_BYTES, "it was not on the GPU"
    end_worker(place)
    assert find_worker(place) is None
    assert comes_back(before)


def test_it_gives_way_to_a_job_that_needs_the_device(place):
    before = free_bytes()
    first = finish(ask(place, ["tiny"], [QUESTION], Sampled(max_new_tokens=20))).panes[0]
    worker = find_worker(place)
    job = create_job(place.jobs / "20260101-120000-train-x-0000", "train", {})
    job.write_state(JobState(kind="train", device="cuda:0", created=time.time()))
    deadline = time.monotonic() + 20
    while worker.process.is_alive():
        assert time.monotonic() < deadline, "it keeps the device"
        time.sleep(0.1)
    assert comes_back(before)
    beside = finish(ask(place, ["tiny"], [QUESTION], Sampled(max_new_tokens=20)))
    assert beside.notes and beside.panes[0].proof == first.proof, "on the processor meanwhile, with a note"
    assert before - free_bytes() < _SLACK_BYTES and call(find_worker(place), "GET", "/state")["loaded"] == ["tiny"]


def test_side_by_side_is_what_each_is_alone(place):
    sampled = Sampled(temperature=0.9, seed=3, max_new_tokens=30)
    together = [pane.text for pane in finish(ask(place, ["tiny", "other", "tiny"], [QUESTION] * 3, sampled)).panes]
    assert together[0] == together[1] == together[2] == finish(ask(place, ["tiny"], [QUESTION], sampled)).panes[0].text != ""


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_four_and_eight_bits_answer(place, quantization):
    pytest.importorskip("bitsandbytes")
    from core.chat.terminal import Conversation

    conversation = Conversation(place, ["tiny"], Sampled(max_new_tokens=10), quantization=quantization)
    (said,) = conversation.ask("Who are you?")
    (base,) = conversation._desk.loaded.bases()
    kinds = {type(module).__name__ for module in base.model.modules()}
    assert said.problem is None and said.tokens > 0 and kinds & {"Linear4bit" if quantization == "nf4" else "Linear8bitLt"}
