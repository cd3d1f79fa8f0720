"""Is the merged model really the adapter that was chosen? Measured on the probes, in the merge job itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel

from core.chat.engine import Engine, Row
from core.chat.stacked import Adapter
from core.data.encode import Encoder, hash_ids
from core.merge.weights import changed_tensors, same_templates
from core.words import Text

# Largest difference of any logit that counts as rounding. In float32 sums in another order differ by about 1e-4; 16-bit weights are
# rounded themselves, which moves logits by some tenths.
LOGIT_TOLERANCE = {"float32": 1e-2, "bfloat16": 1.0, "float16": 0.25}
_LOGIT_PROBES = 8


class Verification(BaseModel):
    """`merge.json`, part `verification`.

    `differences` lists the probes that are answered otherwise, `answers` what the merged model said, by the probe's id.
    """

    same_answers: bool
    answers_compared: int
    differences: list[dict[str, str]]
    max_logit_difference: float
    logit_tolerance: float
    tensors_changed: int
    tensors_expected: int
    same_template: bool
    same_prompt_ids: bool
    differs_from_base: bool
    answers: dict[str, str] = {}

    def red_flags(self) -> list[Text]:
        """Why the merged model must not be trusted; empty when it may."""
        flags = []
        if not self.same_template or not self.same_prompt_ids:
            flags.append(Text("its tokenizer or chat template is not the base model's"))
        if not self.differs_from_base:
            flags.append(Text("it is the base model: no tensor changed"))
        elif self.tensors_changed != self.tensors_expected:
            flags.append(Text("{changed} tensors changed instead of {expected}", changed=self.tensors_changed,
                              expected=self.tensors_expected))
        if self.max_logit_difference > self.logit_tolerance:
            flags.append(Text("its logits differ by up to {difference}, more than rounding explains ({limit})",
                              difference=round(self.max_logit_difference, 4), limit=self.logit_tolerance))
        if not self.same_answers and self.logit_tolerance == LOGIT_TOLERANCE["float32"]:
            flags.append(Text("{count} of {total} answers differ from the adapter's", count=len(self.differences),
                              total=self.answers_compared))
        return flags


def verify_merge(base: Path, adapter: Adapter, merged: Path, probes: Sequence[dict], expected_changes: int, dtype: str,
                 system: str | None, max_new_tokens: int, device: str) -> Verification:
    """Load base with adapter, then the merged folder, and compare what they answer.

    Args:
        probes: questions with `id` and `messages`; every one is answered by both.
        dtype: the precision both are run in, a key of LOGIT_TOLERANCE.
    """
    encoder, merged_encoder = Encoder.from_folder(base, system), Encoder.from_folder(merged, system)
    prompts = [encoder.encode_prompt(probe["messages"]) for probe in probes]
    merged_prompts = [merged_encoder.encode_prompt(probe["messages"]) for probe in probes]
    adapter_engine = Engine.load(base, [adapter], encoder.end_ids, encoder.pad_id(), getattr(torch, dtype), device)
    answers = _greedy(adapter_engine, prompts, max_new_tokens)
    read_over = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)][:_LOGIT_PROBES]
    logits = [adapter_engine.logits(0, ids).cpu() for ids in read_over]
    del adapter_engine  # one copy of the weights in memory at a time
    merged_engine = Engine.load(merged, [Adapter("merged")], merged_encoder.end_ids, merged_encoder.pad_id(), getattr(torch, dtype), device)
    merged_answers = _greedy(merged_engine, merged_prompts, max_new_tokens)
    furthest = max(float((merged_engine.logits(0, ids).cpu() - before).abs().max()) for ids, before in zip(read_over, logits, strict=True))
    differences = [
        {"question": probe["messages"][-1]["content"], "adapter": encoder.decode(first), "merged": encoder.decode(second)}
        for probe, first, second in zip(probes, answers, merged_answers, strict=True) if first != second]
    changed = changed_tensors(base, merged)
    return Verification(
        same_answers=not differences, answers_compared=len(probes), differences=differences,
        max_logit_difference=furthest,
        logit_tolerance=LOGIT_TOLERANCE[dtype], tensors_changed=changed, tensors_expected=expected_changes,
        same_template=same_templates(base, merged),
        same_prompt_ids=[hash_ids(ids) for ids in prompts] == [hash_ids(ids) for ids in merged_prompts],
        differs_from_base=changed > 0,
        answers={probe["id"]: merged_encoder.decode(ids).strip() for probe, ids in zip(probes, merged_answers, strict=True)})


def _greedy(engine: Engine, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    return [answer.ids for answer in engine.answer([Row(0, prompt) for prompt in prompts], max_new_tokens)]
