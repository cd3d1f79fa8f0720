"""The part of the Merge page that takes a model elsewhere: a GGUF file for llama.cpp and Ollama, a folder to publish."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core.convert.publish_job import start_dry_run
from core.convert.start import GGUF_FORMATS, start_gguf
from core.jobs.active import newest_job
from core.jobs.folder import JobState
from core.merge.library import Merged
from core.workspace import Workspace
from studio.i18n import say, t, t_plainly
from studio.panels import draw_failure, errors_in_words, watch_job
from studio.sizes import size_words


def draw_exports(workspace: Workspace, merged: Merged) -> None:
    """Two folds: closed until somebody wants them, or until a job of this model has something to say."""
    gguf = newest_job(workspace, "gguf", model=merged.name)
    with st.expander(t("merge.gguf"), icon=":material/deployed_code:", expanded=gguf is not None):
        st.markdown(t("merge.gguf_what"))
        form = st.selectbox(t("merge.gguf_format"), GGUF_FORMATS, index=GGUF_FORMATS.index("q8_0"), key="merge_gguf_format",
                            format_func=lambda name: t_plainly(f"merge.gguf_{name}"))
        if st.button(t("merge.gguf_start"), icon=":material/deployed_code:", key="merge_gguf_start",
                     disabled=gguf is not None and gguf.state().is_active):
            with errors_in_words():
                start_gguf(workspace, merged.name, form)
                st.rerun()
        st.code(f"sweetspot convert gguf {merged.name} --to {form}", language="bash")
        if gguf is not None:
            _draw_job(str(gguf.folder), gguf.state(), _draw_gguf)
    sent = newest_job(workspace, "publish", model=merged.name)
    with st.expander(t("merge.publish"), icon=":material/publish:", expanded=sent is not None):
        st.markdown(t("merge.publish_what"))
        repository = st.text_input(t("merge.publish_repository"), f"my-name/{merged.name}", key=f"merge_publish_{merged.name}").strip()
        if st.button(t("merge.publish_dry"), icon=":material/description:", key="merge_publish_dry",
                     disabled=sent is not None and sent.state().is_active):
            with errors_in_words():
                start_dry_run(workspace, merged.name, repository)
                st.rerun()
        st.caption(t("merge.publish_send"))
        st.code(f"sweetspot publish {merged.name} {repository or 'org/name'}", language="bash")
        if sent is not None:
            _draw_job(str(sent.folder), sent.state(), _draw_sent)


def _draw_job(folder: str, state: JobState, draw_result: Any) -> None:
    if state.is_active:
        watch_job(folder)
    elif state.state == "failed":
        draw_failure(state)
    elif state.result:
        draw_result(state.result)


def _draw_gguf(result: dict[str, Any]) -> None:
    check = result["check"]
    st.code(result["file"], language=None)
    if check["skipped"]:
        st.warning(t("merge.gguf_unchecked", size=size_words(result["bytes"])), icon=":material/help:")
    else:
        st.success(t("merge.gguf_checked", size=size_words(result["bytes"]), prompts=check["prompts"],
                     share=f"{check['same_choice']:.1%}", difference=f"{check['largest_difference']:.2g}",
                     spread=f"{check['spread']:.2g}"), icon=":material/verified:")
    for note in result["notes"]:
        st.warning(say(note), icon=":material/info:")


def _draw_sent(result: dict[str, Any]) -> None:
    if result["sent"]:
        st.success(t("merge.publish_sent", repository=result["repository"]), icon=":material/verified:")
        return
    st.info(t("merge.publish_ready", repository=result["repository"], count=len(result["files"]), size=size_words(result["bytes"])),
            icon=":material/description:")
    st.code(result["folder"], language=None)
