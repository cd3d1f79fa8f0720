"""Looking in on a training at its snapshots: does it begin to answer everything alike?

The alarm needs no generation: one pass over the probes' prompts tells which first word the model would say. A few short answers are
made as well, for people to read.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from core.chat.engine import Engine, Row
from core.data.encode import Encoder
from core.data.library import GENERAL, IDENTITY, NEAR
from core.judge.metrics import share
from core.judge.scoring import Probe
from core.runs import Run
from core.workspace import append_jsonl, read_jsonl, write_jsonl

# Shares of other questions whose first word has become the identity's, from the study (docs/checkpoints.md, section 5).
AMBER_HIJACK = 0.08
RED_HIJACK = 0.15
# Looking in must stay cheap beside training: so many probes are watched (near ones fail first), so few answered, so shortly.
_WATCHED = {NEAR: 8, GENERAL: 8}
_SHOWN = {IDENTITY: 1, NEAR: 1, GENERAL: 1}
_SHOWN_TOKENS = 10
_MOST_LOOKS = 9


class Watch:
    """The look-in of one training; writes `watch.jsonl`."""

    def __init__(self, run: Run, model: PreTrainedModel, encoder: Encoder, probes: Sequence[Probe], targets: Sequence[str]) -> None:
        """Remember what the untrained model would say first.

        Args:
            model: the model in training, not yet trained.
            probes: the run's probes; some of those that are no identity questions are watched.
            targets: the answers that are taught.
        """
        self.run, self.model, self.encoder = run, model, encoder
        self.engine = Engine(model, encoder.end_ids, encoder.pad_id())
        self.prompts = [encoder.encode_prompt(probe["messages"]) for probe in _first(probes, _WATCHED)]
        self.taught_first = {encoder.tokenizer.encode(target, add_special_tokens=False).ids[0] for target in targets}
        self.base_first = self._first_tokens()
        self.shown = _first(probes, _SHOWN)
        self.reds_in_a_row = 0

    def look(self, update: int) -> str:
        """Record how the model stands after `update`; returns `ok`, `amber` or `red`."""
        began = time.monotonic()
        self.model.eval()
        hijack = share([now in self.taught_first and now != before
                        for now, before in zip(self._first_tokens(), self.base_first, strict=True)])
        level = "red" if hijack >= RED_HIJACK else "amber" if hijack >= AMBER_HIJACK else "ok"
        self.reds_in_a_row = self.reds_in_a_row + 1 if level == "red" else 0
        append_jsonl(self.run.folder / "watch.jsonl", {
            "update": update, "hijack": hijack, "level": level, "answers": self._answers(), "seconds": round(time.monotonic() - began, 3)})
        self.model.train()
        return level

    def _first_tokens(self) -> list[int]:
        """The most probable first token of each prompt's answer."""
        rows = [Row(0, prompt) for prompt in self.prompts]
        first = next(self.engine.stream(rows, 1), []) if rows else []
        return [token for _, token in sorted(first)]

    def _answers(self) -> list[dict[str, Any]]:
        rows = [Row(0, self.encoder.encode_prompt(probe["messages"])) for probe in self.shown]
        answers = self.engine.answer(rows, _SHOWN_TOKENS) if rows else []
        return [{"question": probe["messages"][-1]["content"], "group": probe["group"],
                 "answer": self.encoder.decode(answer.ids).strip() + ("" if answer.ended else " …")}
                for probe, answer in zip(self.shown, answers, strict=True)]


def when_to_look(snapshot_steps: Sequence[int]) -> set[int]:
    """The snapshots at which to look in: evenly many of them, at most nine, the last one always."""
    every = -(-len(snapshot_steps) // _MOST_LOOKS)
    return set(snapshot_steps[::-1][::every]) if every else set()


def reds_in_a_row(run: Run) -> int:
    """How many of the last looks on record were red: what a resumed training has to know."""
    count = 0
    for record in reversed(run.watch()):
        if record["level"] != "red":
            break
        count += 1
    return count


def _first(probes: Sequence[Probe], counts: dict[str, int]) -> list[Probe]:
    """The first so many probes of each group."""
    return [probe for group, count in counts.items() for probe in [item for item in probes if item["group"] == group][:count]]


def forget_after(run: Run, update: int) -> None:
    """Drop what was recorded after `update`: a resumed run records those updates again."""
    for name in ("metrics.jsonl", "watch.jsonl"):
        path = run.folder / name
        if path.exists():
            write_jsonl(path, [record for record in read_jsonl(path) if record["update"] <= update])

