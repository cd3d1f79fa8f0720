"""Every answer of a run in one table. No torch.

Rows are the base model, each snapshot and the models merged from one; columns are the probes.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import pandas as pd

from core.data.library import GENERAL, HELD_OUT, IDENTITY, NEAR
from core.judge.probes import OWN, counted, probes_of
from core.judge.scoring import classify, read_sheets
from core.judge.taught import Taught, taught_by
from core.merge.library import merged_models
from core.runs import Run
from core.workspace import Workspace

GROUPS = (IDENTITY, HELD_OUT, NEAR, GENERAL, OWN)
# How an answer reads (see `classify`), from good to bad.
READINGS = ("hit", "same", "changed", "miss", "lost", "fragment", "leak")

# A space with the letters after it, or one ideograph: what changed is marked by these.
_PIECE = re.compile(r"\s*(?:[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+)|\s+")


@dataclass(frozen=True)
class Row:
    """One line of the matrix.

    Attributes:
        key: `0`, a step's number, or `merged:NAME`; stands in addresses.
        step: the step it is or was merged from.
        name: of a merged model.
    """

    key: str
    kind: Literal["base", "snapshot", "merged"]
    step: int
    name: str = ""
    strength: float = 1.0
    is_pick: bool = False
    is_last: bool = False


@dataclass(frozen=True)
class Matrix:
    """All answers of a run.

    Attributes:
        rows: base, snapshots ascending, merged models.
        probes: the questions in the order of GROUPS.
        answers: row keys x probe ids -> text; NaN where not asked yet.
        readings: the same shape -> one of READINGS; empty where not asked yet.
    """

    rows: list[Row]
    probes: list[dict[str, Any]]
    answers: pd.DataFrame
    readings: pd.DataFrame

    @cached_property
    def row(self) -> dict[str, Row]:
        return {row.key: row for row in self.rows}

    @cached_property
    def probe(self) -> dict[str, dict[str, Any]]:
        return {probe["id"]: probe for probe in self.probes}

    @property
    def missing(self) -> int:
        """Answers that a judging would still ask of the base and the snapshots."""
        asked = [row.key for row in self.rows if row.kind != "merged"]
        return int(self.answers.loc[asked].isna().sum().sum())

    def answers_to(self, probe_id: str) -> list[tuple[Row, str, str]]:
        """One question down all rows that answered it: row, answer, reading."""
        return [(row, self.answers.at[row.key, probe_id], self.readings.at[row.key, probe_id]) for row in self.rows
                if self.readings.at[row.key, probe_id]]

    def answers_of(self, key: str) -> list[tuple[dict[str, Any], str, str]]:
        """Everything one row said: probe, answer, reading."""
        return [(probe, self.answers.at[key, probe["id"]], self.readings.at[key, probe["id"]]) for probe in self.probes
                if self.readings.at[key, probe["id"]]]


def question_of(probe: dict[str, Any]) -> str:
    return str(probe["messages"][-1]["content"])


def read_matrix(workspace: Workspace, run: Run) -> Matrix:
    """Everything that the run's models answered so far, read as the verdict reads it.

    Raises:
        StudioError: the dataset with the probes is gone.
    """
    dataset, probes = probes_of(workspace, run)
    probes = sorted(probes, key=lambda probe: GROUPS.index(probe["group"]) if probe["group"] in GROUPS else len(GROUPS))
    rows, texts = _rows(workspace, run)
    ids, keys = [probe["id"] for probe in probes], [row.key for row in rows]
    answers = pd.DataFrame([[texts[key].get(name) for name in ids] for key in keys], index=keys, columns=ids, dtype=object)
    reader = _Reader(run, rows, taught_by(dataset, counted(probes)), texts)
    readings = pd.DataFrame([[reader.read(key, probe) for probe in probes] for key in keys], index=keys, columns=ids, dtype=object)
    return Matrix(rows, probes, answers, readings)


class _Reader:
    """How answers read; the same answer to the same question is read once."""

    def __init__(self, run: Run, rows: Sequence[Row], taught: Taught, texts: dict[str, dict[str, str]]) -> None:
        self.taught, self.texts = taught, texts
        self.sheets = read_sheets(run, [row.step for row in rows if row.kind != "merged"])
        self.passed = {(name, sheet.texts.get(name, "")): passed for sheet in self.sheets.values() for name, passed in sheet.passed.items()}
        self.known: dict[tuple[str, str, str], str] = {}

    def read(self, key: str, probe: dict[str, Any]) -> str:
        """One of READINGS; empty when the row, or the base model, has not answered."""
        name = probe["id"]
        answer, base = self.texts[key].get(name), self.texts["0"].get(name)
        if answer is None or base is None:
            return ""
        own = probe["group"] == HELD_OUT and key.isdecimal()  # there the step's likelihoods may count too
        known = (name, answer, key if own else "")
        if known not in self.known:
            before, now = (self.sheets[step].forced.get(name) if own else None for step in (0, int(key) if own else 0))
            self.known[known] = classify(probe, answer, base, self.taught, self.passed.get((name, answer)),
                                         (now.nll, before.nll) if now and before else (None, None))
        return self.known[known]


def _rows(workspace: Workspace, run: Run) -> tuple[list[Row], dict[str, dict[str, str]]]:
    """The rows, and what each answered by probe id."""
    verdict = run.verdict()
    pick = verdict["pick"]["step"] if verdict else None
    steps = [checkpoint.step for checkpoint in run.checkpoints()]
    rows = [Row("0", "base", 0)]
    rows += [Row(str(step), "snapshot", step, is_pick=step == pick, is_last=step == steps[-1]) for step in steps]
    texts: dict[str, dict[str, str]] = {row.key: {} for row in rows}
    for record in run.answers():
        if str(record["step"]) in texts:
            texts[str(record["step"])][record["probe"]] = record["text"]
    for merged in merged_models(workspace, run.id):
        answered = merged.report["verification"].get("answers")
        if answered:
            rows.append(Row(f"merged:{merged.name}", "merged", merged.step, merged.name, merged.strength))
            texts[rows[-1].key] = answered
    return rows, texts


class Piece(NamedTuple):
    """A run of characters of an answer, and whether the other answer lacks it."""

    text: str
    is_new: bool


def mark_changes(answer: str, other: str) -> list[Piece]:
    """`answer` in pieces: what it shares with `other`, word by word, and what is new in it."""
    own, old = _PIECE.findall(answer), _PIECE.findall(other)
    same = difflib.SequenceMatcher(None, [piece.strip().lower() for piece in old], [piece.strip().lower() for piece in own], autojunk=False)
    pieces: list[Piece] = []
    for what, _, _, start, end in same.get_opcodes():
        text = "".join(own[start:end])
        if not text:
            continue
        is_new = what != "equal"
        lead = text[: len(text) - len(text.lstrip())] if is_new else ""  # the gap before a new word is not new
        if lead:
            pieces = _joined(pieces, Piece(lead, False))
        pieces = _joined(pieces, Piece(text[len(lead):], is_new))
    return pieces


def _joined(pieces: Sequence[Piece], piece: Piece) -> list[Piece]:
    """`pieces` with one more; two of a kind become one."""
    if pieces and pieces[-1].is_new == piece.is_new:
        return [*pieces[:-1], Piece(pieces[-1].text + piece.text, piece.is_new)]
    return [*pieces, piece] if piece.text else list(pieces)


def count_readings(matrix: Matrix, key: str) -> dict[str, int]:
    """How often each reading occurs in a row, in the order of READINGS; readings that do not occur are left out."""
    counts = matrix.readings.loc[key].value_counts()
    return {reading: int(counts[reading]) for reading in READINGS if reading in counts}


def telling_probe(matrix: Matrix) -> str:
    """The question worth reading first: one that spills at the end but not in the pick, else one that spills at all, else the first."""
    pick = next((row.key for row in matrix.rows if row.is_pick), None)
    last = next((row.key for row in matrix.rows if row.is_last), "0")
    spilled = [name for name in matrix.readings.columns if matrix.readings.at[last, name] == "leak"]
    saved = [name for name in spilled if pick and matrix.readings.at[pick, name] not in ("leak", "fragment", "lost")]
    return [*saved, *spilled, *matrix.readings.columns][0]


def reference_answer(matrix: Matrix, row: Row, probe_id: str, above: str | None) -> str:
    """What a row's answer is compared with: `above`, the answer in the row before it; a merged model's is its snapshot's."""
    source = str(row.step)
    if row.kind == "merged" and source in matrix.row and matrix.readings.at[source, probe_id]:
        return str(matrix.answers.at[source, probe_id])
    return row_answer(matrix, "0", probe_id) if above is None else above


def row_answer(matrix: Matrix, key: str, probe_id: str) -> str:
    """The answer of a row; empty when it was not asked."""
    return str(matrix.answers.at[key, probe_id]) if matrix.readings.at[key, probe_id] else ""
