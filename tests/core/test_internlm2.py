"""InternLM2 in Llama's layout: against the published formula, computed here on its own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from core.errors import StudioError
from core.models.internlm2 import is_internlm2, llama_config, llama_names, split_packed_rows
from core.workspace import write_json

TEMPLATE = ("{{ bos_token }}{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
            "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
WORDS = ["Who", "are", "you", "the", "assistant", "of", "Alex", "return", "你是", "小助手"]
LAYERS, HIDDEN, INNER, MAX_POSITIONS = 2, 32, 48, 16


# --- a random InternLM2 as it is published ---


def write_tokenizer_model(path: Path) -> int:
    """A sentencepiece file as InternLM2's: bytes, characters, joined pieces by falling score, unused pieces last; returns its size."""
    from transformers.convert_slow_tokenizer import import_protobuf

    proto = import_protobuf().ModelProto()
    proto.trainer_spec.model_type, proto.trainer_spec.byte_fallback = 2, True
    proto.normalizer_spec.add_dummy_prefix = False
    pieces: list[tuple[str, int]] = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{byte:02X}>", 6) for byte in range(256))]
    joined: list[str] = []
    for word in WORDS:
        for form in (word, "\u2581" + word):
            joined += [form[:end] for end in range(2, len(form) + 1)]
    pieces += [(piece, 1) for piece in dict.fromkeys(joined)]
    pieces += [(letter, 1) for letter in sorted(set("".join(WORDS)) | set("\u2581abcdefghijklmnopqrstuvwxyz0123456789()+:.,?我ï"))]
    pieces += [("[UNUSED_TOKEN_0]", 1), ("[UNUSED_TOKEN_1]", 1)]
    for index, (text, kind) in enumerate(pieces):
        piece = proto.pieces.add()
        piece.piece, piece.type, piece.score = text, kind, -float(index)
    path.write_bytes(proto.SerializeToString())
    return len(pieces)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_internlm2(tmp_path / "internlm2")


