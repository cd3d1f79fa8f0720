"""Train: is it learning, is it starting to break, how long still, may I close the lid."""

from __future__ import annotations

import streamlit as st

from core.runs import list_runs
from studio.i18n import t
from studio.panels import open_page, same_command
from studio.session import RECIPE
from studio.train_panels import choose_run, draw_actions, draw_answers, draw_curves, draw_judging, draw_log, draw_standing
from studio.train_start import ask_what_to_train

workspace = open_page("train")
runs = list_runs(workspace)

if not runs:
    ask_what_to_train(workspace)
    st.stop()

another = st.expander(t("train.another"), icon=":material/add:", key="train_another", on_change="rerun",
                      expanded=RECIPE in st.query_params)  # a link from the Recipe page opens the form
if another.open:
    with another:
        ask_what_to_train(workspace)
choice, actions = st.columns([3, 2], vertical_alignment="bottom")
with choice:
    run = choose_run(workspace, runs)
with actions:
    draw_actions(workspace, run)
state = run.state()
is_active = state.is_active
draw_standing(run, state)
if not is_active:
    draw_judging(workspace, run)
# Nothing of these changes while the run waits for its turn; when it begins the page is drawn anew.
is_at_work = is_active and state.state != "queued"
draw_curves(run, is_active, is_at_work)
draw_answers(run, is_at_work)
draw_log(run, is_at_work)
same_command(f"sweetspot train {run.folder / 'recipe.yaml'}\nsweetspot run follow {run.id}")
