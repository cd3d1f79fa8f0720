"""Wall: how does everybody in the class stand."""

from __future__ import annotations

import streamlit as st

from studio.i18n import t
from studio.panels import open_page, same_command
from studio.people_panels import draw_people, draw_settings
from studio.share_panels import draw_shared
from studio.visitors import class_here, is_teacher
from studio.wall_panels import draw_board, draw_wall
from studio.wall_tools import draw_hand_out, draw_queue, draw_results

VIEWS = ("wall", "board", "shared", "queue", "hand_out", "people")
STUDENT_VIEWS = ("board", "shared")

workspace = open_page("wall")
room = class_here()

if room is None:
    st.info(t("wall.no_class"), icon=":material/groups:")
    same_command("sweetspot studio --class")
    st.stop()
views = VIEWS if is_teacher() else STUDENT_VIEWS
view = st.segmented_control(t("wall.view"), views, default=views[0], key="wall_view", required=True, label_visibility="collapsed",
                            format_func=lambda name: t(f"wall.view_{name}"), persist_state="session")
if view == "wall":
    draw_wall(room)
elif view == "board":
    draw_board(room, is_teacher=is_teacher())
    if is_teacher():
        draw_results(room)
elif view == "shared":
    draw_shared(room, workspace)
elif view == "queue":
    draw_queue(room)
elif view == "hand_out":
    draw_hand_out(room)
else:
    draw_people(room)
    draw_settings(room)
if is_teacher():
    same_command("sweetspot class show\nsweetspot class hand-out --dataset NAME\nsweetspot class collect results.zip")
