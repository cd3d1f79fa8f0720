"""What can be wrong with a model's folder or an adapter, told from headers before anything is loaded. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.errors import StudioError
from core.models.header import read_config, safetensors_header, tensor_shapes

_EMBEDDINGS = ("embed_tokens.weight", "tok_embeddings.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
_PREFIX = "base_model.model."


def check_model(folder: Path) -> None:
    """Look over a base model's folder: configuration, every shard, tokenizer, and whether they belong together.

    Raises:
        StudioError: the first thing that is wrong.
    """
    tensors = tensor_shapes(folder)
    config = read_config(folder)
    _compare_embedding(folder, tensors, config)
    if not (folder / "tokenizer.json").exists():
        raise StudioError("The model in {folder} has no tokenizer.json.",
                          "Copy the tokenizer files beside the weights; every recent model has them.", folder=folder)
    tokens, rows = tokenizer_size(folder), embedding_rows(tensors, config)
    if rows is not None and tokens > rows:
        raise StudioError("The tokenizer in {folder} has {tokens} tokens, but the model only knows {rows}.",
                          "They are of different models; copy tokenizer.json from where the weights came from.",
                          folder=folder, tokens=tokens, rows=rows)


def _compare_embedding(folder: Path, tensors: dict[str, tuple[str, list[int]]], config: dict[str, Any]) -> None:
    """Raises StudioError where the table of token vectors has another shape than config.json says; elsewhere it would fail in loading."""
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    wanted = [text.get("vocab_size"), text.get("embedding_size") or text.get("word_embed_proj_dim") or text.get("hidden_size")]
    for name, (kind, shape) in tensors.items():
        is_packed = kind in ("U8", "I8", "I32")  # quantised: several values in one number
        if (name.endswith(_EMBEDDINGS[:2]) and len(shape) == 2 and not is_packed and all(isinstance(size, int) for size in wanted)
                and shape != wanted):
            raise StudioError("The weights do not fit config.json: {name} is {found} instead of {wanted}.",
                              "config.json and the weights are of different models; copy the folder again.",
                              name=name, found=shape, wanted=wanted)
        if name.endswith(_EMBEDDINGS[:2]):
            return  # the first one is the language model's


def tokenizer_size(folder: Path) -> int:
    """Tokens of the folder's tokenizer, added ones included: the largest id, plus one.

    Raises:
        StudioError: `tokenizer.json` is damaged.
    """
    path = folder / "tokenizer.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        vocabulary = data["model"]["vocab"]
        ids = vocabulary.values() if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
        return 1 + max([*ids, *(entry["id"] for entry in data.get("added_tokens") or [])])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StudioError("{path} is cut off or damaged.", "Copy or download this file again.", path=path) from error


def embedding_rows(tensors: dict[str, tuple[str, list[int]]], config: dict[str, Any]) -> int | None:
    """How many tokens the model has a vector for; from the weights, else from the configuration."""
    for name, (_, shape) in tensors.items():
        if name.endswith(_EMBEDDINGS) and len(shape) == 2:
            return shape[0]
    return config.get("vocab_size") if isinstance(config.get("vocab_size"), int) else None


def check_adapter(adapter: Path, base: Path) -> None:
    """See from the headers whether an adapter fits a base model; what it was made for is named where it does not.

    Raises:
        StudioError: the adapter is damaged, or a layer of it is not in the base or has another shape there.
    """
    path = adapter / "adapter_model.safetensors"
    if not path.exists():
        if (adapter / "adapter_model.bin").exists():
            raise StudioError("The weights in {folder} are pickles, which can run code when they are read.",
                              "Use a copy of the model with .safetensors files.", folder=adapter)
        raise StudioError("The adapter in {folder} holds no weights.",
                          "It needs adapter_model.safetensors beside adapter_config.json.", folder=adapter)
    header = safetensors_header(path)
    layers = {name.removesuffix(".weight"): shape for name, (_, shape) in tensor_shapes(base).items() if len(shape) == 2}
    for name, entry in header.items():
        if ".lora_A." not in name and ".lora_B." not in name:
            continue
        layer = name.removeprefix(_PREFIX).partition(".lora_")[0]
        side = 1 if ".lora_A." in name else 0  # A is rank x in, B is out x rank; W is out x in
        wanted = layers.get(layer)
        if wanted is None and _ties_head(base, layer):
            continue
        if wanted is None or len(entry["shape"]) != 2 or entry["shape"][side] != wanted[side]:
            raise StudioError("The adapter in {folder} does not fit the base model in {base}: layer {layer} is missing there or has "
                              "another shape. It was made for {made_for}.", "Load the adapter over the base model it was trained on.",
                              folder=adapter, base=base, layer=layer, made_for=made_for(adapter))


def _ties_head(base: Path, layer: str) -> bool:
    """An output head that is the embedding has no weights of its own in the file."""
    return layer == "lm_head" and bool(read_config(base).get("tie_word_embeddings"))


def made_for(adapter: Path) -> str:
    """The base model that an adapter names as its own; `?` where it names none."""
    try:
        return str(json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"] or "?")
    except (OSError, ValueError, KeyError, TypeError):
        return "?"
