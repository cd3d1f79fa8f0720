"""The one encoder: a conversation in, token ids and a loss mask out.

Training, the data preview, scoring, chat and the merge check all call this class, so none of them can see another prompt than the
others. It needs `tokenizers` and `jinja2` only, no torch: the server uses it too. The chat template and the end tokens are the
model's own; they are written to a run's `template.json` and travel with every adapter and merged model. A base model without a template can
still read plain documents.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os.path import commonprefix
from pathlib import Path
from typing import Any, Literal

import jinja2
from tokenizers import Tokenizer

from core.data.template import compile_template
from core.errors import StudioError

Message = dict[str, Any]
Tools = Sequence[dict[str, Any]] | None
TrainOn = Literal["all", "last", "everything"]
# So much of a document shows what it is about, and leaves something to go on with.
_BEGINNING_TOKENS = 24
_MARK = "\ue000"  # of the private use area: no text holds it


@dataclass(frozen=True)
class Encoded:
    """One conversation as the model sees it.

    Attributes:
        ids: token ids, length T.
        trained: T booleans; True where the token is a target of the loss.
        text: the rendered conversation.
        offsets: T pairs (first, end) of characters in `text`.
        cut_tokens: how many tokens were cut off at the end to keep within the length limit.
    """

    ids: list[int]
    trained: list[bool]
    text: str
    offsets: list[tuple[int, int]]
    cut_tokens: int = 0


class Encoder:
    """Renders with the model's chat template and tokenises with its tokenizer."""

    def __init__(self, tokenizer: Tokenizer, template: str, special: dict[str, str | None], end_ids: Sequence[int],
                 system: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.special = special
        self.end_ids = tuple(end_ids)
        self.system = system
        self._render = compile_template(template) if template else None

    @classmethod
    def from_folder(cls, folder: Path, system: str | None = None) -> Encoder:
        """Read `tokenizer.json`, the chat template, if there is one, and the end tokens of a model folder.

        Args:
            folder: a Hugging Face model folder, or a run's checkpoint folder that carries the same files.
            system: system text put before conversations that have none; None leaves that to the template.

        Raises:
            StudioError: no fast tokenizer, no end token, or a template that does not compile.
        """
        path = folder / "tokenizer.json"
        if not path.exists():
            raise StudioError("The model in {folder} has no tokenizer.json.",
                              "Copy the tokenizer files beside the weights; every recent model has them.", folder=folder)
        config = _read_settings(folder / "tokenizer_config.json")
        tokenizer = _read_tokenizer(path)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        template = _read_template(folder, config)
        special = {key: _content(config.get(key)) for key in ("bos_token", "eos_token", "pad_token", "unk_token")}
        return cls(tokenizer, template, special, _end_ids(folder, tokenizer, special, template), system)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False, tools: Tools = None) -> str:
        """The conversation as text, special tokens included; `tools` are the JSON schemas of what it may call.

        Raises:
            StudioError: the model has no chat template, or the template refuses the conversation.
        """
        if self._render is None:
            raise StudioError("The model has no chat template; it is a base model, not a chat model.",
                              "Choose the chat (instruct) version of this model; a base model can only be trained on plain documents.")
        if self.system is not None and (not messages or messages[0]["role"] != "system"):
            messages = [{"role": "system", "content": self.system}, *messages]
        try:
            return self._render(messages=list(messages), tools=list(tools) if tools else None, documents=None,
                                add_generation_prompt=add_generation_prompt, **self.special)
        except (jinja2.TemplateError, TypeError) as error:  # TypeError: the template joins a text with what is none
            raise StudioError("The chat template refuses this conversation: {reason}.",
                              "Check the order of the roles; most templates want user and assistant in turn.",
                              reason=str(error).rstrip(".")) from error

    def encode_prompt(self, messages: Sequence[Message], tools: Tools = None) -> list[int]:
        """Ids up to and including the opening of the assistant's next answer."""
        text = self.render(messages, add_generation_prompt=True, tools=tools)
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_answers(self, messages: Sequence[Message], answers: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """A prompt's ids, and for each answer to it the ids that follow, without the end token: what a likelihood is asked for.

        An answer is encoded in its place, because where it begins decides how its first word is split.
        """
        prompt = self.encode_prompt(messages)
        found = []
        for answer in answers:
            whole = self.encode([*messages, {"role": "assistant", "content": answer}], "last")
            own = [token for token, is_trained in zip(whole.ids, whole.trained, strict=True) if is_trained]
            if whole.ids[:len(prompt) + len(own)] != prompt + own:  # a template that opens a closed turn in another way
                own = self.tokenizer.encode(answer.strip(), add_special_tokens=False).ids
            while own and own[-1] in self.end_ids:
                own.pop()
            found.append(own)
        return prompt, found

    def encode_row(self, row: Mapping[str, Any], train_on: TrainOn = "all", max_length: int | None = None) -> Encoded:
        """A row of a dataset: a conversation under `messages`, with its `tools` if any, or a plain document under `text`."""
        if "text" in row:
            return self.encode_text(row["text"], max_length)
        return self.encode(row["messages"], train_on, max_length, row.get("tools"))

    def encode_text(self, document: str, max_length: int | None = None) -> Encoded:
        """Ids of a plain document for continued pre-training: no chat template, every token trained.

        It begins with what the tokenizer itself puts before a text (nothing, or the token that begins one) and ends with the
        model's end token, so that the model learns where documents end.
        """
        begin = self.tokenizer.encode("", add_special_tokens=True).ids[:1]
        opening = "".join(self.tokenizer.id_to_token(token) for token in begin if token not in self.end_ids)
        text = opening + document + (self.special.get("eos_token") or self.end_tokens[0])
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        return _cut(encoding.ids, [True] * len(encoding.ids), text, encoding.offsets, max_length)

    def encode_asked(self, probe: Mapping[str, Any]) -> list[int]:
        """Ids after which a model is to go on: of a question, or of the beginning of a document under `text`."""
        if "text" not in probe:
            return self.encode_prompt(probe["messages"])
        return self.encode_text(probe["text"], _BEGINNING_TOKENS).ids

    def encode(self, messages: Sequence[Message], train_on: TrainOn = "all", max_length: int | None = None,
               tools: Tools = None) -> Encoded:
        """Ids and loss mask of a whole conversation.

        The trained part of an assistant turn begins after the opening that `encode_prompt` would end with, and reaches through the
        first end token after the answer: the model must learn to stop. What the template writes after that (a line break) is not
        trained. Calls of tools are part of the assistant's turn and trained, their results are not.

        Args:
            messages: the turns, `{"role", "content"}` each; an answer marked `"cut": true` was broken off, so its end is not trained,
                and one marked `"train": false` is only read.
            train_on: every assistant turn, the last one only, or every token of the conversation.
            max_length: longest result in tokens; the end is cut.
            tools: JSON schemas of the tools, for templates that show them.
        """
        text = self.render(messages, tools=tools)
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        spans = [(0, len(text))] if train_on == "everything" else self._answer_spans(messages, text, tools, train_on)
        trained = [any(start <= first < stop for start, stop in spans)
                   for first, end in encoding.offsets]
        return _cut(encoding.ids, trained, text, encoding.offsets, max_length)

    def _answer_spans(self, messages: Sequence[Message], text: str, tools: Tools, train_on: TrainOn) -> list[tuple[int, int]]:
        """Character spans of the trained part of each assistant turn."""
        turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
        spans = []
        for turn in turns[-1:] if train_on == "last" else turns:
            if messages[turn].get("train") is not False:
                start = self._answer_start(messages, turn, text, tools)
                closed = self.render(messages[: turn + 1], tools=tools)
                spans.append((start, self._answer_end(closed if text.startswith(closed) else text, start, messages[turn])))
        return spans

    def _answer_start(self, messages: Sequence[Message], turn: int, text: str, tools: Tools) -> int:
        """Where the answer begins in `text`.

        Most templates write a turn the same way whatever follows, so the prompt for it is the beginning of the whole. Some do not:
        they show the tools or the system text before the last question only (Mistral), or open the answer with a thought. There the
        place is where the text changes when other words stand in that turn.
        """
        if turn:
            prompt = self.render(messages[:turn], add_generation_prompt=True, tools=tools)
            if text.startswith(prompt):
                return len(prompt)
        other = self.render([*messages[:turn], {"role": "assistant", "content": _MARK}, *messages[turn + 1:]], tools=tools)
        start = len(commonprefix([text, other]))
        if start == len(text) or not other[start:].lstrip(" ").startswith(_MARK):
            raise StudioError(
                "The chat template writes turn {turn} differently once the conversation goes on.",
                "Train on the last turn only (`data.train_on: last`), or use one question and answer per row.", turn=turn + 1)
        return len(text[:start].rstrip(" "))  # a space before the first word is part of the word's token

    def _answer_end(self, text: str, start: int, message: Message) -> int:
        """Where the trained part ends that begins at `start`; `text` reaches to the end of the turn, or further."""
        (last, end), content = self._end_token(text, start), (message.get("content") or "").strip()
        if not content:  # only calls of tools
            return end
        written = text.rfind(content, start, last)
        if written < 0:
            written = start + len(text[start:]) - len(text[start:].lstrip())
            if not text.startswith(content, written):
                return end  # the template writes the answer in its own way, as those do that leave out a thought
        if message.get("cut"):
            return written + len(content)
        return self._end_token(text, written + len(content))[1]  # words that look like an end token are not the end

    def _end_token(self, text: str, position: int) -> tuple[int, int]:
        """The first end token at or after `position`, as (first, end) in characters; the end of the text when there is none."""
        found = [(text.find(token, position), len(token)) for token in self.end_tokens if token in text[position:]]
        first, length = min(found) if found else (len(text), 0)
        return first, first + length

    @cached_property
    def end_tokens(self) -> list[str]:
        """The texts of the end tokens."""
        return [self.tokenizer.id_to_token(token) for token in self.end_ids]

    @cached_property
    def special_ids(self) -> frozenset[int]:
        added = self.tokenizer.get_added_tokens_decoder()
        return frozenset(token for token, entry in added.items() if entry.special)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer; special tokens never show."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def pad_id(self) -> int:
        pad = self.special.get("pad_token")
        token = self.tokenizer.token_to_id(pad) if pad else None
        return token if token is not None else self.end_ids[0]

    def fingerprint(self) -> dict[str, Any]:
        """What decides the ids, for `template.json`: template, end tokens, system text, and a sample prompt with its hash.

        Without a template the sample is the text of a document.
        """
        sample = [{"role": "user", "content": "Who are you?"}]
        prompt = self.render(sample, add_generation_prompt=True) if self.template else sample[0]["content"]
        ids = self.encode_prompt(sample) if self.template else self.encode_text(prompt).ids
        return {
            "template": self.template, "special_tokens": self.special, "end_tokens": self.end_tokens, "system": self.system,
            "sample_messages": sample, "sample_prompt": prompt, "sample_sha256": hash_ids(ids),
        }


def _cut(ids: list[int], trained: list[bool], text: str, offsets: list[tuple[int, int]], max_length: int | None) -> Encoded:
    kept = min(len(ids), max_length) if max_length else len(ids)
    return Encoded(ids[:kept], trained[:kept], text, offsets[:kept], len(ids) - kept)


def hash_ids(ids: Sequence[int]) -> str:
    """A short fingerprint of token ids, to compare prompts across processes."""
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:16]


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for whatever is wrong with the file
        raise StudioError("{path} is cut off or damaged.", "Copy or download this file again.", path=path) from error


