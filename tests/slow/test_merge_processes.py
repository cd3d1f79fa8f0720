"""Merging and converting through their real processes: killed in the middle, and loaded by plain transformers in a fresh one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.jobs.launch import start_job, wait_for_job
from core.merge.request import MergeRequest, merge_job_for
from core.models.catalogue import list_models
from core.workspace import CHECKOUT, Workspace, read_json
from tests.core.conftest import save_tiny_dataset, tiny_recipe, train_here
from tests.core.test_internlm2 import published_logits, write_internlm2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# Nothing of Sweetspot: what a stranger would type.
PLAIN = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer.apply_chat_template([{"role": "user", "content": sys.argv[2]}], add_generation_prompt=True, return_tensors="pt",
                                    return_dict=True)
out = model.generate(**ids, do_sample=False, max_new_tokens=8)
with torch.no_grad():
    logits = model(torch.tensor([[5, 6, 7, 8]])).logits[0]
print(json.dumps({"answer": tokenizer.decode(out[0, ids["input_ids"].shape[1]:], skip_special_tokens=True).strip(),
                  "logits": logits.tolist(), "modules": sorted(name for name in sys.modules if name.startswith("core"))}))
"""

# A merge that writes one tensor and then takes for ever.
STUCK = """
import sys, time
from core.jobs.folder import Job
from core.jobs.worker import Recorder
from core.merge import worker
from core.workspace import Workspace

honest = worker.merge_weights
def stuck(base, adapter, folder, dtype, on_tensor, **options):
    def wait(done, total):
        if done == 3:
            print("writing", flush=True)
            time.sleep(600)
    return honest(base, adapter, folder, dtype, wait, **options)
worker.merge_weights = stuck
job = Job(__import__("pathlib").Path(sys.argv[1]))
worker.merge_job(Workspace.open(job.folder.parent.parent), job, Recorder(job, job.state()))
"""


def ask_plainly(folder: Path, question: str) -> dict:
    done = subprocess.run([sys.executable, "-c", PLAIN, str(folder), question], capture_output=True, text=True, check=True,
                          cwd=folder.parent, timeout=200)
    return json.loads(done.stdout.splitlines()[-1])


def test_a_merge_that_was_killed_leaves_nothing_and_the_next_one_is_whole(workspace: Workspace, tiny_model: Path, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    save_tiny_dataset(workspace)
    run = train_here(workspace, tiny_recipe(tiny_model))
    job = merge_job_for(workspace, MergeRequest((f"{run.id}@2", f"{run.id}@6"), "mean"))
    process = subprocess.Popen([sys.executable, "-c", STUCK, str(job.folder)], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline().strip() == "writing"
    half = list(workspace.models.iterdir())
    assert len(half) == 1 and half[0].name.startswith(".mean.") and list(half[0].glob("*.safetensors"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list_models(workspace) == [] and not (workspace.models / "mean").exists()
    again = merge_job_for(workspace, MergeRequest((f"{run.id}@2", f"{run.id}@6"), "mean", max_shard_bytes=150_000))
    start_job(again)
    report = wait_for_job(again).result
    assert report is not None and [path.name for path in workspace.models.iterdir()] == ["mean"], "what was half is swept away"
    heard = ask_plainly(workspace.models / "mean", "Your name?")
    assert heard["answer"] == report["verification"]["answers"]["identity-en-0"] and heard["modules"] == []


def test_models_add_converts_an_internlm2_folder_and_runs_none_of_its_code(workspace: Workspace, tmp_path: Path) -> None:
    source = write_internlm2(tmp_path / "internlm2-chat-tiny", rope={"type": "dynamic", "factor": 2.0})
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "studio.cli", "models", "add", str(source), "--json"], cwd=CHECKOUT, capture_output=True,
                          text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    made = Path(json.loads(done.stdout)["folder"])
    assert made == workspace.models / "internlm2-chat-tiny" and time.monotonic() - began < 200
    heard = ask_plainly(made, "Who are you?")
    wanted = published_logits(source, [5, 6, 7, 8])
    assert max(abs(one - two) for row, line in zip(heard["logits"], wanted.tolist(), strict=True)
               for one, two in zip(row, line, strict=True)) < 1e-5
    assert not (source / "executed").exists()
    assert read_json(made / "model.json")["converted_from"] == "internlm2"
