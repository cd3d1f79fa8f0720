"""Several adapters as one: the exact ways against plain matrix sums, PEFT's against PEFT on a whole model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.errors import StudioError
from core.merge.methods import METHODS, check_weights


@pytest.fixture(scope="module")
def parts(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three adapters over the tiny model as PEFT saves them: a snapshot, a later one close to it, and one of another rank."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    made = []
    for name, rank, alpha, rslora in (("early", 4, 8, False), ("late", 4, 8, False), ("wide", 6, 3, True)):
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(
            r=rank, lora_alpha=alpha, use_rslora=rslora, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
        for index, (key, value) in enumerate(sorted(model.named_parameters())):
            if "lora_" in key:
                generator = torch.Generator().manual_seed(index + 1000 * (name == "wide"))
                value.data = torch.randn(value.shape, generator=generator) * 0.1
                if name == "late":  # a run goes on along its way
                    value.data = value.data * 1.1 + torch.randn(value.shape, generator=generator) * 0.004
        made.append(tmp_path_factory.mktemp("adapters") / name)
        model.save_pretrained(made[-1])
    return made


def change_of(folder: Path, strength: float = 1.0) -> dict:
    """Layer -> the change of its weight (out, in), from the files and PEFT's rule of scale."""
    from safetensors.torch import load_file

    config = json.loads((folder / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"]) * strength
    tensors = load_file(folder / "adapter_model.safetensors")
    return {key.removesuffix(".lora_A.weight"): scale * tensors[key.replace("lora_A", "lora_B")] @ value
            for key, value in tensors.items() if "lora_A" in key}


def joined(parts: list[Path], *args, **options):
    from core.chat.stacked import Adapter
    from core.merge.combine import combine

    return combine([Adapter(part.name, part) for part in parts], *args, **options)


@pytest.mark.parametrize(("how", "weights", "used"), [
    ("cat", [0.7, -0.2, 1.5], [0.7, -0.2, 1.5]), ("average", [3, 1, 0], [0.75, 0.25, 0.0]), ("average", None, [1 / 3] * 3)])
def test_the_exact_ways_are_the_weighted_sum(parts, tmp_path, how, weights, used) -> None:
    import torch

    made = joined(parts, weights, how, tmp_path / "made")
    assert made.weights == pytest.approx(used) and made.rank == 14
    assert made.norm_ratio == pytest.approx(1) and made.cosine == pytest.approx(1) and made.warning() is None
    changes, result = [change_of(part) for part in parts], change_of(tmp_path / "made")
    assert len(result) == 4
    for layer, value in result.items():
        wanted = sum(weight * change[layer] for weight, change in zip(used, changes, strict=True))
        assert torch.allclose(value, wanted, atol=1e-6)


@pytest.mark.parametrize("how", ["linear", "ties"])
def test_pefts_ways_are_pefts(parts, tiny_model, tmp_path, how) -> None:
    """The same call on the whole model, as PEFT's documentation has it."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    joined(parts[:2], [0.6, 0.8], how, tmp_path / "made", density=0.4)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), parts[0], adapter_name="a")
    model.load_adapter(parts[1], "b")
    model.add_weighted_adapter(["a", "b"], [0.6, 0.8], "c", combination_type=how, **({} if how == "linear" else {"density": 0.4}))
    result = change_of(tmp_path / "made")
    assert len(result) == 4
    for layer, value in result.items():
        assert torch.allclose(value, model.get_submodule(layer).get_delta_weight("c"), atol=1e-6), layer


def test_dare_drops_at_random_and_scales_the_rest(parts, tmp_path) -> None:
    import torch
    from safetensors.torch import load_file

    joined(parts[:2], None, "dare", tmp_path / "made", density=0.4)
    matrices = load_file(tmp_path / "made" / "adapter_model.safetensors")
    values = torch.cat([value.flatten() for key, value in matrices.items() if "lora_A" in key])
    assert float((values == 0).float().mean()) == pytest.approx(0.6 ** 2, abs=0.05)  # dropped from both
    joined(parts[:2], None, "dare", tmp_path / "all", density=1.0)  # nothing dropped: only averaged
    joined(parts[:2], None, "linear", tmp_path / "linear")
    for one, two in zip(change_of(tmp_path / "all").values(), change_of(tmp_path / "linear").values(), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


def test_linear_doubles_two_snapshots_of_one_run_and_says_so(parts, tmp_path) -> None:
    made = joined(parts[:2], None, "linear", tmp_path / "made")
    assert made.norm_ratio == pytest.approx(2.0, abs=0.05)
    assert "2.0" in str(made.warning()) and "`average` is exact" in str(made.warning())


def test_dare_repeats_with_its_seed_and_differs_without(parts, tmp_path) -> None:
    first, again, other = (joined(parts[:2], None, "dare", tmp_path / name, seed=seed).norm_ratio
                           for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert first == again != other


def test_a_combined_adapter_loads_in_peft_and_answers_as_the_sum(parts, tiny_model, tmp_path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    joined(parts, [0.5, 0.3, 0.2], "cat", tmp_path / "made")
    ids = torch.tensor([[5, 6, 7, 8]])
    combined = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path / "made")(ids).logits
    plain = AutoModelForCausalLM.from_pretrained(tiny_model)
    for weight, part in zip((0.5, 0.3, 0.2), parts, strict=True):
        for layer, value in change_of(part).items():
            plain.get_submodule(layer.removeprefix("base_model.model.")).weight.data += weight * value
    assert torch.allclose(combined, plain(ids).logits, atol=1e-4)


def test_strength_counts_into_the_weights(parts, tmp_path) -> None:
    import torch

    from core.chat.stacked import Adapter
    from core.merge.combine import combine

    for how in ("cat", "linear"):
        combine([Adapter("a", parts[0], 0.5), Adapter("b", parts[1], 1.0)], [1.0, 1.0], how, tmp_path / how)
        joined(parts[:2], [0.5, 1.0], how, tmp_path / f"{how}-weights")
        for one, two in zip(change_of(tmp_path / how).values(), change_of(tmp_path / f"{how}-weights").values(), strict=True):
            assert torch.allclose(one, two, atol=1e-6)


@pytest.mark.parametrize(("how", "chosen", "weights", "problem"), [
    ("linear", (0, 2), None, "linear needs adapters of one rank, and these have 4, 6"),
    ("cat", (0, 0), [1.0, -1.0], "nothing is left of the adapters"),
])
def test_what_cannot_be_combined_leaves_nothing(parts, tmp_path, how, chosen, weights, problem) -> None:
    with pytest.raises(StudioError, match=problem):
        joined([parts[index] for index in chosen], weights, how, tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def test_adapters_of_two_bases_are_refused(parts, tmp_path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    other = shutil.copytree(parts[0], tmp_path / "other")
    tensors = load_file(other / "adapter_model.safetensors")
    key = min(key for key in tensors if "lora_A" in key)
    save_file(tensors | {key: tensors[key][:, :-1].contiguous()}, other / "adapter_model.safetensors")
    with pytest.raises(StudioError, match="other does not fit the first adapter: layer .* has another shape"):
        joined([parts[0], other], None, "cat", tmp_path / "made")


def test_an_adapter_with_more_than_lora_is_named(parts, tmp_path) -> None:
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    from core.chat.stacked import Adapter, read_deltas

    other = shutil.copytree(parts[0], tmp_path / "other")
    tensors = load_file(other / "adapter_model.safetensors")
    save_file(tensors | {"base_model.model.lm_head.modules_to_save.weight": torch.zeros(2)}, other / "adapter_model.safetensors")
    with pytest.raises(StudioError, match="holds base_model.model.lm_head.modules_to_save.weight, which is no A or B matrix"):
        read_deltas(Adapter("x", other))


def test_a_layer_may_have_a_scale_of_its_own(parts, tmp_path) -> None:
    """PEFT's alpha_pattern and rank_pattern: the first that a module's name ends with."""
    import shutil

    import torch

    from core.chat.stacked import Adapter, read_deltas

    other = shutil.copytree(parts[0], tmp_path / "other")
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"alpha_pattern": {"1.self_attn.q_proj": 24, "proj": 99}}))
    plain, own = read_deltas(Adapter("a", parts[0])), read_deltas(Adapter("b", other))
    for module, (_, b) in plain.items():
        factor = 3.0 if module == "model.layers.1.self_attn.q_proj" else 1.0  # 24 / 4 instead of 8 / 4; "proj" is no whole name
        assert torch.allclose(own[module][1], b * factor)


@pytest.mark.parametrize(("how", "count", "weights", "problem"), [
    ("mean", 2, None, "'mean' is no way"), ("cat", 1, None, "nothing to combine"), ("cat", 2, [1], "2 adapters and 1 weights"),
    ("cat", 2, [0, 0], "leave nothing"), ("ties", 2, [float("nan"), 1], "leave nothing"), ("average", 2, [2, -1], "no negative")])
def test_weights_that_do_not_fit(how, count, weights, problem) -> None:
    with pytest.raises(StudioError, match=problem):
        check_weights(how, count, weights)


def test_every_way_has_a_description() -> None:
    from core.merge import combine

    assert all(f"    {how} " in (combine.__doc__ or "") for how in METHODS)
