"""The matrix of the Compare page: every answer as a coloured, marked cell, and the answers themselves to read.

What is selected stands in the address (`probe`, `step`, `show`), so a link shows the same; the grid and the two lists follow it.
"""

from __future__ import annotations

import re
from typing import Any

import pandas as pd
import streamlit as st

from core.judge.matrix import GROUPS, READINGS, Matrix, Row, mark_changes, question_of, reference_answer, row_answer, telling_probe
from core.judge.probes import add_probe
from core.runs import Run
from core.train.start import judge_once
from core.workspace import Workspace
from studio.i18n import plain, t, t_plainly
from studio.panels import errors_in_words

# Marks beside colours: a cell must be readable without either.
MARKS = {"hit": "✓", "same": "=", "changed": "≈", "miss": "–", "lost": "?", "fragment": "!", "leak": "✕"}
_BADGES = {"hit": "blue", "same": "gray", "changed": "gray", "miss": "gray", "lost": "yellow", "fragment": "orange", "leak": "red"}
_NEW_WORDS = _BADGES | {"same": "violet", "changed": "violet", "miss": "violet"}  # grey would not be seen from the last row of a room
# Background and text of a cell, apart from each other by more than 4.5:1.
_CELLS = {
    "light": {"hit": ("#0072b2", "#ffffff"), "same": ("#ffffff", "#5b6670"), "changed": ("#dfe5ea", "#3d4852"),
              "miss": ("#f3f5f6", "#5b6670"), "lost": ("#f0e442", "#3a3600"), "fragment": ("#f6c48a", "#4a2a00"),
              "leak": ("#c44e00", "#ffffff"), "": ("#ffffff", "#ffffff")},
    "dark": {"hit": ("#0b6ea8", "#ffffff"), "same": ("#14191f", "#93a0ac"), "changed": ("#2c3742", "#d3dbe2"),
             "miss": ("#1d242c", "#93a0ac"), "lost": ("#7d7406", "#ffffff"), "fragment": ("#8a5410", "#ffffff"),
             "leak": ("#cf5200", "#ffffff"), "": ("#14191f", "#14191f")},
}
_CELL_WIDTH = 29  # pixels: 34 questions fit a wide screen
_LABEL_WIDTH = 132
_GRID = "compare_matrix"
_LINE_BREAKS = re.compile(r"\s*\n\s*")


def draw_matrix(matrix: Matrix) -> None:
    """The grid with its legend. A clicked cell shows its question, a ticked row everything it said."""
    st.caption(t("compare.matrix_note"))
    st.markdown(" ".join(_badge(reading) for reading in READINGS))
    shown = selection(matrix)
    labels = [row_label(row) for row in matrix.rows]
    numbers = [str(number) for number in range(1, len(matrix.probes) + 1)]
    groups = [t_plainly(f"compare.group_{_group(probe)}") for probe in matrix.probes]
    columns = pd.MultiIndex.from_arrays([groups, numbers])
    readings = pd.DataFrame(matrix.readings.to_numpy(), index=labels, columns=columns)
    colours = _CELLS["dark" if st.context.theme.type == "dark" else "light"]
    styles = readings.map(lambda reading: "background-color: {}; color: {}".format(*colours[reading]))
    place = [row.key for row in matrix.rows].index(shown["step"])
    st.session_state[_GRID] = {"selection": {
        "rows": [place] if shown["show"] == "row" else [], "columns": [],
        "cells": [(place, numbers[list(matrix.probe).index(shown["probe"])])] if shown["show"] == "question" else []}}
    st.dataframe(
        readings.map(lambda reading: MARKS.get(reading, "")).style.apply(lambda _: styles, axis=None), key=_GRID, height="content",
        alt=t_plainly("compare.matrix_alt"), selection_mode=["single-cell", "single-row"],
        on_select=lambda: _take_selection(matrix, shown["show"]),
        column_config={0: st.column_config.TextColumn(width=_LABEL_WIDTH, pinned=True)} | {
            place: st.column_config.TextColumn(width=_CELL_WIDTH, alignment="center", help=plain(question_of(probe)))
            for place, probe in enumerate(matrix.probes, start=1)})


def _group(probe: dict[str, Any]) -> str:
    return probe["group"] if probe["group"] in GROUPS else "general"


def _badge(reading: str) -> str:
    return f":{_BADGES[reading]}-badge[{MARKS[reading]} {t(f'compare.reading_{reading}')}]"


def row_label(row: Row) -> str:
    """A row's name, as plain text."""
    if row.kind == "base":
        return t_plainly("compare.row_base")
    if row.kind == "merged":
        kind = "merged" if row.strength == 1.0 else "merged_strength"
        return t_plainly(f"compare.row_{kind}", name=row.name, strength=f"{row.strength:.0%}")
    kind = "_".join(word for word, is_so in (("pick", row.is_pick), ("last", row.is_last)) if is_so) or "step"
    return t_plainly(f"compare.row_{kind}", step=row.step)


def _take_selection(matrix: Matrix, shown: str) -> None:
    """Write what was clicked into the address.

    The grid holds a row or a cell, never both, when it is drawn; whatever is there besides was clicked just now.
    """
    chosen = st.session_state[_GRID]["selection"]
    rows, cells = list(chosen["rows"]), list(chosen["cells"])
    if cells and not (rows and shown == "question"):
        row, number = cells[0]
        st.query_params.update({"show": "question", "probe": matrix.probes[int(number) - 1]["id"], "step": matrix.rows[row].key})
    elif rows:
        st.query_params.update({"show": "row", "step": matrix.rows[rows[0]].key})


