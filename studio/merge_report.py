"""The Merge page's report beyond the check itself: what was combined, and what QLoRA's weights have to do with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from studio.i18n import say, t, t_plainly


def draw_differences(differences: Sequence[dict[str, str]], title: str) -> None:
    """Questions that two models answer otherwise, in a table under `merge.<title>`; nothing when there are none."""
    if not differences:
        return
    st.markdown(f"**{t(f'merge.{title}')}**")
    columns = {key: t_plainly(f"merge.column_{key}") for key in ("question", "adapter", "merged")}
    st.dataframe([{columns[key]: entry[key].strip() or t_plainly("merge.no_answer") for key in columns} for entry in differences],
                 hide_index=True, alt=t_plainly(f"merge.{title}"))


def draw_combined(report: dict[str, Any]) -> None:
    """Which adapters a model was made of, and how strong the result is beside their exact sum."""
    combined = report.get("combined")
    if not combined:
        return
    parts = ", ".join(f"{part['model']} \u00d7 {part['weight'] * part['strength']:.3g}" for part in combined["models"])
    st.caption(t("merge.combined", parts=parts, how=t_plainly(f"merge.how_{combined['how']}"), rank=combined["rank"],
                 ratio=f"{combined['norm_ratio']:.2f}"))
    if combined["warning"]:
        st.warning(say(combined["warning"]), icon=":material/warning:")


def draw_quantised(quantised: dict[str, Any]) -> None:
    """For an adapter trained over quantised weights: the merged model beside what the training saw."""
    asked = quantised["answers_compared"]
    values = {"kind": quantised["kind"], "same": asked - len(quantised["differences"]), "asked": asked,
              "logits": f"{quantised['max_logit_difference']:.2g}"}
    st.info(t(f"merge.quantised_{quantised['onto']}", **values), icon=":material/compress:")
    if quantised["onto"] == "base":
        draw_differences(quantised["differences"], "quantised_differences")
