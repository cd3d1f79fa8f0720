"""Chat in a terminal with one or several models side by side. Loads torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from core.chat.engine import Sampling
from core.chat.voices import Voices
from core.data.encode import Message
from core.workspace import Workspace


@dataclass(frozen=True)
class TerminalSettings:
    """How to answer; the names are the command line's."""

    system: str | None
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    seed: int
    max_new_tokens: int

    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p, self.repetition_penalty, self.seed)


class Conversation:
    """One conversation per model; every question goes to all of them."""

    def __init__(self, workspace: Workspace, models: Sequence[str], settings: TerminalSettings) -> None:
        self.voices = Voices(workspace, models)
        self.settings = settings
        self.histories: list[list[Message]] = []
        self.clear()

    def clear(self) -> None:
        opening = [] if self.settings.system is None else [{"role": "system", "content": self.settings.system}]
        self.histories = [list(opening) for _ in self.voices.models]

    def ask(self, question: str) -> list[str]:
        """Each model's answer, in order; the histories grow by both."""
        for history in self.histories:
            history.append({"role": "user", "content": question})
        answers = ["" for _ in self.histories]
        for voice, piece in self.voices.stream(self.histories, self.settings.max_new_tokens, self.settings.sampling()):
            answers[voice] += piece
        for history, answer in zip(self.histories, answers, strict=True):
            history.append({"role": "assistant", "content": answer.strip()})
        return [answer.strip() for answer in answers]

    def ask_aloud(self, question: str) -> None:
        """Print the answers; a single model's answer appears as it is made."""
        if len(self.histories) > 1:
            for model, answer in zip(self.voices.models, self.ask(question), strict=True):
                print(f"[{model.name}] {answer}")
            return
        self.histories[0].append({"role": "user", "content": question})
        answer = ""
        for _, piece in self.voices.stream(self.histories, self.settings.max_new_tokens, self.settings.sampling()):
            answer += piece
            sys.stdout.write(piece)
            sys.stdout.flush()
        print()
        self.histories[0].append({"role": "assistant", "content": answer.strip()})

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
                self.ask_aloud(question)
