"""The studio as `sweetspot studio` serves it: behind its gate with --share and --class, else for the pages of this machine alone."""

from __future__ import annotations

from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware

from studio.gate import Gate, OwnPages
from studio.visitors import is_gated

app = st.App(Path(__file__).resolve().parent / "app.py", middleware=[Middleware(Gate if is_gated() else OwnPages)])
