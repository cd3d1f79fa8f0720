"""The data of an XTuner config: which datasets, how they are read there, and how they become sources of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from core.recipe.xtuner_notes import Notes, kind_of, number, section, shown
from core.recipe.xtuner_reading import Reference
from core.words import Text
from core.workspace import slug

# XTuner's map functions by name: the columns that they read.
_COLUMNS = {
    "alpaca": "instruction, input, output", "alpaca_zh": "instruction_zh, input_zh, output_zh", "arxiv": "abstract, title",
    "code_alpaca": "prompt, completion", "tiny_codes": "prompt, response", "colors": "description, color",
    "medical": "instruction, input, output",
    "crime_kg_assitan": "input, output", "law_reference": "question, answer", "sql": "context, question, answer",
    "openorca": "system_prompt, question, response", "stack_exchange": "question, response", "default": "input, output",
    "wizardlm": "conversations", "oasst1": "text", "openai": "messages", "pretrain": "text", "llava": "image, conversations",
    "msagent_react": "conversations",
}
# Those that put a system text of XTuner's before every row.
_WITH_SYSTEM = {"arxiv": "arxiv_gentile", "code_alpaca": "coder", "tiny_codes": "coder", "colors": "colorist", "crime_kg_assitan": "lawyer",
                "law_reference": "lawyer", "medical": "medical", "sql": "sql"}
_KNOWN_KEYS = {
    "type", "dataset", "tokenizer", "max_length", "dataset_map_fn", "template_map_fn", "remove_unused_columns", "shuffle_before_pack",
    "pack_to_max_length", "use_varlen_attn", "map_num_proc", "rename_maps", "split", "input_ids_with_output", "with_image_token",
    "data_file", "bot_name", "dataset_cfg", "packed_length", "seed", "folder", "num_workers", "data_dir", "data_files", "sample_ratio",
    "chat_template", "mappings", "max_dataset_length", "do_dataset_tokenization",
}
_MOST_DATASETS = 500  # nested ones counted in


@dataclass(frozen=True)
class DataPart:
    """One dataset of the config.

    Attributes:
        name: what it is called in the recipe.
        origin: the file, folder or hub id that the config names.
        columns: what XTuner reads from it; empty when the rows are in its own form already.
    """

    name: str
    origin: str
    columns: str = ""


def read_data(values: dict[str, Any], notes: Notes) -> list[DataPart]:
    """Map the datasets, the longest row, packing and what is trained; the template is compared, not taken over."""
    loader = section(values, "train_dataloader")
    whole = loader.get("dataset") or values.get("train_dataset") or {}
    leaves = _leaves(whole) if isinstance(whole, dict) else []
    parts: list[DataPart] = []
    taken: set[str] = set()
    for leaf in leaves:
        part = _part(leaf, taken)
        taken.add(part.name)
        parts.append(part)
    if not parts:
        parts = [DataPart("my-data", "")]
        notes.leave("train_dataloader.dataset", Text("no dataset that can be read without running the config; a name stands in for it"))
    _put_sources(parts, notes)
    first = leaves[0] if leaves else {}
    _read_length(leaves, values, notes)
    _read_turns(leaves, notes)
    _read_template(first, values, notes)
    for leaf in leaves:
        _read_rest(leaf, notes)
    return parts


def _leaves(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The single datasets in a config of datasets, in its order; no more than a config can mean, were it to hold itself."""
    found: list[dict[str, Any]] = []
    waiting = [config]
    for _ in range(_MOST_DATASETS):
        if not waiting:
            break
        entry = waiting.pop()
        inner = entry.get("datasets", entry.get("datasets_cfg"))
        if inner is None:
            found.append(entry)
            continue
        entries = inner.values() if isinstance(inner, dict) else inner if isinstance(inner, list | tuple) else ()
        waiting += [one for one in reversed(list(entries)[:_MOST_DATASETS]) if isinstance(one, dict)]
    return found


def _part(leaf: dict[str, Any], taken: set[str]) -> DataPart:
    origin = _origin(leaf)
    stem = PurePosixPath(origin).stem if PurePosixPath(origin).suffix.lower() in (".json", ".jsonl", ".csv", ".parquet") else origin
    wanted = slug(stem.rstrip("/").rsplit("/", 1)[-1]) or "my-data"
    name, number_ = wanted, 1
    while name in taken:
        number_ += 1
        name = f"{wanted}-{number_}"
    return DataPart(name, origin, _COLUMNS.get(_map_name(leaf), ""))


