"""Merging in this process: what is written, what is refused, and that a failure leaves nothing half."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.errors import StudioError
from core.jobs.folder import Job
from core.merge.request import MergeRequest, find_sources, merge_job_for, parse_size, parse_weights
from core.models.header import read_header, weight_files
from core.runs import Run, find_run
from core.workspace import Workspace, read_json, write_json

Merge = Callable[..., dict[str, Any]]


@pytest.fixture
def trained(trained_run: tuple[Workspace, Run], tmp_path: Path) -> tuple[Workspace, Run]:
    """A copy of the trained run with a workspace of its own."""
    workspace, run = trained_run
    copy = Workspace.open(shutil.copytree(workspace.root, tmp_path / "own"))
    return copy, find_run(copy, run.id)


@pytest.fixture
def merge(trained: tuple[Workspace, Run]) -> Merge:
    """`merge("last", "2", name="x", strength=0.5)` does the whole job here and gives its report."""
    from core.jobs.worker import Recorder
    from core.merge.worker import merge_job

    workspace, run = trained

    def do(*steps: str, name: str = "made", **options: Any) -> dict[str, Any]:
        job = merge_job_for(workspace, MergeRequest(tuple(f"{run.id}@{step}" for step in steps), name, **options))
        return merge_job(workspace, job, Recorder(job, job.state()))

    return do


def weights_of(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {key: value for path in weight_files(folder) for key, value in load_file(path).items()}


def jobs_of(workspace: Workspace) -> list[Job]:
    return [Job(folder) for folder in sorted(workspace.jobs.iterdir())]


# --- what is written ---


def test_a_merge_is_what_peft_merges(trained, merge, tiny_model) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    workspace, run = trained
    report = merge("last", strength=0.5)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), run.checkpoints()[-1].folder)
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] *= 0.5
    wanted = model.merge_and_unload().state_dict()
    found = weights_of(workspace.models / "made")
    assert report["strength"] == 0.5 and report["model"] == f"{run.id}@6"
    assert all(torch.allclose(value, wanted[name], atol=1e-6) for name, value in found.items())
    assert report["verification"]["tensors_changed"] == 14 and report["verification"]["same_answers"]


def test_files_keep_within_the_size_and_hold_the_same_numbers(trained, merge) -> None:
    from transformers import AutoModelForCausalLM

    workspace, _ = trained
    merge("last")
    # `parse_size` wants a megabyte at least; the tiny model has less.
    merge("last", name="cut", max_shard_bytes=120_000)
    whole, cut = weights_of(workspace.models / "made"), weights_of(workspace.models / "cut")
    files = weight_files(workspace.models / "cut")
    assert len(files) > 2 and all(path.stat().st_size < 130_000 for path in files)
    assert whole.keys() == cut.keys() and all((whole[name] == cut[name]).all() for name in whole)
    _, info = AutoModelForCausalLM.from_pretrained(workspace.models / "cut", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert read_header(workspace.models / "cut").parameters == read_header(workspace.models / "made").parameters


def test_sixteen_bits_are_written_and_stated(trained, merge) -> None:
    workspace, _ = trained
    report = merge("last", dtype="bfloat16")
    config = read_json(workspace.models / "made" / "config.json")
    assert report["dtype"] == config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert read_header(workspace.models / "made").dtype == "BF16" and report["verification"]["logit_tolerance"] == 1.0


def test_snapshots_are_averaged_exactly(trained, merge, tiny_model) -> None:
    import torch

    workspace, run = trained
    report = merge("2", "6", name="mean", weights=(3.0, 1.0))
    combined = report["combined"]
    assert combined["norm_ratio"] == pytest.approx(1) and combined["warning"] is None and combined["rank"] == 8
    assert [(model["model"], model["weight"]) for model in combined["models"]] == [(f"{run.id}@2", 0.75), (f"{run.id}@6", 0.25)]
    for step in ("2", "6"):
        merge(step, name=f"step-{step}")
    base, mean, early, late = (weights_of(folder) for folder in (
        tiny_model, *(workspace.models / name for name in ("mean", "step-2", "step-6"))))
    for name, value in base.items():
        assert torch.allclose(mean[name] - value, 0.75 * (early[name] - value) + 0.25 * (late[name] - value), atol=1e-6)
    assert not (jobs_of(workspace)[0].folder / "combined").exists()


def test_pefts_linear_is_merged_with_its_warning(trained, merge) -> None:
    report = merge("4", "6", how="linear")
    assert report["combined"]["norm_ratio"] > 1.7 and "`average` is exact" in report["combined"]["warning"]["template"]
    assert report["verification"]["same_answers"]


def test_a_head_that_shared_its_matrix_gets_its_own(tiny_model, tmp_path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from core.chat.stacked import Adapter
    from core.merge.weights import changed_tensors, merge_weights

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(r=2, target_modules=["lm_head"]))
    for key, value in model.named_parameters():
        if "lora_B" in key:
            value.data.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(tmp_path / "adapter")
    tensors = {key: value for key, value in weights_of(tmp_path / "adapter").items() if "lora_" in key}
    from safetensors.torch import save_file
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "made").mkdir()
    assert merge_weights(tiny_model, Adapter("a", tmp_path / "adapter"), tmp_path / "made", "auto", lambda *_: None) == 1
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.allclose(merged(ids).logits, model(ids).logits, atol=1e-4)
    assert not merged.config.tie_word_embeddings and changed_tensors(tiny_model, tmp_path / "made") == 1


# --- the check refuses ---


def sabotaged(monkeypatch, change: Callable[[Path], None]) -> None:
    """Let the merge do its work, then spoil it before the check looks."""
    from core.merge import worker

    honest = worker.merge_weights

    def spoil(base: Path, adapter: Any, folder: Path, *args: Any, **options: Any) -> int:
        changed = honest(base, adapter, folder, *args, **options)
        change(folder)
        return changed

    monkeypatch.setattr(worker, "merge_weights", spoil)


def put_weights(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    from safetensors.torch import save_file

    save_file(change(weights_of(folder)), folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(("spoil", "flag"), [
    ("base", "it is the base model: no tensor changed"), ("one", "13 tensors changed instead of 14"),
    ("twice", "its logits differ by up to"), ("nan", "its logits differ by up to nan"),
    ("template", "its tokenizer or chat template is not the base model's")])
def test_a_sabotaged_merge_is_not_registered(trained, merge, tiny_model, monkeypatch, spoil, flag) -> None:
    workspace, _ = trained
    base = weights_of(tiny_model)
    some = "model.layers.0.self_attn.q_proj.weight"

    def change(folder: Path) -> None:
        if spoil == "template":
            (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
        else:
            put_weights(folder, lambda made: {
                "base": lambda: base, "one": lambda: made | {some: base[some]},
                "twice": lambda: {name: value + (value - base[name]) for name, value in made.items()},
                "nan": lambda: made | {some: made[some] * float("nan")}}[spoil]())

    sabotaged(monkeypatch, change)
    with pytest.raises(StudioError, match=f"The merged model was not kept: {flag}"):
        merge("last")
    assert list(workspace.models.iterdir()) == []
    kept = read_json(jobs_of(workspace)[0].folder / "verification.json")
    assert kept["verification"]["answers_compared"] == 5


# --- QLoRA ---


def test_requantised_weights_are_those_that_bitsandbytes_computes_with(tiny_model) -> None:
    import torch
    from bitsandbytes.functional import dequantize_4bit

    from core.merge.quantized import Requantizer
    from core.models.load import load_model

    requantizer = Requantizer(tiny_model, torch.float32)
    assert len(requantizer.names) == 14 and "model.embed_tokens.weight" not in requantizer.names
    loaded, plain = dict(load_model(tiny_model, torch.float32, "cpu", "nf4").named_modules()), weights_of(tiny_model)
    for name in requantizer.names:
        weight = loaded[name.removesuffix(".weight")].weight
        seen = dequantize_4bit(weight.data, weight.quant_state).reshape(plain[name].shape)
        assert torch.equal(requantizer.apply(name, plain[name]), seen), name
        assert not torch.equal(seen, plain[name])


def test_a_qlora_adapter_says_what_merging_onto_other_weights_changes(trained, merge) -> None:
    workspace, run = trained
    path = run.folder / "recipe.yaml"
    path.write_text(path.read_text().replace("quantization: none", "quantization: nf4"))
    assert run.recipe().model.quantization == "nf4"
    plain = merge("last")
    quantized = merge("last", name="as-trained", onto="quantized")
    one, two = plain["verification"]["quantised"], quantized["verification"]["quantised"]
    assert (one["kind"], one["onto"], two["onto"]) == ("nf4", "base", "quantized")
    assert one["max_logit_difference"] > 0.1, "the 4-bit base is another model"
    assert two["max_logit_difference"] < 1e-3 and not two["differences"], "up to rounding it is the model that was trained"
    assert plain["verification"]["same_answers"] and quantized["verification"]["tensors_changed"] == 14


# --- what is refused before ---


@pytest.mark.parametrize(("changes", "problem"), [
    ({"dtype": "int4"}, "'int4' is no dtype"), ({"strength": 0.0}, "strength 0.0 is not above 0"),
    ({"strength": 1.5}, "strength 1.5 is not above 0"), ({"strength": float("nan")}, "strength nan"), ({"onto": "air"}, "'air' is nothing"),
    ({"onto": "quantized"}, "Only an adapter trained over 4-bit weights"), ({"models": ("RUN@2", "RUN@6"), "how": "mean"}, "no way"),
    ({"models": ("RUN@2", "RUN@6"), "weights": (1.0,)}, "2 adapters and 1 weights"), ({"weights": (1.0,)}, "Only one adapter was named"),
    ({"models": ("RUN@0",)}, "would be the base model"), ({"models": ("RUN@2*0",)}, "would be the base model"),
    ({"models": ("RUN@3",)}, "saved no checkpoint"), ({"density": 0.0, "how": "ties"}, "density 0.0"),
    ({"name": "tiny"}, "A model called tiny exists already"), ({"models": ("MODEL",)}, "has no adapter to merge")])
def test_what_cannot_be_merged_is_said_before_a_job_is_made(trained, tiny_model, changes, problem) -> None:
    workspace, run = trained
    (workspace.models / "tiny").mkdir()
    asked = {"models": ("RUN@2",), "name": "made"} | changes
    asked["models"] = tuple(text.replace("RUN", run.id).replace("MODEL", str(tiny_model)) for text in asked["models"])
    with pytest.raises(StudioError, match=problem):
        merge_job_for(workspace, MergeRequest(**asked))
    assert jobs_of(workspace) == []


def test_adapters_of_two_bases_are_refused(trained, tiny_model, tmp_path) -> None:
    workspace, run = trained
    other = Path(shutil.copytree(run.folder, workspace.runs / "20990101-000000-other-1"))
    shutil.copytree(tiny_model, tmp_path / "another")
    path = other / "recipe.yaml"
    path.write_text(path.read_text().replace(str(tiny_model), str(tmp_path / "another")))
    with pytest.raises(StudioError, match="adapters of different base models"):
        find_sources(workspace, MergeRequest((f"{run.id}@2", "other@6"), "made"))


def test_an_adapter_of_another_base_is_named_by_its_layer_and_leaves_nothing(trained, merge, tiny_model, tmp_path) -> None:
    workspace, run = trained
    changed = shutil.copytree(tiny_model, tmp_path / "wider")
    put_weights(changed, lambda made: made | {"model.layers.1.mlp.up_proj.weight": made["model.layers.1.mlp.up_proj.weight"][:-1].clone()})
    path = run.folder / "recipe.yaml"
    path.write_text(path.read_text().replace(str(tiny_model), str(changed)))
    with pytest.raises(StudioError, match="does not fit the base model in .*: layer model.layers.1.mlp.up_proj is missing"):
        merge("last")
    assert list(workspace.models.iterdir()) == []


def test_a_value_that_float16_cannot_hold_is_named(trained, merge, tiny_model, tmp_path) -> None:
    workspace, run = trained
    large = shutil.copytree(tiny_model, tmp_path / "large")
    put_weights(large, lambda made: made | {"model.norm.weight": made["model.norm.weight"] * 1e5})
    path = run.folder / "recipe.yaml"
    path.write_text(path.read_text().replace(str(tiny_model), str(large)))
    with pytest.raises(StudioError, match="float16 cannot hold the values of model.norm.weight"):
        merge("last", dtype="float16")
    assert list(workspace.models.iterdir()) == []


@pytest.mark.parametrize(("text", "size"), [
    ("2GB", 2_000_000_000), ("500mb", 500_000_000), ("1.5GiB", 1_610_612_736), ("3 TB", 3 * 10**12)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "2", "GB", "-1GB", "10KB", "2 gigabytes", "nanGB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(StudioError, match="is no size"):
        parse_size(text)


def test_weights_are_read() -> None:
    assert parse_weights("0.5, -1,2e-1") == (0.5, -1.0, 0.2) and parse_weights(None) is None
    with pytest.raises(StudioError, match="'0.5;1' are no weights"):
        parse_weights("0.5;1")


def test_a_request_survives_its_job(trained) -> None:
    workspace, run = trained
    for request in (MergeRequest((f"{run.id}@2",), "one"), MergeRequest((f"{run.id}@2*0.5",), "two", 0.5, "bfloat16", 10**9),
                    MergeRequest((f"{run.id}@2", f"{run.id}@6"), "three", weights=(0.2, 0.8), how="ties", density=0.3, seed=4)):
        assert MergeRequest.from_spec(merge_job_for(workspace, request).spec()) == request


# --- a full disk ---


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 200 kB, as on a file system with a limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_the_disk_does_not_take_leaves_nothing(trained, merge, small_files) -> None:
    workspace, _ = trained
    with pytest.raises(StudioError, match="takes no file as large as") as caught:
        merge("last")
    assert "--max-shard-size" in str(caught.value.hint) and list(workspace.models.iterdir()) == []
    merge("last", max_shard_bytes=120_000)  # the way out
    assert [path.name for path in workspace.models.iterdir()] == ["made"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_disk_that_fills_while_merging_leaves_nothing(trained, merge) -> None:
    workspace, _ = trained
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(workspace.models)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this container may not mount")
    try:
        with pytest.raises(StudioError, match="The disk is full"):
            merge("last")
        assert list(workspace.models.iterdir()) == []
        assert shutil.disk_usage(workspace.models).used < 20_000, "the room is free again"
    finally:
        subprocess.run(["umount", str(workspace.models)], check=True)


# --- for transformers 4.57 as well ---


def test_the_configuration_has_the_names_of_both_versions(trained, merge, tiny_model, tmp_path) -> None:
    from transformers import AutoConfig

    workspace, run = trained
    base = shutil.copytree(tiny_model, tmp_path / "v5")
    config = read_json(base / "config.json")
    config["rope_parameters"] = {"rope_type": "linear", "factor": 4.0, "rope_theta": 100000.0}
    write_json(base / "config.json", config)
    write_json(base / "tokenizer_config.json", read_json(base / "tokenizer_config.json") | {
        "tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<|im_end|>"], "is_local": True, "backend": "tokenizers"})
    path = run.folder / "recipe.yaml"
    path.write_text(path.read_text().replace(str(tiny_model), str(base)))
    merge("last")
    made = workspace.models / "made"
    written = json.loads((made / "config.json").read_text())
    assert written["rope_theta"] == 100000.0 and written["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert written["dtype"] == written["torch_dtype"] == "float32"
    tokenizer = json.loads((made / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["model_input_names"] == ["input_ids", "attention_mask"] and tokenizer["additional_special_tokens"]
    assert not {"extra_special_tokens", "backend", "is_local"} & set(tokenizer)
    assert AutoConfig.from_pretrained(made).rope_parameters == config["rope_parameters"], "version 5 reads what it read before"
