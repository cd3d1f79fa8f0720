"""XTuner's checkpoints: hostile ones are refused and named and nothing runs; the others become adapters with exactly their values."""

from __future__ import annotations

import builtins
import collections
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from core.convert.pickles import read_checkpoint
from core.convert.split import split_weights
from core.convert.xtuner_adapter import adapt_to_base, find_checkpoints, read_xtuner
from core.convert.xtuner_run import convert_job
from core.errors import StudioError
from core.jobs.folder import JobState, create_job
from core.jobs.worker import Recorder
from core.models.catalogue import find_model
from core.models.header import read_header, tensor_shapes
from core.runs import find_run
from core.workspace import Workspace, read_json, write_json

CONFIG = """
prompt_template = 'xtuner.utils.PROMPT_TEMPLATE.default'
model = dict(type='xtuner.model.SupervisedFinetune',
    llm=dict(type='transformers.AutoModelForCausalLM.from_pretrained', pretrained_model_name_or_path='/root/ft/model'),
    lora=dict(type='peft.LoraConfig', r=4, lora_alpha=24, lora_dropout=0.1, bias='none', task_type='CAUSAL_LM'))
"""


class Calls:
    """Pickles as the call of a function with arguments."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


HOSTILE = {
    "os.system": (lambda mark: Calls(os.system, f"touch {mark}"), "system"),
    "eval": (lambda mark: Calls(builtins.eval, f"open({str(mark)!r}, 'w')"), "builtins.eval"),
    "exec": (lambda mark: Calls(builtins.exec, f"open({str(mark)!r}, 'w')"), "builtins.exec"),
    "open": (lambda mark: Calls(builtins.open, str(mark), "w"), "io.open"),
    "nested": (lambda mark: {"a": [collections.OrderedDict(b=(Calls(os.system, f"touch {mark}"),))]}, "system"),
    "a call inside a call": (lambda mark: Calls(collections.OrderedDict, [("a", Calls(os.mkdir, str(mark)))]), "mkdir"),
    "import": (lambda mark: Calls(builtins.__import__, "antigravity"), "builtins.__import__"),
    "a file of torch": (lambda mark: Calls(torch.load, str(mark)), "torch.serialization.load"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("place", ["state_dict", "meta"])
def test_a_hostile_checkpoint_is_refused_and_named_and_nothing_runs(name: str, place: str, tmp_path: Path) -> None:
    make, named = HOSTILE[name]
    mark = tmp_path / "ran"
    torch.save({"state_dict": {}, "meta": {}, place: {"x": make(mark)}}, tmp_path / "iter_1.pth")
    with pytest.raises(StudioError, match="Nothing in it was run") as caught:
        read_xtuner(tmp_path / "iter_1.pth")
    assert named in str(caught.value)
    assert not mark.exists() and "antigravity" not in sys.modules


@pytest.mark.parametrize("code", [
    b"cnumpy\nload\n(Vx\ntR.", b"cmmengine.fileio\nload\n(Vx\ntR.", b"cpathlib\nPath.unlink\n(Vx\ntR."])
def test_names_of_known_packages_do_nothing_either(code: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_text("still here")
    before = set(sys.modules)
    repack(tmp_path / "a.pth", b"}Vkey\n" + code[:-1] + b"s.")
    assert read_checkpoint(tmp_path / "a.pth")["key"] == {}
    assert (tmp_path / "x").exists() and "mmengine" not in set(sys.modules) - before


SHRUNK = torch.zeros(4).as_strided((100_000, 100_000), (0, 0))
HARMFUL = {
    "a state for a function": (b"}Vkey\nctorch._utils\n_rebuild_parameter\n(N}V__defaults__\n(I1\ntstbs.", "changes a function"),
    "a state for a class": (b"}Vkey\nctorch.storage\nUntypedStorage\n(N}Vevil\nI1\nstbs.", "torch.storage.UntypedStorage"),
    "room for nothing": (b"}Vkey\nctorch.storage\nUntypedStorage\n(I9000000000000\ntRs.", "torch.storage.UntypedStorage"),
    "a far number": (b"\x80\x02}r\xff\xff\xff\x7f.", "number 2147483647"),
    "a number for the registry": (b"\x80\x02}Vkey\n\x82\x01s.", "cannot be read"),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_a_checkpoint_neither_changes_this_process_nor_fills_its_memory(name: str, tmp_path: Path) -> None:
    pickled, words = HARMFUL[name]
    repack(tmp_path / "a.pth", pickled)
    with pytest.raises(StudioError, match=words):
        read_checkpoint(tmp_path / "a.pth")
    assert not hasattr(torch.UntypedStorage, "evil") and torch._utils._rebuild_parameter.__defaults__ is None


def test_a_checkpoint_is_not_larger_than_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"state_dict": {"deep": [SHRUNK]}}, path)
    with pytest.raises(StudioError, match="10000000000 numbers has 16 bytes"):
        read_checkpoint(path)
    torch.save({"log": "x" * 100_000}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    with pytest.raises(StudioError, match="it is packed"):
        read_checkpoint(path)


def repack(path: Path, pickled: bytes) -> None:
    """A file by torch.save whose pickle is replaced by another."""
    torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(name, pickled if name.endswith("data.pkl") else data)


def test_damaged_files_and_other_formats_get_a_sentence(tmp_path: Path) -> None:
    good = tmp_path / "good.pth"
    torch.save({"state_dict": {"a": torch.zeros(300)}}, good)
    bad = tmp_path / "bad.pth"
    for data in (b"", b"\x80\x04.", good.read_bytes()[:-40], b"PK\x03\x04" + b"x" * 90):
        bad.write_bytes(data)
        with pytest.raises(StudioError, match="bad.pth"):
            read_xtuner(bad)
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(bad))
    with pytest.raises(StudioError, match="no file that today's torch.save writes"):
        read_xtuner(bad)
    torch.save([1], bad)
    with pytest.raises(StudioError, match="holds no checkpoint"):
        read_xtuner(bad)
    with pytest.raises(StudioError, match="other tensors; it is of a full training"):
        read_xtuner(good)
    for nowhere in (tmp_path / "none", tmp_path / ("x" * 300)):
        with pytest.raises(StudioError, match="There is no checkpoint"):
            find_checkpoints(nowhere)


def mmengine_objects(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What mmengine leaves in a checkpoint, under its own module's name: a buffer with methods and arrays, a config, numpy numbers."""
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def __init__(self) -> None:
            self.log = np.arange(3.0)
            self.statistics = {"mean": self.mean}

        def mean(self) -> float:
            return 0.0

    class ConfigDict(dict):
        pass

    for kind in (HistoryBuffer, ConfigDict):
        kind.__module__, kind.__qualname__ = module.__name__, kind.__name__
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "mmengine", types.ModuleType("mmengine"))
    monkeypatch.setitem(sys.modules, "mmengine.logging", types.ModuleType("mmengine.logging"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return {"train/loss": HistoryBuffer(), "cfg": ConfigDict(a=np.float64(2)), "kind": np.dtype("int32"), "set": {1, 2},
            "array": np.zeros((2, 2), np.int64)}


def xtuner_state(shapes: dict[str, tuple[int, int]], rank: int = 4, seed: int = 1) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {f"llm.base_model.model.{layer}.lora_{side}.default.weight": torch.randn(shape, generator=random)
            for layer, (out, width) in shapes.items() for side, shape in (("A", (rank, width)), ("B", (out, rank)))}


LLAMA = {"model.layers.0.self_attn.q_proj": (64, 64), "model.layers.1.mlp.down_proj": (64, 128)}
# 4 heads over 2 key heads of width 16: the packed rows are 2 blocks of (2 + 1 + 1) heads.
INTERNLM2 = {"model.layers.0.attention.wqkv": (128, 64), "model.layers.0.attention.wo": (64, 64),
             "model.layers.1.feed_forward.w1": (128, 64), "model.layers.1.feed_forward.w3": (128, 64),
             "model.layers.1.feed_forward.w2": (64, 128)}


def test_a_checkpoint_with_mmengine_s_objects_is_read(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = xtuner_state(LLAMA)
    with monkeypatch.context() as patch:
        torch.save({"state_dict": state, "meta": {"cfg": CONFIG, "iter": 300}, "message_hub": mmengine_objects(patch),
                    "optimizer": {"state": {0: torch.zeros(9)}}}, tmp_path / "iter_300.pth")
    assert "mmengine" not in sys.modules
    with pytest.raises(pickle.UnpicklingError):  # so an allow-list of our own is needed
        torch.load(tmp_path / "iter_300.pth", weights_only=True)
    checkpoint = read_xtuner(tmp_path / "iter_300.pth")
    assert (checkpoint.step, checkpoint.rank, checkpoint.config) == (300, 4, CONFIG)
    tensors = adapt_to_base(checkpoint, tiny_model, tensor_shapes(tiny_model))
    assert torch.equal(tensors["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"],
                       state["llm.base_model.model.model.layers.1.mlp.down_proj.lora_B.default.weight"])


def test_internlm2_s_packed_layer_is_split_by_rows_exactly(tmp_path: Path, tiny_model: Path) -> None:
    state = xtuner_state(INTERNLM2)
    torch.save({"state_dict": state}, tmp_path / "iter_2.pth")
    tensors = adapt_to_base(read_xtuner(tmp_path / "iter_2.pth"), tiny_model, tensor_shapes(tiny_model))
    delta = {name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): tensors[name.replace("_A.", "_B.")] @ a
             for name, a in tensors.items() if ".lora_A." in name}
    packed = "llm.base_model.model.model.layers.0.attention.wqkv.lora_{}.default.weight"
    whole = state[packed.format("B")] @ state[packed.format("A")]
    rows = iter(whole.split(16))  # the published order, written out by hand: q0 q1 k0 v0, q2 q3 k1 v1
    q0, q1, k0, v0, q2, q3, k1, v1 = rows
    attention = "model.layers.0.self_attn."
    torch.testing.assert_close(delta[attention + "q_proj"], torch.cat([q0, q1, q2, q3]))
    torch.testing.assert_close(delta[attention + "k_proj"], torch.cat([k0, k1]))
    torch.testing.assert_close(delta[attention + "v_proj"], torch.cat([v0, v1]))
    assert set(delta) == {attention + name for name in ("q_proj", "k_proj", "v_proj", "o_proj")} | {
        f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")}
    up = state["llm.base_model.model.model.layers.1.feed_forward.w3.lora_B.default.weight"]
    assert torch.equal(tensors["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"], up)


@pytest.mark.parametrize(("shapes", "words"), [
    ({"model.layers.9.self_attn.q_proj": (64, 64)}, "layer model.layers.9.self_attn.q_proj is -"),
    ({"model.layers.0.self_attn.q_proj": (64, 32)}, r"is \[64, 64\], the adapter's is \[64, 32\]"),
    ({"model.layers.0.attention.wqkv": (100, 64)}, "packed rows do not divide"),
])
def test_an_adapter_of_another_base_is_refused(shapes: dict, words: str, tmp_path: Path, tiny_model: Path) -> None:
    torch.save({"state_dict": xtuner_state(shapes)}, tmp_path / "a.pth")
    with pytest.raises(StudioError, match=words):
        adapt_to_base(read_xtuner(tmp_path / "a.pth"), tiny_model, tensor_shapes(tiny_model))


@pytest.mark.parametrize(("extra", "words"), [
    ({"projector.model.0.weight": torch.zeros(2)}, "holds projector.model.0.weight beside the adapter"),
    ({"llm.base_model.model.x.lora_A.default.weight": torch.zeros(4, 8)}, "incomplete adapter"),
    ({f"llm.base_model.model.x.lora_{side}.default.weight": torch.zeros(8, 8) for side in "AB"}, "incomplete adapter"),
])
def test_what_a_plain_adapter_cannot_hold_is_named(extra: dict, words: str, tmp_path: Path) -> None:
    torch.save({"state_dict": xtuner_state(LLAMA) | extra}, tmp_path / "a.pth")
    with pytest.raises(StudioError, match=words):
        read_xtuner(tmp_path / "a.pth")


def test_zero_2_keeps_the_weights_whole_and_zero_3_does_not(tmp_path: Path) -> None:
    folder = tmp_path / "iter_40.pth"
    folder.mkdir()
    torch.save({"module": {name: value.bfloat16() for name, value in xtuner_state(LLAMA).items()}, "meta": {"cfg": CONFIG},
                "ds_config": {}}, folder / "mp_rank_00_model_states.pt")
    torch.save({}, folder / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    assert find_checkpoints(tmp_path) == [folder]
    checkpoint = read_xtuner(folder)
    assert (checkpoint.step, checkpoint.rank, checkpoint.config) == (40, 4, CONFIG)
    (folder / "mp_rank_00_model_states.pt").rename(folder / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    with pytest.raises(StudioError, match="ZeRO-3"):
        read_xtuner(find_checkpoints(folder)[0])


def converted(workspace: Workspace, **spec: Any) -> dict[str, Any]:
    job = create_job(workspace.jobs / f"convert-{len(list(workspace.jobs.iterdir()))}", "convert-xtuner", spec)
    return convert_job(workspace, job, Recorder(job, JobState(kind="convert-xtuner", created=0)))


def test_a_folder_of_checkpoints_becomes_a_run(workspace: Workspace, tiny_model: Path, tmp_path: Path) -> None:
    for step in (600, 90):
        torch.save({"state_dict": xtuner_state(LLAMA, seed=step), "meta": {"cfg": CONFIG, "iter": step}}, tmp_path / f"iter_{step}.pth")
    result = converted(workspace, source=str(tmp_path), name="course", base=str(tiny_model), data="alex")
    run = find_run(workspace, "course")
    assert (run.id, result["steps"], result["alpha"], run.state().state) == (result["run"], [90, 600], 24, "finished")
    recipe = run.recipe()
    assert (recipe.method.rank, recipe.method.alpha, recipe.method.dropout, recipe.probe_dataset) == (4, 24, 0.1, "alex")
    assert recipe.method.targets == ["down_proj", "q_proj"] and recipe.model.source == str(tiny_model)
    model = find_model(workspace, "course@600")
    assert model.base == tiny_model and (model.adapter / "chat_template.jinja").exists()
    config = read_json(model.adapter / "adapter_config.json")
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 24, "LORA")
    assert "default template" in str(result["notes"])


def test_peft_reads_the_adapter(workspace: Workspace, tiny_model: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    state = xtuner_state(LLAMA)
    torch.save({"state_dict": state}, tmp_path / "iter_5.pth")
    result = converted(workspace, source=str(tmp_path / "iter_5.pth"), name="plain", base=str(tiny_model))
    assert result["alpha"] == 16 and "no config says alpha" in str(result["notes"])
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = base.model.layers[0].self_attn.q_proj.weight.detach().clone()
    merged = PeftModel.from_pretrained(base, find_model(workspace, "plain@5").adapter).merge_and_unload()
    a, b = (state[f"llm.base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.default.weight"] for side in "AB")
    torch.testing.assert_close(merged.model.layers[0].self_attn.q_proj.weight.detach(), before + 16 / 4 * b @ a)


def test_a_failed_conversion_leaves_nothing(workspace: Workspace, tiny_model: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": xtuner_state(LLAMA)}, tmp_path / "iter_1.pth")
    torch.save({"state_dict": xtuner_state({"model.layers.0.mlp.up_proj": (1, 1)})}, tmp_path / "iter_2.pth")
    with pytest.raises(StudioError, match="does not fit"):
        converted(workspace, source=str(tmp_path), name="half", base=str(tiny_model))
    assert not list(workspace.runs.iterdir())


def test_a_model_in_smaller_shards_is_the_same_model(tiny_model: Path, tmp_path: Path) -> None:
    names = split_weights(tiny_model, tmp_path, 100_000, lambda done, total: None)
    assert len(names) > 2 and all((tmp_path / name).stat().st_size < 110_000 for name in names)
    write_json(tmp_path / "config.json", read_json(tiny_model / "config.json"))
    assert tensor_shapes(tmp_path) == tensor_shapes(tiny_model)
    assert read_header(tmp_path).parameters == read_header(tiny_model).parameters
    whole = {name: value for path in tmp_path.glob("*.safetensors") for name, value in load_file(path).items()}
    assert all(torch.equal(whole[name], value) for name, value in load_file(tiny_model / "model.safetensors").items())