def selection(matrix: Matrix) -> dict[str, str]:
    """What the address asks to read, corrected to what there is: `show`, `probe`, `step`."""
    asked = st.query_params
    pick = next((row.key for row in matrix.rows if row.is_pick), matrix.rows[-1].key)
    return {"show": "row" if asked.get("show") == "row" else "question",
            "probe": asked["probe"] if asked.get("probe") in matrix.probe else telling_probe(matrix),
            "step": asked["step"] if asked.get("step") in matrix.row else pick}


def draw_answers(matrix: Matrix) -> None:
    """The answers themselves: one question down all rows, or all that one row said."""
    shown = selection(matrix)
    for name in ("show", "probe", "step"):
        st.session_state[f"compare_{name}"] = shown[name]
    with st.container(horizontal=True, horizontal_alignment="distribute"):
        st.segmented_control(t("compare.show"), ["question", "row"], key="compare_show", required=True, on_change=_keep, args=("show",),
                             format_func=lambda show: t_plainly(f"compare.show_{show}"))
        if shown["show"] == "question":
            st.segmented_control(t("compare.marked_against"), ["above", "base"], default="above", key="compare_against", required=True,
                                 format_func=lambda what: t_plainly(f"compare.against_{what}"))
    if shown["show"] == "row":
        st.selectbox(t("compare.row_box"), list(matrix.row), key="compare_step", on_change=_keep, args=("step",),
                     format_func=lambda key: row_label(matrix.row[key]))
        _draw_row(matrix, shown["step"])
        return
    st.selectbox(t("compare.question_box"), list(matrix.probe), key="compare_probe", on_change=_keep, args=("probe",),
                 format_func=lambda name: f"{t_plainly('compare.group_' + _group(matrix.probe[name]))} · {question_of(matrix.probe[name])}")
    _draw_question(matrix, shown["probe"], shown["step"], st.session_state["compare_against"] == "above")


def _keep(name: str) -> None:
    st.query_params[name] = st.session_state[f"compare_{name}"]


def _draw_question(matrix: Matrix, probe_id: str, step: str, is_above: bool) -> None:
    """One question down all rows; the chosen row stands out."""
    probe = matrix.probe[probe_id]
    st.markdown(f"**{_one_line(question_of(probe))}**")
    if probe.get("expect"):
        st.caption(t("compare.expects", answers=" / ".join(probe["expect"])))
    lines, above = [], None
    for row, answer, reading in matrix.answers_to(probe_id):
        reference = reference_answer(matrix, row, probe_id, above if is_above else None)
        label = plain(row_label(row))
        label = f"**▸ {label}**" if row.key == step else label
        lines.append(f"| {label} | {_badge(reading)} | {_marked(answer, reference, reading)} |")
        above = answer
    _draw_table(("row", "reading", "answer"), lines, "nothing_asked")


def _draw_row(matrix: Matrix, key: str) -> None:
    """Everything one row said; what differs from the base model is marked."""
    lines = [f"| {_one_line(question_of(probe))} | {_badge(reading)} | "
             f"{_marked(answer, row_answer(matrix, '0', probe['id']), reading)} |" for probe, answer, reading in matrix.answers_of(key)]
    _draw_table(("question", "reading", "answer"), lines, "nothing_said")


def _draw_table(columns: tuple[str, ...], lines: list[str], nothing: str) -> None:
    if not lines:
        st.info(t(f"compare.{nothing}"), icon=":material/help:")
        return
    head = "| " + " | ".join(t(f"compare.column_{name}") for name in columns) + " |\n|" + "---|" * len(columns)
    st.markdown("\n".join([head, *lines]), width="stretch")


def _one_line(text: str) -> str:
    """A text of any shape on one line of a markdown table."""
    return plain(_LINE_BREAKS.sub(" ↵ ", text.strip()))


def _marked(answer: str, reference: str, reading: str) -> str:
    """An answer as markdown, with what `reference` lacks on a background in the colour of its reading."""
    if not answer.strip():
        return t("compare.empty_answer")
    parts = []
    for piece in mark_changes(_LINE_BREAKS.sub(" ↵ ", answer.strip()), _LINE_BREAKS.sub(" ↵ ", reference.strip())):
        parts.append(f":{_NEW_WORDS[reading]}-background[{plain(piece.text)}]" if piece.is_new else plain(piece.text))
    return "".join(parts)


def draw_own_question(workspace: Workspace, run: Run) -> None:
    """A form for a question of the reader's own; every snapshot is asked it."""
    st.subheader(t("compare.own_title"), anchor=False)
    with st.form("compare_own", clear_on_submit=True, border=False):
        question, button = st.columns([4, 1], vertical_alignment="bottom")
        text = question.text_input(t("compare.own_question"), key="compare_own_text", placeholder=t_plainly("compare.own_example"))
        is_identity = st.checkbox(t("compare.own_identity"), key="compare_own_identity", help=t("compare.own_identity_help"))
        is_sent = button.form_submit_button(t("compare.own_ask"), key="compare_own_ask", icon=":material/send:", width="stretch")
    st.caption(t("compare.own_note"))
    if is_sent:
        with errors_in_words():
            probe = add_probe(workspace, run, text, is_identity)
            judge_once(workspace, run)
            st.query_params.update({"show": "question", "probe": probe["id"]})
            st.rerun()
