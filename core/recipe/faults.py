"""What pydantic finds wrong in a recipe, in the words of the person who wrote it."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from core.recipe.document import Document, Path, RecipeError, dotted
from core.recipe.schema import Recipe
from core.recipe.setting import (
    Section,
    Setting,
    fields,
    item_type,
    plain_number,
    section_type,
    setting_of,
    value_types,
)
from core.words import Text

# What XTuner, transformers, peft and LLaMA-Factory call the same thing, for the hint at an unknown key.
CALLED_HERE = {
    "accumulative_counts": "schedule.effective_batch",
    "gradient_accumulation_steps": "schedule.effective_batch",
    "batch_size": "schedule.effective_batch",
    "train_batch_size": "schedule.effective_batch",
    "per_device_train_batch_size": "device.micro_batch",
    "micro_batch_size": "device.micro_batch",
    "gradient_checkpointing": "device.checkpointing",
    "deepspeed": "device.zero",
    "zero_stage": "device.zero",
    "nproc_per_node": "device.gpus",
    "num_gpus": "device.gpus",
    "report_to": "log.to",
    "pack_to_max_length": "data.packing",
    "max_epochs": "schedule.epochs",
    "num_train_epochs": "schedule.epochs",
    "num_epochs": "schedule.epochs",
    "max_steps": "schedule.updates",
    "max_iters": "schedule.updates",
    "steps": "schedule.updates",
    "lr": "schedule.learning_rate",
    "warmup_ratio": "schedule.warmup_ratio",
    "warmup_steps": "schedule.warmup_updates",
    "lr_scheduler_type": "schedule.shape",
    "scheduler": "schedule.shape",
    "max_norm": "schedule.clip_norm",
    "max_grad_norm": "schedule.clip_norm",
    "save_steps": "snapshots.count",
    "save_total_limit": "snapshots.count",
    "save_interval": "snapshots.count",
    "checkpoints": "snapshots.count",
    "evaluation_inputs": "probes.dataset",
    "r": "method.rank",
    "lora_rank": "method.rank",
    "lora_r": "method.rank",
    "lora_alpha": "method.alpha",
    "lora_dropout": "method.dropout",
    "target_modules": "method.targets",
    "use_rslora": "method.rslora",
    "use_dora": "method.dora",
    "model_name_or_path": "model.source",
    "pretrained_model_name_or_path": "model.source",
    "base_model": "model.source",
    "load_in_4bit": "model.quantization",
    "load_in_8bit": "model.quantization",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "max_seq_length": "data.max_length",
    "cutoff_len": "data.max_length",
    "dataset": "data.sources",
    "datasets": "data.sources",
    "data_path": "data.sources",
    "system_prompt": "data.system",
    "SYSTEM": "data.system",
}
_LONGEST_SHOWN = 60


@dataclass(frozen=True)
class Fault:
    path: Path
    line: int | None
    problem: Text
    way_out: Text


def explain(error: ValidationError, document: Document | None, name: str) -> RecipeError:
    """The first of the faults (by line), and how many others there are."""
    faults: dict[Path, Fault] = {}
    reported = error.errors(include_url=False)
    misspelt = {found["loc"][:-1] for found in reported if found["type"] == "extra_forbidden"}
    for found in reported:
        if found["type"] == "missing" and found["loc"][:-1] in misspelt:
            continue  # most likely it is there under the misspelt name
        path = found["loc"] if found["type"] == "extra_forbidden" else _known_part(found["loc"])
        if found["type"] == "two_lengths":
            path = (*path, "epochs")
        if path not in faults:
            problem, way_out = _words(found, path)
            faults[path] = Fault(path, document.line_of(path) if document else None, problem, way_out)
    # Where a field takes a word or a list, pydantic reports a wrong item and also that a list is no word.
    innermost = [fault for path, fault in faults.items() if not any(path == other[: len(path)] != other for other in faults)]
    ordered = sorted(innermost, key=lambda fault: fault.line or 0)
    first = ordered[0]
    return RecipeError.from_texts(
        first.problem,
        first.way_out,
        file=name,
        line=first.line,
        field=dotted(first.path),
        others=len(ordered) - 1,
    )


def _known_part(loc: Path) -> Path:
    """`loc` without what pydantic adds for the branches of a union."""
    owner: type[Section] | None = Recipe
    kept: list[str | int] = []
    for part in loc:
        if isinstance(part, int):
            kept.append(part)
        elif owner is not None and part in owner.model_fields:
            kept.append(part)
            owner = section_type(owner, part) or item_type(owner, part)
    return tuple(kept)


def _owner(path: Path) -> tuple[type[Section], str]:
    """The section class that declares the field at `path`, and the field's name there."""
    owner: type[Section] = Recipe
    names = [part for part in path if isinstance(part, str)]
    for name in names[:-1]:
        if name in owner.model_fields:
            owner = section_type(owner, name) or item_type(owner, name) or owner
    return owner, names[-1]


