"""The raw results of the study on disk: `runs/<id>.json.gz` in a folder, or the same files in its `results-N.tar`. No torch."""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def result_path(folder: Path, run: str) -> Path:
    return folder / "runs" / f"{run}.json.gz"


def finished(folder: Path) -> set[str]:
    """Ids of the runs whose results are there."""
    return {name.removesuffix(".json.gz") for name, _ in _files(folder)}


def read_results(folder: Path) -> Iterator[dict[str, Any]]:
    """The results one by one, each run once, by id."""
    seen = set()
    for name, content in sorted(_files(folder), key=lambda file: file[0]):
        if name not in seen:
            seen.add(name)
            yield json.loads(gzip.decompress(content))


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in (folder / "runs").glob("*.json.gz"):
        yield path.name, path.read_bytes()
    for path in sorted(folder.glob("results-*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                stream = archive.extractfile(member)
                if stream is not None:
                    yield member.name, stream.read()
