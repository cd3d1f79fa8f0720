"""Merge: is the merged model really the one I chose."""

from __future__ import annotations

import streamlit as st

from core.merge.library import merged_models
from core.runs import list_runs
from studio.i18n import t
from studio.merge_panels import chat_models, draw_form, draw_last_merge, draw_models
from studio.panels import go_to, next_step, open_page

workspace = open_page("merge")
runs, models = list_runs(workspace), merged_models(workspace)

if not runs and not models:
    st.info(t("merge.no_runs"), icon=":material/merge:")
    if st.button(t("merge.to_lesson"), type="primary", key="merge_to_lesson"):
        go_to("home")
    st.stop()

is_merging = draw_last_merge(workspace)
if runs and not is_merging:
    draw_form(workspace, runs)
if models:
    merged = draw_models(workspace, models)
    if merged.can_chat:
        next_step("chat", "merge.to_chat", models=chat_models(merged))
