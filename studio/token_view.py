"""A conversation exactly as the model sees it: tokens of the encoder that training uses, trained ones coloured.

No text of a row is ever markup: each token is escaped by itself.
"""

from __future__ import annotations

from typing import Any

import streamlit as st

from core.data.encode import Encoded, Encoder, TrainOn
from core.data.pieces import Piece, pieces_of
from core.errors import StudioError
from studio.i18n import explain, plain, t, t_plainly

# Beyond this the browser has thousands of coloured spans to lay out; the table below shows them all.
_SHOWN_TOKENS = 1200
# Kind of piece -> its span: colour of letters and background, so that a pale projector still tells them apart.
_SPANS = {"read": ":gray-background[{}]", "trained": ":green-background[:green[{}]]", "special": ":violet-background[:violet[{}]]",
          "special_trained": ":green-background[:green[**{}**]]"}


def draw_row(encoder: Encoder, row: dict[str, Any], train_on: TrainOn = "all", max_length: int | None = None) -> None:
    """The legend, the tokens, and how many there are."""
    try:
        encoded = encoder.encode_row(row, train_on, max_length)
    except StudioError as error:
        st.error(explain(error), icon=":material/error:")
        return
    trained = sum(encoded.trained)
    st.markdown(t("data.tokens_counted", tokens=len(encoded.ids), trained=trained,
                  share=round(100 * trained / max(1, len(encoded.ids)))))
    legend = [_SPANS[kind].format(t(f"data.legend_{kind}")) for kind in ("trained", "read", "special")]
    st.markdown(f"{' '.join(legend)} :small[{t('data.legend_marks')}]")
    with st.container(border=True, key="data_tokens"):
        st.markdown(_as_markdown(pieces_of(encoder, encoded, _SHOWN_TOKENS)))
        if len(encoded.ids) > _SHOWN_TOKENS:
            st.caption(t("data.tokens_more", count=len(encoded.ids) - _SHOWN_TOKENS))
        if encoded.cut_tokens:
            st.caption(t("data.tokens_cut", count=encoded.cut_tokens))
    with st.expander(t("data.tokens_table"), on_change="rerun", key="data_tokens_table") as table:
        if table.open:
            _draw_table(encoder, encoded)


def _as_markdown(pieces: list[Piece]) -> str:
    """Each piece as a span of its own; a line of the conversation is a line on screen."""
    spans = []
    for piece in pieces:
        spans.append(_SPANS[piece.kind].format(plain(piece.visible)) + ("  \n" if piece.ends_line else ""))
    return "\u200b".join(spans)  # a line may break between tokens, and only there


def _draw_table(encoder: Encoder, encoded: Encoded) -> None:
    names = {kind: t_plainly(f"data.kind_{kind}") for kind in _SPANS}
    rows = [{t_plainly("data.column_text"): piece.visible, t_plainly("data.column_kind"): names[piece.kind],
             t_plainly("data.column_ids"): " ".join(map(str, piece.ids))} for piece in pieces_of(encoder, encoded)]
    st.dataframe(rows, hide_index=False, height=360, alt=t_plainly("data.tokens_table"))
