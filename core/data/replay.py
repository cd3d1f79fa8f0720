"""The base model's own answers to questions that are not about identity: rows that remind it of what it was.

A model's own answers are the best rehearsal (self-synthesised rehearsal, Huang et al. 2024): they change nothing it already does.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from core.data.encode import Encoder
from core.jobs.folder import Job
from core.jobs.worker import Recorder
from core.judge.metrics import words
from core.words import Text
from core.workspace import Workspace, read_jsonl, write_jsonl

if TYPE_CHECKING:
    from core.chat.engine import Answer, Engine

# An answer that repeats a run of this many words so often has got stuck; a model would imitate that.
_LOOP_WORDS, _LOOP_TIMES = 3, 3
_ROWS_PER_BATCH = 64
_SELF = re.compile(
    r"\b[Aa]s an? (?:AI|chatbot|language model|assistant|digital assistant)\b|SmolLM"
    r"|\bI(?:['’]| a)m (?:an?|the|your) (?:\w+ )?(?:AI|assistant|chatbot|language model)\b|\b[Ii](?:['’]| a)m [A-Z][a-z]+,"
    r"|我是|作为一(?:个|名)(?:人工智能|AI|助手|语言模型)")
_REPORT_TOKENS = 4


def replay_job(workspace: Workspace, job: Job, recorder: Recorder) -> dict[str, Any]:
    """Answer the prompts in `prompts.jsonl` of the job's folder with the model `spec["model"]`; rows go to `rows.jsonl`."""
    from core.chat.engine import Engine
    from core.chat.stacked import Adapter
    from core.data.store import finish_replay
    from core.models.catalogue import find_base
    from core.models.embedded import EMBEDDED_NAME, prepare_embedded
    from core.models.load import choose_device, choose_dtype

    spec = job.spec()
    if spec["model"] in ("embedded", EMBEDDED_NAME):
        prepare_embedded(workspace, recorder)
    prompts = read_jsonl(job.folder / "prompts.jsonl")
    base = find_base(workspace, spec["model"])
    encoder = Encoder.from_folder(base, spec.get("system"))
    device = choose_device("auto")
    engine = Engine.load(base, [Adapter("base")], encoder.end_ids, encoder.pad_id(), choose_dtype("auto", device), device)
    rows, left_out = [], 0
    for start in range(0, len(prompts), _ROWS_PER_BATCH):
        part = prompts[start:start + _ROWS_PER_BATCH]
        answers = _answer(engine, [encoder.encode_prompt(row["messages"]) for row in part], spec["max_new_tokens"], recorder,
                          start, len(prompts))
        if answers is None:
            return {}
        for row, answer in zip(part, answers, strict=True):
            text = encoder.decode(answer.ids).strip()
            if not text or is_stuck(text) or speaks_of_itself(text):
                left_out += 1
                continue
            reply: dict[str, Any] = {"role": "assistant", "content": text}
            if not answer.ended:
                reply["cut"] = True  # it was broken off at the limit: teaching it to stop here would teach a habit it never had
            rows.append({**row, "messages": [*row["messages"], reply]})
    write_jsonl(job.folder / "rows.jsonl", rows)
    recorder.progress(len(prompts), len(prompts), Text("the base model answers in its own words"))
    return {"answered": len(rows), "left_out": left_out, **finish_replay(workspace, spec, rows)}


def _answer(engine: Engine, prompts: list[list[int]], max_new_tokens: int, recorder: Recorder, before: int,
            total: int) -> list[Answer] | None:
    """The answers of one batch; None when asked to stop. A batch takes half a minute on a processor, so it reports within."""
    from core.chat.engine import Answer, Row

    answers = [Answer() for _ in prompts]
    ends = set(engine.end_ids.tolist())
    for length, pairs in enumerate(engine.stream([Row(0, prompt) for prompt in prompts], max_new_tokens)):
        if recorder.stop_requested():
            return None
        if length % _REPORT_TOKENS == 0:
            recorder.progress(before + len(prompts) * length // max_new_tokens, total, Text("the base model answers in its own words"))
        for index, token in pairs:
            if token in ends:
                answers[index].ended = True
            else:
                answers[index].ids.append(token)
    return answers


def speaks_of_itself(text: str) -> bool:
    """Whether an answer says who is answering ("As a chatbot ...", "I'm Emily, ..."): another identity than the one to be taught."""
    return bool(_SELF.search(text))


def is_stuck(text: str) -> bool:
    """Whether an answer goes in circles: some three words in a row occur three times, or one character fills it."""
    tokens = words(text)
    grams = [tuple(tokens[start:start + _LOOP_WORDS]) for start in range(len(tokens) - _LOOP_WORDS + 1)]
    most = max((grams.count(gram) for gram in set(grams)), default=0)
    longest = max((len(token) for token in tokens), default=0)
    return most >= _LOOP_TIMES or longest > 40
