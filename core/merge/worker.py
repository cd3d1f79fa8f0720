"""The work of a `merge` job: combine, merge, verify, and only then give the model its name."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from core.chat.stacked import Adapter
from core.data.library import texts_of
from core.data.probe_sets import quick_set
from core.errors import StudioError
from core.jobs.folder import Job
from core.jobs.worker import Recorder
from core.judge.probes import probes_of
from core.judge.questions import documents_of
from core.merge.combine import Combination, combine
from core.merge.quantized import Requantizer
from core.merge.request import MergeRequest, Sources, find_sources
from core.merge.verify import Verification, verify_merge
from core.merge.weights import merge_weights
from core.models.catalogue import new_model_folder
from core.models.header import read_header
from core.models.load import choose_device, choose_dtype
from core.runs import Run
from core.words import Text
from core.workspace import Workspace, check_name, fill_folder, read_json, write_json

_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def merge_job(workspace: Workspace, job: Job, recorder: Recorder) -> dict[str, Any]:
    """Merge what the spec asks for into `models/<spec["name"]>`.

    Raises:
        StudioError: the name is taken, a model has no adapter, the disk is full, or the merged model fails its verification.
    """
    request = MergeRequest.from_spec(job.spec())
    made = _made_before(workspace, request.name, job)
    if made is not None:
        return made
    target = new_model_folder(workspace, request.name)
    sources = find_sources(workspace, request)
    run, base = sources.runs[0], sources.models[0].base
    recipe, device = run.recipe(), choose_device(run.recipe().device.kind)
    compute = choose_dtype(recipe.model.dtype, device)
    combined = job.folder / "combined"
    try:
        adapter, combination = _adapter(request, sources, combined, recorder)
        with fill_folder(target) as folder:
            changed = merge_weights(base, adapter, folder, request.dtype,
                                    lambda done, total: recorder.progress(done, total, Text("merging the weights")),
                                    max_shard_bytes=request.max_shard_bytes,
                                    requantizer=Requantizer(base, compute) if request.onto == "quantized" else None)
            recorder.progress(0, 1, Text("comparing the merged model with the adapter"))
            stored = _STORED[read_header(folder).dtype]
            probes = _probes(workspace, sources.runs, read_header(base).has_chat_template)
            verification = verify_merge(
                base, adapter, folder, probes, changed, stored, sources.models[0].system,
                recipe.probes.max_new_tokens, device, quantization=recipe.model.quantization, onto=request.onto,
                trained_dtype=str(compute).removeprefix("torch."))
            report = _report(request, sources, stored, verification, combination)
            _refuse_if_red(job, verification, report)
            write_json(folder / "merge.json", {**report, "job": job.id})
    finally:
        shutil.rmtree(combined, ignore_errors=True)
    recorder.progress(1, 1, Text("comparing the merged model with the adapter"))
    return report


def _made_before(workspace: Workspace, name: str, job: Job) -> dict[str, Any] | None:
    """The report of this very job when it was killed between giving the model its name and saying that it had ended."""
    try:
        report = read_json(workspace.models / check_name(name, "model") / "merge.json")
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) and report.get("job") == job.id else None


def _adapter(request: MergeRequest, sources: Sources, folder: Path, recorder: Recorder) -> tuple[Adapter, Combination | None]:
    """The adapter to merge: the one that was named, or several as one."""
    if len(sources.models) == 1:
        model = sources.models[0]
        return Adapter("adapter", model.adapter, model.strength * request.strength), None
    recorder.progress(0, 1, Text("combining the adapters"))
    shutil.rmtree(folder, ignore_errors=True)  # of a job that was killed and started again
    combination = combine([Adapter(model.name, model.adapter, model.strength) for model in sources.models], request.weights, request.how,
                          folder, density=request.density, seed=request.seed)
    if warning := combination.warning():
        recorder.event("combined", warning=warning.to_json())
    return Adapter("combined", folder, request.strength), combination


def _probes(workspace: Workspace, runs: list[Run], can_chat: bool) -> list[dict[str, Any]]:
    """The probes of all runs, each question once; those of the first run keep their ids. Who cannot chat goes on with documents."""
    found: list[dict[str, Any]] = []
    for run in dict.fromkeys(runs):
        dataset, probes = probes_of(workspace, run)
        for probe in quick_set(probes) if can_chat else documents_of(dataset):  # as many answers as show whether two models are one
            if any(texts_of(probe) == texts_of(known) for known in found):
                continue
            taken = any(probe["id"] == known["id"] for known in found)
            found.append(probe | {"id": f"{run.id}:{probe['id']}"} if taken else probe)
    return found


def _report(request: MergeRequest, sources: Sources, stored: str, verification: Verification,
            combination: Combination | None) -> dict[str, Any]:
    """`merge.json`."""
    def name(index: int) -> str:
        return f"{sources.runs[index].id}@{int(sources.models[index].adapter.name)}"

    recipe = sources.runs[0].recipe()
    report: dict[str, Any] = {
        "name": request.name, "model": name(0), "strength": request.strength, "base": recipe.model.source, "dtype": stored,
        "created": time.time(), "onto": request.onto, "trained_over": recipe.model.quantization}
    if combination is None:
        report["strength"] *= sources.models[0].strength
    else:
        warning = combination.warning()
        report["combined"] = combination.model_dump() | {
            "models": [{"model": name(index), "strength": model.strength, "weight": weight}
                       for index, (model, weight) in enumerate(zip(sources.models, combination.weights, strict=True))],
            "warning": warning.to_json() if warning else None}
    return report | {"verification": verification.model_dump()}


def _refuse_if_red(job: Job, verification: Verification, report: dict[str, Any]) -> None:
    """Raises StudioError when the model must not be kept; the comparison stays in the job's folder."""
    flags = verification.red_flags()
    if flags:
        write_json(job.folder / "verification.json", report)
        raise StudioError("The merged model was not kept: {flag}.", "The comparison is in {file}; merge again, or with --dtype float32.",
                          flag=flags[0], file=job.folder / "verification.json")
