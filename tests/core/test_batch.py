"""A batch that answers join and leave: each gets what it would get alone, whatever happens beside it and whatever was kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from core.chat.batch import Batch, Part
from core.chat.engine import Engine, Row, Sampling
from core.chat.kept import KeptCaches
from core.chat.stacked import Adapter
from core.chat.stops import TextWriter, is_stuck
from core.data.encode import Encoder

SAMPLED = Sampling(temperature=1.2, top_k=60, top_p=0.95, repetition_penalty=1.1, seed=11)
QUESTIONS = ["Who are you?", "What is the capital of France? Paris, I think.", "你是谁？", "How many legs does a spider have?"]


@pytest.fixture(scope="module")
def encoder(tiny_model):
    return Encoder.from_folder(tiny_model)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> list[Adapter]:
    """The base, and two adapters of random numbers large enough to change every answer."""
    return [Adapter("base"), *(Adapter(str(seed), write_adapter(tmp_path_factory.mktemp("adapter"), seed)) for seed in (1, 2))]


def write_adapter(folder: Path, seed: int) -> Path:
    from safetensors.torch import save_file

    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in (0, 1):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = torch.randn(4, 64, generator=random)
        tensors[f"{name}.lora_B.weight"] = torch.randn(64, 4, generator=random)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4}))
    return folder


@pytest.fixture(scope="module")
def engine(tiny_model, adapters, encoder):
    return Engine.load(tiny_model, adapters, encoder.end_ids, encoder.pad_id())


def part_of(encoder, question: str, slot: int = 0, sampling: Sampling = SAMPLED, **changes) -> Part:
    return Part(slot, slot, encoder.encode_prompt([{"role": "user", "content": question}]), sampling, **changes)


def take(batch: Batch, ends: tuple[int, ...], most: int) -> None:
    """One step; answers end as they would anywhere."""
    for picked in batch.step():
        if picked.token not in ends:
            picked.part.ids.append(picked.token)
        if picked.token in ends or len(picked.part.ids) == most:
            batch.leave(picked.part)


def run(batch: Batch, parts: list[Part], ends: tuple[int, ...], most: int = 24) -> list[list[int]]:
    batch.join(parts)
    while batch:
        take(batch, ends, most)
    return [part.ids for part in parts]


def alone(engine: Engine, part: Part, most: int = 24) -> list[int]:
    """The same answer by the loop that scoring uses."""
    return engine.answer([Row(part.slot, part.prompt)], most, part.sampling)[0].ids


def test_answers_that_join_under_way_are_what_each_is_alone(engine, encoder):
    """Twelve answers of three adapters, joining one step after another; they end at different times and leave holes."""
    parts = [part_of(encoder, question, slot, sampling) for question in QUESTIONS
             for slot, sampling in ((2, SAMPLED), (0, Sampling()), (1, Sampling(temperature=0.8, seed=4)))]
    expected = [alone(engine, part, 6 + number) for number, part in enumerate(parts)]
    batch = Batch(engine, KeptCaches(0))
    waiting = list(enumerate(parts))
    limits = {part: 6 + number for number, part in waiting}
    most_at_once = 0
    while waiting or batch:
        if waiting:
            batch.join([waiting.pop(0)[1]])
        for picked in batch.step():
            if picked.token not in encoder.end_ids:
                picked.part.ids.append(picked.token)
            if picked.token in encoder.end_ids or len(picked.part.ids) == limits[picked.part]:
                batch.leave(picked.part)
        most_at_once = max(most_at_once, len(batch))
    assert [part.ids for part in parts] == expected
    assert most_at_once > 4, "they were hardly ever together"
    assert len({tuple(ids[:6]) for ids in expected[:3]}) == 3, "the adapters do nothing"


def test_what_was_read_is_not_read_again_and_changes_nothing(engine, encoder, monkeypatch):
    kept = KeptCaches(1e9)
    batch = Batch(engine, kept)
    first = part_of(encoder, QUESTIONS[0], 1)
    run(batch, [first], encoder.end_ids)
    turns = [{"role": "user", "content": QUESTIONS[0]}, {"role": "assistant", "content": encoder.decode(first.ids)},
             {"role": "user", "content": QUESTIONS[1]}]
    following = Part(1, 1, encoder.encode_prompt(turns), SAMPLED)
    stranger = Part(2, 2, encoder.encode_prompt(turns), SAMPLED)  # another adapter must not take its keys
    answers = run(batch, [following, stranger], encoder.end_ids)
    assert following.reused >= len(first.prompt) and stranger.reused == 0
    assert answers == [alone(engine, following), alone(engine, stranger)]
    read: list[int] = []
    forward = engine.model.forward
    monkeypatch.setattr(engine.model, "forward", lambda **inputs: (read.append(inputs["input_ids"].numel()), forward(**inputs))[1])
    again = Part(1, 1, following.prompt, SAMPLED)
    assert run(batch, [again], encoder.end_ids) == [answers[0]]
    assert again.reused == len(again.prompt) - 1, "the last id is read again: its logits begin the answer"
    assert set(read) == {1}, "not even once more than a token was read"


def test_the_kept_is_bounded_and_the_longest_unused_goes_first():
    def layers(length: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(torch.zeros(1, 1, length, 1), torch.zeros(1, 1, length, 1))]  # 8 bytes a token

    kept = KeptCaches(most_bytes=3 * 20 * 8)
    for start in (0, 100, 200):
        kept.keep("a", list(range(start, start + 20)), layers(20))
    assert kept.find("a", list(range(0, 30)))[0] == 20 and kept.size_bytes == 480
    kept.keep("a", list(range(300, 320)), layers(20))
    assert len(kept) == 3 and kept.size_bytes == 480
    assert kept.find("a", list(range(100, 130))) == (0, []), "this one was unused for longest"
    assert kept.find("a", list(range(0, 30)))[0] == 20
    assert kept.find("b", list(range(0, 30))) == (0, [])
    kept.keep("a", list(range(0, 40)), layers(40))
    assert kept.find("a", list(range(0, 35)))[0] == 34 and len(kept) == 2, "what a longer one continues is replaced by it"
    kept.keep("a", list(range(1000)), layers(1000))
    assert kept.size_bytes <= kept.most_bytes
    kept.clear()
    assert kept.size_bytes == len(kept) == 0


def test_penalties_are_those_of_the_openai_api(engine, encoder):
    """Greedy under a large presence penalty never repeats a token; a frequency penalty grows with each occurrence."""
    batch = Batch(engine, KeptCaches(0))
    plain, present, frequent = (part_of(encoder, QUESTIONS[0], 0, Sampling(), **changes) for changes in (
        {}, {"presence_penalty": 1e6}, {"frequency_penalty": 0.5}))
    run(batch, [plain, present, frequent], encoder.end_ids, 40)
    assert plain.ids == alone(engine, plain, 40)
    assert len(set(present.ids)) == len(present.ids) and len(set(plain.ids)) < len(plain.ids)
    expected: list[int] = []
    for _ in frequent.ids:
        logits = engine.logits(0, frequent.prompt + expected)[-1].clone()
        for token in expected:
            logits[token] -= 0.5
        expected.append(int(logits.argmax()))
    assert frequent.ids == expected


def test_logprobs_are_the_models_own(engine, encoder):
    part = part_of(encoder, QUESTIONS[0], 1, SAMPLED, top_logprobs=3)
    batch = Batch(engine, KeptCaches(0))
    batch.join([part])
    for _ in range(3):
        (picked,) = batch.step()
        expected = engine.logits(1, part.prompt + part.ids)[-1].log_softmax(-1)
        engine.routing.assign(torch.tensor([1]))  # as the batch left it
        assert picked.logprob == pytest.approx(float(expected[picked.token]), abs=1e-4)
        assert [token for token, _ in picked.top] == expected.topk(3).indices.tolist()
        part.ids.append(picked.token)


def test_text_before_a_stop_word_and_nothing_of_it(encoder):
    text = "The capital of France is Paris. 你是谁？ Eight"
    ids = encoder.tokenizer.encode(text, add_special_tokens=False).ids
    for stop, expected in (([], text), (["Paris"], "The capital of France is "), (["Eight legs"], text),
                           (["Parade", "谁"], "The capital of France is Paris. 你是")):
        writer = TextWriter(encoder, stop)
        shown = ""
        for token in ids:
            shown += writer.add(token)
            assert expected.startswith(shown), "a beginning of the stop word was shown"
            if writer.is_stopped:
                break
        assert shown + writer.rest() == expected
        assert writer.is_stopped == (expected != text)


def test_special_tokens_never_show(encoder):
    writer = TextWriter(encoder)
    ids = encoder.tokenizer.encode("<|im_start|>Who<|im_end|>", add_special_tokens=False).ids
    assert "".join(writer.add(token) for token in ids) + writer.rest() == "Who"


def test_a_loop_is_a_short_piece_again_and_again():
    assert is_stuck([1, 2, 3] * 20) and is_stuck([9, 8, 7, *[5] * 40])
    assert is_stuck([4, *list(range(50)) * 3])
    assert not is_stuck([1, 2, 3] * 13) and not is_stuck(list(range(200))) and not is_stuck([*list(range(50)) * 2, *range(49), 7])
