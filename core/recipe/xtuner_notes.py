"""What an import of an XTuner config has to say: what became of each setting, and what became of nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from core.recipe.xtuner_reading import Reference, Unknown
from core.words import Text

Kind = Literal["mapped", "changed", "left_out", "not_run"]
KINDS: tuple[Kind, ...] = ("mapped", "changed", "left_out", "not_run")
_LONGEST_SHOWN = 60
_LARGEST = 1e15  # beyond any count or rate; infinity and "not a number" are beyond it too


@dataclass(frozen=True)
class ImportNote:
    """What became of one setting.

    Attributes:
        kind: `mapped` as it was; `changed` into what means the same here, or nearly; `left_out` with the reason; `not_run` for a line
            that would have done something.
        key: the setting in the config, as in `optim_wrapper.optimizer.lr`; `line 12` for a line.
        field: the recipe field it went to, if any.
        text: the value, or what was done and why.
    """

    kind: Kind
    key: str
    text: Text
    field: str = ""


@dataclass
class Notes:
    """Collects the notes of one import, and the recipe fields that were set."""

    changes: dict[str, Any] = field(default_factory=dict)
    items: list[ImportNote] = field(default_factory=list)

    def put(self, path: str, value: Any, key: str, text: Text | None = None) -> None:
        """Set a recipe field; with a text when the value is not simply the config's own."""
        self.changes[path] = value
        self.items.append(ImportNote("changed" if text else "mapped", key, text or Text("{value}", value=shown(value)), path))

    def leave(self, key: str, text: Text) -> None:
        """Say why a setting became nothing."""
        self.items.append(ImportNote("left_out", key, text))

    def skip(self, line: int, code: str) -> None:
        """Say that a line was not carried out."""
        self.items.append(ImportNote("not_run", f"line {line}", Text("{code} was not run.", code=code)))


def shown(value: Any) -> str:
    """A value in a few words; never the inside of a large one."""
    if isinstance(value, Reference):
        return value.last
    if isinstance(value, Unknown):
        return value.code
    if isinstance(value, list | tuple) and all(isinstance(item, str | int | float) for item in value):
        text = ", ".join(map(str, value[:20]))
    elif isinstance(value, str | int | float | bool) or value is None:
        text = str(value)
    else:
        text = type(value).__name__
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"


def section(owner: Any, *names: str) -> dict[str, Any]:
    """The dict at a path of keys; an empty one where the config has none."""
    for name in names:
        owner = owner.get(name) if isinstance(owner, dict) else None
    return owner if isinstance(owner, dict) else {}


def number(value: Any) -> float | None:
    """The value when it is a plain number, and one that can be counted with."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and abs(value) <= _LARGEST else None


def kind_of(config: Any) -> str:
    """The last word of a dict's `type`: `SupervisedFinetune`, `from_pretrained`."""
    named = config.get("type") if isinstance(config, dict) else None
    return named.last if isinstance(named, Reference) else str(named).rsplit(".", 1)[-1] if isinstance(named, str) else ""
