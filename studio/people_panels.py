"""The people of a class on the Class page: how they come in, who has what, a new code, removing and coming back, and the limits."""

from __future__ import annotations

import streamlit as st

from core.classroom.limits import student_bytes
from core.classroom.removal import Removed, belongings, bring_back, list_removed, remove_student
from core.classroom.room import LONGEST_NAME, Classroom, ClassSettings, Student
from core.workspace import Workspace
from studio.i18n import plain, t, t_plainly
from studio.moments import when
from studio.panels import errors_in_words
from studio.sizes import size_words
from studio.visitors import door
from studio.wall_panels import shown_code, spaced

_WIDTH = 760
_DISK_SECONDS = 30.0  # thirty workspaces are not walked through at every click


def draw_people(room: Classroom) -> None:
    """Who is in the class, and what one can do for or with one of them."""
    st.markdown(t("wall.come_in", code=shown_code(room)))
    _draw_addition(room)
    students = room.students()
    if students:
        _draw_list(room, students, room.settings())
        with st.container(width=_WIDTH):
            _draw_one(room, students)
    _draw_removed(room)


def _draw_list(room: Classroom, students: list[Student], settings: ClassSettings) -> None:
    """One line per student, with what they use of their share of the disk."""
    student, joined, runs, disk = (t_plainly(f"wall.{name}") for name in ("student", "joined", "runs", "disk_used"))
    rows = []
    for one in students:
        workspace = Workspace(room.folder / one.slug)
        rows.append({student: one.name, joined: when(one.joined), runs: sum(1 for _ in workspace.runs.glob("*/spec.json")),
                     disk: student_bytes(workspace, _DISK_SECONDS) / 1e6})
    st.dataframe(rows, hide_index=True, alt=t_plainly("wall.people_alt"), column_config={
        student: st.column_config.TextColumn(width="medium"),
        disk: st.column_config.ProgressColumn(min_value=0.0, max_value=settings.disk_bytes / 1e6, format="%.0f MB")})


def _draw_one(room: Classroom, students: list[Student]) -> None:
    """A new code for one student, or the way out of the class."""
    by_slug = {student.slug: student for student in students}
    if st.session_state.get("wall_whom") not in by_slug:  # removed a moment ago
        st.session_state["wall_whom"] = None
    chosen = st.selectbox(t("wall.whom"), list(by_slug), format_func=lambda slug: by_slug[slug].name, key="wall_whom",
                          placeholder=t_plainly("wall.choose"))
    if chosen is None:
        return
    student = by_slug[chosen]
    with st.container(horizontal=True):
        is_renewed = st.button(t("wall.renew"), key="wall_renew", icon=":material/key:", help=t("wall.renew_help"))
        with st.popover(t("wall.remove"), icon=":material/person_remove:"):
            _draw_removal(room, student)
    if is_renewed:
        with errors_in_words():
            code = room.renew_code(chosen)
            door().sessions.sign_out_everybody(student=chosen)
            st.success(t("wall.renewed", name=student.name, code=spaced(code)), icon=":material/key:")


def _draw_removal(room: Classroom, student: Student) -> None:
    """What would go with a student, and the button that lets it."""
    with errors_in_words():
        has = belongings(room, student.slug)
        st.markdown(t("wall.remove_what", name=student.name, runs=has.runs, datasets=has.datasets, recipes=has.recipes, models=has.models,
                      size=size_words(has.freed_bytes)))
        st.caption(t("wall.remove_note"))
        if st.button(t("wall.remove_now"), key="wall_remove", type="primary", icon=":material/delete:"):
            remove_student(room, student.slug)
            door().sessions.sign_out_everybody(student=student.slug)
            st.toast(t("wall.removed", name=student.name))
            st.rerun()


def _draw_addition(room: Classroom) -> None:
    """Somebody who gets their code from the teacher instead of typing their name first."""
    with st.form("wall_add", clear_on_submit=True, border=False, width=_WIDTH):
        field, button = st.columns([4, 2], vertical_alignment="bottom")
        name = field.text_input(t("wall.add_name"), key="wall_add_name", max_chars=LONGEST_NAME, help=t("wall.add_help"))
        is_sent = button.form_submit_button(t("wall.add"), key="wall_add_now", icon=":material/person_add:", width="stretch")
    if is_sent:
        with errors_in_words():
            student, code = room.join(name)
            st.success(t("wall.added", name=student.name, code=spaced(code)), icon=":material/key:")


def _draw_removed(room: Classroom) -> None:
    """Who was removed and can come back."""
    removed = list_removed(room)
    if not removed:
        return
    with st.container(width=_WIDTH):
        st.markdown(f"**{t('wall.removed_people')}**")
        for one in removed:
            _draw_way_back(room, one)


def _draw_way_back(room: Classroom, removed: Removed) -> None:
    name, button = st.columns([5, 2], vertical_alignment="center")
    name.markdown(f"{plain(removed.student.name)} :small[:gray[{size_words(removed.thrown.freed_bytes)}]]")
    if button.button(t("wall.bring_back"), key=f"wall_back_{removed.thrown.id}", icon=":material/restore_from_trash:"):
        with errors_in_words():
            bring_back(room, removed.student.slug)
            st.rerun()


def draw_settings(room: Classroom) -> None:
    """What one student may use of this machine."""
    settings = room.settings()
    with st.form("wall_limits", width=_WIDTH):
        st.caption(t("wall.limits_note"))
        disk = st.number_input(t("wall.disk"), 0.1, 10_000.0, settings.disk_bytes / 1e9, 0.5, key="wall_disk")
        memory = st.number_input(t("wall.memory"), 0.5, 10_000.0, settings.memory_bytes / 1e9, 0.5, key="wall_memory")
        if st.form_submit_button(t("wall.keep"), icon=":material/save:", key="wall_keep"):
            with errors_in_words():
                room.change(disk_bytes=round(disk * 1e9), memory_bytes=round(memory * 1e9))
                st.success(t("wall.kept"), icon=":material/check:")
