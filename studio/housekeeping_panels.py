"""The Housekeeping part of the Home page: what takes room, what may go, the trash, and the command that packs everything."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core.classroom.limits import limits_of, student_bytes
from core.classroom.place import student_of
from core.housekeeping.prune import prune, read_room, what_may_go
from core.housekeeping.room import freed_bytes
from core.housekeeping.trash import empty_trash, list_trash, restore
from core.workspace import Workspace
from studio.i18n import language, plain, t
from studio.panels import errors_in_words

_WIDTH = 760
_SHOWN = 8


def draw_housekeeping(workspace: Workspace) -> None:
    """Folded away; the disk is only looked at once it is asked for."""
    with st.expander(t("home.housekeeping"), icon=":material/cleaning_services:"), st.container(width=_WIDTH):
        if not st.toggle(t("home.look_at_disk"), key="home_look_at_disk"):
            st.caption(t("home.look_at_disk_note"))
            return
        _draw_room(workspace)
        _draw_prune(workspace)
        _draw_trash(workspace)
        if not student_of(workspace):  # a student has a browser only; the teacher packs the whole class
            st.caption(t("home.export_note"))
            st.code("sweetspot workspace export everything.tar", language="bash")


@st.cache_data(ttl=20, show_spinner=False)
def _room(root: str) -> dict[str, Any]:
    room = read_room(Workspace.open(root))
    return {**room.__dict__}


def _draw_room(workspace: Workspace) -> None:
    room = _room(str(workspace.root))
    parts = [f"{t(f'home.room_{part}')} {_size(size)}" for part, size in room["by_part"].items() if size >= 1e5]
    limits = limits_of(workspace)  # of a student, whose share counts and not what the disk has
    told = (t("home.room", used=_size(sum(room["by_part"].values())), free=_size(room["free"])) if limits is None
            else t("home.share", used=_size(student_bytes(workspace)), most=_size(limits.disk_bytes)))
    st.markdown(told + "  \n:small[:gray[" + " · ".join(parts) + "]]")


def _draw_prune(workspace: Workspace) -> None:
    found = what_may_go(workspace)
    going = [candidate for candidate in found if candidate.kept_by is None]
    if not going:
        st.markdown(t("home.nothing_to_prune"))
        return
    for candidate in going[:_SHOWN]:
        where = candidate.path.relative_to(workspace.root).as_posix()
        st.markdown(f"- {plain(where)} ({_size(freed_bytes([candidate.path]))}): {plain(candidate.why.to(language()))}")
    if len(going) > _SHOWN:
        st.caption(t("home.and_more", count=len(going) - _SHOWN))
    size = _size(freed_bytes([candidate.path for candidate in going]))
    if st.button(t("home.prune", size=size), key="home_prune", icon=":material/delete:"):
        with errors_in_words():
            prune(workspace, going)
            _room.clear()
            st.rerun()


def _draw_trash(workspace: Workspace) -> None:
    things = list_trash(workspace)
    if not things:
        st.markdown(t("home.trash_is_empty"))
        return
    st.markdown(t("home.trash", count=len(things), size=_size(freed_bytes([thing.folder for thing in things]))))
    for thing in things[-_SHOWN:]:
        name, button = st.columns([5, 2], vertical_alignment="center")
        name.markdown(plain(thing.origin))
        if button.button(t("home.restore"), key=f"home_restore_{thing.id}", icon=":material/restore_from_trash:"):
            with errors_in_words():
                restore(workspace, thing)
                _room.clear()
                st.rerun()
    is_sure = st.checkbox(t("home.trash_sure"), key="home_trash_sure")
    if st.button(t("home.trash_empty"), key="home_trash_empty", icon=":material/delete_forever:", disabled=not is_sure):
        with errors_in_words():
            empty_trash(workspace, things)
            _room.clear()
            st.rerun()


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"