def _origin(leaf: dict[str, Any]) -> str:
    """The file, folder or hub id of one dataset."""
    loading = section(leaf, "dataset") or section(leaf, "dataset_cfg") or leaf
    files = loading.get("data_files")
    if isinstance(files, dict):
        files = next(iter(files.values()), None)
    if isinstance(files, list | tuple) and files:
        files = files[0]
    path = loading.get("path") or loading.get("dataset_id")
    if isinstance(files, str) and (path in (None, "json", "csv", "text", "parquet") or not isinstance(path, str)):
        return files
    for key in ("path", "dataset_id", "data_file", "folder", "dataset_folder", "data_path", "data_dir"):
        if isinstance(loading.get(key), str) and loading[key] not in ("json", "csv", "text", "parquet"):
            return loading[key]
    return files if isinstance(files, str) else ""


def _map_name(leaf: dict[str, Any]) -> str:
    named = leaf.get("dataset_map_fn")
    word = named.last if isinstance(named, Reference) else named if isinstance(named, str) else ""
    return word.removesuffix("_map_fn")


def _put_sources(parts: list[DataPart], notes: Notes) -> None:
    origins = ", ".join(part.origin or "?" for part in parts)
    notes.put("data.sources", [{"dataset": part.name} for part in parts], "train_dataloader.dataset", Text(
        "{origins}; import the data under the name in the recipe: sweetspot data import", origins=origins))
    if len(parts) > 1:
        notes.leave("ConcatDataset", Text(
            "XTuner mixes datasets by their size, a recipe by weight: for the same mixture give each source its number of rows as weight"))


def _read_length(leaves: list[dict[str, Any]], values: dict[str, Any], notes: Notes) -> None:
    lengths = [number(leaf.get("max_length", leaf.get("packed_length"))) for leaf in leaves]
    longest = max((int(length) for length in lengths if length), default=None) or _whole(values.get("max_length"))
    if longest:
        notes.put("data.max_length", min(max(longest, 16), 1_048_576), "max_length",
                  Text("{value}: the longest of several", value=longest) if len(set(lengths)) > 1 else None)
    is_packed = any(leaf.get("pack_to_max_length", kind_of(leaf) == "build_packed_dataset") for leaf in leaves)
    is_apart = any(leaf.get("use_varlen_attn") is True for leaf in leaves)
    if leaves and is_packed:
        notes.put("data.packing", True, "pack_to_max_length", None if is_apart else Text(
            "rows are packed whole and do not see each other; XTuner cuts them at pack ends and lets them, and drops each worker's rest"))
    elif leaves:
        notes.put("data.packing", False, "pack_to_max_length")


def _whole(value: Any) -> int | None:
    found = number(value)
    return int(found) if found else None


def _read_turns(leaves: list[dict[str, Any]], notes: Notes) -> None:
    is_text = [_map_name(leaf) == "pretrain" or leaf.get("do_dataset_tokenization") is False for leaf in leaves]
    if leaves and all(is_text):
        notes.put("data.train_on", "everything", "dataset_map_fn", Text("running text: every token is trained"))
    elif any(is_text):
        notes.leave("dataset_map_fn", Text(
            "running text beside conversations: make two recipes, as one trains either every token or the answers"))
    systems = sorted({_WITH_SYSTEM[name] for name in map(_map_name, leaves) if name in _WITH_SYSTEM})
    if systems:
        notes.leave("dataset_map_fn", Text(
            "its map function puts XTuner's system text {names} before every row; write yours into data.system if you want one",
            names=", ".join(systems)))


def _read_template(leaf: dict[str, Any], values: dict[str, Any], notes: Notes) -> None:
    template = section(leaf, "template_map_fn").get("template", values.get("prompt_template"))
    name = template.last if isinstance(template, Reference) else template if isinstance(template, str) else ""
    if not name:
        return
    if name == "default":
        notes.leave("prompt_template", Text(
            "XTuner's default template (<|User|>: and <|Bot|>:) is no chat model's own; the model's own template is used, "
            "and travels along"))
    else:
        notes.leave("prompt_template", Text("{name} is not taken over: the model's own template is used, and travels with every checkpoint",
                                            name=name))


def _read_rest(leaf: dict[str, Any], notes: Notes) -> None:
    if number(leaf.get("max_dataset_length")):
        notes.leave("max_dataset_length", Text("a random part of {count} rows: cut the dataset before you import it",
                                               count=shown(leaf["max_dataset_length"])))
    for key in sorted(set(leaf) - _KNOWN_KEYS - set(section(leaf, "dataset"))):
        if kind_of(leaf) not in ("load_dataset", ""):
            notes.leave(f"train_dataset.{key}", Text("a recipe has nothing like it: {value}", value=shown(leaf[key])))
