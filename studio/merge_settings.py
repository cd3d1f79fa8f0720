"""The Merge page's settings that most people leave as they are: other snapshots joined in, file size, and what QLoRA merges onto."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core.merge.library import others_to_combine
from core.merge.methods import METHODS, SPARSE, check_weights
from core.merge.request import parse_size, parse_weights
from core.runs import Run
from core.workspace import Workspace
from studio.i18n import t, t_plainly

MOST_OTHERS = 7  # more make a command that nobody reads, and "select all" one click away
SIZES = ("", "500MB", "1GB", "2GB", "5GB")


def choose_combination(workspace: Workspace, run: Run, step: int) -> dict[str, Any]:
    """Fields of a MergeRequest: `others` to combine with the chosen snapshot, `how`, `weights`, `density`; empty for the usual merge.

    Raises:
        StudioError: what was typed as weights is none.
    """
    if not st.toggle(t("merge.combine"), key="merge_combine", help=t("merge.combine_help")):
        return {}
    known = others_to_combine(workspace, run, step)
    if not known:
        st.info(t("merge.combine_none"), icon=":material/info:")
        return {}
    kept = [other for other in st.session_state.get("merge_others", []) if other in known]
    st.session_state["merge_others"] = kept[:MOST_OTHERS]  # another run's snapshots may be over another base model
    others = st.multiselect(t("merge.others"), known, key="merge_others", max_selections=MOST_OTHERS,
                            placeholder=t_plainly("merge.others_placeholder"),
                            format_func=lambda name: name.removeprefix(f"{run.id}@"))
    how = st.selectbox(t("merge.how"), METHODS, key="merge_how", help=t("merge.how_help"),
                       format_func=lambda name: t_plainly(f"merge.how_{name}"))
    left, right = st.columns(2)
    weights = left.text_input(t("merge.weights"), key="merge_weights", help=t("merge.weights_help"),
                              placeholder=",".join(["1"] * (len(others) + 1)))
    chosen: dict[str, Any] = {"others": tuple(others), "how": how}
    if how in SPARSE:
        chosen["density"] = right.slider(t("merge.density"), 0.05, 1.0, 0.5, 0.05, key="merge_density", help=t("merge.density_help"))
    if how == "linear":
        st.caption(t("merge.linear_note"))
    if not others:
        return {}
    chosen["weights"] = tuple(check_weights(how, len(others) + 1, parse_weights(weights))) if weights.strip() else None
    return chosen


def choose_storage(run: Run) -> dict[str, Any]:
    """Fields of a MergeRequest: the largest file, and for QLoRA the weights to merge onto."""
    size = st.selectbox(t("merge.shard"), SIZES, key="merge_shard", help=t("merge.shard_help"),
                        format_func=lambda text: text or t_plainly("merge.shard_as_base"))
    chosen: dict[str, Any] = {"max_shard_bytes": parse_size(size) if size else None}
    if run.recipe().model.quantization == "nf4":
        chosen["onto"] = st.radio(t("merge.onto"), ("base", "quantized"), key="merge_onto", help=t("merge.onto_help"),
                                  format_func=lambda name: t_plainly(f"merge.onto_{name}"))
    return chosen