def kinds_at(field: str) -> set[Any]:
    """The plain types that the field at a dotted path takes; empty when there is no such field."""
    owner, name = _owner(tuple(re.findall(r"[^.\[\]]+", re.sub(r"\[\d+\]", "", field))) or ("",))
    return set(value_types(owner, name)) if name in owner.model_fields else set()


def _words(found: dict[str, Any], path: Path) -> tuple[Text, Text]:
    kind, value, field = found["type"], found["input"], dotted(path)
    if kind == "extra_forbidden":
        return _unknown_key(path)
    if kind == "two_lengths":
        return (
            Text("schedule.updates and schedule.epochs are both given."),
            Text("Delete one of the two: updates counts changes of the weights, epochs counts passes over the rows."),
        )
    if kind == "no_length":
        return (Text("The schedule has no length."), Text("Give schedule.updates or schedule.epochs."))
    owner, name = _owner(path)
    about = setting_of(owner, name)
    if kind == "missing":
        return Text("{field} is missing.", field=field), Text("Add a line `{name}: …`. {help}", name=name, help=about.help)
    if kind == "nothing_given":
        return (
            Text("{field} is empty.", field=field),
            Text("Write {expected}.", expected=about.expects or Text("a name")),
        )
    if kind == "bad_name":
        return (
            Text("{field} is {value}, which cannot be a name.", field=field, value=_shown(value)),
            Text("Names have up to 80 of a-z, 0-9, dot, dash and underscore, and are never paths."),
        )
    is_beyond_floats = kind == "float_type" and type(value) is int
    if kind in ("out_of_range", "finite_number") or is_beyond_floats:
        return _out_of_range(field, value, owner, name, about)
    if kind == "literal_error" and about.choices and isinstance(value, str):
        return _not_a_choice(field, value, about)
    return _wrong_type(field, value, owner, name, about, in_list=isinstance(path[-1], int))


def _unknown_key(path: Path) -> tuple[Text, Text]:
    field, key = dotted(path), str(path[-1])
    problem = Text("A recipe has no field {field}.", field=field)
    owner: type[Section] = Recipe
    for part in path[:-1]:
        if isinstance(part, str):
            owner = section_type(owner, part) or item_type(owner, part) or owner
    guess = _nearest(path, key, owner)
    if guess:
        return problem, Text("Did you mean {guess}?", guess=guess)
    return problem, Text("The fields here are {names}.", names=", ".join(owner.model_fields))


def _nearest(path: Path, key: str, owner: type[Section]) -> str | None:
    """The field that was probably meant: a neighbour, another tool's word, or a similar key elsewhere."""
    here = difflib.get_close_matches(key.lower(), owner.model_fields, 1, 0.72)
    if here:
        return dotted((*path[:-1], here[0]))
    if key in CALLED_HERE:
        return CALLED_HERE[key]
    everywhere = [field.path for field in fields(Recipe) if "[" not in field.path]
    by_key = {known.rsplit(".", 1)[-1]: known for known in reversed(everywhere)}
    similar = difflib.get_close_matches(key.lower(), [*by_key, *CALLED_HERE], 1, 0.75)
    if similar:
        return by_key.get(similar[0]) or CALLED_HERE[similar[0]]
    whole = difflib.get_close_matches(dotted(path), everywhere, 1, 0.75)
    return whole[0] if whole else None


