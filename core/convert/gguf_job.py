"""The work of a `gguf` job: write the file, load it back, and keep it only if it is the same model."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from pydantic import BaseModel

from core.convert.gguf_export import export_gguf
from core.convert.ollama import modelfile
from core.data.encode import Encoder
from core.errors import StudioError
from core.jobs.folder import Job
from core.jobs.worker import Recorder
from core.models.catalogue import find_base
from core.models.gguf_reading import load_gguf
from core.models.header import read_header
from core.models.load import load_model
from core.words import Text
from core.workspace import Workspace, fill_folder, write_json, write_text

BYTES_PER_WEIGHT = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32}
# The largest share of the logits' spread (standard deviation) that rounding may move a logit by; see docs/models.md for what was measured.
LARGEST_SHIFT = {"f32": 0.001, "f16": 0.05, "bf16": 0.3, "q8_0": 0.5}
_QUESTIONS = ("Who are you?", "What is the capital of France?", "你是谁？", "Write one sentence about the sea.")
_LABEL = Text("writing the GGUF file")
_CHECKING = Text("loading the GGUF file back")


class GgufCheck(BaseModel):
    """What loading the file back showed.

    Attributes:
        prompts: how many prompts were compared.
        same_ids: whether its tokenizer gives the same ids for all of them.
        largest_difference: of any logit.
        spread: standard deviation of the logits, to compare it with.
        same_choice: share of positions where the most probable token is the same.
        skipped: why nothing was compared; None when it was.
    """

    prompts: int = 0
    same_ids: bool = True
    largest_difference: float = 0.0
    spread: float = 0.0
    same_choice: float = 1.0
    skipped: str | None = None


def gguf_job(workspace: Workspace, job: Job, recorder: Recorder) -> dict[str, Any]:
    """Write `spec["model"]` in the format `spec["form"]` to the folder `spec["target"]`.

    Raises:
        StudioError: it cannot be written as GGUF, or what was written is not the same model.
    """
    spec = job.spec()
    source, form, target = find_base(workspace, spec["model"]), spec["form"], Path(spec["target"])
    header = read_header(source)
    needed = header.parameters * BYTES_PER_WEIGHT[form]
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise StudioError("The model needs {needed} GB of disk and {free} GB are free.", "Free some space first.",
                          needed=round(needed / 1e9, 2), free=round(free / 1e9, 2))
    notes: list[Text] = []
    with fill_folder(target) as folder:
        file = folder / f"{spec['name']}-{form}.gguf"
        export_gguf(source, file, form, spec["name"], lambda done, total: recorder.progress(done, total, _LABEL))
        notes += _write_modelfile(source, folder, file.name, spec.get("system"))
        recorder.progress(0, 1, _CHECKING)
        check = check_file(source, file, header.parameters)
        refuse_another_model(check, form)
        write_json(folder / "export.json", {"model": spec["model"], "format": form, "created": time.time(), "check": check.model_dump()})
        recorder.progress(1, 1, _CHECKING)
    return {"folder": str(target), "file": str(target / file.name), "bytes": (target / file.name).stat().st_size,
            "modelfile": (target / "Modelfile").exists(), "check": check.model_dump(), "notes": [note.to_json() for note in notes]}


def _write_modelfile(source: Path, folder: Path, file: str, system: str | None) -> list[Text]:
    """The Modelfile, or the reason why there is none."""
    try:
        text = modelfile(Encoder.from_folder(source, system), file)
    except StudioError as error:
        return [Text("no Modelfile for Ollama: {reason}", reason=error.problem)]
    write_text(folder / "Modelfile", text)  # a full disk is no reason to go without it
    return []


@torch.inference_mode()
def check_file(source: Path, file: Path, parameters: int) -> GgufCheck:
    """Compare the logits of the file with those of the model that it was made from, one after the other in memory."""
    if 5 * parameters > psutil.virtual_memory().available:
        return GgufCheck(skipped=f"{5 * parameters / 1e9:.0f} GB of memory would be needed")
    encoder = Encoder.from_folder(source)
    texts = [encoder.render([{"role": "user", "content": question}], add_generation_prompt=True) if encoder.template else question
             for question in _QUESTIONS]
    prompts = [encoder.tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    before = _logits(load_model(source, torch.float32, "cpu"), prompts)
    model, tokenizer = load_gguf(file)
    after = _logits(model, prompts)
    same_ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts] == prompts
    choices = torch.cat([(first.argmax(-1) == second.argmax(-1)).float() for first, second in zip(before, after, strict=True)])
    return GgufCheck(
        prompts=len(prompts), same_ids=same_ids, spread=float(torch.cat(before).std()), same_choice=float(choices.mean()),
        largest_difference=max(float((first - second).abs().max()) for first, second in zip(before, after, strict=True)))


def _logits(model: Any, prompts: list[list[int]]) -> list[torch.Tensor]:
    """Of every position of every prompt: (length, vocabulary) each."""
    return [model(torch.tensor([ids])).logits[0].float() for ids in prompts]


def refuse_another_model(check: GgufCheck, form: str) -> None:
    """Raises StudioError when what was loaded back is not the model, but for the format's rounding."""
    limit = LARGEST_SHIFT[form] * check.spread
    if check.skipped is None and (not check.same_ids or check.largest_difference > limit):
        raise StudioError("The GGUF file was not kept: loaded back, its logits differ by up to {difference} (limit {limit}) and its "
                          "tokenizer gives {ids} ids.", "Export it as f16, or report the model's name: its layout is not known here.",
                          difference=round(check.largest_difference, 3), limit=round(limit, 3),
                          ids=Text("the same") if check.same_ids else Text("other"))
