"""Every model one can chat with, by the words a user types: `embedded`, a name, a folder, a hub id, `run@step`.

    embedded            the model that comes with Sweetspot
    alex                models/alex: a merged model, or one that was added
    /data/llama         a folder on this machine
    org/name            a repository on the model hub (downloaded once); hf:org/name where a folder of that name lies here
    RUN@12  RUN@pick    a checkpoint: its run's base model with the adapter of that step; RUN@12*0.5 at half strength
    RUN@last  RUN@good  the last one; the last one before the alert
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from core.errors import StudioError
from core.models.check import check_adapter
from core.models.embedded import EMBEDDED_NAME, embedded_folder, is_prepared
from core.models.header import ModelHeader, read_header
from core.roots import check_path
from core.runs import find_checkpoint, find_run
from core.workspace import Workspace, check_name

HUB = "hf:"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Model:
    """Something that answers: a base folder, and an adapter over it when it is a checkpoint."""

    name: str
    base: Path
    adapter: Path | None = None
    strength: float = 1.0
    system: str | None = None


def find_base(workspace: Workspace, source: str) -> Path:
    """The folder of a base model named in a recipe.

    Raises:
        StudioError: it is not here and cannot be fetched.
    """
    if source in ("embedded", EMBEDDED_NAME):
        if not is_prepared(workspace):
            raise StudioError("The embedded model is not prepared yet.", "Run `sweetspot models add embedded` once (about 20 seconds).")
        return embedded_folder(workspace)
    if "/" not in source and is_folder(workspace.models / source):
        folder = workspace.models / check_name(source, "model")
        return folder.resolve() if folder.is_symlink() else folder  # of a class: the same folder for everybody
    if source.startswith(("/", ".", "~")):
        folder = Path(source)
        with suppress(RuntimeError):  # the home of a user who does not exist
            # Looked at before anything is said of what lies there: not even whether it exists is a stranger's to know.
            folder = check_path(workspace, folder.expanduser())
        if not is_folder(folder):
            raise StudioError("There is no model folder at {folder}.", "`sweetspot models list` shows the models that are here.",
                              folder=source)
        return folder
    if source.startswith(HUB) and is_hub_id(source.removeprefix(HUB)):
        return _from_hub(source.removeprefix(HUB))
    refuse_two_meanings(source)
    if is_hub_id(source):
        return _from_hub(source)
    raise StudioError("No model is called {name}.", "Use `embedded`, a name from `sweetspot models list`, a folder, or a hub id "
                      "such as HuggingFaceTB/SmolLM2-135M-Instruct.", name=source)


def find_local_base(workspace: Workspace, source: str) -> Path | None:
    """The same without fetching anything: None for a hub model that is not on this machine yet, or an embedded one not prepared.

    Raises:
        StudioError: no model is meant by `source`, or its folder is not there.
    """
    if source in ("embedded", EMBEDDED_NAME) and not is_prepared(workspace):
        return None
    if source.startswith(HUB) and is_hub_id(source.removeprefix(HUB)):
        return _hub_copy(source.removeprefix(HUB))
    refuse_two_meanings(source)
    is_on_hub = is_hub_id(source) and not is_folder(workspace.models / source)
    return _hub_copy(source) if is_on_hub else find_base(workspace, source)


def _hub_copy(repository: str) -> Path | None:
    """The newest copy of a repository in the hub's cache; None when there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None


def new_model_folder(workspace: Workspace, name: str) -> Path:
    """The folder that a new model of this name will have.

    Raises:
        StudioError: the name is unusable or taken.
    """
    target = workspace.models / check_name(name, "model")
    if target.exists() or name in ("embedded", EMBEDDED_NAME):
        raise StudioError("A model called {name} exists already.", "Choose another name, or delete the old one first.", name=name)
    return target


def is_hub_id(text: str) -> bool:
    """Whether a text has the form `org/name`."""
    return bool(_HUB_ID.fullmatch(text))


def refuse_two_meanings(source: str) -> None:
    """Raises StudioError for `org/name` where a folder of that name lies here: nobody could tell which one was used."""
    if is_hub_id(source) and is_folder(Path(source)):
        raise StudioError("{source} is a folder here and the form of a hub id.", "Write ./{source} for the folder, or hf:{source} for the "
                          "hub.", source=source)


def is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name longer than the file system takes, a folder one may not enter
        return False


def _from_hub(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(repository, allow_patterns=["*.json", "*.safetensors", "*.jinja", "tokenizer*"]))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, HFValidationError, OSError) as error:
        raise StudioError("The model {name} could not be fetched from the hub: {reason}.",
                          "Check the name and the network (HF_ENDPOINT names a mirror), or copy the model here and give its folder.",
                          name=repository, reason=str(error).split("\n")[0][:200].rstrip(".")) from error


def find_model(workspace: Workspace, reference: str) -> Model:
    """What a user means by `reference`; see the module's list.

    Raises:
        StudioError: nothing answers to it.
    """
    if "@" not in reference:
        return Model(reference, find_base(workspace, reference))
    run_name, _, rest = reference.partition("@")
    step_text, _, strength_text = rest.partition("*")
    run = find_run(workspace, run_name)
    recipe = run.recipe()
    base = find_base(workspace, recipe.model.source)
    checkpoint = find_checkpoint(run, step_text)
    if checkpoint.step == 0:
        return Model(reference, base, system=recipe.data.system)
    if recipe.method.kind == "full":
        return Model(reference, checkpoint.folder, system=recipe.data.system)
    if any(checkpoint.folder.glob("adapter_model.*")):
        check_adapter(checkpoint.folder, base)
    return Model(reference, base, checkpoint.folder, _strength(strength_text), recipe.data.system)


def _strength(text: str) -> float:
    try:
        strength = float(text or 1.0)
    except ValueError:
        strength = -1.0
    if not 0 <= strength <= 2:
        raise StudioError("{text!r} is no adapter strength.", "Use a number from 0 to 2, for example RUN@12*0.5.", text=text)
    return strength


def list_models(workspace: Workspace) -> list[tuple[str, Path, ModelHeader | StudioError]]:
    """(name, folder, header or what is wrong with it) of every model in the workspace."""
    found: list[tuple[str, Path, ModelHeader | StudioError]] = []
    for folder in sorted(workspace.models.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            try:
                found.append((folder.name, folder, read_header(folder)))
            except StudioError as error:
                found.append((folder.name, folder, error))
    return found


def list_chat_models(workspace: Workspace) -> list[str]:
    """Names of the models in the workspace that one can chat with, the embedded one first."""
    names = [name for name, _, header in list_models(workspace) if isinstance(header, ModelHeader) and header.has_chat_template]
    return [*(["embedded"] if EMBEDDED_NAME in names else []), *(name for name in names if name != EMBEDDED_NAME)]
