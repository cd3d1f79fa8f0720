"""Sizes in words."""

from __future__ import annotations


def size_words(size_bytes: float) -> str:
    """`538 MB`, `2.1 GB`, `69 GB`."""
    if size_bytes < 1e9:
        return f"{size_bytes / 1e6:,.0f} MB"
    return f"{size_bytes / 1e9:,.{1 if size_bytes < 1e10 else 0}f} GB"
