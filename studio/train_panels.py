"""The parts of the Train page about one run: how it stands, its curves, what it answers, what one may do with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from core.figures.training import training_figure
from core.jobs.active import active_jobs
from core.jobs.folder import JobState
from core.recipe.files import presets
from core.runs import Run
from core.train.create import describe_resume
from core.train.metrics import GrowingRecords, answer_history, find_alert, read_snapshots, watch_cost
from core.train.start import is_in_lesson, judge_once, newest_judging
from core.train.steer import delete_run, discard_run, folder_bytes, resume_run
from core.workspace import Workspace
from studio.i18n import plain, say, say_plainly, t, t_plainly
from studio.moments import clock, duration, when
from studio.panels import (
    POLL_SECONDS,
    current_run_name,
    draw_failure,
    draw_progress,
    draw_state,
    draw_waiting,
    errors_in_words,
    go_to,
    state_word,
    watch_job,
)
from studio.session import RUN
from studio.visitors import open_workspace

_LOG_LINES = 200
_ANSWERS_SHOWN = 5
_BEFORE_STATE = " · "  # in the list of runs; no run has it in its name
_SHORTEST_SPAN = 0.5  # updates; less than this is a click, not a selection
_GROUP_COLOURS = {"identity": "blue", "near": "orange", "general": "gray"}


@st.cache_resource(max_entries=32, show_spinner=False)
def _records_of(path: str) -> GrowingRecords:
    """One reader per run for all sessions: each look at a growing file reads only what is new."""
    return GrowingRecords(Path(path) / "metrics.jsonl")


def choose_run(workspace: Workspace, runs: Sequence[Run]) -> Run:
    """The run in the address, or the newest; choosing another writes the address."""
    ids = [run.id for run in runs]
    asked = current_run_name()
    if asked and asked not in ids:
        st.warning(t("train.no_such_run", run=asked), icon=":material/search_off:")
    st.session_state["train_run"] = asked if asked in ids else ids[0]
    words = {job.id: state_word(state) for job, state in active_jobs(workspace)}
    chosen = st.selectbox(t("train.run"), ids, key="train_run", on_change=_keep_run,
                          format_func=lambda name: f"{name}{_BEFORE_STATE}{words[name]}" if name in words else name)
    return runs[ids.index(_id_in(chosen))]


def _keep_run() -> None:
    st.query_params[RUN] = _id_in(st.session_state["train_run"])


def _id_in(option: str) -> str:
    """The run of an option. A browser sends the words it shows: where a run's state has changed since, they are no option any more, and
    Streamlit hands them on as they are.
    """
    return option.partition(_BEFORE_STATE)[0]


def _open(folder: str) -> Run:
    """The run of a live panel; the whole page draws itself anew when somebody deleted it meanwhile."""
    run = Run(Path(folder))
    if not (run.folder / "spec.json").exists():
        st.rerun()
    return run


def draw_standing(run: Run, drawn: JobState) -> None:
    """State, progress and the numbers of now; live while the run is at work.

    Args:
        run: which run.
        drawn: the state that the rest of the page shows; the whole page is drawn anew when it changes.
    """
    st.fragment(_draw_standing_now, run_every=POLL_SECONDS if drawn.is_active else None)(str(run.folder), drawn.state)


def _draw_standing_now(folder: str, drawn: str) -> None:
    run = _open(folder)
    state = run.state()
    if state.state != drawn:
        st.rerun()
    sources = ", ".join(dict.fromkeys(source["dataset"] for source in run.dataset()["sources"]))
    with st.container(horizontal=True, vertical_alignment="center"):
        draw_state(state)
        st.caption(t("train.about", recipe=_title_of(run), dataset=sources, device=state.device, when=when(state.created)),
                   width="content")
    if state.state == "queued":
        draw_waiting(open_workspace(), run, state)
    elif state.is_active:
        draw_progress(state)
    else:
        _say_how_it_ended(run, state)
    if state.is_active:
        st.caption(t("shell.safe_to_close"))
    _draw_numbers(run, state)
    _draw_alert(run, state)


@st.cache_data(max_entries=500, show_spinner=False)
def _written_title(folder: str) -> str | None:
    """The title in a run's frozen recipe, which never changes."""
    return Run(Path(folder)).recipe().title


