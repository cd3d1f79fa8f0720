"""The ways to combine several adapters, and which weights they take. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from core.errors import StudioError

METHODS = ("average", "cat", "linear", "ties", "dare")
EXACT = ("average", "cat")
SPARSE = ("ties", "dare")  # those that drop values, and so have a density
# Of the exact sum's norm; more is worth a word.
RATIO_TOLERANCE = 0.1


def check_weights(how: str, adapters: int, weights: Sequence[float] | None) -> list[float]:
    """The weights as they will be used: equal shares where none are given; `average` brings them to the sum of 1.

    Raises:
        StudioError: an unknown method, too few adapters, or weights that do not fit.
    """
    if how not in METHODS:
        raise StudioError("{how!r} is no way to combine adapters.", "Use one of: {known}.", how=how, known=", ".join(METHODS))
    if adapters < 2:
        raise StudioError("Only one adapter was named; there is nothing to combine.", "Name two or more, or leave out --how and --weights.")
    if weights is None:
        return [1 / adapters] * adapters
    if len(weights) != adapters:
        raise StudioError("There are {adapters} adapters and {weights} weights.",
                          "Give one weight for each, for example --weights 0.5,0.5.", adapters=adapters, weights=len(weights))
    if not all(math.isfinite(weight) for weight in weights) or not any(weights):
        raise StudioError("The weights {weights} leave nothing of the adapters.", "Give numbers that are not all 0.",
                          weights=", ".join(map(str, weights)))
    if how != "average":
        return [float(weight) for weight in weights]
    if min(weights) < 0:
        raise StudioError("An average takes no negative weights.", "Use `cat` to subtract an adapter.")
    return [weight / sum(weights) for weight in weights]
