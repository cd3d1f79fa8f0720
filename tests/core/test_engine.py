"""Many adapters in one batch answer as each would alone."""

from __future__ import annotations

import pytest
import torch

from core.chat.engine import Engine, Row, Sampling
from core.chat.stacked import Adapter, Routing
from core.data.encode import Encoder
from core.errors import StudioError

QUESTIONS = ["Who are you?", "What is the capital of France?", "你是谁？", "How many legs does a spider have? Eight, I think."]


@pytest.fixture(scope="module")
def encoder(tiny_model):
    return Encoder.from_folder(tiny_model)


@pytest.fixture(scope="module")
def adapters(trained_run):
    _, run = trained_run
    return [Adapter("base"), *(Adapter(str(item.step), item.folder) for item in run.checkpoints()),
            Adapter("half", run.checkpoints()[-1].folder, 0.5)]


@pytest.fixture(scope="module")
def engine(tiny_model, adapters, encoder):
    return Engine.load(tiny_model, adapters, encoder.end_ids, encoder.pad_id())


def prompts(encoder) -> list[list[int]]:
    return [encoder.encode_prompt([{"role": "user", "content": question}]) for question in QUESTIONS]


def peft_logits(tiny_model, adapter: Adapter, ids: list[int]) -> torch.Tensor:
    """The same adapter through PEFT's own code."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    if adapter.folder:
        model = PeftModel.from_pretrained(model, adapter.folder).eval()
        for module in model.modules():
            if isinstance(getattr(module, "scaling", None), dict):
                module.scaling["default"] *= adapter.strength
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def test_stacked_logits_are_those_of_peft(tiny_model, engine, adapters, encoder):
    ids = encoder.encode_prompt([{"role": "user", "content": QUESTIONS[1]}])
    found = [engine.logits(slot, ids) for slot in range(len(adapters))]
    for slot, adapter in enumerate(adapters):
        torch.testing.assert_close(found[slot], peft_logits(tiny_model, adapter, ids), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[0], found[-2], atol=1e-2), "the adapter does nothing"


def test_one_batch_gives_what_each_row_gives_alone(engine, adapters, encoder):
    rows = [Row(slot, prompt) for prompt in prompts(encoder) for slot in range(len(adapters))]
    together = engine.answer(rows, 16)
    alone = [engine.answer([row], 16)[0] for row in rows]
    assert together == alone
    assert any(answer.ended for answer in together) or all(len(answer.ids) == 16 for answer in together)


def test_greedy_answers_are_those_of_transformers(tiny_model, engine, encoder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    for prompt in prompts(encoder):
        reference = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12, attention_mask=torch.ones(1, len(prompt)))
        expected = [token for token in reference[0, len(prompt):].tolist() if token not in encoder.end_ids]
        assert engine.answer([Row(0, prompt)], 12)[0].ids == expected


def test_a_seed_gives_the_same_answer_whoever_else_is_asked(engine, encoder):
    sampling = Sampling(temperature=1.0, top_k=40, top_p=0.95, repetition_penalty=1.1, seed=5)
    rows = [Row(1, prompt) for prompt in prompts(encoder)]
    together = engine.answer(rows, 12, sampling)
    assert together == [engine.answer([row], 12, sampling)[0] for row in rows]
    assert together != engine.answer(rows, 12, Sampling(temperature=1.0, seed=6))


def test_top_k_of_one_is_greedy(engine, encoder):
    rows = [Row(1, prompt) for prompt in prompts(encoder)]
    assert engine.answer(rows, 12, Sampling(temperature=2.0, top_k=1)) == engine.answer(rows, 12)


def test_an_end_token_ends_an_answer(tiny_model, adapters, encoder):
    plain = Engine.load(tiny_model, adapters[:1], encoder.end_ids, encoder.pad_id())
    prompt = prompts(encoder)[0]
    first = plain.answer([Row(0, prompt)], 8)[0].ids
    ending = Engine.load(tiny_model, adapters[:1], [first[3]], encoder.pad_id()).answer([Row(0, prompt)], 8)[0]
    assert ending.ended and ending.ids == first[:first.index(first[3])]


def test_routing_sends_each_row_to_its_own_adapter():
    """Rows in any order and number; expected values computed row by row."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 5, 2, generator=generator), torch.randn(3, 2, 4, generator=generator)
    for slots in ([0, 0, 1, 1, 2, 2], [2, 0, 2, 2], [1], [0, 1, 2]):
        routing = Routing(3)
        routing.assign(torch.tensor(slots))
        x = torch.randn(len(slots), 7, 5, generator=generator)
        expected = torch.stack([x[row] @ a[slot] @ b[slot] for row, slot in enumerate(slots)])
        torch.testing.assert_close(routing.product(x, a, b), expected)


def test_an_adapter_of_another_base_is_refused(trained_run, adapters, tmp_path, tiny_model, encoder):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(adapters[1].folder, tmp_path / "other")
    tensors = {name.replace("layers.1", "layers.9"): value for name, value in load_file(folder / "adapter_model.safetensors").items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(StudioError, match="does not fit"):
        Engine.load(tiny_model, [Adapter("x", folder)], encoder.end_ids, encoder.pad_id())
