"""The tiny model must be a real one: transformers loads every weight and speaks its template."""

from __future__ import annotations

from pathlib import Path


def test_transformers_loads_every_weight(tiny_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, report = AutoModelForCausalLM.from_pretrained(tiny_model, output_loading_info=True)
    assert not any(report.values()), report
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert tokenizer.eos_token_id == model.config.eos_token_id == model.generation_config.eos_token_id == 2

    asked = [{"role": "user", "content": "你是谁？"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    assert tokenizer.decode(ids[0]).endswith("<|im_start|>user\n你是谁？<|im_end|>\n<|im_start|>assistant\n")
    with torch.no_grad():
        best = model(ids).logits[0, -1].topk(2).values
    assert best[0] - best[1] > 1e-3, "a greedy choice must not hang on rounding"
