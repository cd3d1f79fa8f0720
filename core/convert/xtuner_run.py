"""XTuner's checkpoints as a run of the workspace, so that they can be judged, chatted with and merged like any other.

Work of a `convert-xtuner` job: each iter_N.pth becomes `runs/<id>/checkpoints/<N>/`, an ordinary PEFT folder.
"""

from __future__ import annotations

import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from core.convert.xtuner_adapter import XtunerCheckpoint, find_checkpoints, read_xtuner, write_adapter
from core.errors import StudioError
from core.jobs.folder import Job, JobState, new_job_id
from core.jobs.worker import Recorder
from core.machine import package_versions
from core.models.catalogue import find_base
from core.recipe.files import change_recipe, dump_recipe
from core.recipe.schema import Recipe
from core.recipe.xtuner import import_config, import_file
from core.train.snapshots import TEMPLATE_FILES
from core.words import Text
from core.workspace import Workspace, fill_folder, write_json, write_text

# What XTuner's published LoRA and QLoRA configs of language models say; used where no config says it.
USUAL_ALPHA = 16
_LABEL = Text("converting XTuner's checkpoints")


def convert_job(workspace: Workspace, job: Job, recorder: Recorder) -> dict[str, Any]:
    """Make a run of the checkpoints in `spec["source"]`, over the base model `spec["base"]`.

    Raises:
        StudioError: a checkpoint is hostile, damaged or no adapter, or it does not fit the base.
    """
    spec = job.spec()
    base = find_base(workspace, spec["base"])
    files = find_checkpoints(Path(spec["source"]))
    recorder.progress(0, len(files), _LABEL)
    first = read_xtuner(files[0])
    recipe, notes = _recipe_of(first, spec)
    settings = {"alpha": recipe.method.alpha, "dropout": recipe.method.dropout, "rslora": recipe.method.rslora}
    run = workspace.runs / new_job_id("", spec["name"])
    with fill_folder(run) as folder:
        targets, steps = _write_checkpoints(files, base, spec["base"], settings, folder, recorder)
        _write_run(folder, spec, change_recipe(recipe, {"method.targets": targets}, spec["name"]), steps)
    return {"run": run.name, "steps": steps, "rank": recipe.method.rank, "alpha": recipe.method.alpha,
            "notes": [note.to_json() for note in notes]}


def _write_checkpoints(files: list[Path], base: Path, base_name: str, settings: dict[str, Any], folder: Path,
                       recorder: Recorder) -> tuple[list[str], list[int]]:
    steps: list[int] = []
    targets: list[str] = []
    for number, file in enumerate(files):
        checkpoint = read_xtuner(file)
        target = folder / "checkpoints" / f"{checkpoint.step:06d}"
        target.parent.mkdir(parents=True, exist_ok=True)
        with fill_folder(target) as filled:
            targets = write_adapter(checkpoint, base, base_name, settings, filled)
            for name in TEMPLATE_FILES:
                if (base / name).exists():
                    shutil.copyfile(base / name, filled / name)
        steps.append(checkpoint.step)
        recorder.progress(number + 1, len(files), _LABEL)
        if recorder.stop_requested():
            break
    return targets, steps


def _recipe_of(checkpoint: XtunerCheckpoint, spec: dict[str, Any]) -> tuple[Recipe, list[Text]]:
    """What is known of the training, as a recipe, and what had to be assumed."""
    notes: list[Text] = []
    recipe = Recipe()
    alpha = spec.get("alpha")
    if spec.get("config"):
        recipe = import_file(Path(spec["config"])).recipe
    elif checkpoint.config:
        try:
            recipe = import_config(checkpoint.config, Path(spec["source"]).name).recipe
        except StudioError as error:
            notes.append(Text("the config inside the checkpoint was not read: {reason}", reason=error.problem))
    says_alpha = recipe != Recipe() and recipe.method.kind == "lora"
    if alpha is None and not says_alpha:
        alpha = USUAL_ALPHA
        notes.append(Text("no config says alpha: {alpha} is assumed, as XTuner's own configs have it; --alpha names another", alpha=alpha))
    changes: dict[str, Any] = {"model.source": spec["base"], "method.kind": "lora", "method.rank": checkpoint.rank, "title": spec["name"]}
    if alpha is not None:
        changes["method.alpha"] = int(alpha)
    if spec.get("data"):
        changes["data.sources"] = [{"dataset": spec["data"]}]
    if _template_of(checkpoint) == "default":
        notes.append(Text("it was trained with XTuner's default template (<|User|>: and <|Bot|>:), and is asked here with the base "
                          "model's own: its answers may be worse than in XTuner"))
    return change_recipe(recipe, changes, spec["name"]), notes


def _template_of(checkpoint: XtunerCheckpoint) -> str:
    """The last word of `prompt_template = 'xtuner.utils.PROMPT_TEMPLATE.default'`; empty where the config does not say."""
    for line in checkpoint.config.splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "prompt_template":
            return value.strip().strip("'\"").rsplit(".", 1)[-1]
    return ""


def _write_run(folder: Path, spec: dict[str, Any], recipe: Recipe, steps: list[int]) -> None:
    """The files of a finished run beside its checkpoints."""
    write_text(folder / "recipe.yaml", dump_recipe(recipe))
    sources = [{"dataset": source.dataset, "groups": source.groups, "weight": source.weight} for source in recipe.data.sources]
    write_json(folder / "dataset.json", {"sources": sources, "seed": recipe.schedule.seed})
    write_json(folder / "environment.json", {
        "versions": package_versions(), "python": sys.version.split()[0], "system": platform.platform(), "device": "cpu", "processes": 1,
        "gpus": [], "imported_from": spec["source"]})
    write_json(folder / "spec.json", {"kind": "train", "device": "cpu", "name": spec["name"], "updates": steps[-1], "snapshots": steps,
                                      "imported": "xtuner"})
    now = time.time()
    Job(folder).write_state(JobState(state="finished", kind="train", created=now, started=now, ended=now))