def _title_of(run: Run) -> str:
    """The title of the run's recipe; a preset's is said in the reader's language."""
    title = _written_title(str(run.folder))
    return next((say_plainly(preset.title) for preset in presets() if str(preset.title) == title), title or "-")


def _say_how_it_ended(run: Run, state: JobState) -> None:
    """One sentence for each way a run can end."""
    values = {"done": state.progress.done, "total": run.spec()["updates"], "snapshots": len(run.checkpoints())}
    if state.state == "finished" and (state.result or {}).get("stopped_by_alert"):
        good = run.good_step()
        st.warning(t("train.ended_by_alert", **values) + " " + (
            t("train.good_step", good=good, name=f"{run.id}@good") if good else t("train.no_good_step")), icon=":material/front_hand:")
    elif state.state == "finished":
        seconds = (state.ended or state.created) - (state.started or state.created)
        st.success(t("train.ended_well", duration=duration(seconds), **values), icon=":material/check_circle:")
    elif state.state == "stopped":
        st.info(t("train.ended_by_you", **values), icon=":material/stop_circle:")
    else:
        draw_failure(state)
        st.caption(t("train.ended_badly", **values))


def _draw_numbers(run: Run, state: JobState) -> None:
    """Loss, speed and memory of the last update."""
    records = _records_of(str(run.folder)).read()
    if not records:
        if state.state == "running":
            st.caption(t("train.before_first_update"))
        return
    last = records[-1]
    update, loss, speed, memory = st.columns(4)
    update.metric(t("train.update", total=run.spec()["updates"]), last["update"], border=True, help=t("train.update_help"))
    loss.metric(t("train.loss"), f"{last['loss']:.3f}", border=True, help=t("train.loss_help"))
    speed.metric(t("train.speed"), f"{last['tokens_per_second']:,.0f}", border=True, help=t("train.speed_help"))
    memory.metric(t("train.memory"), f"{last['memory_bytes'] / 1e9:.1f} GB", border=True, help=t("train.memory_help"))
    cost = watch_cost(records, run.watch())
    if cost is not None:
        st.caption(t("train.watch_cost", looks=cost.looks, duration=duration(cost.seconds), percent=f"{100 * cost.share:.0f}"),
                   help=t("train.watch_cost_help"))


def _draw_alert(run: Run, state: JobState) -> None:
    """Say aloud that the model begins to answer everything alike."""
    alert = find_alert(run.watch())
    if alert is None:
        return
    by = "" if alert.gap is None else "_by_gap"
    words = t(f"train.alert_{alert.level}{by}", since=alert.since, update=alert.update, percent=round(100 * alert.hijack),
              gap=f"{alert.gap or 0:.2f}")
    if not state.is_active:
        st.warning(f"{words} {t('train.alert_ended', since=alert.since)}", icon=":material/warning:")
    elif alert.level == "red":
        st.error(f"{words} {t('train.alert_stop')}", icon=":material/crisis_alert:")
    else:
        st.warning(f"{words} {t('train.alert_stop')}", icon=":material/warning:")


def draw_actions(workspace: Workspace, run: Run) -> None:
    """What one may do with the run as it stands."""
    state = run.state()
    with st.container(horizontal=True, horizontal_alignment="right", gap="xsmall"):
        if state.state in ("queued", "running") and st.button(t("train.stop_and_save"), icon=":material/stop:", key="train_stop",
                                                              help=t("train.stop_and_save_help")):
            run.request_stop()
            st.rerun()
        if state.is_active and st.button(t("train.stop_and_discard"), icon=":material/delete:", key="train_discard", type="tertiary"):
            _confirm_discard(run)
        if state.state in ("stopped", "failed"):
            _offer_resume(workspace, run)
        if not state.is_active and st.button(t("train.delete"), icon=":material/delete:", key="train_delete", type="tertiary"):
            _confirm_delete(run)
    if state.state == "stopping":
        st.caption(t("train.stopping"))


def _offer_resume(workspace: Workspace, run: Run) -> None:
    kept = describe_resume(run)
    label = t("train.resume", step=kept) if kept else t("train.restart")
    if st.button(label, icon=":material/play_arrow:", key="train_resume", help=t("train.resume_help")):
        with errors_in_words():
            resume_run(workspace, run)
            st.rerun()


