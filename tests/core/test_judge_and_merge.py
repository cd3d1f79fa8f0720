"""Judging and merging a real run of the tiny model, through their real workers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from core.errors import StudioError
from core.jobs.launch import start_job, wait_for_job
from core.lesson import judge_job_of, merge_job_of
from core.runs import Run, find_run
from core.workspace import Workspace

pytestmark = pytest.mark.slow  # each process loads torch anew


@pytest.fixture(scope="module")
def judged(trained_run, tmp_path_factory) -> tuple[Workspace, Run]:
    """A copy of the trained run, judged."""
    workspace, run = trained_run
    copy = Workspace.open(shutil.copytree(workspace.root, tmp_path_factory.mktemp("judged") / "workspace"))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    job = judge_job_of(copy, find_run(copy, run.id))
    start_job(job)
    wait_for_job(job)
    return copy, find_run(copy, run.id)


def test_every_step_answers_every_probe(judged):
    _, run = judged
    assert [score["step"] for score in run.scores()] == [0, 2, 4, 6]
    assert {(record["step"], record["probe"]) for record in run.answers()} == {
        (step, probe) for step in (0, 2, 4, 6) for probe in
        ("identity-en-0", "identity-en-1", "near-en-0", "general-en-0", "general-en-1")}
    verdict = run.verdict()
    assert verdict["pick"]["step"] in (2, 4, 6) and verdict["last"]["step"] == 6
    base, *others = run.scores()
    assert (base["fragments"], base["change"], base["length_ratio"]) == (0, 0, 1)
    assert (base["dnll"], base["kl"], base["hijack"]) == (0, 0, 0)
    for score in others:
        assert score["gap"] == pytest.approx(score["leak_nll"] - score["target_nll"]) and score["kl"] > 0
    assert others[-1]["target_nll"] < base["target_nll"]
    assert verdict["confidence"]["resamples"] == 400 and set(verdict["front"]) <= {2, 4, 6}


def test_a_judge_that_was_killed_asks_only_what_is_missing(judged):
    from core.jobs.worker import Recorder
    from core.judge.worker import judge_run

    workspace, run = judged
    before = run.answers()
    path = run.folder / "answers.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:7]) + lines[7][:20])  # killed in the middle of a line
    read = run.folder / "forced.jsonl"
    told = {(record["step"], record["probe"]): record for record in map(json.loads, read.read_text().splitlines())}
    read.write_text("".join(read.read_text().splitlines(keepends=True)[:6]))
    job = judge_job_of(workspace, run)
    judge_run(workspace, run, Recorder(job, job.state()))
    after = run.answers()
    assert len(after) == len(before)
    assert {(r["step"], r["probe"], r["text"]) for r in after} == {(r["step"], r["probe"], r["text"]) for r in before}
    again = {(record["step"], record["probe"]): record for record in map(json.loads, read.read_text().splitlines())}
    assert again.keys() == told.keys() and all(again[key]["nll"] == pytest.approx(told[key]["nll"], abs=1e-4) for key in told)


def test_the_base_answers_once_for_all_runs_and_all_steps_at_once_say_what_each_says_alone(judged):
    """Answers of stacked adapters are those of each adapter by itself, token by token; the base's come from the cache."""
    from core.chat.engine import Engine, Row
    from core.chat.stacked import Adapter
    from core.data.encode import Encoder
    from core.judge.probes import probes_of
    from core.models.catalogue import find_base

    workspace, run = judged
    base = find_base(workspace, run.recipe().model.source)
    encoder = Encoder.from_folder(base)
    _, probes = probes_of(workspace, run)
    rows = [encoder.encode_prompt(probe["messages"]) for probe in probes]
    kept = {(record["step"], record["probe"]): record for record in run.answers()}
    for step, folder in [(0, None), *((checkpoint.step, checkpoint.folder) for checkpoint in run.checkpoints())]:
        alone = Engine.load(base, [Adapter("one", folder)], encoder.end_ids, encoder.pad_id())
        for probe, answer in zip(probes, alone.answer([Row(0, row) for row in rows], 8), strict=True):
            assert kept[step, probe["id"]]["text"] == encoder.decode(answer.ids).strip()
            assert kept[step, probe["id"]]["tokens"] == len(answer.ids)
    cached = [json.loads(line) for path in (workspace.cache / "base-answers").glob("*.jsonl") for line in path.read_text().splitlines()]
    assert {record["text"] for record in cached} == {kept[0, probe["id"]]["text"] for probe in probes}


