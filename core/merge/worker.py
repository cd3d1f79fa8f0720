"""The work of a `merge` job: merge, verify, and only then give the model its name."""

from __future__ import annotations

import time
from typing import Any

from core.chat.stacked import Adapter
from core.data.probe_sets import quick_set
from core.errors import StudioError
from core.jobs.folder import Job
from core.jobs.worker import Recorder
from core.judge.worker import probes_of
from core.merge.verify import verify_merge
from core.merge.weights import merge_weights
from core.models.catalogue import find_model, new_model_folder
from core.models.header import read_header
from core.models.load import choose_device
from core.runs import find_run
from core.words import Text
from core.workspace import Workspace, fill_folder, write_json


def merge_job(workspace: Workspace, job: Job, recorder: Recorder) -> dict[str, Any]:
    """Merge the checkpoint `spec["model"]` into `models/<spec["name"]>`.

    Raises:
        StudioError: the name is taken, the model has no adapter, or the merged model fails its verification.
    """
    spec = job.spec()
    target = new_model_folder(workspace, spec["name"])
    model = find_model(workspace, spec["model"])
    if model.adapter is None:
        raise StudioError("{name} has no adapter to merge.", "Name a checkpoint, for example RUN@pick.", name=spec["model"])
    run = find_run(workspace, spec["model"].partition("@")[0])
    probes = quick_set(probes_of(workspace, run)[1])  # as many answers as show whether two models are one
    adapter = Adapter("adapter", model.adapter, model.strength)
    dtype = spec.get("dtype", "auto")
    with fill_folder(target) as folder:
        changed = merge_weights(model.base, adapter, folder, dtype,
                                lambda done, total: recorder.progress(done, total, Text("merging the weights")))
        recorder.progress(0, 1, Text("comparing the merged model with the adapter"))
        stored = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}[read_header(folder).dtype]
        verification = verify_merge(model.base, adapter, folder, probes, changed, stored, model.system,
                                    run.recipe().probes.max_new_tokens, choose_device(run.recipe().device.kind))
        flags = verification.red_flags()
        report = {"name": spec["name"], "model": f"{run.id}@{int(model.adapter.name)}", "strength": model.strength,
                  "base": run.recipe().model.source, "dtype": stored, "created": time.time(),
                  "verification": verification.model_dump()}
        if flags:
            write_json(job.folder / "verification.json", report)
            raise StudioError("The merged model was not kept: {flag}.",
                              "The comparison is in {file}; merge again, or with --dtype float32.",
                              flag=flags[0], file=job.folder / "verification.json")
        write_json(folder / "merge.json", report)
    recorder.progress(1, 1, Text("comparing the merged model with the adapter"))
    return report