def _confirm_discard(run: Run) -> None:
    st.dialog(t("train.discard_title"))(_discard_dialog)(run)


def _discard_dialog(run: Run) -> None:
    st.markdown(t("train.discard_question", run=run.id, snapshots=len(run.checkpoints())))
    _confirm_buttons("train_discard", t("train.discard_yes"), lambda: discard_run(run))


def _confirm_delete(run: Run) -> None:
    st.dialog(t("train.delete_title"))(_delete_dialog)(run)


def _delete_dialog(run: Run) -> None:
    st.markdown(t("train.delete_question", run=run.id, size=round(folder_bytes(run) / 1e6), snapshots=len(run.checkpoints())))
    _confirm_buttons("train_delete", t("train.delete_yes"), lambda: delete_run(run))


def _confirm_buttons(key: str, yes: str, act: Any) -> None:
    """Do it or leave it; afterwards the page shows the newest run."""
    with st.container(horizontal=True):
        is_sure = st.button(yes, type="primary", icon=":material/delete:", key=f"{key}_yes")
        if st.button(t("train.keep"), key=f"{key}_no"):
            st.rerun()
    if is_sure:
        with errors_in_words(), st.spinner(t("train.being_deleted")):
            act()
            st.query_params.pop(RUN, None)
            st.rerun()


def draw_judging(workspace: Workspace, run: Run) -> None:
    """After the end: ask every snapshot, watch it being done, then on to Compare."""
    if not run.checkpoints():
        st.info(t("train.nothing_to_judge"), icon=":material/info:")
        return
    job, verdict = newest_judging(workspace, run), run.verdict()
    state = job.state() if job else None
    if job is not None and state is not None and state.is_active:
        with st.container(border=True):
            st.markdown(t("train.judging"))
            watch_job(str(job.folder))
        return
    if state is not None and state.state == "failed":
        draw_failure(state)
    if verdict is not None:
        with st.container(border=True):
            st.markdown(f"**{t('train.verdict')}** {say(verdict['reason'])}")
            if st.button(t("train.to_compare"), type="primary", icon=":material/arrow_forward:", key="train_to_compare"):
                go_to("compare", run=run.id)
        return
    if is_in_lesson(workspace, run):
        st.info(t("train.lesson_judges"), icon=":material/school:")
        return
    with st.container(border=True):
        st.markdown(t("train.judge_question", snapshots=len(run.checkpoints())))
        if st.button(t("train.judge"), type="primary", icon=":material/gavel:", key="train_judge"):
            with errors_in_words():
                judge_once(workspace, run)
                st.rerun()


def draw_curves(run: Run, is_active: bool, is_at_work: bool) -> None:
    """Loss, learning rate, speed and memory over the updates.

    Args:
        is_active: curves may come yet; they do once `is_at_work`.
    """
    if not is_active and not _records_of(str(run.folder)).read():
        return
    with st.container(horizontal=True, vertical_alignment="bottom", horizontal_alignment="distribute"):
        st.subheader(t("train.curves"), anchor=False, width="content")
        is_live = is_at_work and st.toggle(t("train.live"), value=True, key="train_live", help=t("train.live_help"))
    st.fragment(_draw_curves_now, run_every=POLL_SECONDS if is_live else None)(str(run.folder))


def _draw_curves_now(folder: str) -> None:
    run = _open(folder)
    records = _records_of(folder).read()
    if not records:
        st.caption(t("train.no_curve_yet"))
        return
    zoomed = st.session_state.get("train_shown", {}).get(run.id)
    with st.container(horizontal=True, vertical_alignment="center"):
        smoothing = st.slider(t("train.smoothing"), 0.0, 0.99, 0.6, 0.01, key="train_smoothing", help=t("train.smoothing_help"), width=320)
        if zoomed:
            st.button(t("train.show_all"), icon=":material/zoom_out_map:", key="train_show_all", on_click=_show_all, args=(run.id,))
        else:
            st.caption(t("train.zoom_note"), width="content")
    figure = training_figure(
        records, _chart_words(), smoothing=smoothing, snapshots=[saved.step for saved in run.checkpoints()], looks=run.watch(),
        planned=run.spec()["updates"], shown=zoomed)
    st.plotly_chart(figure, key="train_chart", on_select=_zoom_to_selection, selection_mode="box", alt=_chart_in_words(records, run),
                    config={"displayModeBar": False})
    st.session_state["train_chart_run"] = run.id


