"""Whether a model's chat template is its own: a template of another model is seen as plain text, and its end is never learnt."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from core.data.encode import Encoder
from core.data.measure import encoder_of
from core.errors import StudioError
from core.models.header import ModelHeader
from core.recipe.finding import Finding
from core.recipe.schema import Recipe
from core.words import Text

_SAMPLE = [{"role": "user", "content": "0"}, {"role": "assistant", "content": "1"}]
_MARKERS = re.compile(r"<\|[^|<>]{1,40}\|>|<(?:start|end)_of_turn>")


def check_template(base: Path, header: ModelHeader, recipe: Recipe, has_conversations: bool) -> Iterator[Finding]:
    """Findings about the chat template of the model in `base`; plain documents need none."""
    if not header.has_chat_template and has_conversations:
        yield Finding("no_template", "error", Text("The model has no chat template; it is a base model, not a chat model."),
                      Text("Choose the chat (instruct) version of this model; a base model can only be trained on plain documents."),
                      "model.source")
        return
    if not header.has_chat_template:
        yield Finding("no_template", "warning", Text(
            "The model has no chat template, so its snapshots are asked nothing: they are judged by documents alone, and what they forget "
            "is not seen."), Text("Choose the chat (instruct) version of this model to see both."), "model.source")
        return
    yield from _two_templates(base)
    try:
        encoder = encoder_of(base, recipe.data.system)
        text = encoder.render(_SAMPLE)
    except StudioError as error:
        yield Finding("bad_template", "error", error.problem, error.hint, "model.source")
        return
    split = sorted({marker for marker in _MARKERS.findall(text) if len(encoder.tokenizer.encode(marker, add_special_tokens=False).ids) > 1})
    if split:
        yield Finding("foreign_template", "warning", Text(
            "The chat template writes {markers}, which this model's tokenizer takes apart like ordinary text: the template belongs to "
            "another model.", markers=", ".join(split[:4])), Text("Use the template that came with the model, or its chat version."),
            "model.source")
        return
    yield from _base_model(base, encoder)


def _two_templates(base: Path) -> Iterator[Finding]:
    """Files of a model copied from two places: which one counts is then a matter of luck elsewhere."""
    beside = base / "chat_template.jinja"
    try:
        inside = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError):
        return
    if beside.exists() and isinstance(inside, str) and inside.strip() != beside.read_text(encoding="utf-8").strip():
        yield Finding("two_templates", "warning", Text(
            "The model has two different chat templates, in chat_template.jinja and in tokenizer_config.json; the first is used."),
            Text("Delete the one that is not the model's own."), "model.source")


def _base_model(base: Path, encoder: Encoder) -> Iterator[Finding]:
    """A base model that was given a template: its answers end with a mark that the model itself never ends with."""
    encoded = encoder.encode(_SAMPLE)
    ends = [token for token, is_trained in zip(encoded.ids, encoded.trained, strict=True) if is_trained]
    own = _own_end_ids(base, encoder)
    if ends and own and ends[-1] not in own:
        yield Finding("base_with_template", "warning", Text(
            "The chat template ends an answer with {end}, but the model ends its text with {own}: it looks like a base model that was "
            "given a template, and must learn the whole form of a conversation.", end=encoder.tokenizer.id_to_token(ends[-1]),
            own=", ".join(sorted(encoder.tokenizer.id_to_token(token) or str(token) for token in own))),
            Text("Choose the chat (instruct) version of this model, or train on many rows."), "model.source")


def _own_end_ids(base: Path, encoder: Encoder) -> set[int]:
    """What the tokenizer and the generation config call the end, without what the template adds."""
    own = {encoder.tokenizer.token_to_id(encoder.special.get("eos_token") or "")} - {None}
    try:
        configured = json.loads((base / "generation_config.json").read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError):
        configured = None
    return own | set(configured if isinstance(configured, list) else [] if configured is None else [configured])
