"""What `sweetspot models show` says of a model, from its headers alone. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.data.encode import Encoder
from core.errors import StudioError
from core.models.check import check_model
from core.models.header import read_header
from core.recipe.files import change_recipe
from core.recipe.memory import RUNTIME_BYTES, compute_dtype, estimate_memory
from core.recipe.schema import Recipe

# Rows of this length are what the estimates assume; a recipe's own page estimates with its own rows.
_TOKENS = 512
_METHODS = {"lora": {"method.kind": "lora"}, "qlora": {"method.kind": "lora", "model.quantization": "nf4"}, "full": {"method.kind": "full"}}


def describe_model(folder: Path, device: str) -> dict[str, Any]:
    """Facts of a model folder, and what it needs on `device` ("cpu", or a GPU).

    Memory is in bytes: `memory_to_chat` for one conversation, `memory_to_train` by method, for one row of 512 tokens at a time. What is
    wrong with the folder, if anything is, stands under `problem`.

    Raises:
        StudioError: the folder is no model.
    """
    header = read_header(folder)
    facts: dict[str, Any] = {"folder": str(folder), **header.model_dump(), "kind": "base", "end_tokens": [], "template": None,
                             "problem": None}
    try:
        check_model(folder)
        if header.has_chat_template:
            encoder = Encoder.from_folder(folder)
            facts |= {"kind": "chat", "end_tokens": encoder.end_tokens,
                      "template": encoder.render([{"role": "user", "content": "Hello"}], add_generation_prompt=True)}
    except StudioError as error:
        facts["problem"] = str(error.problem)
    width = 4 if compute_dtype(Recipe(), device) == "float32" else 2
    facts["memory_to_chat"] = header.parameters * width + (round(RUNTIME_BYTES) if device == "cpu" else 0)
    facts["memory_to_train"] = {
        name: estimate_memory(folder, change_recipe(Recipe(), changes | {"device.micro_batch": 1}), device, _TOKENS).total
        for name, changes in _METHODS.items()}
    return facts
