"""The studio: pages, language, and the frame around them. Served by `sweetspot studio`."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from core.errors import StudioError
from core.words import LANGUAGES
from studio.i18n import explain, t
from studio.panels import draw_sidebar
from studio.session import LANGUAGE, VISITOR
from studio.visitors import is_class, open_workspace, visitor

_ICONS = {"home": "home", "data": "dataset", "recipe": "menu_book", "train": "model_training", "compare": "compare_arrows",
          "merge": "merge", "chat": "forum", "wall": "groups"}
_ROOT = Path(__file__).resolve().parent.parent

st.set_page_config(page_title="Sweetspot", page_icon=str(_ROOT / "studio" / "icon.png"), layout="wide")
st.logo(str(_ROOT / "studio" / "logo.svg"), size="large", icon_image=str(_ROOT / "studio" / "icon.png"))

# A page whose link came back may belong to somebody else now: nothing of the one before stays.
who = visitor()
if st.session_state.setdefault(VISITOR, who and (who.role, who.student)) != (who and (who.role, who.student)):
    st.session_state.clear()

# The address wins, so that a link opens in its language; a link without one keeps the language of the session.
wanted = st.query_params.get("lang")
if wanted in LANGUAGES:
    st.session_state[LANGUAGE] = wanted
elif st.session_state.get(LANGUAGE) not in LANGUAGES:
    st.session_state[LANGUAGE] = "zh" if (st.context.locale or "").startswith("zh") else "en"
if wanted != st.session_state[LANGUAGE]:
    st.query_params["lang"] = st.session_state[LANGUAGE]

page = st.navigation([
    st.Page(_ROOT / "pages" / f"{name}.py", title=t(f"shell.{name}"), icon=f":material/{icon}:", url_path=name, default=name == "home",
            visibility="hidden" if name == "wall" and not is_class() else "visible")
    for name, icon in _ICONS.items()])
try:
    open_workspace()
except StudioError as error:  # nothing can be shown or kept without it
    st.error(explain(error), icon=":material/error:")
    st.stop()
draw_sidebar()
page.run()
