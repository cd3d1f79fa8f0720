"""What a merge is asked to do, checked before anything is started. No torch.

The same request comes from the command line and from the page, and lies in the job's `spec.json`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from core.errors import StudioError
from core.jobs.folder import Job, create_job, new_job_id
from core.machine import device_name
from core.merge.methods import SPARSE, check_weights
from core.models.catalogue import Model, find_model, new_model_folder
from core.runs import Run, find_run
from core.workspace import Workspace

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES: tuple[Dtype, ...] = ("auto", "float32", "bfloat16", "float16")
ONTO = ("base", "quantized")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B", re.IGNORECASE)
_LEAST_SHARD_BYTES = 1e6


@dataclass(frozen=True)
class MergeRequest:
    """One merge.

    Attributes:
        models: checkpoints as `RUN@STEP`, perhaps `*0.5`; several are combined first.
        strength: on top of their own, 0 to 1.
        max_shard_bytes: largest file; None for the base model's own division.
        onto: the base's own weights, or for QLoRA the quantised ones that the adapter saw.
        weights: one per model; None for equal shares.
        how: to combine several, see `core.merge.combine`.
        density: the share of values that TIES and DARE keep.
    """

    models: tuple[str, ...]
    name: str
    strength: float = 1.0
    dtype: str = "auto"
    max_shard_bytes: int | None = None
    onto: str = "base"
    weights: tuple[float, ...] | None = None
    how: str = "average"
    density: float = 0.5
    seed: int = 0

    def to_spec(self) -> dict[str, Any]:
        """What `spec.json` says; of one model only what is not the default."""
        spec: dict[str, Any] = {"model": self.models[0], "name": self.name, "dtype": self.dtype}
        if len(self.models) > 1:
            spec |= {"models": list(self.models), "how": self.how, "weights": list(self.weights) if self.weights else None,
                     "density": self.density, "seed": self.seed}
        return spec | {key: value for key, value, default in (
            ("strength", self.strength, 1.0), ("max_shard_bytes", self.max_shard_bytes, None), ("onto", self.onto, "base"))
            if value != default}

    def to_command(self) -> str:
        """The same on the command line."""
        options: list[str] = []
        if len(self.models) > 1:
            options += ["--how", self.how] if self.how != "average" else []
            options += ["--weights", ",".join(f"{weight:g}" for weight in self.weights)] if self.weights else []
            options += ["--density", f"{self.density:g}"] if self.how in SPARSE and self.density != 0.5 else []
        options += ["--strength", f"{self.strength:g}"] if self.strength != 1.0 else []
        options += ["--dtype", self.dtype] if self.dtype != "auto" else []
        options += ["--max-shard-size", size_text(self.max_shard_bytes)] if self.max_shard_bytes else []
        options += ["--onto", self.onto] if self.onto != "base" else []
        return shlex.join(["sweetspot", "merge", *self.models, self.name or "NAME", *options])

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> MergeRequest:
        known = {key: spec[key] for key in ("strength", "max_shard_bytes", "onto", "how", "density", "seed") if key in spec}
        weights = spec.get("weights")
        return cls(tuple(spec.get("models") or [spec["model"]]), spec["name"], dtype=spec.get("dtype", "auto"),
                   weights=tuple(weights) if weights else None, **known)


@dataclass(frozen=True)
class Sources:
    """What a request names: each model, and the run that it is a checkpoint of."""

    models: list[Model]
    runs: list[Run]


def find_sources(workspace: Workspace, request: MergeRequest) -> Sources:
    """Look up every checkpoint of a request.

    Raises:
        StudioError: one is not there, has no adapter, or they are of different base models; or the settings do not fit.
    """
    if request.dtype not in DTYPES:
        raise StudioError("{dtype!r} is no dtype.", "Use one of: {known}.", dtype=request.dtype, known=", ".join(DTYPES))
    if not 0 < request.strength <= 1:
        raise StudioError("The strength {strength} is not above 0 and at most 1.",
                          "At 0 the merged model would be the base model; 1 is the adapter as it was trained.", strength=request.strength)
    if request.onto not in ONTO:
        raise StudioError("{onto!r} is nothing to merge onto.", "Use one of: {known}.", onto=request.onto, known=", ".join(ONTO))
    if not 0 < request.density <= 1:
        raise StudioError("The density {density} is not above 0 and at most 1.", "0.5 keeps half of the values.", density=request.density)
    if len(request.models) > 1 or request.weights is not None:
        check_weights(request.how, len(request.models), request.weights)
    models, runs = [], []
    for reference in request.models:
        model = find_model(workspace, reference)
        if model.adapter is None and reference.partition("*")[0].endswith("@0"):
            raise StudioError("At strength 0 the merged model would be the base model.", "Choose a snapshot and a strength above 0.")
        if model.adapter is None:
            raise StudioError("{name} has no adapter to merge.", "Name a checkpoint, for example RUN@pick.", name=reference)
        if model.strength == 0:
            raise StudioError("At strength 0 the merged model would be the base model.", "Choose a snapshot and a strength above 0.")
        models.append(model)
        runs.append(find_run(workspace, reference.partition("@")[0]))
    for model, run in zip(models[1:], runs[1:], strict=True):
        if model.base != models[0].base:
            raise StudioError("{first} and {other} are adapters of different base models: {base} and {other_base}.",
                              "Only adapters of one base model can be combined.", first=runs[0].id, other=run.id,
                              base=runs[0].recipe().model.source, other_base=run.recipe().model.source)
    if request.onto == "quantized" and (kind := runs[0].recipe().model.quantization) != "nf4":
        raise StudioError("Only an adapter trained over 4-bit weights (nf4) can be merged onto them; {run} was trained over {kind}.",
                          "Leave out --onto quantized.", run=runs[0].id, kind="int8" if kind == "int8" else "16 or 32 bits")
    return Sources(models, runs)


def merge_job_for(workspace: Workspace, request: MergeRequest) -> Job:
    """A job, not started, that does what is asked.

    Raises:
        StudioError: the name is unusable or taken, or see `find_sources`.
    """
    new_model_folder(workspace, request.name)
    find_sources(workspace, request)
    return create_job(workspace.jobs / new_job_id("merge", request.name), "merge", request.to_spec(), device_name())


def parse_size(text: str) -> int:
    """Bytes of `2GB`, `500MB` (powers of 1000) or `2GiB` (of 1024).

    Raises:
        StudioError: it is no size, or too small for a file of weights.
    """
    match = _SIZE.fullmatch(text.strip())
    size = 0.0
    if match:
        number, unit, binary = match.groups()
        size = float(number) * (1024 if binary else 1000) ** " KMGT".index(unit.upper() or " ")
    if size < _LEAST_SHARD_BYTES:
        raise StudioError("{text!r} is no size for a file of weights.", "Write it like 2GB, 500MB or 2GiB; 1MB is the least.", text=text)
    return int(size)


def size_text(size_bytes: int) -> str:
    """Bytes as `parse_size` reads them: `2GB`, `500MB`."""
    return f"{size_bytes / 1e9:g}GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:g}MB"


def parse_weights(text: str | None) -> tuple[float, ...] | None:
    """`0.5,0.5` -> numbers.

    Raises:
        StudioError: a part is no number.
    """
    if text is None:
        return None
    parts: Sequence[str] = text.split(",")
    try:
        return tuple(float(part) for part in parts)
    except ValueError as error:
        raise StudioError("{text!r} are no weights.", "Write one number for each adapter, for example --weights 0.5,0.5.",
                          text=text) from error
