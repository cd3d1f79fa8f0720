"""Who answered: fingerprints of the weights on disk, read once per file and remembered. No torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from core.errors import StudioError
from core.models.catalogue import Model
from core.models.header import weight_files
from core.words import Text
from core.workspace import Workspace, read_json, write_json

SHORT = 12  # hexadecimal digits shown: enough to tell the files of a workspace apart
_BLOCK_BYTES = 1 << 20
_CACHE = "weight-hashes.json"


class Proof(BaseModel):
    """What stands behind an answer.

    Attributes:
        model: what was asked for, as the user named it.
        resolved: what answered: `RUN@16` where `RUN@pick` was asked, the model's name else.
        base: name of the base model's folder.
        step: the update after which it was saved; None for a base or merged model.
        strength: the adapter's strength; 1.0 for a whole model.
        alpha: the adapter's `lora_alpha`, which scales the same matrices to another model; None for a whole model.
        weights: SHA-256 of the file that makes this model what it is: the adapter's, or the model's.
        base_weights: SHA-256 of the base model's weights; a whole model is its own base.
        quantization: how the base model was held: `none`, `nf4` or `int8`; the same file then gives slightly other numbers.
        prompt: fingerprint of the prompt's token ids.
        prompt_tokens: their number.
    """

    model: str
    resolved: str
    base: str
    step: int | None = None
    strength: float = 1.0
    alpha: float | None = None
    weights: str
    base_weights: str
    quantization: str = "none"
    prompt: str
    prompt_tokens: int

    def same_weights(self, other: Proof) -> bool:
        """Whether both answers came from the very same numbers. An adapter at strength 0 is its base."""
        return self._identity() == other._identity()

    def _identity(self) -> tuple[str, str, str, float]:
        if self.weights == self.base_weights or self.strength == 0:
            return (self.base_weights, self.quantization, "", 1.0)
        return (self.base_weights, self.quantization, self.weights, self.strength * (1.0 if self.alpha is None else self.alpha))


def twins(proofs: Sequence[Proof | None]) -> list[tuple[int, int]]:
    """Pairs of panes that claim different models although the same weights answered."""
    return [(first, second) for first, one in enumerate(proofs) for second, other in enumerate(proofs)
            if first < second and one and other and one.model != other.model and one.same_weights(other)]


def twin_sentence(first: str, second: str) -> Text:
    return Text("{first} and {second} claim to be different models, but the same weights answered.", first=first, second=second)


def adapter_alpha(model: Model) -> float | None:
    """`lora_alpha` of the model's adapter; None for a whole model, or where the adapter does not say."""
    try:
        return float(read_json(model.adapter / "adapter_config.json")["lora_alpha"]) if model.adapter else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def model_weights(model: Model) -> list[Path]:
    """The files that make this model what it is: its adapter's, else its own."""
    return weight_files(model.adapter or model.base)


def stamp(paths: Sequence[Path]) -> tuple[tuple[str, int, int], ...]:
    """Path, change time and size of files: when any of these differs, the weights are others."""
    return tuple((str(path), (facts := path.stat()).st_mtime_ns, facts.st_size) for path in paths)


def hash_weights(workspace: Workspace, paths: Sequence[Path]) -> str:
    """SHA-256 of a weight file as `sha256sum` prints it; of several shards, over their hashes in order.

    A file is read again only when its change time or size differ from what the cache knows.
    """
    hashes = [_hash_file(workspace, path) for path in paths]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _hash_file(workspace: Workspace, path: Path) -> str:
    key = json.dumps(stamp([path])[0])
    known = _read_cache(workspace)
    if key not in known:
        known[key] = _digest(path)
        kept = {entry: digest for entry, digest in known.items() if Path(json.loads(entry)[0]).exists()}
        with contextlib.suppress(StudioError):  # a full disk must not keep a model from answering: it is read again the next time
            write_json(workspace.cache / _CACHE, kept)
    return known[key]


def _read_cache(workspace: Workspace) -> dict[str, str]:
    try:
        return read_json(workspace.cache / _CACHE)
    except (OSError, ValueError):
        return {}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
