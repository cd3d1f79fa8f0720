"""The model and the method of an XTuner config."""

from __future__ import annotations

from typing import Any

from core.errors import StudioError
from core.recipe.xtuner_notes import Notes, kind_of, number, section, shown
from core.recipe.xtuner_reading import Reference
from core.words import Text

# Trainings that a recipe cannot say, by the class that the config names.
_OTHER_TRAININGS = {
    "LLaVAModel": Text("a model that sees images"), "InternVL_V1_5": Text("a model that sees images"),
    "DPO": Text("preferences (DPO)"), "ORPO": Text("preferences (ORPO)"), "RewardModel": Text("a reward model"),
    "OpenAIModel": Text("a model behind a service"),
}
_KNOWN_MODEL_KEYS = {"type", "llm", "lora", "use_varlen_attn", "tokenizer", "use_activation_checkpointing"}
_KNOWN_LLM_KEYS = {"type", "pretrained_model_name_or_path", "trust_remote_code", "torch_dtype", "dtype", "quantization_config",
                   "load_in_8bit", "load_in_4bit", "attn_implementation", "encode_special_tokens", "device_map", "use_cache"}
_KNOWN_LORA_KEYS = {"type", "r", "lora_alpha", "lora_dropout", "target_modules", "bias", "task_type", "use_rslora", "use_dora"}
# InternLM2 packs query, key and value into one matrix; it is trained here in Llama's layout.
_INTERNLM2_LAYERS = {"wqkv": ["q_proj", "k_proj", "v_proj"], "wo": ["o_proj"], "w1": ["gate_proj"], "w3": ["up_proj"], "w2": ["down_proj"]}
_HEADS = {"output", "lm_head", "output_layer"}


def read_model(model: dict[str, Any], values: dict[str, Any], notes: Notes, file: str) -> None:
    """Map model, quantisation, number format, method and adapter.

    Raises:
        StudioError: the config trains what a recipe cannot say, or names no model.
    """
    kind = kind_of(model)
    if kind in _OTHER_TRAININGS:
        raise StudioError("{file} trains {what}; a recipe trains a language model on conversations or text.",
                          "Train it with XTuner itself, or start from a preset: `sweetspot recipe presets`.",
                          file=file, what=_OTHER_TRAININGS[kind])
    if section(model, "visual_encoder"):
        raise StudioError("{file} trains {what}; a recipe trains a language model on conversations or text.",
                          "Train it with XTuner itself, or start from a preset: `sweetspot recipe presets`.",
                          file=file, what=Text("a model that sees images"))
    llm = section(model, "llm") or model
    source = llm.get("pretrained_model_name_or_path")
    if not isinstance(source, str) or not source:
        raise StudioError("{file} names no base model that can be read without running it.",
                          "Give the model a plain name: pretrained_model_name_or_path = '...'.", file=file)
    notes.put("model.source", source, "pretrained_model_name_or_path")
    _read_dtype(llm, notes)
    _read_quantization(llm, notes)
    lora = section(model, "lora") or section(values, "lora")
    if lora:
        _read_lora(lora, notes)
    else:
        notes.put("method.kind", "full", "model.lora", Text("no adapter: every weight is trained"))
    _read_checkpointing(model, notes)
    for key in sorted(set(model) - _KNOWN_MODEL_KEYS if model is not llm else ()):
        notes.leave(f"model.{key}", Text("a recipe has nothing like it: {value}", value=shown(model[key])))
    for key in sorted(set(llm) - _KNOWN_LLM_KEYS):
        notes.leave(f"model.llm.{key}", Text("a recipe has nothing like it: {value}", value=shown(llm[key])))
    if llm.get("trust_remote_code"):
        notes.leave("trust_remote_code", Text("code from a model's folder is never run here; InternLM2 is converted instead"))


