"""A model's tokenizer as GGUF's metadata say it, for the two kinds that small chat models have.

- byte-level BPE (GPT-2's way: SmolLM2, Qwen2.5, Llama 3): tokens and merges, and which rule cuts a text into words first;
- BPE with byte fallback (SentencePiece's way: Llama 2, InternLM2): tokens with scores; the earlier a merge, the higher its score.

llama.cpp knows the cutting rules by name, so a tokenizer whose rule has no name there is refused rather than exported wrongly.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType

from core.errors import StudioError

_QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_RULES = {_QWEN2: "qwen2", _LLAMA3: "llama-bpe"}


@dataclass(frozen=True)
class Vocabulary:
    """What the file says of the tokenizer.

    Attributes:
        model: `gpt2` or `llama`, llama.cpp's names of the two kinds.
        rule: its name of the rule that cuts words; None for `llama`.
        tokens, types, scores: one of each for every row of the embedding.
        merges: pairs, best first; empty for `llama`.
        adds_space: whether a text gets a space in front.
    """

    model: str
    rule: str | None
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    adds_space: bool

    def write(self, writer: GGUFWriter) -> None:
        writer.add_tokenizer_model(self.model)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.rule is not None:
            writer.add_tokenizer_pre(self.rule)
            writer.add_token_merges(self.merges)
        else:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.adds_space)


def read_vocabulary(folder: Path, rows: int) -> Vocabulary:
    """The tokenizer of a model folder.

    Args:
        folder: holds `tokenizer.json`.
        rows: of the embedding; the file needs a token for each.

    Raises:
        StudioError: it is of a kind that cannot be said in GGUF.
    """
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = data.get("model") or {}
    if model.get("type") != "BPE":
        raise _unsupported(folder, f"{model.get('type')}")
    tokens = [f"[PAD{index}]" for index in range(rows)]
    types = [int(TokenType.UNUSED)] * rows
    uses_bytes = bool(model.get("byte_fallback"))
    for token, index in model["vocab"].items():
        tokens[index] = token
        types[index] = int(TokenType.BYTE if uses_bytes and _is_byte(token) else TokenType.NORMAL)
    for entry in data.get("added_tokens") or []:
        tokens[entry["id"]] = entry["content"]
        types[entry["id"]] = int(TokenType.CONTROL if entry.get("special") else TokenType.USER_DEFINED)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model.get("merges") or []]
    if uses_bytes:
        unknown = model.get("unk_token")
        if unknown in model["vocab"]:
            types[model["vocab"][unknown]] = int(TokenType.UNKNOWN)
        return Vocabulary("llama", None, tokens, types, _scores(tokens, merges, types), [], _adds_space(data))
    return Vocabulary("gpt2", _cutting_rule(folder, data), tokens, types, [], merges, False)


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _scores(tokens: list[str], merges: list[str], types: list[int]) -> list[float]:
    """A token's score is minus the place of the first merge that makes it: llama.cpp joins the best-scored neighbours first."""
    place: dict[str, int] = {}
    for index, pair in enumerate(merges):
        place.setdefault(pair.replace(" ", "", 1), index)
    last = len(merges)
    return [-float(place.get(token, last)) if kind == TokenType.NORMAL else 0.0 for token, kind in zip(tokens, types, strict=True)]


def _parts(step: Any) -> list[dict[str, Any]]:
    """A step of a tokenizer, or those of a sequence."""
    if not isinstance(step, dict):
        return []
    inner = step.get("pretokenizers", step.get("normalizers"))
    return [part for entry in inner for part in _parts(entry)] if isinstance(inner, list) else [step]


def _adds_space(data: dict[str, Any]) -> bool:
    parts = [*_parts(data.get("normalizer")), *_parts(data.get("pre_tokenizer"))]
    return any(part.get("type") == "Prepend" or (part.get("type") == "Metaspace" and part.get("prepend_scheme", "always") != "never")
               for part in parts)


def _cutting_rule(folder: Path, data: dict[str, Any]) -> str:
    """llama.cpp's name of the rule by which words are cut before merging."""
    parts = _parts(data.get("pre_tokenizer"))
    kinds = [part.get("type") for part in parts]
    normalizers = {part.get("type") for part in _parts(data.get("normalizer"))}
    if kinds and kinds[-1] == "ByteLevel" and not parts[-1].get("add_prefix_space") and normalizers <= {"NFC"}:
        by_itself = parts[-1].get("use_regex", True)
        if kinds == ["ByteLevel"] and by_itself:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and by_itself and parts[0].get("individual_digits"):
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and not by_itself:
            rule = _RULES.get(str((parts[0].get("pattern") or {}).get("Regex")))
            if rule:
                return rule
    raise _unsupported(folder, " + ".join(map(str, kinds)) or "-")


def _unsupported(folder: Path, kind: str) -> StudioError:
    return StudioError("The tokenizer in {folder} is of a kind that has no name in llama.cpp: {kind}.",
                       "Tokenizers like those of SmolLM2, Qwen2.5, Llama 2, Llama 3 and InternLM2 can be exported.",
                       folder=folder, kind=kind)
