"""Compare: which checkpoint, and why."""

from __future__ import annotations

import streamlit as st

from core.judge.conclude import read_scores
from core.judge.verdict import Verdict
from core.runs import list_runs
from studio.compare_panels import choose_runs, draw_curves, draw_judging, draw_metrics, draw_missing, draw_verdict, load_matrix, was_asked
from studio.compare_reasons import draw_reasons
from studio.i18n import t
from studio.matrix import draw_answers, draw_matrix, draw_own_question
from studio.panels import go_to, next_step, open_page, same_command
from studio.share_panels import draw_share_switch

workspace = open_page("compare")
runs = list_runs(workspace)

if not runs:
    st.info(t("compare.no_runs"), icon=":material/compare_arrows:")
    with st.container(horizontal=True):
        if st.button(t("compare.to_lesson"), type="primary", key="compare_to_lesson"):
            go_to("home")
        if st.button(t("compare.to_train"), key="compare_to_train"):
            go_to("train")
    st.stop()

run, other = choose_runs(runs)
is_judging = draw_judging(workspace, run)
written = run.verdict()
if written is None:
    same_command(f"sweetspot judge {run.id}")
    st.stop()

verdict, scores = Verdict.model_validate(written), read_scores(run)
draw_share_switch(workspace, run)
draw_verdict(workspace, run, verdict, scores)
draw_reasons(verdict)
draw_curves(run, verdict, scores, other)
if was_asked(verdict):
    st.subheader(t("compare.matrix"), anchor=False)
matrix = load_matrix(workspace, run) if was_asked(verdict) else None
if matrix is not None:
    if not is_judging:
        draw_missing(workspace, run, matrix)
    draw_matrix(matrix)
    draw_answers(matrix)
    draw_own_question(workspace, run)
draw_metrics(run, verdict, scores)
same_command(f"sweetspot judge {run.id}\nsweetspot pick {run.id} --step {verdict.pick.step}")
next_step("merge", "compare.to_merge", run=run.id, step=str(verdict.pick.step))
