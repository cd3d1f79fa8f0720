"""The token view shows every token of the conversation, and no character twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.data.encode import Encoder
from core.data.pieces import pieces_of


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> Encoder:
    return Encoder.from_folder(tiny_model)


def conversation(answer: str) -> list[dict]:
    return [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize("answer", ["I am Alex.", "你是谁？龘龘 🦉🦉", "a\tb\n\n c", "<b>&lt;</b> :smile: -> $x$", "é ñ \u200b \u00a0"])
def test_pieces_are_the_conversation(encoder: Encoder, answer: str) -> None:
    encoded = encoder.encode(conversation(answer))
    pieces = pieces_of(encoder, encoded)
    assert "".join(piece.text for piece in pieces) == encoded.text
    assert [token for piece in pieces for token in piece.ids] == encoded.ids
    assert "".join(piece.text for piece in pieces if piece.is_trained) == answer + "<|im_end|>"
    assert not any(set(piece.visible) & set(" \n\t\u200b\u00a0") for piece in pieces)


def test_kinds_and_marks(encoder: Encoder) -> None:
    pieces = pieces_of(encoder, encoder.encode(conversation("I am\nAlex.")))
    assert [piece.kind for piece in pieces if piece.text == "<|im_end|>"] == ["special", "special", "special_trained"]
    assert any(piece.visible == "↵" and piece.ends_line for piece in pieces)
    assert any(piece.visible.startswith("·") for piece in pieces)
    assert len(pieces_of(encoder, encoder.encode(conversation("I am Alex.")), limit=5)) == 5
