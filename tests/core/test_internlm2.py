"""InternLM2 in Llama's layout: against the published formula, computed here on its own."""

from __future__ import annotations

import pytest

from core.errors import StudioError
from core.models.internlm2 import llama_names, split_packed_rows


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
