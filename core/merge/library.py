"""The merged models of a workspace, starting a merge, and what the last one found. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from core.data.store import free_name
from core.errors import StudioError
from core.jobs.active import active_jobs, newest_job
from core.jobs.folder import Job
from core.jobs.launch import start_job
from core.jobs.once import one_at_a_time
from core.merge.request import DTYPES as DTYPES
from core.merge.request import Dtype, MergeRequest, find_sources, merge_job_for
from core.models.catalogue import find_base, new_model_folder
from core.models.delete import delete_model
from core.models.header import ModelHeader, read_header, weight_files
from core.recipe.memory import RUNTIME_BYTES
from core.runs import Run, list_runs
from core.workspace import Workspace, check_name, read_json

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class Merged:
    """A merged model: its folder and its `merge.json`."""

    folder: Path
    report: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def can_chat(self) -> bool:
        """False for a base model that was trained on documents: it has no chat template."""
        try:
            return read_header(self.folder).has_chat_template
        except StudioError:
            return True  # a damaged folder is none of these; whoever opens it is told what is wrong

    @property
    def run(self) -> str:
        return str(self.report["model"]).partition("@")[0]

    @property
    def step(self) -> int:
        return int(str(self.report["model"]).partition("@")[2])

    @property
    def strength(self) -> float:
        return float(self.report["strength"])

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))


def merged_models(workspace: Workspace, run: str | None = None) -> list[Merged]:
    """The merged models, newest first; of one run when its id is given. Folders with a broken report are left out."""
    found = []
    for path in workspace.models.glob("*/merge.json"):
        if path.parent.name.startswith("."):
            continue  # half written, or half deleted
        try:
            merged = Merged(path.parent, read_json(path))
            if run in (None, merged.run) and merged.step >= 0 and merged.report["verification"]:
                found.append(merged)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return sorted(found, key=lambda merged: -float(merged.report.get("created", 0)))


@dataclass(frozen=True)
class MergePlan:
    """What a merge will write, known before it starts."""

    base: ModelHeader
    dtype: str
    weight_bytes: int
    free_bytes: int
    memory_bytes: float
    free_memory_bytes: int
    files: int

    @property
    def fits(self) -> bool:
        return self.weight_bytes < self.free_bytes

    @property
    def fits_memory(self) -> bool:
        return self.memory_bytes < self.free_memory_bytes


def plan_merge(workspace: Workspace, run: Run, dtype: str = "auto", max_shard_bytes: int | None = None) -> MergePlan:
    """Size and number format of the model that a merge of `run` will make, and the memory it takes.

    The merging itself holds one tensor at a time. It is the check that needs the model in memory, one copy of it.

    Raises:
        StudioError: the base model is gone or damaged.
    """
    base = find_base(workspace, run.recipe().model.source)
    header = read_header(base)
    stored = _STORED.get(header.dtype, "float32") if dtype == "auto" else dtype
    size = header.weight_bytes if dtype == "auto" else header.parameters * _BYTES[dtype]
    memory = header.parameters * _BYTES[stored] + RUNTIME_BYTES
    # About: a file ends before the tensor that would not fit any more.
    files = max(1, -(-size // max_shard_bytes)) if max_shard_bytes else len(weight_files(base))
    return MergePlan(header, stored, size, workspace.free_bytes(), memory, psutil.virtual_memory().available, files)


def reference_of(run: Run, step: int, strength: float = 1.0) -> str:
    """How `find_model` and the command line call this step: `RUN@12`, `RUN@12*0.5`."""
    return f"{run.id}@{step}" + ("" if strength == 1.0 else f"*{strength:g}")


def others_to_combine(workspace: Workspace, run: Run, step: int) -> list[str]:
    """Every other snapshot over the same base model, as `RUN@STEP`: those of this run first, latest steps first."""
    source = run.recipe().model.source
    found = []
    for other in sorted(list_runs(workspace), key=lambda other: other.id != run.id):  # stable: then the newest runs
        try:
            recipe = other.recipe()
        except (StudioError, OSError):
            continue  # a run whose recipe is damaged
        if recipe.model.source == source and recipe.method.kind == "lora":
            found += [reference_of(other, checkpoint.step) for checkpoint in reversed(other.checkpoints())
                      if (other.id, checkpoint.step) != (run.id, step)]
    return found


def suggest_name(workspace: Workspace, run: Run) -> str:
    """A free name for a model merged from `run`: its dataset's."""
    return free_name(workspace.models, run.recipe().data.sources[0].dataset)


def start_merge(workspace: Workspace, run: Run, step: int, name: str, *, strength: float = 1.0, dtype: Dtype = "auto") -> Job:
    """Start the merge of one snapshot, or give the one that is making a model of this name.

    Raises:
        StudioError: the name is unusable or taken, the step was not saved, nothing would be merged, or the disk is too full.
    """
    return start_request(workspace, MergeRequest((reference_of(run, step, strength),), name, dtype=dtype))


def start_request(workspace: Workspace, request: MergeRequest) -> Job:
    """Start a merge, or give the one that is making a model of this name.

    Raises:
        StudioError: see `core.merge.request.find_sources`; or the disk is too full.
    """
    with one_at_a_time(workspace, "merge"):
        for job, state in active_jobs(workspace):
            if state.kind == "merge" and job.spec()["name"] == request.name:
                return job
        new_model_folder(workspace, request.name)
        sources = find_sources(workspace, request)
        plan = plan_merge(workspace, sources.runs[0], request.dtype)
        if not plan.fits:
            raise StudioError("The merged model needs {needed} GB of disk and {free} GB are free.", "Free some space, or choose bfloat16.",
                              needed=round(plan.weight_bytes / 1e9, 2), free=round(plan.free_bytes / 1e9, 2))
        job = merge_job_for(workspace, request)
        start_job(job)
        return job


def newest_merge(workspace: Workspace) -> Job | None:
    """The merge that was started last, whatever has become of it."""
    return newest_job(workspace, "merge")


def failed_verification(job: Job) -> dict[str, Any] | None:
    """The report of a merge that was not kept; None when it failed before there was one."""
    path = job.folder / "verification.json"
    return read_json(path) if path.exists() else None


def usage_snippet(folder: Path, question: str, system: str | None = None, can_chat: bool = True) -> str:
    """Python that asks a merged model a question with transformers alone; one without a chat template goes on with a text."""
    begin = f"""from transformers import AutoModelForCausalLM, AutoTokenizer

folder = {json.dumps(str(folder), ensure_ascii=False)}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
"""
    end = """output = model.generate(**inputs, max_new_tokens=60, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
"""
    if not can_chat:
        return f"""{begin}
inputs = tokenizer({json.dumps(question, ensure_ascii=False)}, return_tensors="pt")
{end}"""
    messages = ([{"role": "system", "content": system}] if system is not None else []) + [{"role": "user", "content": question}]
    return f"""{begin}
messages = {json.dumps(messages, ensure_ascii=False)}
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
{end}"""


def delete_merged(workspace: Workspace, name: str) -> None:
    """Move a merged model to the trash; its run and checkpoints stay.

    Raises:
        StudioError: there is none of this name, or something needs it.
    """
    folder = workspace.models / check_name(name, "model")
    if not (folder / "merge.json").exists():
        raise StudioError("No merged model is called {name}.", "`sweetspot models list` shows the models that are here.", name=name)
    delete_model(workspace, name)
