"""A chat template as Ollama wants it: a Modelfile with a template of Go.

Ollama does not run Jinja. A model's template is rendered here for a few conversations; where every result is exactly what one of the
known families writes, that family's Go template says the same. Any other template is refused: a model under a template that is nearly
right answers nearly well, and nobody knows why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from core.data.encode import Encoder
from core.errors import StudioError

_Messages = Sequence[dict[str, str]]


@dataclass(frozen=True)
class Family:
    """One way to write a conversation.

    Attributes:
        name: as people call it.
        write: the text of a conversation up to the opening of the next answer, without the token that begins a text.
        go: the same as a template of Ollama's.
        stop: the texts that end an answer.
    """

    name: str
    write: Callable[[_Messages], str]
    go: str
    stop: tuple[str, ...]


def _chatml(messages: _Messages) -> str:
    return "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages) + "<|im_start|>assistant\n"


def _llama3(messages: _Messages) -> str:
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    return "".join(f"{head.format(m['role'])}{m['content']}<|eot_id|>" for m in messages) + head.format("assistant")


def _llama2(messages: _Messages) -> str:
    text, system = "", ""
    for message in messages:
        if message["role"] == "system":
            system = f"<<SYS>>\n{message['content']}\n<</SYS>>\n\n"
        elif message["role"] == "user":
            text += f"{'<s>' if text else ''}[INST] {system}{message['content']} [/INST]"
            system = ""
        else:
            text += f" {message['content']} </s>"
    return text


FAMILIES = (
    Family("ChatML", _chatml,
           "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n",
           ("<|im_end|>", "<|im_start|>")),
    Family("Llama 3", _llama3,
           "{{- range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n{{ .Content }}<|eot_id|>{{ end }}"
           "<|start_header_id|>assistant<|end_header_id|>\n\n", ("<|eot_id|>",)),
    Family("Llama 2", _llama2,
           '{{- range $i, $m := .Messages }}{{ if eq $m.Role "system" }}{{ else if eq $m.Role "user" }}'
           "{{ if gt $i 1 }}<s>{{ end }}[INST] {{ if and (eq $i 1) $.System }}<<SYS>>\n{{ $.System }}\n<</SYS>>\n\n{{ end }}"
           "{{ $m.Content }} [/INST]{{ else }} {{ $m.Content }} </s>{{ end }}{{ end }}", ("</s>",)),
)
_SYSTEM = {"role": "system", "content": "S1 says this."}
_TURNS: tuple[dict[str, str], ...] = ({"role": "user", "content": "Q1?"}, {"role": "assistant", "content": "A1."},
                                      {"role": "user", "content": "Q2?"}, {"role": "assistant", "content": "A2."},
                                      {"role": "user", "content": "Q3?"})


def ollama_family(encoder: Encoder) -> tuple[Family, str | None]:
    """The family that writes what the model's template writes, and the system text that the template puts in by itself.

    Raises:
        StudioError: no known family does.
    """
    plain = Encoder(encoder.tokenizer, encoder.template, encoder.special, encoder.end_ids)
    with_system = _render(plain, [_SYSTEM, *_TURNS])
    for family in FAMILIES:
        if with_system == family.write([_SYSTEM, *_TURNS]):
            return family, _default_system(plain, family)
    raise StudioError("The chat template of this model is of no family that can be written for Ollama.",
                      "The GGUF file itself carries the template, and llama.cpp uses it; for Ollama these can be written: {known}.",
                      known=", ".join(family.name for family in FAMILIES))


def _render(encoder: Encoder, messages: Sequence[dict[str, Any]]) -> str:
    """Without the token that begins a text: Ollama puts that in by itself where the file says so."""
    text = encoder.render(messages, add_generation_prompt=True)
    begin = encoder.special.get("bos_token")
    return text.removeprefix(begin) if begin and "bos_token" in encoder.template else text


def _default_system(encoder: Encoder, family: Family) -> str | None:
    """The system text that stands in a conversation which has none.

    Raises:
        StudioError: something else stands there.
    """
    alone = _render(encoder, _TURNS)
    if alone == family.write(_TURNS):
        return None
    before, mark, after = family.write([{"role": "system", "content": "\ue000"}, *_TURNS]).partition("\ue000")
    system = alone.removeprefix(before).removesuffix(after)
    if mark and family.write([{"role": "system", "content": system}, *_TURNS]) == alone:
        return system
    raise StudioError("The chat template of this model is of no family that can be written for Ollama.",
                      "The GGUF file itself carries the template, and llama.cpp uses it; for Ollama these can be written: {known}.",
                      known=", ".join(family.name for family in FAMILIES))


def modelfile(encoder: Encoder, gguf_name: str) -> str:
    """The Modelfile beside a GGUF file; `ollama create NAME -f Modelfile` reads it.

    Args:
        encoder: of the model; its system text, where it has one, is kept.
        gguf_name: name of the file beside it.

    Raises:
        StudioError: the template is of no known family, or the system text cannot be written.
    """
    family, default = ollama_family(encoder)
    system = encoder.system if encoder.system is not None else default
    if system and '"""' in system:
        raise StudioError('The system text holds """, which a Modelfile cannot say.', "Leave the three quotation marks out of it.")
    known = encoder.tokenizer.token_to_id
    stops = list(dict.fromkeys([*encoder.end_tokens, *(text for text in family.stop if known(text) is not None)]))
    lines = [f"# The chat template is {family.name}, checked against the model's own.", f"FROM ./{gguf_name}",
             f'TEMPLATE """{family.go}"""', *([f'SYSTEM """{system}"""'] if system else []),
             *(f'PARAMETER stop "{stop}"' for stop in stops), "PARAMETER temperature 0"]
    return "\n".join(lines) + "\n"
