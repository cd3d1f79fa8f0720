"""The jobs that make or extend a dataset, while they run and when they failed."""

from __future__ import annotations

import streamlit as st

from core.data.import_job import count_records
from core.data.importing import REJECTED_FILE
from core.data.store import data_jobs
from core.jobs.active import active_jobs
from core.jobs.folder import Job
from core.workspace import Workspace
from studio.i18n import t
from studio.panels import draw_failure, watch_job


def draw_data_jobs(workspace: Workspace) -> set[str]:
    """A live bar per job at work with a way to end it; why the newest one failed. Returns the names of datasets being made."""
    jobs = data_jobs(workspace)
    ids, names = {job.id for job in jobs}, set()
    for job, state in active_jobs(workspace):
        if job.id in ids or state.kind == "prepare":
            with st.container(border=True, key=f"data_job_{job.id[-4:]}"):
                names.add(_draw_active(job, state.kind))
    if jobs:
        _draw_if_failed(jobs[0])
    return names


def _draw_active(job: Job, kind: str) -> str:
    spec = job.spec()
    name = spec.get("dataset") or spec.get("append_to") or ""
    if kind == "prepare":
        st.markdown(t("data.preparing"))
    else:
        st.markdown(t("data.importing" if kind == "import" else "data.collecting", name=name))
    watch_job(str(job.folder))
    ending = "_import" if kind == "import" else ""
    if kind != "prepare" and st.button(t(f"data.stop{ending}"), icon=":material/stop:", key=f"data_stop_{job.id[-4:]}"):
        job.request_stop()
        st.toast(t(f"data.stopping{ending}"))
    return name


def _draw_if_failed(job: Job) -> None:
    state = job.state()
    dismissed = st.session_state.setdefault("data_dismissed", set())
    if state.state != "failed" or job.id in dismissed:
        return
    draw_failure(state)
    refused = job.folder / REJECTED_FILE
    if refused.exists():
        st.download_button(t("data.download_rejected", count=count_records(refused)), refused.read_bytes,
                           f"{job.spec()['dataset']}-rejected.jsonl", "application/jsonl", icon=":material/download:",
                           key="data_download_refused")
    if st.button(t("data.dismiss"), key="data_dismiss", type="tertiary", icon=":material/close:"):
        dismissed.add(job.id)
        st.rerun()