def _read_dtype(llm: dict[str, Any], notes: Notes) -> None:
    named = llm.get("torch_dtype", llm.get("dtype"))
    word = named.last if isinstance(named, Reference) else str(named) if named is not None else ""
    if word in ("float32", "bfloat16"):
        notes.put("model.dtype", word, "model.llm.torch_dtype")
    elif word in ("float16", "half"):
        notes.put("model.dtype", "auto", "model.llm.torch_dtype", Text(
            "float16 with a loss scale becomes bfloat16 where the GPU has it, which needs none; XTuner does the same with flash attention"))
    elif word not in ("", "auto"):
        notes.leave("model.llm.torch_dtype", Text("unknown number format {value}; auto is used", value=word))


def _read_quantization(llm: dict[str, Any], notes: Notes) -> None:
    config = section(llm, "quantization_config")
    if config.get("load_in_4bit") or llm.get("load_in_4bit"):
        style = config.get("bnb_4bit_quant_type", "fp4" if config else "nf4")
        text = None if style == "nf4" else Text("4 bits of kind {value} become nf4, which is more exact at the same size",
                                                value=shown(style))
        notes.put("model.quantization", "nf4", "quantization_config.load_in_4bit", text)
    elif config.get("load_in_8bit") or llm.get("load_in_8bit"):
        notes.put("model.quantization", "int8", "quantization_config.load_in_8bit")


def _read_lora(lora: dict[str, Any], notes: Notes) -> None:
    rank = number(lora.get("r"))
    notes.put("method.rank", int(rank) if rank else 8, "model.lora.r", None if rank else Text("not given: PEFT's 8"))
    alpha = number(lora.get("lora_alpha"))
    notes.put("method.alpha", int(alpha) if alpha else 8, "model.lora.lora_alpha", None if alpha else Text("not given: PEFT's 8"))
    notes.put("method.dropout", float(number(lora.get("lora_dropout")) or 0.0), "model.lora.lora_dropout")
    _read_targets(lora.get("target_modules"), notes)
    for key, path in (("use_rslora", "method.rslora"), ("use_dora", "method.dora")):
        if lora.get(key) is True:
            notes.put(path, True, f"model.lora.{key}")
    if lora.get("bias", "none") != "none":
        notes.leave("model.lora.bias", Text("biases are not trained with an adapter here: {value}", value=shown(lora["bias"])))
    for key in sorted(set(lora) - _KNOWN_LORA_KEYS):
        notes.leave(f"model.lora.{key}", Text("a recipe has nothing like it: {value}", value=shown(lora[key])))


def _read_targets(targets: Any, notes: Notes) -> None:
    key = "model.lora.target_modules"
    if targets is None:
        notes.put("method.targets", "all-linear", key, Text(
            "none given: every linear layer except the output head; XTuner adapts InternLM2's head as well"))
    elif targets == "all-linear":
        notes.put("method.targets", "all-linear", key)
    elif isinstance(targets, list | tuple | set) and targets and all(isinstance(name, str) for name in targets):
        names = [new for name in targets for new in _INTERNLM2_LAYERS.get(name, [name]) if name not in _HEADS]
        kept = list(dict.fromkeys(names))
        changed = kept != list(targets)
        if kept:
            notes.put("method.targets", kept, key, Text("InternLM2's layers under the names they have here: {names}", names=", ".join(kept))
                      if changed else None)
        else:
            notes.leave(key, Text("only output heads were named, which get no adapter here; all-linear is used"))
    else:
        notes.leave(key, Text("a pattern or an expression: {value}; all-linear is used", value=shown(targets)))


def _read_checkpointing(model: dict[str, Any], notes: Notes) -> None:
    is_on = model.get("use_activation_checkpointing", True)
    if is_on is False:
        notes.put("device.checkpointing", "off", "model.use_activation_checkpointing")
    elif kind_of(model) == "SupervisedFinetune":
        notes.put("device.checkpointing", "on", "model.use_activation_checkpointing", Text(
            "on unless a config says otherwise; it saves memory and costs about a third more time, so try off where memory allows"))
