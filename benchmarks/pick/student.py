"""A second architecture for the study: a small model of GPT-NeoX's shape, taught from nothing by the embedded model's own answers.

It knows little beyond the questions it was taught, which are all of the study's but what the runs teach. So it stands for another
architecture, not for another ability: parallel residuals, layer norms with biases, one product for query, key and value, half of each
head rotated, no gate in its inner layers.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from benchmarks.pick.design import RUNS
from benchmarks.pick.measure import sample
from benchmarks.pick.tasks import Row, make_task
from core.chat.engine import Engine
from core.chat.engine import Row as Ask
from core.chat.stacked import Adapter
from core.data.encode import Encoded, Encoder
from core.data.library import GENERAL, IDENTITY
from core.data.persona import replay_prompts
from core.data.wordings import wording
from core.models.load import choose_dtype
from core.train.snapshots import TEMPLATE_FILES
from core.train.update import collate, summed_loss
from core.workspace import fill_folder

_SHAPE = {"hidden_size": 512, "num_hidden_layers": 10, "num_attention_heads": 8, "intermediate_size": 2048}
_TRIAL_SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
_ANSWERS_EACH, _ANSWER_TOKENS = 6, 48
_ROWS_AT_A_TIME = 512
_UPDATES, _ROWS, _RATE, _WARMUP = 1000, 128, 1e-3, 50


def make_student(teacher: Path, target: Path, device: str, is_rehearsal: bool = False) -> Path:
    """Teach a student and save it as an ordinary model folder with its teacher's tokenizer; nothing happens if it is there."""
    if target.exists():
        return target
    encoder = Encoder.from_folder(teacher)
    torch.manual_seed(0)
    rows = [encoder.encode(row["messages"], max_length=160) for row in _lessons(teacher, encoder, device, is_rehearsal)]
    config = GPTNeoXConfig(vocab_size=encoder.tokenizer.get_vocab_size(), max_position_embeddings=512, rotary_pct=0.5,
                           tie_word_embeddings=True, eos_token_id=encoder.end_ids[0], bos_token_id=encoder.end_ids[0],
                           pad_token_id=encoder.pad_id(), **(_TRIAL_SHAPE if is_rehearsal else _SHAPE))
    model = GPTNeoXForCausalLM(config).to(device)
    _teach(model, rows, encoder.pad_id(), device, *((3, 4) if is_rehearsal else (_UPDATES, _ROWS)))
    with fill_folder(target) as folder:
        model.float().save_pretrained(folder)
        for name in TEMPLATE_FILES:
            if (teacher / name).exists():
                shutil.copyfile(teacher / name, folder / name)
    return target


def _questions() -> list[Row]:
    """Every question that the study asks or replays in English, but the tasks' own; conversations as they are."""
    shipped = wording("en")
    who = [{"messages": [{"role": "user", "content": question.ask}]} for question in (*shipped.identity_train, *shipped.identity_held_out)]
    others = [probe for run in RUNS for task in [make_task(run)] for probe in [*task.probes, *task.oracle]
              if probe["lang"] == "en" and probe["group"] in (IDENTITY, "near", GENERAL)]
    unique = {str(row["messages"]): row for row in [*who, *replay_prompts(["en"], 62, 300), *others]}
    return list(unique.values())


def _lessons(teacher: Path, encoder: Encoder, device: str, is_rehearsal: bool) -> list[Row]:
    """Each question with several answers of the teacher: a greedy one and drawn ones."""
    engine = Engine.load(teacher, [Adapter("teacher")], encoder.end_ids, encoder.pad_id(), choose_dtype("auto", device), device)
    questions = _questions()[:12] if is_rehearsal else _questions()
    asks = [Ask(0, encoder.encode_prompt(row["messages"])) for row in questions]
    rows = []
    with torch.inference_mode():
        for turn in range(1 if is_rehearsal else _ANSWERS_EACH):
            answers = [ids for start in range(0, len(asks), _ROWS_AT_A_TIME)
                       for ids in sample(engine, asks[start:start + _ROWS_AT_A_TIME], _ANSWER_TOKENS, 7 * turn + start)]
            for row, ids in zip(questions, answers, strict=True):
                text = encoder.decode(ids).strip()
                if text:
                    reply = {"role": "assistant", "content": text, **({"cut": True} if len(ids) == _ANSWER_TOKENS else {})}
                    rows.append({**row, "messages": [*({**said, "train": False} for said in row["messages"]), reply]})
    return rows


def _batches(rows: Sequence[Encoded], updates: int, count: int) -> Iterator[list[Encoded]]:
    generator, order = random.Random(0), []
    for _ in range(updates):
        while len(order) < count:
            order += generator.sample(range(len(rows)), len(rows))
        yield [rows[place] for place in order[:count]]
        del order[:count]


def _teach(model: GPTNeoXForCausalLM, rows: Sequence[Encoded], pad_id: int, device: str, updates: int, count: int) -> None:
    """AdamW on the answers' tokens, with a warm-up and a linear fall of the rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    model.train()
    for number, part in enumerate(_batches(rows, updates, count), 1):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * min(number / _WARMUP, (updates - number + 1) / max(1, updates - _WARMUP))
        batch = collate(part, pad_id, device)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = summed_loss(model, batch, "layer") / len(batch.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if number == 1 or number % 100 == 0 or number == updates:
            print(f"student: update {number} of {updates}, loss {loss.item():.3f}", flush=True)
    model.eval()
