"""Adding a model to the workspace: from a folder, the hub, ModelScope or a GGUF file. Code of a model's own is never run.

A folder of this machine is linked, not copied, unless a copy is asked for; so is a download, which stays in the cache of the library
that fetched it and goes on where it was when it was broken off. A model gets its name in `models/` only when it is whole.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.data.store import free_name
from core.errors import StudioError
from core.jobs.folder import Job, create_job, new_job_id
from core.models.catalogue import HUB, is_folder, is_hub_id, new_model_folder, refuse_two_meanings
from core.models.check import check_model
from core.models.gguf_reading import as_plain_model, is_gguf, load_gguf, save_widened
from core.models.header import read_header
from core.words import Text
from core.workspace import Workspace, fill_folder, slug, write_json

if TYPE_CHECKING:
    from core.jobs.worker import Recorder

MODELSCOPE = "modelscope:"
_SMALL_FILES = ("*.json", "*.jinja", "tokenizer*", "*.txt")
_FETCHING = Text("fetching the model")
_READING = Text("reading the GGUF file")


@dataclass(frozen=True)
class Origin:
    """Where a model is to come from: its kind, and its folder, file or id."""

    kind: Literal["folder", "gguf", "hub", "modelscope"]
    place: str

    @property
    def name(self) -> str:
        """What to call it, unless the user says otherwise."""
        return slug(Path(self.place).name.removesuffix(".gguf").removesuffix(".GGUF")) or "model"


def find_origin(source: str) -> Origin:
    """What a user means by `source`: a folder, a .gguf file, `org/name` of the hub, `modelscope:org/name`.

    Raises:
        StudioError: nothing is there, or it may mean two things.
    """
    if source.startswith(MODELSCOPE) and is_hub_id(source.removeprefix(MODELSCOPE)):
        return Origin("modelscope", source.removeprefix(MODELSCOPE))
    if source.startswith(HUB) and is_hub_id(source.removeprefix(HUB)):
        return Origin("hub", source.removeprefix(HUB))
    refuse_two_meanings(source)
    try:
        path = Path(source).expanduser()
        if path.is_file():
            if is_gguf(path):
                return Origin("gguf", str(path.resolve()))
            raise StudioError("{path} is no GGUF file.", "Choose a file that ends in .gguf, or the model's folder.", path=path)
    except (OSError, ValueError, RuntimeError):
        path = Path(source)
    if source.strip() and is_folder(path):
        return Origin("folder", str(path.resolve()))
    if is_hub_id(source):
        return Origin("hub", source)
    raise StudioError("There is no model at {source}.", "Name a folder, a .gguf file, a hub id such as Qwen/Qwen2.5-0.5B-Instruct, or "
                      "modelscope:org/name.", source=source[:200])


def add_model_job(workspace: Workspace, source: str, name: str | None = None, copy: bool = False) -> Job:
    """A job, not started, that adds the model `source` as `models/<name>`.

    Raises:
        StudioError: nothing is at `source`, what is there is damaged, or the name is taken.
    """
    origin = find_origin(source)
    if origin.kind == "folder":
        read_header(Path(origin.place))  # what is wrong with it is said at once
    target = name or free_name(workspace.models, origin.name)
    new_model_folder(workspace, target)
    found = look_on_hub(origin.place) if origin.kind == "hub" else {}
    return create_job(workspace.jobs / new_job_id("add-model", target), "add-model",
                      {"kind_of_source": origin.kind, "place": origin.place, "name": target, "copy": copy, **found})


def add_job(workspace: Workspace, job: Job, recorder: Recorder) -> dict[str, Any]:
    """Work of an `add-model` job.

    Raises:
        StudioError: it cannot be fetched or read, or it is not whole.
    """
    spec = job.spec()
    kind, place = spec["kind_of_source"], spec["place"]
    target = new_model_folder(workspace, spec["name"])
    if kind == "gguf":
        _add_gguf(Path(place), target, recorder)
        return {"name": target.name, "folder": str(target)}
    if kind == "hub":
        folder = fetch_from_hub(place, spec["revision"], spec["files"], recorder)
    else:
        folder = fetch_from_modelscope(place, recorder) if kind == "modelscope" else Path(place)
    if folder is None:
        return {}  # stopped
    _take_folder(folder, target, spec["copy"], recorder)
    return {"name": target.name, "folder": str(target)}


def _take_folder(folder: Path, target: Path, copy: bool, recorder: Recorder) -> None:
    """Give a whole model folder its name: by a link, as a copy, or converted where it is InternLM2's own layout."""
    from core.models.internlm2 import is_internlm2

    if is_internlm2(folder):
        from core.models.internlm2_convert import convert_internlm2

        convert_internlm2(folder, target, lambda done, total: recorder.progress(
            done, total, Text("converting InternLM2 to Llama's layout")))
        return
    check_model(folder)
    if not copy:
        target.symlink_to(folder.resolve(), target_is_directory=True)
        return
    files = [path for path in folder.iterdir() if path.is_file()]
    with fill_folder(target) as filled:
        for done, path in enumerate(files):
            recorder.progress(done, len(files), Text("copying the model"))
            shutil.copyfile(path, filled / path.name)


