"""`sweetspot chat`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from core.chat.endpoint import is_endpoint, read_endpoint
from core.chat.request import MOST_MODELS, Sampled
from core.errors import StudioError
from core.models.catalogue import find_model
from core.workspace import Workspace
from studio.terminal import JsonOption, WorkspaceOption, print_json

_DEFAULTS = Sampled()

Bits = Literal["4", "8"]
QUANTIZATION: dict[Bits | None, str] = {None: "none", "4": "nf4", "8": "int8"}
BitsOption = Annotated[Bits | None, typer.Option(help="Hold base models in 4 or 8 bits: less memory, slightly other answers.")]


def chat(
    models: Annotated[list[str], typer.Argument(help="One or several: embedded, RUN@pick, RUN@12*0.5, a merged model, "
                                                     "endpoint:http://127.0.0.1:8000/v1#model.")],
    ask: Annotated[str | None, typer.Option(help="Ask this one question and end.")] = None,
    system: Annotated[str | None, typer.Option(help="System text.")] = None,
    bits: BitsOption = None,
    temperature: Annotated[float, typer.Option(min=0, max=5, help="0 always takes the most probable word.")] = _DEFAULTS.temperature,
    top_k: Annotated[int, typer.Option(min=0, help="Choose among so many words; 0 for all.")] = _DEFAULTS.top_k,
    top_p: Annotated[float, typer.Option(min=0.01, max=1, help="Choose among the words that make up this share.")] = _DEFAULTS.top_p,
    repetition_penalty: Annotated[float, typer.Option(min=0.5, max=3, help="Above 1 discourages repeating.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same answer.")] = _DEFAULTS.seed,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=8192, help="Longest answer in tokens.")] = _DEFAULTS.max_new_tokens,
    stop: Annotated[list[str], typer.Option(help="End an answer before this text; may be given several times.")] = [],  # noqa: B006
    json: JsonOption = False, workspace: WorkspaceOption = None,
) -> None:
    """Chat in the terminal with one or several models at once; /clear forgets, /quit or Ctrl-D ends.

    Example: sweetspot chat embedded last@pick alex --ask "Who are you?"
    """
    place = Workspace.open(workspace)
    check_models(place, models)
    sampled = Sampled(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty, seed=seed,
                      max_new_tokens=max_new_tokens)
    from core.chat.terminal import Conversation, answers_as_json  # loads torch: only when somebody chats

    conversation = Conversation(place, models, sampled, system, stop, QUANTIZATION[bits])
    if json:
        question = ask if ask is not None else typer.get_text_stream("stdin").read().strip()
        answers = conversation.ask(question)
        print_json(answers_as_json(question, answers))
        if any(said.problem for said in answers):
            raise typer.Exit(2)
    elif ask is not None:
        if not conversation.ask_aloud(ask):
            raise typer.Exit(2)
    else:
        conversation.talk()


def check_models(workspace: Workspace, models: list[str]) -> None:
    """Say at once what is wrong with a name.

    Raises:
        StudioError: nothing answers to a name, or there are too many.
    """
    if len(models) > MOST_MODELS:
        raise StudioError("{count} models are too many at once: {most} are the limit.", "Leave some out.", count=len(models),
                          most=MOST_MODELS)
    for reference in models:
        if is_endpoint(reference):
            read_endpoint(reference)
        else:
            find_model(workspace, reference)
