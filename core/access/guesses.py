"""How long somebody has to wait after wrong passwords or codes: longer each time, whatever page, tab or session they try from.

Counted per address and over all addresses, kept in `access/guesses.json`: neither a reload nor a restart forgets. Guesses at the password
and at a class's codes are counted apart: a student who signs in with a code of their own must not win new guesses at the password.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Callable
from pathlib import Path

from core.access.secret_file import read_secret, write_secret

FREE_GUESSES = 4  # typing errors of one address
FREE_GUESSES_OF_CLASS = 40  # a class that types its codes for the first time, all behind one address
FREE_GUESSES_OF_ALL = 40
LONGEST_SECONDS = 900.0
# Strangers must not lock the owner out for good by guessing from many addresses.
LONGEST_SECONDS_OF_ALL = 20.0
FORGOTTEN_SECONDS = 3600.0
_MOST_ADDRESSES = 5000
_ALL = "*"


class Guesses:
    """Counts wrong guesses. Safe to use from several threads."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock, self._lock = path, clock, threading.Lock()
        known = read_secret(path)
        self._wrong: dict[str, list[float]] = {}  # address -> [how many, time of the last]
        if isinstance(known, dict):
            self._wrong = {str(key): [float(value[0]), float(value[1])] for key, value in known.items()
                           if isinstance(value, list) and len(value) == 2}

    def seconds_to_wait(self, address: str, is_code: bool = False) -> float:
        """Seconds until `address` may guess again; 0 when it may now."""
        with self._lock:
            return self._wait(address, is_code)

    def _wait(self, address: str, is_code: bool) -> float:
        now, free = self._clock(), FREE_GUESSES_OF_CLASS if is_code else FREE_GUESSES
        return max(self._left(_key(address, is_code), free, LONGEST_SECONDS, now),
                   self._left(_ALL, FREE_GUESSES_OF_ALL, LONGEST_SECONDS_OF_ALL, now), 0.0)

    def take(self, address: str, is_code: bool = False) -> float:
        """Ask for one guess: 0 when it may be made, and it then counts as wrong until `was_right`; else the seconds to wait.

        Args:
            address: who asks.
            is_code: whether a code of the class is guessed, and not the password.

        Counting before the slow comparison leaves no gap in which many guesses at once go through.
        """
        with self._lock:
            wait = self._wait(address, is_code)
            if wait <= 0:
                now = self._clock()
                for key in (_key(address, is_code), _ALL):
                    self._wrong[key] = [self._count(key, now) + 1, now]
                self._keep(now)
            return wait

    def was_right(self, address: str, is_code: bool = False) -> None:
        """The guess was right and does not count. Who knows the password starts anew; who knows one code may be guessing another."""
        with self._lock:
            if not is_code:
                self._wrong.pop(_key(address, is_code), None)
            for key in (_key(address, is_code), _ALL):
                if key in self._wrong:
                    self._wrong[key][0] = max(0.0, self._wrong[key][0] - 1)
            self._keep(self._clock())

    def _count(self, key: str, now: float) -> float:
        count, last = self._wrong.get(key, [0.0, now])
        return 0.0 if now - last > FORGOTTEN_SECONDS else count

    def _left(self, key: str, free: int, longest: float, now: float) -> float:
        count, last = self._count(key, now), self._wrong.get(key, [0.0, now])[1]
        over = count - free
        # A clock that was set back must not lock anybody out for longer than the wait itself.
        return min(longest, 2.0 ** min(over, 30)) - max(0.0, now - last) if over > 0 else 0.0

    def _keep(self, now: float) -> None:
        self._wrong = {key: value for key, value in self._wrong.items() if now - value[1] <= FORGOTTEN_SECONDS}
        if len(self._wrong) > _MOST_ADDRESSES:
            newest = sorted(self._wrong, key=lambda key: (key == _ALL, self._wrong[key][1]))[-_MOST_ADDRESSES:]
            self._wrong = {key: self._wrong[key] for key in newest}
        write_secret(self._path, self._wrong)


def _key(address: str, is_code: bool) -> str:
    return f"{network_of(address)} codes" if is_code else network_of(address)


def network_of(address: str) -> str:
    """Who is counted as one: an IPv4 address, or the /64 that one IPv6 customer owns."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
