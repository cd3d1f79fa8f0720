"""What the teacher does on the Class page: the queue, handing out, results, people, limits."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from core.classroom.handout import Handed, hand_out_dataset, hand_out_recipe
from core.classroom.place import TEACHER
from core.classroom.queue import ClassQueue, Entry
from core.classroom.room import Classroom
from core.classroom.wall import results_csv, write_results
from core.data.library import list_datasets
from core.jobs.folder import Job
from core.recipe.files import list_recipes, presets
from core.workspace import Workspace
from studio.i18n import explain, plain, t, t_plainly
from studio.moments import duration
from studio.panels import errors_in_words
from studio.visitors import door
from studio.wall_panels import shown_code

_QUEUE_SECONDS = 3.0
_OUTCOMES = ("given", "had_it", "has_another", "failed")


def draw_queue(room: Classroom) -> None:
    """Who holds the device, who waits, in which order and for how long; the order is the teacher's to change."""
    queue = ClassQueue(room.workspace.root)
    is_paused = queue.orders().paused
    if st.button(t("wall.go_on" if is_paused else "wall.pause"), key="wall_pause",
                 icon=":material/play_arrow:" if is_paused else ":material/pause:", help=t("wall.pause_help")):
        queue.pause(not is_paused)
        st.rerun()
    if is_paused:
        st.warning(t("wall.paused"), icon=":material/pause_circle:")
    st.fragment(_draw_entries, run_every=_QUEUE_SECONDS)(room)


def _draw_entries(room: Classroom) -> None:
    queue = ClassQueue(room.workspace.root)
    names = {student.slug: student.name for student in room.students()} | {TEACHER: t_plainly("shell.role_teacher")}
    running = [entry for entry in queue.entries() if entry.started is not None]
    waiting, starts = queue.waiting(), queue.expected_starts()
    if not running and not waiting:
        st.info(t("wall.queue_empty"), icon=":material/task_alt:")
        return
    for entry in running:
        _draw_entry(room, entry, names, t("wall.running_on", device=entry.device))
    for number, entry in enumerate(waiting, 1):
        seconds = starts.get(entry.key)
        when = t("wall.start_unknown") if seconds is None else t("wall.start_in", duration=duration(seconds))
        _draw_entry(room, entry, names, f"{number}. {when}")


def _draw_entry(room: Classroom, entry: Entry, names: dict[str, str], standing: str) -> None:
    who, what, first, last, stop = st.columns([3, 4, 1, 1, 1], vertical_alignment="center")
    who.markdown(f"**{plain(names.get(entry.member, entry.member))}**  \n:small[{t(f'shell.kind_{entry.kind}')}]")
    what.markdown(standing)
    queue = ClassQueue(room.workspace.root)
    if entry.started is None:
        if first.button(t("wall.first"), key=f"wall_first_{entry.key}", icon=":material/vertical_align_top:", type="tertiary"):
            queue.put_first(entry.key)
            st.rerun()
        if last.button(t("wall.last"), key=f"wall_last_{entry.key}", icon=":material/vertical_align_bottom:", type="tertiary"):
            queue.put_last(entry.key)
            st.rerun()
    if stop.button(t("wall.stop"), key=f"wall_stop_{entry.key}", icon=":material/stop:", type="tertiary"):
        _job_of(room, entry).request_stop()
        st.toast(t("wall.stopping", name=names.get(entry.member, entry.member)))


def _job_of(room: Classroom, entry: Entry) -> Job:
    workspace = room.workspace if entry.member == TEACHER else Workspace(room.folder / entry.member)
    folder = workspace.runs / entry.job
    return Job(folder if folder.exists() else workspace.jobs / entry.job)


def draw_hand_out(room: Classroom) -> None:
    """A dataset and a recipe of the teacher's for everybody."""
    st.caption(t("wall.hand_out_note"))
    datasets = [dataset.card.name for dataset in list_datasets(room.workspace)]
    recipes = [*list_recipes(room.workspace), *(preset.name for preset in presets())]
    left, right = st.columns(2, gap="large")
    with left:
        dataset = st.selectbox(t("wall.dataset"), datasets, index=None, key="wall_dataset", placeholder=t_plainly("wall.choose"))
    with right:
        recipe = st.selectbox(t("wall.recipe"), recipes, index=None, key="wall_recipe", placeholder=t_plainly("wall.choose"))
    if not st.button(t("wall.hand_out"), key="wall_hand_out", type="primary", icon=":material/share:",
                     disabled=dataset is None and recipe is None):
        return
    with errors_in_words():
        if dataset is not None:
            _say_handed(dataset, hand_out_dataset(room, dataset))
        if recipe is not None:
            _say_handed(recipe, hand_out_recipe(room, recipe))


def _say_handed(what: str, handed: Sequence[Handed]) -> None:
    counts = Counter(one.outcome for one in handed)
    told = " · ".join(t(f"wall.handed_{outcome}", count=counts[outcome]) for outcome in _OUTCOMES if counts[outcome])
    st.success(f"**{plain(what)}**  \n{told or t('wall.handed_nobody')}", icon=":material/share:")
    for one in handed:
        if one.error is not None:
            st.error(f"**{plain(one.student)}**  \n{explain(one.error)}", icon=":material/error:")


def draw_results(room: Classroom) -> None:
    """The results of everybody as a table, and with their files as a zip."""
    table, everything = st.columns(2)
    table.download_button(t("wall.csv"), lambda: ("\ufeff" + results_csv(room)).encode(), "results.csv", "text/csv",
                          key="wall_csv", icon=":material/table_view:")
    everything.download_button(t("wall.zip"), lambda: _zip(room), "results.zip", "application/zip", key="wall_zip",
                               icon=":material/folder_zip:")


def _zip(room: Classroom) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "results.zip"
        write_results(room, target)
        return target.read_bytes()


def draw_people(room: Classroom) -> None:
    """How students come in, and another code for one who has lost theirs."""
    st.markdown(t("wall.come_in", code=shown_code(room)))
    students = room.students()
    if not students:
        return
    names = {student.slug: student.name for student in students}
    chosen = st.selectbox(t("wall.lost_code"), list(names), index=None, format_func=names.get, key="wall_lost",
                          placeholder=t_plainly("wall.choose"))
    if chosen is not None and st.button(t("wall.renew"), key="wall_renew", icon=":material/key:"):
        with errors_in_words():
            code = room.renew_code(chosen)
            door().sessions.sign_out_everybody(student=chosen)
            st.success(t("wall.renewed", name=names[chosen], code=f"{code[:4]}-{code[4:]}"), icon=":material/key:")


def draw_settings(room: Classroom) -> None:
    """What one student may use of this machine."""
    settings = room.settings()
    with st.form("wall_limits"):
        st.caption(t("wall.limits_note"))
        disk = st.number_input(t("wall.disk"), 0.1, 10_000.0, settings.disk_bytes / 1e9, 0.5, key="wall_disk")
        memory = st.number_input(t("wall.memory"), 0.5, 10_000.0, settings.memory_bytes / 1e9, 0.5, key="wall_memory")
        if st.form_submit_button(t("wall.keep"), icon=":material/save:", key="wall_keep"):
            room.change(disk_bytes=round(disk * 1e9), memory_bytes=round(memory * 1e9))
            st.success(t("wall.kept"), icon=":material/check:")
