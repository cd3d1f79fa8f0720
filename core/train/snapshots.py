"""Saving a step: the adapter as a plain PEFT folder, and what a resume needs beside it.

Everything is safetensors and JSON; nothing that is read back can run code.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from core.errors import StudioError
from core.workspace import fill_folder, write_json

TEMPLATE_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json",
                  "generation_config.json", "tokenizer.model", "added_tokens.json")
_RESUME_KEPT = 2


def step_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"{step:06d}"


def save_snapshot(run: Path, step: int, model: PeftModel | PreTrainedModel, base: Path) -> Path:
    """Save the model's trained part as `checkpoints/<step>/`; the tokenizer and template of its base travel with it."""
    target = step_folder(run, step)
    if target.exists():  # a resumed run passes steps that were saved already, with the same values
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with fill_folder(target) as folder:
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        for name in TEMPLATE_FILES:
            if (base / name).exists():
                _link_or_copy(base / name, folder / name)
    return target


def _link_or_copy(source: Path, target: Path) -> None:
    """A hard link where the disk allows: the tokenizer of every snapshot is the same file."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def save_resume_state(run: Path, step: int, parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Keep the exact values and optimizer moments of a step, for the last two steps only."""
    tensors = {}
    for name, parameter in parameters.items():
        tensors[f"parameter.{name}"] = parameter.detach().contiguous()
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}.{name}"] = value.detach().contiguous()
    parent = run / "resume"
    parent.mkdir(exist_ok=True)
    if not (parent / f"{step:06d}").exists():
        with fill_folder(parent / f"{step:06d}") as folder:
            save_file(tensors, folder / "state.safetensors")
            write_json(folder / "step.json", {"step": step})
    for old in sorted(parent.glob("[0-9]*"))[:-_RESUME_KEPT]:
        shutil.rmtree(old)


def load_resume_state(run: Path, parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """Restore the newest kept step into `parameters` and `optimizer`; returns the step, 0 when there is none.

    Raises:
        StudioError: the kept state belongs to other parameters.
    """
    kept = sorted((run / "resume").glob("[0-9]*"))
    if not kept:
        return 0
    tensors = load_file(kept[-1] / "state.safetensors")
    with torch.no_grad():
        for name, parameter in parameters.items():
            saved = tensors.get(f"parameter.{name}")
            if saved is None or saved.shape != parameter.shape:
                raise StudioError("The saved state of step {step} does not fit this recipe: {name} differs.",
                                  "A run resumes with its own frozen recipe; start a new run to change it.",
                                  step=int(kept[-1].name), name=name)
            parameter.copy_(saved)
            optimizer.state[parameter] = {key: tensors[f"{key}.{name}"].clone() for key in ("step", "exp_avg", "exp_avg_sq")}
    return int(json.loads((kept[-1] / "step.json").read_text())["step"])
