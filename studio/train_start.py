"""The form of the Train page: which recipe, on which dataset, what that will be, and the button that starts it once."""

from __future__ import annotations

import shlex

import streamlit as st

from core.data.library import list_datasets
from core.errors import StudioError
from core.recipe.files import find_recipe, list_recipes, presets
from core.recipe.first_trial import measure_first
from core.recipe.schema import Recipe
from core.train.script import Cluster, launch_script
from core.train.start import on_dataset, plan_on_disk, start_once
from core.workspace import Workspace
from studio.i18n import explain, say_plainly, t, t_plainly
from studio.panels import errors_in_words, link_to, same_command
from studio.session import DATASET, RECIPE, RUN


def ask_what_to_train(workspace: Workspace) -> None:
    """Choices, plan and start button; with no dataset yet, the way to one."""
    datasets = [dataset.card.name for dataset in list_datasets(workspace)]
    if not datasets:
        st.info(t("train.no_data"), icon=":material/dataset:")
        with st.container(horizontal=True):
            link_to("home", t("train.to_home"), icon=":material/home:")
            link_to("data", t("train.to_data"), icon=":material/dataset:")
        return
    name = _choose_recipe(workspace)
    try:
        recipe = find_recipe(workspace, name)
    except StudioError as error:
        st.error(explain(error), icon=":material/error:")
        return
    dataset = _choose_dataset(recipe, datasets)
    title = st.text_input(t("train.title_of_run"), key="train_title", max_chars=60, help=t("train.title_of_run_help"))
    with errors_in_words():
        _draw_plan_and_start(workspace, on_dataset(recipe, dataset), title.strip())
    options = [*(["--data", dataset] if dataset else []), *(["--name", title.strip()] if title.strip() else [])]
    same_command(shlex.join(["sweetspot", "train", name, *options]))
    _draw_cluster(workspace, name, options)


def _draw_cluster(workspace: Workspace, name: str, options: list[str]) -> None:
    """The same training on several GPUs or machines, as a script to take along."""
    with st.expander(t("train.cluster"), icon=":material/dns:"):
        st.caption(t("train.cluster_help"))
        first, second, third = st.columns(3, vertical_alignment="bottom")
        gpus = first.number_input(t("train.cluster_gpus"), 1, 64, key="train_cluster_gpus")
        nodes = second.number_input(t("train.cluster_nodes"), 1, 256, key="train_cluster_nodes")
        kind = third.segmented_control(t("train.cluster_kind"), ["plain", "slurm"], key="train_cluster_kind", required=True,
                                       default="plain", format_func=lambda kind: t_plainly(f"train.cluster_{kind}"))
        script = launch_script(kind, workspace, name, options, Cluster(gpus, nodes))
        st.code(script, language="bash")
        st.download_button(t("train.cluster_download"), script, "train.sh" if kind == "plain" else "train.sbatch", "text/x-shellscript",
                           key="train_cluster_download", icon=":material/download:", on_click="ignore")


def _choose_recipe(workspace: Workspace) -> str:
    """Own recipes first, then the presets; the address may name one."""
    titles = {preset.name: say_plainly(preset.title) for preset in presets()}
    own = list_recipes(workspace)
    options = [*own, *(name for name in titles if name not in own)]
    _take_from_address("train_recipe", RECIPE, options)
    chosen = st.selectbox(t("train.recipe"), options, key="train_recipe", help=t("train.recipe_help"),
                          format_func=lambda name: name if name in own else t_plainly("train.preset", title=titles[name]))
    return chosen


def _choose_dataset(recipe: Recipe, datasets: list[str]) -> str:
    """A dataset for every source of the recipe; empty leaves the recipe's own where they are here."""
    named = [source.dataset for source in recipe.data.sources]
    options = ["", *datasets] if set(named) <= set(datasets) else list(datasets)
    _take_from_address("train_dataset", DATASET, options)
    if st.session_state.get("train_dataset") not in options:
        st.session_state.pop("train_dataset", None)
    return st.selectbox(
        t("train.dataset"), options, key="train_dataset", help=t("train.dataset_help"),
        format_func=lambda name: name or t_plainly("train.as_in_recipe", datasets=", ".join(dict.fromkeys(named))))


def _take_from_address(key: str, parameter: str, options: list) -> None:
    """Let a link preset a choice, until the reader makes one."""
    asked = st.query_params.get(parameter)
    if asked in options and key not in st.session_state:
        st.session_state[key] = asked


def _draw_plan_and_start(workspace: Workspace, recipe: Recipe, title: str) -> None:
    plan = plan_on_disk(workspace, recipe)
    st.markdown(t("train.plan", updates=plan.updates, snapshots=len(plan.snapshot_steps), times=f"{plan.exposures_per_row:.3g}"))
    if st.button(t("train.start"), type="primary", icon=":material/play_arrow:", key="train_start"):
        measure_first(workspace, recipe)
        run, is_new = start_once(workspace, recipe, title)
        for parameter in (RECIPE, DATASET):
            st.query_params.pop(parameter, None)
        st.session_state.pop("train_another", None)  # the fold closes; the run is what one wants to see now
        st.query_params[RUN] = run.id
        st.toast(t("train.started" if is_new else "train.runs_already", run=run.id))
        st.rerun()
