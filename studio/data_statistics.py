"""The Data page's statistics: what a dataset is made of, how long its rows are, and how they pack."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from core.data.encode import Encoder
from core.data.library import Dataset
from core.data.lint import LENGTH_LIMIT
from core.data.statistics import Packing, Share, Statistics, packing, packs_of, statistics
from studio.i18n import plain, t, t_plainly

_PACKS_SHOWN, _ROWS_NAMED = 8, 12


def draw_statistics(dataset: Dataset, encoder: Encoder | None) -> None:
    """Kinds, turns, shares by group and language, the histogram of lengths, and the packing."""
    found = statistics(dataset, encoder)
    kinds = " · ".join(t(f"data.kind_of_{name.replace(' ', '_')}", count=f"{count:,}") for name, count in found.kinds.items())
    turns = ", ".join(f"{turns}: {count:,}" for turns, count in list(found.turns.items())[:_ROWS_NAMED])
    st.caption(f"{kinds} · {t('data.turns', turns=turns)}" if turns else kinds)
    if found.measure is None:
        st.info(t("data.no_model"), icon=":material/model_training:")
        return
    if found.measure.is_sample:
        st.caption(t("data.sampled", seen=f"{len(found.measure.places):,}", total=f"{found.rows:,}"))
    left, right = st.columns([2, 3], gap="medium")
    with left:
        _draw_histogram(found)
    with right:
        _draw_shares(found.groups, "data.group")
        if len(found.languages) > 1:
            _draw_shares(found.languages, "data.column_lang")
    _draw_packing(found)


def _draw_histogram(found: Statistics) -> None:
    st.markdown(f"**{t('data.histogram')}** {t('data.histogram_note', middle=f'{found.middle:,}', longest=f'{found.longest:,}')}")
    most = max(bar.rows for bar in found.histogram)
    length, rows, share = (t_plainly(f"data.column_{name}") for name in ("length", "rows", "share"))
    st.dataframe([{length: f"{bar.above + 1:,} – {bar.upto:,}", rows: bar.rows, share: bar.rows} for bar in found.histogram],
                 hide_index=True, alt=t_plainly("data.histogram"),
                 column_config={share: st.column_config.ProgressColumn(share, format=" ", min_value=0, max_value=max(1, most))})


def _draw_shares(shares: Sequence[Share], label: str) -> None:
    name, rows, row_share, trained = t_plainly(label), t_plainly("data.column_rows"), t_plainly("data.column_row_share"), t_plainly(
        "data.column_trained_share")
    percent = {"format": "%.0f %%", "min_value": 0, "max_value": 100}
    st.dataframe([{name: share.name, rows: share.rows, row_share: share.row_share, trained: share.trained_share} for share in shares],
                 hide_index=True, alt=t_plainly("data.shares_of", what=name), column_config={
                     row_share: st.column_config.ProgressColumn(row_share, **percent),
                     trained: st.column_config.ProgressColumn(trained, **percent)})


def _draw_packing(found: Statistics) -> None:
    st.markdown(f"**{t('data.packing')}** {t('data.packing_note')}")
    limit = st.number_input(t("data.sequence_length"), 16, 131_072, LENGTH_LIMIT, key="data_pack_length", width=240)
    packed = packing(found.measure, int(limit))
    with st.container(horizontal=True, key="data_packing"):
        st.metric(t("data.packs"), f"{len(packed.packs):,}", border=True, help=t("data.packs_help"))
        st.metric(t("data.filled"), f"{packed.filled:.0%}", border=True, help=t("data.filled_help"))
        st.metric(t("data.filled_alone"), f"{packed.filled_alone:.0%}", border=True, help=t("data.filled_alone_help"))
    number, rows, tokens = (t_plainly(f"data.column_pack_{name}") for name in ("number", "rows", "tokens"))
    shown = range(0, len(packed.packs), max(1, len(packed.packs) // _PACKS_SHOWN))  # evenly: the first ones hold one long row each
    st.dataframe([{number: place + 1, rows: _row_names(packed.packs[place]),
                   tokens: sum(span.end - span.start for span in packed.packs[place])} for place in shown],
                 hide_index=True, alt=t_plainly("data.packing"))


def _row_names(pack: Sequence) -> str:
    names = [str(span.row + 1) if span.start == 0 else f"{span.row + 1} ({span.start + 1:,}–{span.end:,})" for span in pack[:_ROWS_NAMED]]
    return ", ".join(names) + (" …" if len(pack) > _ROWS_NAMED else "")


def draw_packs_of(dataset: Dataset, encoder: Encoder, place: int, limit: int) -> None:
    """One line: with which rows a row shares a sequence."""
    found: Packing = packing(statistics(dataset, encoder).measure, limit)
    for pack in packs_of(found, place)[:1]:
        others = ", ".join(str(span.row + 1) for span in pack if span.row != place)
        used = sum(span.end - span.start for span in pack)
        st.caption(t("data.packed_with" if others else "data.packed_alone", rows=plain(others), used=f"{used:,}", limit=f"{limit:,}"))
