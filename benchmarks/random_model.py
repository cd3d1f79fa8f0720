"""A model folder with random weights in the shape of a real one, and rows for it: for measuring where no model can be fetched."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from core.data.library import save_dataset
from core.workspace import Workspace

# hidden, feed-forward, layers, heads, key-value heads, vocabulary
SHAPES = {"internlm2-1.8b": (2048, 8192, 24, 16, 8, 92544), "llama-7b": (4096, 11008, 32, 32, 32, 32000),
          "smollm2-135m": (576, 1536, 30, 9, 3, 49152)}
_TEMPLATE = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}{% endfor %}"
             "{% if add_generation_prompt %}{{'<|im_start|>assistant\n'}}{% endif %}")
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write_random_model(folder: Path, shape: str) -> Path:
    """Write a Llama of this shape in bfloat16, with a tokenizer of single bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, feed_forward, layers, heads, key_value, vocabulary = SHAPES[shape]
    config = LlamaConfig(hidden_size=hidden, intermediate_size=feed_forward, num_hidden_layers=layers, num_attention_heads=heads,
                         num_key_value_heads=key_value, vocab_size=vocabulary, max_position_embeddings=32768, bos_token_id=1,
                         eos_token_id=2, tie_word_embeddings=False, dtype=torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of single bytes, with a chat template, beside weights that have none."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate([*_SPECIAL, *letters])}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(_SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>",
                                "pad_token": "<|im_end|>", "model_max_length": 32768}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(_TEMPLATE, encoding="utf-8")


def save_random_rows(workspace: Workspace, name: str, count: int, longest: int) -> None:
    """A dataset of `count` conversations of some half to all of `longest` bytes each, three quarters of them the answer."""
    chance = random.Random(7)
    rows = []
    for _ in range(count):
        letters = chance.randint(longest // 2, longest - 60)
        text = "".join(chance.choice("abcdefgh ") for _ in range(letters))
        rows.append({"messages": [{"role": "user", "content": text[:letters // 4] or "a"},
                                  {"role": "assistant", "content": text[letters // 4:] or "b"}], "group": "general", "lang": "en"})
    save_dataset(workspace, name, rows, "random")
