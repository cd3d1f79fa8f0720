"""The Data page's library: one dataset as tokens, as rows that can be edited, and with what in it will hurt."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from core.data.encode import Encoder
from core.data.findings import Finding
from core.data.fixes import fix_rows
from core.data.hold_out import hold_out_rows
from core.data.library import Dataset, delete_dataset, update_rows
from core.data.lint import LENGTH_LIMIT, lint_dataset
from core.data.measure import encoder_of, measure_dataset
from core.data.store import start_reminders
from core.data.table import ROWS_PER_PAGE, edit_rows, find_rows, page_count, table_page
from core.models.catalogue import find_base, list_chat_models
from core.models.prepare import prepare_once
from core.workspace import Workspace
from studio.data_import import draw_import_report
from studio.data_statistics import draw_packs_of, draw_statistics
from studio.i18n import plain, say, t, t_plainly
from studio.moments import when
from studio.panels import errors_in_words
from studio.session import DATASET
from studio.token_view import draw_row

PARTS = ("tokens", "rows", "statistics", "checks")
_EDITED_ROWS = 20_000  # of a larger dataset the first ones are shown, and not changed here
_MARKS = {"error": (":material/error:", "red"), "warning": (":material/warning:", "orange"), "note": (":material/info:", "blue")}
_LIST = 12  # row numbers named beside a finding


def draw_dataset(workspace: Workspace, dataset: Dataset) -> None:
    """Everything about one dataset."""
    encoder = _encoder(workspace)
    with errors_in_words():
        _draw_card(workspace, dataset, encoder)
        findings = lint_dataset(dataset, encoder)
        part = st.segmented_control(
            t("data.part"), PARTS, default=PARTS[0], required=True, key="data_part", label_visibility="collapsed",
            format_func=lambda name: t_plainly(f"data.part_{name}", count=len(findings)))
        if part == "tokens":
            _draw_tokens(workspace, dataset, encoder)
        elif part == "rows":
            _draw_rows(workspace, dataset)
        elif part == "statistics":
            draw_statistics(dataset, encoder)
        else:
            _draw_findings(workspace, dataset, findings)


def _encoder(workspace: Workspace) -> Encoder | None:
    """Of the model chosen in the token view; None while no model is here."""
    models = list_chat_models(workspace)
    if not models:
        return None
    chosen = st.session_state.get("data_model")
    return encoder_of(find_base(workspace, chosen if chosen in models else models[0]))


def _draw_card(workspace: Workspace, dataset: Dataset, encoder: Encoder | None) -> None:
    card = dataset.card
    figures = [("data.rows", "data.rows_help", f"{card.rows:,}"), ("data.probes", "data.probes_help", str(card.probes))]
    if encoder is not None:
        measure = measure_dataset(dataset, encoder)
        figures += [("data.tokens_per_row", "data.tokens_per_row_help", f"{measure.mean_tokens:.0f}"),
                    ("data.trained_per_row", "data.trained_per_row_help", f"{measure.mean_trained:.0f}"),
                    ("data.longest_row", "data.longest_row_help", f"{max(measure.tokens):,}")]
    with st.container(horizontal=True, key="data_card"):
        for label, explanation, value in figures:
            st.metric(t(label), value, help=t(explanation), border=True)
    groups = " · ".join(f"{plain(group)} {count}" for group, count in card.groups.items())
    line = [groups, ", ".join(map(plain, card.languages)), _origin(dataset), t("data.made", when=when(card.created))]
    if card.changed:
        line.append(t("data.changed", when=when(card.changed)))
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(" · ".join(line), width="stretch")
        st.download_button(t("data.download"), Path(dataset.folder / "rows.jsonl").read_bytes, f"{card.name}.jsonl",
                           "application/jsonl", icon=":material/download:", key="data_download", type="tertiary")
        _draw_delete(workspace, dataset)
    draw_import_report(workspace, dataset)


def _origin(dataset: Dataset) -> str:
    """Where a dataset came from, in words."""
    made, source = dataset.card.made_with, dataset.card.source
    if source == "import":
        return t("data.from_import", file=made.get("file", "?"), read=made.get("read", 0))
    if source == "mix":
        return t("data.from_mix", sources=" + ".join(f"{part['dataset']} {part['rows']}" for part in made.get("sources", [])))
    if source == "persona":
        return t("data.from_persona", name=made.get("name", "?"))
    return t("data.from_other", source=source)


def _draw_delete(workspace: Workspace, dataset: Dataset) -> None:
    with st.popover(t("data.delete"), icon=":material/delete:", type="tertiary", key="data_delete"):
        st.markdown(t("data.delete_what", name=dataset.card.name))
        if st.button(t("data.delete_now"), key="data_delete_now", icon=":material/delete:"):
            with errors_in_words():
                delete_dataset(workspace, dataset.card.name)
                st.query_params.pop(DATASET, None)
                st.rerun()


def _draw_tokens(workspace: Workspace, dataset: Dataset, encoder: Encoder | None) -> None:
    if encoder is None:
        st.info(t("data.no_model"), icon=":material/model_training:")
        if st.button(t("data.prepare"), icon=":material/build:", key="data_prepare"):
            prepare_once(workspace)
            st.rerun()
        return
    count = dataset.card.rows
    number, model, cut = st.columns([1, 2, 1])
    # A shorter dataset may have been chosen since; the session keeps numbers, not limits.
    st.session_state["data_row"] = min(max(1, st.session_state.get("data_row", 1)), count)
    row = number.number_input(t("data.row_number", count=count), 1, count, key="data_row")
    limit = cut.number_input(t("data.cut_at"), 8, 131_072, LENGTH_LIMIT, key="data_cut_at", help=t("data.cut_at_help"))
    model.selectbox(t("data.as_seen_by"), list_chat_models(workspace), key="data_model", help=t("data.as_seen_by_help"))
    chosen = dataset.row(row - 1)
    st.caption(t("data.row_about", number=row, group=chosen["group"], lang=chosen.get("lang", "en")))
    draw_row(encoder, chosen, max_length=int(limit))
    draw_packs_of(dataset, encoder, row - 1, int(limit))


def _draw_rows(workspace: Workspace, dataset: Dataset) -> None:
    is_large = dataset.card.rows > _EDITED_ROWS
    rows = dataset.first_rows(_EDITED_ROWS) if is_large else dataset.rows()
    if is_large:
        st.caption(t("data.first_rows_only", count=f"{_EDITED_ROWS:,}"))
    look, only, page = st.columns([3, 2, 1])
    text = look.text_input(t("data.search"), key="data_search", icon=":material/search:")
    group = only.selectbox(t("data.group"), [None, *dataset.card.groups], key="data_group",
                           format_func=lambda name: name or t_plainly("data.all_groups"))
    places = find_rows(rows, text, group)
    pages = page_count(len(places))
    st.session_state["data_page"] = min(st.session_state.get("data_page", 1), pages)
    number = page.number_input(t("data.page", count=pages), 1, pages, key="data_page")
    shown = places[(number - 1) * ROWS_PER_PAGE:number * ROWS_PER_PAGE]
    if not shown:
        st.info(t("data.nothing_found"), icon=":material/search_off:")
        return
    # A new table after each save and for each page: edits belong to exactly the rows they were made on.
    key = f"data_table_{dataset.card.sha256[:12]}_{number}_{group}_{text}"
    records = [{"row": place + 1, **record} for place, record in zip(shown, table_page(rows, shown), strict=True)]
    if not any(record["before"] for record in records):
        records = [{column: value for column, value in record.items() if column != "before"} for record in records]
    st.data_editor(records, num_rows="fixed" if is_large else "dynamic", disabled=is_large, hide_index=True, key=key,
                   column_config=_columns(dataset), height="auto", alt=t_plainly("data.rows_alt"))
    edits = st.session_state.get(key) or {}
    count = sum(len(edits.get(kind, [])) for kind in ("edited_rows", "added_rows", "deleted_rows"))
    with st.container(horizontal=True, vertical_alignment="center"):
        save = st.button(t("data.save_rows", count=count) if count else t("data.save"), type="primary", icon=":material/save:",
                         key="data_save", disabled=not count or is_large)
        st.caption(t("data.rows_note"))
    if save:
        with errors_in_words():
            update_rows(workspace, dataset.card.name, edit_rows(rows, shown, edits), dataset.card.sha256)
            st.toast(t("data.saved"), icon=":material/check:")
            st.rerun()


def _columns(dataset: Dataset) -> dict[str, object]:
    groups = list(dict.fromkeys([*dataset.card.groups, "identity", "near", "general"]))
    config = st.column_config
    return {
        "row": config.NumberColumn(t_plainly("data.column_row"), disabled=True, width=60),
        "group": config.SelectboxColumn(t_plainly("data.group"), options=groups, width=110),
        "lang": config.SelectboxColumn(t_plainly("data.column_lang"), options=list(dict.fromkeys([*dataset.card.languages, "en", "zh"])),
                                       width=100),
        "before": config.TextColumn(t_plainly("data.column_before"), disabled=True, width="small"),
        "question": config.TextColumn(t_plainly("data.column_question"), width="medium"),
        "answer": config.TextColumn(t_plainly("data.column_answer"), width="large"),
    }


def _draw_findings(workspace: Workspace, dataset: Dataset, findings: list[Finding]) -> None:
    if not findings:
        st.success(t("data.no_findings"), icon=":material/check_circle:")
    else:
        st.caption(t("data.checks_note", limit=LENGTH_LIMIT))
    for finding in findings:
        with st.container(border=True, key=f"data_finding_{finding.code}"):
            _draw_finding(workspace, dataset, finding)


def _draw_finding(workspace: Workspace, dataset: Dataset, finding: Finding) -> None:
    icon, colour = _MARKS[finding.level]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.badge(t(f"data.level_{finding.level}"), icon=icon, color=colour)
        st.markdown(say(finding.text), width="stretch")
    values = {}
    if finding.fix == "fill_placeholders":
        for place, column in enumerate(st.columns(min(4, len(finding.examples)))):
            mark = finding.examples[place]
            values[mark] = column.text_input(plain(mark), key=f"data_fill_{place}", placeholder=t_plainly("data.fill_with"))
    with st.container(horizontal=True, vertical_alignment="center"):
        if finding.fix and st.button(t(f"data.fix_{finding.fix}", count=len(finding.rows)), key=f"data_fix_{finding.code}",
                                     icon=":material/build:"):
            _mend(workspace, dataset, finding, values)
        if finding.fix == "fill_placeholders" and st.button(t("data.fix_drop_rows", count=len(finding.rows)), icon=":material/delete:",
                                                            key="data_drop_placeholders", type="tertiary"):
            _mend(workspace, dataset, Finding(finding.code, finding.level, finding.text, finding.rows, "drop_rows"), {})
        if finding.rows:
            numbers = ", ".join(str(place + 1) for place in finding.rows[:_LIST])
            st.caption(t("data.finding_rows" if len(finding.rows) <= _LIST else "data.finding_rows_more", rows=numbers,
                         count=len(finding.rows) - _LIST))


def _mend(workspace: Workspace, dataset: Dataset, finding: Finding, values: dict[str, str]) -> None:
    with errors_in_words():
        if finding.fix == "add_replay":
            start_reminders(workspace, dataset.card.name)
        else:
            if finding.fix == "hold_out":
                hold_out_rows(workspace, dataset.card.name)
            else:
                update_rows(workspace, dataset.card.name, fix_rows(dataset.rows(), finding, values), dataset.card.sha256)
            st.toast(t("data.mended"), icon=":material/check:")
        st.rerun()
