"""GGUF files: what their header says, and reading one back as an ordinary model. The header needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.errors import StudioError
from core.models.gguf_check import check_gguf
from core.models.portable import CLASS_OF_BOTH, make_portable
from core.workspace import read_json, write_json

_MAGIC = b"GGUF"


def is_gguf(path: Path) -> bool:
    """Whether a file begins as a GGUF file does."""
    try:
        with path.open("rb") as stream:
            return stream.read(4) == _MAGIC
    except OSError:
        return False


def read_gguf_header(path: Path) -> dict[str, Any]:
    """Facts of a GGUF file: architecture, parameters, quantisation, context, and whether it has a chat template.

    Raises:
        StudioError: it is no GGUF file, or cut off.
    """
    from gguf import GGUFReader

    if not is_gguf(path):
        raise StudioError("{path} is no GGUF file.", "Choose a file that ends in .gguf, or the model's folder.", path=path)
    check_gguf(path)
    try:
        reader = GGUFReader(path)
        field = {name: part.contents() for name, part in reader.fields.items() if not name.startswith("tokenizer.ggml.")}
        kinds = [tensor.tensor_type.name for tensor in reader.tensors]
        parameters = sum(int(tensor.n_elements) for tensor in reader.tensors)
        sizes = sum(int(tensor.n_bytes) for tensor in reader.tensors)
    except (ValueError, IndexError, KeyError, TypeError, OSError, UnicodeDecodeError, OverflowError, MemoryError) as error:
        raise StudioError("{path} is cut off or damaged.", "Copy or download this file again.", path=path) from error
    architecture = str(field.get("general.architecture", "?"))
    return {"architecture": architecture, "name": field.get("general.name"), "parameters": parameters, "weight_bytes": sizes,
            "dtype": max(set(kinds), key=kinds.count) if kinds else "?", "context_tokens": field.get(f"{architecture}.context_length"),
            "has_chat_template": "tokenizer.chat_template" in field}


def load_gguf(source: Path) -> tuple[Any, Any]:
    """(model, tokenizer) of a GGUF file, its weights widened to float32, ready to answer. Imports torch: for workers only.

    Raises:
        StudioError: transformers cannot read it.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_gguf(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, trust_remote_code=False)
        quantised = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32,
                                                         trust_remote_code=False)
    except (ValueError, KeyError, OSError, NotImplementedError, TypeError, IndexError, RuntimeError) as error:
        raise StudioError("{path} cannot be read: {reason}.", "It may be of an architecture or a quantisation that transformers does "
                          "not read; take the model's folder instead.", path=source,
                          reason=str(error).split("\n")[0][:200].rstrip(".")) from error
    return quantised.eval(), tokenizer


def as_plain_model(quantised: Any) -> Any:
    """The model of a GGUF file without the note that it was quantised, with which it refuses to be saved; to save, not to run."""
    import torch
    from transformers import AutoModelForCausalLM

    config = quantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    model.load_state_dict(quantised.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = quantised.generation_config
    return model


def save_widened(model: Any, tokenizer: Any, folder: Path, context_tokens: int) -> None:
    """Save what was read from a GGUF file as an ordinary model folder, which transformers 4.57 reads as version 5 does."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    write_json(path, read_json(path) | {"tokenizer_class": CLASS_OF_BOTH, "model_max_length": context_tokens})
    make_portable(folder)
