"""Several processes make the same updates as one, at every ZeRO stage, and one's state is the other's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.data.encode import Encoded
from core.errors import StudioError
from core.machine import Gpu
from core.train.batches import share_rows
from core.train.create import create_run
from core.train.devices import choose_devices, own_gpu
from core.train.zero import import_deepspeed
from core.workspace import CHECKOUT, write_json
from tests.core.conftest import save_tiny_dataset, tiny_recipe

STAGES = "1,2o,3,0,3a"


def row(length: int) -> Encoded:
    return Encoded(list(range(length)), [True] * length, "", [])


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_each_row_goes_to_one_rank_and_the_work_is_even(ranks):
    rows = [row(length) for length in (5, 90, 31, 17, 64, 8, 8, 55, 40, 12, 77, 23)]
    shares = share_rows(rows, ranks)
    assert len(shares) == ranks and sorted(map(id, rows)) == sorted(id(item) for share in shares for item in share)
    counts, tokens = [len(share) for share in shares], [sum(len(item.ids) for item in share) for share in shares]
    assert max(counts) - min(counts) <= 1 and max(tokens) - min(tokens) <= 90
    assert [len(share) for share in share_rows(rows[:1], ranks)] == [1] + [0] * (ranks - 1)


def run_ranks(count: int, tiny_model: Path, out: Path, dtype: str = "float32", stages: str = STAGES) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m", "tests.core.ranks_program",
         str(tiny_model), str(out), stages, dtype, "lora", "full"], cwd=CHECKOUT, capture_output=True, text=True, timeout=250,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"})
    said = [line for line in (done.stdout + done.stderr).splitlines() if "arning" not in line and "warn(" not in line]
    assert done.returncode == 0, "\n".join(said)[:6000]


def numbers_of_one_process(tiny_model: Path, kind: str) -> tuple:
    """The losses and gradient norms of one process that never stopped, and what computed them."""
    import torch

    from core.train.batches import Fit
    from core.train.fit import Accumulator
    from core.train.model import make_step, prepare_model
    from core.train.ranks import ALONE
    from tests.core.ranks_program import RATE, rows_for

    recipe = tiny_recipe(tiny_model, method__kind=kind)
    torch.manual_seed(0)
    step, _ = make_step(recipe, prepare_model(recipe, tiny_model, "cpu"), rows_for(tiny_model, 0)[0].ids, "cpu")
    accumulator = Accumulator(step, ALONE, Fit(8192), 2, "cpu", False)
    numbers = [[accumulator.run(rows_for(tiny_model, update), update), step.apply(RATE)] for update in range(len(STAGES.split(",")))]
    return numbers, step, accumulator


def agree_with_one_process(tiny_model: Path, out: Path, kind: str) -> None:
    """Losses, gradient norms and the final state of the ranks are those of one process, which can go on with that state."""
    import torch
    from safetensors.torch import load_file

    from tests.core.ranks_program import rows_for

    numbers, step, accumulator = numbers_of_one_process(tiny_model, kind)
    theirs = json.loads((out / f"{kind}.json").read_text())
    assert [loss for loss, _ in theirs] == pytest.approx([loss for loss, _ in numbers], rel=2e-5)
    assert [norm for _, norm in theirs] == pytest.approx([norm for _, norm in numbers], rel=2e-4)
    assert numbers[-1][0] < numbers[0][0]
    kept, own = load_file(out / f"{kind}.safetensors"), dict(step.state())
    assert kept.keys() == own.keys() and len(kept) > 50
    for name, value in own.items():
        assert kept[name].shape == value.shape
        torch.testing.assert_close(kept[name], value, rtol=2e-3, atol=3e-5)
    step.restore(kept, len(numbers))
    assert accumulator.run(rows_for(tiny_model, 9), 9) < numbers[0][0]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_at_every_stage_agree_with_one(tiny_model, tmp_path, processes):
    run_ranks(processes, tiny_model, tmp_path)
    agree_with_one_process(tiny_model, tmp_path, "lora")
    agree_with_one_process(tiny_model, tmp_path, "full")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_half_precision_weights_keep_exact_ones_behind_them(tiny_model, tmp_path):
    """In bfloat16 the ranks follow float32 closely, as each keeps its share of the weights exactly."""
    run_ranks(2, tiny_model, tmp_path, "bfloat16", "1,1,2,3o,3")
    for kind in ("lora", "full"):
        numbers, *_ = numbers_of_one_process(tiny_model, kind)
        theirs = json.loads((tmp_path / f"{kind}.json").read_text())
        assert [loss for loss, _ in theirs] == pytest.approx([loss for loss, _ in numbers], rel=1e-2)


def test_devices_are_those_that_the_recipe_names(tiny_model, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus = [Gpu(index=number, name="H100", total_bytes=1, free_bytes=1) for number in range(4)]
    monkeypatch.setattr("core.machine.read_gpus", lambda: gpus)
    names = {"auto": "cuda:0", 3: "cuda:0,cuda:1,cuda:2", (1, 3): "cuda:1,cuda:3"}
    for given, name in names.items():
        recipe = tiny_recipe(tiny_model, device__kind="auto", device__gpus=list(given) if isinstance(given, tuple) else given)
        assert choose_devices(recipe).name == name and choose_devices(recipe).processes == name.count("cuda")
    for too_many in (5, [0, 4]):
        with pytest.raises(StudioError, match="asks for GPUs that are not there.*has 4: 0, 1, 2, 3"):
            choose_devices(tiny_recipe(tiny_model, device__kind="auto", device__gpus=too_many))
    assert [own_gpu([1, 3], local) for local in (0, 1)] == [1, 3] and own_gpu(None, 2) == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")  # as a cluster does, and the launcher for its ranks
    assert choose_devices(tiny_recipe(tiny_model, device__kind="auto")).gpus == [3]
    assert choose_devices(tiny_recipe(tiny_model, device__kind="auto", device__gpus=2)).name == "cuda:3,cuda:1"
    assert [own_gpu([3, 1], local) for local in (0, 1)] == [0, 1] and own_gpu([1], 0) == 1
    assert [own_gpu([0, 1], local, processes=4) for local in (0, 1)] == [0, 1], "machine 0 has others than this one, which sees 3 and 1"
    with pytest.raises(StudioError, match="has 2: 3, 1"):
        choose_devices(tiny_recipe(tiny_model, device__kind="auto", device__gpus=[0]))
    monkeypatch.setattr("core.machine.read_gpus", lambda: [])
    assert choose_devices(tiny_recipe(tiny_model, device__gpus=3)).to_spec() == {"device": "cpu", "processes": 3, "gpus": None}
    with pytest.raises(StudioError, match=r"names GPUs \(0, 2\)"):
        choose_devices(tiny_recipe(tiny_model, device__gpus=[0, 2]))


class EndedAgent:
    """What torchrun's agent leaves behind when its ranks have ended."""

    error = None

    def __init__(self, **exit_codes: int) -> None:
        self.failures = {int(name[1:]): SimpleNamespace(exitcode=code) for name, code in exit_codes.items()}

    def is_alive(self) -> bool:
        return False


