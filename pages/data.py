"""Data: what exactly will the model read, and what in it will hurt."""

from __future__ import annotations

import streamlit as st

from core.data.library import list_datasets
from studio.data_forms import draw_mix_form, draw_persona_form
from studio.data_import import draw_import_form
from studio.data_jobs import draw_data_jobs
from studio.data_library import draw_dataset
from studio.i18n import t, t_plainly
from studio.panels import next_step, open_page, same_command
from studio.recipe_form import show_value
from studio.session import DATASET

VIEWS = ("library", "persona", "import", "mix")

workspace = open_page("data")
datasets = {dataset.card.name: dataset for dataset in list_datasets(workspace)}
being_made = draw_data_jobs(workspace)

# The address is the truth, so that a link shows what its sender saw; the widgets follow it.
asked_view = st.query_params.get("view")
show_value("data_view", asked_view if asked_view in VIEWS else "library" if datasets else "persona")
view = st.segmented_control(
    t("data.view"), VIEWS, key="data_view", required=True, label_visibility="collapsed",
    format_func=lambda name: t_plainly(f"data.view_{name}"),
    on_change=lambda: st.query_params.update({"view": st.session_state["data_view"]}))

chosen = st.query_params.get(DATASET)
if view == "persona":
    draw_persona_form(workspace)
    same_command("sweetspot data persona --name Alex --lang en --lang zh")
elif view == "import":
    same_command(draw_import_form(workspace))
elif view == "mix":
    draw_mix_form(workspace)
    same_command("sweetspot data mix FIRST=1 SECOND=1 NAME")
elif not datasets and not being_made:
    st.info(t("data.nothing_yet"), icon=":material/dataset:")
elif datasets and chosen not in being_made - datasets.keys():
    show_value("data_dataset", chosen if chosen in datasets else next(iter(datasets)))
    name = st.selectbox(t("data.dataset"), list(datasets), key="data_dataset",
                        format_func=lambda name: t_plainly("data.dataset_option", name=name, rows=f"{datasets[name].card.rows:,}"),
                        on_change=lambda: st.query_params.update({DATASET: st.session_state["data_dataset"]}))
    if chosen and chosen not in datasets:
        st.warning(t("data.gone", name=chosen), icon=":material/search_off:")
    draw_dataset(workspace, datasets[name])
    next_step("recipe", "data.next", **{DATASET: name})
    commands = ["show {name}", "lint {name}", "preview {name} --row 1"]
    if datasets[name].card.made_with.get("rejected"):
        commands.append("rejected {name}")
    same_command("\n".join(f"sweetspot data {command.format(name=name)}" for command in commands))