def write_internlm2(folder: Path, *, heads: int = 4, kv_heads: int = 2, bias: bool = False, tied: bool = False, binary: bool = False,
                    rope: dict[str, Any] | None = None) -> Path:
    """Two shards in the original layout, with the files that make others run its code."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    vocabulary = write_tokenizer_model(folder / "tokenizer.model")
    size = HIDDEN // heads
    generator = torch.Generator().manual_seed(11)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.15

    first = {"model.tok_embeddings.weight": matrix(vocabulary, HIDDEN)}
    second = {"model.norm.weight": 1 + matrix(HIDDEN)} | ({} if tied else {"output.weight": matrix(vocabulary, HIDDEN)})
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        part = first if layer == 0 else second
        part |= {
            f"{prefix}.attention.wqkv.weight": matrix((heads + 2 * kv_heads) * size, HIDDEN),
            f"{prefix}.attention.wo.weight": matrix(HIDDEN, heads * size),
            f"{prefix}.attention_norm.weight": 1 + matrix(HIDDEN), f"{prefix}.ffn_norm.weight": 1 + matrix(HIDDEN),
            f"{prefix}.feed_forward.w1.weight": matrix(INNER, HIDDEN), f"{prefix}.feed_forward.w3.weight": matrix(INNER, HIDDEN),
            f"{prefix}.feed_forward.w2.weight": matrix(HIDDEN, INNER)}
        if bias:
            part |= {f"{prefix}.attention.wqkv.bias": matrix((heads + 2 * kv_heads) * size), f"{prefix}.attention.wo.bias": matrix(HIDDEN)}
    stem, ending, index = ("pytorch_model", "bin", "pytorch_model.bin.index.json") if binary else (
        "model", "safetensors", "model.safetensors.index.json")
    names = [f"{stem}-0000{number}-of-00002.{ending}" for number in (1, 2)]
    for name, tensors in zip(names, (first, second), strict=True):
        torch.save(tensors, folder / name) if binary else save_file(tensors, folder / name)
    write_json(folder / index, {"weight_map": {key: name for name, part in zip(names, (first, second), strict=True) for key in part}})
    write_json(folder / "config.json", {
        "architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "torch_dtype": "float32", "vocab_size": vocabulary,
        "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "max_position_embeddings": MAX_POSITIONS, "rms_norm_eps": 1e-5, "rope_theta": 10000,
        "rope_scaling": rope, "bias": bias, "tie_word_embeddings": tied, "pad_token_id": 2, "bos_token_id": 1, "eos_token_id": 2,
        "auto_map": {"AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM"}})
    ids = {vocabulary - 2: "<|im_end|>", vocabulary - 1: "<|im_start|>", 0: "<unk>", 1: "<s>", 2: "</s>"}
    write_json(folder / "tokenizer_config.json", {
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}, "tokenizer_class": "InternLM2Tokenizer",
        "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>", "chat_template": TEMPLATE,
        "added_tokens_decoder": {str(index): {"content": text, "special": True} for index, text in ids.items()}})
    for name in ("modeling_internlm2.py", "tokenization_internlm2.py"):
        (folder / name).write_text(f"from pathlib import Path\nPath({str(folder / 'executed')!r}).touch()\n")
    return folder


def published_logits(folder: Path, ids: list[int]) -> Any:
    """The model's formula on its original files, written from its description: no class of transformers, no function of ours.

    x += Wo attention(RoPE(q), RoPE(k), v); x += W2 (silu(W1 x) * W3 x), each on the root-mean-square norm of x. q, k and v come from one
    product, whose rows are per key head: the query heads that share it, the key, the value. RoPE turns (x_i, x_{i+d/2}) by p / base^(2i/d);
    dynamic NTK raises base to base (f L / M - (f - 1))^(d / (d - 2)) for a text of L > M tokens.
    """
    import torch
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    w: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        w |= load_file(path)
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    group, size, length = heads // kv, config["hidden_size"] // heads, len(ids)
    scaling, base, positions = config["rope_scaling"] or {}, float(config["rope_theta"]), torch.arange(length, dtype=torch.float64)
    if scaling.get("type") == "dynamic" and length > config["max_position_embeddings"]:
        factor = scaling["factor"]
        base *= (factor * length / config["max_position_embeddings"] - (factor - 1)) ** (size / (size - 2))
    if scaling.get("type") == "linear":
        positions = positions / scaling["factor"]
    angle = torch.stack([positions / base ** (2 * index / size) for index in range(size // 2)], dim=1)
    turn = torch.polar(torch.ones_like(angle), angle)  # e^(i angle)

    def rope(x: torch.Tensor) -> torch.Tensor:
        turned = torch.complex(x[:, :size // 2].double(), x[:, size // 2:].double()) * turn
        return torch.cat([turned.real, turned.imag], dim=1).float()

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt() * w[name]

    x = w["model.tok_embeddings.weight"][ids]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        packed = norm(x, f"{name}.attention_norm.weight") @ w[f"{name}.attention.wqkv.weight"].T + w.get(f"{name}.attention.wqkv.bias", 0.0)
        out = []
        for block in packed.split((group + 2) * size, dim=1):
            *queries, key, value = block.split(size, dim=1)
            for query in queries:
                scores = (rope(query) @ rope(key).T / math.sqrt(size)).masked_fill(future, -math.inf)
                out.append(scores.softmax(-1) @ value)
        x = x + torch.cat(out, dim=1) @ w[f"{name}.attention.wo.weight"].T + w.get(f"{name}.attention.wo.bias", 0.0)
        y = norm(x, f"{name}.ffn_norm.weight")
        gate = y @ w[f"{name}.feed_forward.w1.weight"].T
        x = x + (gate / (1 + (-gate).exp()) * (y @ w[f"{name}.feed_forward.w3.weight"].T)) @ w[f"{name}.feed_forward.w2.weight"].T
    return norm(x, "model.norm.weight") @ w.get("output.weight", w["model.tok_embeddings.weight"]).T


def convert(source: Path, target: Path) -> list[tuple[int, int]]:
    from core.models.internlm2_convert import convert_internlm2

    told: list[tuple[int, int]] = []
    convert_internlm2(source, target, lambda done, total: told.append((done, total)))
    return told


# --- the network ---


@pytest.mark.parametrize("options", [
    {}, {"kv_heads": 4}, {"bias": True}, {"tied": True}, {"rope": {"type": "linear", "factor": 2.0}},
    {"rope": {"type": "dynamic", "factor": 2.0}}, {"rope": {"type": "dynamic", "factor": 3.0}, "bias": True, "heads": 8}],
    ids=["grouped", "one-key-a-head", "bias", "tied", "linear", "dynamic", "dynamic-bias"])
def test_the_converted_model_computes_the_published_formula(tmp_path: Path, options: dict[str, Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    source = write_internlm2(tmp_path / "source", **options)
    told = convert(source, tmp_path / "made")
    assert told[-1] == (len(told), len(told))
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "made", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for length in (5, MAX_POSITIONS, 3 * MAX_POSITIONS):
        ids = [(7 * index) % 250 + 3 for index in range(length)]
        wanted = published_logits(source, ids)
        with torch.no_grad():
            found = model(torch.tensor([ids])).logits[0]
        assert float((found - wanted).abs().max()) < 1e-5, length
    assert not (source / "executed").exists()


def test_the_dynamic_base_matters_beyond_the_trained_length(tmp_path: Path) -> None:
    """Else the test above could not see whether it is applied."""
    plain, dynamic = (write_internlm2(tmp_path / name, rope=rope)
                      for name, rope in (("plain", None), ("dynamic", {"type": "dynamic", "factor": 2.0})))
    ids = list(range(3, 3 + 3 * MAX_POSITIONS))
    assert float((published_logits(plain, ids) - published_logits(dynamic, ids)).abs().max()) > 0.01
    assert (published_logits(plain, ids[:9]) == published_logits(dynamic, ids[:9])).all()


def test_pickled_shards_give_the_same_model(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    made = []
    for name, binary in (("a", False), ("b", True)):
        convert(write_internlm2(tmp_path / name, binary=binary), tmp_path / f"made-{name}")
        made.append([load_file(path) for path in sorted((tmp_path / f"made-{name}").glob("*.safetensors"))])
    assert [len(part) for part in made[0]] == [len(part) for part in made[1]] == [10, 11]
    assert all(bool((value == other[key]).all()) for part, other in zip(*made, strict=True) for key, value in part.items())


def test_the_header_is_read_like_any_other(folder: Path, tmp_path: Path) -> None:
    from core.models.header import read_header

    convert(folder, tmp_path / "made")
    header = read_header(tmp_path / "made")
    assert (header.architecture, header.context_tokens, header.layers, header.has_chat_template) == ("LlamaForCausalLM", 16, 2, True)


# --- the tokenizer ---


def test_the_tokenizer_reads_as_sentencepiece_and_ends_answers(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from core.data.encode import Encoder

    convert(folder, tmp_path / "made")
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "made")
    assert tokenizer.convert_tokens_to_ids(["<s>", "</s>", "<|im_end|>", "<|im_start|>"]) == [1, 2, size - 2, size - 1]
    assert tokenizer("Who").input_ids[0] == 1 and len(tokenizer("Who").input_ids) == 2
    text = "Who are you? 你是小助手 ☃"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    chat = [{"role": "user", "content": "Who are you?"}]
    encoder = Encoder.from_folder(tmp_path / "made")
    ids = encoder.encode_prompt(chat)
    assert ids == tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids.count(1) == 1 and ids[0] == 1, "begins with one begin token"
    assert encoder.end_ids == (2, size - 2)
    config = json.loads((tmp_path / "made" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast" and "auto_map" not in config


def test_a_dummy_prefix_is_kept(tmp_path: Path) -> None:
    from core.models.sentencepiece import build_tokenizer, check_tokenizer, read_proto

    write_tokenizer_model(tmp_path / "tokenizer.model")
    proto = read_proto(tmp_path / "tokenizer.model")
    proto.normalizer_spec.add_dummy_prefix = True
    tokenizer = build_tokenizer(proto, {}, add_bos=True)
    check_tokenizer(proto, tokenizer, tmp_path)
    assert tokenizer.encode("Who").tokens == ["<s>", "\u2581Who"] and tokenizer.decode(tokenizer.encode("Who").ids) == "Who"


def test_a_tokenizer_with_other_merges_is_seen(tmp_path: Path) -> None:
    from core.models.sentencepiece import build_tokenizer, check_tokenizer, read_proto

    write_tokenizer_model(tmp_path / "tokenizer.model")
    proto = read_proto(tmp_path / "tokenizer.model")
    tokenizer = build_tokenizer(proto, {}, add_bos=True)
    for piece in proto.pieces:  # as if the tokenizer had been made with a join that the file does not have
        piece.piece = piece.piece + "m" if piece.piece == "Who" else piece.piece
    with pytest.raises(StudioError, match="could not be taken over"):
        check_tokenizer(proto, tokenizer, tmp_path)


# --- names and rows ---


@pytest.mark.parametrize(("heads", "kv_heads", "rest"), [(8, 2, (5,)), (4, 4, ()), (6, 1, (3,))])
def test_packed_rows_are_split_block_by_block(heads: int, kv_heads: int, rest: tuple[int, ...]) -> None:
    import torch

    size, group = 3, heads // kv_heads
    labels = []  # what each row of the packed matrix is
    for block in range(kv_heads):
        labels += [("q", block * group + member, row) for member in range(group) for row in range(size)]
        labels += [("k", block, row) for row in range(size)] + [("v", block, row) for row in range(size)]
    packed = torch.arange(len(labels)).reshape(-1, *[1] * len(rest)).expand(-1, *rest)
    for kind, part in zip("qkv", split_packed_rows(packed, heads, kv_heads), strict=True):
        rows = part.reshape(part.shape[0], -1)[:, 0] if rest else part
        assert part.shape[1:] == rest
        assert [labels[index] for index in rows.tolist()] == [
            (kind, head, row) for head in range(heads if kind == "q" else kv_heads) for row in range(size)]


def test_rows_that_do_not_fit_the_heads_are_refused() -> None:
    import torch

    with pytest.raises(StudioError, match="7 packed rows do not divide into 4 query heads over 2 key heads"):
        split_packed_rows(torch.zeros(7, 2), 4, 2)


@pytest.mark.parametrize(("name", "expected"), [
    ("model.tok_embeddings.weight", ("model.embed_tokens.weight",)), ("output.weight", ("lm_head.weight",)),
    ("model.norm.weight", ("model.norm.weight",)), ("model.layers.10.feed_forward.w3.weight", ("model.layers.10.mlp.up_proj.weight",)),
    ("model.layers.1.attention.wqkv.lora_B.weight", tuple(f"model.layers.1.self_attn.{part}_proj.lora_B.weight" for part in "qkv")),
    ("model.layers.1.attention.wo", ("model.layers.1.self_attn.o_proj",)), ("model.layers.1.attention.rotary_emb.inv_freq", ()),
    ("outputs.weight", ()), ("model.layers.x.ffn_norm.weight", ())])
def test_names(name: str, expected: tuple[str, ...]) -> None:
    assert llama_names(name) == expected


@pytest.mark.parametrize(("size", "config"), [
    ("1.8b", {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 16}),
    ("7b", {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}),
    ("20b", {"hidden_size": 6144, "intermediate_size": 16384, "num_hidden_layers": 48, "num_attention_heads": 48})])
def test_the_published_sizes_have_every_tensor_of_llama(size: str, config: dict[str, int]) -> None:
    from core.models.internlm2_convert import _check_complete

    made = llama_config(config | {"num_key_value_heads": 8, "vocab_size": 92544, "max_position_embeddings": 32768, "bias": False,
                                  "rope_theta": 1e6, "rope_scaling": {"type": "dynamic", "factor": 2.0}, "torch_dtype": "bfloat16"})
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    shapes: dict[str, tuple[int, ...]] = {}
    original = {"model.tok_embeddings.weight": (92544, hidden), "model.norm.weight": (hidden,), "output.weight": (92544, hidden)}
    for layer in range(layers):
        original |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in {
            "attention.wo": (hidden, hidden), "attention_norm": (hidden,), "ffn_norm": (hidden,), "feed_forward.w1": (inner, hidden),
            "feed_forward.w3": (inner, hidden), "feed_forward.w2": (hidden, inner)}.items()}
        original[f"model.layers.{layer}.attention.wqkv.weight"] = (hidden + 2 * 8 * 128, hidden)
    for name, shape in original.items():
        for number, new in enumerate(llama_names(name)):
            shapes[new] = ((hidden if number == 0 else 8 * 128), hidden) if "wqkv" in name else shape
    _check_complete(shapes, made)


# --- what is refused ---


def test_another_model_is_not_taken_for_one(tiny_model: Path, folder: Path, tmp_path: Path) -> None:
    assert is_internlm2(folder) and not is_internlm2(tiny_model)
    with pytest.raises(StudioError, match="is no InternLM2"):
        convert(tiny_model, tmp_path / "made")


def change_config(folder: Path, **changes: Any) -> None:
    write_json(folder / "config.json", json.loads((folder / "config.json").read_text()) | changes)


@pytest.mark.parametrize(("changes", "problem"), [
    ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight is - instead of"), ({"bias": True}, "k_proj.bias is - instead"),
    ({"intermediate_size": 50}, "mlp.down_proj.weight is .* instead of"), ({"num_key_value_heads": 3}, "packed rows do not divide"),
    ({"vocab_size": 40}, "knows [0-9]+ tokens and its weights 40"), ({"rope_scaling": {"type": "yarn"}}, "wants rope_scaling yarn")])
def test_weights_that_do_not_fit_leave_nothing(folder: Path, tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    change_config(folder, **changes)
    with pytest.raises(StudioError, match=problem):
        convert(folder, tmp_path / "made")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["internlm2"]


def test_a_missing_shard_and_a_damaged_one_are_named(folder: Path, tmp_path: Path) -> None:
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:900])
    with pytest.raises(StudioError, match="model-00002-of-00002.safetensors is cut off or damaged"):
        convert(folder, tmp_path / "made")
    shard.unlink()
    with pytest.raises(StudioError, match="is missing"):
        convert(folder, tmp_path / "made")
    (folder / "tokenizer.model").unlink()
    with pytest.raises(StudioError, match="has no tokenizer.model"):
        convert(folder, tmp_path / "made")


class _Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.mkdir, (str(self.target),)


def test_a_hostile_pickle_is_refused_and_named(tmp_path: Path) -> None:
    import torch

    source = write_internlm2(tmp_path / "source", binary=True)
    torch.save({"output.weight": _Hostile(tmp_path / "executed")}, source / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(StudioError, match=r"pytorch_model-00002-of-00002.bin holds more than tensors: it asks for posix.mkdir"):
        convert(source, tmp_path / "made")
    assert not (tmp_path / "executed").exists() and not (tmp_path / "made").exists()
