"""Every preset trains: each is put on the tiny model and makes two updates, in this process, as a job would."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from core.recipe import Recipe, change_recipe, presets
from core.recipe.files import load_preset
from core.runs import Run
from core.train.create import create_run
from core.workspace import Workspace, read_jsonl
from tests.core.conftest import save_tiny_dataset

UPDATES = 2
ROOT = Path(__file__).resolve().parents[2]


def on_tiny_model(recipe: Recipe, model: Path) -> Recipe:
    """The preset's method, number format, data settings and schedule, with the tiny model's size and one process on the processor.

    GPUs, ZeRO and offload need GPUs: they are put to one process here, and tried with several in the engine's own tests.
    """
    changes = {"model.source": str(model), "data.sources": [{"dataset": "tiny"}], "schedule.updates": UPDATES, "snapshots.count": 1,
               "data.max_length": min(recipe.data.max_length, 256), "schedule.effective_batch": min(recipe.schedule.effective_batch, 8),
               "device.kind": "cpu", "device.gpus": "auto", "device.zero": 0, "device.offload": "none"}
    return change_recipe(recipe, changes)


def test_every_preset_trains(workspace: Workspace, tiny_model: Path) -> None:
    from core.jobs.worker import Recorder
    from core.train.worker import train_job

    save_tiny_dataset(workspace)
    seen = []
    for preset in presets():
        recipe = on_tiny_model(preset.recipe, tiny_model)
        assert (recipe.method, recipe.model.quantization) == (preset.recipe.method, preset.recipe.model.quantization)
        run = Run(create_run(workspace, recipe, preset.name).folder)
        train_job(workspace, run, Recorder(run, run.state()))
        losses = [record["loss"] for record in read_jsonl(run.folder / "metrics.jsonl")]
        assert len(losses) == UPDATES and all(0 < loss < 20 for loss in losses), preset.name
        assert [saved.step for saved in run.checkpoints()] == [UPDATES], preset.name
        assert any(run.checkpoints()[0].folder.glob("*.safetensors")), preset.name
        seen.append(preset.name)
    assert len(seen) == len(set(seen)) == 22


@pytest.mark.parametrize(("name", "gigabytes"), [("qlora-8gb", 8), ("qlora-16gb", 16), ("qlora-24gb", 24)])
def test_presets_for_a_size_of_gpu_quantise_and_recompute(name: str, gigabytes: int) -> None:
    recipe = load_preset(name)
    assert recipe.model.quantization == "nf4" and recipe.device.checkpointing == "on" and str(gigabytes) in name


def test_the_documentation_lists_presets_and_findings() -> None:
    text = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    for preset in presets():
        assert f"| `{preset.name}` | {preset.title} | {preset.summary} |" in text, preset.name
    found = {code for path in (ROOT / "core/recipe").glob("*.py")
             for code in re.findall(r'Finding\("([a-z0-9_]+)"', path.read_text(encoding="utf-8"))}
    assert len(found) >= 35 and not [code for code in sorted(found) if f"`{code}`" not in text]
