"""The part of the Compare page for a run without a good snapshot: what helps, what was measured of it, and a button for each."""

from __future__ import annotations

import streamlit as st

from core.jobs.active import newest_job
from core.jobs.folder import Job
from core.judge.remedies import Remedy, average_request, dataset_of, remedies
from core.judge.remedy_recipes import collect_replay, half_rate_recipe, keep_recipe, replay_recipe, replay_source
from core.judge.strengths import newest_scan, scans_of, start_scan
from core.judge.verdict import Verdict
from core.merge.library import start_request
from core.recipe.schema import Recipe
from core.runs import Run
from core.workspace import Workspace
from studio.i18n import plain, say, t
from studio.panels import draw_failure, errors_in_words, go_to, watch_job


def draw_remedies(workspace: Workspace, run: Run, verdict: Verdict) -> None:
    """Ways out, best first, each with what was measured and its button; nothing for a run with a good snapshot."""
    found = remedies(workspace, run, verdict.model_dump())
    if not found:
        return
    with st.container(border=True):
        st.markdown(f"**{t('compare.remedies')}**")
        for entry in found:
            with st.container(horizontal=True, vertical_alignment="center", key=f"compare_remedy_row_{entry.name}"):
                st.markdown(f"**{t(f'compare.remedy_{entry.name}')}** {say(entry.what)}  \n:small[{say(entry.effect)}] "
                            f":small[:gray[{t('compare.remedy_own' if entry.is_own else 'compare.remedy_study')}]]", width="stretch")
                _draw_button(workspace, run, verdict, entry, is_first=entry is found[0])
            _draw_job(workspace, run, verdict, entry)


def _draw_button(workspace: Workspace, run: Run, verdict: Verdict, entry: Remedy, is_first: bool) -> None:
    """What is one click away: a merge, a recipe, or a job."""
    name = "merge" if entry.name in ("earlier", "strength") and entry.reference else entry.name
    if not st.button(t(f"compare.remedy_{name}_do"), key=f"compare_remedy_{entry.name}", icon=":material/healing:",
                     type="primary" if is_first else "secondary"):
        return
    with errors_in_words():
        if entry.name == "earlier":
            go_to("merge", run=run.id, step=str(verdict.pick.step))
        elif entry.name == "strength" and entry.reference:
            scan = next(scan for scan in scans_of(run) if scan.reference == entry.reference)
            go_to("merge", run=run.id, step=str(scan.step), strength=f"{scan.strength:g}")
        elif entry.name == "strength":
            start_scan(workspace, run, str(verdict.last.step))
            st.rerun()
        elif entry.name == "replay" and replay_source(workspace, run) is None:
            collect_replay(workspace, run)
            st.rerun()
        elif entry.name == "replay":
            _open_recipe(workspace, run, replay_recipe(workspace, run), "replay")
        elif entry.name == "average":
            start_request(workspace, average_request(workspace, run))
            go_to("merge", run=run.id)
        elif entry.name == "rate":
            _open_recipe(workspace, run, half_rate_recipe(run), "half-rate")
        else:
            go_to("recipe", dataset=dataset_of(run))


def _open_recipe(workspace: Workspace, run: Run, recipe: Recipe, suffix: str) -> None:
    go_to("recipe", recipe=keep_recipe(workspace, run, recipe, suffix))


def _draw_job(workspace: Workspace, run: Run, verdict: Verdict, entry: Remedy) -> None:
    """The job behind a remedy, while it runs or when it failed; and the way to talk to what came of it."""
    job: Job | None = None
    if entry.name == "strength":
        job = newest_scan(workspace, run, verdict.last.step)
        if entry.reference and st.button(t("compare.remedy_chat", model=entry.reference), key="compare_remedy_chat",
                                         icon=":material/forum:", type="tertiary"):
            go_to("chat", models=f"{run.recipe().model.source},{entry.reference}")
    elif entry.name == "replay":
        job = newest_job(workspace, "replay", append_to=dataset_of(run))
    state = job.state() if job is not None else None
    if job is not None and state is not None and state.is_active:
        watch_job(str(job.folder))
    elif state is not None and state.state == "failed":
        draw_failure(state)


def draw_good_step(run: Run) -> None:
    """The name of the last good snapshot of a run that the alert ended."""
    if (run.state().result or {}).get("stopped_by_alert"):
        good = run.good_step()
        st.caption(t("compare.good_step", good=good, name=plain(f"{run.id}@good")) if good else t("compare.no_good_step"))
