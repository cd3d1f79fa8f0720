"""A recipe: everything that decides a training, in one typed file.

Lengths are counted in updates (optimizer steps) and rows; micro-batches are a matter of the device and change
no other number here.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator, model_validator
from pydantic_core import PydanticCustomError

from core.recipe.device import DeviceSection, LogSection
from core.recipe.setting import Section, setting
from core.words import Text

_ONLY_LORA = ("method.kind", ("lora",))


class ModelSection(Section):
    """The base model and how its weights are held in memory."""

    source: str = setting(
        "embedded",
        Text("Model"),
        Text("embedded (comes with Sweetspot), a folder, a hub id such as Qwen/Qwen2.5-0.5B-Instruct, or a "
             "name in the workspace."),
        expects=Text("a folder, a hub id or a name"),
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto",
        Text("Number format"),
        Text("auto takes bfloat16 on a GPU that has it and float32 on a processor, where bfloat16 is "
             "usually slower."),
        choices=(("auto", Text("chosen for the device")), ("float32", Text("4 bytes, exact")),
                 ("bfloat16", Text("2 bytes, wide range")), ("float16", Text("2 bytes, for older GPUs"))),
        level="expert",
    )
    quantization: Literal["none", "nf4", "int8"] = setting(
        "none",
        Text("Quantisation"),
        Text("Holds the base model in fewer bits so that it fits a small GPU; the adapter stays exact. nf4 "
             "with LoRA is QLoRA."),
        choices=(("none", Text("full precision")), ("nf4", Text("4 bits (QLoRA)")), ("int8", Text("8 bits"))),
    )


class MethodSection(Section):
    """What is trained."""

    kind: Literal["lora", "full"] = setting(
        "lora",
        Text("Method"),
        Text("LoRA trains small added matrices and leaves the base model as it is; full trains every "
             "weight."),
        choices=(("lora", Text("small added matrices")), ("full", Text("every weight"))),
    )
    rank: int = setting(
        16,
        Text("Rank"),
        Text("Width of the added matrices. 8 to 32 is enough to learn a manner; facts need more."),
        minimum=1,
        maximum=4096,
        shown_if=_ONLY_LORA,
    )
    alpha: int = setting(
        32,
        Text("Alpha"),
        Text("Strength of the adapter: its output is multiplied by alpha / rank. Twice the rank is usual."),
        minimum=1,
        maximum=8192,
        shown_if=_ONLY_LORA,
        level="expert",
    )
    dropout: float = setting(
        0.0,
        Text("Dropout"),
        Text("Share of adapter inputs set to zero at random in training; 0 for short runs."),
        minimum=0,
        maximum=0.9,
        shown_if=_ONLY_LORA,
        level="expert",
    )
    targets: Literal["all-linear"] | list[str] = setting(
        "all-linear",
        Text("Adapted layers"),
        Text("all-linear adapts every linear layer except the output head; or list the layer names, such as "
             "[q_proj, v_proj]."),
        expects=Text("all-linear or a list of layer names"),
        shown_if=_ONLY_LORA,
        level="expert",
    )
    rslora: bool = setting(
        False,
        Text("Rank-stabilised LoRA"),
        Text("Scales by alpha / sqrt(rank), which lets large ranks learn."),
        shown_if=_ONLY_LORA,
        level="expert",
    )
    dora: bool = setting(
        False,
        Text("DoRA"),
        Text("Trains direction and length of each weight apart: a little better, noticeably slower."),
        shown_if=_ONLY_LORA,
        level="expert",
    )


class Source(Section):
    """One dataset, or some groups of it, with its share."""

    dataset: str = setting(..., Text("Dataset"), Text("Name of a dataset in the workspace."), is_name=True)
    groups: list[str] | None = setting(
        None,
        Text("Groups"),
        Text("Only rows of these groups (identity, near, general, or any of your own); leave it out for all "
             "rows."),
        expects=Text("a list of group names"),
    )
    weight: float = setting(
        1.0,
        Text("Weight"),
        Text("Share of the rows of each update, relative to the other sources: 1 and 1 is half and half."),
        minimum=0.001,
        maximum=1000,
    )


class DataSection(Section):
    """What is learned from."""

    sources: list[Source] = setting(
        [Source(dataset="identity")],
        Text("Datasets"),
        Text("What every update is drawn from. Mixing in the model's own answers to other questions keeps "
             "it from forgetting them."),
        expects=Text("a list of datasets"),
    )
    max_length: int = setting(
        512,
        Text("Longest row"),
        Text("A longer conversation is cut at its end."),
        unit=Text("tokens"),
        minimum=16,
        maximum=1_048_576,
    )
    packing: bool = setting(
        False,
        Text("Packing"),
        Text("Lays the rows of an update end to end instead of padding them to one length; no row sees "
             "another, and what is learned stays the same. Faster on a GPU when rows are short."),
        level="expert",
    )
    train_on: Literal["all", "last", "everything"] = setting(
        "all",
        Text("Trained turns"),
        Text("Which part of a conversation counts in the loss."),
        choices=(("all", Text("every answer")), ("last", Text("the last answer only")),
                 ("everything", Text("questions too, as in continued pre-training"))),
        level="expert",
    )
    system: str | None = setting(
        None,
        Text("System text"),
        Text("Put before conversations that have none. Left out, the model's own template decides; empty "
             "means an empty one."),
        level="expert",
    )


class ScheduleSection(Section):
    """How long and how strongly.

    Exactly one of `updates` and `epochs` is set; writing `epochs` alone unsets the default `updates`.
    """

    effective_batch: int = setting(
        4,
        Text("Effective batch"),
        Text("Rows that one update sees, however many of them fit in memory at a time. More rows make "
             "calmer but fewer updates."),
        unit=Text("rows per update"),
        minimum=1,
        maximum=65_536,
    )
    updates: int | None = setting(
        36,
        Text("Updates"),
        Text("How often the weights change. Give this or epochs, not both."),
        unit=Text("updates"),
        minimum=1,
        maximum=10_000_000,
    )
    epochs: float | None = setting(
        None,
        Text("Epochs"),
        Text("How often each row is seen. Give this or updates, not both."),
        unit=Text("times each row"),
        minimum=0.001,
        maximum=10_000,
    )
    learning_rate: float = setting(
        2e-4,
        Text("Learning rate"),
        Text("Size of one update. LoRA usually takes 5e-5 to 5e-4, full training 5e-6 to 5e-5."),
        minimum=1e-8,
        maximum=1,
    )
    warmup_updates: int = setting(
        0,
        Text("Warm-up"),
        Text("Updates over which the learning rate rises from zero; never more than a tenth of the run is "
             "used."),
        unit=Text("updates"),
        minimum=0,
        maximum=1_000_000,
        level="expert",
    )
    warmup_ratio: float = setting(
        0.0,
        Text("Warm-up share"),
        Text("The same as a share of the run, as other tools say it; the longer of the two counts."),
        minimum=0,
        maximum=0.1,
        level="expert",
    )
    shape: Literal["constant", "linear", "cosine"] = setting(
        "constant",
        Text("Learning rate over time"),
        Text("constant keeps snapshots comparable, each one simply later than the one before; the others "
             "end near zero."),
        choices=(("constant", Text("stays the same")), ("linear", Text("falls evenly to zero")),
                 ("cosine", Text("falls slowly, fast, slowly to zero"))),
        level="expert",
    )
    weight_decay: float = setting(
        0.0,
        Text("Weight decay"),
        Text("Pull of the trained weights towards zero at each update."),
        minimum=0,
        maximum=1,
        level="expert",
    )
    clip_norm: float = setting(
        1.0,
        Text("Gradient limit"),
        Text("A longer gradient is shortened to this norm; 0 switches it off."),
        minimum=0,
        maximum=1000,
        level="expert",
    )
    seed: int = setting(
        7,
        Text("Seed"),
        Text("Start of every random choice; the same seed on the same machine repeats the run."),
        minimum=0,
        maximum=2**31 - 1,
        level="expert",
    )

    @model_validator(mode="before")
    @classmethod
    def let_epochs_replace_the_default(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("epochs") is not None and "updates" not in data:
            return {**data, "updates": None}
        return data

    @model_validator(mode="after")
    def have_one_length(self) -> ScheduleSection:
        if self.updates is not None and self.epochs is not None:
            raise PydanticCustomError("two_lengths", "updates and epochs are both given")
        if self.updates is None and self.epochs is None:
            raise PydanticCustomError("no_length", "neither updates nor epochs is given")
        return self


class SnapshotSection(Section):
    """What is kept along the way, to choose from afterwards."""

    count: int = setting(
        12,
        Text("Snapshots"),
        Text("How many checkpoints are saved besides step 0, the base model. The best one often lies "
             "between two; 12 is a good start."),
        unit=Text("snapshots"),
        minimum=1,
        maximum=1000,
    )
    spacing: Literal["even", "early", "events"] = setting(
        "even",
        Text("Spacing"),
        Text("Where along the run they are saved. By events finds the few updates that matter in a long run; it needs a "
             "dataset whose conversations can be looked in on."),
        choices=(("even", Text("at equal distances")), ("early", Text("closer together at the start")),
                 ("events", Text("when something happens, at equal distances otherwise"))),
    )


class ProbeSection(Section):
    """The questions that every snapshot is asked."""

    dataset: str | None = setting(
        None,
        Text("Questions of"),
        Text("Dataset whose probes are asked; left out, the first dataset of this recipe."),
        is_name=True,
    )
    max_new_tokens: int = setting(
        48,
        Text("Longest answer"),
        Text("An answer is cut here while scoring."),
        unit=Text("tokens"),
        minimum=4,
        maximum=4096,
        level="expert",
    )


class EarlyStopSection(Section):
    """What happens when a run collapses while you are away."""

    on_alert: Literal["off", "save", "stop"] = setting(
        "off",
        Text("On collapse"),
        Text("What to do when the alert turns red: the model begins to answer everything alike."),
        choices=(("off", Text("carry on")), ("save", Text("save a snapshot at amber and at red, and carry on")),
                 ("stop", Text("save these, and stop when it is red twice in a row"))),
    )


class Recipe(Section):
    """One training, decided."""

    title: str = setting("", Text("Title"), Text("One line that tells this recipe from others."))
    model: ModelSection = setting(
        ModelSection(), Text("Base model"), Text("The base model and how its weights are held in memory.")
    )
    method: MethodSection = setting(MethodSection(), Text("Training method"), Text("What is trained."))
    data: DataSection = setting(DataSection(), Text("Training data"), Text("What is learned from."))
    schedule: ScheduleSection = setting(
        ScheduleSection(), Text("Schedule"), Text("How long and how strongly.")
    )
    snapshots: SnapshotSection = setting(
        SnapshotSection(), Text("Snapshots along the way"), Text("What is kept to choose from afterwards.")
    )
    probes: ProbeSection = setting(
        ProbeSection(), Text("Probes"), Text("The questions that every snapshot is asked.")
    )
    device: DeviceSection = setting(
        DeviceSection(), Text("Where it runs"),
        Text("Nothing here changes what is learned; only the FP8 of fast mode rounds."),
    )
    early_stop: EarlyStopSection = setting(
        EarlyStopSection(), Text("Early stop"), Text("What happens when a run collapses while you are away.")
    )
    log: LogSection = setting(
        LogSection(), Text("Record elsewhere"), Text("Where the numbers of a run go besides its own folder.")
    )

    @field_validator(
        "model", "method", "data", "schedule", "snapshots", "probes", "device", "early_stop", "log", mode="before"
    )
    @classmethod
    def take_an_empty_section_as_default(cls, value: Any, info: Any) -> Any:
        # `method:` with every line below it commented out is how people return to the defaults.
        return {} if value is None else value

    @property
    def probe_dataset(self) -> str:
        """Name of the dataset whose probes are asked."""
        return self.probes.dataset or self.data.sources[0].dataset
