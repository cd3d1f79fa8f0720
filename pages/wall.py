"""Wall: how does everybody in the class stand."""

from __future__ import annotations

import streamlit as st

from studio.i18n import t
from studio.panels import open_page, same_command
from studio.visitors import class_here, is_teacher
from studio.wall_panels import draw_board, draw_wall
from studio.wall_tools import draw_hand_out, draw_people, draw_queue, draw_results, draw_settings

VIEWS = ("wall", "board", "queue", "hand_out", "people")

workspace = open_page("wall")
room = class_here()

if room is None:
    st.info(t("wall.no_class"), icon=":material/groups:")
    same_command("sweetspot studio --class")
    st.stop()
if not is_teacher():
    draw_board(room, is_teacher=False)
    st.stop()

view = st.segmented_control(t("wall.view"), VIEWS, default="wall", key="wall_view", required=True, label_visibility="collapsed",
                            format_func=lambda name: t(f"wall.view_{name}"), persist_state="session")
if view == "wall":
    draw_wall(room)
elif view == "board":
    draw_board(room, is_teacher=True)
    draw_results(room)
elif view == "queue":
    draw_queue(room)
elif view == "hand_out":
    draw_hand_out(room)
else:
    draw_people(room)
    draw_settings(room)
same_command("sweetspot class show\nsweetspot class hand-out --dataset NAME\nsweetspot class collect results.zip")
