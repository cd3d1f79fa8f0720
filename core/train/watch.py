"""Looking in on a training: does it learn, does it begin to answer everything alike?

A look needs no generation. One pass over a few questions tells how likely the taught answer has become behind its own questions (target
loss) and behind others (leak loss); their difference, the gap, closes when a model collapses. The same pass tells which first word the
model would say. When to look is `core.train.looks`' business, what is alarming `core.train.alerts`'. Now and then, where the time allows, a
few short answers are made as well, for people to read.
"""

from __future__ import annotations

import time
from typing import Any

from transformers import PreTrainedModel

from core.chat.engine import Engine, Row
from core.data.encode import Encoder
from core.judge.forced import Reader, Reading
from core.judge.metrics import share
from core.models.load import can_continue
from core.runs import Run
from core.train.alerts import LIMITS, Limits, level_of, reds_in_a_row
from core.train.looks import LookPace
from core.train.watched import Watched, tokens_of
from core.workspace import append_jsonl, read_jsonl, write_jsonl

_ANSWER_TOKENS = 10
# Generating a token for a few rows costs as much as reading so many: the weights pass through the processor for each.
_STEP_TOKENS = 45
# At most so many times in a run, evenly.
_MOST_ANSWERS = 9


class Watch:
    """The look-in of one training; writes `watch.jsonl`, its first record being the untrained model.

    Looks on record are taken from there and not made again, so that a resumed run decides as it did before.
    """

    def __init__(self, run: Run, model: PreTrainedModel, encoder: Encoder, watched: Watched, pace: LookPace, is_confirmed: bool = False,
                 limits: Limits = LIMITS) -> None:
        """Read what the untrained model would say first.

        Args:
            run: whose folder is written to.
            model: the model in training, not yet trained or restored.
            encoder: of that model.
            watched: what a look reads.
            pace: says when to look.
            is_confirmed: after a first red look, look again after the next update, whatever it costs: something hangs on it.
            limits: of the alert.
        """
        self.run, self.model, self.encoder, self.watched, self.pace, self.limits = run, model, encoder, watched, pace, limits
        self.is_confirmed = is_confirmed
        self.reader = Reader(model, encoder.pad_id())
        self.known = {look["update"]: look for look in run.watch() if "tokens" in look}
        self.looks: list[dict[str, Any]] = []
        if 0 not in self.known:
            self._write(self._begin())
        self.base_first: list[int] = self.known[0]["first"]
        self._take(self.known[0])

    def replay(self, records: list[dict[str, Any]]) -> None:
        """Take over where an earlier life stood; `records` of the updates that are not made again."""
        for record in records:
            self.pace.note_update(record)
            if record["update"] in self.known:
                self._take(self.known[record["update"]])

    def after_update(self, record: dict[str, Any]) -> dict[str, Any] | None:
        """Look in after an update when it is time to.

        Args:
            record: of the update, as in `metrics.jsonl`.

        Returns:
            The look as in `watch.jsonl`; None where there was none.
        """
        update = record["update"]
        self.pace.note_update(record)
        if update not in self.known:
            must = self.is_confirmed and reds_in_a_row(self.looks) == 1
            if update < max(self.known) or not (must or self.pace.is_time(update)):
                return None
            self._write(self._measure(update))
        self._take(self.known[update])
        return self.known[update]

    def _take(self, look: dict[str, Any]) -> None:
        self.pace.note_look(look)
        self.looks.append(look)

    def _write(self, look: dict[str, Any]) -> None:
        append_jsonl(self.run.folder / "watch.jsonl", look)
        self.known[look["update"]] = look

    def _begin(self) -> dict[str, Any]:
        """The record of the untrained model: the first words it would say."""
        began = time.monotonic()
        self.model.eval()
        (readings,) = self.reader.read(self.watched.unanswered)
        return {"update": 0, "first": [reading.first for reading in readings], "target_nll": None, "leak_nll": None, "gap": None,
                "hijack": 0.0, "level": "ok", "answers": [], "tokens": tokens_of(self.watched.unanswered),
                "seconds": round(time.monotonic() - began, 4)}

    def _measure(self, update: int) -> dict[str, Any]:
        """One look, after which the model trains on, whatever came of it."""
        self.model.eval()
        try:
            return self._look(update)
        finally:
            self.model.train()

    def _look(self, update: int) -> dict[str, Any]:
        began = time.monotonic()
        (readings,) = self.reader.read(self.watched.questions)
        own, others = readings[:len(self.watched.own)], readings[len(self.watched.own):]
        target = sum(map(_likeliest, own)) / len(own)
        leak = sum(weight * _likeliest(reading) for weight, reading in zip(self.watched.weights, others, strict=True))
        hijacked = [reading.first in self.watched.taught_first and reading.first != before
                    for reading, before in zip(others, self.base_first, strict=True)]
        gap = round(leak - target, 4)
        level = level_of(target, gap if self.watched.taught_first else None, hijacked, self.limits)
        answers = self._answers() if self._may_answer(update) else []
        return {"update": update, "target_nll": round(target, 4), "leak_nll": round(leak, 4), "gap": gap, "hijack": share(hijacked),
                "level": level, "answers": answers, "tokens": self.watched.tokens + (self._answer_tokens() if answers else 0),
                "seconds": round(time.monotonic() - began, 4)}

    def _answer_tokens(self) -> int:
        return len(self.watched.shown) * _ANSWER_TOKENS + _ANSWER_TOKENS * _STEP_TOKENS

    def _may_answer(self, update: int) -> bool:
        """Whether short answers are due, and paid for, with as much left as the next look costs."""
        last = next((look["update"] for look in reversed(self.looks) if look["answers"]), 0)
        more = 1.0 + self._answer_tokens() / max(1, self.pace.look_tokens)
        is_possible = update > 0 and bool(self.watched.shown) and can_continue(self.reader.model)
        return is_possible and update - last >= self.pace.updates / _MOST_ANSWERS and self.pace.can_pay(more)

    def _answers(self) -> list[dict[str, Any]]:
        engine = Engine(self.reader.model, self.encoder.end_ids, self.encoder.pad_id())
        rows = [Row(0, self.encoder.encode_prompt(probe["messages"])) for probe in self.watched.shown]
        return [{"question": probe["messages"][-1]["content"], "group": probe["group"],
                 "answer": self.encoder.decode(answer.ids).strip() + ("" if answer.ended else " …")}
                for probe, answer in zip(self.watched.shown, engine.answer(rows, _ANSWER_TOKENS), strict=True)]


def _likeliest(reading: Reading) -> float:
    """Loss of the likeliest of the answers that were read, nats per token."""
    return min(loss for number in range(len(reading.log_probs)) if (loss := reading.nll(number)) is not None)


def forget_after(run: Run, update: int) -> None:
    """Drop what was recorded after `update`: a resumed run makes those updates again. Its looks stay: they decided what was saved."""
    path = run.folder / "metrics.jsonl"
    if path.exists():
        write_jsonl(path, [record for record in read_jsonl(path) if record["update"] <= update])
