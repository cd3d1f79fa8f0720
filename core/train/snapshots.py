"""Saving a step: the adapter as a plain PEFT folder, and what a resume needs beside it.

Everything is safetensors and JSON; nothing that is read back can run code.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from core.train.batches import Fit
from core.train.step import Step
from core.workspace import fill_folder, read_json, write_json

Tensors = Iterable[tuple[str, torch.Tensor]]

TEMPLATE_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json",
                  "generation_config.json", "tokenizer.model", "added_tokens.json")
_RESUME_KEPT = 2
_FILE_BYTES = 4e9


def step_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"{step:06d}"


def save_snapshot(run: Path, step: int, model: PeftModel | PreTrainedModel, weights: Tensors, base: Path) -> Path:
    """Save what was trained as `checkpoints/<step>/`; the tokenizer and template of its base travel with it.

    Args:
        weights: name and whole value of each trained parameter, as the model calls them; read one by one.
        model: says how its folder looks; its own weights may be divided among processes.
    """
    target = step_folder(run, step)
    held = {name: value.contiguous() for name, value in weights}
    if target.exists():  # a resumed run passes steps that were saved already, with the same values
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with fill_folder(target) as folder:
        model.save_pretrained(folder, state_dict=held)
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


def save_resume_state(run: Path, step: int, state: Tensors, fit: Fit) -> None:
    """Keep the exact values and optimizer moments of a step, for the last two steps only.

    Args:
        state: from `Step.state`; read one by one, and written in files of about 4 GB.
        fit: how the micro-batches were cut, which decides how sums are rounded.
    """
    parent = run / "resume"
    parent.mkdir(exist_ok=True)
    if (parent / f"{step:06d}").exists():
        for _ in state:  # gathered by all ranks together
            pass
    else:
        with fill_folder(parent / f"{step:06d}") as folder:
            for number, tensors in enumerate(_in_files(state)):
                save_file(tensors, folder / f"state-{number:04d}.safetensors")
            write_json(folder / "step.json", {"step": step, "fit": asdict(fit)})
    for old in sorted(parent.glob("[0-9]*"))[:-_RESUME_KEPT]:
        shutil.rmtree(old)


def _in_files(state: Tensors) -> Iterator[dict[str, torch.Tensor]]:
    held: dict[str, torch.Tensor] = {}
    size = 0
    for name, value in state:
        held[name] = value.contiguous()
        size += value.numel() * value.element_size()
        if size > _FILE_BYTES:
            yield held
            held, size = {}, 0
    if held:
        yield held


def newest_resume_state(run: Path) -> Path | None:
    """The folder to go on from; None for the beginning."""
    kept = sorted((run / "resume").glob("[0-9]*"))
    return kept[-1] if kept else None


def restore(folder: Path, into: Step) -> tuple[int, Fit]:
    """Put a kept step into what computes the updates; returns its number and how the micro-batches were cut.

    Raises:
        StudioError: the kept state belongs to other parameters.
    """
    about = read_json(folder / "step.json")
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    into.restore(tensors, about["step"])
    return about["step"], Fit(**about["fit"])
