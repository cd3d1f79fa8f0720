"""A model folder as one GGUF file for llama.cpp and Ollama, tensor by tensor. Imports torch: for workers only.

The format and the names are those of the `gguf` package, llama.cpp's own; no package that is kept up carries its converter, so the
metadata of the architectures below are written here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from safetensors import safe_open

from core.convert.gguf_vocabulary import read_vocabulary
from core.data.encode import Encoder
from core.errors import StudioError
from core.models.check import embedding_rows
from core.models.header import read_config, safetensors_header, tensor_shapes, weight_files

# transformers' model_type -> llama.cpp's architecture. Mistral is Llama there.
ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "mistral": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2,
                 "qwen3": gguf.MODEL_ARCH.QWEN3}
FORMATS: dict[str, tuple[GGMLQuantizationType, gguf.LlamaFileType]] = {
    "f32": (GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32), "f16": (GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0)}
_BLOCK = 32  # weights that share a scale in Q8_0
_LARGEST_F16 = 65_504.0


def export_gguf(folder: Path, target: Path, form: str, name: str, on_tensor: Callable[[int, int], None]) -> None:
    """Write the model in `folder` to the file `target`; one tensor is in memory at a time.

    Args:
        form: a key of FORMATS. Vectors (normalisations, biases) stay float32.
        name: of the model, for people.

    Raises:
        StudioError: an architecture, a setting or a tokenizer that is not known here, or a weight beyond 16-bit floats.
    """
    config, shapes = read_config(folder), tensor_shapes(folder)
    architecture = ARCHITECTURES.get(str(config.get("model_type")))
    if architecture is None:
        raise StudioError("Models of the type {kind} cannot be written as GGUF here.",
                          "These can: {known}. llama.cpp's own convert_hf_to_gguf.py knows more.", kind=str(config.get("model_type")),
                          known=", ".join(ARCHITECTURES))
    _refuse_wrong_head(folder, config, shapes)
    writer = GGUFWriter(target, gguf.MODEL_ARCH_NAMES[architecture])
    try:
        writer.add_name(name)
        writer.add_file_type(FORMATS[form][1])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _write_sizes(writer, config, shapes, folder)
        _write_tokenizer(writer, folder, embedding_rows(shapes, config) or 0)
        names = _names(config, architecture, shapes)
        factors = _llama3_factors(config)
        _declare(writer, names, shapes, form, factors)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        for done, (tensor_name, tensor) in enumerate(_tensors(folder), 1):
            if tensor_name in names:
                writer.write_tensor_data(_converted(tensor_name, tensor, config, form))
            on_tensor(done, len(shapes))
    finally:
        writer.close()


def _refuse_wrong_head(folder: Path, config: dict[str, Any], shapes: dict[str, Any]) -> None:
    if not config.get("tie_word_embeddings") and "lm_head.weight" not in shapes:
        raise StudioError("The model in {folder} has no output head: lm_head.weight is missing.", "Copy or download the model again.",
                          folder=folder)


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary settings as transformers 5 writes them, whichever version wrote the file."""
    settings = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    settings.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    settings.setdefault("rope_type", settings.get("type", "default"))
    return settings


def _heads(config: dict[str, Any]) -> tuple[int, int, int]:
    """(query heads, key heads, width of a head)."""
    heads = int(config["num_attention_heads"])
    return heads, int(config.get("num_key_value_heads") or heads), int(config.get("head_dim") or config["hidden_size"] // heads)


def _write_sizes(writer: GGUFWriter, config: dict[str, Any], shapes: dict[str, Any], folder: Path) -> None:
    heads, kv_heads, width = _heads(config)
    writer.add_context_length(int(config.get("max_position_embeddings") or 2048))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(float(config.get("rms_norm_eps", 1e-6)))
    writer.add_vocab_size(embedding_rows(shapes, config) or 0)
    writer.add_rope_dimension_count(width)
    rope = _rope(config)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif rope["rope_type"] not in ("default", "llama3", "dynamic"):  # dynamic: as default within the model's own context
        raise StudioError("The model in {folder} stretches its context by {kind}, which is not written here.",
                          "llama.cpp's own convert_hf_to_gguf.py may know it.", folder=folder, kind=rope["rope_type"])


def _llama3_factors(config: dict[str, Any]) -> np.ndarray | None:
    """By what Llama 3.1 divides each rotary frequency, shape (head width / 2,); None for other models.

    1 for short waves, its factor for long ones, between them a mean of both (transformers: modeling_rope_utils,
    `_compute_llama3_parameters`).
    """
    rope = _rope(config)
    if rope["rope_type"] != "llama3":
        return None
    width = _heads(config)[2]
    waves = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, width, 2, dtype=np.float64) / width)
    turns = rope["original_max_position_embeddings"] / waves
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)


