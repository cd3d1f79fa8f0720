"""From an XTuner config to a recipe: what maps is mapped, what does not is listed with its reason.

XTuner counts micro-batches, a recipe counts updates: `accumulative_counts`, the rows per device and the number of GPUs become the
effective batch, and every interval is divided by the accumulation. The config is read, never run (`xtuner_reading`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.data.library import load_dataset
from core.data.measure import encoder_of, measure_dataset
from core.errors import StudioError
from core.models.catalogue import find_local_base
from core.recipe.files import build_recipe, dump_recipe
from core.recipe.schema import Recipe
from core.recipe.xtuner_data import DataPart, read_data
from core.recipe.xtuner_model import read_model
from core.recipe.xtuner_notes import ImportNote, Notes, kind_of, section, shown
from core.recipe.xtuner_reading import LARGEST_BYTES, ReadConfig, Reference, Unknown, read_config
from core.recipe.xtuner_schedule import Counts, read_schedule, read_snapshots
from core.words import Text
from core.workspace import Workspace, slug

# What a config also sets, and what a recipe decides by itself or has no need of.
_HARMLESS = {
    "tokenizer", "model", "lora", "train_dataset", "train_dataloader", "optim_wrapper", "param_scheduler", "train_cfg", "custom_hooks",
    "default_hooks", "env_cfg", "visualizer", "log_level", "log_processor", "randomness", "framework", "trainer", "training_args",
    "val_dataloader", "val_cfg", "val_evaluator", "test_dataloader", "test_cfg", "test_evaluator", "launcher", "work_dir", "runner_type",
    "load_from", "resume", "default_scope", "image_processor", "sampler", "sequence_parallel_size",
}


@dataclass(frozen=True)
class ImportedConfig:
    """What an XTuner config became.

    Attributes:
        recipe: the recipe.
        notes: what became of each setting, in the order of the config's parts.
        data: the datasets that the recipe expects.
        questions: the questions that XTuner would have asked now and then.
        name: what to call the recipe.
    """

    recipe: Recipe
    notes: list[ImportNote]
    data: list[DataPart]
    questions: list[str]
    name: str

    def of_kind(self, kind: str) -> list[ImportNote]:
        return [note for note in self.notes if note.kind == kind]

    def to_text(self, language: str = "en") -> str:
        """The recipe as YAML, with what was not taken over as comments above it."""
        head = [Text("Imported from an XTuner config. What it says and this recipe does not:").to(language)]
        head += [f"- {note.key}: {note.text.to(language)}" for note in self.notes if note.kind in ("left_out", "not_run")]
        # A value of the config must not end the comment it stands in.
        plain = ["".join(char if char.isprintable() else " " for char in line) for line in head]
        return "".join(f"# {line}\n" for line in plain) + "\n" + dump_recipe(self.recipe, None, language)


def import_file(path: Path, gpus: int | None = None, workspace: Workspace | None = None, dataset: str | None = None) -> ImportedConfig:
    """Import the config in a file; see `import_config`.

    Raises:
        StudioError: the file cannot be read, or it is no config of a training that a recipe can say.
    """
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise StudioError("{file} is far too large for a config.", "A config has a few hundred lines; choose the config itself.",
                              file=path.name)
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise StudioError("The config {path} cannot be read: {reason}.", "Check that it is a file and that you may read it.",
                          path=path, reason=error.strerror) from error
    except UnicodeDecodeError as error:
        raise StudioError("{file} is not UTF-8 text.", "Choose the config file itself, as XTuner's copy-cfg wrote it.",
                          file=path.name) from error
    return import_config(text, path.name, gpus, workspace, dataset)


def import_config(text: str, file: str, gpus: int | None = None, workspace: Workspace | None = None,
                  dataset: str | None = None) -> ImportedConfig:
    """Read an XTuner config and say the same as a recipe; nothing in it is run.

    Args:
        text: the Python source of the config.
        file: its name; `..._gpu8.py` says how many GPUs it is for.
        gpus: world size of the training; None takes it from the name, else 1.
        workspace: where datasets and models may be; with them XTuner's packs can be counted in rows.
        dataset: a dataset of the workspace to take instead of those that the config names.

    Raises:
        StudioError: the text is no Python, or no config of a training that a recipe can say.
    """
    config = read_config(text, file)
    model = section(config.values, "model")
    if not model:
        raise StudioError("{file} is no XTuner config of a training: it sets no model.",
                          "Choose a config as `xtuner copy-cfg` writes it; it holds lines such as model = dict(...).", file=file)
    notes = Notes()
    read_model(model, config.values, notes, file)
    parts = read_data(config.values, notes)
    if dataset is not None:
        parts = [replace(parts[0], name=dataset)]
        notes.put("data.sources", [{"dataset": dataset}], "--data")
    world = gpus or _gpus_in(file)
    counts = read_schedule(config.values, world, notes)
    known = _rows_here(workspace, parts, notes) if workspace is not None else None
    _count_packs_in_rows(counts, known, notes)
    if known and len(parts) > 1:
        _weigh_by_rows(parts, known, notes)
    read_snapshots(config.values, counts, _updates(counts, known, notes), notes)
    if world > 1:
        notes.put("device.gpus", world, file if gpus is None else "--gpus")
    questions = _questions(config, notes)
    _read_runtime(config, notes)
    title = Path(file).stem
    notes.changes["title"] = title[:200]
    return ImportedConfig(build_recipe(_nested(notes.changes), file), notes.items, parts, questions, slug(title) or "imported")


def _weigh_by_rows(parts: list[DataPart], known: list[tuple[int, float]], notes: Notes) -> None:
    """The mixture that laying the datasets end to end would give."""
    most = max(rows for rows, _ in known)
    weights = [round(max(0.001, rows / most), 3) for rows, _ in known]
    notes.put("data.sources", [{"dataset": part.name, "weight": weight} for part, weight in zip(parts, weights, strict=True)],
              "ConcatDataset", Text("weights by number of rows"))


def _gpus_in(file: str) -> int:
    found = re.search(r"_gpu(\d+)", file)
    return max(1, int(found.group(1))) if found else 1


def _rows_here(workspace: Workspace, parts: list[DataPart], notes: Notes) -> list[tuple[int, float]] | None:
    """(rows, mean tokens of a row) of each dataset; None when one of them, or the model, is not here yet."""
    try:
        base = find_local_base(workspace, notes.changes["model.source"])
        if base is None:
            return None
        longest, train_on = notes.changes.get("data.max_length", 1_048_576), notes.changes.get("data.train_on", "all")
        measures = [measure_dataset(load_dataset(workspace, part.name), encoder_of(base), None, train_on) for part in parts]
    except StudioError:
        return None
    return [(measure.rows, measure.mean_below(longest)) for measure in measures]


def _count_packs_in_rows(counts: Counts, known: list[tuple[int, float]] | None, notes: Notes) -> None:
    """One row of XTuner's is a pack of many; an update of 16 packs sees as many rows as fit into them."""
    length = notes.changes.get("data.max_length", 0)
    if not notes.changes.get("data.packing") or not length:
        return
    if known is None:
        notes.leave("pack_to_max_length", Text(
            "one row of XTuner's is a pack of {length} tokens: for as many tokens an update, give schedule.effective_batch "
            "{packs} x {length} / the mean tokens of a row, or import again once data and model are here",
            length=length, packs=counts.packs_per_update))
        return
    tokens = sum(rows * mean for rows, mean in known) / max(1, sum(rows for rows, _ in known))
    batch = max(1, round(counts.packs_per_update * length / max(1.0, tokens)))
    notes.put("schedule.effective_batch", min(batch, 65_536), "pack_to_max_length", Text(
        "{packs} packs of {length} tokens hold about {rows} rows of {tokens} tokens", packs=counts.packs_per_update, length=length,
        rows=batch, tokens=round(tokens)))


