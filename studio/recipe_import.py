"""The Recipe page's way in for an XTuner config: choose the file, see what became of each setting."""

from __future__ import annotations

import streamlit as st

from core.data.library import list_datasets
from core.errors import StudioError
from core.recipe.imported import save_imported
from core.recipe.xtuner import ImportedConfig, import_config
from core.recipe.xtuner_notes import KINDS
from core.workspace import Workspace
from studio.i18n import explain, language, say_plainly, t, t_plainly
from studio.session import RECIPE

_IMPORTED = "recipe_imported"
_LARGEST_MB = 1


def draw_import(workspace: Workspace) -> None:
    """The button with its file chooser, and what the last import had to say."""
    with st.popover(t("recipe.import"), icon=":material/upload_file:", key="recipe_import", type="tertiary"):
        st.caption(t("recipe.import_what"))
        file = st.file_uploader(t("recipe.import_file"), type="py", max_upload_size=_LARGEST_MB, key="recipe_import_file")
        names = ["", *(dataset.card.name for dataset in list_datasets(workspace))]
        dataset = st.selectbox(t("recipe.import_data"), names, key="recipe_import_data",
                               format_func=lambda name: name or t_plainly("recipe.import_own_data"))
        if st.button(t("recipe.import_now"), key="recipe_import_now", icon=":material/upload_file:", disabled=file is None):
            try:
                imported = import_config(file.getvalue().decode("utf-8"), file.name, None, workspace, dataset or None)
                st.query_params[RECIPE] = save_imported(workspace, imported, None, language()).stem
            except UnicodeDecodeError:
                st.error(t("recipe.import_no_text"), icon=":material/error:")
            except StudioError as error:
                st.error(explain(error), icon=":material/error:")
            else:
                st.session_state[_IMPORTED] = imported
                st.rerun()
    imported = st.session_state.get(_IMPORTED)
    if imported is not None:
        _draw_notes(imported)


def _draw_notes(imported: ImportedConfig) -> None:
    with st.container(border=True, key="recipe_import_notes"):
        counts = {kind: len(imported.of_kind(kind)) for kind in KINDS}
        st.markdown(t("recipe.imported", taken=counts["mapped"] + counts["changed"], left=counts["left_out"], not_run=counts["not_run"]))
        columns = [t_plainly(f"recipe.column_{name}") for name in ("became", "setting", "field", "why")]
        rows = [(t_plainly(f"recipe.note_{note.kind}"), note.key, note.field, say_plainly(note.text))
                for kind in reversed(KINDS) for note in imported.of_kind(kind)]
        st.dataframe([dict(zip(columns, row, strict=True)) for row in rows], hide_index=True, alt=t_plainly("recipe.import_alt"))
        if st.button(t("recipe.import_seen"), key="recipe_import_seen", type="tertiary", icon=":material/check:"):
            del st.session_state[_IMPORTED]
            st.rerun()
