"""Is the merged model really the adapter that was chosen? Measured on the probes, in the merge job itself."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel

from core.chat.engine import Engine, Row
from core.chat.stacked import Adapter
from core.data.encode import Encoder, hash_ids
from core.data.library import texts_of
from core.merge.weights import changed_tensors, same_templates
from core.train.model import keep_differentiable
from core.words import Text

# Largest difference of any logit that counts as rounding. In float32 sums in another order differ by about 1e-4; 16-bit weights are
# rounded themselves, which moves logits by some tenths, and more where logits are large: on the embedded model each of two 16-bit
# versions lay up to 5.2 steps (of the format, at its largest logit) from the float32 one, so up to 12 from each other is rounding.
LOGIT_TOLERANCE = {"float32": 1e-2, "bfloat16": 1.0, "float16": 0.25}
_STEPS = 12
_LOGIT_PROBES = 8


class QuantisedComparison(BaseModel):
    """The merged model beside what the training saw: the quantised base with the adapter.

    Attributes:
        kind: of the quantisation, `nf4` or `int8`.
        onto: the weights that the adapter was merged onto, `base` or `quantized`.
        max_logit_difference: between the merged model and the quantised base with the adapter.
        differences: probes that those two answer otherwise.
    """

    kind: str
    onto: str
    max_logit_difference: float
    answers_compared: int
    differences: list[dict[str, str]]


class Verification(BaseModel):
    """`merge.json`, part `verification`.

    `differences` lists the probes that are answered otherwise, `answers` what the merged model said, by the probe's id. `quantised` is
    there for an adapter that was trained over quantised weights.
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
    quantised: QuantisedComparison | None = None

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
        if not self.max_logit_difference <= self.logit_tolerance:  # not a number is no small difference
            flags.append(Text("its logits differ by up to {difference}, more than rounding explains ({limit})",
                              difference=round(self.max_logit_difference, 4), limit=self.logit_tolerance))
        if not self.same_answers and self.logit_tolerance == LOGIT_TOLERANCE["float32"]:
            flags.append(Text("{count} of {total} answers differ from the adapter's", count=len(self.differences),
                              total=self.answers_compared))
        return flags


@dataclass(frozen=True)
class Questions:
    """What every model is asked, and how.

    Attributes:
        probes: with `id` and `messages`, or `text`; every one is answered.
        system: system text; None leaves it to the template.
        dtype: the precision the models are run in, a key of LOGIT_TOLERANCE.
        trained_dtype: the one that quantised weights were widened to in training.
    """

    probes: Sequence[dict]
    system: str | None
    max_new_tokens: int
    dtype: str
    device: str
    trained_dtype: str


@dataclass
class Heard:
    """What one model said: ids of its answers, and the logits along the texts that are read over."""

    answers: list[list[int]]
    logits: list[torch.Tensor]


def verify_merge(base: Path, adapter: Adapter, merged: Path, probes: Sequence[dict], expected_changes: int, dtype: str,
                 system: str | None, max_new_tokens: int, device: str, *, quantization: str = "none", onto: str = "base",
                 trained_dtype: str = "float32") -> Verification:
    """Load base with adapter, then the merged folder, and compare what they answer; one model is in memory at a time.

    Args:
        probes: questions with `id` and `messages`, or documents with `id` and `text`; both models answer, or continue, every one.
        dtype: the precision both are run in, a key of LOGIT_TOLERANCE.
        quantization: of the weights that the adapter was trained over; compared as well where it is not `none`.
        onto: `quantized` when the adapter was merged onto those: then they are what the merged model must agree with.
        trained_dtype: the format that quantised weights were widened to in training.
    """
    questions = Questions(probes, system, max_new_tokens, dtype, device, trained_dtype)
    encoder, merged_encoder = Encoder.from_folder(base, system), Encoder.from_folder(merged, system)
    prompts = [encoder.encode_asked(probe) for probe in probes]
    merged_prompts = [merged_encoder.encode_asked(probe) for probe in probes]
    wanted = "none" if onto == "base" else quantization
    first = _hear(base, [adapter], encoder, prompts, questions, None, wanted)
    texts = [prompt + answer for prompt, answer in zip(prompts, first.answers, strict=True)][:_LOGIT_PROBES]
    second = _hear(merged, [Adapter("merged")], merged_encoder, merged_prompts, questions, texts)
    changed = changed_tensors(base, merged)
    differences = _differences(probes, encoder, first, second)
    quantised = None
    if quantization != "none":
        trained = first if wanted != "none" else _hear(base, [adapter], encoder, prompts, questions, texts, quantization)
        quantised = QuantisedComparison(kind=quantization, onto=onto, max_logit_difference=_furthest(trained, second),
                                        answers_compared=len(probes), differences=_differences(probes, encoder, trained, second))
    return Verification(
        same_answers=not differences, answers_compared=len(probes), differences=differences, max_logit_difference=_furthest(first, second),
        logit_tolerance=max(_tolerance(kind, first) for kind in (dtype, *([trained_dtype] if wanted != "none" else []))),
        tensors_changed=changed, tensors_expected=expected_changes,
        same_template=same_templates(base, merged),
        same_prompt_ids=[hash_ids(ids) for ids in prompts] == [hash_ids(ids) for ids in merged_prompts],
        differs_from_base=changed > 0,
        answers={probe["id"]: merged_encoder.decode(ids).strip() for probe, ids in zip(probes, second.answers, strict=True)},
        quantised=quantised)


def _hear(folder: Path, adapters: list[Adapter], encoder: Encoder, prompts: list[list[int]], questions: Questions,
          texts: list[list[int]] | None, quantization: str = "none") -> Heard:
    """Load a model, ask it everything, and let it go. Without `texts` it reads over its own first answers."""
    dtype = getattr(torch, questions.dtype if quantization == "none" else questions.trained_dtype)
    engine = Engine.load(folder, adapters, encoder.end_ids, encoder.pad_id(), dtype, questions.device, quantization)
    keep_differentiable(engine.model)  # 4-bit products as in training: those for speed round to bfloat16 on a processor
    answers = [answer.ids for answer in engine.answer([Row(0, prompt) for prompt in prompts], questions.max_new_tokens)]
    if texts is None:
        texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)][:_LOGIT_PROBES]
    logits = [engine.logits(0, ids).cpu() for ids in texts]
    del engine
    gc.collect()  # its modules refer to each other; the next model needs the room
    return Heard(answers, logits)


def _tolerance(dtype: str, heard: Heard) -> float:
    """How far a logit may move by rounding in this format."""
    if dtype == "float32":
        return LOGIT_TOLERANCE[dtype]
    largest = max(float(logits.abs().max()) for logits in heard.logits)
    return max(LOGIT_TOLERANCE[dtype], round(_STEPS * torch.finfo(getattr(torch, dtype)).eps * largest, 3))


def _furthest(first: Heard, second: Heard) -> float:
    """The largest difference of any logit; not a number if one of them is not."""
    differences = torch.stack([(one - two).abs().max() for one, two in zip(first.logits, second.logits, strict=True)])
    return float(differences.max())


def _differences(probes: Sequence[dict], encoder: Encoder, first: Heard, second: Heard) -> list[dict[str, str]]:
    return [{"question": texts_of(probe)[-1], "adapter": encoder.decode(one), "merged": encoder.decode(two)}
            for probe, one, two in zip(probes, first.answers, second.answers, strict=True) if one != two]
