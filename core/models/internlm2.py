"""InternLM2 in the layout of Llama: the same network with other names, so nothing of the model's own code is needed.

InternLM2 (1.8B, 7B, 20B; chat and base) is published with Python files that transformers would have to run. Its layers are Llama's:
what differs is how query, key and value are packed into one matrix, the names, and how the configuration calls things. No torch here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import StudioError
from core.models.header import read_config

if TYPE_CHECKING:
    import torch

MODEL_TYPE = "internlm2"
# What the published configuration class assumes where config.json is silent.
_DEFAULTS = {"vocab_size": 103168, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
             "hidden_act": "silu", "max_position_embeddings": 2048, "initializer_range": 0.02, "rms_norm_eps": 1e-6, "use_cache": True,
             "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
_OUTSIDE = {"model.tok_embeddings": "model.embed_tokens", "model.norm": "model.norm", "output": "lm_head"}
_INSIDE = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attention.wo": "self_attn.o_proj",
           "feed_forward.w1": "mlp.gate_proj", "feed_forward.w3": "mlp.up_proj", "feed_forward.w2": "mlp.down_proj"}
_LAYER = re.compile(r"(model\.layers\.\d+\.)(.+)")
PACKED = "attention.wqkv"
UNPACKED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def is_internlm2(folder: Path) -> bool:
    """Whether a model folder holds InternLM2 in its own layout.

    Raises:
        StudioError: there is no readable config.json.
    """
    return read_config(folder).get("model_type") == MODEL_TYPE


def split_packed_rows(rows: torch.Tensor, heads: int, kv_heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of the packed matrix `wqkv` -> rows of q, k and v in Llama's order of heads.

    The rows are `kv_heads` blocks; each holds the g = heads / kv_heads query heads that share a key, then that key head, then its value
    head. Works on whatever has these rows: the weight (R, in), the bias (R,), or the B matrix (R, r) of an adapter; R = head_dim x
    (heads + 2 kv_heads). RoPE turns halves as Llama's does, so nothing is permuted within a head.

    Raises:
        StudioError: the number of rows does not fit these heads.
    """
    group, total = heads // max(kv_heads, 1), rows.shape[0]
    blocks = kv_heads * (group + 2)
    if not blocks or heads % kv_heads or total % blocks:
        raise StudioError("{rows} packed rows do not divide into {heads} query heads over {kv} key heads.",
                          "config.json and the weights are of different models; copy the folder again.",
                          rows=total, heads=heads, kv=kv_heads)
    rest = tuple(rows.shape[1:])
    packed = rows.reshape(kv_heads, group + 2, total // blocks, *rest)
    return packed[:, :group].reshape(-1, *rest), packed[:, group].reshape(-1, *rest), packed[:, group + 1].reshape(-1, *rest)


def llama_names(name: str) -> tuple[str, ...]:
    """What a tensor or module of InternLM2 is called in Llama's layout: one name, three for the packed one, none if it is unknown.

    `model.layers.3.attention.wqkv.weight` -> the q, k and v projections' weights. An ending (`.weight`, `.bias`, an adapter's
    `.lora_A.weight`) stays as it is.
    """
    for old, new in _OUTSIDE.items():
        if name == old or name.startswith(old + "."):
            return (new + name[len(old):],)
    match = _LAYER.fullmatch(name)
    if match:
        layer, rest = match.groups()
        for old, new in {**_INSIDE, PACKED: None}.items():
            if rest == old or rest.startswith(old + "."):
                return tuple(layer + target + rest[len(old):] for target in (UNPACKED if new is None else (new,)))
    return ()


def llama_config(config: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of the same model in Llama's layout.

    Raises:
        StudioError: a setting that Llama does not have.
    """
    known = {key: config.get(key, default) for key, default in _DEFAULTS.items()}
    heads = known["num_attention_heads"]
    has_bias = bool(config.get("bias", True))
    scaling = config.get("rope_scaling") or {}
    kind = str(scaling.get("type") or scaling.get("rope_type") or "default")
    if kind not in ("default", "linear", "dynamic") or known["hidden_act"] != "silu":
        raise StudioError("This InternLM2 wants {what}, which Llama's layout does not have.",
                          "Use a published InternLM2 (1.8B, 7B or 20B).",
                          what=f"hidden_act {known['hidden_act']}" if known["hidden_act"] != "silu" else f"rope_scaling {kind}")
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": float(config.get("rope_theta", 10000.0))}
    if kind != "default":
        rope["factor"] = float(scaling.get("factor", 1.0))
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", **known,
        "num_key_value_heads": config.get("num_key_value_heads") or heads, "head_dim": known["hidden_size"] // heads,
        "attention_bias": has_bias, "mlp_bias": False, "attention_dropout": 0.0, "rope_parameters": rope,
        "dtype": config.get("dtype") or config.get("torch_dtype") or "bfloat16",
    }
