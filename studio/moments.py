"""Spans and moments as people say them, in the page's language; plain text, for a label or a cell."""

from __future__ import annotations

import time
from datetime import datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import streamlit as st

from studio.i18n import t_plainly

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def duration(seconds: float) -> str:
    """`95` -> `2 min`; under two minutes in seconds."""
    if seconds < 2 * _MINUTE:
        return t_plainly("shell.seconds", count=max(1, round(seconds)))
    if seconds < 2 * _HOUR:
        return t_plainly("shell.minutes", count=round(seconds / _MINUTE))
    return t_plainly("shell.hours", count=round(seconds / _HOUR, 1))


def ago(moment: float) -> str:
    """How long ago, roughly: `3 min ago`.

    Args:
        moment: seconds since the epoch.
    """
    passed = max(0.0, time.time() - moment)
    if passed < _MINUTE:
        return t_plainly("shell.just_now")
    if passed < _DAY:
        key, size = ("shell.minutes_ago", _MINUTE) if passed < _HOUR else ("shell.hours_ago", _HOUR)
        return t_plainly(key, count=int(passed // size))
    return t_plainly("shell.days_ago", count=int(passed // _DAY))


def clock(moment: float) -> str:
    """The time of day where the reader is, with the date when it was another day: `15:42`, `2026-11-21 15:42`."""
    zone = _zone()
    then, now = datetime.fromtimestamp(moment, zone), datetime.now(zone)
    return then.strftime("%H:%M" if then.date() == now.date() else "%Y-%m-%d %H:%M")


def when(moment: float) -> str:
    """A moment both ways: `3 min ago, 15:42`."""
    return t_plainly("shell.when", ago=ago(moment), clock=clock(moment))


def _zone() -> ZoneInfo | None:
    """The browser's time zone; the machine's own when it tells none."""
    try:
        return ZoneInfo(st.context.timezone) if st.context.timezone else None
    except (ZoneInfoNotFoundError, ValueError):
        return None
