"""Chat: do I believe it; the same question to all models, and who really answered."""

from __future__ import annotations

import streamlit as st

from core.chat.choices import list_choices
from studio.chat_panels import choose_models, draw_busy, draw_settings, prepare_first, same_chat_command
from studio.chat_talk import answer_live, draw_talk, draw_talk_actions, take_question
from studio.panels import open_page

workspace = open_page("chat")
choices = list_choices(workspace)
if not choices:
    prepare_first(workspace)
    st.stop()

models = choose_models(workspace, choices)
draw_busy(workspace)
settings = draw_settings(workspace)
draw_talk_actions(workspace)
talk = st.container()
same_chat_command(models, settings)
take_question(workspace, models, settings)
with talk:
    draw_talk(workspace, models, choices)
    answer_live(workspace, choices)