def test_why_the_processes_ended_is_told_by_the_first_cause(workspace, tiny_model):
    from core.train.launch import _explain
    from core.train.rank import folder_of

    save_tiny_dataset(workspace)
    run = create_run(workspace, tiny_recipe(tiny_model, device__gpus=3), "ended")
    folder_of(run).mkdir()
    assert "Process 1 of 3 was killed (SIGKILL)" in str(_explain(run, EndedAgent(_1=-9, _0=-15, _2=1), 3).problem)
    text = {"template": "connection lost", "values": {}}
    write_json(folder_of(run) / "failed-0.json", {"rank": 0, "time": 1.0, "is_known": False, "problem": text, "hint": text, "fit": None})
    assert str(_explain(run, EndedAgent(_0=1), 3).problem) == "Process 0 of 3: connection lost"
    assert "Process 1 of 3 was killed" in str(_explain(run, EndedAgent(_0=1, _1=-9), 3).problem), "the other only lost its partner"
    known = {"template": "Nothing left at update {n}.", "values": {"n": 4}}
    write_json(folder_of(run) / "failed-2.json", {"rank": 2, "time": 2.0, "is_known": True, "problem": known, "hint": text, "fit": None})
    assert str(_explain(run, EndedAgent(_0=1, _2=1), 3).problem) == "Nothing left at update 4."


def test_ranks_that_ran_out_of_memory_begin_again_with_half(workspace, tiny_model, monkeypatch):
    from core.train import launch
    from core.train.rank import folder_of
    from tests.core.test_killed import Silent

    save_tiny_dataset(workspace)
    run = create_run(workspace, tiny_recipe(tiny_model, device__zero=3), "short")
    started = []

    def start(processes, nodes, folder, gpus):
        started.append(run.spec().get("fit"))
        text = {"template": "A single row does not fit.", "values": {}}
        if len(started) < 3:
            fit = {"tokens": 64 // len(started), "rows": 4 // len(started)}
            write_json(folder_of(run) / "failed-0.json",
                       {"rank": 0, "time": 1.0, "is_known": True, "problem": text, "hint": text, "fit": fit})
            return EndedAgent(_0=1)
        write_json(folder_of(run) / "result.json", {"updates": 6, "planned": 6})
        return EndedAgent()

    monkeypatch.setattr(launch, "start_ranks", start)
    assert launch.train_in_processes(run, Silent()) == {"updates": 6, "planned": 6}
    assert started == [None, {"tokens": 64, "rows": 4}, {"tokens": 32, "rows": 2}]


@pytest.mark.parametrize(("device", "accelerator"), [("cuda", None), ("cuda:1", None), ("cpu", "cpu")])
def test_deepspeed_is_told_what_it_runs_on_however_the_device_is_named(monkeypatch, device, accelerator):
    deepspeed = SimpleNamespace(ops=SimpleNamespace(__compatible_ops__={}))
    monkeypatch.setitem(sys.modules, "deepspeed", deepspeed)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ.pop("DS_ACCELERATOR", None)
    import_deepspeed(device)
    assert os.environ.get("DS_ACCELERATOR") == accelerator
