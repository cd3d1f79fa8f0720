"""A conversation that no longer fits the model's context loses its oldest turns, whole ones only. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from core.data.encode import Encoder, Message
from core.errors import StudioError


class ContextExceeded(StudioError):
    """A prompt and its answer do not fit into what the model can hold."""

    code = "context_length_exceeded"


def whole_prompt(encoder: Encoder, messages: Sequence[Message], context_tokens: int | None, max_new_tokens: int,
                 is_limit_given: bool) -> tuple[list[int], int]:
    """Prompt ids of the whole conversation and the longest answer that still fits.

    Args:
        is_limit_given: somebody asked for `max_new_tokens`; else the context's end may shorten it.

    Raises:
        ContextExceeded: nothing is cut here, so it may not fit.
    """
    ids = encoder.encode_prompt(messages)
    wanted = max_new_tokens if is_limit_given else 1
    if context_tokens is not None and len(ids) + wanted > context_tokens:
        raise ContextExceeded("This model's context holds {context} tokens, but {total} were asked for: {prompt} in the messages, "
                              "{answer} for the answer.", "Shorten the messages or the answer.", context=context_tokens,
                              total=len(ids) + wanted, prompt=len(ids), answer=wanted)
    return ids, max_new_tokens if context_tokens is None else min(max_new_tokens, context_tokens - len(ids))


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
        raise ContextExceeded("An answer of {wanted} tokens leaves no room for the question: this model holds {context}.",
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
        raise ContextExceeded("The question has {tokens} tokens; this model holds {context}, {answer} of them for the answer.",
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