def _write_tokenizer(writer: GGUFWriter, folder: Path, rows: int) -> None:
    encoder = Encoder.from_folder(folder)
    read_vocabulary(folder, rows).write(writer)
    token_id = encoder.tokenizer.token_to_id
    ids = {key: token_id(text) for key, text in encoder.special.items() if text}
    for key, add in (("bos_token", writer.add_bos_token_id), ("unk_token", writer.add_unk_token_id),
                     ("pad_token", writer.add_pad_token_id)):
        if ids.get(key) is not None:
            add(ids[key])
    own = ids.get("eos_token")
    end = own if own is not None else encoder.end_ids[0]
    writer.add_eos_token_id(end)
    turn = [token for token in encoder.end_ids if token != end]
    if turn:
        writer.add_eot_token_id(turn[0])  # ends an answer as well: <|im_end|> beside </s>
    # The encoder here puts in front what the template writes and nothing else, of a document what the tokenizer does; so must llama.cpp.
    begins = "bos_token" in encoder.template if encoder.template else bool(encoder.tokenizer.encode("", add_special_tokens=True).ids)
    writer.add_add_bos_token(begins)
    writer.add_add_eos_token(False)
    if encoder.template:
        writer.add_chat_template(encoder.template)


def _names(config: dict[str, Any], architecture: gguf.MODEL_ARCH, shapes: dict[str, Any]) -> dict[str, str]:
    """Name in the folder -> name in the file, in the folder's order."""
    table = gguf.get_tensor_name_map(architecture, int(config["num_hidden_layers"]))
    is_tied = bool(config.get("tie_word_embeddings"))
    names = {}
    for name in shapes:
        if name.endswith(".rotary_emb.inv_freq") or (is_tied and name == "lm_head.weight"):
            continue
        found = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise StudioError("The model has a tensor that llama.cpp has no name for: {name}.",
                              "llama.cpp's own convert_hf_to_gguf.py may know it.", name=name)
        names[name] = found
    return names


def _quantity(name: str, shape: list[int], form: str) -> GGMLQuantizationType:
    """The format of one tensor: vectors float32; rows that are no whole number of blocks stay 16 bit."""
    if len(shape) < 2:
        return GGMLQuantizationType.F32
    if form == "q8_0" and shape[-1] % _BLOCK:
        return GGMLQuantizationType.F16
    return FORMATS[form][0]


def _declare(writer: GGUFWriter, names: dict[str, str], shapes: dict[str, Any], form: str, factors: np.ndarray | None) -> None:
    """The table of tensors, which stands in the file before their values."""
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    for name, new in names.items():
        shape = shapes[name][1]
        kind = _quantity(name, shape, form)
        dtype = np.dtype({GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}.get(kind, np.uint8))
        stored = gguf.quant_shape_to_byte_shape(shape, kind) if dtype == np.uint8 else shape
        writer.add_tensor_info(new, stored, dtype, math.prod(stored) * dtype.itemsize, raw_dtype=kind)


def _tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """In the order of `tensor_shapes`, which is that of the table in the file."""
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as shard:
            for name in safetensors_header(path):
                if name != "__metadata__":
                    yield name, shard.get_tensor(name)


def _converted(name: str, tensor: torch.Tensor, config: dict[str, Any], form: str) -> np.ndarray:
    values = tensor.float().numpy()
    kind = _quantity(name, list(values.shape), form)
    if kind == GGMLQuantizationType.F16 and np.abs(values).max(initial=0) > _LARGEST_F16:
        raise StudioError("The tensor {name} has values beyond what 16-bit floats hold.", "Write it with --to bf16 or q8_0.", name=name)
    heads, kv_heads, _ = _heads(config)
    if ARCHITECTURES[config["model_type"]] == gguf.MODEL_ARCH.LLAMA and name.rpartition(".")[0].endswith(("q_proj", "k_proj")):
        values = interleave_halves(values, heads if "q_proj" in name else kv_heads)
    return gguf.quantize(np.ascontiguousarray(values), kind)


def interleave_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key matrix (heads x width, ...) from transformers' order to llama.cpp's.

    RoPE turns pairs of rows: transformers pairs row i of a head with row i + width / 2, llama.cpp's Llama pairs 2 i with 2 i + 1.
    """
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
