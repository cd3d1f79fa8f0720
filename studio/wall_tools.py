"""What the teacher does on the Class page: the queue, handing out, results."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from core.classroom.handout import Handed, hand_out_dataset, hand_out_recipe
from core.classroom.place import TEACHER
from core.classroom.queue import ClassQueue, Entry, job_of
from core.classroom.room import Classroom
from core.classroom.wall import results_csv, write_results
from core.data.library import list_datasets
from core.recipe.files import list_recipes, presets
from studio.i18n import explain, plain, t, t_plainly
from studio.panels import errors_in_words, start_words

_QUEUE_SECONDS = 3.0
_OUTCOMES = ("given", "had_it", "has_another", "failed")


def draw_queue(room: Classroom) -> None:
    """Who holds the device, who waits, in which order and for how long; the order is the teacher's to change."""
    queue = ClassQueue(room.workspace.root)
    is_paused = queue.orders().paused
    if st.button(t("wall.go_on" if is_paused else "wall.pause"), key="wall_pause",
                 icon=":material/play_arrow:" if is_paused else ":material/pause:"):
        queue.pause(not is_paused)
        st.rerun()
    if is_paused:
        st.warning(t("wall.paused"), icon=":material/pause_circle:")
    else:
        st.caption(t("wall.pause_help"))
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
        when = t("wall.start_paused") if queue.orders().paused else t("wall.start", start=start_words(starts.get(entry.key)))
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
        job_of(room.workspace, entry).request_stop()
        st.toast(t("wall.stopping", name=names.get(entry.member, entry.member)))


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
    with st.container(horizontal=True):
        st.download_button(t("wall.csv"), lambda: ("\ufeff" + results_csv(room)).encode(), "results.csv", "text/csv",
                           key="wall_csv", icon=":material/table_view:")
        st.download_button(t("wall.zip"), lambda: _zip(room), "results.zip", "application/zip", key="wall_zip",
                           icon=":material/folder_zip:")


def _zip(room: Classroom) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "results.zip"
        write_results(room, target)
        return target.read_bytes()
