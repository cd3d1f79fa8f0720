"""The Class page's wall and leaderboard: every student's curve, state and verdict; a click opens the matrix."""

from __future__ import annotations

import streamlit as st

from core.classroom.room import Classroom
from core.classroom.wall import Standing, leaderboard, read_wall
from core.runs import Run, find_run
from core.workspace import Workspace
from studio.compare_panels import load_matrix
from studio.i18n import plain, t, t_plainly
from studio.matrix import draw_answers, draw_matrix
from studio.panels import STATE_MARKS, errors_in_words

_WALL_SECONDS = 4.0
_COLUMNS, _COLUMNS_PRESENTED = 4, 2
_VERDICT_MARKS = {"recommended": ("verified", "green"), "compromise": ("balance", "orange"), "not_learned": ("hourglass_empty", "gray")}
_OTHER_VERDICT = ("help", "gray")


def draw_wall(room: Classroom) -> None:
    """One card per student, drawn anew every few seconds."""
    is_presented = st.toggle(t("wall.presenter"), key="wall_presenter", help=t("wall.presenter_help"), persist_state="session")
    if not room.students():
        st.info(t("wall.nobody", code=shown_code(room)), icon=":material/person_add:")
    st.fragment(_draw_cards, run_every=_WALL_SECONDS)(room, is_presented)


def shown_code(room: Classroom) -> str:
    """The code of the class as it is written on a board."""
    return spaced(room.settings().code)


def spaced(code: str) -> str:
    """A code in two halves, which are easier to read and to type."""
    return f"{code[:4]}-{code[4:]}"


def _draw_cards(room: Classroom, is_presented: bool) -> None:
    standings = read_wall(room)
    _draw_counts(standings, is_presented)
    width = _COLUMNS_PRESENTED if is_presented else _COLUMNS
    for first in range(0, len(standings), width):
        for column, standing in zip(st.columns(width), standings[first:first + width], strict=False):
            with column, st.container(border=True, height="stretch", key=f"wall_card_{standing.student}"):
                _draw_card(room, standing, is_presented)


def _draw_counts(standings: list[Standing], is_presented: bool) -> None:
    """The class in four numbers."""
    at_work = sum(standing.state in ("queued", "running", "stopping") for standing in standings)
    judged = sum(standing.best is not None for standing in standings)
    found = sum(standing.verdict == "recommended" for standing in standings)
    numbers = {"wall.students": len(standings), "wall.at_work": at_work, "wall.judged": judged, "wall.found": found}
    for column, (key, count) in zip(st.columns(len(numbers)), numbers.items(), strict=True):
        if is_presented:
            with column, st.container(border=True):
                st.title(str(count), anchor=False)
                st.subheader(t(key), anchor=False)
        else:
            column.metric(t(key), count)


def _draw_card(room: Classroom, standing: Standing, is_presented: bool) -> None:
    (st.title if is_presented else st.subheader)(plain(standing.name), anchor=False)
    with st.container(horizontal=True, gap="small"):
        for word, icon, colour in _marks(standing):
            mark = f":material/{icon}:"
            if is_presented:
                st.header(f":{colour}[{mark} {word}]", anchor=False, width="content")
            else:
                st.badge(word, icon=mark, color=colour)
    if standing.kind:
        st.progress(min(1.0, standing.share))
    _draw_curve(standing, is_presented)
    if standing.run is not None and st.button(t("wall.open"), key=f"wall_open_{standing.student}", icon=":material/grid_on:",
                                              type="tertiary", disabled=standing.best is None):
        # In front of the wall, because below thirty cards nobody would see it.
        st.dialog(t("wall.matrix_of", name=standing.name), width="large", icon=":material/grid_on:")(_draw_matrix)(room, standing.student)


def _marks(standing: Standing) -> list[tuple[str, str, str]]:
    """(word, icon, colour) of the state and of the verdict."""
    if standing.state == "nothing":
        return [(t("wall.nothing_yet"), "hourglass_empty", "gray")]
    marks = [(t(f"shell.state_{standing.state}"), *STATE_MARKS[standing.state])]
    if standing.verdict:
        marks.append((t(f"compare.verdict_{standing.verdict}"), *_VERDICT_MARKS.get(standing.verdict, _OTHER_VERDICT)))
    return marks


def _draw_curve(standing: Standing, is_presented: bool) -> None:
    """The score of the newest verdict, or else the last loss, over the curve of the losses."""
    curve = list(standing.losses) if len(standing.losses) > 1 else None  # fewer points are a dot
    if standing.score is None and curve is None:
        return
    label, value = (t_plainly("wall.score"), standing.score) if standing.score is not None else (t_plainly("wall.loss"), curve[-1])
    step = t_plainly("wall.at_step", step=standing.step) if standing.score is not None else None
    if is_presented:  # what a number has around it is too small for the last row
        st.header(plain(" · ".join(filter(None, (label, step)))), anchor=False)
        st.metric(label, f"{value:.2f}", chart_data=curve, chart_type="line", label_visibility="collapsed")
        return
    st.metric(label, f"{value:.2f}", step, delta_color="off", delta_arrow="off", chart_data=curve, chart_type="line")


def _draw_matrix(room: Classroom, slug: str) -> None:
    """Everything that the newest judged run of a student answered."""
    workspace = Workspace(room.folder / slug)
    run = _newest_judged(workspace)
    if run is None:
        st.caption(t("wall.not_judged"))
        return
    with errors_in_words():
        matrix = load_matrix(workspace, find_run(workspace, run.id))
        if matrix is not None:
            draw_matrix(matrix)
            draw_answers(matrix)


def _newest_judged(workspace: Workspace) -> Run | None:
    judged = sorted(path.parent for path in workspace.runs.glob("*/verdict.json"))
    return Run(judged[-1]) if judged else None


def draw_board(room: Classroom, *, is_teacher: bool) -> None:
    """Everybody by their best score. Students see it unless the teacher has hidden it."""
    is_shown = room.settings().leaderboard_is_shown
    if is_teacher:
        shown = st.toggle(t("wall.board_shown"), value=is_shown, key="wall_board_shown", help=t("wall.board_shown_help"))
        if shown != is_shown:
            room.change(leaderboard_is_shown=shown)
    elif not is_shown:
        st.info(t("wall.board_hidden"), icon=":material/visibility_off:")
        return
    ranked = leaderboard(read_wall(room))
    if not ranked:
        st.info(t("wall.board_empty"), icon=":material/leaderboard:")
        return
    place, student, score = t_plainly("wall.place"), t_plainly("wall.student"), t_plainly("wall.score")
    places = [1 + sum(other.best > standing.best for other in ranked) for standing in ranked]  # equal scores share a place
    st.dataframe([{place: number, student: standing.name, score: standing.best} for number, standing in zip(places, ranked, strict=True)],
                 hide_index=True, alt=t_plainly("wall.board_alt"), row_height=48 if is_teacher else None,
                 column_config={
                     place: st.column_config.NumberColumn(width="small"),
                     score: st.column_config.ProgressColumn(min_value=0.0, max_value=1.0, format="%.3f")})
    st.caption(t("wall.score_note"))