def _chart_words() -> dict[str, str]:
    return {key: t_plainly(f"train.chart_{key}") for key in
            ("loss", "loss_raw", "learning_rate", "tokens_per_second", "memory_bytes", "snapshot", "amber", "red", "target_nll",
             "leak_nll")} | {
                "update": t_plainly("train.chart_update", number="%{x}")}  # plotly puts the number in


def _chart_in_words(records: Sequence[dict[str, Any]], run: Run) -> str:
    first, last = records[0], records[-1]
    return t_plainly("train.chart_alt", first=f"{first['loss']:.2f}", last=f"{last['loss']:.2f}", update=last["update"],
                     total=run.spec()["updates"], snapshots=len(run.checkpoints()))


def _zoom_to_selection() -> None:
    """Keep the selected stretch of updates in the session: unlike the browser's zoom it survives the next look at the file."""
    boxes = st.session_state["train_chart"]["selection"]["box"]
    if boxes:
        begin, end = sorted(float(value) for value in boxes[-1]["x"])
        if end - begin >= _SHORTEST_SPAN:
            st.session_state["train_shown"] = {st.session_state["train_chart_run"]: (begin, end)}


def _show_all(run_id: str) -> None:
    st.session_state.get("train_shown", {}).pop(run_id, None)


def draw_answers(run: Run, is_at_work: bool) -> None:
    """What the model answers at each snapshot, and the snapshots themselves."""
    st.fragment(_draw_answers_now, run_every=2 * POLL_SECONDS if is_at_work else None)(str(run.folder))


def _draw_answers_now(folder: str) -> None:
    run = _open(folder)
    history, snapshots = answer_history(run.watch()), read_snapshots(run)
    answers, saved = st.columns([3, 2], gap="medium")
    with answers:
        st.subheader(t("train.answers"), anchor=False, help=t("train.answers_help"))
        if not history:
            st.caption(t("train.no_answers_yet"))
        for entry in history:
            _draw_question(entry)
    with saved:
        st.subheader(t("train.snapshots"), anchor=False, help=t("train.snapshots_help"))
        if not snapshots:
            st.caption(t("train.no_snapshots_yet"))
        else:
            st.dataframe(
                [{t("train.step"): entry["step"], t("train.loss"): "-" if entry["loss"] is None else f"{entry['loss']:.3f}",
                  t("train.saved"): clock(entry["time"]) if entry["time"] else "-", t("train.size"): f"{entry['size_bytes'] / 1e6:.1f} MB"}
                 for entry in reversed(snapshots)],
                hide_index=True, height="content" if len(snapshots) <= 12 else 458)


def _draw_question(entry: dict[str, Any]) -> None:
    """A question and how its answer changed, newest first."""
    group = entry["group"]
    with st.container(border=True, gap="xsmall"):
        st.markdown(f"**{plain(_one_line(entry['question']))}** "
                    f":{_GROUP_COLOURS.get(group, 'gray')}-badge[{t(f'train.group_{group}')}]")
        for index, (update, answer) in enumerate(reversed(entry["answers"][-_ANSWERS_SHOWN:])):
            text = plain(_one_line(answer)) or "…"
            since = t("train.since_step", step=update)
            st.markdown(f":small[:gray[{since}]] {text}" if index == 0 else f":small[:gray[{since} {text}]]")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def draw_log(run: Run, is_at_work: bool) -> None:
    """The end of the worker's log, read only while it is open."""
    fold = st.expander(t("train.log"), icon=":material/article:", key="train_log", on_change="rerun")
    if fold.open:
        with fold:
            st.fragment(_draw_log_now, run_every=POLL_SECONDS if is_at_work else None)(str(run.folder))


def _draw_log_now(folder: str) -> None:
    tail = _open(folder).log_tail(_LOG_LINES)
    if tail:
        st.code(tail, language=None, height=320, wrap_lines=True)
    else:
        st.caption(t("train.log_empty"))
