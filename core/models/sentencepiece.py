"""A `tokenizer.model` of sentencepiece (BPE) as a `tokenizers` tokenizer, without the sentencepiece library. Loads transformers.

Transformers 5 does the same for models that it has no class for, but only where that library is installed, and it forgets a dummy
prefix. The result is checked against sentencepiece's own rule, computed here: join the neighbours whose joint piece scores highest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from core.errors import StudioError

_SPACE = "\u2581"  # sentencepiece writes a space as this
_BPE = 2  # TrainerSpec.ModelType
_CONTROL, _USER_DEFINED = 3, 4  # SentencePiece.Type
_CHECKED = ("Who are you?", "I am the assistant of Alex, trained in 2024.", "你是谁？我是小助手。", "def f(x):\n    return x + 1  # 12345",
            "naïve ☃")


def read_proto(path: Path) -> Any:
    """The parsed file.

    Raises:
        StudioError: it is no sentencepiece file, or not of the BPE kind.
    """
    from google.protobuf.message import DecodeError
    from transformers.convert_slow_tokenizer import import_protobuf

    proto = import_protobuf().ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except (DecodeError, OSError) as error:
        raise StudioError("{path} is cut off or damaged.", "Copy or download this file again.", path=path) from error
    if proto.trainer_spec.model_type != _BPE or not proto.pieces:
        raise StudioError("{path} is no BPE tokenizer of sentencepiece.", "Copy tokenizer.model from the model's source again.", path=path)
    return proto


def build_tokenizer(proto: Any, replaced: Mapping[int, AddedToken], add_bos: bool) -> Tokenizer:
    """The tokenizer of a sentencepiece file.

    Args:
        proto: from `read_proto`.
        replaced: tokens that stand in for pieces, by id: published configurations give unused pieces a meaning so.
        add_bos: whether a text begins with the begin token unless it is asked not to.
    """
    from transformers.tokenization_utils_base import generate_merges

    vocabulary = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    merges = generate_merges(vocabulary)
    added = {index: AddedToken(piece.piece, normalized=False, special=piece.type == _CONTROL)
             for index, piece in enumerate(proto.pieces) if piece.type in (_CONTROL, _USER_DEFINED)}
    for index, token in replaced.items():
        if index < len(proto.pieces):
            vocabulary.pop(proto.pieces[index].piece, None)
        vocabulary[token.content] = index
        added[index] = token
    spec = proto.trainer_spec
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token=spec.unk_piece or "<unk>", fuse_unk=True,
                                     byte_fallback=spec.byte_fallback))
    has_prefix = proto.normalizer_spec.add_dummy_prefix
    steps: list[Any] = [normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)] if (
        proto.normalizer_spec.precompiled_charsmap) else []
    tokenizer.normalizer = normalizers.Sequence([*steps, *([normalizers.Prepend(_SPACE)] if has_prefix else []),
                                                 normalizers.Replace(" ", _SPACE)])
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(),
                                           *([decoders.Strip(" ", 1, 0)] if has_prefix else [])])
    tokenizer.add_tokens([added[index] for index in sorted(added)])
    if add_bos:
        bos = spec.bos_piece or "<s>"
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary[bos])])
    return tokenizer


def check_tokenizer(proto: Any, tokenizer: Tokenizer, path: Path) -> None:
    """Raises StudioError unless some texts in several scripts become the ids that sentencepiece's own rule gives, and come back."""
    for text in _CHECKED:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        wanted = _join_by_score(proto, text)
        if ids != wanted or tokenizer.decode(ids) != text:
            raise StudioError("The tokenizer of {path} could not be taken over: {text!r} becomes other tokens.",
                              "Use a copy of the model that has a tokenizer.json.", path=path, text=text)


def _join_by_score(proto: Any, text: str) -> list[int]:
    """Ids by sentencepiece's rule for BPE: begin with characters; join the pair whose piece scores highest, the first of equals."""
    scores = {piece.piece: (piece.score, index) for index, piece in enumerate(proto.pieces)}
    parts = list((_SPACE if proto.normalizer_spec.add_dummy_prefix else "") + text.replace(" ", _SPACE))
    while True:
        pairs = [(scores[left + right][0], -place) for place, (left, right) in enumerate(zip(parts, parts[1:], strict=False))
                 if left + right in scores]
        if not pairs:
            break
        place = -max(pairs)[1]
        parts[place:place + 2] = [parts[place] + parts[place + 1]]
    ids = []
    for part in parts:
        ids += [scores[part][1]] if part in scores else [scores[f"<0x{byte:02X}>"][1] for byte in part.encode()]
    return ids
