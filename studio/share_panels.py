"""What the class shows each other: a switch beside a verdict of one's own, and on the Class page the list of what is shown."""

from __future__ import annotations

import streamlit as st

from core.classroom.room import Classroom
from core.classroom.sharing import SharedRun, find_shared, share_run, shared_ids, shared_runs, take_recipe
from core.errors import StudioError
from core.runs import Run
from core.workspace import Workspace
from studio.compare_panels import load_matrix
from studio.i18n import explain, say, t, t_plainly
from studio.matrix import draw_answers, draw_matrix
from studio.panels import errors_in_words, go_to
from studio.visitors import class_here


def draw_share_switch(workspace: Workspace, run: Run) -> None:
    """On a judged run of one's own: whether the class may see it. Nothing where there is no class."""
    if class_here() is None:
        return
    is_shared = run.id in shared_ids(workspace)
    wanted = st.toggle(t("wall.share"), value=is_shared, key=f"wall_share_{run.id}", help=t("wall.share_help"))
    if wanted != is_shared:
        with errors_in_words():
            share_run(workspace, run, wanted)


def draw_shared(room: Classroom, workspace: Workspace) -> None:
    """Everything that the class is shown; one of them with its verdict and every answer."""
    shown = {(shared.slug, shared.run.id): shared for shared in shared_runs(room)}
    if not shown:
        st.info(t("wall.shared_empty"), icon=":material/visibility:")
        return
    chosen = st.selectbox(t("wall.shared_run"), list(shown), format_func=lambda key: _label(shown[key]), key="wall_shared_run")
    try:
        shared = find_shared(room, *chosen)
    except StudioError as error:
        st.error(explain(error), icon=":material/error:")
        return
    with st.container(border=True):
        st.markdown(f"#### {say(shared.verdict.reason)}")
        st.markdown(f"{say(shared.verdict.before)} {say(shared.verdict.after)}")
        _draw_recipe(shared, workspace)
    with errors_in_words():
        matrix = load_matrix(shared.workspace, shared.run)
        if matrix is not None:
            draw_matrix(matrix)
            draw_answers(matrix)


def _draw_recipe(shared: SharedRun, workspace: Workspace) -> None:
    """A copy of its recipe, unless it is one's own run."""
    if shared.workspace == workspace:
        st.caption(t("wall.shared_own"))
        return
    if st.button(t("wall.take_recipe"), key="wall_take_recipe", icon=":material/content_copy:", help=t("wall.take_recipe_help")):
        with errors_in_words():
            go_to("recipe", recipe=take_recipe(shared, workspace))


def _label(shared: SharedRun) -> str:
    """Whose it is, its verdict and its score; plain text, as an option of a list is."""
    return t_plainly("wall.shared_label", name=shared.name or t_plainly("shell.role_teacher"), title=shared.title or shared.run.id,
                     verdict=t_plainly(f"compare.verdict_{shared.verdict.verdict}"), score=f"{shared.verdict.pick.score:.2f}")