def _add_gguf(file: Path, target: Path, recorder: Recorder) -> None:
    recorder.progress(0, 2, _READING)
    quantised, tokenizer = load_gguf(file)
    model = as_plain_model(quantised)
    recorder.progress(1, 2, _READING)
    with fill_folder(target) as folder:
        save_widened(model, tokenizer, folder, int(getattr(model.config, "max_position_embeddings", 0) or 2048))
        write_json(folder / "model.json", {"name": target.name, "source": str(file), "note": "GGUF weights, widened to float32"})
        check_model(folder)
    recorder.progress(2, 2, _READING)


def look_on_hub(repository: str) -> dict[str, Any]:
    """The newest `revision` of a repository and the `files` of it that a model needs, with their sizes. HF_ENDPOINT names a mirror.

    Raises:
        StudioError: there is no network, no such repository, or no weights in it that can be read safely.
    """
    from huggingface_hub import HfApi

    with _explain_hub(repository):
        about = HfApi().model_info(repository, files_metadata=True, timeout=15)
    files = wanted_files({entry.rfilename: entry.size or 0 for entry in about.siblings or []}, repository)
    return {"revision": about.sha, "files": files}


def fetch_from_hub(repository: str, revision: str, files: dict[str, int], recorder: Recorder) -> Path | None:
    """Download these files of a repository into the cache of the hub's library; None when asked to stop.

    Raises:
        StudioError: the network or the hub failed.
    """
    from huggingface_hub import hf_hub_download

    folder, total, done = None, max(1, sum(files.values())), 0
    try:
        with _explain_hub(repository):
            for file, size in files.items():
                recorder.progress(done // 1_000_000, -(-total // 1_000_000), _FETCHING)
                if recorder.stop_requested():
                    return None
                folder = Path(hf_hub_download(repository, file, revision=revision, tqdm_class=_bars(recorder, done, total))).parent
                done += size
    except _Stopped:
        return None
    return folder


@contextmanager
def _explain_hub(repository: str) -> Iterator[None]:
    try:
        yield
    except _Stopped:
        raise
    except Exception as error:  # the hub's library and the network's each have many kinds
        raise StudioError("The model {name} could not be fetched from the hub: {reason}.",
                          "Check the name and the network (HF_ENDPOINT names a mirror), or copy the model here and give its folder.",
                          name=repository, reason=(str(error).split("\n")[0][:200] or type(error).__name__).rstrip(".")) from error


class _Stopped(Exception):
    """Somebody asked for the end in the middle of a file."""


def _bars(recorder: Recorder, done: int, total: int) -> Any:
    """What the hub's library takes for a progress bar: it tells the job how far a file is, and ends it when asked to."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def update(self, n: float | None = 1) -> bool | None:
            if recorder.stop_requested():
                raise _Stopped
            shown = super().update(n)
            recorder.progress(int(done + self.n) // 1_000_000, -(-total // 1_000_000), _FETCHING)
            return shown

    return Bar


def wanted_files(sizes: dict[str, int], repository: str) -> dict[str, int]:
    """Of a repository's files those that a model needs: safetensors, configuration, tokenizer; never code, never other formats.

    Raises:
        StudioError: it has no weights as safetensors, and is not InternLM2, whose pickles are read with an allow-list.
    """
    from fnmatch import fnmatch

    top = {name: size for name, size in sizes.items() if "/" not in name}
    small = {name: size for name, size in top.items() if any(fnmatch(name, form) for form in _SMALL_FILES)}
    weights = {name: size for name, size in top.items() if name.endswith(".safetensors")}
    if not weights and re.search(r"internlm2", repository, re.IGNORECASE):
        weights = {name: size for name, size in top.items() if fnmatch(name, "pytorch_model*.bin")}
    if not weights:
        raise StudioError("The repository {name} has no .safetensors weights.",
                          "Pickles can run code when they are read; look for a version with safetensors.", name=repository)
    return small | weights


def fetch_from_modelscope(repository: str, recorder: Recorder) -> Path | None:
    """Download a model of ModelScope by ModelScope's own library, which is not a dependency. MODELSCOPE_DOMAIN names a mirror.

    Raises:
        StudioError: the library is not installed, or the model cannot be fetched.
    """
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        raise StudioError("A model of ModelScope needs the package modelscope, which is not installed.",
                          "Install it beside Sweetspot: pip install modelscope", ) from error
    recorder.progress(0, 1, _FETCHING)
    return _explain_modelscope(lambda: Path(snapshot_download(repository, allow_patterns=[*_SMALL_FILES, "*.safetensors"])), repository)


def _explain_modelscope(fetch: Callable[[], Path], repository: str) -> Path:
    try:
        return fetch()
    except Exception as error:  # its library raises what requests and its own code raise
        raise StudioError("The model {name} could not be fetched from ModelScope: {reason}.",
                          "Check the name and the network (MODELSCOPE_DOMAIN names a mirror), or copy the model here and give its folder.",
                          name=repository, reason=(str(error).split("\n")[0][:200] or type(error).__name__).rstrip(".")) from error