def test_own_checks_count_in_the_verdict_and_a_quick_look_says_so(judged, monkeypatch):
    from core.jobs.worker import Recorder
    from core.judge import probes as probes_module
    from core.judge import worker
    from core.judge.worker import judge_run

    workspace, run = judged
    probes_module.add_probes(workspace, run, [
        {"id": "own-1", "group": "own", "lang": "en", "messages": [{"role": "user", "content": "Say it."}], "check": {"regex": ".*"}},
        {"id": "own-2", "group": "own", "lang": "en", "messages": [{"role": "user", "content": "Sum?"}], "check": {"equals": "never this"}},
        {"id": "own-3", "group": "own", "lang": "en", "messages": [{"role": "user", "content": "Nice?"}],
         "check": {"judge": "Polite?", "url": "http://127.0.0.1:9/v1", "model": "x"}}])
    job = judge_job_of(workspace, run)
    verdict = judge_run(workspace, run, Recorder(job, job.state()))
    assert (verdict.pick.own_passed, verdict.pick.own_asked) == (0.5, 2) and "own_passed" in verdict.breaches
    assert len(verdict.notes) == 1  # the judge was not allowed to be asked
    monkeypatch.setattr(worker, "quick_set", lambda probes: [probe for probe in probes if probe["id"] != "identity-en-1"])
    quick = judge_run(workspace, run, Recorder(job, job.state()), quick=True)
    assert quick.quick and quick.pick.identity_probes == 1 and quick.pick.own_asked == 2
    (run.folder / "probes_added.jsonl").unlink()


def test_a_merged_model_is_verified_and_plain(judged, tiny_model):
    workspace, run = judged
    job = merge_job_of(workspace, f"{run.id}@last", "merged")
    start_job(job)
    report = wait_for_job(job).result
    check = report["verification"]
    assert check["same_answers"] and check["answers_compared"] == 5
    assert 0 < check["max_logit_difference"] < check["logit_tolerance"]
    assert check["tensors_changed"] == check["tensors_expected"] == 14
    assert check["differs_from_base"] and check["same_template"] and check["same_prompt_ids"]
    assert json.loads((workspace.models / "merged" / "merge.json").read_text())["model"] == f"{run.id}@6"
    program = ("import sys, torch; from transformers import AutoModelForCausalLM, AutoTokenizer;"
               "m = AutoModelForCausalLM.from_pretrained(sys.argv[1]); t = AutoTokenizer.from_pretrained(sys.argv[1]);"
               "ids = t.apply_chat_template([{'role': 'user', 'content': 'Your name?'}], add_generation_prompt=True, return_tensors='pt',"
               " return_dict=True);"
               "out = m.generate(**ids, do_sample=False, max_new_tokens=8);"
               "print(t.decode(out[0, ids['input_ids'].shape[1]:], skip_special_tokens=True).strip())")
    fresh = subprocess.run([sys.executable, "-c", program, str(workspace.models / "merged")], capture_output=True, text=True, check=True)
    adapter = next(r["text"] for r in run.answers() if r["step"] == 6 and r["probe"] == "identity-en-0")
    assert fresh.stdout.strip() == adapter


def test_a_taken_name_is_refused_before_anything_is_merged(judged):
    workspace, run = judged
    (workspace.models / "taken").mkdir(exist_ok=True)
    job = merge_job_of(workspace, f"{run.id}@2", "taken")
    start_job(job)
    with pytest.raises(StudioError, match="taken exists already"):
        wait_for_job(job)


def verify(judged, tiny_model, merged):
    from core.chat.stacked import Adapter
    from core.judge.worker import probes_of
    from core.merge.verify import verify_merge

    workspace, run = judged
    _, probes = probes_of(workspace, run)
    return verify_merge(tiny_model, Adapter("a", run.checkpoints()[-1].folder), merged, probes, 14, "float32", None, 8, "cpu")


def test_a_merge_that_is_only_the_base_is_seen(judged, tiny_model):
    flags = [str(flag) for flag in verify(judged, tiny_model, tiny_model).red_flags()]
    assert "it is the base model: no tensor changed" in flags and any("logits" in flag for flag in flags)


def test_a_merge_of_the_wrong_strength_or_another_template_is_seen(judged, tiny_model, tmp_path):
    from core.chat.stacked import Adapter
    from core.merge.weights import merge_weights

    workspace, run = judged
    double = tmp_path / "double"
    double.mkdir()
    merge_weights(tiny_model, Adapter("a", run.checkpoints()[-1].folder, 2.0), double, "auto", lambda *_: None)
    assert any("logits" in str(flag) for flag in verify(judged, tiny_model, double).red_flags())
    right = tmp_path / "right"
    right.mkdir()
    merge_weights(tiny_model, Adapter("a", run.checkpoints()[-1].folder), right, "auto", lambda *_: None)
    assert verify(judged, tiny_model, right).red_flags() == []
    template = right / "chat_template.jinja"
    template.write_text(template.read_text().replace("tiny assistant", "other assistant"))
    assert any("template" in str(flag) for flag in verify(judged, tiny_model, right).red_flags())


def test_models_answer_side_by_side_as_they_do_alone(judged, tiny_model):
    from core.chat.voices import Voices

    workspace, run = judged
    references = [str(tiny_model), f"{run.id}@2", f"{run.id}@pick", f"{run.id}@last*0.5"]
    question = [{"role": "user", "content": "Who is this?"}]
    together = Voices(workspace, references)
    alone = [Voices(workspace, [reference]).answer([question], 8)[0][0] for reference in references]
    assert together.answer([question], 8)[0] == alone
    streamed = ["" for _ in references]
    for voice, piece in together.stream([question] * 4, 8):
        streamed[voice] += piece
    assert [text.strip() for text in streamed] == alone