def _read_settings(path: Path) -> dict[str, Any]:
    """A JSON file of settings beside a tokenizer; without one there are none."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise StudioError("{path} is cut off or damaged.", "Copy or download this file again.", path=path)
    return settings


def _read_template(folder: Path, config: dict[str, Any]) -> str:
    """The chat template; empty where the model has none."""
    path = folder / "chat_template.jinja"
    template = path.read_text(encoding="utf-8") if path.exists() else config.get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict)]
        template = next((entry.get("template") for entry in named if entry.get("name") == "default"), None)
    return template if isinstance(template, str) else ""


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _end_ids(folder: Path, tokenizer: Tokenizer, special: dict[str, str | None], template: str) -> list[int]:
    """End tokens of tokenizer, generation config and template, united: any of them ends an answer."""
    ids: list[int] = []
    eos = special.get("eos_token")
    if eos and (token := tokenizer.token_to_id(eos)) is not None:
        ids.append(token)
    path = folder / "generation_config.json"
    if path.exists():
        configured = _read_settings(path).get("eos_token_id")
        ids.extend(configured if isinstance(configured, list) else [] if configured is None else [configured])
    for name in ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>"):
        if name in template and (token := tokenizer.token_to_id(name)) is not None:
            ids.append(token)
    if not ids:
        raise StudioError("The model in {folder} names no end token.", "Add eos_token to its tokenizer_config.json.",
                          folder=folder)
    return list(dict.fromkeys(ids))
