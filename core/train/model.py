"""The model of a training: the base, what of it is trained, and what computes its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import PreTrainedModel

from core.errors import StudioError
from core.models.load import choose_dtype, linear_targets, load_model
from core.models.products import use_fast_products
from core.recipe.schema import Recipe
from core.train.fast.choose import FastPlan, plan_fast
from core.train.fast.model import FastModel
from core.train.fast.step import FastLoss, FastStep
from core.train.packed import let_rows_stay_apart
from core.train.ranks import ALONE, Ranks
from core.train.step import PlainStep, Step
from core.train.update import SummedLoss, has_plain_head, language_model

# Settings by which models scale or bound what comes out of their head.
_CHANGES_LOGITS = {"final_logit_softcapping", "logits_scaling", "logit_scale"}
# float16 ends at 6e-8, and the gradient of a mean over a thousand tokens begins near 1e-3. A power of two, so that nothing is rounded.
_FLOAT16_SCALE = 4096.0


def compute_dtype(recipe: Recipe, device: str) -> torch.dtype:
    """The number format that the model computes in."""
    return choose_dtype(recipe.model.dtype, device)


def weights_dtype(recipe: Recipe, device: str) -> torch.dtype:
    """The number format of the loaded weights: float32 where they are trained themselves and nobody else keeps exact ones."""
    is_exact_elsewhere = recipe.method.kind == "lora" or recipe.device.zero > 0
    return compute_dtype(recipe, device) if is_exact_elsewhere else torch.float32


def prepare_model(recipe: Recipe, base: Path, device: str) -> PreTrainedModel:
    """The base model, with a fresh adapter when the recipe asks for one; only what is trained requires gradients."""
    refuse_impossible(recipe)
    is_divided = recipe.device.zero == 3
    settings = announce_division(recipe, device) if is_divided else None
    model = load_model(base, weights_dtype(recipe, device), device, recipe.model.quantization, is_divided)
    model = make_trainable(recipe, model)
    model.zero_settings = settings  # transformers holds it by a weak reference only
    return model


def make_trainable(recipe: Recipe, model: PreTrainedModel) -> PreTrainedModel:
    """Put the adapter on a loaded model, or let all of its weights be trained."""
    method = recipe.method
    if recipe.device.checkpointing == "on":
        # At stage 3 the weights come and go, and only the older way of recomputing does not mind.
        model.gradient_checkpointing_enable({"use_reentrant": recipe.device.zero == 3})
        model.enable_input_require_grads()
    if method.kind == "full":
        return model.requires_grad_(True)
    if recipe.model.quantization != "none":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        keep_differentiable(model)
    targets = linear_targets(model) if method.targets == "all-linear" else list(method.targets)
    config = LoraConfig(r=method.rank, lora_alpha=method.alpha, lora_dropout=method.dropout, target_modules=targets,
                        use_rslora=method.rslora, use_dora=method.dora, task_type="CAUSAL_LM")
    try:
        # At stage 3 DeepSpeed keeps the exact float32 values itself and wants all weights in one format.
        return get_peft_model(model, config, autocast_adapter_dtype=recipe.device.zero != 3)
    except ValueError as error:
        raise StudioError("The adapter cannot be put on this model: {reason}.",
                          "Check method.targets; `all-linear` fits every model.", reason=str(error)[:200]) from error


def keep_differentiable(model: PreTrainedModel) -> None:
    """On a processor, bitsandbytes repacks 4-bit weights for speed when a model only answers; no gradient passes through them then."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def refuse_impossible(recipe: Recipe) -> None:
    """Raises StudioError for what no library can do."""
    if recipe.model.quantization != "none" and recipe.method.kind == "full":
        raise StudioError("Quantised weights cannot be trained; only an adapter over them can.",
                          "Set method.kind: lora, or model.quantization: none.")
    if recipe.model.quantization != "none" and recipe.device.zero == 3:
        raise StudioError("ZeRO stage 3 cannot divide quantised weights.",
                          "Set device.zero to 2 or less, or model.quantization: none.")
    if recipe.device.zero > 0 and recipe.model.dtype == "float16":
        raise StudioError("With ZeRO, float16 would lose small gradients: its weights and their gradients are held in one format.",
                          "Set device.zero: 0, or model.dtype to bfloat16 or float32.")


def announce_division(recipe: Recipe, device: str) -> Any:
    """Let transformers divide the weights while it makes or reads them, so that no process ever holds the whole model.

    Returns:
        What must be kept as long as the model.
    """
    from core.train.zero import import_deepspeed, zero_config

    import_deepspeed(device)
    from transformers.integrations import HfDeepSpeedConfig

    return HfDeepSpeedConfig(zero_config(recipe, 0, 0, compute_dtype(recipe, device)))


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def make_step(recipe: Recipe, model: PreTrainedModel, sample: Sequence[int], device: str, ranks: Ranks = ALONE) -> tuple[Step, bool]:
    """What computes the gradients of `model` and changes it, and whether it takes packed rows.

    Args:
        recipe: says how.
        model: from `prepare_model`.
        sample: token ids of a real row, to try on the model what the recipe asks for.
        device: where the model is.
        ranks: the processes that share the work.
    """
    parameters = trained_parameters(model)
    compute, held = compute_dtype(recipe, device), weights_dtype(recipe, device)
    inner, kind = language_model(model), device.partition(":")[0]
    plan = plan_fast(recipe, model, device, compute)
    if isinstance(plan, FastPlan):
        print(f"fast path: weights in {plan.storage}", flush=True)
        fast = FastModel(model, plan.storage, plan.recompute)
        if recipe.device.zero == 0:
            return FastStep(fast, parameters, recipe.schedule, ranks), True
        return _divided_step(recipe, FastLoss(fast, parameters.values()), model, parameters, compute, kind, ranks), True
    if kind == "cuda":
        print(f"plain path: {plan}", flush=True)
    # On a GPU the adapters are float32 and would be multiplied so, slowly; their gradients stay exact.
    is_mixed = compute != held or (kind == "cuda" and compute != torch.float32 and recipe.method.kind == "lora" and recipe.device.zero < 3)
    if recipe.device.zero == 3:  # nothing can be tried here: the weights are there only while a whole step runs
        head, is_packed = "model" if _CHANGES_LOGITS & set(vars(model.config)) else "layer", False
    else:
        with torch.autocast(kind, compute, enabled=is_mixed, cache_enabled=False):
            head = "fused" if has_plain_head(inner, sample) else "model"
            is_packed = recipe.data.packing and let_rows_stay_apart(inner, sample, compute)
        if compute == torch.float32:
            use_fast_products(inner)
    loss = SummedLoss(model, head, compute if is_mixed else None)
    if recipe.device.zero == 0:
        return PlainStep(loss, parameters, recipe.schedule, ranks, _FLOAT16_SCALE if compute == torch.float16 else 1.0), is_packed
    return _divided_step(recipe, loss, model, parameters, compute, kind, ranks), is_packed


def _divided_step(recipe: Recipe, loss: SummedLoss | FastLoss, model: PreTrainedModel, parameters: dict[str, torch.nn.Parameter],
                  compute: torch.dtype, kind: str, ranks: Ranks) -> Step:
    from core.train.zero import ZeroStep, zero_config

    sizes = {name: getattr(parameter, "ds_numel", parameter.numel()) for name, parameter in model.named_parameters()}
    dtype = compute if recipe.method.kind == "full" or recipe.device.zero == 3 else torch.float32
    config = zero_config(recipe, sum(sizes[name] for name in parameters), max(sizes.values()), dtype)
    return ZeroStep(loss, parameters, recipe, ranks, config, kind)