def _updates(counts: Counts, known: list[tuple[int, float]] | None, notes: Notes) -> int | None:
    """Updates of the whole run; None while a dataset is not here."""
    if counts.updates is not None or known is None:
        return counts.updates
    return max(1, math.ceil((counts.epochs or 1) * sum(rows for rows, _ in known) / notes.changes["schedule.effective_batch"]))


def _questions(config: ReadConfig, notes: Notes) -> list[str]:
    """The questions of the chat hook: they belong to a dataset's probes here."""
    hooks = config.values.get("custom_hooks")
    for hook in hooks if isinstance(hooks, list | tuple) else ():
        if kind_of(hook) != "EvaluateChatHook":
            continue
        asked = hook.get("evaluation_inputs")
        questions = [text for text in asked if isinstance(text, str)] if isinstance(asked, list | tuple) else []
        notes.leave("evaluation_inputs", Text(
            "{count} questions, asked at random temperature and only logged; here every snapshot answers a dataset's probes, "
            "so put them there", count=len(questions)))
        if isinstance(hook.get("system"), str) and hook["system"] or isinstance(hook.get("system"), Reference):
            notes.leave("SYSTEM", Text("XTuner puts it before the sample questions only, never before the data: {value}",
                                       value=shown(hook["system"])))
        return questions
    return []


def _read_runtime(config: ReadConfig, notes: Notes) -> None:
    """What is left of the file: checkpoints to begin from, settings that nothing else reads, lines that were not run."""
    values = config.values
    if values.get("load_from"):
        notes.leave("load_from", Text("a recipe begins from its model; import the weights as a model first: {value}",
                                      value=shown(values["load_from"])))
    if "_base_" in values:
        notes.leave("_base_", Text("the config builds on another file, which is not read; import the whole one: {value}",
                                   value=shown(values["_base_"])))
    for name, value in values.items():
        is_own = not isinstance(value, Reference) or name in config.lines
        if is_own and name not in config.used and name not in _HARMLESS and not name.startswith("_"):
            text = Text("cannot be known without running it: {value}", value=shown(value)) if isinstance(value, Unknown) else Text(
                "set, and read by nothing else in the file: {value}", value=shown(value))
            notes.leave(name, text)
    for left in config.not_run:
        notes.skip(left.line, left.code)


def _nested(changes: dict[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for path, value in changes.items():
        owner, _, name = path.rpartition(".")
        (data.setdefault(owner, {}) if owner else data)[name] = value
    return data
