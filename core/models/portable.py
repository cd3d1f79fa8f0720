"""A model folder that transformers 4.57 loads as transformers 5 does: settings under the names of both.

Version 5 renamed some settings, and version 4 does not complain about names it does not know: it takes its own defaults. SmolLM2 saved
by 5 has its RoPE base, 100000, in `rope_parameters`; 4.57 would read over it, compute with 10000, and answer nonsense. No torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.workspace import read_json, write_json

# Of version 5 alone; 4.57 stops at the name of the class, and at a list where it expects names with values.
_CLASS_OF_5 = "TokenizersBackend"
CLASS_OF_BOTH = "PreTrainedTokenizerFast"
_OF_THIS_MACHINE = ("is_local", "local_files_only", "backend")


def portable_config(config: dict[str, Any]) -> dict[str, Any]:
    """`config.json` with RoPE and number format under the names of version 4 beside those of version 5."""
    made = dict(config)
    if isinstance(config.get("text_config"), dict):
        made["text_config"] = portable_config(config["text_config"])
    if config.get("dtype") is not None:
        made["torch_dtype"] = config["dtype"]
    rope = config.get("rope_parameters")
    if isinstance(rope, dict):
        if isinstance(rope.get("sliding_attention"), dict):  # one set for each kind of layer, as Gemma 3 has it
            made["rope_local_base_freq"] = rope["sliding_attention"].get("rope_theta")
            rope = rope.get("full_attention", {})
        for name in ("rope_theta", "partial_rotary_factor"):
            if rope.get(name) is not None:
                made[name] = rope[name]
        scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
        made["rope_scaling"] = scaling if rope.get("rope_type", "default") != "default" else None
    return made


def portable_tokenizer_config(config: dict[str, Any]) -> dict[str, Any]:
    """`tokenizer_config.json` without what version 4 stumbles over."""
    made = {key: value for key, value in config.items() if key not in _OF_THIS_MACHINE}
    if made.get("tokenizer_class") == _CLASS_OF_5:
        made["tokenizer_class"] = CLASS_OF_BOTH
    if made.get("tokenizer_class") == CLASS_OF_BOTH:  # else version 4 adds token_type_ids, which `generate` refuses
        made.setdefault("model_input_names", ["input_ids", "attention_mask"])
    extra = made.get("extra_special_tokens")
    if isinstance(extra, list):
        del made["extra_special_tokens"]
        made.setdefault("additional_special_tokens", extra)
    return made


def make_portable(folder: Path) -> None:
    """Rewrite the two files of a model folder, in place; tokens, template and weights stay as they are."""
    for name, change in (("config.json", portable_config), ("tokenizer_config.json", portable_tokenizer_config)):
        path = folder / name
        if path.exists():
            write_json(path, change(read_json(path)))
