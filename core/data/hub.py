"""Sets of the Hugging Face hub, or a folder laid out like one, read row by row with `datasets`. For worker processes only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from core.data.records import Record
from core.errors import StudioError
from core.words import Text

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?")
_FILE_ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".yaml", ".yml", ".zip", ".gz", ".md")
_ROW = "row {number}"
_SECONDS = 15.0  # until the hub counts as out of reach


def is_hub_source(source: str) -> bool:
    """Whether a source names a set of the hub (`owner/name`) or a folder, rather than a file."""
    if not source:
        return False
    try:
        path = Path(source).expanduser()
        if path.exists():
            return path.is_dir()
    except (OSError, ValueError, RuntimeError):
        return False
    return "/" in source and bool(_HUB_ID.fullmatch(source)) and not source.lower().endswith(_FILE_ENDINGS)


def hub_records(source: str, subset: str | None = None, split: str | None = None) -> tuple[Iterator[Record], int]:
    """The rows of a set and how many there are, 0 when unknown. Code that comes with a set is never run.

    Args:
        source: `owner/name` on the hub, or a folder of data files.
        subset: its configuration, where it has several.
        split: which split; None takes `train`, or the only one.

    Raises:
        StudioError: it cannot be reached, does not exist, or has no such subset or split.
    """
    from datasets import load_dataset_builder
    from huggingface_hub import HfApi

    folder = Path(source).expanduser()
    try:
        if folder.is_dir():
            own, card = str(folder.resolve()) + "/", _card_of(folder)
        else:
            about = HfApi().dataset_info(source, timeout=_SECONDS)  # asked once; `datasets` itself would try for half a minute
            own, card = f"hf://datasets/{about.id}@", dict(about.card_data.to_dict() if about.card_data else {})
        _refuse_foreign(source, _named_in(card), "")  # before anybody is asked for them
        builder = load_dataset_builder(str(folder) if folder.is_dir() else source, subset)
        _refuse_foreign(source, (str(name) for names in (builder.config.data_files or {}).values() for name in names), own)
        loaded = builder.as_streaming_dataset()
        names = list(loaded)
        wanted = split or ("train" if "train" in names else names[0])
        if wanted not in names or (split is None and wanted != "train" and len(names) > 1):
            raise StudioError("The set {source} has no split {split}.", "Choose one with --split: {available}.", source=source,
                              split=split or "train", available=", ".join(map(str, names)))
        chosen = loaded[wanted].decode(False)  # pictures and sounds stay bytes; their decoders are not needed
    except StudioError:
        raise
    except Exception as error:  # `datasets` raises many kinds, its own, of fsspec and of the network
        raise _explained(error, source) from error
    info = chosen.info.splits or {}
    return _records(chosen, source), info[wanted].num_examples or 0 if wanted in info else 0


def _card_of(folder: Path) -> dict[str, Any]:
    """What the README.md of a folder says about its files; nothing where there is none."""
    from huggingface_hub import DatasetCard

    return DatasetCard.load(folder / "README.md").data.to_dict() if (folder / "README.md").is_file() else {}


def _named_in(value: Any) -> Iterator[str]:
    """The files and patterns that a set's card names, for all its configurations."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _texts_in(part) if name in ("data_files", "data_dir") else _named_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from _named_in(part)


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts_in(part)


def _refuse_foreign(source: str, files: Iterable[str], own: str) -> None:
    """A set says itself of which files it consists, and could name any file of this machine, or any address.

    Args:
        own: how the names of its own files begin; empty for names that are relative to it.

    Raises:
        StudioError: one of them is neither in its folder nor in its repository.
    """
    for name in files:
        place = name.rpartition("::")[2]  # of a file in an archive: which archive
        if own.startswith("/"):
            is_own = "://" not in place and f"{Path(place).resolve()}/".startswith(own)
        else:
            is_own = place.startswith(own) if own else "://" not in place and not place.startswith(("/", "~"))
        if not is_own or ".." in PurePosixPath(place).parts:
            raise StudioError("The set {source} names {file}, which is no file of its own; nothing was read.",
                              "Look at what its README.md says about data files.", source=source, file=name[:200])


def _records(rows: Any, source: str) -> Iterator[Record]:
    number = 0
    try:
        for number, row in enumerate(rows, 1):
            yield Record(_ROW, number, row)
    except StudioError:
        raise
    except Exception as error:
        raise _explained(error, source, number) from error


def _explained(error: Exception, source: str, row: int = 0) -> StudioError:
    """In words what `datasets` or the network says."""
    kinds = {kind.__name__ for link in _chain(error) for kind in type(link).__mro__}
    said = " ".join(str(error).split())[:300] or type(error).__name__
    if kinds & {"ConnectionError", "OfflineModeIsEnabled", "ConnectError", "ConnectTimeout", "LocalEntryNotFoundError", "TimeoutException",
                "NetworkError", "gaierror", "ProxyError"}:
        return StudioError("The hub cannot be reached from here, so {source} was not read.",
                           "Fetch the set where there is a network, copy its files here, and import their path or folder.", source=source)
    if "GatedRepoError" in kinds or "gated" in said.lower():
        return StudioError("The set {source} wants you to accept its terms first.",
                           "Accept them on its page, then run `hf auth login` here.", source=source)
    if kinds & {"DatasetNotFoundError", "RepositoryNotFoundError", "DataFilesNotFoundError", "EmptyDatasetError", "FileNotFoundError"}:
        return StudioError("There is no set {source}, or it holds no data files.", "Check its name on the hub: owner/name.", source=source)
    if "script" in said.lower() and "supported" in said.lower():
        return StudioError("The set {source} comes with code of its own, and such code is not run here.",
                           "Look for a version of it in Parquet or JSON, and import that.", source=source)
    return StudioError("The set {source} cannot be read{where}: {reason}.", "Check --subset and --split, or import its files one by one.",
                       source=source, where=Text(" behind row {row}", row=row) if row else "", reason=said.rstrip("."))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
