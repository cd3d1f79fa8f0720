"""Publishing a model to the Hugging Face hub or to ModelScope: a folder of what would be sent, then the sending. No torch.

Work of a `publish` job. Tokens come from the environment or the library's own login and are never in a job's files.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.convert.card import Story, model_card, story_of
from core.errors import StudioError
from core.jobs.folder import Job, create_job, new_job_id
from core.jobs.launch import start_job
from core.models.catalogue import find_base, find_model, is_hub_id
from core.models.check import check_model
from core.runs import find_checkpoint, find_run
from core.words import Text
from core.workspace import Workspace, fill_folder, read_json, write_json, write_text

if TYPE_CHECKING:
    from core.jobs.worker import Recorder

HUBS = ("huggingface", "modelscope")
_SENT = (".safetensors", ".json", ".jinja", ".model", ".txt")
# Reports of this workspace: their facts are in the card, their paths are nobody's business.
_KEPT_BACK = ("merge.json", "model.json", "export.json")
_MESSAGE = "From Sweetspot"
_SENDING = Text("sending the model")


def publish_job_for(workspace: Workspace, model: str, repository: str, hub: str = "huggingface", *, public: bool = False,
                    dry_run: bool = False, licence: str | None = None, out: str | None = None) -> Job:
    """A job, not started, that publishes `model` (a merged model, or RUN@STEP) as `repository`.

    Raises:
        StudioError: no such model or hub, a name that is no `org/name`, no login, or the folder of a dry run is there already.
    """
    if hub not in HUBS:
        raise StudioError("There is no hub {name} here.", "Choose one of {known}.", name=hub, known=", ".join(HUBS))
    if not is_hub_id(repository):
        raise StudioError("{name!r} is no name of a repository.", "Write org/name, where org is your user name or organisation.",
                          name=repository)
    folder, _ = _what(workspace, model)
    if "@" not in model:
        check_model(folder)
    target = Path(out).expanduser().absolute() if out else dry_run_folder(workspace, repository)
    if target.exists():
        raise StudioError("{path} exists already.", "Choose another name, or delete the old one first.", path=target)
    if not dry_run:
        _token(hub)
    return create_job(workspace.jobs / new_job_id("publish", repository.rsplit("/", 1)[-1]), "publish", {
        "model": model, "repository": repository, "hub": hub, "public": public, "dry_run": dry_run, "licence": licence,
        "target": str(target)})


def start_dry_run(workspace: Workspace, model: str, repository: str) -> Job:
    """Start writing the folder that a publishing would send; the folder of an earlier dry run makes room.

    Raises:
        StudioError: see `publish_job_for`.
    """
    if is_hub_id(repository):
        shutil.rmtree(dry_run_folder(workspace, repository), ignore_errors=True)
    job = publish_job_for(workspace, model, repository, dry_run=True)
    start_job(job)
    return job


def dry_run_folder(workspace: Workspace, repository: str) -> Path:
    return workspace.root / "exports" / f"publish-{repository.replace('/', '--').lower()}"


def _what(workspace: Workspace, model: str) -> tuple[Path, Story]:
    """The folder to send and its story."""
    if "@" not in model:
        folder = find_base(workspace, model)
        return folder, story_of(workspace, folder)
    found, run = find_model(workspace, model), find_run(workspace, model.partition("@")[0])
    if found.strength != 1.0:
        raise StudioError("{name} is an adapter at a strength of its own, which an adapter's files cannot say.",
                          "Merge it first: sweetspot merge {name} NAME.", name=model)
    checkpoint = find_checkpoint(run, model.partition("@")[2])
    if checkpoint.step == 0:
        raise StudioError("Step 0 is the base model, which is not yours to publish.", "Choose a checkpoint.")
    return checkpoint.folder, story_of(workspace, checkpoint.folder, run, checkpoint.step)


def publish_job(workspace: Workspace, job: Job, recorder: Recorder) -> dict[str, Any]:
    """Write the folder, and send it unless it is a dry run.

    Raises:
        StudioError: there is no login, or the hub refuses.
    """
    spec = job.spec()
    target = Path(spec["target"])
    source, story = _what(workspace, spec["model"])
    recorder.progress(0, 2, Text("writing the model card"))
    with fill_folder(target) as folder:
        _fill(source, folder, story, spec)
    files = {path.name: path.stat().st_size for path in sorted(target.iterdir())}
    result: dict[str, Any] = {"repository": spec["repository"], "hub": spec["hub"], "public": spec["public"], "files": files,
                              "bytes": sum(files.values()), "sent": False, "folder": str(target)}
    if spec["dry_run"] or recorder.stop_requested():
        return result
    recorder.progress(1, 2, _SENDING)
    try:
        address = {"huggingface": _send_to_hub, "modelscope": _send_to_modelscope}[spec["hub"]](target, spec)
    finally:
        shutil.rmtree(target, ignore_errors=True)
    recorder.progress(2, 2, _SENDING)
    return result | {"sent": True, "folder": None, "address": address}


def _fill(source: Path, folder: Path, story: Story, spec: dict[str, Any]) -> None:
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in _SENT and path.name not in _KEPT_BACK:
            _link_or_copy(path, folder / path.name)
    config = folder / "adapter_config.json"
    if config.exists():  # it names the base as this machine calls it
        about = read_json(config) | {"base_model_name_or_path": story.base}
        config.unlink()
        write_json(config, about)
    write_text(folder / "README.md", model_card(story, spec["repository"], spec["licence"]))


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _token(hub: str) -> str | None:
    """The token of the environment or of the library's own login; None where the library looks for it itself.

    Raises:
        StudioError: there is none.
    """
    if hub == "modelscope":
        _modelscope()
        return os.environ.get("MODELSCOPE_API_TOKEN")
    from huggingface_hub import get_token

    token = get_token()
    if not token:
        raise StudioError("There is no login for the Hugging Face hub here.", "Run `hf auth login` once, or set HF_TOKEN.")
    return token


def _modelscope() -> Any:
    try:
        from modelscope.hub.api import HubApi
    except ImportError as error:
        raise StudioError("A model of ModelScope needs the package modelscope, which is not installed.",
                          "Install it beside Sweetspot: pip install modelscope") from error
    return HubApi()


def _send_to_hub(folder: Path, spec: dict[str, Any]) -> str:
    from huggingface_hub import HfApi

    api = HfApi(token=_token("huggingface"))
    def send() -> str:
        api.create_repo(spec["repository"], private=not spec["public"], exist_ok=True, repo_type="model")
        return str(api.upload_folder(repo_id=spec["repository"], folder_path=folder, repo_type="model", commit_message=_MESSAGE))

    return _explained(send, spec)


def _send_to_modelscope(folder: Path, spec: dict[str, Any]) -> str:
    api, token = _modelscope(), _token("modelscope")

    def send() -> str:
        if token:
            api.login(token)
        visibility = "public" if spec["public"] else "private"
        api.create_repo(repo_id=spec["repository"], repo_type="model", visibility=visibility, exist_ok=True)
        return str(api.upload_folder(repo_id=spec["repository"], folder_path=str(folder), repo_type="model", commit_message=_MESSAGE))

    return _explained(send, spec)


def _explained(send: Callable[[], str], spec: dict[str, Any]) -> str:
    try:
        return send()
    except Exception as error:  # networks and hubs fail in many kinds
        said = (str(error).strip().split("\n")[0][:200] or type(error).__name__).rstrip(".")
        raise StudioError("The model was not sent to {name}: {reason}.", "Check the name, the login and the network, then send it again.",
                          name=spec["repository"], reason=said) from error
