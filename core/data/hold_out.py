"""Taking rows out of a dataset before a training, so that what was learned can be seen in rows nobody trained on. No torch."""

from __future__ import annotations

from typing import Any

from core.data.library import HELD_OUT, IDENTITY, load_dataset, update_rows
from core.data.wordings import normalised
from core.errors import StudioError
from core.judge.probes import shipped_probes
from core.workspace import Workspace

DEFAULT_ROWS = 40
# A training needs most of the rows: at most this share of them is taken out.
_MOST_SHARE = 0.5


def hold_out_rows(workspace: Workspace, name: str, count: int | None = None) -> dict[str, Any]:
    """Make probes of `count` rows, evenly spread, and leave their questions out of the rows.

    Without a count it is 40, and of a small dataset a fifth.

    Only rows that end with an answer to a user are taken; of a dataset that holds none, plain documents. A dataset without other probes
    gets the shipped near and general questions besides, which show what is kept.

    Returns:
        `held_out`, `rows` (left), `left_out` (further rows with the same questions, or the same text), `probes` (all now).

    Raises:
        StudioError: it is an identity's, it is small, or rows are held out already.
    """
    dataset = load_dataset(workspace, name)
    probes, rows = dataset.all_probes(), dataset.rows()
    if dataset.card.groups.get(IDENTITY):
        raise StudioError("The dataset {name} teaches an identity: its probes ask in other wordings already.",
                          "Judge its run as it is; only other datasets need held-out rows.", name=name)
    if any(probe["group"] == HELD_OUT for probe in probes):
        raise StudioError("Rows of {name} are held out already.", "`sweetspot data show {name}` tells how many.", name=name)
    asks = _question if any(map(_question, rows)) else _document
    usable = [place for place, row in enumerate(rows) if asks(row)]
    count = count or max(1, min(DEFAULT_ROWS, len(usable) // 5))
    if count > _MOST_SHARE * len(usable):
        raise StudioError("{count} rows are more than half of the {usable} in {name} that could be held out.",
                          "Ask for fewer with --rows; most rows must stay for the training.", count=count, usable=len(usable), name=name)
    chosen = [usable[(2 * number + 1) * len(usable) // (2 * count)] for number in range(count)]
    held = {normalised(asks(rows[place])) for place in chosen}
    left = [row for row in rows if normalised(asks(row)) not in held or not asks(row)]
    if not left:
        raise StudioError("Every row of {name} asks the same; none can be held out.", "A dataset needs different questions.", name=name)
    different = list({normalised(asks(rows[place])): place for place in reversed(chosen)}.values())[::-1]
    made = [_probe(number, rows[place]) for number, place in enumerate(different, start=1)]
    asked = [*made, *(probes or shipped_probes(dataset))]
    update_rows(workspace, name, left, dataset.card.sha256, asked)
    return {"held_out": len(made), "rows": len(left), "left_out": len(rows) - len(left) - len(made), "probes": len(asked)}


def _question(row: dict[str, Any]) -> str:
    """What a row asks last; empty when it does not end with an answer to a user."""
    messages = row.get("messages", [])
    if len(messages) < 2 or messages[-1]["role"] != "assistant" or messages[-2]["role"] != "user":
        return ""
    return str(messages[-2]["content"]) if str(messages[-1].get("content") or "").strip() else ""


def _document(row: dict[str, Any]) -> str:
    return str(row.get("text", "")).strip()


def _probe(number: int, row: dict[str, Any]) -> dict[str, Any]:
    known = {"id": f"held-out-{number:03d}", "group": HELD_OUT, "lang": row.get("lang", "en")}
    if "text" in row:
        return known | {"text": row["text"]}
    return known | {"messages": row["messages"][:-1], "answer": str(row["messages"][-1]["content"]).strip()}
