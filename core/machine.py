"""What this machine can do: processor, memory, GPUs, disk, versions. Never touches a GPU's memory."""

from __future__ import annotations

import math
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel

from core.classroom.place import student_of
from core.errors import StudioError
from core.models.embedded import gguf_file, is_prepared
from core.surroundings import look_around
from core.words import Text
from core.workspace import CHECKOUT, Workspace

PACKAGES = ("streamlit", "torch", "transformers", "peft", "trl", "bitsandbytes", "deepspeed", "datasets", "plotly", "pandas")
# Compute capability from which a GPU computes in bfloat16 itself.
BFLOAT16_FROM = (8, 0)
_LOW_DISK_BYTES = 5e9
_LOW_MEMORY_BYTES = 4e9


class Gpu(BaseModel):
    index: int
    name: str
    total_bytes: int
    free_bytes: int
    capability: tuple[int, int] | None = None
    uuid: str = ""


class GpuUser(BaseModel):
    """A program that holds memory of a GPU."""

    pid: int
    name: str
    used_bytes: int


class Machine(BaseModel):
    """Facts of the machine. Sizes in bytes."""

    cores: int
    memory_bytes: int
    memory_free_bytes: int
    disk_free_bytes: int
    gpus: list[Gpu]
    python: str
    system: str
    versions: dict[str, str]


class Finding(BaseModel):
    """One thing `doctor` says; `fix` is the way out of a warning or an error."""

    level: Literal["ok", "warning", "error"]
    text: dict
    fix: dict | None = None


def read_machine(workspace: Workspace) -> Machine:
    memory = psutil.virtual_memory()
    return Machine(
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=memory.total, memory_free_bytes=memory.available, disk_free_bytes=workspace.free_bytes(), gpus=read_gpus(),
        python=platform.python_version(), system=f"{platform.system()} {platform.machine()}", versions=package_versions())


def processor_threads() -> int:
    """How many threads computing should have: the physical cores, as far as this process may use them.

    Two threads on one core share its arithmetic units and slow each other down. A container's limit counts too (cgroup v2, cpu.max).
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = min(allowed, psutil.cpu_count(logical=False) or allowed)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(threads, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max"
        return max(1, threads)


def package_versions() -> dict[str, str]:
    """Installed versions without importing the packages; `-` for one that is missing."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "-"
    return found


def has_package(name: str) -> bool:
    """Whether a package is installed; it is not imported."""
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def read_gpus() -> list[Gpu]:
    """NVIDIA GPUs that NVML shows; an empty list without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    gpus = []
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            gpus.append(Gpu(index=index, name=pynvml.nvmlDeviceGetName(handle), total_bytes=int(memory.total),
                            free_bytes=int(memory.free), capability=pynvml.nvmlDeviceGetCudaComputeCapability(handle),
                            uuid=pynvml.nvmlDeviceGetUUID(handle)))
    except pynvml.NVMLError:
        pass  # a GPU that is lost, or that this user may not ask: the ones before it count
    finally:
        pynvml.nvmlShutdown()
    return gpus


def gpu_users(index: int = 0) -> list[GpuUser]:
    """Programs that compute on a GPU, as far as the driver tells this user; inside a container it may tell none."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        found = pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByIndex(index))
    except pynvml.NVMLError:
        found = []
    finally:
        pynvml.nvmlShutdown()
    return [GpuUser(pid=user.pid, name=_process_name(user.pid), used_bytes=int(user.usedGpuMemory or 0)) for user in found]


def _process_name(pid: int) -> str:
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return "?"


def device_name() -> str:
    """The device that jobs queue for: the first GPU when there is one, else the processor."""
    gpus = visible_gpus()
    return f"cuda:{gpus[0]}" if gpus else "cpu"