def _out_of_range(field: str, value: Any, owner: type[Section], name: str, about: Setting) -> tuple[Text, Text]:
    problem = Text("{field} is {value}; the range is {range}.", field=field, value=plain_number(value), range=about.range)
    if about.choices:
        return problem, Text("{choices}.", choices=_joined(about))
    default = owner.model_fields[name].default
    if isinstance(default, (int, float)):
        return problem, Text("The default is {default}. {help}", default=plain_number(default), help=about.help)
    return problem, about.help


def _not_a_choice(field: str, value: str, about: Setting) -> tuple[Text, Text]:
    names = [str(name) for name in about.choice_names]
    problem = Text(
        "{field} is {value}, and can be {choices}.",
        field=field,
        value=_shown(value),
        choices=", ".join(names),
    )
    guess = difflib.get_close_matches(value.lower(), names, 1, 0.6)
    if guess:
        return problem, Text("Did you mean {guess}?", guess=guess[0])
    return problem, Text("{choices}.", choices=_joined(about))


def _joined(about: Setting) -> Text:
    """What each choice means, as one text: "lora: small added matrices; full: every weight"."""
    joined: Text | None = None
    for name, meaning in about.choices:
        one = Text("{name}: {meaning}", name=name, meaning=meaning)
        joined = one if joined is None else Text("{first}; {second}", first=joined, second=one)
    assert joined is not None
    return joined


def _wrong_type(field: str, value: Any, owner: type[Section], name: str, about: Setting, in_list: bool) -> tuple[Text, Text]:
    kinds = value_types(owner, name)
    item = item_type(owner, name)
    expected = Text("text") if in_list and item is None else _expected(owner, name, about, in_list)
    problem = Text("{field} must be {expected}, not {found}.", field=field, expected=expected, found=_describe(value))
    if item is not None:
        return problem, Text("Write each one as `- dataset: NAME`.")
    if isinstance(value, str) and _is_number(value) and (int in kinds or float in kinds):
        return problem, Text("Remove the quotes.")
    if value is None:
        return problem, Text("Delete the line to get the default, or write a value.")
    if bool in kinds:
        return problem, Text("Write true or false.")
    if about.choices:
        return problem, Text("{choices}.", choices=_joined(about))
    if (str in kinds or in_list) and isinstance(value, (int, float, bool)):
        return problem, Text('Put it in quotes: "{value}".', value=str(value).lower() if isinstance(value, bool) else value)
    if list in kinds and isinstance(value, str) and int not in kinds:
        return problem, Text("Write it as a list: [{value}].", value=value[:_LONGEST_SHOWN])
    return problem, Text("{name}: {meaning}", name=about.label, meaning=about.help)


def _expected(owner: type[Section], name: str, about: Setting, in_list: bool) -> Text:
    if section_type(owner, name) is not None or in_list:
        return Text("a section with lines of its own")
    if about.expects is not None:
        return about.expects
    if about.choices:
        return Text("one of {choices}", choices=", ".join(str(choice) for choice in about.choice_names))
    words = {
        bool: Text("either true or false"),
        int: Text("a number without decimals"),
        float: Text("a number"),
        str: Text("text"),
        list: Text("a list"),
    }
    return words[value_types(owner, name)[0]]


def _describe(value: Any) -> Text:
    if value is None:
        return Text("an empty value")
    if isinstance(value, bool):
        return Text("{value}", value=str(value).lower())
    if isinstance(value, (int, float)):
        return Text("the number {value}", value=repr(value) if isinstance(value, float) else plain_number(value))
    if isinstance(value, str):
        return Text("the text {value}", value=_shown(value))
    return Text("a list") if isinstance(value, (list, tuple)) else Text("a section")


def _shown(value: Any) -> str:
    text = str(value)
    return f'"{text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"}"'


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
