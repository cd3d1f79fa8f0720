"""`sweetspot serve`: an OpenAI-compatible server on this machine."""

from __future__ import annotations

import os
import secrets
import sys
from typing import Annotated

import typer

from core.chat.client import end_worker
from core.chat.endpoint import is_endpoint
from core.chat.proof import SHORT, twin_sentence, twins
from core.errors import StudioError
from core.serve.listen import ADDRESS, TOKEN_VARIABLE, Served, listen, load_all, open_port, serve_folder
from core.serve.relay import Relay
from core.workspace import Workspace
from studio.commands.chat import QUANTIZATION, BitsOption, check_models
from studio.terminal import JsonOption, WorkspaceOption, errors, print_json, say

DEFAULT_PORT = 8000
_SHORTEST_TOKEN = 8


def serve(
    models: Annotated[list[str], typer.Argument(help="One or several: embedded, RUN@pick, RUN@12*0.5, a merged model.")],
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes any that is free.")] = DEFAULT_PORT,
    bits: BitsOption = None,
    waiting: Annotated[int, typer.Option(min=1, max=10_000, help="So many requests may wait; more are refused with 429.")] = 128,
    json: JsonOption = False, workspace: WorkspaceOption = None,
) -> None:
    """Serve models to programs that speak the OpenAI API, on this machine only; Ctrl-C ends it.

    The API key is made at each start and shown once; SWEETSPOT_API_KEY in the environment sets your own.

    Example: sweetspot serve embedded last@pick alex --port 8000
    """
    place = Workspace.open(workspace)
    names = list(dict.fromkeys(models))
    if any(is_endpoint(name) for name in names):
        raise StudioError("An endpoint is served already, by its own server.", "Name models of this machine.")
    check_models(place, names)
    token, is_own = _token()
    listening = open_port(port)
    relay = Relay(place, serve_folder(place), ["--idle", "0", "--quantization", QUANTIZATION[bits], "--waiting", str(waiting)])
    url = f"http://{ADDRESS}:{listening.getsockname()[1]}/v1"
    try:
        served = load_all(relay, names)
    except BaseException:
        end_worker(place, folder=relay.folder)
        raise

    def announce() -> None:
        if json:
            print_json({"url": url, "models": names, "token": None if is_own else token, "notes": _sentences(served),
                        "proofs": {said.model: said.proof.model_dump() for said in served.answers if said.proof}})
        else:
            _announce(url, served, None if is_own else token)
        sys.stdout.flush()  # whoever reads it from a pipe waits for it

    listen(place, relay, names, listening, token, announce)


def _token() -> tuple[str, bool]:
    """The API key, and whether it came from the environment.

    Raises:
        StudioError: the one in the environment is no key.
    """
    own = os.environ.get(TOKEN_VARIABLE)
    if own is None:
        return secrets.token_urlsafe(24), False
    if len(own) < _SHORTEST_TOKEN or not own.isascii() or not own.isprintable() or " " in own:
        raise StudioError("SWEETSPOT_API_KEY holds no usable key.",
                          "Use at least {least} letters, digits and signs without spaces, or unset it: a key is made then.",
                          least=_SHORTEST_TOKEN)
    return own, True


def _sentences(served: Served) -> list[str]:
    pairs = twins([said.proof for said in served.answers])
    return [*served.notes, *(str(twin_sentence(served.answers[first].model, served.answers[second].model)) for first, second in pairs)]


def _announce(url: str, served: Served, token: str | None) -> None:
    say(f"Sweetspot answers at {url}  (this machine only; Ctrl-C ends it)")
    for said in served.answers:
        if said.proof:
            say(f"  {said.model}: {said.proof.resolved}, weights {said.proof.weights[:SHORT]} over {said.proof.base}")
    for sentence in _sentences(served):
        errors.print(sentence, style="red", markup=False, soft_wrap=True)
    say(f"API key: {token}  (made for this start, shown once)" if token else f"API key: the one in {TOKEN_VARIABLE}")
