"""A conversation that no longer fits the model's context loses its oldest turns, whole ones only. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from core.data.encode import Encoder, Message
from core.errors import StudioError


def fit_prompt(encoder: Encoder, messages: Sequence[Message], context_tokens: int | None, max_new_tokens: int) -> tuple[list[int], int]:
    """Prompt ids that leave room for the answer, and how many of the oldest exchanges were left out for that.

    A system message at the beginning always stays.

    Args:
        messages: the conversation; its last message is the question.
        context_tokens: what the model can hold, question and answer together; None when it names no limit.

    Raises:
        StudioError: the question alone is too long, or the answer may be as long as the whole context.
    """
    if context_tokens is None:
        return encoder.encode_prompt(messages), 0
    room = context_tokens - max_new_tokens
    if room < 1:
        raise StudioError("An answer of {wanted} tokens leaves no room for the question: this model holds {context}.",
                          "Ask for a shorter answer (max new tokens).", wanted=max_new_tokens, context=context_tokens)
    opening, exchanges = _split(messages)
    low, high = 0, len(exchanges) - 1

    def prompt(left_out: int) -> list[int]:
        return encoder.encode_prompt([*opening, *(message for exchange in exchanges[left_out:] for message in exchange)])

    ids = prompt(0)
    if len(ids) <= room:
        return ids, 0
    while low < high:  # the fewest exchanges to leave out, by halving: rendering a long history many times is slow
        middle = (low + high) // 2
        low, high = (low, middle) if len(prompt(middle)) <= room else (middle + 1, high)
    ids = prompt(low)
    if len(ids) > room:
        raise StudioError("The question has {tokens} tokens; this model holds {context}, {answer} of them for the answer.",
                          "Shorten the question or the system prompt, or ask for a shorter answer.",
                          tokens=len(ids), context=context_tokens, answer=max_new_tokens)
    return ids, low


def _split(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """The system messages at the beginning, and the exchanges: a user message with what follows it."""
    start = next((index for index, message in enumerate(messages) if message["role"] != "system"), len(messages))
    exchanges: list[list[Message]] = []
    for message in messages[start:]:
        if message["role"] == "user" or not exchanges:
            exchanges.append([])
        exchanges[-1].append(message)
    return list(messages[:start]), exchanges
