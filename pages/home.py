"""Home: where am I, what can this machine do, what is running."""

from __future__ import annotations

import streamlit as st

from core.lesson import newest_lesson
from core.runs import list_runs
from studio.home_panels import ask_for_name, draw_lesson, draw_machine, draw_recent_runs
from studio.housekeeping_panels import draw_housekeeping
from studio.i18n import language, t
from studio.panels import open_page, same_command

workspace = open_page("home")
lesson = newest_lesson(workspace)

if lesson is None:
    ask_for_name(workspace)
else:
    draw_lesson(workspace, lesson)
    with st.expander(t("home.another"), icon=":material/add:"):
        ask_for_name(workspace)
if lesson is not None or list_runs(workspace):
    draw_recent_runs(workspace)
draw_machine(workspace)
draw_housekeeping(workspace)
same_command(f"sweetspot lesson --name Alex --lang {language()}")