def visible_gpus() -> list[int]:
    """The GPUs that this process may use, as the driver numbers them; CUDA_VISIBLE_DEVICES narrows them, as a cluster sets it.

    It is read as CUDA reads it: numbers or (the beginning of) names such as GPU-5f3a, up to the first that is neither; `-1` and other
    words mean none at all. Part of a GPU (MIG) cannot be told from outside, so all of them count then.
    """
    there = read_gpus()
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None or allowed.startswith("MIG-"):
        return [gpu.index for gpu in there]
    found: list[int] = []
    for part in map(str.strip, allowed.split(",")):
        named = [gpu.index for gpu in there if part == str(gpu.index) or (part.startswith("GPU-") and gpu.uuid.startswith(part))]
        if not named:
            break
        found += named[:1]
    return found


def seen_alone(device: str) -> dict[str, str]:
    """The environment in which a process sees no other GPUs than those of `device`, so that its first one is the one it holds.

    Args:
        device: as jobs queue for it: `cpu`, `cuda:1` or `cuda:0,cuda:2`.
    """
    wanted = [int(part.removeprefix("cuda:")) for part in device.split(",") if part.startswith("cuda:")]
    visible = visible_gpus() if wanted else []
    kept = [number for number in wanted if number in visible]  # a run may come from a machine that had more
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, kept))} if kept and kept != visible else {}


def emulates_bfloat16(device: str) -> bool:
    """Whether one of the GPUs of `device` has no units for bfloat16: those before the Ampere generation compute it many times slower."""
    return any(gpu.capability is not None and gpu.capability < BFLOAT16_FROM for gpu in read_gpus()
               if device == "cuda" or f"cuda:{gpu.index}" in device.split(","))


def diagnose(workspace: Workspace) -> list[Finding]:
    """What is right and wrong with this machine for the work, worst last."""
    machine = read_machine(workspace)
    findings = [_ok(Text("{cores} processor cores, {memory} GB of memory", cores=machine.cores,
                         memory=round(machine.memory_bytes / 1e9))), _gpu_finding(machine)]
    missing = [name for name, number in machine.versions.items() if number == "-"]
    findings.append(_bad("error", Text("missing packages: {names}", names=", ".join(missing)), Text("Run `make setup`."))
                    if missing else _ok(Text("all packages are installed")))
    findings.append(_model_finding(workspace))
    if not student_of(workspace):  # how the studio is installed, and where, is its owner's business
        findings += [_ok(text) if fix is None else _bad("error" if level == "error" else "warning", text, fix)
                     for level, text, fix in look_around(workspace, machine.versions, bool(machine.gpus), CHECKOUT / "requirements.lock")]
    if machine.disk_free_bytes < _LOW_DISK_BYTES:
        findings.append(_bad("warning", Text("only {free} GB of disk are free", free=round(machine.disk_free_bytes / 1e9, 1)),
                             Text("Delete runs you no longer need, or set SWEETSPOT_HOME to a larger disk.")))
    if machine.memory_free_bytes < _LOW_MEMORY_BYTES:
        findings.append(_bad("warning", Text("only {free} GB of memory are free", free=round(machine.memory_free_bytes / 1e9, 1)),
                             Text("Close other programs; the lesson needs about 4 GB.")))
    return sorted(findings, key=lambda finding: ("ok", "warning", "error").index(finding.level))


def _gpu_finding(machine: Machine) -> Finding:
    if not machine.gpus:
        return _ok(Text("no NVIDIA GPU: the processor trains the embedded model in about a minute"))
    names = ", ".join(f"{gpu.name} ({gpu.free_bytes / 1e9:.0f} of {gpu.total_bytes / 1e9:.0f} GB free)" for gpu in machine.gpus)
    return _ok(Text("GPU: {names}", names=names))


def _model_finding(workspace: Workspace) -> Finding:
    try:
        gguf_file()
    except StudioError as error:
        return _bad("error", error.problem, error.hint)
    return _ok(Text("the embedded model is ready") if is_prepared(workspace)
               else Text("the embedded model is installed; the first lesson prepares it"))


def _ok(text: Text) -> Finding:
    return Finding(level="ok", text=text.to_json())


def _bad(level: Literal["warning", "error"], text: Text, fix: Text) -> Finding:
    return Finding(level=level, text=text.to_json(), fix=fix.to_json())
