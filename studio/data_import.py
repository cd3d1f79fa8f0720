"""The Data page's import: a file, what its first records become, and the job that reads all of them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from core.classroom.limits import check_disk
from core.data.hub import is_hub_source
from core.data.import_job import keep_upload, rejected_records, start_import
from core.data.importing import NOTES_KEPT, Imported, Note, Reading, preview
from core.data.layouts import FIELDS, LAYOUTS
from core.data.library import GENERAL, IDENTITY, NEAR, Dataset
from core.data.table import table_page
from core.errors import StudioError
from core.roots import check_source
from core.words import Text
from core.workspace import Workspace, slug
from studio.data_forms import ask_name, show_dataset
from studio.i18n import plain, say_plainly, t, t_plainly
from studio.panels import errors_in_words

_FILE_TYPES = ["json", "jsonl", "csv", "tsv", "txt", "parquet", "yaml", "yml"]
_PREVIEWED = 200  # records


def draw_import_form(workspace: Workspace) -> str:
    """A file, what its first records become, and the button that starts the import. Returns the command that does the same."""
    st.markdown(t("data.import_what"))
    from_here, from_there = st.columns(2, gap="large")
    with from_here:
        upload = st.file_uploader(t("data.upload"), type=_FILE_TYPES, key="data_upload", help=t("data.upload_help"))
    with from_there:
        path = st.text_input(t("data.path"), key="data_path", placeholder=t_plainly("data.path_example"), help=t("data.path_help")).strip()
        with errors_in_words():
            try:
                check_source(workspace, path)
            except StudioError:
                path = ""  # nothing is said about what lies there, not even whether it exists
                raise
        is_set = upload is None and is_hub_source(path)
        subset, split = _ask_part(is_set)
    reading = _ask_reading()
    command = _command(upload.name if upload is not None else path or "conversations.json", reading, subset, split)
    if upload is None and not path:
        return command
    with errors_in_words():
        source = path if upload is None else str(_kept(workspace, upload))
        shown = upload.name if upload is not None else Path(path).name
        if is_set:
            st.info(t("data.hub_unseen"), icon=":material/cloud_download:")
        else:
            found, rows = _previewed(source, shown, reading)
            _draw_preview(found, rows)
        name = ask_name(workspace, "data_import_name", slug(shown.rsplit(".", 1)[0]) or "imported")
        if st.button(t("data.import_now"), type="primary", icon=":material/download:", key="data_keep",
                     disabled=not is_set and not found.rows):
            start_import(workspace, source, name, reading, shown_name=shown, subset=subset, split=split, is_upload=upload is not None)
            st.session_state.pop("data_read", None)
            show_dataset(name)
    return command


def _ask_part(is_set: bool) -> tuple[str | None, str | None]:
    """Configuration and split, where a set of the hub is named."""
    if not is_set:
        return None, None
    first, second = st.columns(2)
    subset = first.text_input(t("data.subset"), key="data_subset", help=t("data.subset_help")).strip()
    split = second.text_input(t("data.split"), key="data_split", placeholder=t_plainly("data.split_example"),
                              help=t("data.split_help")).strip()
    return subset or None, split or None


def _ask_reading() -> Reading:
    """How the records shall be read; recognising them is the rule."""
    group = st.segmented_control(t("data.import_group"), (GENERAL, IDENTITY, NEAR), default=GENERAL, required=True, key="data_import_group",
                                 format_func=lambda name: t_plainly(f"data.group_{name}"), help=t("data.import_group_help"))
    with st.expander(t("data.how_to_read"), icon=":material/rule:"):
        layout = st.selectbox(t("data.layout"), [None, *LAYOUTS], key="data_layout", help=t("data.layout_help"),
                              format_func=lambda name: name or t_plainly("data.layout_recognised"))
        columns = st.text_area(t("data.columns"), key="data_columns", placeholder=t_plainly("data.columns_example"),
                               help=t("data.columns_help", fields=", ".join(FIELDS)))
    pairs = (line.partition("=") for line in columns.splitlines() if "=" in line)
    return Reading(layout, {field.strip(): column.strip() for field, _, column in pairs}, group)


def _command(source: str, reading: Reading, subset: str | None, split: str | None) -> str:
    options = [f"--layout {reading.layout}"] if reading.layout else []
    options += [f"--column {shlex.quote(f'{field}={column}')}" for field, column in reading.columns.items()]
    options += [f"--{name} {shlex.quote(value)}" for name, value in (("subset", subset), ("split", split)) if value]
    options += [f"--group {reading.group}"] if reading.group != GENERAL else []
    return " ".join(["sweetspot data import", shlex.quote(source), "NAME", *options])


def _kept(workspace: Workspace, upload: Any) -> Path:
    """The upload as a file, written once; an import deletes it at its end."""
    kept = st.session_state.get("data_uploaded")
    if kept is None or kept[0] != upload.file_id or not kept[1].exists():
        check_disk(workspace, upload.size)
        kept = st.session_state["data_uploaded"] = (upload.file_id, keep_upload(workspace, upload, upload.name))
    return kept[1]


def _previewed(source: str, shown: str, reading: Reading) -> tuple[Imported, list[dict[str, Any]]]:
    """The first records, read once while neither the file nor the way of reading changes."""
    key = (source, _changed(source), reading.layout, tuple(reading.columns.items()), reading.group)
    kept = st.session_state.get("data_read")
    if kept is None or kept[0] != key:
        kept = st.session_state["data_read"] = (key, preview(source, reading, shown, _PREVIEWED))
    return kept[1]


def _changed(source: str) -> int:
    """When a file was last changed, in ns; 0 where that cannot be told."""
    try:
        return Path(source).expanduser().stat().st_mtime_ns
    except (OSError, ValueError, RuntimeError):
        return 0


def _draw_preview(found: Imported, rows: list[dict[str, Any]]) -> None:
    st.caption(t("data.previewed" if found.read >= _PREVIEWED else "data.previewed_all", count=found.read))
    _draw_counts(found.read, found.imported, found.repaired, found.rejected)
    _draw_recognised(found.layouts, found.encoding, found.form)
    _draw_notes(found.refusals, found.repairs, found.rejected, found.repaired, is_open=not found.rows)
    if rows:
        columns = {name: t_plainly(f"data.column_{name}") for name in ("before", "question", "answer")}
        first = table_page(rows, range(min(5, len(rows))))
        st.dataframe([{columns[name]: record[name] for name in columns} for record in first], hide_index=True,
                     alt=t_plainly("data.first_rows"))


def _draw_counts(read: int, imported: int, repaired: int, rejected: int) -> None:
    with st.container(horizontal=True, key="data_report"):
        for key, value in (("read", read), ("imported", imported), ("repaired", repaired), ("rejected", rejected)):
            st.metric(t(f"data.{key}"), f"{value:,}", border=True, help=t(f"data.{key}_help"))


def _draw_recognised(layouts: dict[str, int], encoding: str, form: str) -> None:
    shown = ", ".join(f"{layout} {count:,}" for layout, count in layouts.items()) or "–"
    st.caption(t("data.recognised", layouts=shown, encoding=encoding, form=form))


def _draw_notes(refusals: Sequence[Note], repairs: Sequence[Note], rejected: int, repaired: int, is_open: bool = False) -> None:
    for key, notes, count in (("data.rejected_list", refusals, rejected), ("data.repaired_list", repairs, repaired)):
        if notes:
            with st.expander(t(key, count=count), expanded=is_open):
                place, reason = t_plainly("data.column_place"), t_plainly("data.column_reason")
                st.dataframe([{place: say_plainly(note.place), reason: say_plainly(note.reason)} for note in notes],
                             hide_index=True, alt=t_plainly(key, count=count))
                if count > NOTES_KEPT:
                    st.caption(t("data.notes_more", count=count - len(notes)))


def draw_import_report(workspace: Workspace, dataset: Dataset) -> None:
    """What became of the records of a dataset that was imported, and the refused ones to download."""
    made = dataset.card.made_with
    if dataset.card.source != "import" or "imported" not in made:
        return
    with st.expander(t("data.report", read=f"{made['read']:,}", rejected=f"{made['rejected']:,}"), icon=":material/fact_check:"):
        _draw_counts(made["read"], made["imported"], made["repaired"], made["rejected"])
        _draw_recognised(made["layouts"], plain(made["encoding"]), made.get("form", ""))
        refusals, repairs = ([Note(Text.from_json(note["place"]), Text.from_json(note["reason"])) for note in made[key]]
                             for key in ("refusals", "repairs"))
        _draw_notes(refusals, repairs, made["rejected"], made["repaired"])
        path = rejected_records(workspace, dataset.card.name)
        if path is not None:
            st.download_button(t("data.download_rejected", count=made["rejected"]), path.read_bytes, f"{dataset.card.name}-rejected.jsonl",
                               "application/jsonl", icon=":material/download:", key="data_download_rejected")
