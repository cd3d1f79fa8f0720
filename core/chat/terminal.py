"""Chat in a terminal with one or several models side by side: the same desk as behind the page. Loads torch."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from core.chat.desk import Desk
from core.chat.endpoint import answer_at_endpoint, is_endpoint
from core.chat.panes import LOOP, Event
from core.chat.proof import SHORT, Proof, twin_sentence, twins
from core.chat.request import ChatMessage, ChatRequest, Sampled, read_request
from core.chat.talk import Message, Said
from core.errors import StudioError
from core.models.catalogue import find_model
from core.models.load import choose_device
from core.words import Text
from core.workspace import Workspace

_RED, _PLAIN = "\x1b[31m", "\x1b[0m"


class Conversation:
    """One conversation per model; every question goes to all of them.

    Args:
        system: system text for all of them; None leaves it to each model.
        stop: an answer ends before the first of these texts.
        quantization: how base models are held: `none`, `nf4` or `int8`.
    """

    def __init__(self, workspace: Workspace, models: Sequence[str], sampled: Sampled, system: str | None = None,
                 stop: Sequence[str] = (), quantization: str = "none") -> None:
        self.models = list(models)
        self.sampled = sampled
        self.system = system
        self.stop = list(stop)
        self._desk = Desk(workspace, quantization, find_model)
        self._device = choose_device("auto")
        self.histories: list[list[Message]] = []
        self.clear()

    def clear(self) -> None:
        opening = [] if self.system is None else [{"role": "system", "content": self.system}]
        self.histories = [list(opening) for _ in self.models]

    def ask(self, question: str, on_text: Callable[[int, str], None] = lambda pane, text: None) -> list[Said]:
        """Each model's answer, in order; the histories grow by what was answered.

        Args:
            on_text: hears each piece of an answer as it comes, with the number of its model.

        Raises:
            StudioError: the question is empty or no text.
        """
        answers = [Said(model=model) for model in self.models]
        for event in self._events(question):
            if event["pane"] is None:
                for said in answers if event["event"] == "note" else []:
                    said.notes.append(event["text"])
                continue
            said = answers[event["pane"]]
            said.take(event)
            if event["event"] == "text":
                on_text(event["pane"], event["text"])
        for history, said in zip(self.histories, answers, strict=True):
            if said.text.strip():
                history += [{"role": "user", "content": question}, {"role": "assistant", "content": said.text.strip()}]
        return answers

    def _events(self, question: str) -> Iterator[Event]:
        """The local models in one batch, then the endpoints, each in its turn."""
        histories = [[*history, {"role": "user", "content": question}] for history in self.histories]
        for is_remote in (False, True):
            panes = [pane for pane, model in enumerate(self.models) if is_endpoint(model) == is_remote]
            if not panes:
                continue
            request = read_request({"id": uuid.uuid4().hex, "models": [self.models[pane] for pane in panes],
                                    "histories": [histories[pane] for pane in panes], "sampled": self.sampled.model_dump(),
                                    "stop": self.stop})
            for event in self._remote(request) if is_remote else self._desk.answer(request, self._device):
                yield event if event["pane"] is None else {**event, "pane": panes[event["pane"]]}

    def _remote(self, request: ChatRequest) -> Iterator[Event]:
        for pane, model in enumerate(request.models):
            messages: list[ChatMessage] = request.histories[pane]
            yield from answer_at_endpoint(pane, model, [message.model_dump() for message in messages], request.sampled, request.stop)

    def ask_aloud(self, question: str) -> bool:
        """Print the answers and who gave them; a single model's answer appears as it is made. Returns whether all answered."""
        is_alone = len(self.models) == 1

        def show(_: int, piece: str) -> None:
            if is_alone:
                sys.stdout.write(piece)
                sys.stdout.flush()

        answers = self.ask(question, show)
        for said in answers:
            if not is_alone:
                print(f"[{said.model}] {said.text.strip()}")
            elif said.text:
                print()
            for line in lines_about(said):
                print(f"  {line}")
        for first, second in twins([said.proof for said in answers]):
            print(_in_red(str(twin_sentence(self.models[first], self.models[second]))))
        return all(said.problem is None for said in answers)

    def talk(self) -> None:
        """Read questions until /quit or the end of the input."""
        while True:
            try:
                question = input("> ").strip()
            except (EOFError, KeyboardInterrupt):
                print()
                return
            if question == "/quit":
                return
            if question == "/clear":
                self.clear()
                print("(forgotten)")
            elif question:
                self._answer_or_explain(question)

    def _answer_or_explain(self, question: str) -> None:
        try:
            self.ask_aloud(question)
        except StudioError as error:
            print(f"{error.problem} {error.hint}")
        except KeyboardInterrupt:
            print("\n(stopped)")


def lines_about(said: Said) -> list[str]:
    """What stands under an answer: notes, what went wrong, and who answered."""
    lines = [str(Text.from_json(note)) for note in said.notes] + ([str(LOOP)] if said.reason == "loop" else [])
    if said.problem and said.hint:
        lines.append(f"{Text.from_json(said.problem)} {Text.from_json(said.hint)}")
    return lines + ([proof_line(said.proof, said)] if said.proof else [])


def proof_line(proof: Proof, said: Said) -> str:
    step = "" if proof.step is None else f" step {proof.step}"
    held = "" if proof.quantization == "none" else f" in {proof.quantization}"
    read = f"prompt {proof.prompt[:SHORT]}, {proof.prompt_tokens} tokens"
    return f"({proof.resolved}{step}{held} · weights {proof.weights[:SHORT]} · {read} · {said.tokens} tokens, {said.reason})"


def _in_red(text: str) -> str:
    return f"{_RED}{text}{_PLAIN}" if sys.stdout.isatty() else text


def answers_as_json(question: str, answers: Sequence[Said]) -> dict[str, Any]:
    """For `--json`: the answers by model, and how each came about."""
    return {"question": question, "answers": {said.model: said.text.strip() for said in answers},
            "details": {said.model: said.model_dump(exclude={"model", "text", "notes", "problem", "hint"})
                        | {"notes": lines_about(said)[:-1] if said.proof else lines_about(said)} for said in answers}}
